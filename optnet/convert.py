"""Weights between the ancestors (timm's and torchvision's ResNet, ResNetV2, DenseNet) and the equal optnet networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from optnet.errors import ModelError
from optnet.network import Network
from optnet.program import Program
from optnet.unroll import coefficients

State = dict[str, Tensor]


def _resnet_key(key: str) -> str:
    """A ResNet's parameter name as ours; the block's number is the step's."""
    key = re.sub(r"^conv1\.", "stem.conv.", key)
    key = re.sub(r"^bn1\.", "stem.norm.", key)
    key = re.sub(r"^fc\.", "head.fc.", key)
    key = re.sub(r"^layer(\d)\.0\.downsample\.", lambda m: f"stages.{int(m[1]) - 1}.steps.body.shortcut_x.", key)
    return re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.steps.body.T_{m[2]}.", key)


def _resnetv2_key(key: str) -> str:
    """A pre-activation ResNet's parameter name as ours (its first norms: see ``_share_norms``)."""
    key = re.sub(r"^norm\.", "norm.0.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.0\.downsample\.conv\.", r"stages.\1.steps.body.shortcut_x.", key)
    return re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.steps.body.T_\2.", key)


def _densenet_key(key: str) -> str:
    """A DenseNet's parameter name as ours: layer j is step j, its first fresh call number j (j - 1) / 2."""

    def layer(match: re.Match[str]) -> str:
        j = int(match[2])
        operator = f"T_{j * (j - 1) // 2}" if match[4] == "1" else f"P_{j - 1}"
        return f"stages.{int(match[1]) - 1}.steps.body.{operator}.{match[3]}{match[4]}."

    key = re.sub(r"^features\.denseblock(\d)\.denselayer(\d+)\.(norm|conv)([12])\.", layer, key)
    key = re.sub(r"^features\.transition(\d)\.norm\.", r"stages.\1.transitions.0.0.", key)
    key = re.sub(r"^features\.transition(\d)\.conv\.", r"stages.\1.transitions.0.2.", key)
    key = re.sub(r"^features\.(conv|norm)0\.", r"stem.\1.", key)
    key = re.sub(r"^features\.norm5\.", "norm.0.", key)
    return re.sub(r"^classifier\.", "head.fc.", key)


def _renaming(keys: Any) -> Callable[[str], str] | None:
    """The renaming for a family of ancestors, by its parameters' names; None for our own."""
    keys = set(keys)
    if "features.conv0.weight" in keys:
        return _densenet_key
    if "stages.0.blocks.0.conv1.weight" in keys:
        return _resnetv2_key
    return _resnet_key if "layer1.0.conv1.weight" in keys else None


def _pairs(theirs: Any, model: Network) -> dict[str, str]:
    """Their parameter names -> ours."""
    rename = _renaming(theirs)
    if rename is None:
        raise ModelError("these are not the weights of a ResNet, ResNetV2 or DenseNet of timm or torchvision")
    ours = model.state_dict().keys()
    pairs = {}
    for key in theirs:
        new = rename(key)
        if new not in ours:  # the first norm of a pre-activation stage that projects belongs to the transition
            new = re.sub(r"^stages\.(\d)\.steps\.body\.T_0\.norm1\.", r"stages.\1.transitions.0.0.", new)
        pairs[key] = new
    return pairs


def to_ours(state: State, model: Network) -> State:
    """An ancestor's state dict as ``model``'s, whose coefficients stay as they are; ours as it is.

    Raises:
        ModelError: a parameter has no place in the model.
    """
    if _renaming(state) is None:
        return state
    wanted = model.state_dict()
    made = {key: value for key, value in wanted.items() if ".coefficients." in key}
    for theirs, ours in _pairs(state, model).items():
        if ours not in wanted:
            raise ModelError(f"the weights' {theirs} has no place in this network (as {ours})")
        made[ours] = state[theirs].reshape(wanted[ours].shape) if ours == "head.fc.weight" else state[theirs]
    return made


def checkpoint_filter(state: State, model: nn.Module) -> State:
    """timm's ``pretrained_filter_fn``: published weights of the ancestor for the equal network of ours."""
    return to_ours(state, model) if isinstance(model, Network) else state


def from_timm(model: nn.Module, **options: Any) -> Network:
    """The optnet network that computes what a ResNet, ResNetV2 or DenseNet of timm or torchvision computes.

    It starts at the ancestor's coefficients; ``options`` go to ``Network`` (``algorithm``: ``heavy_ball`` for
    residual networks and ``nesterov_dense`` for dense ones; ``coefficients``, ``per_channel``, ...).

    Raises:
        ModelError: the model is of another family, or has parts (anti-aliasing, attention, ...) with no place in ours.
    """
    state = model.state_dict()
    rename = _renaming(state)
    classifiers = [state[k] for k in ("fc.weight", "head.fc.weight", "classifier.weight") if k in state]
    if rename is None or not classifiers:
        raise ModelError(f"{type(model).__name__} is not a ResNet, ResNetV2 or DenseNet of timm or torchvision")
    found = _READERS[rename](state)
    classifier = classifiers[0]
    stems = [state[k] for k in ("conv1.weight", "stem.conv.weight", "features.conv0.weight") if k in state]
    if not stems:
        raise ModelError(f"{type(model).__name__} has a stem of another kind; optnet has one convolution there")
    stem = stems[0]
    found.update(num_classes=len(classifier), in_chans=stem.shape[1], stem_width=len(stem))
    found["stem"] = "imagenet" if stem.shape[-1] == 7 else "small"
    place = {"device": classifier.device, "dtype": classifier.dtype}
    made = Network(**{**found, **place, **options})
    try:
        made.load_state_dict(to_ours(state, made))
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise ModelError(f"{type(model).__name__} has parts with no place in an optnet network: {line}") from None
    _verify(model, made)
    return made.train(model.training)


