"""Several processes: the same training and score as one; what becomes of them when one dies. Real torchruns."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import class_folder, metrics, only_run, some, weights

import optnet
from optnet import ConfigError
from optnet.app import train as application
from optnet.app.config import Train
from optnet.app.train import requests
from optnet.data import load
from optnet.training import distributed, trainers
from optnet.training.distributed import DistributedOptions

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
COMMON = ["device=cpu", "monitor=none", "progress=false", "epochs=2", "lr=0.05"]
GROUPED = [
    *COMMON,
    "model=hbnet_small",
    "model.norm=group",
    "model.act_layer=silu",
]  # a kink would enlarge what rounding does
SMALL = [*COMMON, "model=hbnet_small", "model.blocks=[1,2]", "model.widths=[4,8]"]


def start(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def torchrun(processes=2):
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, ROOT / "train.py")


def finished(started, status=0):
    try:
        out, err = started.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        started.terminate()
        out, err = started.communicate()
        raise AssertionError(f"not finished after two minutes: {out}{err}") from None
    assert started.returncode == status, out + err
    return out, err


def long_run(folder):
    """Two processes that have trained at least one epoch, and are at it."""
    run = start(folder, *torchrun(), *SMALL, "epochs=500")
    deadline = time.time() + 120
    while not list(folder.glob("runs/*/*/checkpoints/best.pt")):
        assert time.time() < deadline and run.poll() is None
        time.sleep(0.2)
    return run


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("training", [True, False])
def test_the_shares_of_a_batch_make_the_batch(world, augment, training):
    data = load("digits", "")
    loader = data.loader("train", 50, device=CPU, training=training, augment=augment, seed=3)
    shares = [list(loader.shared(rank, world).batches(2, 1)) for rank in range(world)]
    batches = list(loader.shared(0, 1).batches(2, 1))
    for b in range(len(shares[0])):
        for rank, share in enumerate(shares):
            assert torch.equal(share[b][0], batches[b][0][rank::world])
            assert torch.equal(share[b][1], batches[b][1][rank::world])
    assert sum(len(labels) for share in shares for _, labels in share) == len(data.train) - 50


def test_the_shares_of_files(tmp_path):
    class_folder(tmp_path)
    data = load("folder", str(tmp_path), size=16)
    loader = data.loader("train", 4, device=CPU, training=True, augment="crop_flip", workers=1)
    whole = list(loader.batches(1))
    for rank in range(2):
        for (images, labels), (own, own_labels) in zip(whole, loader.shared(rank, 2).batches(1), strict=True):
            assert torch.equal(images[rank::2], own) and torch.equal(labels[rank::2], own_labels)


def test_a_share_is_never_too_small_for_batch_norm():
    data = load("digits", "")  # 1,293 training images
    for world in (1, 2, 4):
        for batch_size in (8, 13, 17, 19, 34, 38, 64, 129, 323, 646, 1292):
            loader = data.loader("train", batch_size, device=CPU, training=True)
            for rank in (0, world - 1):
                share = loader.shared(rank, world)
                if batch_size >= 2 * world:
                    sizes = [len(labels) for _, labels in share.batches()]
                    assert min(sizes) >= 2 and len(sizes) == len(share)


def test_alone_nothing_happens():
    model = optnet.create_model("heavy_ball")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    value = torch.ones(2)
    with distributed.processes():
        distributed.all_reduce_sum(value)
        assert distributed.together(lambda: 3) == 3
        distributed.broadcast_model(model)
        assert distributed.share(3) == 1 and distributed.replica(model) is model
        distributed.share_buffers(model, "reduce")
    assert distributed.size() == 1 and distributed.is_primary() and distributed.broadcast_object("x") == "x"
    assert (
        distributed.all_reduce_max(3) == 3 and distributed.all_gather_union({"a"}) == {"a"} and value.tolist() == [1, 1]
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def alone(folder, monkeypatch, *options):
    """This process trains."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    application.main(options)


MORE = ["trainer.accumulate=3", "data.validation=0"]


