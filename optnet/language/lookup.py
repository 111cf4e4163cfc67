"""Finds algorithms by name, by file or by dotted path. Imports each user file once. No tracing, no torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from optnet.errors import AlgorithmError, did_you_mean, reason
from optnet.language.declaration import Algorithm, as_algorithm, registered
from optnet.language.program import unique


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
        near = did_you_mean(spec, [*registered()]) or f"; it is one of {', '.join(list_algorithms())}"
        raise AlgorithmError(f"unknown algorithm '{spec}'{near} Your own are given as my_file.py:my_method")
    if not hasattr(module, function):
        known = [name for name, value in vars(module).items() if callable(value)]
        raise AlgorithmError(
            f"{path} has no function '{function}'{did_you_mean(function, known) or '; check its name'}"
        )
    return as_algorithm(getattr(module, function))


_FILES: dict[Path, tuple[tuple[int, int], ModuleType]] = {}
"""The imported user files: their modification time and size at the import, and the module."""

_NEIGHBOURS: dict[str, Path] = {}
"""The modules that user files have imported from their own folders."""


def _load_file(path: str) -> ModuleType:
    """The module of a user file. The file runs once, and again only if it has changed."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise AlgorithmError(f"there is no file {path}; give your own algorithm as my_file.py:my_method")
    state = (file.stat().st_mtime_ns, file.stat().st_size)
    if file in _FILES and _FILES[file][0] == state:
        return _FILES[file][1]
    name = f"optnet_user_{file.stem}"
    others = {module.__name__ for known, (_, module) in _FILES.items() if known != file}
    found = importlib.util.spec_from_file_location(unique(name, others), file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    _forget_namesakes(file.parent)
    before = {*sys.modules, module.__name__}
    sys.path.insert(0, str(file.parent))  # as for a script: the file can import its neighbours
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, AlgorithmError) or not isinstance(error, (Exception, SystemExit)):
            raise
        raise AlgorithmError(f"{path} cannot be imported: {type(error).__name__}: {reason(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    _remember_neighbours(file.parent, before)
    if str(file.parent) not in sys.path:  # for the imports inside its functions, behind all others
        sys.path.append(str(file.parent))
    _FILES[file] = (state, module)
    return module


def _forget_namesakes(folder: Path) -> None:
    """Lets a file import its own neighbours where a file in another folder has imported some of the same names."""
    here = {neighbour.stem for neighbour in folder.iterdir()}
    for name, origin in list(_NEIGHBOURS.items()):
        if origin != folder and name in here:
            for module in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
                del sys.modules[module]
            del _NEIGHBOURS[name]


def _remember_neighbours(folder: Path, before: set[str]) -> None:
    """Notes the modules of the folder that have been imported since ``before``."""
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and "." not in name and folder in Path(origin).resolve().parents[:2]:
            _NEIGHBOURS[name] = folder


def _load_module(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except AlgorithmError:
        raise
    except (Exception, SystemExit) as error:
        raise AlgorithmError(f"{path} cannot be imported: {type(error).__name__}: {reason(error)}") from error
