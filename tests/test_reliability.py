"""What a run survives: being killed at any moment, damaged checkpoints, a full disk, images that cannot be read."""

import json
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import CLOCK, ROOT, call, class_folder, config, go, metrics, only_run, prepare, some, train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optnet import CheckpointError
from optnet.app.config import Model, Train
from optnet.data import DataOptions
from optnet.training import checkpoint, run
from optnet.training.interruption import Stopped
from optnet.training.loop import Progress, train_epoch
from optnet.training.schedules import ScheduleOptions

EVERYTHING = (
    "epochs=6", "data.augment=shift", "trainer.average=ema", "trainer.average_decay=0.9", "trainer.recalibrate=3",
    "trainer.mixup=0.3", "trainer.cutmix=1.0", "trainer.clip=1.0", "schedule.warmup=0.3", "batch_milestones=[0.5]",
    "model.blocks=[1,2]", "model.widths=[4,8]", "model.drop_rate=0.1", "monitor.every=5", "monitor.conditioning=0",
    "device=cpu", "progress=false",
)  # fmt: skip


def start(folder, *arguments, **options):
    """train.py as a process of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def finish(process, status=0):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == status, out
    return out


def wait_for(found, process):
    """The first thing that ``found`` finds while the process lives, looked for without a pause."""
    while process.poll() is None:
        if result := found():
            return result
    return None


def first_checkpoint(folder):
    """A run can go on from its first checkpoint once its configuration is there."""
    return lambda: next((f.parent / "checkpoints" / "last.pt" for f in folder.glob("runs/*/*/config.yaml")), None)


def points(folder):
    """(step, value) of every scalar in TensorBoard, but for clocks."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("time", "memory", "result/train_seconds"))]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def same_run(whole, cut):
    one, two = checkpoint.load(whole / "checkpoints" / "last.pt"), checkpoint.load(cut / "checkpoints" / "last.pt")
    for part in ("state_dict", "network"):
        a, b = (c.state_dict if part == "state_dict" else c.trainer[part] for c in (one, two))
        assert all(torch.equal(a[key], b[key]) for key in a), f"{part} differs"
    for a, b in zip(metrics(whole), metrics(cut), strict=True):
        assert {k: v for k, v in a.items() if k not in CLOCK} == {k: v for k, v in b.items() if k not in CLOCK}
    expected, found = points(whole), points(cut)
    assert expected == found
    for tag, path in found.items():
        steps = [step for step, _ in path]
        assert len(set(steps)) == len(steps), f"{tag} has a step twice"
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, cut)]
    assert summaries[0]["correct"] == summaries[1]["correct"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, and its seconds from the first checkpoint to the end."""
    place = tmp_path_factory.mktemp("whole")
    process = start(place, *EVERYTHING)
    assert wait_for(first_checkpoint(place), process)
    began = time.monotonic()
    finish(process)
    return next(place.glob("runs/*/*")), time.monotonic() - began


def killed(place, *arguments, delay=None):
    """Starts a run and kills it, ``delay`` seconds after its first checkpoint or, without, in the midst of writing one.

    Returns its folder, and whether the run was still going.
    """
    process = start(place, *arguments)
    last = wait_for(first_checkpoint(place), process)
    assert last, process.communicate()
    if delay is None:
        partial = last.with_name("last.pt.partial")
        hit = wait_for(partial.exists, process)
        process.kill()
    else:
        time.sleep(delay)
        hit = process.poll() is None
        process.kill()
    process.communicate()
    return last.parent.parent, bool(hit)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, whole):
    """Killed inside a checkpoint's write, then, going on, at a random moment."""
    finished, seconds = whole
    folder, hit = killed(tmp_path / "cut", *EVERYTHING)
    assert hit
    process = start(tmp_path, f"resume={folder}")
    time.sleep(random.Random(0).uniform(0.2, 0.8) * seconds)
    process.kill()
    process.communicate()
    finish(start(tmp_path, f"resume={folder}"))
    same_run(finished, folder)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_killed_at_ten_moments(tmp_path, whole, moment):
    """Three of them inside a checkpoint's write."""
    finished, seconds = whole
    delay = None if moment < 3 else random.Random(moment).uniform(0, seconds)
    folder, hit = killed(tmp_path / "cut", *EVERYTHING, delay=delay)
    print(f"moment {moment}: {'inside a write' if delay is None else f'after {delay:.2f} of {seconds:.2f} s'}, {hit=}")
    finish(start(tmp_path, f"resume={folder}"))
    same_run(finished, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit(tmp_path, number, status):
    process = start(tmp_path, *EVERYTHING, "epochs=500")
    last = wait_for(first_checkpoint(tmp_path), process)
    time.sleep(0.5)
    process.send_signal(number)
    assert "interrupted and saved" in finish(process, status)
    assert checkpoint.load(last).progress["updates"] > 0


@pytest.mark.parametrize("damage", some(["truncated", "empty", "foreign", "missing"], "truncated", "missing"))
@pytest.mark.sampled(1)
def test_a_damaged_last_checkpoint_falls_back(tmp_path, capsys, damage):
    steady = ScheduleOptions(name="constant", warmup=0)  # in so far the same course, however many epochs are to come
    train(tmp_path / "whole", epochs=4, schedule=steady)
    train(tmp_path / "cut", epochs=3, schedule=steady)
    whole, cut = only_run(tmp_path / "whole"), only_run(tmp_path / "cut")
    last = cut / "checkpoints" / "last.pt"
    content = last.read_bytes()
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "foreign": b"nonsense"}[damage])
    parts = prepare(Train(resume=str(cut), epochs=4), ["resume=x", "epochs=4"])
    assert parts.resumed.progress["epoch"] == 2
    capsys.readouterr()
    go(parts)
    assert "going on from the one before it" in capsys.readouterr().out
    assert [line["epoch"] for line in metrics(cut)] == [1, 2, 3, 4]
    one, two = weights(whole), weights(cut)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert checkpoint.load(cut / "checkpoints" / "previous.pt").progress["epoch"] == 3
    (cut / "checkpoints" / "previous.pt").write_bytes(b"")
    (cut / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(CheckpointError):
        prepare(Train(resume=str(cut)), ["resume=x"])


def test_a_loss_that_is_not_finite_names_its_step(tmp_path, capsys):
    """From the sixth step on the weights are not finite, so the seventh step's loss is the first one that is not."""
    parts = prepare(config(tmp_path, epochs=2))
    seen = []

    def spoil(module, inputs):
        if module.training:
            seen.append(module)
            if len(seen) == 7:
                with torch.no_grad():
                    next(module.parameters()).fill_(float("nan"))

    parts.model.register_forward_pre_hook(spoil)
    with pytest.raises(Stopped) as stopped:
        go(parts)
    assert stopped.value.said
    out = capsys.readouterr().out
    assert "not finite at step 7" in out and "last good checkpoint is" in out
    state = weights(only_run(tmp_path))
    assert all(value.isfinite().all() for value in state.values())


def test_a_full_disk_loses_nothing_that_is_written(tmp_path, monkeypatch, capsys):
    """A limit stands for the disk: no file may grow beyond it, and a checkpoint is the first that would."""
    model = Model("hbnet_small", blocks=[2, 2, 2], widths=[16, 32, 64])
    train(tmp_path, model=model, epochs=1, limit_batches=1)
    folder = only_run(tmp_path)
    kept = [file for file in folder.rglob("*") if file.suffix in (".pt", ".json", ".yaml", ".jsonl")]
    before = {file: file.read_bytes() for file in kept}
    room = (folder / "checkpoints" / "last.pt").stat().st_size // 2
    capsys.readouterr()
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, whole[1]))
    try:
        assert call(monkeypatch, "train", f"resume={folder}", "epochs=3") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    out = "".join(capsys.readouterr())
    assert "cannot be written" in out and f"resume={folder}" in out and "Traceback" not in out
    assert all(file.read_bytes().startswith(content) for file, content in before.items() if file.name != "config.yaml")
    assert not list(folder.rglob("*.partial"))
    go(prepare(Train(resume=str(folder), epochs=3), ["resume=x", "epochs=3"]))
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]


