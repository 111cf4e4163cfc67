"""Initialisation: each scheme keeps what it promises, on our networks and on anybody's."""

import copy
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import LAYERED, SMALL, crossed, prepare, random_images, takes_norm
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from optnet import ConfigError, create_model
from optnet.app.config import Model, Train
from optnet.networks.initialisation import (
    GAINED,
    SCHEMES,
    InitOptions,
    activation_gain,
    initialise,
    linear_maps,
    needs_data,
)
from optnet.networks.layers import NORMS, PIXEL_NORMS
from optnet.networks.layers.norms import WEIGHT_NORMED

WIDE = {"blocks": (2, 2), "widths": (64, 96), "in_chans": 8}
VARIANCES = {  # of a weight with n inputs and m outputs; the activation is ReLU
    "glorot_uniform": lambda n, m: 2 / (n + m),
    "glorot_normal": lambda n, m: 2 / (n + m),
    "lecun_uniform": lambda n, m: 1 / n,
    "lecun_normal": lambda n, m: 1 / n,
    "he": lambda n, m: 2 / n,
    "orthogonal": lambda n, m: 2 / max(n, m),
    "fan_in": lambda n, m: 1 / (3 * n),
}


def networks():
    torch.manual_seed(0)
    yield create_model("heavy_ball", **WIDE)
    yield create_model("heavy_ball", **WIDE, norm="weight")
    yield create_model("nesterov_dense", **WIDE)
    yield timm.create_model("resnet18", num_classes=10)
    yield nn.Sequential(
        nn.Conv2d(64, 64, 5, groups=64), nn.ReLU(), nn.Conv2d(64, 96, 3, groups=4), nn.ConvTranspose2d(96, 32, 4),
        nn.ConvTranspose2d(32, 64, 3, groups=4), nn.ConvTranspose1d(64, 64, 9, groups=64),
    )  # fmt: skip


