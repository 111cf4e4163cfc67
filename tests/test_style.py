"""Linting, types, and what each module may import."""

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "optnet").rglob("*.py"))
ROOMS = (
    "errors",
    "version",
    "options",
    "language",
    "algorithms",
    "analysis",
    "networks",
    "data",
    "lifted",
    "training",
    "app",
)
"""Data flows from the left to the right: no room imports one to its right."""
NO_TORCH = [file for room in ("language", "algorithms") for file in sorted((ROOT / "optnet" / room).glob("*.py"))]
NO_TORCH += [ROOT / "optnet" / name for name in ("errors.py", "options.py", "version.py")]


def room(file):
    return file.relative_to(ROOT / "optnet").with_suffix("").parts[0]


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_tools(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module


@pytest.mark.parametrize("file", NO_TORCH, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_language_and_the_library_import_no_torch(file):
    assert not {name.split(".")[0] for name in imports(file)} & {"torch", "timm", "torchvision", "numpy"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_data_flows_one_way(file):
    here = room(file)
    if here in ("__init__", "__main__"):
        return
    for name in imports(file):
        if name.startswith("optnet."):
            assert ROOMS.index(name.split(".")[1]) <= ROOMS.index(here), f"{file.name} imports {name}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


OUTSIDE = [file for file in SOURCES if room(file) not in ("app", "__main__")]


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_application_knows_hydra_prints_and_exits(file):
    assert not {name.split(".")[0] for name in imports(file)} & {"hydra", "omegaconf"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit", "os._exit", "SystemExit"), f"{file}: {called}"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "SystemExit" not in ast.unparse(node.exc), file


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_one_helper_makes_a_sentence_of_a_foreign_error(file):
    text = file.read_text()
    assert file.name == "errors.py" or not re.search(r"str\(error\)[^\n]*splitlines\(\)[^\n]*\[0\]", text)
    assert "Example(" not in text and " a image" not in text


def test_one_declaration_an_option():
    """Every dataclass of options lives in one module, and no two of those classes have a name in common."""
    modules = [str(file.relative_to(ROOT).with_suffix("")).replace("/", ".") for file in SOURCES]
    found = {}
    for name in modules:
        if name.endswith("__main__"):
            continue
        module = import_module(name.removesuffix(".__init__"))
        for kind in vars(module).values():
            own = isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
            if own and kind.__name__.endswith("Options"):
                found.setdefault(kind.__name__, []).append(module.__name__)
    assert len(found) >= 12 and all(len(places) == 1 for places in found.values()), found
    assert not any(place.startswith("optnet.app") for (place,) in found.values())


def test_the_wheels_packages_are_those_there_are():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(file.relative_to(ROOT).parent.parts) for file in SOURCES}
    assert set(listed) == there | {"optnet.conf"} and len(listed) == len(set(listed))


def test_four_files_on_the_way_to_the_loop():
    """From the command to the training loop, each file imports the next one."""
    way = ["train.py", "optnet/app/train.py", "optnet/training/run.py", "optnet/training/loop.py"]
    for file, after in pairwise(way):
        assert after.removesuffix(".py").replace("/", ".") in imports(ROOT / file)
