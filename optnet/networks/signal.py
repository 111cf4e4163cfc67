"""Measures how large activations and gradients are at every depth of an untrained network. Changes no weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from optnet.errors import ModelError, RequestError, drawable, reason
from optnet.networks.initialisation import initialise, linear_maps
from optnet.networks.modes import mode
from optnet.networks.unrolled import unrolled_in


@dataclass(frozen=True)
class Point:
    """The signal at one layer's input, which is an iterate x_k in our networks.

    Attributes:
        layer: the name of the layer.
        activation: the root mean square of the input's entries.
        gradient: the Euclidean norm of the gradient with respect to the input, divided by that of the deepest layer.
    """

    layer: str
    activation: float
    gradient: float


def of(
    name: str, scheme: str, options: Mapping[str, Any], *, batch: int = 16, size: int | None = None, seed: int = 0
) -> tuple[str, list[Point]]:
    """The shape of a batch of N(0, 1) noise, and the signal of a freshly initialised timm model on it.

    Args:
        name: the model's name in timm.
        scheme: the initialisation, one of ``initialisation.SCHEMES``.
        options: the model's keyword arguments.
        batch: the number of images.
        size: their height and width. By default the model's input size, at most 64 if the model takes any size.
        seed: the seed of weights and noise.

    Raises:
        ModelError: there is no such model, or it does not take these options or images.
        ConfigError: the scheme does not suit the model.
    """
    if not timm.is_model(name):
        raise ModelError(f"unknown model '{name}'; see optnet.list_models() and timm.list_models()")
    torch.manual_seed(seed)
    channels, height, _ = timm.get_pretrained_cfg_value(name, "input_size") or (3, 64, 64)
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        options = {"img_size": size or height, **options}
    else:
        height = min(height, 64)
    with _refused(name):
        model = timm.create_model(name, **options)
        images = torch.randn(batch, options.get("in_chans", channels), size or height, size or height)
        initialise(model, scheme, images=images)
        return "x".join(map(str, images.shape)), measure(model, images, seed)


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Turns an exception of any model about options, images or a scheme into a ``ModelError`` of one line."""
    try:
        yield
    except RequestError:
        raise
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name} cannot be built or run with these options and images: {reason(error)}") from None


def measure(model: nn.Module, images: Tensor, seed: int = 0) -> list[Point]:
    """The signal at every call of the operator T (in other models, of every linear layer), in the order of the calls.

    The model runs in training mode. The gradient is that of a random linear function of the logits, so it does not
    depend on a loss. Calls that are not on a path from the images to the logits are left out.

    Raises:
        ModelError: the model does not return a single tensor, or no gradient reaches its deepest layer.
    """
    names: list[str] = []
    sizes: list[float] = []
    gradients: dict[int, float] = {}
    hooks = []
    images = images.clone().requires_grad_()

    def look(name: str) -> Any:
        def before(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0][-1] if arguments and isinstance(arguments[0], list) else next(iter(arguments), None)
            if not isinstance(x, Tensor) or not x.requires_grad:
                return
            place = len(names)
            names.append(name)
            sizes.append(x.detach().square().mean().sqrt().item())
            x.register_hook(lambda gradient: gradients.__setitem__(place, gradient.norm().item()))

        return before

    kept = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with mode(model, training=True):
            for name, layer in _layers(model).items():
                hooks.append(layer.register_forward_pre_hook(look(name)))
            try:
                logits = model(images)
            finally:  # before the backward pass, which recomputes checkpointed layers
                for hook in hooks:
                    hook.remove()
            if not isinstance(logits, Tensor):
                raise ModelError("this model does not return one tensor; the signal needs a model that does")
            direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)).to(logits)
            torch.autograd.grad((logits * direction).sum(), images)
    finally:
        for name, value in model.named_buffers():
            value.copy_(kept[name])
    calls = sorted(gradients)
    last = gradients[calls[-1]] if calls else 0.0
    if last == 0:
        raise ModelError("no gradient reaches the deepest linear map, so there is no signal to compare with")
    return [Point(names[call], sizes[call], gradients[call] / last) for call in calls]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers T of all unrolled algorithms by name; in a model without one, all linear layers and convolutions."""
    found: dict[str, nn.Module] = {}
    for stage, module in unrolled_in(model).items():
        for name, layer in module.served_by(module.program.main).items():
            found[f"{stage}.{name}"] = layer
    maps = linear_maps(model)
    return found or {name: layer for name, layer in model.named_modules() if layer in maps}


def figure(points: dict[str, Sequence[Point]], title: str) -> Figure:
    """Plots activations and gradients against depth on logarithmic scales, with one line per entry of ``points``."""
    made = Figure(figsize=(10, 4), layout="constrained")
    left, right = made.subplots(1, 2)
    for name, line in points.items():
        label = drawable(name)
        depth = range(1, len(line) + 1)
        left.semilogy(depth, [point.activation for point in line], marker=".", label=label)
        right.semilogy(depth, [point.gradient for point in line], marker=".", label=label)
    left.set(title=f"{drawable(title)}: activations", xlabel="layer", ylabel="root mean square")
    right.set(title="gradients", xlabel="layer", ylabel="norm, over the deepest layer's")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return made
