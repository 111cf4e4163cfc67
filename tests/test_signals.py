"""A signal at any moment of a program, from its first line to its last, is one line and the status 128 + its number."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from optnet.app import program
from optnet.training.interruption import AGAIN, Interrupted, heeded, raised

PROGRAMS = {
    "train.py": [str(ROOT / "train.py"), "device=cpu"],
    "evaluate.py": [str(ROOT / "evaluate.py"), "model=hbnet_small", "device=cpu"],
    "optnet list": ["-m", "optnet", "list"],
    "optnet train": ["-m", "optnet", "train", "device=cpu"],
    "sweep": [str(ROOT / "train.py"), "-m", "seed=0,1", "device=cpu"],
}
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
FIRST = 0.2
"""Seconds in which Python itself starts, before the first line of a program."""


def interrupt(name, number, seconds, place):
    """Sends a signal to a program after so many seconds. Returns its status, stdout and stderr."""
    started = subprocess.Popen(
        [sys.executable, *PROGRAMS[name]], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    time.sleep(seconds)
    started.send_signal(number)
    out, err = started.communicate(timeout=120)
    return started.returncode, out, err


def check(name, number, seconds, place):
    status, out, err = interrupt(name, number, seconds, place)
    if status == 0:  # it was done before
        return
    assert status == 128 + number, (status, err)
    if "interrupted and saved" in out:
        assert not err
    else:
        assert err == f"interrupted by {number.name}\n", err
        for folder in place.glob("runs/*-digits/*"):  # the scores are there, their figure is not
            assert name == "evaluate.py" and (folder / "evaluation.json").exists() and "written to" in out


@pytest.mark.parametrize(("name", "number"), [("train.py", signal.SIGINT), ("optnet list", signal.SIGTERM)])
@pytest.mark.sampled(1)
def test_a_signal_while_a_program_starts_is_one_line(name, number, tmp_path):
    check(name, number, random.Random(number).uniform(FIRST, 2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("trial", range(12))
def test_a_signal_at_any_moment_of_the_first_six_seconds_is_one_line(name, trial, tmp_path):
    chance = random.Random(f"{name} {trial}")
    check(name, SIGNALS[trial % 3], chance.uniform(FIRST, 6), tmp_path)


OURS = [
    ([str(ROOT / "train.py")], ["python", "train.py"], True),
    ([str(ROOT / "evaluate.py")], ["python", "evaluate.py"], True),
    (["-m", "list"], ["python", "-m", "optnet", "list"], True),
    (["-m"], ["python", "-m", "optnet.training.run"], True),
    (["/venv/bin/optnet", "list"], ["python", "/venv/bin/optnet", "list"], True),
    (["/elsewhere/train.py"], ["python", "train.py"], False),
    (["-m"], ["python", "-m", "pytest"], False),
    (["-c"], ["python", "-c", "import optnet"], False),
    ([""], ["python"], False),
]


@pytest.mark.parametrize(("argv", "whole", "ours"), OURS)
def test_only_our_programs_heed_signals_from_the_start(argv, whole, ours, monkeypatch):
    """``import optnet`` in somebody's program changes no handler."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", whole)
    assert program.is_ours() == ours


def test_handlers_are_as_before_after_a_command_in_somebodys_program():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted) as interrupted, raised():
        signal.raise_signal(signal.SIGTERM)
    assert interrupted.value.signal == signal.SIGTERM and AGAIN > 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_hangup_is_not_heeded_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert heeded() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("called", [["-m", "optnet.training.run"], [str(ROOT / "optnet" / "app" / "train.py")]])
@pytest.mark.sampled(1)
def test_a_module_that_is_no_program_says_so(called, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *called], cwd=tmp_path, capture_output=True, text=True, env=env
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert done.stderr.endswith("is no program; python -m optnet --help lists all commands\n")
    assert done.stderr.count("\n") == 1
