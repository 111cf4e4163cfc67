"""How a network gets the weights of an equal one, and timm's description of it. Knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
