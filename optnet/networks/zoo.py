"""The registered models: presets of ``Network`` that ``timm.create_model`` knows by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from optnet.errors import ModelError, ProgramError, RequestError, ShapeError, reason
from optnet.language.declaration import Algorithm
from optnet.language.lookup import find_algorithm
from optnet.networks import mlp
from optnet.networks.convert import checkpoint_filter
from optnet.networks.design import StageProgram, suitable_layer
from optnet.networks.features import Features
from optnet.networks.layers import FAMILIES, TOKEN_FAMILIES
from optnet.networks.network import Network
from optnet.networks.options import NetworkOptions
from optnet.networks.token_zoo import TOKEN_MODELS, build_token_network
from optnet.networks.tokens import TokenNetwork
from optnet.networks.unrolled import coefficient_names


@dataclass(frozen=True)
class Preset:
    """A named model.

    Attributes:
        algorithm: its name.
        blocks, widths: the iterations and the width of each stage.
        options: see ``NetworkOptions``.
        published: the weights of its exact ancestor that it can load: tag -> name of timm's model.
    """

    algorithm: str
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)


_CIFAR = (16, 32, 64)
_IMAGENET = (64, 128, 256, 512)
_18, _34_50, _121 = (2, 2, 2, 2), (3, 4, 6, 3), (6, 12, 24, 16)


def _net(algorithm: str, blocks: Sequence[int], widths: Sequence[int] = _CIFAR, **options: Any) -> Preset:
    return Preset(algorithm, tuple(blocks), tuple(widths), options)


def _large(
    algorithm: str, blocks: Sequence[int], widths: Sequence[int] = _IMAGENET, published: str = "", **options: Any
) -> Preset:
    weights = {published.partition(".")[2]: published} if published else {}
    return Preset(algorithm, tuple(blocks), tuple(widths), {"stem": "imagenet", **options}, weights)


def _dense(iterations: int, layer: str = "dense", stem_width: int = 16) -> Preset:
    return _net("nesterov_dense", [iterations] * 3, [12] * 3, layer=layer, stem_width=stem_width)


def _convnext(blocks: Sequence[int], widths: Sequence[int], published: str, tags: Sequence[str]) -> Preset:
    weights = {tag: f"{published}.{tag}" for tag in tags}
    return Preset("heavy_ball", tuple(blocks), tuple(widths), {"layer": "convnext", "stem": "patch"}, weights)


_RESNET: dict[str, Any] = {"layer": "basic", "reading": "residual", "coefficients": "fixed"}
"""x_{k+1} = relu(x_k + F(x_k)) without learnable coefficients: timm's resnet18 and so on, which have those names."""


def _resnet(blocks: Sequence[int]) -> Preset:
    return _net("gradient_descent", blocks, **_RESNET)


def _dmr(preset: Preset) -> Preset:
    """Without the iterates before the newest ones, and with the ancestor's weights."""
    options = {"constants": {"history": 1}, "coefficients": "fixed"}
    return replace(preset, options={**preset.options, **options})


