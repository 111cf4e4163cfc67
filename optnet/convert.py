"""Weights between the ancestors (timm's and torchvision's ResNet, ResNetV2, DenseNet) and the equal optnet networks."""

from __future__ import annotations

import copy
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
    """A pre-activation ResNet's parameter name as ours (a first norm may be the transition's: see ``_pairs``)."""
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

    The stem and the classifier keep their own sizes: timm adapts the one and drops the other where they differ.

    Raises:
        ModelError: a parameter has no place in the model, or another shape there.
    """
    if _renaming(state) is None:
        return state
    wanted = model.state_dict()
    made = {key: value for key, value in wanted.items() if ".coefficients." in key}
    for theirs, ours in _pairs(state, model).items():
        value = state[theirs]
        if ours == "head.fc.weight":
            value = value.flatten(1)
        elif not ours.startswith(("stem.conv.", "head.fc.")) and ours not in wanted:
            raise ModelError(f"the weights' {theirs} has no place in this network (as {ours})")
        elif ours.startswith("stages.") and value.shape != wanted[ours].shape:
            raise ModelError(
                f"the weights' {theirs} is {_shape(value)}, but this network's {ours} {_shape(wanted[ours])}"
            )
        made[ours] = value
    return made


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def checkpoint_filter(state: State, model: nn.Module) -> State:
    """timm's ``pretrained_filter_fn``: published weights of the ancestor for the equal network of ours."""
    return to_ours(state, model) if isinstance(model, Network) else state


def from_timm(model: nn.Module, **options: Any) -> Network:
    """The optnet network that computes what a ResNet, ResNetV2 or DenseNet of timm or torchvision computes.

    ``options`` go to ``Network`` (``algorithm``: ``heavy_ball`` for residual networks and ``nesterov_dense`` for dense
    ones; ``coefficients``, ``coefficient_init``, ``algorithm_kwargs``, ...). At the ancestor's coefficients, the
    default, it computes the same; at others it computes its own with the same weights: heavy ball with step = 0.1 and
    beta = 0.9 makes a Momentum ResNet of a ResNet.

    Raises:
        ModelError: the model is of another family, or has parts (wide or deep stems and blocks, anti-aliasing,
            attention, group norm, stochastic depth, ...) with no place in ours; or an option is wrong.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"from_timm converts a model like timm.create_model('resnet18'), not {type(model).__name__}")
    name, state = type(model).__name__, model.state_dict()
    rename = _renaming(state)
    if rename is None:
        raise ModelError(f"{name} is not a ResNet, ResNetV2 or DenseNet of timm or torchvision")
    stem = next((state[k] for k in ("conv1.weight", "stem.conv.weight", "features.conv0.weight") if k in state), None)
    if stem is None:
        raise ModelError(f"{name} has a stem of another kind; optnet has one convolution there")
    if stem.is_meta:
        raise ModelError(f"{name} has no weights to convert: it is on the meta device")
    classifier = next((state[k] for k in ("fc.weight", "head.fc.weight", "classifier.weight") if k in state), None)
    found = {
        **_READERS[rename](state), "stem": "imagenet" if stem.shape[-1] == 7 else "small", "stem_width": len(stem),
        "in_chans": stem.shape[1], "num_classes": 0 if classifier is None else len(classifier),
        "drop_rate": _dropout(model),
    }  # fmt: skip
    _verify(model, _filled(model, {**found, "dtype": torch.float64}), found["in_chans"], stem.shape[-1])
    place = {"device": stem.device, "dtype": stem.dtype}
    return _filled(model, {**found, **place, **options}).train(model.training)


def _filled(model: nn.Module, options: dict[str, Any]) -> Network:
    """A network with the model's weights, and with the constants of its norms."""
    try:
        made = Network(**options)
    except TypeError as error:
        raise ModelError(f"from_timm: {error}") from None
    state = model.state_dict()
    weights, wanted = to_ours(state, made), made.state_dict()
    for key, value in wanted.items():
        if key not in weights:
            raise ModelError(f"{type(model).__name__} has nothing for this network's {key}")
        if weights[key].shape != value.shape:
            raise ModelError(
                f"{type(model).__name__}'s {key} is {_shape(weights[key])}, not {_shape(value)}; in_chans and "
                f"num_classes are the model's own"
            )
    made.load_state_dict(weights)
    _share_constants(model, made, _pairs(state, made))
    return made


