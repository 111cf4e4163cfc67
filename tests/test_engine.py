"""The engine's options: each does what it says, and every one of them goes on exactly where it was interrupted."""

import json
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CLOCK, TINY, config, go, metrics, only_run, prepare, some, weights
from timm.optim import list_optimizers
from torch import nn
from torch.optim.swa_utils import update_bn

import optnet
from optnet import ConfigError
from optnet.app.config import Model, Train
from optnet.data import DataOptions, TensorLoader
from optnet.training import trainers
from optnet.training.averaging import Recalibration, average
from optnet.training.backprop import Backpropagation, BackpropOptions
from optnet.training.course import Course
from optnet.training.interruption import Interrupted
from optnet.training.loop import Progress
from optnet.training.mixing import Mixing
from optnet.training.optimizers import OptimOptions, optimizer
from optnet.training.schedules import SCHEDULES, ScheduleOptions, schedule

CPU = torch.device("cpu")
OPTIONS = [
    {"precision": "bfloat16"}, {"precision": "float16"}, {"channels_last": True}, {"accumulate": 3}, {"clip": 0.5},
    {"clip": 0.01, "clip_mode": "value"}, {"clip": 0.05, "clip_mode": "agc"}, {"label_smoothing": 0.1},
    {"mixup": 0.4}, {"cutmix": 1.0, "label_smoothing": 0.1}, {"mixup": 0.4, "cutmix": 1.0, "mix_probability": 0.7},
    {"average": "ema", "average_decay": 0.9}, {"average": "polyak", "average_start": 0.3, "recalibrate": 5},
]  # fmt: skip
QUICK = [1, 3, 6, 10, 12]
"""Precision, accumulation, clipping, mixing and averaging, of each the one that does most."""


def points(count=64, size=6, classes=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, size, generator=generator), torch.randint(classes, (count,), generator=generator)


