"""The signal at the start: measured at every call, as theory says, O(1) at depth where theory promises it."""

import pytest
import timm
import torch
from helpers import LAYERED, SMALL, random_images

from optnet import ConfigError, create_model
from optnet.__main__ import main
from optnet.networks import signal
from optnet.networks.initialisation import SCHEMES, initialise
from optnet.networks.layers import NORMS
from optnet.networks.layers.norms import WEIGHT_NORMED


@pytest.mark.parametrize("family", LAYERED)
def test_every_call_is_a_point(family):
    torch.manual_seed(0)
    model = create_model(**{**SMALL, **LAYERED[family]}).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    points = signal.measure(model, random_images(8))
    bodies = [stage.unrolled for stage in model.stages]
    calls = [name for steps in bodies for name, _ in steps.body.named_children() if name.startswith("T_")]
    assert [point.layer.rpartition(".")[2] for point in points] == calls
    assert all(point.activation > 0 and point.gradient > 0 for point in points) and points[-1].gradient == 1
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", LAYERED)
def test_memory_changes_no_point(family):
    points = []
    for memory in ("keep", "checkpoint"):
        torch.manual_seed(0)
        model = create_model(**{**SMALL, **LAYERED[family]}, memory=memory).double()
        points.append(signal.measure(model, random_images(8).double()))
    keep, checkpoint = points
    assert [point.layer for point in keep] == [point.layer for point in checkpoint]
    for a, b in zip(keep, checkpoint, strict=True):
        assert (a.activation, a.gradient) == pytest.approx((b.activation, b.gradient), rel=1e-9)


def test_every_module_keeps_its_mode():
    model = create_model("heavy_ball", **SMALL).train()
    model.stem.eval()
    before = {name: module.training for name, module in model.named_modules()}
    signal.measure(model, random_images(8))
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("name, size", [("vit_tiny_patch16_224", None), ("swinv2_cr_tiny_224", 64), ("mlp", 8)])
def test_models_of_one_size_of_images(name, size):
    shape, points = signal.of(name, "default", {}, batch=2, size=size)
    assert shape.endswith("x224x224" if size is None else f"x{size}x{size}")
    assert all(point.activation > 0 for point in points)


def test_what_does_not_depend_on_the_images_is_no_point():
    options = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1, 1, 1, 1]}
    _, points = signal.of("swinv2_tiny_window8_256", "default", options, batch=2, size=64)
    assert points and not any("cpb_mlp" in point.layer for point in points)


def test_any_model_of_timm():
    torch.manual_seed(0)
    points = signal.measure(timm.create_model("resnet18"), torch.randn(4, 3, 32, 32))
    assert len(points) == 21 and points[0].layer == "conv1" and points[-1].layer == "fc"
    assert points[0].activation == pytest.approx(1, rel=0.05)


GROWTH = {"he": 2.0, "orthogonal": 2.0, "fan_in": 1 + 1 / 36}
GROWTH |= dict.fromkeys(("glorot_normal", "glorot_uniform", "lecun_normal", "lecun_uniform"), 1.25)
"""v_{k+1} / v_k of a pre-activation residual sum without norms; F has two layers, each of gain n Var(W) / 2.

The padding with zeros takes some of it."""


@pytest.mark.parametrize("scheme", [*GROWTH, "lsuv"])
def test_residual_sums_grow_as_theory_says(scheme):
    torch.manual_seed(0)
    model = create_model(
        "heavy_ball", blocks=[12], widths=[64], in_chans=8, layer="preact_basic", norm="none", coefficients="fixed"
    )
    x = torch.randn(8, 8, 12, 12)
    initialise(model, scheme, images=x)
    v = [point.activation**2 for point in signal.measure(model, x)]
    if scheme == "lsuv":  # every branch adds the same: linear growth
        assert 0.8 < (v[-1] - v[1]) / (len(v) - 2) < 1.4
    else:
        growth = (v[-1] / v[0]) ** (1 / (len(v) - 1))
        assert growth - 1 == pytest.approx(GROWTH[scheme] - 1, rel=0.2)


DEEP = {
    "hbnet110_cifar": {},
    "agdnet52_cifar": {},
    "admmnet56_cifar": {"blocks": [18, 18, 18]},
}
UNSCALED = [norm for norm in NORMS if norm in ("mean", "none")]  # the size of a branch is left to its weights
EXPLODES = {"default", "he", "orthogonal"}  # residual sums: their branches keep the variance
DENSE_EXPLODES, DENSE_FADES = {"default"}, {"fan_in"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", DEEP)
def test_a_deep_network_starts_finite_and_of_order_one(name, norm, scheme):
    options = {**DEEP[name], "norm": norm}
    if norm in WEIGHT_NORMED and scheme == "lsuv":
        with pytest.raises(ConfigError, match="norm=weight"):
            signal.of(name, scheme, options, batch=2, size=8)
        return
    _, points = signal.of(name, scheme, options, batch=8, size=16)
    sizes, gradients = [p.activation for p in points], [p.gradient for p in points]
    print(f"{name} {norm} {scheme}: {min(sizes):.2g}..{max(sizes):.2g}, {min(gradients):.2g}..{max(gradients):.2g}")
    assert all(0 < value < float("inf") for value in [*sizes, *gradients])
    dense = name.startswith("agd")
    if norm in UNSCALED and scheme in (DENSE_EXPLODES if dense else EXPLODES):
        assert max(sizes) > 1000 * min(sizes)  # as docs/initialisation.md says
    elif norm in UNSCALED and dense and scheme in DENSE_FADES:
        assert sizes[-1] < 0.01
    elif norm in UNSCALED and GROWTH.get(scheme) == 1.25:
        growth = (max(sizes) / sizes[0]) ** (2 / 54)  # of the second moment, in 54 steps
        assert min(sizes) > 1 / 200 and growth - 1 < 1.2 * 0.25  # as exactly as above
    else:
        assert min(sizes) > 1 / 200 and max(sizes) < 200
        assert min(gradients) > 1 / 200 and max(gradients) < 1000


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["signal", "hbnet_small", "norm=group", "blocks=[1,1,2]", "--init", "lsuv", "--size", "8"]) == 0
    out = capsys.readouterr().out
    assert "stages.2.unrolled.T_1" in out and "16x3x8x8" in out
    assert (tmp_path / "signal-hbnet_small-lsuv.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "request_",
    ["resnet18 act_layer=nonsense", "hbnet_small features_only=true", "resnet18 num_classes=-1 --batch 2",
     "resnet18 in_chans=x", "resnet18 num_classes=x",
     "nonsense", "hbnet_small --init nonsense", "hbnet_small norm", "hbnet_small norm=x", "hbnet_small nonsense=1",
     "hbnet_small --batch 1", "hbnet_small --size 0", "hbnet_small --png a.jpg", "hbnet_small --png no/a.png",
     "hbnet_small norm=weight --init lsuv"],
)  # fmt: skip
def test_wrong_requests(request_, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["signal", *request_.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out and not list(tmp_path.iterdir())


def test_one_point_is_seen():
    """A line through one point is empty; the point has a marker."""
    made = signal.figure({"default": [signal.Point("fc", 1.0, 1.0)]}, "one layer")
    assert all(line.get_marker() == "." for axes in made.axes for line in axes.lines) and len(made.axes[0].lines) == 1
