"""timm's vision transformers and the equal networks on tokens: conversion both ways, and weights from local files."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import GluMlp, LayerNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

import optnet
from optnet import Iterate, ModelError, Operator, TokenNetwork
from optnet.networks import convert

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
DROPS = {"drop_rate": 0.1, "pos_drop_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.3}
BLOCKS = {  # of whole steps, one half after the other: bitwise by halves
    "plain": {},
    "layer scales": {"init_values": 1e-5},
    "norms of queries and keys": {"qk_norm": True, "qkv_bias": False},
    "norms inside": {"scale_attn_norm": True, "scale_mlp_norm": True, "norm_layer": partial(LayerNorm, eps=1e-3)},
    "no biases": {"proj_bias": False, "qkv_bias": False, "norm_layer": "rmsnorm"},
    "SwiGLU": {"mlp_layer": SwiGLU, "act_layer": "silu", "mlp_ratio": 2.66},
    "packed SwiGLU": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
    "gated MLP": {"mlp_layer": GluMlp, "act_layer": nn.Sigmoid},
    "differential attention": {"attn_layer": "diff"},
    "parallel branches": {"block_fn": partial(ParallelThingsBlock, num_parallel=3), "init_values": 0.1},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avgmax", "fc_norm": False},
    "no positions": {"pos_embed": "none", "final_norm": False},
    "CLIP": {"pre_norm": True, "act_layer": "quick_gelu", "norm_layer": partial(LayerNorm, eps=1e-5)},
    "attention pooling": {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh", "mlp_ratio": 3.7362},
    "residual pooling": {"global_pool": "prr"},
    "norm of patches": {"embed_norm_layer": "rmsnorm", "pool_include_prefix": True, "global_pool": "max"},
    "any size": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "dropout": DROPS,
    "tokens": {"global_pool": "", "num_classes": 0},
    "rectangular": {"img_size": (32, 48), "patch_size": (8, 16), "in_chans": 2},
}
OTHERS = {  # equal but for rounding: other orders of the same sums
    "norms behind": {"block_fn": ResPostBlock, "init_values": 0.5},
    "in parallel": {"block_fn": ParallelScalingBlock, "qkv_bias": False, "qk_norm": True, "norm_layer": "rmsnorm"},
    "in parallel, biases": {"block_fn": ParallelScalingBlock, "init_values": 0.1, "drop_path_rate": 0.2},
    "in parallel, no biases": {"block_fn": ParallelScalingBlock, "proj_bias": False},
    "in parallel, fused": {"block_fn": partial(ParallelScalingBlock, fuse_out_proj=True), "attn_drop_rate": 0.1},
    "in parallel, differential": {"block_fn": DiffParallelScalingBlock, "qkv_bias": False},
}
SPECIAL = {**BLOCKS, **OTHERS}


def vit(name="plain", **options):
    """A small vision transformer with every parameter moved: fresh norms and layer scales would hide mistakes."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **SPECIAL.get(name, {}), **options})
    return shaken(model)


def shaken(model):
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
    return model


def images(model, count=3):
    draws = torch.Generator().manual_seed(2)
    dtype = model.patch_embed.proj.weight.dtype
    return torch.randn(count, model.in_chans, *model.patch_embed.img_size, generator=draws, dtype=dtype)


def outputs(models, train=False):
    found = []
    for model in models:
        torch.manual_seed(3)
        with torch.no_grad():
            found.append(model.train(train)(images(model)))
    return found


def far(one, other):
    return ((one - other).norm() / other.norm()).item()


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", SPECIAL)
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


def test_dtypes_and_descriptions():
    theirs = timm.create_model("test_vit2", pretrained=False, num_classes=7, img_size=64).to(torch.bfloat16)
    ours = convert.from_timm(theirs)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.pretrained_cfg["classifier"] == "head" and ours.pretrained_cfg["mean"] == theirs.pretrained_cfg["mean"]
    wanted = timm.data.resolve_model_data_config(theirs)
    assert timm.data.resolve_model_data_config(ours) == wanted
    assert timm.data.resolve_model_data_config(convert.to_timm(ours)) == wanted
