"""Reads from the modules of timm's vision transformers what they were made of. Converts nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import (
    AttentionPoolLatent,
    AttentionPoolPrr,
    GluMlp,
    LayerScale,
    PatchDropout,
    PatchEmbed,
    get_act_layer,
    get_norm_layer,
)
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from optnet.errors import ModelError
from optnet.networks.layers.style import ACTIVATIONS
from optnet.networks.layers.transformer import ATTENTIONS, MLPS, Parts, RotaryAttention

NORMS = ("layernorm", "rmsnorm", "simplenorm", "layernormfp32", "rmsnormfp32", "simplenormfp32")
"""timm's norms of tokens."""
_TORCHS = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
"""torch's activations that timm has its own of, by timm's names."""
VIT_ATTENTIONS = {name: kind for name, kind in ATTENTIONS.items() if kind is not RotaryAttention}
"""The attentions of timm's ``VisionTransformer``, by their names here and in ``Parts``."""
POOLS: dict[str, type[nn.Module]] = {"map": AttentionPoolLatent, "prr": AttentionPoolPrr}


def read_ends(model: VisionTransformer) -> dict[str, Any]:
    """What is before and after the blocks, by the names of ``VisionTransformer``'s arguments; of a network of ours too.

    Raises:
        ModelError: it is nothing that ``VisionTransformer`` makes.
    """
    patch, pool = model.patch_embed, model.attn_pool
    if type(patch) is not PatchEmbed:
        raise ModelError(f"{_of(model)} patch embedding is a {type(patch).__name__}; optnet converts only PatchEmbed")
    if pool is not None and type(pool) is not POOLS.get(model.global_pool):
        raise ModelError(f"{_of(model)} pooling is a {type(pool).__name__} for global_pool={model.global_pool}")
    norms = {"norm_pre": model.norm_pre, "norm": model.norm, "fc_norm": model.fc_norm}
    there = {name for name, norm in norms.items() if not isinstance(norm, nn.Identity)}
    return {
        "img_size": patch.img_size, "patch_size": patch.patch_size, "in_chans": model.in_chans,
        "num_classes": model.num_classes, "global_pool": model.global_pool, "class_token": model.cls_token is not None,
        "reg_tokens": model.num_reg_tokens, "no_embed_class": model.no_embed_class,
        "pos_embed": "none" if model.pos_embed is None else "learn", "pre_norm": "norm_pre" in there,
        "final_norm": bool(there & {"norm", "fc_norm"}), "fc_norm": "fc_norm" in there,
        "pool_include_prefix": model.pool_include_prefix, "dynamic_img_size": model.dynamic_img_size,
        "dynamic_img_pad": patch.dynamic_img_pad, "drop_rate": model.head_drop.p, "pos_drop_rate": model.pos_drop.p,
        "patch_drop_rate": model.patch_drop.prob if isinstance(model.patch_drop, PatchDropout) else 0.0,
        "embed_norm_layer": None if isinstance(patch.norm, nn.Identity) else _norm_name(model, patch.norm),
    }  # fmt: skip


def read_blocks(model: VisionTransformer) -> dict[str, Any]:
    """What the blocks are made of: the layer family, the fields of ``Parts``, and the rates of dropout.

    Raises:
        ModelError: they are of a kind that optnet lacks, or differ.
    """
    blocks = [*model.blocks]
    for block in blocks:
        if type(block) not in _READERS:
            raise ModelError(
                f"{_of(model)} blocks are of {type(block).__name__}; optnet converts those of "
                f"{', '.join(kind.__name__ for kind in _READERS)}"
            )
    found = [_READERS[type(block)](model, block) for block in blocks]
    if not found:
        raise ModelError(f"{type(model).__name__} has no blocks")
    rates = [one.pop("drop_path_rate") for one in found]
    for i, one in enumerate(found):
        if unlike := [name for name, value in one.items() if value != found[0][name]]:
            raise ModelError(f"{_of(model)} blocks 0 and {i} differ in {unlike[0]}; optnet's blocks are all alike")
    return {**found[0], "depth": len(blocks), "drop_path_rate": round(rates[-1], 6)}


def block_of(parts: Parts, parallel: bool) -> Callable[..., nn.Module] | None:
    """What makes the block of timm's that a network's steps are, the argument ``block_fn``; None if timm has none.

    Args:
        parallel: whether a step is attention and the MLP at one point.
    """
    if parts.attn_layer not in VIT_ATTENTIONS:
        return None
    if parallel:
        unlike = parts.mlp_layer != "mlp" or parts.scale_attn_norm or parts.scale_mlp_norm
        if unlike or parts.post_norm or parts.num_parallel > 1:
            return None
        if parts.attn_layer == "diff":
            return DiffParallelScalingBlock if parts.fuse_out_proj else None
        return partial(ParallelScalingBlock, fuse_out_proj=parts.fuse_out_proj)
    if parts.num_parallel > 1:
        return None if parts.post_norm else partial(ParallelThingsBlock, num_parallel=parts.num_parallel)
    return ResPostBlock if parts.post_norm else Block


def _of(model: nn.Module) -> str:
    return f"{type(model).__name__}'s"