def fans(layer):
    """Inputs of an output and outputs of an input, the kernel counted."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    area = math.prod(layer.kernel_size)
    return layer.in_channels // layer.groups * area, layer.out_channels // layer.groups * area


@pytest.mark.parametrize("scheme", VARIANCES)
def test_variance_of_every_layer(scheme):
    for model in networks():
        initialise(model, scheme)
        for layer in linear_maps(model):
            weight = layer.weight.detach()
            n, m = fans(layer)
            if scheme == "orthogonal":  # a row for each output
                m = layer.out_channels // layer.groups if hasattr(layer, "groups") else m
            error = 5 * math.sqrt(2 / weight.numel())  # five standard deviations of a sample variance
            assert weight.square().mean().item() == pytest.approx(VARIANCES[scheme](n, m), rel=error)
            assert layer.bias is None or not layer.bias.any()


def test_fan_in_is_torchs_own_start():
    made = []
    for scheme in ("default", "fan_in"):
        torch.manual_seed(0)
        layers = [nn.Linear(7, 5, bias=False), nn.Conv2d(6, 4, 3, groups=2, bias=False)]
        for layer in layers:
            torch.manual_seed(1)
            layer.reset_parameters()
            torch.manual_seed(1)
            initialise(layer, scheme)
        made.append([layer.weight for layer in layers])
    assert torch.equal(made[0][0], made[1][0])
    bound = (3 * 9) ** -0.5  # of a group of three channels; torch, too, counts those of a group
    assert made[1][1].abs().max() <= bound and made[0][1].abs().max() <= bound


@pytest.mark.parametrize("gain", [None, 0.7])
def test_orthogonality(gain):
    for model in networks():
        initialise(model, "orthogonal", gain=gain)
        for layer in linear_maps(model):
            for weight in by_group(layer):
                rows = weight.flatten(1).double()
                gram = rows @ rows.T if len(rows) <= len(rows[0]) else rows.T @ rows
                wanted = (2.0 if gain is None else gain**2) * torch.eye(len(gram))
                assert (gram - wanted).abs().max() < 1e-5


def by_group(layer):
    """The weight of each group, (outputs, inputs, ...)."""
    parts = layer.weight.detach().chunk(getattr(layer, "groups", 1))
    return [part.transpose(0, 1) if getattr(layer, "transposed", False) else part for part in parts]


GAINS = {
    "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.01**2)), "tanh": 1.5925, "selu": 1.0, "sigmoid": 1.8462,
    "prelu": math.sqrt(2 / (1 + 0.25**2)), "gelu": 1.5335, "silu": 1.6768,
}  # fmt: skip


@pytest.mark.parametrize("name", GAINS)
def test_gain_by_activation(name):
    model = create_model("gradient_descent", **SMALL, act_layer=name)
    gain = activation_gain(model)
    assert gain == pytest.approx(GAINS[name], rel=1e-3)
    z = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    act = timm.layers.get_act_layer(name)()
    assert (gain * act(z)).square().mean().item() == pytest.approx(1, rel=0.01)
    assert activation_gain(nn.Linear(2, 2)) == 1


class Attending(nn.Module):
    """Attention and an attribute called ``activation`` that is a function, before the activation that counts."""

    def __init__(self):
        super().__init__()
        self.activation = torch.tanh
        self.attention = nn.MultiheadAttention(8, 2)
        self.slopes = nn.PReLU(8, init=0.5)


def test_gain_of_any_model():
    assert activation_gain(Attending()) == pytest.approx(math.sqrt(2 / (1 + 0.5**2)), rel=1e-3)
    assert activation_gain(Attending().slopes.half()) == activation_gain(Attending())
    assert activation_gain(timm.create_model("mlp", act_layer="tanh")) == pytest.approx(GAINS["tanh"], rel=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_transformer_can_be_started(scheme):
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 16, 2, 4, 32, 64)
    x = torch.randn(8, 3, 32, 32)
    initialise(model, scheme, images=x)
    assert model(x).isfinite().all()


@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
def test_he_keeps_the_second_moment_through_depth(act):
    torch.manual_seed(0)
    model = timm.create_model("mlp", hidden=[512] * 12, in_chans=1, img_size=16, act_layer=act)
    initialise(model, "he")
    sizes = []
    layers = linear_maps(model)
    for layer in layers:
        layer.register_forward_hook(lambda layer, x, y: sizes.append(y.square().mean().item()))
    model(torch.randn(256, 1, 16, 16))
    assert max(sizes[1:-1]) < 1.5 * min(sizes[1:-1])


def outputs(model, images):
    found = []
    hooks = [layer.register_forward_hook(lambda layer, x, y: found.append(y.clone())) for layer in linear_maps(model)]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


UNPARAMETRIZED = [name for name in (*NORMS, *PIXEL_NORMS) if name not in WEIGHT_NORMED]


def refused(family, norm):
    return not takes_norm(family, norm)


@pytest.mark.parametrize("family, norm", crossed(LAYERED, UNPARAMETRIZED, without=refused))
def test_unit_variance_after_lsuv(family, norm):
    torch.manual_seed(0)
    model = create_model(**{**SMALL, **LAYERED[family]}, norm=norm)
    x = random_images(16)
    initialise(model, "lsuv", images=x)
    found = outputs(model, x)
    assert len(found) == len(linear_maps(model))
    for output in found:
        assert output.var().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("family, norm", crossed(LAYERED, WEIGHT_NORMED, without=refused))
def test_weight_norm_starts_from_the_data(family, norm):
    torch.manual_seed(0)
    model = create_model(**{**SMALL, **LAYERED[family]}, norm=norm, coefficients="fixed").double()
    x = random_images(32).double()
    initialise(model, images=x)
    normed = [layer for layer in linear_maps(model) if parametrize.is_parametrized(layer)]
    assert len(normed) == len(linear_maps(model)) - 1  # all but the classifier
    for output in outputs(model, x)[:-1]:
        over = (0, 2, 3)
        assert norm == "weight_mean" or output.mean(over).abs().max() < 1e-9  # its norms have the mean
        assert (output.std(over, correction=0) - 1).abs().max() < 1e-9


class Tied(nn.Module):
    """A layer that is called twice, and one of each other kind; ``frozen`` stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.up = weight_norm(nn.ConvTranspose2d(3, 5, 2), dim=1)
        self.whole = weight_norm(nn.Conv2d(5, 5, 1), dim=None)
        self.spectral = spectral_norm(nn.Conv2d(5, 4, 1))
        self.frozen = nn.BatchNorm2d(4).eval()
        self.tokens = weight_norm(nn.Linear(4, 6))

    def forward(self, x):
        x = self.spectral(self.whole(self.up(self.conv(self.conv(x)))))
        return self.tokens(self.frozen(x).flatten(2).transpose(1, 2))


