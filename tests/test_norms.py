"""Norms: every family with every norm, in every place; a sum's weight is folded and alive; nothing is overwritten."""

import copy

import pytest
import torch
from helpers import LAYERED, OWN, SMALL, crossed, random_images, settle, takes_norm, weights_of_sums
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import nn

from optnet import ModelError, create_model
from optnet.networks import convert
from optnet.networks.layers import FAMILIES, NORMS, PIXEL_NORMS
from optnet.networks.layers.convolution import Conv2d
from optnet.networks.layers.norms import WEIGHT_NORMED, BatchNorm2d, GroupNorm, MeanOnlyBatchNorm2d

X = random_images(8).double()
PLACED = [
    *crossed(LAYERED, NORMS, [None], without=lambda family, norm, _: not takes_norm(family, norm)),
    *crossed(["convnext"], PIXEL_NORMS, [None]),
    *crossed(("plain", "basic", "bottleneck", "two streams"), NORMS, ["before"]),
]


def build(family, norm, place=None, **options):
    torch.manual_seed(0)
    chosen = {**SMALL, **LAYERED[family], "norm": norm, "norm_place": place, **options}
    return settle(create_model(**chosen, dtype=torch.float64))


@pytest.mark.parametrize("family, norm, place", PLACED)
@pytest.mark.sampled(6)
def test_every_family_with_every_norm(family, norm, place):
    model = build(family, norm, place).train()
    assert model(X).shape == (8, 10)
    loss = model(X).square().sum()
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(norm in type(m).__name__.lower() for m in model.modules()) or norm in ("none", "weight", "weight_mean")
    fixed = build(family, norm, place, coefficients="fixed").train()
    fixed.load_state_dict(model.state_dict(), strict=False)
    assert torch.allclose(fixed(X), model(X), rtol=1e-9, atol=1e-9)
    meta = create_model(**{**SMALL, **LAYERED[family]}, norm=norm, norm_place=place, device="meta")
    assert list(meta.state_dict()) == list(model.state_dict())
    assert all(p.is_meta for p in meta.state_dict().values())


@pytest.mark.parametrize("family, norm, place", PLACED)
@pytest.mark.sampled(6)
def test_no_coefficient_is_dead_with_any_norm(family, norm, place):
    model = build(family, norm, place).eval()
    with torch.no_grad():
        before = model(X)
        for name, weight in weights_of_sums(model):
            kept = weight.clone()
            weight += 0.1
            assert (model(X) - before).norm() > 1e-5 * before.norm(), name
            weight.copy_(kept)


@pytest.mark.parametrize("family, norm, place", PLACED)
@pytest.mark.sampled(6)
def test_nothing_that_is_still_needed_is_overwritten(family, norm, place):
    model = build(family, norm, place).train()
    careful = copy.deepcopy(model)
    for module in careful.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    again = build(family, norm, place, memory="checkpoint").train()
    again.load_state_dict(model.state_dict())
    results = []
    for network in (model, careful, again):
        network(X).square().sum().backward()
        results.append({name: p.grad for name, p in network.named_parameters()})
        results[-1].update(network.named_buffers())
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(other[name], value), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(), (12,)])
@pytest.mark.parametrize("norm", [name for name, layer in NORMS.items() if layer is not None])
def test_a_scale_is_a_factor_of_the_output(norm, shape, training):
    layer = NORMS[norm](12, dtype=torch.float64).train(training)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    scale, x = torch.randn(shape, dtype=torch.float64), torch.randn(4, 12, 5, 5, dtype=torch.float64)
    wanted = scale.reshape(-1, 1, 1) * copy.deepcopy(layer)(x)
    assert torch.allclose(layer(x, scale), wanted, rtol=1e-12)
    conv = Conv2d(12, 12, 3).double()
    assert torch.allclose(conv(x, scale), scale.reshape(-1, 1, 1) * conv(x), rtol=1e-10, atol=1e-12)


