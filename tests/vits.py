"""Small vision transformers of timm's, of every kind that optnet converts. Tests nothing."""

from functools import partial

import torch
from timm.layers import GluMlp, LayerNorm, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

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