@torch.no_grad()
def _verify(model: nn.Module, made: Network) -> None:
    """Compares the two on one picture: what weights do not show (strides, blur, another activation) shows here."""
    training = model.training
    size = 64 if made.stem_kind == "imagenet" else 32
    parameter = next(model.parameters())
    x = torch.randn(1, made.in_chans, size, size, generator=torch.Generator().manual_seed(0)).to(parameter)
    wanted, got = model.eval()(x), made.eval()(x)
    model.train(training)
    if not (got - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6:
        raise ModelError(
            f"{type(model).__name__} computes something else with these weights (strides, activation, ...)"
        )


def _count(state: State, pattern: str) -> list[int]:
    """How many blocks each stage has: the largest number the pattern finds in each, plus 1."""
    blocks: dict[int, int] = {}
    for key in state:
        if match := re.match(pattern, key):
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    return [blocks[stage] for stage in sorted(blocks)]


def _read_resnet(state: State) -> dict[str, Any]:
    blocks = _count(state, r"layer(\d)\.(\d+)\.")
    widths = [len(state[f"layer{i + 1}.0.conv1.weight"]) for i in range(len(blocks))]
    layer = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    return {"algorithm": "heavy_ball", "blocks": blocks, "widths": widths, "layer": layer}


def _read_resnetv2(state: State) -> dict[str, Any]:
    blocks = _count(state, r"stages\.(\d)\.blocks\.(\d+)\.")
    widths = [len(state[f"stages.{i}.blocks.0.conv1.weight"]) for i in range(len(blocks))]
    layer = "preact_bottleneck" if "stages.0.blocks.0.conv3.weight" in state else "preact_basic"
    return {"algorithm": "heavy_ball", "blocks": blocks, "widths": widths, "layer": layer}


def _read_densenet(state: State) -> dict[str, Any]:
    counts = _count(state, r"features\.denseblock(\d)\.denselayer(\d+)\.")
    blocks = [count - 1 for count in counts]  # denselayers count from 1
    compressed = "features.denseblock1.denselayer1.conv2.weight" in state
    last = "conv2" if compressed else "conv1"
    growth = len(state[f"features.denseblock1.denselayer1.{last}.weight"])
    layer = "dense_bc" if compressed else "dense"
    return {"algorithm": "nesterov_dense", "blocks": blocks, "widths": [growth] * len(blocks), "layer": layer}


_READERS: dict[Callable[[str], str], Callable[[State], dict[str, Any]]] = {
    _resnet_key: _read_resnet,
    _resnetv2_key: _read_resnetv2,
    _densenet_key: _read_densenet,
}


def to_timm(network: Network) -> nn.Module:
    """The timm model that computes what the network computes.

    Raises:
        ModelError: a coefficient is not its ancestor's (it is named), or timm has no such family or widths.
    """
    target = _timm_model(network)
    for entry in coefficients(network):
        wanted = _ancestral(network, entry.stage, entry.step, entry.term)
        if entry.value != wanted:
            raise ModelError(
                f"the coefficient of {entry.term} in {entry.stage} {entry.step} is {entry.value:g}, not timm's "
                f"{wanted:g}; only networks at their ancestor's coefficients can be converted"
            )
    ours, state = network.state_dict(), target.state_dict()
    for theirs, name in _pairs(state, network).items():
        state[theirs] = ours[name].reshape(state[theirs].shape)
    target.load_state_dict(state)
    return target.train(network.training)


def _ancestral(network: Network, stage: str, step: str, term: str) -> float:
    """The weight of a term at the ancestor: 1 on operators and, in residual rows, the newest iterate."""
    program = network.get_submodule(stage).program
    assert isinstance(program, Program)
    layers = {call.value for call in program.applies if call.operator == program.main}
    if term in layers:
        return 1.0
    if network.layer.startswith("dense"):
        return 0.0
    row = next(row for row in program.combines if row.value == step)
    return float(term == [other for other in row.terms if other not in layers][-1])


def _timm_model(network: Network) -> nn.Module:
    if any(len(program.start.starts) > 1 for program in network.programs):
        raise ModelError("timm has no model with two streams, or with an iterate carried across stages")
    parameter = next(network.parameters())
    dd = {"device": parameter.device, "dtype": parameter.dtype}
    shared: dict[str, Any] = {"num_classes": network.num_classes, "in_chans": network.in_chans, **dd}
    blocks = tuple(int(program.start.constants["steps"]) for program in network.programs)
    standard = (
        network.widths == [64, 128, 256, 512][: len(blocks)] and len(blocks) == 4 and network.stem_kind == "imagenet"
    )
    if network.layer in ("basic", "bottleneck") and standard:
        return ResNet(BasicBlock if network.layer == "basic" else Bottleneck, blocks, **shared)
    if network.layer in ("preact_basic", "preact_bottleneck") and standard:
        name = "resnetv2_18" if network.layer == "preact_basic" else "resnetv2_50"
        return timm.create_model(name, pretrained=False, layers=blocks, **shared)
    if network.layer == "dense_bc" and network.stem_kind == "imagenet":
        return DenseNet(growth_rate=network.widths[0], block_config=blocks, **shared)
    raise ModelError(f"timm has no model with layer={network.layer}, widths={network.widths}, stem={network.stem_kind}")