@pytest.mark.parametrize("more", some(["", *MORE], ""))
def test_two_processes_train_and_score_as_one(tmp_path, monkeypatch, more):
    """1,294 training images in batches of 64, 143 for validation, 360 for the test: shares of unequal size."""
    options = ["data.validation=0.0995", *GROUPED, *more.split()]
    finished(start(tmp_path / "two", *torchrun(), *options))
    alone(tmp_path / "one", monkeypatch, *options)
    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (one, two))
    assert (a["processes"], b["processes"]) == (1, 2)
    assert (a["correct"], a["count"], a["steps"]) == (b["correct"], b["count"], b["steps"]) and a["count"] == 360
    for line, other in zip(metrics(one), metrics(two), strict=True):
        assert line.keys() == other.keys() and ("validation_loss" in line) == ("data.validation=0" not in options)
        for key in line.keys() & {"train_loss", "validation_loss"}:
            assert line[key] == pytest.approx(other[key], rel=1e-5)
        for key in line.keys() & {"train_top1", "validation_top1"}:
            assert line[key] == other[key]
    first, second = weights(one), weights(two)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)
    assert {file.name for file in two.iterdir() if "tfevents" not in file.name} == {
        file.name for file in one.iterdir() if "tfevents" not in file.name
    }
    assert len(list(two.glob("*tfevents*"))) == len(list(one.glob("*tfevents*")))


