"""Monitoring: its numbers against explicit Hessians and plain loops, its event files read back, its cost."""

import json
import re
import time
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import TINY, class_folder, config, go, only_run, prepare, some
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter

import optnet
from optnet.app.config import Model, Train
from optnet.data import load
from optnet.options import check
from optnet.training import loop, trainers
from optnet.training.backprop import CLIPS, BackpropOptions
from optnet.training.monitoring import board, depth, figures
from optnet.training.monitoring.conditioning import measure, training_loss
from optnet.training.monitoring.monitor import Monitor, gradient_norms
from optnet.training.monitoring.monitor import MonitorOptions as Options

SMALL = ["gdnet_small", "resnet_small", "hbnet_small", "agdnet_small", "admmnet_small"]


def small_net():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)
    net = nn.Sequential(*layers).double()
    return net, torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.arange(12) % 4


def test_against_the_explicit_hessian():
    net, images, labels = small_net()
    loss, point = training_loss(net, images, labels)
    names, sizes = list(point), [p.numel() for p in point.values()]
    flat = torch.cat([p.flatten() for p in point.values()])

    def of_vector(vector):
        parts = zip(names, vector.split(sizes), strict=True)
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        parameters = {name: part.view_as(point[name]) for name, part in parts}
        return F.cross_entropy(functional_call(net, {**parameters, **buffers}, (images,)), labels)

    H = torch.autograd.functional.hessian(
        of_vector, flat
    )  # torch.func.hessian is wrong by 1e-3: its vmap of batch norm
    g = torch.func.grad(of_vector)(flat)
    found = measure(loss, point, steps=len(flat))
    assert found.gg == pytest.approx(float(g @ g), rel=1e-5)
    assert found.gHg == pytest.approx(float(g @ H @ g), rel=1e-5)
    direction = torch.cat([part.flatten() for part in found.direction.values()])
    assert direction.norm() == pytest.approx(1)
    assert found.curvature == pytest.approx(float(direction @ H @ direction), rel=1e-5)
    few = [measure(loss, point, steps).curvature for steps in (1, 3, 6, 12)]
    assert few[0] == pytest.approx(float(g @ H @ g / (g @ g)), rel=1e-5)
    assert few == sorted(few, reverse=True) and few[-1] < 0
    assert torch.linalg.eigvalsh(H)[0] - 1e-9 <= few[-1]
    assert found.curvature == pytest.approx(float(torch.linalg.eigvalsh(H)[0]), rel=1e-3)


def test_the_predicted_change_is_the_measured_one():
    net, images, labels = small_net()
    loss, point = training_loss(net, images, labels)
    found, g = measure(loss, point), torch.func.grad(loss)(point)
    errors = []
    for eps in (0.04, 0.02, 0.01):
        moved = {name: p - eps * g[name] for name, p in point.items()}
        measured = float(loss(moved) - loss(point))
        errors.append(abs(found.change(eps) - measured))
        assert found.change(eps) == pytest.approx(measured, rel=10 * eps**2)
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)  # what is left out is of third order
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.15)


def test_measuring_leaves_model_and_random_state_alone():
    model = timm.create_model("hbnet_small", in_chans=1, drop_rate=0.5).train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    loss, point = training_loss(model, images, labels)
    assert loss(point) == loss(point)
    measure(loss, point, 2)
    depth.movements(model, images)
    assert torch.equal(rng, torch.get_rng_state()) and modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["gradient_descent", "heavy_ball", "krasnoselskii_mann"])
