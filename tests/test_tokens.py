"""Transformers from algorithms: the layer families on tokens and the network around them."""

import pytest
import timm
import torch
from helpers import crossed, some
from sklearn.datasets import load_digits
from torch import nn

import optnet
from optnet.errors import ModelError, OperatorError
from optnet.networks.layers import TOKEN_FAMILIES
from optnet.networks.layers.transformer import Parts
from optnet.networks.rules import NAMES

SMALL = {"img_size": 32, "patch_size": 8, "num_heads": 3, "num_classes": 10}
SUITED = [name for name in optnet.list_algorithms() if optnet.find_algorithm(name).network.unsuited is None]


def network(algorithm="heavy_ball", layer="vit_half", **options):
    return optnet.create_model(algorithm, layer=layer, **{"depth": 3, "embed_dim": 48, **SMALL, **options})


def shaken(model, seed=0):
    """The model with every parameter moved: fresh norms and zeros would hide mistakes."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
    return model


def steps(parts, family, count):
    """The branches F of ``count`` calls of T, made alike for every algorithm."""
    torch.manual_seed(0)
    made = TOKEN_FAMILIES[family](parts, [0.0] * count).layers(optnet.trace("gradient_descent", steps=count))
    layers = [made["T"](optnet.Call("T", k, ("x",), (False,), iteration=k)) for k in range(count)]
    return [shaken(layer.double(), k) for k, layer in enumerate(layers)]


@pytest.mark.parametrize("init_values", [None, 0.5])
@pytest.mark.parametrize("family", TOKEN_FAMILIES)
def test_a_weight_scales_the_branch(family, init_values):
    """The layers fold the weight into their last maps; written out, it multiplies F(x)."""
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for layer in steps(Parts(12, 3, init_values=init_values), family, 2):
        for weight in (torch.tensor(-0.7).double(), torch.linspace(-1, 1, 12).double()):
            assert torch.allclose(layer([x], [weight]), weight * layer([x]), atol=1e-12)


def test_the_splittings_of_a_block():
    """Written out with the branches A and M alone."""
    parts, x = Parts(12, 3), torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    attention, mlp = steps(parts, "vit_half", 2)
    assert isinstance(attention.inner, timm.layers.Attention) and isinstance(mlp.inner, timm.layers.Mlp)
    (vit,) = steps(parts, "vit", 1)
    y = x + vit.steps[0]([x])
    assert torch.allclose(vit([x]), y + vit.last([y]) - x, atol=1e-12)
    (sandwich,) = steps(parts, "vit_sandwich", 1)
    first, middle = sandwich.steps
    y = x + first([x])
    y = y + middle([y])
    assert torch.allclose(sandwich([x]), y + sandwich.last([y]) - x, atol=1e-12)
    whole = sandwich.last.last(sandwich.last.inner(sandwich.last.norm(y)))
    assert torch.allclose(sandwich.last([y]), whole / 2, atol=1e-12)
    (parallel,) = steps(parts, "vit_parallel", 1)
    normed = parallel.norm(x)
    both = parallel.proj(parallel.attn(normed)) + parallel.fc2(parallel.mlp(normed))
    assert torch.allclose(parallel([x]), both, atol=1e-12)


@pytest.mark.parametrize("family", TOKEN_FAMILIES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_heavy_ball_on_tokens(family, per_channel):
    """x_{k+1} = a x_k + b x_{k-1} + s F(x_k) with random a, b, s, one per term or one per channel."""
    parts, count = Parts(12, 3), 4
    layers = steps(parts, family, count)
    torch.manual_seed(0)
    made = TOKEN_FAMILIES[family](parts, [0.0] * count).layers(optnet.trace("heavy_ball", steps=count))
    model = optnet.unroll(
        "heavy_ball", steps=count, reading="residual", operators=made, channels=12, channel_dim=-1,
        per_channel=per_channel, dtype=torch.float64,
    ).double()  # fmt: skip
    for ours, theirs in zip(model.served_by("T").values(), layers, strict=True):
        ours.load_state_dict(theirs.state_dict())
    shaken(model.body.coefficients)
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, now = x, x
    for layer, row in zip(layers, model.program.combines, strict=True):
        weights = model.learned()[row.value].reshape(len(row.terms), -1)
        by_term = dict(zip(row.terms, weights, strict=True))
        call = next(term for term in row.terms if term in model.layers)
        older = [term for term in row.terms if term not in model.layers]
        values = dict(zip(older, [before, now][-len(older) :], strict=True)) | {call: layer([now])}
        before, now = now, sum(weight * values[term] for term, weight in by_term.items())
    assert torch.allclose(model(x), now, atol=1e-12)


DIGITS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 24, "depth": 2}


@pytest.mark.parametrize("algorithm, family", crossed(SUITED, TOKEN_FAMILIES))
@pytest.mark.sampled(12)
def test_every_method_with_every_splitting(algorithm, family):
    """20 steps on the digits: every parameter gets a gradient, and the loss falls."""
    torch.manual_seed(0)
    model = network(algorithm, family, **DIGITS)
    images, digits = load_digits(return_X_y=True)
    x, labels = torch.tensor(images[:64]).float().reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(digits[:64])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.003), []
    dead = {name for name, _ in model.named_parameters()}
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        dead -= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        losses.append(loss.item())
    assert not dead and losses[-1] < losses[0]


@pytest.mark.parametrize("rule, family", crossed(("learnable", "fixed", *NAMES), TOKEN_FAMILIES))
@pytest.mark.sampled(8)
def test_every_rule_starts_at_the_ancestor(rule, family):
    algorithm = "hyper_connections" if rule in ("simplex", "doubly_stochastic") else "heavy_ball"
    torch.manual_seed(0)
    wanted = network(algorithm, family, coefficients="fixed").eval()
    model = network(algorithm, family, coefficients=rule).eval()
    missing = model.load_state_dict(wanted.state_dict(), strict=False).missing_keys
    assert all("coefficients" in name for name in missing)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model(x), wanted(x), atol=1e-5)


@pytest.mark.parametrize("algorithm", ["heavy_ball", "nesterov", "nesterov_dense", "merge_and_run", "admm"])
def test_intermediates_and_pruning(algorithm):
    model = shaken(network(algorithm)).eval()
    x = torch.randn(2, 3, 32, 32)
    final, maps = model.forward_intermediates(x)
    assert [tuple(one.shape[2:]) for one in maps] == [(4, 4)] * 3
    assert [one.shape[1] for one in maps] == [info["num_chs"] for info in model.feature_info]
    assert torch.equal(model.forward_head(final), model(x))
    tokens = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    assert tokens[0][0].shape[:2] == (2, 16) and tokens[0][1].shape[:2] == (2, 1)
    early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[1])
    before = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([1]) == [1]
    assert torch.equal(model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], maps[1])
    assert sum(p.numel() for p in model.parameters()) < before and model.forward_features(x).shape[1] == 17


def test_the_read_iterate_is_the_output_of_a_block():
    """Two blocks of heavy ball: the first one's output is x_2 of four half-steps."""
    model = shaken(network(depth=2)).eval()
    x = torch.randn(1, 3, 32, 32)
    shorter = network(depth=1).eval()
    state = {name: value for name, value in model.state_dict().items() if name in shorter.state_dict()}
    shorter.load_state_dict(state)
    found = model.forward_intermediates(x, indices=[0], intermediates_only=True, output_fmt="NLC")[0]
    assert torch.equal(found, shorter.forward_intermediates(x, intermediates_only=True, output_fmt="NLC")[0])


