"""The layers of ConvNeXt: the equation, stochastic depth, where a weight goes, stems, heads, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import EVERY, SMALL, crossed, random_images, settle, weights_of_sums
from timm.layers import DropPath
from torch import nn

import optnet
from optnet import ModelError, create_model
from optnet.networks.ends import STEMS
from optnet.networks.layers import FAMILIES

VARIANTS = {
    "first version": {},
    "1x1 convolutions": {"conv_mlp": True},
    "second version": {"use_grn": True},
    "second version, 1x1 convolutions": {"use_grn": True, "conv_mlp": True},
    "no layer scale": {"ls_init_value": 0.0},
    "both": {"use_grn": True, "ls_init_value": 0.1},
    "kernels, norm first": {"kernel_sizes": [5, 3], "norm": "rms", "head_norm_first": True},
    "hidden layer": {"head_hidden_size": 5, "norm": "simple", "act_layer": "silu"},
}
X = random_images(3).double()


def build(variant="first version", **options):
    torch.manual_seed(0)
    chosen = {"algorithm": "heavy_ball", **SMALL, "layer": "convnext", **VARIANTS[variant], **options}
    return settle(create_model(**chosen, dtype=torch.float64))


def branch(layer, x, weight=1.0):
    """F of Liu et al. 2022, and of Woo et al. 2023 where there is a global response norm, written out."""
    x = F.conv2d(
        x, layer.conv_dw.weight, layer.conv_dw.bias, padding=layer.conv_dw.kernel_size[0] // 2, groups=x.shape[1]
    )
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    x = (x - mean) / (variance + 1e-6).sqrt()
    x = x * layer.norm.weight.reshape(-1, 1, 1) + layer.norm.bias.reshape(-1, 1, 1)
    one, two = layer.mlp.fc1, layer.mlp.fc2
    x = F.gelu(torch.einsum("oi,bihw->bohw", one.weight.flatten(1), x) + one.bias.reshape(-1, 1, 1))
    if layer.use_grn:
        size = x.square().sum((2, 3), keepdim=True).sqrt()
        ratio = size / (size.mean(1, keepdim=True) + 1e-6)
        x = x + layer.mlp.grn.weight.reshape(-1, 1, 1) * x * ratio + layer.mlp.grn.bias.reshape(-1, 1, 1)
    x = torch.einsum("oi,bihw->bohw", two.weight.flatten(1), x) + two.bias.reshape(-1, 1, 1)
    return weight * x * (1.0 if layer.gamma is None else layer.gamma.reshape(-1, 1, 1))


@pytest.mark.parametrize("variant", list(VARIANTS)[:6])
def test_heavy_ball_written_out(variant):
    model = build(variant, coefficient_init="algorithm", constants={"beta": 0.4, "step": 0.7})
    x = model.stem(X)
    for stage in model.stages:
        x = previous = stage.transitions[0](x)
        for name in ("T_0", "T_1", "T_2"):
            if hasattr(stage.unrolled.body, name):
                layer = stage.unrolled.body.get_submodule(name)
                x, previous = x + branch(layer, x, 0.7) + 0.4 * (x - previous), x
    torch.testing.assert_close(model(X), model.head(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.sampled(5)
def test_a_weight_scales_the_layers_last_map(variant, per_channel):
    """No coefficient is dead, and none costs a product of activations: F with a weight calls as many kernels as F."""
    model = build(variant, per_channel=per_channel)
    with torch.no_grad():
        before = model(X)
        for name, weight in weights_of_sums(model):
            kept = weight.clone()
            weight += 0.1
            assert (model(X) - before).norm() > 1e-4 * before.norm(), name
            weight.copy_(kept)
    layer = model.stages[1].unrolled.body.T_0
    x, weight = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(layer([x], [weight]), 0.3 * layer([x]), rtol=1e-12, atol=1e-12)
    with torch.profiler.profile(record_shapes=True) as profile:
        layer([x], [weight])
    large = [event for event in profile.events() if event.name == "aten::mul" and [2, 8, 6, 6] in event.input_shapes]
    assert len(large) == (layer.gamma is not None)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.sampled(1)
def test_scripts_copies_and_trains(variant):
    model = build(variant)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(X), model(X))
    torch.testing.assert_close(copy.deepcopy(model)(X), model(X))
    model.train()(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.sampled(1)
def test_pytorch_accepts_them(variant):
    model = build(variant, blocks=(1, 1), drop_path_rate=0.1)
    with torch.no_grad():
        wanted = model(X)
        torch._dynamo.reset()
        for made in (
            torch.compile(model, fullgraph=True, backend="eager"),
            torch.export.export(model, (X,)).module(),
            torch.fx.symbolic_trace(model),
        ):
            torch.testing.assert_close(made(X), wanted)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(X), wanted)


def test_stochastic_depth_grows_with_depth():
    """As timm's: linear over all layers, from 0 to the rate, however the stages are cut."""
    model = build(drop_path_rate=0.4, blocks=(2, 3))
    rates = [m.drop_path.drop_prob for m in model.modules() if isinstance(getattr(m, "drop_path", None), DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    projected = build(drop_path_rate=0.4, blocks=(2, 3), transition="project")
    assert [m.drop_prob for m in projected.modules() if isinstance(m, DropPath)] == pytest.approx(rates)
    torch.testing.assert_close(model(X), build(blocks=(2, 3))(X))
    torch.manual_seed(1)
    one = model.train()(X)
    assert not torch.allclose(one, model(X))
    torch.manual_seed(1)
    torch.testing.assert_close(model(X), one)
    assert not [m for m in build().modules() if isinstance(m, DropPath)]


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.sampled(4)
def test_every_algorithm_runs_on_them(algorithm):
    model = build(algorithm=algorithm).train()
    model(X).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("layer, stem", crossed(FAMILIES, STEMS))
def test_every_stem_with_every_family(layer, stem):
    algorithm = "nesterov_dense" if layer.startswith("dense") else "heavy_ball"
    model = create_model(algorithm, **SMALL, layer=layer, stem=stem).eval()
    x = random_images(2, size=32)
    assert model.stem(x).shape[2:] == (32 // STEMS[stem],) * 2 and model(x).shape == (2, 10)
    assert model.feature_info[0]["reduction"] == STEMS[stem]
    assert [f.shape[2] for f in model.forward_intermediates(x, intermediates_only=True)] == [
        32 // info["reduction"] for info in model.feature_info
    ]


REFUSED = {
    "kernel_sizes=.* does not go": {"layer": "basic", "kernel_sizes": [3, 5]},
    "use_grn=True": {"layer": "plain", "use_grn": True},
    "conv_mlp=True": {"layer": "bottleneck", "conv_mlp": True},
    "drop_path_rate=0.1": {"layer": "preact_basic", "drop_path_rate": 0.1},
    "ls_init_value=0.1": {"layer": "basic", "ls_init_value": 0.1},
    "head_norm_first=True": {"layer": "basic", "head_norm_first": True},
    "head_hidden_size=3 does not go with layer": {"layer": "basic", "head_hidden_size": 3},
    "head_hidden_size=3 does not go with head": {"layer": "convnext", "head_hidden_size": 3, "head_norm_first": True},
    "kernel_sizes=.* one entry": {"layer": "convnext", "kernel_sizes": [3]},
    "kernel_sizes=.* odd": {"layer": "convnext", "kernel_sizes": [3, 4]},
    "kernel_sizes=7": {"layer": "convnext", "kernel_sizes": 7},
    "proj_drop_rate": {"layer": "convnext", "proj_drop_rate": 0.1},
    "global_pool='catavgmax'": {"layer": "convnext", "global_pool": "catavgmax"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_options_that_do_not_go_with_the_layers(said):
    with pytest.raises(ModelError, match=said) as error:
        create_model("heavy_ball", **SMALL, **REFUSED[said])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["first version", "kernels, norm first", "hidden layer"])
def test_the_head_is_timms(variant):
    model = build(variant)
    assert model.get_classifier() is model.head.fc and model.head_hidden_size == model.head.num_features
    features = model.forward_features(X)
    assert model.forward_head(features, pre_logits=True).shape == (3, model.head_hidden_size)
    model.reset_classifier(4)
    assert model(X).shape == (3, 4)
    model.reset_classifier(0, "")
    assert model(X).ndim == 4
    pruned = build(variant)
    pruned.prune_intermediate_layers(1)
    assert pruned(X).shape == (3, 8, 6, 6) and isinstance(pruned.head.fc, nn.Identity)


def test_a_checkpoint_rebuilds_it():
    model = build("kernels, norm first", drop_path_rate=0.1)
    again = optnet.networks.zoo.build_network(
        programs=model.programs_json(), **{**SMALL, **VARIANTS["kernels, norm first"]}, layer="convnext",
        dtype=torch.float64,
    )  # fmt: skip
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(X), model(X))