@pytest.mark.parametrize("unreadable", ["fail", "skip"])
@pytest.mark.sampled(1)
def test_images_that_cannot_be_read(tmp_path, unreadable, capsys):
    class_folder(tmp_path / "images", count=30)
    for name in ("3.jpg", "7.jpg"):
        (tmp_path / "images" / "cat" / name).write_bytes(b"\xff\xd8\xff broken")
    data = DataOptions(name="folder", root=str(tmp_path / "images"), size=16, workers=1, unreadable=unreadable)
    parts = prepare(config(tmp_path, data=data, batch_size=8, epochs=1, model=Model("resnet10t"), lr=0.01))
    if unreadable == "fail":
        with pytest.raises(Stopped):
            go(parts)
        assert "cannot be read as an image" in capsys.readouterr().out
        return
    go(parts)
    out = capsys.readouterr().out
    for name in ("3.jpg", "7.jpg"):
        assert sum("left out" in line and name in line for line in out.splitlines()) == 1
    summary = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert summary["unreadable"] == 2


def test_training_costs_little_beyond_forward_backward_and_update(tmp_path):
    """What an epoch takes beside the network's forward and backward pass and the optimizer's step: less than 5 %."""
    made = config(
        tmp_path, model=Model("hbnet20_cifar"), batch_size=128, limit_batches=4,
        data=DataOptions(name="synthetic", size=32, images=1200),
    )  # fmt: skip
    made.data.augment = "crop_flip"
    whole = run.Run(prepare(made), print)
    trainer, threads, backward, inside = whole.trainer, torch.get_num_threads(), torch.Tensor.backward, []

    def timed(function):
        def measured(*args, **kwargs):
            began = time.perf_counter()
            result = function(*args, **kwargs)
            inside.append(time.perf_counter() - began)
            return result

        return measured

    torch.set_num_threads(1)
    try:
        trainer.forward, trainer.optimizer.step = timed(trainer.forward), timed(trainer.optimizer.step)
        torch.Tensor.backward = timed(backward)
        whole._watch()
        began = time.perf_counter()
        train_epoch(
            trainer, whole.course.loader(0), 4, Progress(), on_batch=lambda progress: False, shown=str,
            observers=whole.observers,
        )  # fmt: skip
        total = time.perf_counter() - began
    finally:
        torch.Tensor.backward = backward
        torch.set_num_threads(threads)
        whole.close()
    share = 1 - sum(inside) / total
    print(f"overhead {100 * share:.2f} % of {total / 4:.3f} s a step")
    assert len(inside) == 12 and share < 0.05


def test_an_epoch_costs_the_same_however_many_there_were(tmp_path, monkeypatch):
    """Counted in function calls, which do not depend on what else the machine does."""
    calls, counted = [], []
    saved = run.Run.save

    def save(self, name, **more):
        sys.setprofile(lambda *_: calls.append(None))
        try:
            saved(self, name, **more)
        finally:
            sys.setprofile(None)
        if name == checkpoint.LAST:
            counted.append(len(calls))
        calls.clear()

    monkeypatch.setattr(run.Run, "save", save)
    tiny = Model(name="hbnet_small", blocks=[1], widths=[2])
    train(tmp_path, model=tiny, epochs=40, batch_size=8, data=DataOptions(limit=16))
    early, late = sum(counted[2:12]), sum(counted[-10:])
    assert early > 1000 and late < 1.01 * early