def test_anybodys_weight_norm_starts_from_the_data():
    torch.manual_seed(0)
    model = Tied().double()
    kept = [model.whole.weight.clone(), model.spectral.parametrizations.weight.original.clone()]
    x = torch.randn(16, 3, 6, 6, dtype=torch.float64) * 3 + 1
    initialise(model, images=x)
    first, _, up, *_, tokens = outputs(copy.deepcopy(model), x)
    for output, over in ((first, (0, 2, 3)), (up, (0, 2, 3)), (tokens, (0, 1))):
        assert output.mean(over).abs().max() < 1e-9 and (output.std(over, correction=0) - 1).abs().max() < 1e-9
    now = [model.whole.weight, model.spectral.parametrizations.weight.original]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_only_weight_norm_needs_data():
    assert needs_data(Tied(), "he") and not needs_data(spectral_norm(nn.Linear(3, 3)), "he")
    with pytest.raises(ConfigError, match="norm=weight"):
        initialise(Tied(), "lsuv", images=random_images(4, 3))
    with pytest.raises(ConfigError, match="parametrized"):
        initialise(nn.Sequential(spectral_norm(nn.Conv2d(1, 3, 3))), "lsuv", images=random_images(4))


@pytest.mark.parametrize("scheme", ["default", "lsuv"])
def test_every_module_keeps_its_mode(scheme):
    norm = "weight" if scheme == "default" else "batch"
    model = create_model("heavy_ball", **SMALL, norm=norm).train()
    model.stem.eval()
    before = {name: module.training for name, module in model.named_modules()}
    initialise(model, scheme, images=random_images(8))
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("norm, scheme", crossed(NORMS, [name for name in SCHEMES if name != "lsuv"]))
def test_initial_loss_is_the_entropy_of_the_class_frequencies(norm, scheme):
    torch.manual_seed(0)
    model = create_model("heavy_ball", **SMALL, norm=norm)
    labels = torch.tensor([0] * 50 + [1] * 25 + [2] * 10 + [3] * 5 + list(range(4, 10)) * 2)
    initialise(model, scheme, images=random_images(8), labels=labels, output_bias="frequencies")
    p = labels.bincount() / len(labels)
    loss = F.cross_entropy(model(random_images(len(labels))), labels)
    assert loss.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    loss.backward()
    assert model.head.fc.weight.grad.any()


def test_an_empty_class_stays_possible():
    model = create_model("heavy_ball", **SMALL)
    initialise(model, labels=torch.tensor([1, 2]), output_bias="frequencies")
    assert model.head.fc.bias.isfinite().all()


def test_positive_biases():
    model = create_model("heavy_ball", **SMALL)
    initialise(model, "he", bias=0.1, output_bias="zero")
    hidden = [p for n, p in model.named_parameters() if n.endswith("bias") and not n.startswith("head")]
    assert hidden and all((p == torch.tensor(0.1)).all() for p in hidden)
    assert not model.head.fc.bias.any()


def test_the_same_seed_gives_the_same_weights_and_the_default_none():
    made = []
    for scheme in ("he", "he", "default"):
        torch.manual_seed(3)
        model = create_model("heavy_ball", **SMALL)
        before = model.stem.conv.weight.clone()
        initialise(model, scheme)
        made.append(model.stem.conv.weight)
        assert torch.equal(made[-1], before) == (scheme == "default")
    assert torch.equal(made[0], made[1])


def test_a_run_starts_so():
    config = Train(device="cpu", init=InitOptions("lsuv", output_bias="frequencies"))
    parts = prepare(config)
    labels = parts.data.train.labels
    frequencies = labels.bincount() / len(labels)
    assert torch.allclose(parts.model.head.fc.bias.exp(), frequencies, rtol=1e-5)
    images, _ = next(iter(parts.loader("train", config.batch_size, training=True).batches()))
    assert all(output.var().item() == pytest.approx(1, rel=0.02) for output in outputs(parts.model, images)[:-1])
    with pytest.raises(ConfigError, match="norm=weight"):
        prepare(Train(device="cpu", model=Model(norm="weight"), init=InitOptions("lsuv")))


def test_every_scheme_is_an_option():
    options = Path(__file__).parent.parent / "conf" / "init"
    assert sorted(SCHEMES) == sorted(file.stem for file in options.glob("*.yaml"))


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "nonsense"},
        {"scheme": "lsuv"},
        {"scheme": "lsuv", "images": random_images(4), "norm": "weight"},
        {"output_bias": "nonsense"},
        {"output_bias": "frequencies"},
        {"output_bias": "zero", "num_classes": 0},
        {"output_bias": "frequencies", "labels": torch.tensor([0, 10])},
        {"output_bias": "frequencies", "labels": torch.tensor([-1, 3])},
        {"output_bias": "frequencies", "labels": torch.tensor([], dtype=torch.long)},
        *({"scheme": name, "gain": 0.5, "images": random_images(4)} for name in SCHEMES if name not in GAINED),
    ],
)
def test_bad_requests(options):
    made = {key: options.pop(key) for key in ("norm", "num_classes") if key in options}
    with pytest.raises(ConfigError) as error:
        initialise(create_model("heavy_ball", **SMALL, **made), **options)
    assert "\n" not in str(error.value)
