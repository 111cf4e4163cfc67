"""Runs: their folder and records, resuming, interruption, checkpoints. Every run here is a real one, on real digits."""

import json
import os
import pickle
import random
import signal
import time

import numpy as np
import pytest
import torch
from helpers import CLOCK, FILES, TINY, config, crossed, files, go, metrics, only_run, prepare, some, train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import optnet
from optnet import CheckpointError, ConfigError
from optnet.app import evaluate as assess
from optnet.app.compose import compose, register
from optnet.app.config import Evaluate, Model, Train
from optnet.data import DataOptions, load
from optnet.data.loading import FileLoader
from optnet.training import checkpoint
from optnet.training.interruption import Interrupted, Stopped
from optnet.training.loop import Progress, train_epoch
from optnet.training.weights import read

FAMILIES = ["gradient_descent", "heavy_ball", "nesterov", "nesterov_dense", "admm", "merge_and_run"]


def test_a_run_owns_one_folder(tmp_path):
    done = train(tmp_path)
    folder = only_run(tmp_path)
    assert files(folder) == FILES
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"best.pt", "last.pt", "previous.pt"}
    summary = json.loads((folder / "summary.json").read_text())
    wanted = (
        "model parameters dataset metric best final epochs train_seconds images_per_second peak_memory_bytes seed "
        "versions device"
    )
    assert set(wanted.split()) <= set(summary) and (summary["best"], summary["final"]) == (done.validation, done.test)
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert summary["best"] == max(line["validation_top1"] for line in lines)
    for file in (folder / "checkpoints").iterdir():
        content = torch.load(file, weights_only=True)
        assert set(content) == {"format", *checkpoint.ENTRIES} and content["format"] == checkpoint.FORMAT

    events = EventAccumulator(str(folder)).Reload()
    model = checkpoint.rebuild(checkpoint.load(folder / "checkpoints" / "last.pt"))
    tags = {f"coefficients/{e.stage}/{e.step}/{e.term}" for e in optnet.coefficients(model)}
    assert tags and tags | {"train/loss", "validation/top1", "optim/lr"} <= set(events.Tags()["scalars"])
    for tag in events.Tags()["scalars"]:
        assert [point.step for point in events.Scalars(tag)] == ([3] if tag.startswith("result/") else [1, 2, 3])
    logged = [point.value for point in events.Scalars("train/loss")]
    assert logged == pytest.approx([line["train_loss"] for line in lines])
    for entry in optnet.coefficients(model):
        point = events.Scalars(f"coefficients/{entry.stage}/{entry.step}/{entry.term}")[-1]
        assert point.value == pytest.approx(entry.value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("algorithm", some(FAMILIES, "heavy_ball", "nesterov_dense", "admm"))
@pytest.mark.sampled(2)
def test_every_family_trains_and_evaluates(tmp_path, algorithm):
    train(tmp_path, epochs=2, algorithm={"name": algorithm})
    folder = only_run(tmp_path)
    lines, summary = metrics(folder), json.loads((folder / "summary.json").read_text())
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    best = folder / "checkpoints" / "best.pt"
    for split in ("test", "validation"):
        assess.score(assess.prepare(Evaluate(checkpoint=str(best), split=split, device="cpu")))
    test, validation = json.loads((folder / "evaluation.json").read_text())
    assert test["correct"] == summary["correct"] and test["count"] == summary["count"] == 360
    assert validation["top1"] == summary["best"]
    assert validation["loss"] == pytest.approx(
        min(x["validation_loss"] for x in lines if x["validation_top1"] == summary["best"])
    )
    assert len(test["per_class"]) == 10


def test_the_rate_is_the_epochs_own(tmp_path):
    train(tmp_path, epochs=3)
    lines, images = metrics(only_run(tmp_path)), len(load("digits", "").train)
    seconds = np.diff([line["time_train_seconds"] for line in lines], prepend=0)
    assert [line["time_images_per_second"] for line in lines] == pytest.approx(images / seconds, rel=1e-6)


def test_the_coefficients_move(tmp_path):
    train(tmp_path)
    content = checkpoint.load(only_run(tmp_path) / "checkpoints" / "last.pt")
    table = optnet.coefficients(checkpoint.rebuild(content))
    starts = {entry.value for entry in table}
    assert len(table) > 3 and len(starts) == len(table), "every coefficient has a value of its own"


def test_a_checkpoint_runs_nobodys_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from optnet import Iterate, Operator\n"
        "def mine(T: Operator, x: Iterate, steps: int, *, pull: float = 0.3):\n"
        "    start = x\n    for _ in range(steps):\n        x = (1 - pull) * T(x) + pull * start\n    return x\n"
    )
    train(tmp_path, epochs=1, algorithm={"name": f"{file}:mine", "pull": 0.2})
    file.unlink()
    folder = only_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    parts = assess.prepare(Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt"), device="cpu"))
    assert parts.subjects[0].model.stages[0].unrolled.program.constants["pull"] == 0.2
    assess.score(parts)
    (entry,) = json.loads((folder / "evaluation.json").read_text())
    assert entry["correct"] == summary["correct"]


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, number):
    options = {"epochs": 4, "model": Model(**TINY, kwargs={"drop_rate": 0.2})}
    train(tmp_path / "whole", **options)
    whole = only_run(tmp_path / "whole")

    parts = prepare(config(tmp_path / "cut", **options))
    seen = []

    def interrupt(*args):
        seen.append(args)
        if len(seen) == 35:  # in the second epoch, validation batches counted
            os.kill(os.getpid(), number)

    parts.model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted) as stopped:
        go(parts)
    assert stopped.value.signal == number
    cut = only_run(tmp_path / "cut")
    assert not (cut / "summary.json").exists()
    time.sleep(1.1)  # TensorBoard orders the event files of one process by the second
    go(prepare(Train(resume=str(cut)), ["resume=..."]))

    for name in ("last", "best"):
        one, two = weights(whole, name), weights(cut, name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    for a, b in zip(metrics(whole), metrics(cut), strict=True):
        assert {k: v for k, v in a.items() if k not in CLOCK} == {k: v for k, v in b.items() if k not in CLOCK}
    events = EventAccumulator(str(cut)).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]


