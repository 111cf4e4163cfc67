"""Runs that signals end: sent to a process or its group, with processes that read images, in several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from helpers import CLOCK, ROOT, class_folder, crossed, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optnet.training import checkpoint

KILLS = int(os.environ.get("OPTNET_KILLS", "100"))
"""How often the runs of the last test are ended, all together."""
SETTINGS = (
    "data=folder", "data.size=16", "data.augment=crop_flip", "batch_size=8", "model.blocks=[1,1]", "model.widths=[4,8]",
    "model.drop_rate=0.1", "trainer.average=ema", "trainer.recalibrate=2", "trainer.mixup=0.3", "device=cpu", "lr=0.02",
    "monitor.every=7", "monitor.conditioning=0", "monitor.figures=none", "progress=false", "name=fire",
)  # fmt: skip


@dataclass
class Command:
    """train.py on images in files, in a session of its own: a group of processes that signals can be sent to."""

    place: Path
    workers: int
    processes: int
    torchrun: bool = False
    settings: tuple[str, ...] = ()
    log: Path = field(init=False)

    def __post_init__(self):
        self.log = self.place / "log"
        self.place.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments):
        program = [str(ROOT / "train.py")]
        if self.torchrun:
            program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), *program]
        elif self.processes > 1 or any(argument.startswith("resume=") for argument in arguments):
            arguments = (*arguments, f"distributed.processes={self.processes}")
        with open(self.log, "w") as log:
            return subprocess.Popen(
                [sys.executable, *program, *arguments], cwd=self.place, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip

    def begin(self, images, **keys):
        own = (f"data.root={images}", f"data.workers={self.workers}", f"runs={self.place}", *SETTINGS)
        return self.start(*own, *(f"{key}={value}" for key, value in keys.items()))

    def resume(self, *arguments):
        return self.start(f"resume={self.folder}", *arguments)

    @property
    def folder(self):
        (folder,) = self.place.glob("fire/*")
        return folder

    def wait_for(self, process, words):
        """Waits until the command has printed these words. False: it ended first."""
        while process.poll() is None:
            if words in self.log.read_text():
                return True
            time.sleep(0.01)
        return False

    def finish(self, process, status=0):
        try:
            found = process.wait(300)
        except subprocess.TimeoutExpired:
            send(process, signal.SIGKILL, "group")
            raise
        if status is not None:
            assert found == status, self.log.read_text()
        gone(process.pid, self.place)
        return self.log.read_text()


def gone(group, place, seconds=60):
    """Waits until no process of a group, or of a run in ``place``, is left: torchrun's are groups of their own."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            if not [file for file in Path("/proc").glob("[0-9]*/cmdline") if str(place).encode() in contents(file)]:
                return
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    raise AssertionError(f"processes of the group {group} are left")


def contents(file):
    try:
        return file.read_bytes()
    except OSError:  # the process has ended
        return b""


def send(process, number, to):
    with suppress(ProcessLookupError):
        (os.killpg if to == "group" else os.kill)(process.pid, number)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    class_folder(root, count=60)
    return root


@pytest.mark.parametrize(
    "number, to, workers, processes, torchrun",
    [
        pytest.param(signal.SIGTERM, "group", 2, 1, False),
        *(
            pytest.param(*case.values, marks=pytest.mark.slow)
            for case in crossed(
                [signal.SIGTERM, signal.SIGINT], ["process", "group"], [0, 2], [1, 2], [False, True],
                without=lambda number, to, workers, processes, torchrun: torchrun and processes == 1,
            )
        ),
    ],
)  # fmt: skip
def test_a_signal_saves_in_the_midst_of_an_epoch(tmp_path, images, number, to, workers, processes, torchrun):
    command = Command(tmp_path, workers, processes, torchrun)
    process = command.begin(images, epochs=1000)
    assert command.wait_for(process, "epoch 1/"), command.log.read_text()
    time.sleep(0.3)
    send(process, number, to)
    out = command.finish(process, None if torchrun else 128 + number)  # torchrun has a status of its own
    assert out.count("interrupted and saved") == 1 and (torchrun or "Traceback" not in out), out
    progress = checkpoint.load(command.folder / "checkpoints" / "last.pt").progress
    assert progress["updates"] > 0 and progress["epoch"] >= 1


@pytest.mark.slow
def test_a_reader_that_is_gone_is_one_line(tmp_path, images):
    """As when the system has too little memory."""
    command = Command(tmp_path, 2, 1)
    process = command.begin(images, epochs=1000)
    assert command.wait_for(process, "epoch 1/")
    readers = []
    while not readers and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        readers = [int(child) for child in children]
    os.kill(readers[0], signal.SIGKILL)
    out = command.finish(process, 1)
    assert "a process that reads images is gone" in out and "Traceback" not in out
    assert f"resume={command.folder}" in out


def points(folder):
    """(step, value) of every scalar in TensorBoard, but for clocks."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("time", "memory", "result/train_seconds"))]
    return {tag: sorted((point.step, point.value) for point in events.Scalars(tag)) for tag in tags}


def same_run(whole, cut):
    for one, other in zip(metrics(whole), metrics(cut), strict=True):
        assert {k: v for k, v in one.items() if k not in CLOCK} == {k: v for k, v in other.items() if k not in CLOCK}
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(folder / "checkpoints" / name) for folder in (whole, cut))
        for a, b in ((one.state_dict, other.state_dict), (one.trainer["network"], other.trainer["network"])):
            assert all(torch.equal(a[key], b[key]) for key in a), name
    assert points(whole) == points(cut)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, cut)]
    assert summaries[0]["correct"] == summaries[1]["correct"]


@pytest.mark.slow
@pytest.mark.parametrize("processes, torchrun", [(1, False), (2, False), (2, True)], ids=["one", "two", "torchrun"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_hundred_kills(tmp_path, images, workers, processes, torchrun):
    """KILL, TERM and INT, to the process and to its group, at random moments from the program's first line on.

    After all of them the run is bit for bit the one that nobody disturbed.
    """
    kills = -(-KILLS // 6)
    drawn = random.Random(100 * workers + 10 * processes + torchrun)
    epochs = 4 * kills
    undisturbed = Command(tmp_path / "whole", workers, processes, torchrun)
    undisturbed.finish(undisturbed.begin(images, epochs=epochs))
    command = Command(tmp_path / "cut", workers, processes, torchrun)
    process, statuses = command.begin(images, epochs=epochs), []
    assert command.wait_for(process, "epoch 1/")
    while len(statuses) < kills:
        number = drawn.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        to = drawn.choice(["process", "group"])
        if not statuses or drawn.random() < 0.8:
            command.wait_for(process, "; in ")
        time.sleep(drawn.uniform(0, 2))
        if process.poll() is not None:
            break
        send(process, number, to)
        status = process.wait(120)
        if number == signal.SIGKILL:
            send(process, number, "group")  # of a launcher that was killed the processes it started are left
        gone(process.pid, command.place)
        assert status != 0, command.log.read_text()
        statuses.append((number.name, to, status))
        process = command.resume()
    command.finish(process)
    print(f"{workers=} {processes=} {torchrun=}: ended {len(statuses)} times: {statuses}")
    assert len(statuses) > kills / 2
    same_run(undisturbed.folder, command.folder)