def linear(**options):
    """A trainer of a fresh linear map by plain gradient descent, whose steps can be computed by hand."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    return Backpropagation(model, torch.optim.SGD(model.parameters(), lr=0.5), None, BackpropOptions(**options))


def gradient(trainer, images, labels, **options):
    copy = nn.Linear(6, 3)
    copy.load_state_dict(trainer.network.state_dict())
    F.cross_entropy(copy(images), labels, **options).backward()
    return copy.weight.grad


@pytest.mark.parametrize("options", some(OPTIONS, *(OPTIONS[i] for i in QUICK)), ids=str)
@pytest.mark.sampled(2)
def test_every_option_trains_and_resumes_exactly(tmp_path, options):
    def made(place):
        model = Model(**TINY, kwargs={"drop_rate": 0.1})
        options_ = {"epochs": 3, "limit_batches": 8, "batch_milestones": [0.5], "model": model, "lr": 0.05}
        return prepare(config(tmp_path / place, trainer=BackpropOptions(**options), **options_))

    go(made("whole"))
    parts, seen = made("cut"), []

    def interrupt(*args):
        seen.append(args)
        if len(seen) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    parts.model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        go(parts)
    whole, cut = only_run(tmp_path / "whole"), only_run(tmp_path / "cut")
    go(prepare(Train(resume=str(cut)), ["resume=..."]))
    one, two = weights(whole), weights(cut)
    assert all(torch.equal(one[key], two[key]) for key in one)
    lines = metrics(whole)
    for a, b in zip(lines, metrics(cut), strict=True):
        assert {k: v for k, v in a.items() if k not in CLOCK} == {k: v for k, v in b.items() if k not in CLOCK}
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.parametrize("parts", [2, 3, 64])
def test_accumulation_is_the_whole_batchs_step(parts):
    images, labels = points()
    whole, split = linear(), linear(accumulate=parts)
    loss, correct = whole.step(images, labels)
    again, same = split.step(images, labels)
    torch.testing.assert_close(split.model.weight, whole.model.weight)
    torch.testing.assert_close(again, loss)
    assert int(same) == int(correct)


@pytest.mark.parametrize(("count", "parts", "sizes"), [(64, 2, [32, 32]), (7, 4, [3, 2, 2]), (3, 2, [3]), (1, 2, [1])])
def test_parts_are_even_and_never_of_one_image(count, parts, sizes):
    trainer, seen = linear(accumulate=parts), []
    trainer.network.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    trainer.step(*points(count))
    assert seen == sizes


def test_batch_norm_of_one_pixel_is_trained_in_parts(tmp_path):
    data = DataOptions(name="synthetic", size=32, images=60)
    options = {"trainer": BackpropOptions(accumulate=2), "batch_size": 16, "epochs": 1, "limit_batches": 2}
    go(prepare(config(tmp_path, model=Model(name="resnet10t"), data=data, **options)))
    assert json.loads((only_run(tmp_path) / "summary.json").read_text())["steps"] == 2


def test_clipping():
    images, labels = points()
    for mode, limit in (("norm", 0.05), ("value", 0.01), ("norm", 100.0)):
        trainer = linear(clip=limit, clip_mode=mode)
        before, raw = trainer.model.weight.detach().clone(), gradient(trainer, images, labels)
        trainer.step(images, labels)
        taken = (before - trainer.model.weight.detach()) / 0.5
        if mode == "value":
            torch.testing.assert_close(taken, raw.clamp(-limit, limit), atol=1e-6, rtol=0)
        elif limit < raw.norm():
            assert taken.norm() < limit * 1.001 and F.cosine_similarity(taken.flatten(), raw.flatten(), 0) > 0.9999
        else:
            torch.testing.assert_close(taken, raw, atol=1e-6, rtol=0)


def test_adaptive_clipping_leaves_the_classifier_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = BackpropOptions(clip=1e-3, clip_mode="agc")
    trainer = Backpropagation(model, torch.optim.SGD(model.parameters(), lr=1.0), None, options)
    trainer.step(*points())
    moved = {name: value - before[name] for name, value in model.state_dict().items()}
    rows = moved["0.weight"].norm(dim=1) / before["0.weight"].norm(dim=1)
    assert rows.max() <= 1e-3 * 1.001 and moved["2.weight"].norm() > 0.01


def test_label_smoothing():
    images, labels = points()
    trainer = linear(label_smoothing=0.2)
    before, raw = trainer.model.weight.detach().clone(), gradient(trainer, images, labels, label_smoothing=0.2)
    trainer.step(images, labels)
    torch.testing.assert_close((before - trainer.model.weight.detach()) / 0.5, raw, atol=1e-6, rtol=0)


def test_averages():
    images, labels = points()
    for kind, start in (("ema", 0), ("ema", 4), ("polyak", 0), ("polyak", 4)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
        averaged = average(model, kind, 0.8, start)
        trainer = Backpropagation(model, torch.optim.SGD(model.parameters(), lr=0.5), None, average=averaged)
        path, means, expected, mean = [], [], None, None
        for step in range(1, 11):
            trainer.step(images[step : step + 32], labels[step : step + 32])
            path.append(model[1].weight.detach().clone())
            means.append(model[0].running_mean.clone())
            k = step - start
            if kind == "ema":
                decay = min(0.8, 1 - k ** (-2 / 3)) if k > 1 else 0
                expected = path[-1] if expected is None else decay * expected + (1 - decay) * path[-1]
                mean = means[-1] if mean is None else decay * mean + (1 - decay) * means[-1]
            else:
                expected, mean = torch.stack(path[start:]).mean(0) if k > 0 else path[-1], means[-1]
            said = f"{kind} from {start}, step {step}"
            torch.testing.assert_close(trainer.model[1].weight.detach(), expected, msg=said)
            torch.testing.assert_close(trainer.model[0].running_mean, mean, msg=said)
        assert trainer.model is not trainer.network


def test_recalibration_gives_the_averages_own_statistics():
    data = optnet.data.load("digits", "")
    loader = data.loader("train", 100, device=CPU, training=True)
    model = optnet.create_model(algorithm=optnet.find_algorithm("heavy_ball"), in_chans=1, num_classes=10, **TINY)
    trainer = Backpropagation(model, torch.optim.SGD(model.parameters(), lr=0.1), None,
                              average=average(model, "polyak", 0, 0))  # fmt: skip
    for batch in loader.batches():
        trainer.step(*batch)
    Recalibration(Course(loader, 2), 4).on_epoch(Progress(epoch=1), trainer)
    reference = average(trainer.model, "polyak", 0, 0).module
    update_bn([images for images, _ in loader.batches(1)][:4], reference)
    for (name, ours), theirs in zip(trainer.model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not trainer.model.training


def test_mixing():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(7, 1, 8, 8, generator=generator), torch.arange(7)
    kept, state = images.clone(), np.random.get_state()
    for options in ({"mixup": 0.5, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        mixing = Mixing(10, probability=1.0, smoothing=0.0, seed=3, **options)
        mixed, target = mixing(images, labels, 5)
        again, _ = mixing(images, labels, 5)
        other, _ = mixing(images, labels, 6)
        assert torch.equal(mixed, again) and not torch.equal(mixed, other) and torch.equal(images, kept)
        assert mixed.shape == images.shape and target.shape == (7, 10)
        torch.testing.assert_close(target.sum(1), torch.ones(7))
        share = target[torch.arange(7), labels]  # of an image's own label; the rest is its partner's
        partner = torch.tensor([6, 6, 5, 4, 3, 2, 1])
        assert (share < 1).all()
        torch.testing.assert_close(target[torch.arange(7), labels[partner]], 1 - share)
        if options["mixup"]:  # images are mixed as their labels are
            part = share[:, None, None, None]
            torch.testing.assert_close(mixed, part * images + (1 - part) * images[partner], atol=1e-6, rtol=0)
    assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state(), strict=True))
    whole, _ = Mixing(10, mixup=1.0, cutmix=0.0, probability=0.0, smoothing=0.0, seed=0)(images, labels, 0)
    assert torch.equal(whole, images)


def test_course():
    images = torch.zeros(100, 1, 2, 2)
    loader = TensorLoader(images, torch.zeros(100).long(), 10, mean=(0,), std=(1,), device=CPU)
    grown = Course(loader, 10, milestones=[0.5, 0.8], growth=2)
    assert grown.steps == [10] * 5 + [5] * 3 + [3] * 2 and grown.loader(9).batch_size == 40
    assert Course(loader, 3, limit=4).steps == [4, 4, 4]
    short = Course(loader, 10, max_steps=25)
    assert short.steps == [10, 10, 5] and short.epochs == 3 and short.total == 25
    late = Course(loader, 100, milestones=[0.55], growth=2)
    assert [late.loader(epoch).batch_size for epoch in (54, 55)] == [10, 20]
    for epochs in (6, 10, 1000):  # however long the run would be, 45 steps are 3 epochs of 10, and 3 of 5
        shortened = Course(loader, epochs, milestones=[0.5], growth=2, max_steps=45)
        assert shortened.steps == [10] * 3 + [5] * 3 and shortened.loader(3).batch_size == 20
    assert Course(loader, 4, milestones=[0.5], growth=2, max_steps=999).steps == [10, 10, 5, 5]
    assert loader.batch_size == 10 and grown.loader(9).images is loader.images


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", sorted({*list_optimizers(), "lookahead_sgd"}))
def test_every_optimizer_of_timm_trains_or_is_refused(tmp_path, name):
    """Those that need another package or a second backward pass are refused before a run begins."""
    steady = ScheduleOptions(name="constant", warmup=0)
    made = config(tmp_path, lr=1e-2, optim=OptimOptions(name=name), schedule=steady)
    model = optnet.create_model(algorithm=optnet.find_algorithm("heavy_ball"), in_chans=1, num_classes=10, **TINY)
    try:
        trainers.try_step(made.recipe, model, (1, 8, 8))
    except ConfigError as error:
        assert name in str(error) and "\n" not in str(error)
        assert name.startswith(("bnb", "fused", "adahessian"))
        return
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = trainers.build(made.recipe, model, 10)
    with torch.compiler.set_stance("force_eager"):  # some compile themselves, for minutes
        for _ in range(2):
            trainer.step(torch.rand(8, 1, 8, 8), torch.arange(8))
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2 and all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(name):
    model = nn.Linear(2, 2)
    rates = []
    for resumed_at in (None, 30):
        made = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = schedule(ScheduleOptions(name=name, warmup=0.1, decay=0.3), made, 100)
        path = []
        for update in range(100):
            if resumed_at is None or update > resumed_at:
                scheduler.step_update(update)
            path.append(made.param_groups[0]["lr"])
        rates.append(path)
    path = rates[0]
    assert path[0] == 0 and 0.4 < path[5] < 0.6 and max(path) == pytest.approx(1, abs=0.05)
    assert all(b <= a + 1e-9 for a, b in pairwise(path[11:]))
    assert path[-1] == pytest.approx(1) if name == "constant" else path[-1] < 0.15
    assert rates[1][31:] == path[31:]


@pytest.mark.parametrize("name", ["cosine", "tanh", "poly"])
def test_every_cycle_starts_from_the_full_rate(name):
    made = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = schedule(ScheduleOptions(name=name, warmup=0, cycles=4), made, 100)
    path = []
    for update in range(100):
        scheduler.step_update(update)
        path.append(made.param_groups[0]["lr"])
    assert [path[start] for start in (0, 25, 50, 75)] == pytest.approx([1] * 4, abs=0.01)
    assert max(path[24::25]) < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": ScheduleOptions(min_lr=0.2)}, "schedule.min_lr=0.2 must be at most lr=0.1"),
        (
            {"schedule": ScheduleOptions(min_lr=0.02), "optim": OptimOptions(coefficient_lr=0.01)},
            "optim.coefficient_lr=0.01",
        ),
    ],
)
def test_a_rate_that_would_rise_to_its_minimum_is_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, lr=0.1, **options)


def test_a_models_own_exceptions_from_decay_hold_with_a_rate_for_coefficients():
    model = optnet.create_model(algorithm=optnet.find_algorithm("heavy_ball"), norm="weight", **TINY)
    scales = {id(value) for name, value in model.named_parameters() if name.endswith("original0")}
    for rate in (None, 0.003):
        made = optimizer(OptimOptions(coefficient_lr=rate, weight_decay=0.1), model, 0.1)
        decayed = {id(value) for group in made.param_groups if group["weight_decay"] for value in group["params"]}
        assert scales and decayed and not scales & decayed
    with pytest.raises(ConfigError, match="layer_decay"):
        optimizer(OptimOptions(coefficient_lr=0.003, kwargs={"layer_decay": 0.7}), model, 0.1)


def test_coefficients_have_a_rate_of_their_own_and_no_decay():
    model = optnet.create_model(algorithm=optnet.find_algorithm("heavy_ball"), per_channel=True, **TINY)
    made = optimizer(OptimOptions(coefficient_lr=0.003, weight_decay=0.1), model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in made.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert (group["lr"] == 0.003) == (".coefficients." in name)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)
    assert sorted(seen) == sorted(names.values())
    (own,) = [group for group in made.param_groups if group["lr"] == 0.003]
    scheduler = schedule(ScheduleOptions(warmup=0), made, 10)
    scheduler.step_update(5)
    assert own["lr"] == pytest.approx(0.0015)


def test_the_runs_length(tmp_path):
    go(prepare(config(tmp_path / "steps", epochs=50, max_steps=30)))
    summary = json.loads((only_run(tmp_path / "steps") / "summary.json").read_text())
    assert summary["steps"] == 30 and summary["epochs"] == 2
    go(prepare(config(tmp_path / "stall", epochs=50, patience=2, lr=1e-9, limit_batches=2)))
    lines = metrics(only_run(tmp_path / "stall"))
    summary = json.loads((only_run(tmp_path / "stall") / "summary.json").read_text())
    assert len(lines) < 50 and len(lines) == summary["best_epoch"] + 2


def test_profile(tmp_path):
    go(prepare(config(tmp_path, epochs=1, limit_batches=6, profile=2)))
    trace = json.loads((only_run(tmp_path) / "profile.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path):
    for place, compiled in (("plain", False), ("compiled", True)):
        options = BackpropOptions(compile=compiled)
        go(prepare(config(tmp_path / place, epochs=1, limit_batches=5, trainer=options, lr=0.01)))
    one, two = (metrics(only_run(tmp_path / place))[0]["train_loss"] for place in ("plain", "compiled"))
    assert one == pytest.approx(two, rel=1e-3)