MODELS: dict[str, Preset] = {
    # 8 to 32 pixels, for a first look
    "gdnet_small": _net("gradient_descent", [4] * 3),
    "resnet_small": _net("gradient_descent", [2] * 3, layer="basic", reading="residual"),
    "hbnet_small": _net("heavy_ball", [2] * 3),
    "agdnet_small": _dense(4, stem_width=24),
    "admmnet_small": _net("merge_and_run", [2] * 3),
    # 32 pixels: depth 6n + 2 (basic), 9n + 2 (bottleneck), 3m + 4 (dense); a plain net of depth 6n + 2 has 2n per stage
    "gdnet20_cifar": _net("gradient_descent", [6] * 3),
    "gdnet56_cifar": _net("gradient_descent", [18] * 3),
    "hbnet20_cifar": _net("heavy_ball", [3] * 3),
    "hbnet56_cifar": _net("heavy_ball", [9] * 3),
    "hbnet110_cifar": _net("heavy_ball", [18] * 3),
    "hbnet83_cifar": _net("heavy_ball", [9] * 3, layer="preact_bottleneck"),
    "hbnet164_cifar": _net("heavy_ball", [18] * 3, layer="preact_bottleneck"),
    "agdnet40_cifar": _dense(12),
    "agdnet52_cifar": _dense(16),
    "agdnet100_bc_cifar": _dense(16, layer="dense_bc", stem_width=24),
    "admmnet20_cifar": _net("merge_and_run", [3] * 3),
    "admmnet56_cifar": _net("merge_and_run", [9] * 3),
    "optnet_resnet20_cifar": _resnet([3] * 3),
    "optnet_resnet56_cifar": _resnet([9] * 3),
    "dmrnet20_cifar": _dmr(_net("merge_and_run", [3] * 3)),
    "dmrnet56_cifar": _dmr(_net("merge_and_run", [9] * 3)),
    # 224 pixels
    "gdnet34": _large("gradient_descent", (6, 8, 12, 6)),
    "hbnet18": _large("heavy_ball", _18, published="resnet18.a1_in1k"),
    "hbnet34": _large("heavy_ball", _34_50, published="resnet34.a1_in1k"),
    "hbnet50": _large("heavy_ball", _34_50, published="resnet50.a1_in1k", layer="bottleneck"),
    "optnet_resnet18": _large("gradient_descent", _18, published="resnet18.a1_in1k", **_RESNET),
    "optnet_resnet34": _large("gradient_descent", _34_50, published="resnet34.a1_in1k", **_RESNET),
    "optnet_resnet50": _large(
        "gradient_descent", _34_50, published="resnet50.a1_in1k", **{**_RESNET, "layer": "bottleneck"}
    ),
    "agdnet121": _large(
        "nesterov_dense", _121, [32] * 4, published="densenet121.ra_in1k", layer="dense_bc", stem_width=64
    ),
    "admmnet34": _large("merge_and_run", _34_50),
    "admmnet50": _large("merge_and_run", _34_50, layer="bottleneck"),
    "hbconvnext_tiny": _convnext(
        (3, 3, 9, 3), (96, 192, 384, 768), "convnext_tiny", ["in12k_ft_in1k", "fb_in22k_ft_in1k", "fb_in1k"]
    ),
    "dmrnet34": _dmr(_large("merge_and_run", _34_50)),
    "dmrnet50": _dmr(_large("merge_and_run", _34_50, layer="bottleneck")),
}


def _cfg(preset: Preset) -> dict[str, Any]:
    """The default configuration of a model, which describes the images it is meant for."""
    ours = {"first_conv": "stem.conv", "classifier": "head.fc"}
    if preset.options.get("stem") == "imagenet":
        return {
            **ours, "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.95,
            "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "license": "mit",
        }  # fmt: skip
    return {
        **ours, "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (8, 8), "crop_pct": 1.0, "license": "mit",
        "interpolation": "bicubic", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616),
    }  # fmt: skip


def _default_cfgs() -> dict[str, Any]:
    cfgs: dict[str, Any] = {}
    for name, preset in MODELS.items():
        for tag, ancestor in preset.published.items():
            published = timm.get_pretrained_cfg(ancestor)
            cfgs[f"{name}.{tag}"] = replace(published, first_conv="stem.conv", classifier="head.fc")
        if not preset.published:
            cfgs[name] = _cfg(preset)
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())


def build_network(
    algorithm: str | Callable[..., Any] | Algorithm | None = None,
    blocks: Sequence[int] = (2, 2),
    widths: Sequence[int] = (16, 32),
    *,
    programs: Sequence[Mapping[str, Any]] | None = None,
    layer: str | None = None,
    constants: Mapping[str, Any] | None = None,
    num_classes: int = 10,
    in_chans: int = 3,
    global_pool: str = "avg",
    device: Any = None,
    dtype: Any = None,
    **options: Any,
) -> Network:
    """A network from an algorithm, or from its stages' programs as a checkpoint holds them, which runs no user file.

    Raises:
        ModelError: neither is given, or the programs come without their layer family.
    """
    shared: dict[str, Any] = {
        "num_classes": num_classes, "in_chans": in_chans, "global_pool": global_pool, "device": device, "dtype": dtype,
    }  # fmt: skip
    if programs is not None:
        if layer is None:
            raise ModelError("programs= needs layer=, the layer family they were made for")
        stages = [StageProgram.from_json(program) for program in programs]
        return Network(stages, widths, layer=layer, options=NetworkOptions(layer=layer, **options), **shared)
    if algorithm is None:
        raise ModelError("algorithm is missing; see optnet.list_algorithms()")
    return Network.from_algorithm(algorithm, blocks, widths, layer=layer, constants=constants, **shared, **options)