def _share_constants(source: nn.Module, target: nn.Module, pairs: dict[str, str]) -> None:
    """Gives the target's batch norms the eps and momentum of their partners."""
    for theirs, ours in pairs.items():
        if theirs.endswith(".running_mean"):
            norms = source.get_submodule(theirs[:-13]), target.get_submodule(ours[:-13])
            norms[1].eps, norms[1].momentum = norms[0].eps, norms[0].momentum


def _dropout(model: nn.Module) -> float:
    """The rate of the dropout before the classifier.

    Raises:
        ModelError: something inside the blocks drops at random, which optnet's blocks do not.
    """
    rate = getattr(model, "drop_rate", 0.0)
    for name, module in model.named_modules():
        here = module.p if isinstance(module, nn.Dropout) else getattr(module, "drop_prob", None)
        here = here or (getattr(module, "drop_rate", 0.0) if name else 0.0)
        if here and not name.startswith("head"):
            raise ModelError(f"{type(model).__name__}'s {name} drops at random; optnet's blocks do not")
        rate = here or rate
    return float(rate)


@torch.no_grad()
def _verify(one: nn.Module, two: nn.Module, channels: int, kernel: int) -> None:
    """Compares two models with equal weights on one picture: what weights do not show (strides, pooling, another
    activation) shows there. In float64, on copies whose norms are moved alike: fresh ones hide their branches."""
    size = 64 if kernel == 7 else 32
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = []
    for model in (one, two):
        model = copy.deepcopy(model).to("cpu", torch.float64).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor += 0.1
        outputs.append(model(x))
    wanted, got = outputs
    if got.shape != wanted.shape or not (got - wanted).norm() <= 1e-8 * wanted.norm():
        raise ModelError(
            f"{type(one).__name__} and {type(two).__name__} compute different things with the same weights (strides, "
            f"activation, pooling, ...)"
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
        ModelError: a coefficient is not its ancestor's (it is named), or timm has no such family, widths or parts.
    """
    if not isinstance(network, Network):
        raise ModelError(f"to_timm converts an optnet.Network, not {type(network).__name__}")
    target = _timm_model(network)
    for entry in coefficients(network):
        wanted = _ancestral(network, entry.stage, entry.step, entry.term)
        if entry.value != wanted:
            raise ModelError(
                f"the coefficient of {entry.term} in {entry.stage} {entry.step} is {entry.value:g}, not timm's "
                f"{wanted:g}; only networks at their ancestor's coefficients can be converted"
            )
    ours, state = network.state_dict(), target.state_dict()
    pairs = _pairs(state, network)
    for theirs, name in pairs.items():
        if name not in ours or ours[name].numel() != state[theirs].numel():
            raise ModelError(f"this network has nothing that fits timm's {theirs} ({_shape(state[theirs])})")
        state[theirs] = ours[name].reshape(state[theirs].shape)
    target.load_state_dict(state)
    _share_constants(network, target, {ours: theirs for theirs, ours in pairs.items()})
    _verify(network, target, network.in_chans, 7 if network.stem_kind == "imagenet" else 3)
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
    if network.norm_kind != "batch":
        raise ModelError(f"timm's ancestors have batch norms, this network has norm={network.norm_kind}")
    if any(len(program.start.starts) > 1 for program in network.programs):
        raise ModelError("timm has no model with two streams, or with an iterate carried across stages")
    parameter = next(network.parameters())
    dd = {"device": parameter.device, "dtype": parameter.dtype}
    shared: dict[str, Any] = {
        "num_classes": network.num_classes, "in_chans": network.in_chans, "act_layer": network.act_layer,
        "global_pool": network.head.global_pool.pool_type, "drop_rate": network.head.drop.p, **dd,
    }  # fmt: skip
    blocks = tuple(int(program.start.constants["steps"]) for program in network.programs)
    standard = network.widths == [64, 128, 256, 512] and network.stem_kind == "imagenet"
    if network.layer in ("basic", "bottleneck") and standard:
        return ResNet(BasicBlock if network.layer == "basic" else Bottleneck, blocks, **shared)
    if network.layer in ("preact_basic", "preact_bottleneck") and standard:
        name = "resnetv2_18" if network.layer == "preact_basic" else "resnetv2_50"
        return timm.create_model(name, pretrained=False, layers=blocks, **shared)
    if network.layer == "dense_bc" and network.stem_kind == "imagenet":
        return DenseNet(growth_rate=network.widths[0], block_config=blocks, **shared)
    raise ModelError(f"timm has no model with layer={network.layer}, widths={network.widths}, stem={network.stem_kind}")
