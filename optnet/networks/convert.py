"""Converts ResNets, ResNetV2s, DenseNets and ConvNeXts of timm and torchvision to equal optnet networks, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
from timm.layers import DropPath
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.densenet import DenseLayer, DenseNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.densenet import _DenseLayer

from optnet.errors import ModelError, reason
from optnet.networks import transformers
from optnet.networks.ancestors import Ancestor, ancestor_of, norm_pairs, parameter_pairs
from optnet.networks.ends import STEMS
from optnet.networks.filling import fill, shape, share_cfg, verify
from optnet.networks.layers import FAMILIES, TOKEN_FAMILIES, Family
from optnet.networks.layers.convnext import LAYER_SCALE
from optnet.networks.layers.tokens import ATTENTION, MLP
from optnet.networks.network import Network
from optnet.networks.tokens import TokenNetwork
from optnet.networks.unrolled import coefficient_names, coefficients, unrolled_in

DENSE_LAYERS = (DenseLayer, _DenseLayer)
"""The layers of timm's and torchvision's DenseNet; each has a ``drop_rate``."""
CONVNEXT_STEMS = ("patch", "overlap", "overlap_tiered", "overlap_act")
"""The stems of timm's ConvNeXt, by our names and by timm's."""


def to_ours(state: dict[str, Tensor], model: Network) -> dict[str, Tensor]:
    """Turns an ancestor's state dict into one for ``model``, with the model's own coefficients; returns ours unchanged.

    The stem and the classifier keep the sizes of the ancestor. If they differ from the model's, timm adapts the stem
    and drops the classifier.

    Raises:
        ModelError: a parameter has no counterpart in the model, or its shape differs.
    """
    ancestor = ancestor_of(state)
    if ancestor is None:
        return state
    wanted = model.state_dict()
    pairs = parameter_pairs(ancestor, model)
    sized_anew = {f"{name}.{kind}" for name in ("stem.conv", "head.fc") for kind in ("weight", "bias")}
    made = {name: wanted[name] for name in coefficient_names(model)}
    for theirs, value in state.items():
        ours = pairs.get(theirs)
        if ours is None:
            raise ModelError(f"this network has no counterpart of the weights' {theirs}; choose another network")
        if ours == "head.fc.weight":
            value = value.flatten(1)
        elif ours not in sized_anew and value.shape != wanted[ours].shape:
            raise ModelError(
                f"the weights' {theirs} is {shape(value)}, but this network's {ours} is {shape(wanted[ours])}; "
                "choose another network"
            )
        made[ours] = value
    return made


def checkpoint_filter(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's ``pretrained_filter_fn``: published weights of the ancestor for the equal network of ours."""
    if isinstance(model, TokenNetwork):
        return transformers.filtered(state, model)
    return to_ours(state, model) if isinstance(model, Network) else state


def from_timm(model: nn.Module, **options: Any) -> Network | TokenNetwork:
    """The optnet network that computes what a ResNet, ResNetV2, DenseNet or ConvNeXt of timm or torchvision computes.

    Vision transformers of timm become networks on tokens.

    It has the model's ``pretrained_cfg``. With the ancestor's coefficients, the default, the outputs are equal. Other
    coefficients use the same weights but give other outputs: heavy ball with step = 0.1 and beta = 0.9 turns a ResNet
    into a Momentum ResNet.

    Args:
        options: of ``Network.from_algorithm`` or ``TokenNetwork.from_algorithm``: ``algorithm`` (by default
            ``heavy_ball`` for residual networks and ``nesterov_dense`` for dense ones), ``layer`` (for whole blocks
            ``vit_half`` or ``vit``), ``coefficients``, ``coefficient_init``, ``constants``, ...

    Raises:
        ModelError: the model is of another family, or has parts (wide or deep stems and blocks, anti-aliasing,
            attention, group norm, stochastic depth, ...) that optnet lacks; or an option is wrong.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"from_timm converts a model like timm.create_model('resnet18'), not {type(model).__name__}")
    if isinstance(model, VisionTransformer):
        return transformers.from_vit(model, **options)
    name, state = type(model).__name__, model.state_dict()
    ancestor = ancestor_of(state)
    if ancestor is None:
        raise ModelError(
            f"{name} is no ResNet, ResNetV2, DenseNet, ConvNeXt or VisionTransformer of timm or torchvision"
        )
    stem = state.get(f"{ancestor.stem}.weight")
    if stem is None:
        raise ModelError(f"{name} has another kind of stem; optnet converts only stems of one convolution")
    if stem.is_meta:
        raise ModelError(f"{name} is on the meta device and has no weights to convert; create it on a real device")
    classifier = state.get(f"{ancestor.head}.weight")
    found = ancestor.read(model)
    if found["layer"] != "convnext":
        found["stem_width"] = len(stem)
    found |= {"in_chans": stem.shape[1], "num_classes": 0 if classifier is None else len(classifier)}
    found |= _dropout(model, FAMILIES[found["layer"]])
    found |= {"device": stem.device, "dtype": stem.dtype}
    made = _filled(model, ancestor, found)
    _verify(model, made)
    return (_filled(model, ancestor, {**found, **options}) if options else made).train(model.training)


def _filled(model: nn.Module, ancestor: Ancestor, options: dict[str, Any]) -> Network:
    """A network with the model's weights and the constants of its norms."""
    try:
        made = Network.from_algorithm(**options)
    except TypeError as error:
        raise ModelError(f"from_timm: {reason(error)}") from None
    fill(made, to_ours(model.state_dict(), made), model)
    _share_constants(model, made, norm_pairs(ancestor, made))
    share_cfg(model, made, "stem.conv", "head.fc")
    return made