@pytest.mark.parametrize("options", [
    {"attn_layer": "rope", "pos_embed": "none", "reg_tokens": 2}, {"attn_layer": "diff", "num_heads": 2},
    {"qk_norm": True, "scale_attn_norm": True, "init_values": 0.1}, {"mlp_layer": "swiglu", "norm_layer": "rmsnorm"},
    {"post_norm": True}, {"num_parallel": 2}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "map"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("family", some(TOKEN_FAMILIES, "vit_half"))
def test_parts_of_timm(family, options):
    """Every parameter gets a gradient, and other sizes of images work."""
    torch.manual_seed(0)
    if family == "vit_parallel" and options.keys() & {"post_norm", "num_parallel"}:
        with pytest.raises(ModelError, match=r"vit_parallel"):
            network(layer=family, depth=1, **options)
        return
    model = shaken(network(layer=family, depth=1, **options))
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.set_input_size((48, 32))
    assert model(torch.randn(1, 3, 48, 32)).shape == (1, 10)


def test_rotary_attention_sees_places():
    """Without other positions, plain attention gives the same logits for permuted patches."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    moved = torch.cat([x[..., 8:], x[..., :8]], -1)
    for attention, same in (("attn", True), ("rope", False)):
        model = shaken(network(attn_layer=attention, pos_embed="none")).eval()
        assert torch.allclose(model(x), model(moved), atol=1e-4) == same


def test_sizes_change():
    model = network(dynamic_img_size=True).eval()
    assert model(torch.randn(1, 3, 48, 40)).shape == (1, 10)
    fixed = network().eval()
    fixed.set_input_size((64, 64))
    assert fixed(torch.randn(1, 3, 64, 64)).shape == (1, 10) and fixed.pos_embed.shape[1] == 65
    fixed.reset_classifier(7, "avg")
    assert fixed(torch.randn(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("family", some(TOKEN_FAMILIES, "vit_half"))
def test_compiles_exports_and_runs_as_onnx(family, tmp_path):
    import onnxruntime

    model, x = shaken(network(layer=family, depth=1)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
        for made in (
            torch.jit.script(model), torch.export.export(model, (x,)).module(),
            torch.compile(model, fullgraph=True, backend="aot_eager"),
        ):  # fmt: skip
            assert torch.allclose(made(x), wanted, atol=1e-5)
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    (got,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(got), wanted, atol=1e-4)


def test_features_only():
    """As of timm's own: the output of each of the last blocks, also recomputed."""
    model = timm.create_model("hbvit_cifar", features_only=True, out_indices=(1, 6), depth=7, embed_dim=24, num_heads=2)
    x = torch.randn(2, 3, 32, 32)
    wanted = model(x)
    assert [tuple(one.shape) for one in wanted] == [(2, 24, 8, 8)] * 2 and model.feature_info.channels() == [24, 24]
    model.set_grad_checkpointing(True)
    got = model(x)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    got[0].sum().backward()


def test_groups_and_decay():
    model = network()
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert {name for names in groups.values() for name in names} == {name for name, _ in model.named_parameters()}
    assert {"pos_embed", "cls_token"} < model.no_weight_decay()
    assert {name for name, _ in model.named_parameters() if "coefficients" in name} < model.no_weight_decay()


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model, x = shaken(network()), torch.randn(2, 3, 32, 32)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("options, said", [
    ({"attn_layer": "linear"}, "attn_layer=linear is unknown"),
    ({"mlp_layer": "conv"}, "mlp_layer=conv is unknown"),
    ({"num_heads": 5}, "num_heads=5 must divide the 48 channels"),
    ({"stem": "imagenet"}, "option=stem is unknown"),
    ({"act_layer": "nothing"}, "act_layer=nothing is unknown"),
    ({"norm_layer": "nothing"}, "norm_layer=nothing is unknown"),
    ({"fuse_out_proj": True}, "fuse_out_proj=true needs attention and the MLP at one point"),
    ({"layer": "vit_parallel", "num_parallel": 2}, "layer=vit_parallel has neither post_norm=true nor num_parallel"),
    ({"attn_layer": "rope", "num_heads": 8}, "attn_layer=rope needs 4, 8, 12, ... channels a head, not 6"),
    ({"attn_layer": "rope", "dynamic_img_size": True}, "attn_layer=rope needs all patches of one size"),
    ({"depth": 0}, "depth=0 must be a whole number of at least 1"),
    ({"per_channel": True, "coefficients": "dynamic"}, "per_channel=true does not go with coefficients=dynamic"),
])  # fmt: skip
def test_refusals(options, said):
    with pytest.raises(ModelError, match=said) as caught:
        network(**options).eval()(torch.randn(1, 3, 32, 32))
    assert "\n" not in str(caught.value)


def test_channel_dim_is_first_or_last():
    with pytest.raises(OperatorError, match="channel_dim=2 must be 1, or -1"):
        optnet.unroll("heavy_ball", steps=2, operators={"T": nn.Identity()}, channel_dim=2)
