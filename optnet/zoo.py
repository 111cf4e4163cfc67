"""The registered models: presets of ``Network`` that ``timm.create_model`` knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from optnet.algorithms import find_algorithm
from optnet.convert import checkpoint_filter
from optnet.errors import ModelError, RequestError
from optnet.network import Network
from optnet.tracing import Algorithm

_CIFAR = (16, 32, 64)
_IMAGENET = (64, 128, 256, 512)
_18, _34_50, _121 = (2, 2, 2, 2), (3, 4, 6, 3), (6, 12, 24, 16)


def _net(algorithm: str, blocks: Sequence[int], widths: Sequence[int] = _CIFAR, **options: Any) -> dict[str, Any]:
    return {"algorithm": algorithm, "blocks": tuple(blocks), "widths": tuple(widths), **options}


def _large(algorithm: str, blocks: Sequence[int], widths: Sequence[int] = _IMAGENET, **options: Any) -> dict[str, Any]:
    return _net(algorithm, blocks, widths, stem="imagenet", **options)


def _dense(steps: int, layer: str = "dense", stem_width: int = 16) -> dict[str, Any]:
    return _net("nesterov_dense", [steps] * 3, [12] * 3, layer=layer, stem_width=stem_width)


MODELS: dict[str, dict[str, Any]] = {
    # 8 to 32 pixels, for a first look
    "gdnet_small": _net("gradient_descent", [4] * 3),
    "resnet_small": _net("gradient_descent", [2] * 3, layer="basic", reading="residual"),
    "hbnet_small": _net("heavy_ball", [2] * 3),
    "agdnet_small": _dense(4, stem_width=24),
    "admmnet_small": _net("merge_and_run", [2] * 3),
    # 32 pixels: depth 6n + 2 (basic), 9n + 2 (bottleneck), 3m + 4 (dense); a plain net has 6n + 2 layers of its own
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
    # 224 pixels
    "gdnet34": _large("gradient_descent", (6, 8, 12, 6)),
    "hbnet18": _large("heavy_ball", _18),
    "hbnet34": _large("heavy_ball", _34_50),
    "hbnet50": _large("heavy_ball", _34_50, layer="bottleneck"),
    "agdnet121": _large("nesterov_dense", _121, [32] * 4, layer="dense_bc", stem_width=64),
    "admmnet34": _large("merge_and_run", _34_50),
    "admmnet50": _large("merge_and_run", _34_50, layer="bottleneck"),
}

PRETRAINED = {
    "hbnet18.a1_in1k": "resnet18.a1_in1k",
    "hbnet34.a1_in1k": "resnet34.a1_in1k",
    "hbnet50.a1_in1k": "resnet50.a1_in1k",
    "agdnet121.ra_in1k": "densenet121.ra_in1k",
}
"""Models with an exact ancestor, and whose published weights they load."""


def _cfg(name: str) -> dict[str, Any]:
    """The default configuration of a model: the pictures it is meant for."""
    ours = {"first_conv": "stem.conv", "classifier": "head.fc"}
    if MODELS[name].get("stem") == "imagenet":
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
    for name in MODELS:
        tags = [tag for tag in PRETRAINED if tag.startswith(f"{name}.")]
        for tag in tags:
            published = timm.get_pretrained_cfg(PRETRAINED[tag])
            cfgs[tag] = replace(published, first_conv="stem.conv", classifier="head.fc")
        if not tags:
            cfgs[name] = _cfg(name)
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            Network, name, pretrained, pretrained_filter_fn=checkpoint_filter,
            feature_cfg={"out_indices": tuple(range(len(MODELS[name]["blocks"]))), "feature_cls": "getter"},
            **{**MODELS[name], **kwargs},
        )  # fmt: skip

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{MODELS[name]['algorithm']} as a network; its arguments are those of ``Network``."
    return create


for _name in MODELS:
    register_model(_entry_point(_name))


def list_models() -> list[str]:
    """The names of the registered models, sorted."""
    return sorted(MODELS)


def create_model(algorithm: str | Callable[..., Any] | Algorithm, **kwargs: Any) -> Network:
    """A network built from any algorithm, registered or your own; the arguments are those of ``optnet.Network``.

    Raises:
        AlgorithmError, ModelError: the algorithm or an option is wrong.
    """
    try:
        return Network(find_algorithm(algorithm), **kwargs)
    except RequestError:
        raise
    except TypeError as error:
        raise ModelError(f"create_model: {error}") from None


def freeze_all_but_coefficients(model: nn.Module) -> nn.Module:
    """Freezes every parameter but the algorithm's learnable coefficients; returns the model.

    The norms' running statistics are no parameters: they go on moving in training mode.

    Raises:
        ModelError: the model has no learnable coefficients.
    """
    if not any(".coefficients." in f".{name}" for name, _ in model.named_parameters()):
        raise ModelError("the model has no learnable coefficients; make it with coefficients='learnable'")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".coefficients." in f".{name}")
    return model
