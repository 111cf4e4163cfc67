"""Linting, types, and what each module may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "optnet").rglob("*.py"))
NO_TORCH = [ROOT / "optnet" / name for name in ("program.py", "guarantees.py", "symbols.py", "tracing.py", "errors.py")]
NO_TORCH += sorted((ROOT / "optnet" / "algorithms").glob("*.py"))
ORDER = "errors version options modes program symbols guarantees tracing algorithms objectives analysis"
ORDER = f"{ORDER} emitting recomputing unroll layers initialisation design network mlp convert zoo data monitoring"
ORDER = f"{ORDER} signal lifted training".split()


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


@pytest.mark.parametrize("file", NO_TORCH, ids=lambda file: file.name)
def test_algorithms_tracing_and_program_import_no_torch(file):
    assert not {name.split(".")[0] for name in imports(file)} & {"torch", "timm", "torchvision", "numpy"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_data_flows_one_way(file):
    place = file.relative_to(ROOT / "optnet").with_suffix("").parts[0]
    if place in ("__init__", "__main__"):
        return
    for name in imports(file):
        if name.startswith("optnet."):
            assert ORDER.index(name.split(".")[1]) <= ORDER.index(place), f"{file.name} imports {name}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))
