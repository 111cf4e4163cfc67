"""``data.validation=0``: a run trains on every training image and scores its last epoch; what needs a split says so."""

import json
import os
import signal

import pytest
import torch
from helpers import FILES, TINY, call, class_folder, config, files, go, metrics, only_run, prepare, some, train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optnet import ConfigError
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate, Model, Train
from optnet.data import DataOptions, load
from optnet.errors import DataError
from optnet.training import trainers
from optnet.training.backprop import BackpropOptions
from optnet.training.interruption import Interrupted, Stopped
from optnet.training.monitoring.monitor import MonitorOptions

CPU = torch.device("cpu")
REQUEST = ("device=cpu", "progress=false", "epochs=1", "limit_batches=2", "model.blocks=[1,1]", "model.widths=[4,8]")


def whole(**options):
    return {"data": DataOptions(validation=0, augment="shift"), **options}


def scored_as(folder, split="test"):
    file = str(folder / "checkpoints" / "last.pt")
    assess.score(assess.prepare(Evaluate(checkpoint=file, split=split, device="cpu")))
    return json.loads((folder / "evaluation.json").read_text())[-1]


def test_a_run_trains_on_every_image_and_scores_its_last_epoch(tmp_path, capsys):
    done = train(tmp_path, **whole(limit_batches=3))
    out, folder = capsys.readouterr().out, only_run(tmp_path)
    assert files(folder) == FILES and done.validation is None
    assert "1,437 train, 0 validation, 360 test images" in out and "the last: there is no validation split" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best"], summary["best_epoch"], summary["epochs"], summary["final"]) == (None, 3, 3, done.test)
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3] and not any("validation" in key for key in lines[0])
    last, best = weights(folder), weights(folder, "best")
    assert all(torch.equal(last[key], best[key]) for key in last)
    assert scored_as(folder)["correct"] == summary["correct"]
    (subject,) = assess.prepare(Evaluate(checkpoint=str(folder), device="cpu")).subjects
    assert len(subject.data.train) == 1437 and not subject.changed
    with pytest.raises(DataError, match="digits has no images for the validation split"):
        scored_as(folder, "validation")
    events = EventAccumulator(str(folder)).Reload().Tags()
    assert not any("validation" in tag for tag in events["scalars"])
    assert {"result/final", "train/loss"} <= set(events["scalars"]) and "result/best" not in events["scalars"]


def test_no_test_image_is_seen_before_the_end(tmp_path):
    monitor = MonitorOptions(every=2, conditioning=4, figures="epoch")
    parts = prepare(config(tmp_path, **whole(epochs=1, limit_batches=4, monitor=monitor)))
    hidden = {image.numpy().tobytes() for image in (parts.data.test.images - parts.data.mean[0]) / parts.data.std[0]}
    seen = []

    def look(module, arguments):
        if not module.training:
            seen.extend(image.numpy().tobytes() in hidden for image in arguments[0].detach())

    hook = parts.model.register_forward_pre_hook(look)
    go(parts)
    hook.remove()
    assert sum(seen) == len(parts.data.test) and all(seen[-len(parts.data.test) :])
    assert "predictions" in EventAccumulator(str(only_run(tmp_path))).Reload().Tags()["images"]


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path):
    options = whole(limit_batches=4)
    train(tmp_path / "whole", **options)
    parts = prepare(config(tmp_path / "cut", **options))
    steps = []

    def interrupt(*args):
        steps.append(args)
        if len(steps) == 6:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    parts.model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        go(parts)
    cut = only_run(tmp_path / "cut")
    go(prepare(Train(resume=str(cut)), ["resume=x"]))
    for name in ("last", "best"):
        one, two = weights(only_run(tmp_path / "whole"), name), weights(cut, name)
        assert all(torch.equal(one[key], two[key]) for key in one)


LIFTED = [name for name in trainers.TRAINERS if name != "backprop"]


