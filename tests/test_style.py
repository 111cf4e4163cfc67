"""Linting, types, and what each module may import."""

import ast
import subprocess
import sys
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
