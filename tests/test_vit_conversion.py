"""timm's vision transformers and the equal networks on tokens: conversion both ways, and what it refuses."""

import copy

import pytest
import timm
import torch
from timm.layers import AttentionRope, DropPath, GatedMlp, LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from vits import BLOCKS, SMALL, SPECIAL, equal, far, images, outputs, shaken, vit

import optnet
from optnet import Iterate, ModelError, Operator, TokenNetwork
from optnet.networks import convert, taps


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.sampled(13)
def test_conversion_both_ways(name):
    theirs = vit(name)
    before = copy.deepcopy(theirs.state_dict())
    ours = convert.from_timm(theirs)
    assert isinstance(ours, TokenNetwork) and ours.training and theirs.training
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())
    for train in (False, True):
        got, wanted = outputs((ours, theirs), train)
        assert torch.equal(got, wanted) if name in BLOCKS else far(got, wanted) < 1e-6
    back = convert.to_timm(ours)
    assert type(back) is VisionTransformer and back.training and equal(back, theirs)
    for train in (False, True):
        assert torch.equal(*outputs((back, theirs), train))


@pytest.mark.parametrize("name", ["plain", "layer scales", "parallel branches", "norms behind", "SwiGLU"])
@pytest.mark.sampled(2)
def test_whole_blocks(name):
    theirs = vit(name)
    ours = convert.from_timm(theirs, layer="vit")
    for train in (False, True):
        assert far(*outputs((ours, theirs), train)) < 1e-6
    assert equal(convert.to_timm(ours), theirs)


STEPS = [
    ("plain", "vit_half"), ("layer scales", "vit"), ("in parallel, biases", None), ("in parallel, fused", None),
    ("parallel branches", "vit_half"), ("norms behind", "vit"), ("differential attention", "vit_half"),
]  # fmt: skip


@pytest.mark.parametrize("name, layer", STEPS)
@pytest.mark.sampled(3)
def test_a_step_of_training_is_equal(name, layer):
    """Every parameter after a step of SGD in float64, from equal parameters: also the gradients are equal."""
    theirs = vit(name, drop_path_rate=0.0, attn_drop_rate=0.0).double()
    ours = convert.from_timm(theirs, **({"layer": layer} if layer else {}), coefficients="fixed")
    before = copy.deepcopy(theirs.state_dict())
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(images(model)), torch.arange(3)).backward()
        optimizer.step()
    wanted, got = theirs.state_dict(), convert.to_timm(ours).state_dict()
    for key, value in wanted.items():
        assert far(got[key], value) < 1e-9, key
        assert not torch.equal(value, before[key]) or "lambda" in key, key


def test_attention_and_mlp_by_name():
    """A method with the two operators A and M: the k-th call of each is of the k-th block."""

    @optnet.algorithm()
    def alternating(A: Operator, M: Operator, x: Iterate, steps: int, *, beta: float = 0.0) -> Iterate:
        """x_{k+1} = M(A(x_k)) + beta (x_k - x_{k-1})"""
        previous = x
        for _ in range(steps):
            x, previous = M(A(x)) + beta * (x - previous), x
        return x

    theirs = vit("parallel branches")
    ours = convert.from_timm(theirs, algorithm=alternating, layer="vit_parallel")
    assert far(*outputs((ours, theirs))) < 1e-6
    assert equal(convert.to_timm(ours), theirs)


EXACT = ("gradient_descent", "nesterov", "momentum", "linear_multistep", "hyper_connections", "lie_trotter_momentum")


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.sampled(3)
def test_methods_that_are_the_ancestor(algorithm):
    """With a velocity and in two streams too: there the weights that make it timm's are other ones than 0 and 1."""
    theirs = vit()
    ours = convert.from_timm(theirs, algorithm=algorithm)
    assert far(*outputs((ours, theirs))) < 1e-6 and equal(convert.to_timm(ours), theirs)
    [p for name, p in ours.named_parameters() if "coefficients" in name][-1].data[0] += 0.125
    with pytest.raises(ModelError, match="only networks at their ancestor's coefficients"):
        convert.to_timm(ours)


def test_distilled():
    theirs = shaken(VisionTransformerDistilled(**SMALL, drop_path_rate=0.2, dynamic_img_size=True))
    ours = convert.from_timm(theirs)
    for train in (False, True):
        assert torch.equal(*outputs((ours, theirs), train))
    assert "dist_token" in ours.no_weight_decay()
    groups = timm.models.group_parameters(ours, ours.group_matcher())
    assert {name for names in groups.values() for name in names} == {name for name, _ in ours.named_parameters()}
    ours.set_distilled_training()
    back = convert.to_timm(ours)
    assert equal(back, theirs) and type(back) is VisionTransformerDistilled
    for one, other in zip(back.train()(images(back)), ours.eval().train()(images(ours)), strict=True):
        assert one.shape == other.shape == (3, 7)
    ours.reset_classifier(5)
    assert ours.eval()(images(ours)).shape == (3, 5)
    with pytest.warns(FutureWarning):
        assert torch.allclose(torch.jit.script(ours)(images(ours)), ours(images(ours)), atol=1e-6)