@pytest.mark.parametrize("trainer", some([*LIFTED, "average"], "average"))
def test_every_trainer_does_without_a_validation_split(tmp_path, trainer):
    if trainer == "average":
        options = whole(trainer=BackpropOptions(average="ema", recalibrate=2), limit_batches=4)
    else:
        data = DataOptions(validation=0, limit=100)
        options = {"data": data, "trainer": trainers.TRAINERS[trainer].options(), "batch_size": 50, "lr": 0.01}
        options["model"] = Model("mlp", hidden=[8], act_layer="sigmoid" if trainer == "mac" else "relu")
    done = train(tmp_path, epochs=1, **options)
    assert done.validation is None and scored_as(only_run(tmp_path))["top1"] == done.test


def test_a_weight_that_is_not_finite_stops_the_run(tmp_path):
    """The last step of an epoch spoils it, so that no loss of a later step shows it."""
    parts = prepare(config(tmp_path, **whole(epochs=2, limit_batches=3)))

    def spoil(module, arguments, output):
        if module.training and len(steps := vars(module).setdefault("steps", [])) < 6:
            steps.append(0)
            if len(steps) == 6:
                output.register_hook(lambda gradient: gradient * float("nan"))

    parts.model.register_forward_hook(spoil)
    with pytest.raises(Stopped, match="a weight is not finite after step 6, epoch 2"):
        go(parts)
    assert all(value.isfinite().all() for value in weights(only_run(tmp_path)).values())


def test_images_that_cannot_be_read_are_named(tmp_path, capsys):
    class_folder(tmp_path / "images", count=20)
    names = [f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(20)]
    data = DataOptions("folder", str(tmp_path / "images"), size=16, validation=0, unreadable="skip")
    held = load("folder", data.root, size=16, validation=0)
    assert len(held.train) + len(held.test) == 40 and not len(held.validation)
    broken = next(name for name in names if name in held.train.names)
    (tmp_path / "images" / broken).write_bytes(b"\xff\xd8\xff broken")
    model = Model("hbnet_small", **TINY)
    train(tmp_path, epochs=1, batch_size=8, data=data, model=model)
    assert [broken in line for line in capsys.readouterr().out.splitlines() if "left out" in line] == [True]


def test_splits_without_validation_have_all_other_images(tmp_path):
    for name, options in {"digits": {}, "synthetic": {"images": 50}}.items():
        with_some, without = (load(name, "", validation=part, **options) for part in (0.2, 0))
        assert len(without.train) == len(with_some.train) + len(with_some.validation)
        assert torch.equal(without.test.images, with_some.test.images) and len(without.validation) == 0
        assert len(load(name, "", validation=0, limit=20, **options).train) == 20
    for split in ("train", "val", "test"):
        class_folder(tmp_path / "all" / split, count=3)
    for split in ("train", "val"):
        class_folder(tmp_path / "two" / split, count=3)
    two = load("folder", str(tmp_path / "two"), size=16, validation=0)
    assert (len(two.train), len(two.validation), len(two.test)) == (6, 0, 6)
    with pytest.raises(DataError, match=r"data\.validation=0, but .* has a validation split"):
        load("folder", str(tmp_path / "all"), size=16, validation=0)
    assert len(load("folder", str(tmp_path / "all"), size=16, validation=0, training=False).validation) == 6


def test_what_needs_a_validation_split_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"patience=3 .*data\.validation=0"):
        config(tmp_path, **whole(patience=3))
    monkeypatch.chdir(tmp_path)
    wrong = [("patience=2",), ("-m", "lr=interval(0.01,0.1)"), ("-m", "hydra/sweeper=optuna", "lr=0.1,0.2")]
    for request in wrong:
        assert call(monkeypatch, "train", *request, "data.validation=0", *REQUEST) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and "data.validation=0" in err and not out
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_over_a_grid_needs_no_validation_split(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "-m", "seed=0,1", "data.validation=0", *REQUEST) == 0
    (file,) = tmp_path.glob("runs/sweeps/*/jobs.jsonl")
    found = [json.loads(line)["found"] for line in file.read_text().splitlines()]
    assert [set(job) for job in found] == [{"test top-1 %", "run"}] * 2 and "2 jobs" in capsys.readouterr().out
