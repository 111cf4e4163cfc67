"""Converts timm's vision transformers to the equal networks on tokens, and back. Converts no convolutional network."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from timm.layers import DropPath, PatchDropout
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from optnet.errors import ModelError, reason
from optnet.language.program import Apply
from optnet.networks.blocks import Joined, block_count, block_names
from optnet.networks.distilled import DistilledTokenNetwork
from optnet.networks.filling import fill, shape, share_cfg, verify
from optnet.networks.introspection import VIT_ATTENTIONS, block_of, read_blocks, read_ends
from optnet.networks.layers.transformer import MLPS, Parallel
from optnet.networks.tokens import TokenNetwork
from optnet.networks.unrolled import coefficient_names, coefficients, unrolled_in

EQUALS: dict[type[VisionTransformer], type[TokenNetwork]] = {
    VisionTransformer: TokenNetwork, VisionTransformerDistilled: DistilledTokenNetwork,
}  # fmt: skip
"""timm's classes, and those of the equal networks."""
ADAPTED = ("patch_embed.proj.weight", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
"""The weights that timm adapts to the model's channels, or drops if the classes differ."""

_SHARED = (
    "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "init_values",
    "proj_drop_rate", "attn_drop_rate",
)  # fmt: skip
"""The fields of ``Parts`` that ``VisionTransformer`` takes as they are."""


def their_names(network: TokenNetwork) -> set[str]:
    """The names of the equal vision transformer's weights."""
    names, own = block_names(network), coefficient_names(network)
    in_blocks = {one for joined in names.values() for one in joined.ours}
    return {*names, *network.state_dict()} - in_blocks - own


def filtered(state: dict[str, Tensor], model: TokenNetwork) -> dict[str, Tensor]:
    """Published weights for the equal network, after timm's own filter, which resizes positions and patches."""
    return to_ours(checkpoint_filter_fn(state, model, adapt_layer_scale=True), model)


def to_ours(state: dict[str, Tensor], model: TokenNetwork) -> dict[str, Tensor]:
    """Turns a vision transformer's state dict into one for ``model``, with the model's own coefficients; returns ours
    unchanged.

    Raises:
        ModelError: a parameter has no counterpart in the model, or its shape differs.
    """
    wanted, names = model.state_dict(), block_names(model)
    if state.keys() <= wanted.keys():
        return state
    made = {name: wanted[name] for name in coefficient_names(model)}
    for theirs, value in state.items():
        joined = names.get(theirs, Joined((theirs,)))
        if any(name not in wanted for name in joined.ours):
            raise ModelError(f"this network has no counterpart of the weights' {theirs}; choose another network")
        parts = [wanted[name] for name in joined.ours]
        whole = torch.cat([part.to("meta") for part in parts], joined.dim) if len(parts) > 1 else parts[0]
        if theirs not in ADAPTED and value.shape != whole.shape:
            raise ModelError(
                f"the weights' {theirs} is {shape(value)}, but this network's {' and '.join(joined.ours)} is "
                f"{shape(whole)}; choose another network"
            )
        if len(parts) == 1:
            made[theirs if joined.ours == (theirs,) else joined.ours[0]] = value
        else:
            sizes = [part.shape[joined.dim] for part in parts]
            made |= zip(joined.ours, value.split_with_sizes(sizes, joined.dim), strict=True)
    return made


def to_theirs(network: TokenNetwork) -> dict[str, Tensor]:
    """The network's state dict by timm's names, without the coefficients; what timm's blocks lack keeps its name."""
    names, own, left = block_names(network), coefficient_names(network), network.state_dict()
    made = {}
    for theirs, joined in names.items():
        parts = [left.pop(name) for name in joined.ours]
        made[theirs] = torch.cat(parts, joined.dim) if len(parts) > 1 else parts[0]
    return {**made, **{name: value for name, value in left.items() if name not in own}}


def from_vit(model: VisionTransformer, **options: Any) -> TokenNetwork:
    """The network on tokens that computes what a vision transformer of timm computes; see ``convert.from_timm``."""
    if type(model) not in EQUALS:
        known = " and ".join(kind.__name__ for kind in EQUALS)
        raise ModelError(f"{type(model).__name__} is no vision transformer that optnet converts, which are {known}")
    found = {"algorithm": "heavy_ball", **read_ends(model), **read_blocks(model), "weight_init": "skip"}
    found = {"embed_dim": model.embed_dim, **found}
    stem = model.patch_embed.proj.weight
    if stem.is_meta:
        raise ModelError(
            f"{type(model).__name__} is on the meta device and has no weights to convert; create it on a real device"
        )
    found |= {"device": stem.device, "dtype": stem.dtype}
    made = _filled(model, found)
    _verify(model, made)
    return (_filled(model, {**found, **options}) if options else made).train(model.training)


def _filled(model: VisionTransformer, options: dict[str, Any]) -> TokenNetwork:
    try:
        made = EQUALS[type(model)].from_algorithm(**options)
    except TypeError as error:
        raise ModelError(f"from_timm: {reason(error)}") from None
    _cast(model, made, options["dtype"])
    fill(made, to_ours(model.state_dict(), made), model)
    _share(model, made)
    return made


def _cast(source: nn.Module, target: nn.Module, dtype: torch.dtype) -> None:
    """Gives the target one data type if the source has one: timm makes some parameters in float32 whatever it is."""
    if len({parameter.dtype for parameter in source.parameters()}) == 1:
        target.to(dtype)


def _share(source: VisionTransformer, target: VisionTransformer) -> None:
    """Gives the target timm's description of the source's weights, and what the source returns in training."""
    distilled = isinstance(source, VisionTransformerDistilled)
    share_cfg(source, target, "patch_embed.proj", ("head", "head_dist") if distilled else "head")
    if isinstance(source, VisionTransformerDistilled):
        target.set_distilled_training(source.distilled_training)


def is_chain(network: TokenNetwork) -> bool:
    """Whether the coefficients add each step to all before it: x + F_0(x) + F_1(x + F_0(x)) + ..., as timm does.

    Momentum that is carried as a velocity can be that too, with other weights of its sums than 0 and 1.
    """
    for stage, unrolled in unrolled_in(network).items():
        program = unrolled.program
        weights = {(one.step, one.term): one.value for one in coefficients(network) if one.stage == stage}
        chain = {program.starts[0]: 1.0}
        values = dict.fromkeys(program.starts, chain)  # all streams start at the same tokens
        for one in program.instructions:
            if isinstance(one, Apply):
                if values[one.argument] != chain:
                    return False
                values[one.value] = {one.value: 1.0}
                chain = {**chain, one.value: 1.0}
            else:
                total: dict[str, float] = {}
                for term in one.terms:
                    for name, weight in values[term].items():
                        total[name] = total.get(name, 0.0) + weights[one.value, term] * weight
                values[one.value] = {name: weight for name, weight in total.items() if weight}
        if any(values[result] != chain for result in program.results):
            return False
    return True


def to_vit(network: TokenNetwork) -> VisionTransformer:
    """The vision transformer of timm that computes what the network computes. The coefficients are not looked at.

    Raises:
        ModelError: timm has none.
    """
    depth, parallel = block_count(network), any(isinstance(module, Parallel) for module in network.modules())
    block = block_of(network.parts, parallel)
    if depth is None or block is None:
        raise ModelError(f"timm has no vision transformer with blocks like this network's, layer={network.layer}")
    parts, ends = network.parts, read_ends(network)
    taken = {name: getattr(parts, name) for name in _SHARED}
    embed_norm, stem = ends.pop("embed_norm_layer"), network.patch_embed.proj.weight
    kind = next(theirs for theirs, ours in EQUALS.items() if type(network) is ours)
    target = kind(
        depth=depth, embed_dim=parts.dim, block_fn=block, weight_init="skip",
        norm_layer=parts.norm_class(parts.norm_layer), act_layer=parts.act_layer,
        embed_norm_layer=parts.norm_class(embed_norm) if embed_norm else None,
        attn_layer=VIT_ATTENTIONS[parts.attn_layer], mlp_layer=MLPS[parts.mlp_layer],
        drop_path_rate=network.options.drop_path_rate, **taken, **ends, device=stem.device, dtype=stem.dtype,
    )  # fmt: skip
    state, wanted = to_theirs(network), target.state_dict()
    for name in dict.fromkeys((*wanted, *state)):
        if name not in state or name not in wanted or state[name].shape != wanted[name].shape:
            raise ModelError(f"timm's VisionTransformer has no counterpart of this network's {name}")
    _cast(network, target, stem.dtype)
    target.load_state_dict(state)
    _share(network, target)
    _verify(target, network)
    return target.train(network.training)


def _verify(theirs: VisionTransformer, ours: TokenNetwork) -> None:
    """Raises:
    ModelError: the outputs differ with equal weights, or the rates of dropout and stochastic depth.
    """
    if _rates(theirs) != _rates(ours):
        raise ModelError(
            f"{type(theirs).__name__} and {type(ours).__name__} drop at random in other places or at other rates; set "
            "the rates to 0"
        )
    verify(theirs, ours, to_ours, (ours.in_chans, *ours.patch_embed.img_size))


def _rates(model: nn.Module) -> Counter[tuple[str, float]]:
    """How often something drops at random, by its kind and its rate."""
    kinds = {nn.Dropout: "p", DropPath: "drop_prob", PatchDropout: "prob"}
    found = [
        (kind.__name__, round(getattr(module, rate), 6))
        for module in model.modules()
        for kind, rate in kinds.items()
        if isinstance(module, kind)
    ]
    return Counter(one for one in found if one[1])