def _its_layers(preset: Preset) -> dict[str, str]:
    """The layers of a model and how they are read; with another algorithm they stay."""
    own = find_algorithm(preset.algorithm)
    layer = preset.options.get("layer") or suitable_layer(own)
    reading = preset.options.get("reading") or own.network.reading or ("map" if layer == "plain" else "residual")
    return {"layer": layer, "reading": reading}


def _try_shapes(model: Network) -> None:
    """Raises:
    ShapeError: terms of a sum differ in shape.
    """
    parameter, training = next(model.parameters()), model.training
    with torch.no_grad():
        model.eval()(parameter.new_zeros(1, model.in_chans, 32, 32))
    model.train(training)


def _entry_point(name: str, preset: Preset) -> Callable[..., nn.Module]:
    features = {"out_indices": tuple(range(len(preset.blocks))), "feature_cls": Features}

    def create(pretrained: bool = False, feature_cfg: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
        own = {"algorithm": preset.algorithm, "blocks": preset.blocks, "widths": preset.widths, **preset.options}
        if other := kwargs.get("algorithm") if kwargs.get("programs") is None else None:
            for key in ("coefficients", "constants"):  # of its own algorithm
                own.pop(key, None)
            if kwargs.get("layer") is None:
                own |= _its_layers(preset)
                kwargs = {key: value for key, value in kwargs.items() if key not in own or value is not None}
        try:
            model: nn.Module = build_model_with_cfg(
                build_network, name, pretrained, pretrained_filter_fn=checkpoint_filter,
                feature_cfg={**features, **(feature_cfg or {})}, **{**own, **kwargs},
            )  # fmt: skip
            if other and isinstance(model, Network) and not FAMILIES[model.layer].one_width:
                _try_shapes(model)
            return model
        except (ProgramError, ShapeError) as error:
            if not other or kwargs.get("layer"):
                raise
            method = find_algorithm(other)
            raise ModelError(
                f"{method.name} does not go with the layer={own['layer']} of {name}: {error}; "
                f"or give it layer={suitable_layer(method)}"
            ) from None

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{preset.algorithm} as a network; its arguments are those of ``Network.from_algorithm``."
    return create


for _name, _preset in MODELS.items():
    register_model(_entry_point(_name, _preset))


def list_models() -> list[str]:
    """The names of all models that optnet registers with timm, sorted."""
    return sorted([*MODELS, *TOKEN_MODELS, *mlp.default_cfgs])


def has_algorithm(name: str) -> bool:
    """Whether a model of this name, without a tag, is an unrolled algorithm."""
    return name in MODELS or name in TOKEN_MODELS


def create_model(algorithm: str | Callable[..., Any] | Algorithm, **kwargs: Any) -> Network | TokenNetwork:
    """A network from any algorithm, registered or your own.

    The arguments are those of ``Network.from_algorithm`` or, with a layer family on tokens like ``layer="vit_half"``,
    those of ``TokenNetwork.from_algorithm``.

    Raises:
        AlgorithmError, ModelError: the algorithm or an option is wrong.
    """
    try:
        if kwargs.get("layer") in TOKEN_FAMILIES:
            return build_token_network(algorithm, **kwargs)
        return build_network(algorithm, **kwargs)
    except RequestError:
        raise
    except TypeError as error:
        raise ModelError(f"create_model: {reason(error)}") from None


def freeze_all_but_coefficients(model: nn.Module) -> nn.Module:
    """Freezes every parameter but the algorithm's learnable coefficients; returns the model.

    The norms' running statistics are not parameters, so they still change in training mode.

    Raises:
        ModelError: the model has no learnable coefficients.
    """
    learnable = coefficient_names(model)
    if not learnable:
        raise ModelError("the model has no learnable coefficients; make it with coefficients='learnable'")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learnable)
    return model