def interrupted(place, images, calls, number=signal.SIGTERM, **options):
    """The folder of a run that gets a signal in its forward pass number ``calls`` of so many images."""
    parts = prepare(config(place, **options))
    seen = []

    def interrupt(module, inputs):
        if len(inputs[0]) == images:
            seen.append(images)
            if len(seen) == calls:
                os.kill(os.getpid(), number)

    parts.model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted) as stopped:
        go(parts)
    assert stopped.value.signal == number
    return only_run(place)


@pytest.mark.parametrize(("images", "lines"), [(144, 1), (144, 2), (360, 2)], ids=["validation", "last", "test"])
@pytest.mark.sampled(1)
def test_a_signal_while_scoring_stops_the_run(tmp_path, images, lines):
    """The 144 images for validation, and the 360 for the test, are one batch each."""
    options = {"epochs": 2, "limit_batches": 10, "batch_size": 90}
    train(tmp_path / "whole", **options)
    cut = interrupted(tmp_path / "cut", images, lines if images == 144 else 1, **options)
    assert len(metrics(cut)) == lines and not (cut / "summary.json").exists()
    assert checkpoint.load(cut / "checkpoints" / "last.pt").progress["epoch"] == lines
    before = checkpoint.load(cut / "checkpoints" / "previous.pt").progress
    assert before["epoch"] == lines - 1 and before["batch"] == before["updates"] - 10 * before["epoch"] > 0
    time.sleep(1.1)
    scoring = (cut / "checkpoints" / "previous.pt").read_bytes()  # what a kill while scoring leaves
    for left in (None, scoring):
        if left:
            (cut / "checkpoints" / "last.pt").write_bytes(left)
        go(prepare(Train(resume=str(cut)), ["resume=..."]))
        one, two = weights(only_run(tmp_path / "whole")), weights(cut)
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert [line["epoch"] for line in metrics(cut)] == [1, 2]


def test_an_epoch_goes_on_with_the_batches_it_had(tmp_path):
    cut = interrupted(tmp_path, 32, 60, epochs=4, batch_size=32, batch_milestones=[0.5], batch_growth=4)
    assert checkpoint.load(cut / "checkpoints" / "last.pt").progress["batch"] > 0
    before = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match="within an epoch with batch_size") as error:
        go(prepare(Train(resume=str(cut), epochs=2), ["resume=...", "epochs=2"]))
    assert "\n" not in str(error.value)
    assert before == {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="are done"):
        train_epoch(None, None, 4, Progress(batch=5), on_batch=None, shown=None)