@pytest.mark.slow
def test_three_processes_score_as_one(tmp_path, monkeypatch):
    alone(tmp_path, monkeypatch, "data.validation=0.0995", *GROUPED)
    checkpoint = only_run(tmp_path) / "checkpoints" / "best.pt"
    for place, launcher in (("e1", ()), ("e3", torchrun(3)[:-1])):
        arguments = [f"checkpoint={checkpoint}", "device=cpu", "split=validation", f"output={tmp_path / place}.json"]
        finished(start(tmp_path, *launcher, ROOT / "evaluate.py", *arguments))
    (one,), (three,) = (json.loads((tmp_path / f"{place}.json").read_text()) for place in ("e1", "e3"))
    assert one["count"] == three["count"] == 143  # odd, and no multiple of 3
    assert one["correct"] == three["correct"] and one["top5"] == three["top5"]
    assert one["loss"] == pytest.approx(three["loss"], rel=1e-6)
    assert one["per_class"] == three["per_class"]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path):
    run = long_run(tmp_path)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    workers = [int(pid) for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    began = time.time()
    os.kill(workers[1], signal.SIGKILL)
    finished(run, status=1)
    assert time.time() - began < 60 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    folder = only_run(tmp_path)
    done = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"]["epoch"]
    assert done >= 1 and len(metrics(folder)) >= done
    finished(start(tmp_path, *torchrun(), f"resume={folder}", f"epochs={done + 1}"))
    assert [line["epoch"] for line in metrics(folder)] == list(range(1, done + 2))
    assert json.loads((folder / "summary.json").read_text())["processes"] == 2
    assert only_run(tmp_path) == folder


@pytest.mark.slow
def test_a_terminated_run_is_saved_by_all_and_goes_on(tmp_path):
    run = long_run(tmp_path)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    folder = only_run(tmp_path)
    assert "interrupted and saved" in (folder / "console.log").read_text()
    progress = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"]
    assert progress["count"] == 64 * progress["batch"] or progress["batch"] == 21
    finished(start(tmp_path, *torchrun(), f"resume={folder}", f"epochs={progress['epoch'] + 1}"))
    assert [line["epoch"] for line in metrics(folder)] == list(range(1, progress["epoch"] + 2))


@pytest.mark.slow
def test_processes_of_its_own(tmp_path):
    finished(start(tmp_path, ROOT / "train.py", "-m", *SMALL, "epochs=1", "distributed.processes=2", "seed=0,1"))
    summaries = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/*/summary.json")]
    assert [summary["processes"] for summary in summaries] == [2, 2]
    assert {summary["seed"] for summary in summaries} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_of_its_own_are_interrupted_and_go_on_as_many(tmp_path, number):
    run = start(tmp_path, ROOT / "train.py", *SMALL, "epochs=500", "distributed.processes=2")
    deadline = time.time() + 120
    while not list(tmp_path.glob("runs/*/*/checkpoints/best.pt")):
        assert time.time() < deadline and run.poll() is None
        time.sleep(0.2)
    run.send_signal(number)
    _, err = finished(run, status=128 + number)
    assert "Traceback" not in err
    folder = only_run(tmp_path)
    assert "interrupted and saved" in (folder / "console.log").read_text()
    done = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"]["epoch"]
    finished(start(tmp_path, ROOT / "train.py", f"resume={folder}", f"epochs={done + 1}"))
    assert json.loads((folder / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_damaged_image_is_named_whoever_reads_it(tmp_path):
    """In training by the process that has it, in scoring by all; the other one says that its fellow is gone."""
    images = tmp_path / "images"
    class_folder(images / "train", count=20)
    class_folder(images / "test", count=10)
    data = ["data=folder", f"data.root={images}", "data.size=16", "data.workers=0", "batch_size=8"]
    finished(start(tmp_path / "good", *torchrun(), *SMALL, *data, "epochs=1"))
    (best,) = tmp_path.glob("good/runs/*/*/checkpoints/best.pt")
    for split in ("test", "train"):
        for file in sorted((images / split).rglob("*.jpg")):  # each process has some of them
            file.write_bytes(file.read_bytes()[:60])
        if split == "test":
            arguments = [ROOT / "evaluate.py", f"checkpoint={best}", "device=cpu"]
            _, err = finished(start(tmp_path, *torchrun()[:-1], *arguments), status=1)
            assert err.count("error: ") == 1 and "cannot be read" in err and "exitcode  : 2" in err
    out, err = finished(start(tmp_path / "bad", *torchrun(), *SMALL, *data, "epochs=1"), status=1)
    assert "cannot be read" in out + err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_one_process_can_read_nothing_and_the_other_can(tmp_path, workers):
    """Of the images for scoring one process reads all, the other none; in training it changes from epoch to epoch."""

    def spoil(part, names):
        for name in names:
            (tmp_path / "images" / part / name).write_bytes(b"not an image")

    for part in ("train", "val", "test"):
        class_folder(tmp_path / "images" / part, count=4)
    data = load("folder", str(tmp_path / "images"))
    spoil("train", data.train.names[2:])
    spoil("val", data.validation.names[1::2])
    spoil("test", data.test.names[1::2])
    settings = [f"data.root={tmp_path / 'images'}", "data.size=16", "data.unreadable=skip", f"data.workers={workers}"]
    out, _ = finished(start(tmp_path, *torchrun(), *SMALL, "data=folder", *settings, "batch_size=8", "epochs=6"))
    run = only_run(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["count"] == 4 and summary["processes"] == 2 and len(metrics(run)) == 6
    assert out.count("left out: ") == 14
    command = (*torchrun()[:-1], ROOT / "evaluate.py", f"checkpoint={run}/checkpoints/best.pt", "device=cpu")
    finished(start(tmp_path, *command))
    assert json.loads((run / "evaluation.json").read_text())[0]["count"] == 4
    spoil("test", data.test.names)
    _, err = finished(start(tmp_path, *command), status=1)
    assert err.count("error: ") == 1 and "none of the other images can be read" in err and "exitcode  : 2" in err


@pytest.mark.slow
def test_a_sweep_through_submitit(tmp_path):
    """The launcher for clusters with its local executor: two jobs, each of which starts two processes."""
    finished(start(tmp_path, ROOT / "train.py", "-m", "cluster=local", *SMALL, "distributed.processes=2", "seed=0,1"))
    summaries = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/*/summary.json")]
    assert sorted(summary["seed"] for summary in summaries) == [0, 1]
    assert all(summary["processes"] == 2 for summary in summaries)
    assert list(tmp_path.glob("runs/sweeps/*/.submitit"))


@pytest.mark.parametrize("name", sorted(trainers.TRAINERS))
def test_which_trainers_take_several_processes(name):
    made = Train(trainer=trainers.TRAINERS[name].options(), device="cpu", distributed=DistributedOptions(processes=2))
    if name == "backprop":
        assert requests([(made, [])])[0].job is None
    else:
        with pytest.raises(ConfigError, match="one process alone"):
            requests([(made, [])])


EARLY = ["device=cuda", "distributed.batch_norm=synchronise", "batch_size=2"]


@pytest.mark.parametrize("request_", some(EARLY, "batch_size=2"))
def test_what_is_refused_before_others_are_started(tmp_path, request_):
    if request_ == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    options = [*(() if "cuda" in request_ else ("device=cpu",)), "distributed.processes=2", request_]
    _, err = finished(start(tmp_path, ROOT / "train.py", *options), status=2)
    assert err.startswith("error: ") and err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("request_, words", [
    (["-m", "seed=0,1"], "-m does not go under torchrun"),
    (["batch_size=2"], "batch_size=2 must be at least 4"),
    (["epochs=0"], "epochs=0"),
    (["distributed.batch_norm=synchronise"], "GPUs alone"),
    (["data.limit=3", "batch_size=4"], "too few for 2 processes"),
])  # fmt: skip
def test_what_is_refused(tmp_path, request_, words):
    _, err = finished(start(tmp_path, *torchrun(), *request_, "device=cpu"), status=1)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0]
    assert "exitcode  : 2" in err and not list(tmp_path.iterdir())