def _norm_name(model: nn.Module, norm: nn.Module) -> str:
    kind = get_norm_layer("layernorm") if type(norm) is nn.LayerNorm else type(norm)
    for name in NORMS:
        if get_norm_layer(name) is kind:
            return name
    raise ModelError(f"{_of(model)} norm is a {type(norm).__name__}; optnet has timm's {', '.join(NORMS)}")


def _act_name(model: nn.Module, act: nn.Module) -> str | None:
    if type(act) is nn.GELU:
        return None if act.approximate == "none" else "gelu_tanh"
    if type(act) in _TORCHS:
        return _TORCHS[type(act)]
    for name in ACTIVATIONS:
        if get_act_layer(name) is type(act):
            return name
    raise ModelError(f"{_of(model)} activation is a {type(act).__name__}; optnet has those that timm knows by name")


def _mlp_name(model: nn.Module, mlp: Any) -> str:
    if type(mlp) is GluMlp:
        return "glu" if mlp.gate_last else "swiglu_packed"
    for name, kind in MLPS.items():
        if kind is type(mlp):
            return name
    raise ModelError(f"{_of(model)} MLP is a {type(mlp).__name__}; optnet's are Mlp, GluMlp and SwiGLU")


def _attn_name(model: nn.Module, attn: Any) -> str:
    for name, kind in VIT_ATTENTIONS.items():
        if kind is type(attn):
            return name
    known = " and ".join(kind.__name__ for kind in VIT_ATTENTIONS.values())
    raise ModelError(f"{_of(model)} attention is a {type(attn).__name__}; optnet has {known}")


def _ratio(hidden: int, dim: int) -> float:
    """The ``mlp_ratio`` that gives an MLP this many hidden units."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _norms(model: Any, norm: Any) -> dict[str, Any]:
    return {"norm_layer": _norm_name(model, norm), "norm_eps": norm.eps}


def _scale(layer: nn.Module) -> float | None:
    return (layer.init_values or 1.0) if isinstance(layer, LayerScale) else None


def _rate(drop_path: Any) -> float:
    return getattr(drop_path, "drop_prob", 0.0)


def _halves(model: Any, attn: Any, mlp: Any, norm: nn.Module, scale: float | None, drop_path: Any) -> dict[str, Any]:
    kinds = {"attn_layer": _attn_name(model, attn), "mlp_layer": _mlp_name(model, mlp)}
    first = next(mlp.children())  # of GluMlp twice what its last map takes, as in ``mlp_ratio``
    return {
        **kinds,
        "layer": "vit_half", "num_heads": attn.num_heads, "mlp_ratio": _ratio(first.out_features, model.embed_dim),
        "qkv_bias": attn.qkv.bias is not None, "qk_norm": not isinstance(attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(attn.norm, nn.Identity),
        "scale_mlp_norm": not isinstance(mlp.norm, nn.Identity), "proj_bias": attn.proj.bias is not None,
        "init_values": scale, "attn_drop_rate": attn.attn_drop.p, "proj_drop_rate": attn.proj_drop.p,
        "act_layer": _act_name(model, mlp.act), "drop_path_rate": _rate(drop_path), **_norms(model, norm),
    }  # fmt: skip


def _block(model: Any, block: Any) -> dict[str, Any]:
    return _halves(model, block.attn, block.mlp, block.norm1, _scale(block.ls1), block.drop_path1)


def _res_post(model: Any, block: Any) -> dict[str, Any]:
    found = _halves(model, block.attn, block.mlp, block.norm1, block.init_values, block.drop_path1)
    return {**found, "post_norm": True}


def _parallel_things(model: Any, block: Any) -> dict[str, Any]:
    attn, mlp = block.attns[0], block.ffns[0]
    found = _halves(model, attn.attn, mlp.mlp, attn.norm, _scale(attn.ls), attn.drop_path)
    return {**found, "num_parallel": block.num_parallel}


def _parallel_scaling(model: Any, block: Any) -> dict[str, Any]:
    differential = isinstance(block, DiffParallelScalingBlock)
    fused = block.out_proj is not None
    last = block.out_proj if fused else block.attn_out_proj
    return {
        "layer": "vit_parallel", "num_heads": block.num_heads,
        "mlp_ratio": _ratio(block.in_split[0], model.embed_dim), "qkv_bias": block.in_proj.bias is not None,
        "qk_norm": not isinstance(block.q_norm, nn.Identity), "proj_bias": last.bias is not None,
        "fuse_out_proj": fused, "attn_layer": "diff" if differential else "attn", "init_values": _scale(block.ls),
        "attn_drop_rate": block.attn_drop.p,
        "proj_drop_rate": block.mlp_drop.p, "act_layer": _act_name(model, block.mlp_act),
        "drop_path_rate": _rate(block.drop_path), **_norms(model, block.in_norm),
    }  # fmt: skip


_READERS: dict[type[nn.Module], Callable[[Any, Any], dict[str, Any]]] = {
    Block: _block, ResPostBlock: _res_post, ParallelThingsBlock: _parallel_things,
    ParallelScalingBlock: _parallel_scaling, DiffParallelScalingBlock: _parallel_scaling,
}  # fmt: skip