def test_random_numbers_of_accelerators_are_left_alone(monkeypatch):
    """Reading images and calibrating seed the CPU's generator alone: a run's own on a GPU goes on undisturbed."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    images = [(torch.full((1, 4, 4), float(i)), i) for i in range(6)]
    loader = FileLoader(
        images, lambda image: image + torch.rand(()), 3, device=torch.device("cpu"), shuffle=True, seed=1
    )
    state = torch.get_rng_state()
    one, two = ([images for images, _ in loader.batches(2)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and torch.equal(state, torch.get_rng_state())
    assert not seeds


@pytest.mark.parametrize("text", ["a: [", "a: [1", "- 1", "{", "\tlr: 3", "lr: [1]"])
@pytest.mark.sampled(2)
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    train(tmp_path, epochs=1)
    folder = only_run(tmp_path)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read") as error:
        prepare(Train(resume=str(folder)), ["resume=x"])
    assert "\n" not in str(error.value)


def test_a_configuration_in_a_run_folder_means_that_it_can_go_on(tmp_path, monkeypatch):
    """Killed before its first checkpoint is whole, a run leaves none."""

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, epochs=1)
    assert not list(only_run(tmp_path).glob("config.yaml"))


def test_a_resumed_run_keeps_its_config(tmp_path):
    train(tmp_path, epochs=2, lr=0.05)
    folder = only_run(tmp_path)
    parts = prepare(Train(resume=str(folder), epochs=3), ["resume=x", "epochs=3"])
    assert parts.recipe.lr == 0.05 and parts.options.epochs == 3
    go(parts)
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]
    assert prepare(Train(resume=str(folder)), ["resume=x"]).options.epochs == 3
    with pytest.raises(ConfigError, match="keeps its config"):
        prepare(Train(resume=str(folder), lr=0.2), ["lr=0.2"])
    with pytest.raises(ConfigError, match="done already"):
        prepare(Train(resume=str(folder), epochs=1), ["epochs=1"])
    with pytest.raises(ConfigError, match="not a run's folder"):
        prepare(Train(resume=str(tmp_path)))


def test_a_diverging_run_stops_with_status_1(tmp_path, capsys):
    with pytest.raises(Stopped, match="not finite") as stopped:
        train(tmp_path, lr=1e30, epochs=2)
    assert stopped.value.said and "not finite" in capsys.readouterr().out


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran_by_a_pickle",)


def test_bad_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tmp_path, epochs=1)
    best = only_run(tmp_path) / "checkpoints" / "best.pt"
    whole = best.read_bytes()
    files = {"truncated": whole[: len(whole) // 2], "empty": b"", "foreign": b"not a checkpoint at all"}
    files["malicious"] = pickle.dumps({"format": 1, "state_dict": Malicious()})
    files["malicious.safetensors"], files["malicious.npz"] = files["malicious"], files["malicious"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other")
    torch.save({"state_dict": Malicious(), "format": 1}, tmp_path / "malicious zip")
    content = torch.load(best, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "incomplete")
    for name in [*files, "missing", "other", "malicious zip", "incomplete"]:
        for model in (None, "hbnet_small"):
            with pytest.raises(CheckpointError) as error:
                assess.prepare(Evaluate(checkpoint=str(tmp_path / name), model=model))
            assert "\n" not in str(error.value)
    for name in ("malicious", "malicious zip", "truncated"):
        for place in ("last.pt", "previous.pt"):
            (best.parent / place).write_bytes((tmp_path / name).read_bytes())
        with pytest.raises(CheckpointError):
            prepare(Train(resume=str(best.parent.parent)), ["resume=x"])
    assert not (tmp_path / "ran_by_a_pickle").exists()


@pytest.mark.parametrize(
    "name, programs",
    crossed(["hbnet_small", "resnet18", "mlp", "hf-hub:somebody/model", "local-dir:/tmp", 3], [True, False]),
)
@pytest.mark.sampled(3)
def test_a_crafted_checkpoint_runs_nothing(tmp_path, monkeypatch, name, programs):
    """Weights-only loading lets strings through: none of them may name code to run or a place to fetch from."""
    monkeypatch.chdir(tmp_path)
    train(tmp_path, epochs=1)
    (tmp_path / "evil.py").write_text(
        "import os\nos.mkdir('ran_by_a_checkpoint')\ndef m(T, x, steps):\n    return T(x)\n"
    )
    last = only_run(tmp_path) / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    made = content["model"]["kwargs"] if programs else {"blocks": [1, 2], "widths": [4, 8], "layer": "conv"}
    content["model"] = {"name": name, "kwargs": {**made, "algorithm": "evil.py:m", "checkpoint_path": "evil.pt"}}
    torch.save(content, last)
    if programs and name == "hbnet_small":
        assert checkpoint.rebuild(checkpoint.load(last)).programs_json() == made["programs"]
    else:
        for request in (
            lambda: assess.prepare(Evaluate(checkpoint=str(last))),
            lambda: prepare(Train(resume=str(last.parent.parent)), ["resume=x"]),
        ):
            with pytest.raises(CheckpointError) as error:
                request()
            assert "\n" not in str(error.value)
    assert not (tmp_path / "ran_by_a_checkpoint").exists()


def test_junk_is_no_checkpoint(tmp_path):
    """Every first byte that the unpickler may take for an instruction, and random bytes: one line each."""
    drawn = random.Random(0)
    junk = [bytes([byte]) + rest for byte in range(256) for rest in (b"", b"hello world\n")]
    junk += [drawn.randbytes(40) for _ in range(100)]
    file = tmp_path / "junk.pt"
    for content in junk:
        file.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            read(file)
        assert "\n" not in str(error.value)


def test_what_an_earlier_version_wrote_is_refused_in_one_line(tmp_path):
    train(tmp_path, epochs=1)
    folder = only_run(tmp_path)
    for file in (folder / "checkpoints").iterdir():
        torch.save({**torch.load(file, weights_only=True), "format": 2}, file)
    best = str(folder / "checkpoints" / "best.pt")
    (folder / "config.yaml").write_text("optimiser: {kind: sgd}\n")  # of another shape, too
    for request in (
        lambda: checkpoint.load(best),
        lambda: assess.prepare(Evaluate(checkpoint=best)),
        lambda: prepare(Train(resume=str(folder)), ["resume=x"]),
    ):
        with pytest.raises(CheckpointError, match="was written by an earlier version of optnet") as error:
            request()
        assert "\n" not in str(error.value) and "train anew" in str(error.value)
    torch.save({**torch.load(best, weights_only=True), "format": checkpoint.FORMAT + 1}, best)
    with pytest.raises(CheckpointError, match="a later version"):
        checkpoint.load(best)


def test_every_entry_of_a_checkpoint_is_required(tmp_path):
    train(tmp_path, epochs=1)
    content = torch.load(only_run(tmp_path) / "checkpoints" / "best.pt", weights_only=True)
    for entry in checkpoint.ENTRIES:
        torch.save({key: value for key, value in content.items() if key != entry}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=f"has no {entry}"):
            checkpoint.load(tmp_path / "x.pt")


class Unwritable:
    def __reduce__(self):
        raise RuntimeError("the accelerator is gone")


def test_what_is_no_fault_of_the_disk_is_not_called_one(tmp_path):
    with pytest.raises(RuntimeError, match="accelerator is gone"):
        made = {key: {} for key in checkpoint.ENTRIES} | {"trainer": {"weights": Unwritable()}}
        checkpoint.save(tmp_path / "last.pt", checkpoint.Checkpoint(**made))
    assert not list(tmp_path.iterdir())


def test_a_model_by_name_is_evaluated_on_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assess.score(assess.prepare(Evaluate(model="resnet18", device="cpu", data=DataOptions())))
    (file,) = tmp_path.glob("runs/*/*/evaluation.json")
    (entry,) = json.loads(file.read_text())
    assert entry["model"] == "resnet18" and entry["count"] == 360


def test_an_existing_file_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text("my notes")
    with pytest.raises(ConfigError, match="another output"):
        assess.prepare(Evaluate(model="hbnet_small", device="cpu", output="notes.json"))
    with pytest.raises(ConfigError, match="nothing can be made in"):
        assess.prepare(Evaluate(model="hbnet_small", device="cpu", output="notes.json/a.json"))
    assert (tmp_path / "notes.json").read_text() == "my notes"


def test_the_settings_in_python_are_those_of_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    register("train", Train, [])
    composed = compose("train", Train, [])
    assert composed == Train()
    assert compose("train", Train, ["data=svhn"]).data.augment == "none"