def _share_constants(source: nn.Module, target: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Gives the target's norms the eps and momentum of the source's: pairs of names (source, target)."""
    for one, other in pairs:
        given: Any = source.get_submodule(one)
        taking: Any = target.get_submodule(other)
        taking.eps = given.eps
        if hasattr(given, "momentum"):
            taking.momentum = given.momentum


def _dropout(model: nn.Module, family: type[Family]) -> dict[str, float]:
    """The rates of the dropout before the classifier and after each dense layer, by their names in ``NetworkOptions``.

    Raises:
        ModelError: there is other dropout or stochastic depth inside the blocks, which optnet's blocks lack.
    """
    rate, inside = getattr(model, "drop_rate", 0.0), set()
    heads = [part for part in (getattr(model, name, None) for name in ("head", "head_drop")) if part is not None]
    in_head = {module for head in heads for module in head.modules()}
    for name, module in model.named_modules():
        if family.drops and isinstance(module, DENSE_LAYERS):
            inside.add(module.drop_rate)
            continue
        if isinstance(module, DropPath) and "drop_path_rate" in family.takes:
            continue
        here = module.p if isinstance(module, nn.Dropout) else getattr(module, "drop_prob", None)
        here = here or (getattr(module, "drop_rate", 0.0) if name else 0.0)
        if here and module not in in_head:
            raise ModelError(f"{type(model).__name__}'s {name} drops at random; set its rate to 0")
        rate = here or rate
    if len(inside) > 1:
        raise ModelError(f"{type(model).__name__}'s dense layers drop at several rates; give all of them the same")
    return {"drop_rate": float(rate), "proj_drop_rate": float(max(inside, default=0.0))}


def _verify(theirs: nn.Module, ours: Network) -> None:
    size = 64 if STEMS[ours.options.stem] > 1 else 32
    verify(theirs, ours, to_ours, (ours.in_chans, size, size))


def to_timm(network: Network | TokenNetwork) -> nn.Module:
    """The timm model that computes what the network computes.

    Raises:
        ModelError: a coefficient differs from the ancestor's (the message names it), or timm has no such network.
    """
    if not isinstance(network, Network | TokenNetwork):
        raise ModelError(f"to_timm converts an optnet.Network or TokenNetwork, not {type(network).__name__}")
    if any(module.per_sample for module in unrolled_in(network).values()):
        raise ModelError("coefficients=dynamic: the weights differ from image to image, which no timm model has")
    if isinstance(network, TokenNetwork):
        if not transformers.is_chain(network):
            _check_coefficients(network)
        return transformers.to_vit(network)
    return _to_ancestor(network)


def _to_ancestor(network: Network) -> nn.Module:
    """A convolutional network as timm's ResNet, ResNetV2 or DenseNet."""
    target = _timm_model(network)
    _check_coefficients(network)
    ours, state = network.state_dict(), target.state_dict()
    ancestor = ancestor_of(state)
    assert ancestor is not None
    pairs = parameter_pairs(ancestor, network)
    for theirs in state:
        name = pairs.get(theirs)
        if name is None or name not in ours or ours[name].numel() != state[theirs].numel():
            raise ModelError(f"this network has no counterpart of timm's {theirs} ({shape(state[theirs])})")
        state[theirs] = ours[name].reshape(state[theirs].shape)
    left = set(ours) - {name for theirs, name in pairs.items() if theirs in state} - coefficient_names(network)
    if left:
        raise ModelError(f"timm's {type(target).__name__} has no counterpart of this network's {min(left)}")
    target.load_state_dict(state)
    _share_constants(network, target, ((ours, theirs) for theirs, ours in norm_pairs(ancestor, network)))
    share_cfg(network, target, ancestor.stem, ancestor.head)
    _verify(target, network)
    return target.train(network.training)


def _check_coefficients(network: Network | TokenNetwork) -> None:
    """Raises:
    ModelError: a coefficient differs from the ancestor's.
    """
    for entry in coefficients(network):
        wanted = _ancestral(network, entry.stage, entry.step, entry.term)
        if entry.value != wanted:
            raise ModelError(
                f"the coefficient of {entry.term} in {entry.stage} {entry.step} is {entry.value:g}, not timm's "
                f"{wanted:g}; only networks at their ancestor's coefficients can be converted"
            )


def _ancestral(network: Network | TokenNetwork, stage: str, step: str, term: str) -> float:
    """The weight of a term at the ancestor: 1 on operators and, in residual rows, the newest iterate."""
    program: Any = network.get_submodule(stage).program
    if not {**FAMILIES, **TOKEN_FAMILIES}[network.layer].same_start:
        return float(term not in program.iterates)
    layers = {call.value for operator in (program.main, ATTENTION, MLP) for call in program.calls(operator)}
    if term in layers:
        return 1.0
    row = next(row for row in program.combines if row.value == step)
    return float(term == [other for other in row.terms if other not in layers][-1])


def _timm_model(network: Network) -> nn.Module:
    options = network.options
    if options.norm != "batch" and network.layer != "convnext":
        raise ModelError(f"timm's ancestors use batch norms, but this network has norm={options.norm}")
    if any(len(program.start.starts) > 1 for program in network.programs):
        raise ModelError("timm has no model with two streams, or with an iterate carried across stages")
    parameter = next(network.parameters())
    dd = {"device": parameter.device, "dtype": parameter.dtype}
    shared: dict[str, Any] = {
        "num_classes": network.num_classes, "in_chans": network.in_chans, "act_layer": options.act_layer,
        "global_pool": network.head.global_pool.pool_type, "drop_rate": network.head.drop.p, **dd,
    }  # fmt: skip
    blocks = tuple(program.start.iterations for program in network.programs)
    standard = network.widths == [64, 128, 256, 512] and options.stem == "imagenet"
    if network.layer in ("basic", "bottleneck") and standard:
        return ResNet(BasicBlock if network.layer == "basic" else Bottleneck, blocks, **shared)
    if network.layer in ("preact_basic", "preact_bottleneck") and standard:
        name = "resnetv2_18" if network.layer == "preact_basic" else "resnetv2_50"
        return timm.create_model(name, pretrained=False, layers=blocks, **shared)
    if network.layer == "dense_bc" and options.stem == "imagenet":
        if options.proj_drop_rate and options.proj_drop_place != "layers":
            raise ModelError("timm's DenseNet has dropout only after each layer; give proj_drop_place=layers")
        return DenseNet(
            growth_rate=network.widths[0], block_config=blocks, proj_drop_rate=options.proj_drop_rate, **shared
        )
    if network.layer == "convnext" and len(blocks) == 4 and options.stem in CONVNEXT_STEMS:
        first: Any = next(module for module in network.modules() if isinstance(module, ConvNeXtBlock))
        return ConvNeXt(
            depths=blocks, dims=tuple(network.widths), kernel_sizes=tuple(options.kernel_sizes or (7,) * 4),
            ls_init_value=None if first.gamma is None else LAYER_SCALE, stem_type=options.stem,
            head_norm_first=options.head_norm_first, head_hidden_size=options.head_hidden_size,
            conv_mlp=options.conv_mlp, use_grn=options.use_grn, norm_layer=f"{options.norm}norm",
            drop_path_rate=options.drop_path_rate, **shared,
        )  # fmt: skip
    raise ModelError(f"timm has no model with layer={network.layer}, widths={network.widths}, stem={options.stem}")