def test_movement_is_that_of_the_algorithm(name):
    algorithm = optnet.find_algorithm(name)
    T = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh())
    net = optnet.unroll(algorithm, steps=5, operators={"T": T})
    x = torch.randn(3, 2, 6, 6)
    (moved,) = depth.movements(net, x).values()
    with torch.no_grad():
        iterates = [x, *(algorithm(T, x, steps=k) for k in range(1, 6))]
    norms = [(b - a).flatten(1).norm(dim=1).mean() for a, b in pairwise(iterates)]
    assert moved == pytest.approx([float(norm) for norm in norms], rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_step_of_every_stage_has_a_movement(name):
    model = timm.create_model(name, in_chans=1)
    found = depth.movements(model, torch.randn(4, 1, 8, 8))
    assert list(found) == [f"stages.{i}.unrolled" for i in range(3)]
    for norms, stage in zip(found.values(), model.stages, strict=True):
        program = stage.unrolled.program
        iterates = {step.argument for step in program.applies if step.operator == program.main} | set(program.results)
        streams = len(program.starts)
        assert len(norms) <= len(iterates) / streams - 1 + (streams > 1) and len(norms) >= 2
        assert all(norm > 0 for norm in norms)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_norms_add_up(name):
    model = timm.create_model(name, in_chans=1)
    assert gradient_norms(model) == {}
    F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()
    norms = {tag.removeprefix("gradient_norm/"): float(value) for tag, value in gradient_norms(model).items()}
    whole = norms.pop("all")
    assert whole == pytest.approx(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])), rel=1e-5)
    assert whole**2 == pytest.approx(sum(norm**2 for norm in norms.values()), rel=1e-5)
    assert {"stem", "stages.0", "stages.1", "stages.2", "head"} <= set(norms)
    assert ("coefficients" in norms) == any(p.ndim == 1 and ".coefficients." in n for n, p in model.named_parameters())


def test_a_run_goes_on_without_what_cannot_be_drawn(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(figures, "predictions", broken)
    folder = watched(tmp_path, figures="epoch")
    texts = [point.tensor_proto.string_val[0].decode() for point in events(folder).Tensors("figures/text_summary")]
    assert len(texts) == 3 and all("no ink" in text for text in texts)
    assert json.loads((folder / "summary.json").read_text())["epochs"]


def test_the_images_looked_at_are_of_every_class(tmp_path):
    """Drawn from a whole split, where a folder's files lie class by class; and the same ones in every run."""
    for part in ("train", "val", "test"):
        class_folder(tmp_path / part, classes=("ant", "bee", "cat"), count=20)
    for split, look in {"train": "probe", "validation": "shown"}.items():
        data = load("folder", str(tmp_path), size=16)
        found = [getattr(Monitor(Options(), None, data, torch.device("cpu"), lambda: 0), look) for _ in range(2)]
        images, labels = found[0]
        assert len(images) == 16 and set(labels.tolist()) == {0, 1, 2}
        assert torch.equal(images, found[1][0])
        whole = torch.cat([batch for batch, _ in data.loader(split, 64, device=torch.device("cpu")).batches()])
        assert all((whole == image).flatten(1).all(1).any() for image in images)


@pytest.mark.parametrize("views, loaded", [
    ({"every": 0, "conditioning": 0, "figures": "none", "graph": False}, set()),
    ({"every": 1, "conditioning": 0, "figures": "none", "graph": False}, {"probe"}),
    ({"every": 0, "conditioning": 0, "figures": "epoch", "graph": False}, {"shown"}),
])  # fmt: skip
def test_images_are_loaded_for_a_view_alone(tmp_path, views, loaded):
    made = config(tmp_path, monitor=Options(**views))
    parts = prepare(made)
    trainer = trainers.build(made.recipe, parts.model, 10)
    with SummaryWriter(str(tmp_path)) as writer:
        monitor = Monitor(made.monitor, writer, parts.data, parts.device, lambda: 0)
        monitor.on_start(loop.Progress(), trainer)
        monitor.on_step(loop.Progress(updates=1), trainer)
        monitor.on_epoch(loop.Progress(epoch=1), trainer)
    assert {"probe", "shown"} & set(vars(monitor)) == loaded


@pytest.mark.parametrize("mode", CLIPS)
def test_gradient_norms_are_those_before_clipping(tmp_path, mode):
    looked = {}
    for clip in (None, 1e-3):
        looking = Options(every=1, conditioning=0, figures="none", graph=False)
        trainer = BackpropOptions(clip=clip, clip_mode=mode)
        made = config(tmp_path / str(clip), epochs=1, max_steps=1, monitor=looking, trainer=trainer)
        go(prepare(made))
        found = events(only_run(tmp_path / str(clip)))
        tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("gradient_norm/")]
        looked[clip] = {tag: found.Scalars(tag)[0].value for tag in tags}
    assert looked[None] == looked[1e-3] and looked[None]["gradient_norm/all"] > 0.1


def test_the_graph_of_what_cannot_be_traced(tmp_path):
    class Refuses(nn.Module):
        def forward(self, x):
            raise ValueError("no\nway")

    with SummaryWriter(str(tmp_path)) as events:
        assert board.add_graph(events, Refuses(), torch.zeros(1)) == "ValueError: no"


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()