def test_mean_only_batch_norm_takes_the_mean_and_nothing_else():
    layer = MeanOnlyBatchNorm2d(3, momentum=0.5)
    x = 5 * torch.randn(16, 3, 8, 8) + torch.tensor([1.0, 2.0, 3.0]).reshape(-1, 1, 1)
    y = layer(x)
    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(y.std((0, 2, 3)), x.std((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(layer.running_mean, x.mean((0, 2, 3)) / 2) and layer.num_batches_tracked == 1
    assert torch.allclose(layer.eval()(x), x - layer.running_mean.reshape(-1, 1, 1))


@pytest.mark.parametrize("chs, groups", [(4, 1), (16, 1), (17, 1), (32, 2), (36, 2), (64, 4)])
def test_groups_have_16_channels_or_few_more(chs, groups):
    assert GroupNorm(chs).num_groups == groups


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.sampled(2)
def test_pytorch_accepts_every_norm(norm):
    model = build("basic", norm, blocks=(1, 2)).eval()
    wanted = model(X)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(X), wanted)
    assert torch.allclose(torch.export.export(model, (X,)).module()(X), wanted)
    if norm not in WEIGHT_NORMED:  # TorchScript does not know parametrizations
        assert torch.allclose(torch.jit.script(model)(X), wanted)
    scales = [name for name in model.no_weight_decay() if ".coefficients." not in name]
    assert bool(scales) == (norm in WEIGHT_NORMED)


@pytest.mark.parametrize("layer", [name for name, family in FAMILIES.items() if family.places == ("before",)])
def test_a_place_that_the_family_does_not_have(layer):
    algorithm = "nesterov_dense" if layer.startswith("dense") else "heavy_ball"
    with pytest.raises(ModelError, match="norm_place=after") as error:
        create_model(algorithm, **SMALL, layer=layer, norm_place="after")
    assert "\n" not in str(error.value)
    create_model(algorithm, **SMALL, layer=layer, norm_place="before")


@pytest.mark.parametrize("layer, norm", crossed(FAMILIES, [*NORMS, *PIXEL_NORMS]))
@pytest.mark.sampled(3)
def test_a_norm_that_the_family_does_not_have(layer, norm):
    options = {**SMALL, "layer": layer, "norm": norm, "device": "meta"}
    algorithm = "nesterov_dense" if layer.startswith("dense") else "heavy_ball"
    if norm in FAMILIES[layer].norms:
        create_model(algorithm, **options)
        return
    with pytest.raises(ModelError, match=f"norm={norm} does not go with this layer; it takes") as error:
        create_model(algorithm, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"norm": "nonsense"}, {"norm_place": "nowhere"}])
def test_bad_options(options):
    with pytest.raises(ModelError, match=r"unknown; (it is one of|did you mean)"):
        create_model("heavy_ball", **SMALL, **options)


def test_only_batch_norms_convert_to_timm():
    options = {"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "stem": "imagenet", "norm": "group"}
    with pytest.raises(ModelError, match="norm=group"):
        convert.to_timm(create_model("heavy_ball", **options))


TAKES_ITS_PLACE = {
    "synchronised": convert_sync_batchnorm,
    "synchronised by torch": nn.SyncBatchNorm.convert_sync_batchnorm,
    "frozen": freeze_batch_norm_2d,
}


@pytest.mark.parametrize(
    "family, per_channel, how",
    crossed(["basic", "bottleneck", "preact_basic", "dense", "two streams"], [False, True], TAKES_ITS_PLACE),
)
def test_norms_that_others_put_in_their_place_compute_the_same(family, per_channel, how):
    model = build(family, "batch", coefficient_init="algorithm", per_channel=per_channel)
    before, state = model(X), {name: value.clone() for name, value in model.state_dict().items()}
    model = TAKES_ITS_PLACE[how](model)
    assert not any(type(module) is BatchNorm2d for module in model.modules())
    assert state.keys() - {name for name in state if "num_batches" in name} <= model.state_dict().keys()
    torch.testing.assert_close(model(X), before)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}])
def test_our_batch_norm_is_torchs(options):
    ours, theirs = BatchNorm2d(3, **options).double(), nn.BatchNorm2d(3, **options).double()
    x = torch.randn(3, 4, 3, 5, 5, dtype=torch.float64)
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x[0], torch.tensor(2.0)), 2 * theirs(x[0]))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_activations_with_parameters_are_where_the_model_is():
    made = create_model("heavy_ball", **SMALL, act_layer="prelu", dtype=torch.float64)
    assert {p.dtype for p in made.parameters()} == {torch.float64} and made(X).shape == (8, 10)
    assert all(p.is_meta for p in create_model("heavy_ball", **SMALL, act_layer="prelu", device="meta").parameters())


@pytest.mark.parametrize("layer", ["dense", "dense_bc"])
def test_dense_layers_refuse_a_second_operator_on_the_start(layer):
    with pytest.raises(ModelError, match="for a starting point"):
        create_model(OWN[4], **SMALL, layer=layer, reading="map")
