"""A run's folder: one process at a time, no links, and configurations of strangers."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, class_folder, config, content_of, go, metrics, only_run, prepare, refused, resume

from optnet import CheckpointError
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate
from optnet.data import DataOptions
from optnet.errors import RequestError
from optnet.training import checkpoint
from optnet.training.course import Course
from optnet.training.folder import Lock

# the lock


def holding(folder, *arguments):
    """A process that trains in this folder, and is at it."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"resume={folder}", *arguments], text=True, cwd=folder.parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert "epoch" in next((line for line in process.stdout if line.startswith("epoch")), "")
    return process


def test_a_folder_in_use_is_refused(folder):
    """Another process has the lock: a fork, which does nothing else. A POSIX lock is one process's."""
    ready, done = os.pipe(), os.pipe()
    other = os.fork()
    if not other:
        Lock(folder)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    refused(folder, f"is in use by process {other} on ")
    os.write(done[1], b"x")
    os.waitpid(other, 0)
    go(resume(folder, epochs=3))
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]


@pytest.mark.slow
def test_one_process_at_a_time_has_a_folder(folder):
    first = holding(folder, "epochs=100000")
    try:
        command = [sys.executable, str(ROOT / "train.py"), f"resume={folder}", "epochs=100000"]
        second = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
        assert second.returncode == 2 and not second.stdout
        assert second.stderr.count("\n") == 1 and f"is in use by process {first.pid} on " in second.stderr
    finally:
        first.kill()
        first.communicate()
    done = checkpoint.load(folder / "checkpoints" / "last.pt").progress["epoch"]
    go(resume(folder, epochs=done + 1))
    assert [line["epoch"] for line in metrics(folder)] == list(range(1, done + 2))
    assert not (folder / "lock").exists()


def test_who_read_the_run_before_another_went_on_is_refused(folder):
    job = resume(folder, epochs=4)
    go(resume(folder, epochs=3))
    before = content_of(folder)
    with pytest.raises(CheckpointError, match="another process went on"):
        go(job)
    assert content_of(folder) == before


@pytest.mark.parametrize("what", ["link", "hard link", "pipe", "empty", "foreign"])
@pytest.mark.sampled(2)
def test_a_lock_that_is_left_or_foreign_is_no_lock(folder, tmp_path, what):
    other = tmp_path / "other"
    other.write_text("mine")
    lock = folder / "lock"
    made = {"link": lambda: lock.symlink_to(other), "hard link": lambda: os.link(other, lock)}
    made |= {"pipe": lambda: os.mkfifo(lock), "empty": lock.touch, "foreign": lambda: lock.write_text("process 1 on x")}
    made[what]()
    go(resume(folder, epochs=3))
    assert other.read_text() == "mine" and not lock.exists()


# a stranger's run folder


LINKED = (
    "metrics.jsonl", "console.log", "summary.json", "lock", "metrics.jsonl.partial", "config.yaml.partial",
    "summary.json.partial", "checkpoints/last.pt.partial", "checkpoints/best.pt.partial", "events", "profile.json",
    "profile.json.partial", "evaluation.json.partial", "evaluation_confusion_0.png",
    "evaluation_confusion_0.png.partial",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling link"])
@pytest.mark.sampled(1)
def test_no_link_is_followed_for_writing(folder, tmp_path, kind):
    """With links in the place of all its files a run goes on, and is evaluated, and changes nobody else's file."""
    files = [folder / name for name in LINKED if name != "events"] + list(folder.glob("events*"))
    others = [tmp_path / f"other{number}" for number in range(len(files))]
    for file, other in zip(files, others, strict=True):
        content = file.read_bytes() if file.exists() else b"mine"
        file.unlink(missing_ok=True)
        other.write_bytes(content)
        if kind == "hard link":
            os.link(other, file)
        else:
            file.symlink_to(other)
            if kind == "dangling link":
                other.unlink()
    before = {other: other.read_bytes() for other in others if other.exists()}
    go(resume(folder, epochs=3))
    assess.score(assess.prepare(Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt"), device="cpu")))
    assert {other: other.read_bytes() for other in others if other.exists()} == before
    assert len(metrics(folder)) == 3 and json.loads((folder / "summary.json").read_text())["epochs"] == 3
    for name in ("metrics.jsonl", "console.log", "summary.json", "config.yaml", "evaluation.json"):
        assert not (folder / name).is_symlink()


def test_checkpoints_behind_a_link_are_refused(folder, tmp_path):
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    refused(folder, "checkpoints is a link")


def bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


STRANGE = {
    "an environment variable": ("\nlr: 0.1\n", "\nlr: ${oc.env:HOME}\n", "interpolation"),
    "another key": ("name: null", "name: ${device}", "interpolation"),
    "an interpolation in a key": ("\nlr: 0.1\n", "\n${oc.env:HOME}: 0.1\n", "interpolation"),
    "aliases": ("\nlr: 0.1\n", f"\n{bomb()}\n", "alias"),
    "a size": ("\nlr: 0.1\n", "\nlr: 0.1\nx: " + "y" * 1_100_000 + "\n", "more than 1,000,000"),
    "depth": ("\nlr: 0.1\n", "\nlr: " + "[" * 20_000 + "\n", "cannot be read"),
    "epochs": ("epochs: 2", "epochs: 100000000000", "epochs=100000000000 is out of range"),
    "no end of epochs": ("epochs: 2", "epochs: .inf", "epochs"),
    "an object": ("\nlr: 0.1\n", "\nlr: !!python/object/apply:os.getcwd []\n", "cannot be read"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strangers_configuration(folder, what):
    file = folder / "config.yaml"
    old, new, word = STRANGE[what]
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    began = time.monotonic()
    said = refused(folder, "config.yaml", word)
    assert time.monotonic() - began < 10 and os.environ["HOME"] not in said.replace(str(folder), "")


def test_a_million_epochs_are_laid_out_at_once():
    began = time.monotonic()
    loader = prepare(config(Path("/nowhere"))).loader("train", 64, training=True)
    course = Course(loader, 1_000_000, milestones=[0.25, 0.5], growth=2, max_steps=10_000_000)
    assert course.total == 10_000_000 and time.monotonic() - began < 5


def test_a_stored_place_is_never_downloaded_to(tmp_path, trained):
    """Nor is a folder made there: the data of a stranger's run is looked for where it says, and fetched nowhere."""
    elsewhere = tmp_path / "made"
    for file in (folder := Path(shutil.copytree(trained, tmp_path / "run"))).rglob("*"):
        if file.suffix == ".pt":
            content = torch.load(file, weights_only=True)
            content["config"]["data"] |= {"name": "mnist", "root": str(elsewhere), "download": True}
            torch.save(content, file)
    config = folder / "config.yaml"
    text = yaml.safe_load(config.read_text())
    text["data"] |= {"name": "mnist", "root": str(elsewhere), "download": True}
    config.write_text(yaml.safe_dump(text))
    refused(folder, "made")
    with pytest.raises(RequestError):
        assess.prepare(Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt")))
    assert not elsewhere.exists()


def test_control_characters_are_shown_and_not_sent(tmp_path, capsys):
    class_folder(tmp_path / "images", classes=("\x1b[31mred", "bell\x07\x1b]0;title\x07"), count=20)
    data = DataOptions(name="folder", root=str(tmp_path / "images"), size=16)
    go(prepare(config(tmp_path, data=data, epochs=1, batch_size=8)))
    shown = capsys.readouterr()
    log = (only_run(tmp_path) / "console.log").read_text()
    for text in (shown.out, shown.err, log):
        assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert "\\x1b[31mred" in shown.out