def watched(tmp_path, epochs=3, model=None, trainer=None, **options):
    monitor = Options(**{"every": 10, "conditioning": 20, "lanczos": 2, "figures": "epoch", **options})
    parts = {"model": model or Model(**TINY), "trainer": trainer or BackpropOptions()}
    made = config(tmp_path, epochs=epochs, monitor=monitor, batch_size=64, **parts)
    check(made)
    go(prepare(made))
    return only_run(tmp_path)


def test_every_promised_tag_has_its_points(tmp_path):
    folder = watched(tmp_path, histograms="epoch")
    assert not [place for place in folder.iterdir() if place.is_dir() and place.name != "checkpoints"]
    found = events(folder)
    steps = {tag: [point.step for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    every_epoch = ["train/loss", "train/top1", "validation/loss", "validation/top1", "validation/top5", "optim/lr"]
    every_epoch += ["time/images_per_second", "memory/peak_bytes", "time/monitor_seconds"]
    for tag in every_epoch:
        assert steps.pop(tag) == [1, 2, 3], tag
    parts = ("all", "stem", "stages.0", "stages.1", "head", "coefficients")
    every_tenth = [f"gradient_norm/{part}" for part in parts]
    every_tenth += [
        "movement/stages.0.unrolled/001",
        "movement/stages.1.unrolled/001",
        "movement/stages.1.unrolled/002",
    ]
    for tag in every_tenth:
        assert steps.pop(tag) == [10, 20, 30, 40, 50, 60], tag
    for name in ("gg", "gHg", "predicted_change", "most_negative_curvature"):
        assert steps.pop(f"conditioning/{name}") == [20, 40, 60], name
    for tag in [tag for tag in steps if tag.startswith("coefficients/")]:
        assert steps.pop(tag) == [1, 2, 3]
    for name in ("best", "final", "parameters", "train_seconds"):
        assert [point.step for point in found.Scalars(f"result/{name}")] == [3]
    assert set(steps) <= {f"result/{name}" for name in ("best", "final", "parameters", "train_seconds")} | {
        "time/train_seconds"
    }
    images = {tag: [point.step for point in found.Images(tag)] for tag in found.Tags()["images"]}
    stages = ["coefficients/stages.0.unrolled", "coefficients/stages.1.unrolled"]
    assert images == {tag: [1, 2, 3] for tag in [*stages, "predictions"]}
    histograms = found.Tags()["histograms"]
    assert {"weights/stem.conv.weight", "gradients/head.fc.bias"} <= set(histograms)
    assert all([point.step for point in found.Histograms(tag)] == [1, 2, 3] for tag in histograms)
    assert found.Tags()["graph"]
    assert "custom_scalars__config__" in found.Tags()["tensors"]
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(
        found.summary_metadata
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert found.Scalars("result/final")[0].value == pytest.approx(summary["final"])


def test_the_table_of_hyperparameters_begins_with_what_people_compare(tmp_path):
    """TensorBoard's columns have the order of the file: the learning rate and the seed, the final score."""
    folder = watched(tmp_path, epochs=1, every=0, conditioning=0, figures="none", graph=False)
    content = events(folder).summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    names = [info.name for info in experiment.hparam_infos]
    assert names[:5] == ["lr", "seed", "model.name", "data.name", "batch_size"] and len(names) == len(set(names)) > 30
    assert [info.name.tag for info in experiment.metric_infos][:2] == ["result/final", "result/best"]


def test_what_is_switched_off_is_not_there(tmp_path):
    folder = watched(tmp_path, every=0, conditioning=0, figures="none", graph=False)
    found = events(folder)
    kinds = ("gradient_norm", "movement", "conditioning")
    assert not [tag for tag in found.Tags()["scalars"] if tag.startswith(kinds)]
    assert not found.Tags()["images"] and not found.Tags()["graph"] and not found.Tags()["histograms"]


def test_what_cannot_be_differentiated_twice_trains_all_the_same(tmp_path):
    folder = watched(tmp_path, epochs=1, model=Model(**TINY, memory="checkpoint"))
    found = events(folder)
    assert "conditioning/text_summary" in found.Tags()["tensors"]
    assert not [tag for tag in found.Tags()["scalars"] if tag.startswith("conditioning")]
    assert len(found.Scalars("gradient_norm/all")) == 2


def test_averaged_weights_are_watched_too(tmp_path):
    found = events(watched(tmp_path, epochs=1, trainer=BackpropOptions(average="ema")))
    assert len(found.Scalars("gradient_norm/all")) == 2 and len(found.Scalars("conditioning/gg")) == 1


def test_watching_changes_no_number(tmp_path):
    one = watched(tmp_path / "one", epochs=2)
    two = watched(tmp_path / "two", epochs=2, every=0, conditioning=0, figures="none", graph=False)
    weights = [torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state_dict"] for folder in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_run_has_no_point_twice(tmp_path):
    folder = watched(tmp_path, epochs=2, figures="end")
    time.sleep(1.1)  # TensorBoard orders the event files of one process by the second
    go(prepare(Train(resume=str(folder), epochs=4), ["resume=x", "epochs=4"]))
    found = events(folder)
    points = {tag: [point.step for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert points["gradient_norm/all"] == points["movement/stages.0.unrolled/001"] == list(range(10, 81, 10))
    assert points["conditioning/gg"] == [20, 40, 60, 80] and points["memory/peak_bytes"] == [1, 2, 3, 4]
    assert [point.step for point in found.Images("predictions")] == [4]  # as of a run of four epochs


def test_hyperparameters_have_the_same_keys_in_every_run():
    plain = {"lr": 0.1, "name": None, "model": {"name": "a", "widths": [1, 2], "kwargs": {"x": 1}}, "flag": True}
    one = board.hyperparameters(
        {**plain, "algorithm": {"name": "heavy_ball", "beta": 0.9}}, ("algorithm", "model.kwargs")
    )
    two = board.hyperparameters({**plain, "algorithm": {"name": None}}, ("algorithm", "model.kwargs"))
    assert one.keys() == two.keys()
    assert one["model.widths"] == "[1, 2]" and one["model.kwargs"] == '{"x": 1}' and one["name"] == "null"
    assert one["flag"] is True and one["algorithm"] == '{"name": "heavy_ball", "beta": 0.9}'


def test_the_defaults_cost_less_than_three_per_cent_of_a_step(tmp_path):
    """Of the default model, data and batch size: what each view takes, shared by the steps between two of them."""
    config = Train(device="cpu")
    parts = prepare(config)
    trainer = trainers.build(config.recipe, parts.model, 1000)
    images, labels = next(parts.data.loader("train", config.batch_size, device=parts.device).batches())
    with SummaryWriter(str(tmp_path)) as writer:
        monitor = Monitor(config.monitor, writer, parts.data, parts.device, lambda: 0)
        every, conditioning = config.monitor.every, config.monitor.conditioning
        between = {
            "step": 1, "look": every, "conditioning": conditioning, "epoch": len(parts.data.train) // config.batch_size
        }  # fmt: skip
        views = {
            "step": lambda: trainer.step(images, labels),
            "look": lambda: monitor.on_step(loop.Progress(updates=every), trainer),
            "conditioning": lambda: monitor._conditioning(trainer),
            "epoch": lambda: monitor.on_epoch(loop.Progress(epoch=1), trainer),
        }
        seconds = {view: [] for view in views}
        for _ in range(12):
            for view, look in views.items():
                began = time.perf_counter()
                look()
                seconds[view].append(time.perf_counter() - began)
    share = {view: sorted(taken)[len(taken) // 2] / between[view] for view, taken in seconds.items()}
    step = share.pop("step")
    print({view: f"{value / step:.2%}" for view, value in share.items()})
    assert sum(share.values()) < 0.03 * step


@pytest.mark.parametrize("name", some([*SMALL, "mlp"], "hbnet_small", "admmnet_small", "mlp"))
@pytest.mark.sampled(1)
def test_the_layout_names_tags_that_exist(tmp_path, name):
    """As TensorBoard matches them; and no stage's curves, or part's, are without a chart."""
    small = {"blocks": [2, 2], "widths": [4, 8]}
    found = events(watched(tmp_path, epochs=1, model=Model(name, **({} if name == "mlp" else small))))
    tags = found.Tags()["scalars"]
    charted = set()
    (written,) = found.Tensors("custom_scalars__config__")
    layout = Layout.FromString(written.tensor_proto.string_val[0])
    for chart in [chart for category in layout.category for chart in category.chart]:
        for pattern in chart.multiline.tag:
            matched = {tag for tag in tags if re.match(pattern, tag)}
            assert matched, f"{chart.title}: no tag is like {pattern}"
            charted |= matched
    kinds = ("coefficients/", "movement/", "gradient_norm/", "conditioning/g")
    assert {tag for tag in tags if tag.startswith(kinds)} <= charted
