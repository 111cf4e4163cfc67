"""How a network gets the weights of an equal one, and timm's description of it. Knows no architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optnet.errors import ModelError


def shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def fill(made: nn.Module, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Gives a network its weights, which are those of a model of timm or torchvision by the network's names.

    Raises:
        ModelError: some are missing, or differ in shape.
    """
    for key, value in made.state_dict().items():
        if key not in weights:
            raise ModelError(f"{type(model).__name__} has no counterpart of this network's {key}; change the options")
        if weights[key].shape != value.shape:
            raise ModelError(
                f"{type(model).__name__}'s {key} is {shape(weights[key])}, not {shape(value)}; leave in_chans "
                f"and num_classes as the model has them"
            )
    made.load_state_dict(weights)


def share_cfg(source: nn.Module, target: Any, stem: str, head: str | tuple[str, ...]) -> None:
    """Gives the target timm's description of the images, the classes and the weights, if the source has one."""
    given = getattr(source, "pretrained_cfg", None)
    if given:
        target.pretrained_cfg = target.default_cfg = {**given, "first_conv": stem, "classifier": head}


@torch.no_grad()
def verify(theirs: nn.Module, ours: nn.Module, to_ours: Callable[[Any, Any], Any], image: tuple[int, ...]) -> None:
    """Compares two models with equal weights: weights do not show strides, heads, pooling or activations.

    It runs float64 copies on one image, with every parameter moved, because fresh norms, layer scales and zeros would
    hide their branches. The copy of ours takes the moved parameters from the copy of theirs.

    Args:
        to_ours: (their state dict, our network) -> our state dict.
        image: its shape, (channels, height, width).

    Raises:
        ModelError: the outputs differ.
    """
    one, two = (copy.deepcopy(model).to("cpu", torch.float64).eval() for model in (theirs, ours))
    draws = torch.Generator().manual_seed(0)
    for parameter in one.parameters():
        moved = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        parameter.add_(moved, alpha=0.1 if parameter.ndim < 2 else 0.02)
    two.load_state_dict(to_ours(one.state_dict(), two))
    x = torch.randn(1, *image, generator=draws, dtype=torch.float64)
    wanted, got = one(x), two(x)
    if got.shape != wanted.shape or not (got - wanted).norm() <= 1e-8 * wanted.norm():
        raise ModelError(
            f"{type(theirs).__name__} and {type(ours).__name__} have different outputs with the same weights: strides, "
            "heads, activation or pooling differ"
        )
