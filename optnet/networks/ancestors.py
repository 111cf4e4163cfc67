"""The published networks that ours start from, and how their modules map to ours. Converts no weights.

The ancestors are the ResNet, ResNetV2, DenseNet and ConvNeXt of timm and torchvision. This module builds names and
never parses them, because the network knows which module serves which call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from timm.layers import calculate_drop_path_rates, get_act_layer
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from optnet.errors import ModelError
from optnet.networks.layers import PIXEL_NORMS
from optnet.networks.layers.convnext import LAYER_SCALE
from optnet.networks.layers.style import ACTIVATIONS
from optnet.networks.network import Network
from optnet.networks.unrolled import Unrolled, unrolled_in

State = Mapping[str, Tensor]
Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Ancestor:
    """A family of published networks.

    Attributes:
        mark: a parameter that every network of this family has, and no other network.
        stem, head: the names of its first convolution and its classifier.
        modules: (our network) -> pairs (name of their module, name of ours) of all other modules.
        read: (their network) -> algorithm, blocks, widths, layer and stem of our equal network, and its other options.

    Raises:
        ModelError: from ``read``: their network has a part that ours lack.
    """

    mark: str
    stem: str
    head: str
    modules: Callable[[Network], Pairs]
    read: Callable[[nn.Module], dict[str, Any]]


def ancestor_of(keys: Collection[str]) -> Ancestor | None:
    """The family that these parameter names belong to; None for other networks and for ours."""
    return next((ancestor for ancestor in ANCESTORS if ancestor.mark in keys), None)


def parameter_pairs(ancestor: Ancestor, network: Network) -> dict[str, str]:
    """Their parameters and buffers -> ours, by name."""
    pairs: dict[str, str] = {}
    for theirs, ours in ((ancestor.stem, "stem.conv"), (ancestor.head, "head.fc")):
        pairs |= {f"{theirs}.{name}": f"{ours}.{name}" for name in ("weight", "bias")}
    for theirs, ours in _module_pairs(ancestor, network):
        pairs |= {f"{theirs}.{name}": f"{ours}.{name}" for name in network.get_submodule(ours).state_dict()}
    return pairs


def _module_pairs(ancestor: Ancestor, network: Network) -> Pairs:
    """The pairs whose second module exists in the network; other layer families may lack it."""
    here = {name for name, _ in network.named_modules()}
    return ((theirs, ours) for theirs, ours in ancestor.modules(network) if ours in here)


def norm_pairs(ancestor: Ancestor, network: Network) -> Iterator[tuple[str, str]]:
    """Their norms and ours, by name."""
    for theirs, ours in _module_pairs(ancestor, network):
        for name, module in network.get_submodule(ours).named_modules():
            if hasattr(module, "eps"):
                below = f".{name}" if name else ""
                yield f"{theirs}{below}", f"{ours}{below}"


def _stages(network: Network) -> Iterator[tuple[int, str, Unrolled]]:
    """For every stage: its number, the name of its body, and its unrolled algorithm."""
    for i, unrolled in enumerate(unrolled_in(network.stages).values()):
        yield i, f"stages.{i}.unrolled.body", unrolled


def _blocks(network: Network, block: str, shortcut: str) -> Pairs:
    """The layers T of every stage in the order of their calls, and the shortcut of its first block.

    Args:
        block, shortcut: templates of their names, with the fields {stage}, {next} (the stage after it) and {block}; all
            count from 0.
    """
    for i, body, unrolled in _stages(network):
        for j, name in enumerate(unrolled.served_by(unrolled.program.main)):
            yield block.format(stage=i, next=i + 1, block=j), f"{body}.{name}"
        for name in unrolled.shortcuts.values():
            yield shortcut.format(stage=i, next=i + 1), f"{body}.{name}"


def _resnet(network: Network) -> Pairs:
    yield "bn1", "stem.norm"
    yield from _blocks(network, "layer{next}.{block}", "layer{next}.0.downsample")


def _resnetv2(network: Network) -> Pairs:
    yield "norm", "norm.0"
    yield from _blocks(network, "stages.{stage}.blocks.{block}", "stages.{stage}.blocks.0.downsample.conv")
    for i, stage in enumerate(network.stages):
        transitions: Any = stage.transitions
        if isinstance(transitions[0], nn.Sequential):  # this stage projects, so its transition holds the first norm
            yield f"stages.{i}.blocks.0.norm1", f"stages.{i}.transitions.0.0"


def _densenet(network: Network) -> Pairs:
    yield "features.norm0", "stem.norm"
    yield "features.norm5", "norm.0"
    for i, body, unrolled in _stages(network):
        served = {(call.iteration, unrolled.layers[call.value]) for call in unrolled.program.applies}
        for iteration, name in sorted(served):
            yield f"features.denseblock{i + 1}.denselayer{iteration + 1}", f"{body}.{name}"
        if i:
            yield f"features.transition{i}.norm", f"stages.{i}.transitions.0.0"
            yield f"features.transition{i}.conv", f"stages.{i}.transitions.0.2"


def _convnext(network: Network) -> Pairs:
    for i, (name, _) in enumerate(network.stem.named_children()):
        yield f"stem.{i}", f"stem.{name}"
    yield "norm_pre", "norm.0"
    yield "head.norm", "head.norm"
    yield "head.pre_logits.fc", "head.pre_logits.fc"
    yield from _blocks(network, "stages.{stage}.blocks.{block}", "")
    for i in range(len(network.stages)):
        yield f"stages.{i}.downsample", f"stages.{i}.transitions.0"


def _count(state: State, name: str, first_stage: int, first_block: int) -> list[int]:
    """The number of blocks in each stage; ``name`` is a template with the fields {stage} and {block}."""
    blocks: list[int] = []
    while name.format(stage=first_stage + len(blocks), block=first_block) in state:
        count = 0
        while name.format(stage=first_stage + len(blocks), block=first_block + count) in state:
            count += 1
        blocks.append(count)
    return blocks


def _stem(convolution: Tensor) -> str:
    return "imagenet" if convolution.shape[-1] == 7 else "small"


def _read_resnet(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    blocks = _count(state, "layer{stage}.{block}.conv1.weight", 1, 0)
    widths = [len(state[f"layer{i + 1}.0.conv1.weight"]) for i in range(len(blocks))]
    layer = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    stem = _stem(state["conv1.weight"])
    return {"algorithm": "heavy_ball", "blocks": blocks, "widths": widths, "layer": layer, "stem": stem}


def _read_resnetv2(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    blocks = _count(state, "stages.{stage}.blocks.{block}.conv1.weight", 0, 0)
    widths = [len(state[f"stages.{i}.blocks.0.conv1.weight"]) for i in range(len(blocks))]
    layer = "preact_bottleneck" if "stages.0.blocks.0.conv3.weight" in state else "preact_basic"
    stem = _stem(state["stem.conv.weight"])
    return {"algorithm": "heavy_ball", "blocks": blocks, "widths": widths, "layer": layer, "stem": stem}


def _read_densenet(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    blocks = _count(state, "features.denseblock{stage}.denselayer{block}.conv1.weight", 1, 1)
    compressed = "features.denseblock1.denselayer1.conv2.weight" in state
    last = "conv2" if compressed else "conv1"
    growth = len(state[f"features.denseblock1.denselayer1.{last}.weight"])
    layer = "dense_bc" if compressed else "dense"
    stem = _stem(state["features.conv0.weight"])
    return {
        "algorithm": "nesterov_dense", "blocks": blocks, "widths": [growth] * len(blocks), "layer": layer, "stem": stem,
    }  # fmt: skip


def _read_convnext(model: Any) -> dict[str, Any]:
    kind = type(model).__name__
    blocks = _count(model.state_dict(), "stages.{stage}.blocks.{block}.conv_dw.weight", 0, 0)
    layers = [layer for layer in model.modules() if isinstance(layer, ConvNeXtBlock)]
    if len(layers) != sum(blocks):
        raise ModelError(f"{kind} has other blocks than timm's ConvNeXt")
    first, firsts = layers[0], [model.stages[i].blocks[0] for i in range(len(blocks))]
    norm = next((name for name, kinds in PIXEL_NORMS.items() if type(first.norm) in kinds), None)
    act = next((name for name in ACTIVATIONS if get_act_layer(name) is type(first.mlp.act)), None)
    if norm is None or act is None:
        raise ModelError(
            f"{kind} has {type(first.norm).__name__} and {type(first.mlp.act).__name__}; optnet's convnext layers have "
            f"the norms {', '.join(PIXEL_NORMS)} and timm's activations"
        )
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in layers]
    if any(abs(a - b) > 1e-6 for a, b in zip(rates, calculate_drop_path_rates(rates[-1], len(rates)), strict=True)):
        raise ModelError(f"{kind}'s blocks drop their paths at rates that do not grow linearly; give them timm's rates")
    return {
        "algorithm": "heavy_ball", "blocks": blocks, "widths": [len(one.conv_dw.weight) for one in firsts],
        "layer": "convnext", "stem": _convnext_stem(model), "norm": norm, "act_layer": act, "drop_path_rate": rates[-1],
        "kernel_sizes": [one.conv_dw.kernel_size[0] for one in firsts], "conv_mlp": first.use_conv_mlp,
        "use_grn": hasattr(first.mlp, "grn"), "ls_init_value": 0.0 if first.gamma is None else LAYER_SCALE,
        "head_norm_first": not isinstance(model.norm_pre, nn.Identity),
        "head_hidden_size": getattr(model.head, "hidden_size", None), "global_pool": model.head.global_pool.pool_type,
    }  # fmt: skip


def _convnext_stem(model: Any) -> str:
    convolutions = [layer for layer in model.stem if isinstance(layer, nn.Conv2d)]
    kernels = [layer.kernel_size[0] for layer in convolutions]
    if kernels == [4]:
        return "patch"
    if kernels != [3, 3]:
        raise ModelError(f"{type(model).__name__} has a stem of kernels {kernels}; optnet's have [4] or [3, 3]")
    if len(model.stem) == 4:
        return "overlap_act"
    return "overlap" if len(convolutions[0].weight) == len(convolutions[1].weight) else "overlap_tiered"


ANCESTORS = (
    Ancestor("features.conv0.weight", "features.conv0", "classifier", _densenet, _read_densenet),
    Ancestor("stages.0.blocks.0.conv1.weight", "stem.conv", "head.fc", _resnetv2, _read_resnetv2),
    Ancestor("stages.0.blocks.0.conv_dw.weight", "stem.0", "head.fc", _convnext, _read_convnext),
    Ancestor("layer1.0.conv1.weight", "conv1", "fc", _resnet, _read_resnet),
)
