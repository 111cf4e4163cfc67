"""The library of methods, one file per algorithm or close family. No torch here: a method is a plain recurrence.

To add an algorithm, add one file with one decorated function; every module of this package is imported by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from optnet.errors import AlgorithmError
from optnet.tracing import Algorithm, as_algorithm, registered

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def list_algorithms() -> list[str]:
    """The names of the registered algorithms, sorted (aliases left out)."""
    return sorted({method.name for method in registered().values()})


def find_algorithm(spec: str | Callable[..., Any]) -> Algorithm:
    """The algorithm of a name or alias, of ``my_file.py:my_method``, of a dotted path, or of a function itself.

    Raises:
        AlgorithmError: there is no such name, file, module or function; or it is not an algorithm.
    """
    if not isinstance(spec, str):
        return as_algorithm(spec)
    if spec in registered():
        return registered()[spec]
    if ":" in spec:
        path, _, function = spec.rpartition(":")
        module = _load_file(path) if path.endswith(".py") else _load_module(path)
    elif "." in spec and not spec.endswith(".py"):
        path, _, function = spec.rpartition(".")
        module = _load_module(path)
    else:
        near = get_close_matches(spec, registered(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(list_algorithms())};"
        raise AlgorithmError(f"unknown algorithm '{spec}': {hint} your own is my_file.py:my_method")
    if not hasattr(module, function):
        raise AlgorithmError(f"{path} has no function '{function}'")
    return as_algorithm(getattr(module, function))


def _load_file(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise AlgorithmError(f"there is no file {path}; an algorithm of your own is my_file.py:my_method")
    found = importlib.util.spec_from_file_location(f"optnet_user_{Path(path).stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        found.loader.exec_module(module)
    except AlgorithmError:
        raise
    except Exception as error:
        del sys.modules[module.__name__]
        raise AlgorithmError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _load_module(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except AlgorithmError:
        raise
    except Exception as error:
        raise AlgorithmError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
