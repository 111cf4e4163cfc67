"""The benchmarks as a user starts them: they measure, go on where they stopped, and refuse what they do not know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW = "HB-20 fixed"


def benchmark(folder, *arguments):
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "architectures.py"), "--results", str(folder)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_architectures(tmp_path):
    options = ["--device", "cpu", "--pairs", "2", "--threads", "1", "--rows"]
    done = benchmark(tmp_path, *options, ROW)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "architectures-cpu.json"
    row = json.loads(file.read_text())["rows"][ROW]
    assert row["ours"]["parameters"] == row["theirs"]["parameters"]
    assert row["ours"]["multiply_adds"] == row["theirs"]["multiply_adds"]
    assert row["ours"]["saved_bytes"] <= 1.04 * row["theirs"]["saved_bytes"]
    assert row["train/1"]["pairs"] == 2 and row["inference/1"]["ratio"] > 0
    assert (tmp_path / "architectures-cpu.png").stat().st_size > 10_000
    again = benchmark(tmp_path, *options, ROW, "HB-20 checkpoint")
    assert f"{ROW} ..." not in again.stdout and "HB-20 checkpoint ..." in again.stdout
    rows = json.loads(file.read_text())["rows"]
    assert rows[ROW] == row
    assert rows["HB-20 checkpoint"]["ours"]["held_bytes"] < 0.4 * row["ours"]["held_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--rows", "nonsense"], ["--pairs", "1"], ["--threads", "0"]])
def test_architectures_refuses(arguments, tmp_path):
    done = benchmark(tmp_path, *arguments)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1].startswith("architectures.py: error: ")
