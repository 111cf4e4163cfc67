"""The benchmarks as a user starts them: they measure, go on where they stopped, and refuse what they do not know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import real

ROOT = Path(__file__).parent.parent
ROW = "HB-20 fixed"


def benchmark(folder, *arguments, script="architectures.py"):
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), "--results", str(folder)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)


def test_what_is_called_noisy(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import paired

    def judge(ratios):
        return paired.judge(ratios, [1.0] * len(ratios))

    wave = [1 + 0.02 * (-1) ** i for i in range(20)]  # an interquartile range of 4 %
    calm = judge(wave * 2)
    assert calm.ratio == pytest.approx(1) and calm.error == pytest.approx(1.86 * 0.04 / 40**0.5) and not calm.noisy
    assert judge(wave).noisy and not judge([1.1] * 10 + [1.08] * 10).noisy
    assert judge([1.1] * 10 + [1.06] * 10).noisy
    cpu, seen = torch.device("cpu"), []
    times = paired.alternate(lambda: seen.append(0), lambda: seen.append(1), 4, cpu)
    assert times.pairs in range(4, 21, 4) and len(seen) == 4 + 2 * times.pairs and sum(seen) == len(seen) / 2
    assert not times.noisy or times.pairs == 20


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
    assert row["train/1"]["pairs"] in range(2, 11, 2) and row["inference/1"]["ratio"] > 0
    assert (tmp_path / "architectures-cpu.png").stat().st_size > 10_000
    row["torch"] = "another one"  # as if measured elsewhere
    file.write_text(json.dumps({"rows": {ROW: row}}))
    again = benchmark(tmp_path, *options, ROW, "HB-20 checkpoint")
    assert f"{ROW} ..." not in again.stdout and "HB-20 checkpoint ..." in again.stdout
    rows = json.loads(file.read_text())["rows"]
    assert rows[ROW] == row and rows["HB-20 checkpoint"]["torch"] == torch.__version__
    assert rows["HB-20 checkpoint"]["ours"]["held_bytes"] < 0.4 * row["ours"]["held_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--rows", "nonsense"], ["--pairs", "1"], ["--threads", "0"]])
def test_architectures_refuses(arguments, tmp_path):
    done = benchmark(tmp_path, *arguments)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1].startswith("architectures.py: error: ")


@pytest.mark.slow
def test_an_lpom_step_lives_on_as_little_memory_as_an_sgd_step(tmp_path):
    done = benchmark(tmp_path, "--tasks", "memory", script="trainers.py")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "trainers.json").read_text())["memory"]
    assert (measured["width"], measured["batch"]) == (2048, 1000)
    weights = 4 * (785 * 2048 + 2 * 2049 * 2048 + 2049 * 10)
    assert 2 * weights < measured["sgd"] < 6 * weights
    assert measured["lpom"] <= 1.1 * measured["sgd"]


@pytest.mark.slow
@real
def test_trainers(tmp_path):
    options = ["--tasks", "usps*", "--limit", "0.1", "--methods"]
    done = benchmark(tmp_path, *options, "MAC, mu x 10 after a gain < 5 %", script="trainers.py")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "trainers.json"
    results = json.loads(file.read_text())
    run = results["runs"]["usps-autoencoder"]["MAC, mu x 10 after a gain < 5 %"]["0"]
    assert run["final"] < results["mean image"], "after its first iteration"
    assert (tmp_path / "trainers-usps-autoencoder.png").stat().st_size > 5_000
    assert run["limit"] == 0.1 and [row[-1] for row in run["curve"]] == [1, 1], "mu"
    again = benchmark(tmp_path, *options, "MAC*", script="trainers.py")
    assert "each sweep" in again.stdout and "gain < 5 %" not in again.stdout
    kept = json.loads(file.read_text())["runs"]["usps-autoencoder"]
    assert kept["MAC, mu x 10 after a gain < 5 %"]["0"] == run and len(kept) == 2