def test_momentum_on_a_converted_transformer():
    theirs = vit()
    ours = convert.from_timm(theirs, constants={"beta": 0.5})
    plain, moving = outputs((theirs, ours))
    assert far(moving, plain) > 1e-2
    with pytest.raises(ModelError, match=r"the coefficient of x in stages.0.unrolled x2 is -0\.5, not timm's 0"):
        convert.to_timm(ours)


def test_what_was_changed_after_construction_converts():
    theirs = vit("any size")
    theirs.reset_classifier(4, "avg")
    theirs.set_input_size((48, 40), (4, 8))
    ours = convert.from_timm(shaken(theirs))
    assert torch.equal(*outputs((ours, theirs))) and ours.patch_embed.img_size == (48, 40)
    ours.reset_classifier(9, "token")
    ours.set_input_size((24, 24))
    back = convert.to_timm(ours)
    assert torch.equal(*outputs((back, ours))) and back.num_classes == 9


@pytest.mark.parametrize("options", [
    {"layer": "vit_half", "post_norm": True, "init_values": 0.3, "algorithm": "nesterov"}, {"layer": "vit_parallel"},
    {"layer": "vit", "num_parallel": 2, "norm_layer": "rmsnorm", "norm_eps": 1e-3},
    {"layer": "vit_parallel", "attn_layer": "diff", "fuse_out_proj": True},
])  # fmt: skip
@pytest.mark.sampled(2)
def test_our_own_networks_convert(options):
    ours = optnet.create_model(**{"algorithm": "heavy_ball", **SMALL, **options})
    theirs = convert.to_timm(ours)
    for train in (False, True):
        assert far(*outputs((theirs, ours), train)) < 1e-6
    assert equal(convert.to_timm(convert.from_timm(theirs)), theirs)


def test_a_pruned_network_converts():
    theirs = vit(depth=3)
    ours = convert.from_timm(theirs)
    for model in (theirs, ours):
        model.prune_intermediate_layers([1])
    back = convert.to_timm(ours)
    assert len(back.blocks) == 2 and equal(back, theirs) and torch.equal(*outputs((back, theirs)))


def test_dtypes_and_descriptions():
    theirs = timm.create_model("test_vit2", pretrained=False, num_classes=7, img_size=64).to(torch.bfloat16)
    ours = convert.from_timm(theirs)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.pretrained_cfg["classifier"] == "head" and ours.pretrained_cfg["mean"] == theirs.pretrained_cfg["mean"]
    wanted = timm.data.resolve_model_data_config(theirs)
    assert timm.data.resolve_model_data_config(ours) == wanted
    assert timm.data.resolve_model_data_config(convert.to_timm(ours)) == wanted


# what is refused


class Changed(VisionTransformer):
    pass


class MyBlock(Block):
    pass


class MyNorm(LayerNorm):
    pass


class MyAct(nn.SiLU):
    pass


def with_attribute(module, name, value):
    model = vit()
    setattr(model.get_submodule(module), name, value)
    return model


