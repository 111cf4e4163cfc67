"""The registered models, a few lines each: presets of ``Network`` that ``timm.create_model`` knows by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from optnet.algorithms import find_algorithm
from optnet.errors import ModelError, RequestError
from optnet.network import Network
from optnet.tracing import Algorithm


def _cfg(size: int = 32, **kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10, "input_size": (3, size, size), "pool_size": (size // 4, size // 4), "crop_pct": 1.0,
        "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
        "first_conv": "stem.conv", "classifier": "head.fc", "license": "mit", **kwargs,
    }  # fmt: skip


SMALL = ("gdnet_small", "resnet_small", "hbnet_small", "agdnet_small", "admmnet_small")
default_cfgs = generate_default_cfgs({name: _cfg() for name in SMALL})


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    feature_cfg = {"out_indices": (0, 1, 2), "feature_cls": "getter"}
    return build_model_with_cfg(Network, name, pretrained, feature_cfg=feature_cfg, **kwargs)


def list_models() -> list[str]:
    """The names of the registered models, sorted."""
    return sorted(default_cfgs)


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


_SMALL: dict[str, Any] = {"blocks": (2, 2, 2), "widths": (16, 32, 64)}


@register_model
def gdnet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Gradient descent, map reading: a plain CNN of 12 layers for pictures of 8 to 32 pixels."""
    preset = {"algorithm": "gradient_descent", "blocks": (4, 4, 4), "widths": (16, 32, 64)}
    return _create("gdnet_small", pretrained, **{**preset, **kwargs})


@register_model
def resnet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Gradient descent, residual reading: a small ResNet."""
    preset = {"algorithm": "gradient_descent", "layer": "basic", "reading": "residual", **_SMALL}
    return _create("resnet_small", pretrained, **{**preset, **kwargs})


@register_model
def hbnet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Heavy ball: a small HB-Net, ResNet at the start."""
    return _create("hbnet_small", pretrained, **{"algorithm": "heavy_ball", **_SMALL, **kwargs})


@register_model
def agdnet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Nesterov's method in dense form: a small AGD-Net, DenseNet at the start."""
    preset = {"algorithm": "nesterov_dense", "blocks": (4, 4, 4), "widths": (12, 12, 12), "stem_width": 24}
    return _create("agdnet_small", pretrained, **{**preset, **kwargs})


@register_model
def admmnet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Merge-and-run: a small ADMM-Net, DMRNet at the start."""
    return _create("admmnet_small", pretrained, **{"algorithm": "merge_and_run", **_SMALL, **kwargs})
