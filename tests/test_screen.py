"""The line of a run's progress, on a terminal and elsewhere."""

import os
import pty
import re
import subprocess
import sys
from datetime import timedelta

import pytest
from helpers import ROOT, train
from rich.progress import Progress as Bar
from rich.progress import TaskID

from optnet.training import screen as module
from optnet.training.loop import Progress
from optnet.training.screen import Screen, screen

LINE = re.compile(
    r"epoch (\d+)/(\d+)  step (\d+)/(\d+)  [\d,]+ images/s  loss \d+\.\d{4}  top-1 \d+\.\d %  (?:\d+:\d\d:\d\d|\?) left"
)


def at(updates, **given):
    """Ten steps an epoch, 4 images a step, half of them right, with a loss of 0.5."""
    count = 4 * (updates % 10)
    done = {"epoch": updates // 10, "batch": updates % 10, "updates": updates, "images": 4 * updates}
    return Progress(**{**done, "count": count, "loss_sum": 0.5 * count, "correct": count // 2, **given})


@pytest.mark.parametrize("processes", [1, 2])
def test_the_rate_and_the_time_left(processes):
    """Two steps a second of 4 images: 8 images a second and process; 45 of 50 steps left after 5."""
    now, lines = [0.0], []
    shown = Screen(lines.append, None, TaskID(0), 50, 5, processes, clock=lambda: now[0])
    shown.advance(at(1))
    now[0] = 2.0
    shown.show(at(5), 10)
    assert not lines  # a plain line comes after EVERY seconds
    assert shown.text(at(5), 10) == f"epoch 1/5  step 5/10  {8 * processes} images/s  loss 0.5000  top-1 50.0 %"
    assert shown.left(at(5)) == str(timedelta(seconds=22)) == "0:00:22"
    now[0] = module.EVERY
    shown.show(at(5), 10)
    shown.show(at(6), 10)
    assert len(lines) == 1 and LINE.fullmatch(lines[0])


def test_a_resumed_run_counts_its_own_steps():
    now = [0.0]
    shown = Screen(print, None, TaskID(0), 50, 5, clock=lambda: now[0])
    shown.advance(at(31))
    assert shown.left(at(31)) == "?"
    now[0] = 1.0
    assert "step 3/10  8 images/s" in shown.text(at(33), 10) and shown.left(at(33)) == "0:00:08"


def test_a_terminal_gets_one_moving_line():
    bar = Bar(disable=True)
    shown = Screen(pytest.fail, bar, bar.add_task("", total=50), 50, 5)
    shown.advance(at(3))
    shown.show(at(4), 10)
    task = bar.tasks[0]
    assert task.completed == 3 and task.description.startswith("epoch 1/5  step 4/10  ")


def test_nothing_is_shown_if_it_is_not_wanted():
    with screen(False, pytest.fail, 5, 0, 1) as shown:
        shown.advance(at(1))
        shown.show(at(2), 10)


def test_a_run_that_is_no_terminal_says_plain_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr("optnet.training.loop.REFRESH", 0.0)
    train(tmp_path, epochs=1, limit_batches=3, progress=True)
    found = [LINE.search(line) for line in capsys.readouterr().out.splitlines() if " left" in line]
    assert [match and match.groups() for match in found] == [("1", "1", str(step), "3") for step in (1, 2, 3)]


@pytest.mark.slow
def test_a_run_on_a_terminal(tmp_path):
    """The moving line has all parts, and lines of the run stay above it."""
    ours, theirs = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "device=cpu", "epochs=4"], cwd=tmp_path, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "150", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert started.wait() == 0
    text = shown.decode()
    assert re.search(r"epoch \d/4  step \d+/\d+  [\d,]+ images/s  loss \d\.\d+  top-1 \d+\.\d % .*\d:\d\d:\d\d", text)
    assert "epoch 4/4  train loss" in text and "Traceback" not in text