REFUSED = {
    "other blocks": (lambda: vit(block_fn=MyBlock), "VisionTransformer's blocks are of MyBlock"),
    "another class": (lambda: Changed(**SMALL), "Changed is no vision transformer that optnet converts"),
    "hybrid": (lambda: timm.create_model("vit_tiny_r_s16_p8_224"), "patch embedding is a HybridEmbed"),
    "BEiT": (lambda: timm.create_model("beit_base_patch16_224", depth=1, embed_dim=48), "Beit is no ResNet"),
    "EVA": (lambda: timm.create_model("eva02_tiny_patch14_224", depth=1), "Eva is no ResNet"),
    "NaFlex": (lambda: timm.create_model("naflexvit_base_patch16_gap", depth=1), "NaFlexVit is no ResNet"),
    "ours": (lambda: convert.from_timm(vit()), "TokenNetwork is no vision transformer that optnet converts"),
    "no blocks": (lambda: vit(depth=0), "VisionTransformer has no blocks"),
    "no weights": (lambda: vit().to("meta"), "on the meta device"),
    "gated attention": (
        lambda: with_attribute("blocks.0.attn", "gate", nn.Linear(48, 48)),
        "no counterpart of the weights' blocks.0.attn.gate",
    ),
    "another attention": (lambda: vit(attn_layer=AttentionRope), "attention is a AttentionRope"),
    "another MLP": (lambda: vit(mlp_layer=GatedMlp), "MLP is a GatedMlp"),
    "another norm": (lambda: vit(norm_layer=MyNorm), "norm is a MyNorm"),
    "another activation": (lambda: vit(act_layer=MyAct), "activation is a MyAct"),
    "one block's activation": (lambda: with_attribute("blocks.1.mlp", "act", nn.ReLU()), "1 differ in act_layer"),
    "dropout somewhere": (lambda: with_attribute("blocks.1.mlp.drop1", "p", 0.3), "drop at random in other places"),
    "stochastic depth": (
        lambda: with_attribute("blocks.0", "drop_path2", DropPath(0.3)), "drop at random in other places",
    ),
    "dropout in parallel": (
        lambda: vit("in parallel", proj_drop_rate=0.1), "drop at random in other places or at other rates",
    ),
    "one block's heads": (lambda: with_attribute("blocks.1.attn", "num_heads", 6), "1 differ in num_heads"),
    "a norm's constant": (lambda: with_attribute("norm", "eps", 0.1), "have different outputs"),
    "a forward of its own": (lambda: with_attribute("", "forward_head", lambda x: x.sum(1)), "have different outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.sampled(12)
def test_what_from_timm_refuses(name):
    make, said = REFUSED[name]
    with pytest.raises(ModelError) as error:
        convert.from_timm(make())
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 240


@pytest.mark.parametrize("options, said", [
    ({"nonsense": 1}, "option=nonsense is unknown"),
    ({"num_classes": 3}, "head.weight is 7x48, not 3x48"),
    ({"in_chans": 1}, "leave in_chans and num_classes"),
    ({"layer": "vit_parallel"}, "no counterpart of the weights' blocks.0.norm1.weight"),
    ({"layer": "vit_sandwich"}, "no counterpart of the weights' blocks.0.norm1.weight"),
    ({"depth": 3}, "no counterpart of this network's stages.0"),
])  # fmt: skip
@pytest.mark.sampled(3)
def test_options_that_the_weights_do_not_fit(options, said):
    with pytest.raises(ModelError) as error:
        convert.from_timm(vit(), **options)
    assert said in str(error.value) and "\n" not in str(error.value)


OWN = {
    "sandwich": ({"layer": "vit_sandwich"}, "timm has no vision transformer with blocks like this network's"),
    "in parallel, gated": ({"layer": "vit_parallel", "mlp_layer": "swiglu"}, "blocks like this network's"),
    "differential, two biases": ({"layer": "vit_parallel", "attn_layer": "diff"}, "blocks like this network's"),
    "rotary positions": ({"attn_layer": "rope", "num_heads": 3}, "blocks like this network's"),
    "norms behind branches": ({"num_parallel": 2, "post_norm": True}, "blocks like this network's"),
    "two streams": ({"algorithm": "merge_and_run"}, "the coefficient of"),
    "several iterates": ({"algorithm": "nesterov_dense"}, "the coefficient of"),
    "dynamic": ({"coefficients": "dynamic"}, "coefficients=dynamic"),
    "dropout in parallel": ({"layer": "vit_parallel", "proj_drop_rate": 0.1}, "drop at random in other places"),
    "half a block": ({"prune": 1}, "blocks like this network's"),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.sampled(5)
def test_what_to_timm_refuses(name):
    options, said = OWN[name]
    given = {"algorithm": "heavy_ball", **SMALL, **options}
    prune = given.pop("prune", None)
    model = optnet.create_model(layer=given.pop("layer", "vit_half"), **given)
    if prune:
        taps.prune(model.stages[0].unrolled, next(model.stages[0].unrolled.program.combines).value)
    with pytest.raises(ModelError) as error:
        convert.to_timm(model)
    assert said in str(error.value) and "\n" not in str(error.value)


# all of timm's


NAMES = [name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module)]


def test_timm_has_as_many_as_when_this_was_written():
    assert len(NAMES) >= 179


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_entry_point_converts(name):
    """At depth 2, width 48 and 112 pixels, from their own patches, tokens, pooling, norms and blocks."""
    torch.manual_seed(0)
    theirs = shaken(timm.create_model(name, depth=2, embed_dim=48, num_heads=3, img_size=112, num_classes=7))
    ours = convert.from_timm(theirs)
    bitwise = ours.layer == "vit_half" and not ours.parts.post_norm
    for train in (False, True):
        got, wanted = outputs((ours, theirs), train)
        assert torch.equal(got, wanted) if bitwise else far(got, wanted) < 1e-6
    back = convert.to_timm(ours)
    assert equal(back, theirs) and torch.equal(*outputs((back, theirs)))
