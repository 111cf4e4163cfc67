"""Reads a network as a chain of affine layers with activations, the form that lifted training needs. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optnet.errors import ModelError
from optnet.networks import objectives
from optnet.networks.mlp import MLP
from optnet.networks.objectives import Activation, Elementwise


@dataclass(frozen=True)
class Layer:
    """x -> phi(W x + b): a Linear layer of the network and the activation that follows it."""

    linear: nn.Linear
    activation: Activation

    @property
    def weight(self) -> Tensor:
        """W, the network's own tensor: (outputs, inputs)."""
        return self.linear.weight.detach()

    @property
    def bias(self) -> Tensor:
        """b, the network's own tensor: (outputs,)."""
        return self.linear.bias.detach()

    @property
    def joined(self) -> Tensor:
        """W~ = [W, b], a copy: (outputs, inputs + 1)."""
        return torch.cat([self.weight, self.bias[:, None]], 1)

    def set(self, joined: Tensor) -> None:
        """Writes W~ = [W, b] into the network."""
        self.weight.copy_(joined[:, :-1])
        self.bias.copy_(joined[:, -1])

    def __call__(self, x: Tensor) -> Tensor:
        """u = W x + b, before the activation."""
        return F.linear(x, self.weight, self.bias)


PLAIN: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: objectives.relu(),
    nn.LeakyReLU: lambda m: objectives.leaky_relu(m.negative_slope),
    nn.ELU: lambda m: objectives.elu(m.alpha),
    nn.Sigmoid: lambda m: objectives.sigmoid(),
    nn.Tanh: lambda m: objectives.tanh(),
    nn.Softplus: lambda m: _softplus(m),
    nn.Softsign: lambda m: objectives.softsign(),
    nn.Softshrink: lambda m: objectives.soft_threshold(m.lambd),
    nn.SiLU: lambda m: objectives.swish(),
    nn.GELU: lambda m: objectives.gelu(),
}
"""Maps torch's activation modules to those of ``optnet.objectives``."""


def _softplus(module: nn.Softplus) -> Activation:
    if module.beta != 1:
        raise ModelError(
            f"a lifted trainer takes Softplus only with beta=1, not {module.beta}; use optnet.objectives.own"
        )
    return objectives.softplus()


def read(model: nn.Module) -> list[Layer]:
    """The layers of a chain: our ``mlp``, or any Sequential of Flatten, Linear and activations.

    Raises:
        ModelError: a module is of another kind; a Linear has no bias, occurs twice, has a parametrization or is an
            instance of a subclass; or an activation decreases somewhere.
    """
    layers: list[Layer] = []
    pending: nn.Linear | None = None

    def close(activation: Activation) -> None:
        nonlocal pending
        if pending is None:
            raise ModelError(
                f"a lifted trainer needs a Linear layer before each activation; {activation.name} has none"
            )
        if not activation.monotone:
            raise ModelError(f"{activation.name} decreases somewhere, so it cannot be lifted; use a non-decreasing one")
        layers.append(Layer(pending, activation))
        pending = None

    for module in _leaves(model):
        if isinstance(module, nn.Linear):
            _check_linear(module)
            if any(module.weight is known.weight for known in (*(layer.linear for layer in layers), pending) if known):
                raise ModelError("a lifted trainer cannot train a Linear layer that occurs twice in the chain")
            if pending is not None:
                close(objectives.identity())
            pending = module
        elif isinstance(module, Elementwise):
            close(module.activation)
        elif type(module) in PLAIN:
            close(PLAIN[type(module)](module))
        elif not isinstance(module, nn.Flatten | nn.Identity) and not (isinstance(module, nn.Dropout) and not module.p):
            raise ModelError(
                f"a lifted trainer cannot train {type(model).__name__}: it takes chains of Linear layers and "
                f"activations, like model=mlp, but there is a {type(module).__name__}"
            )
    if pending is not None:
        close(objectives.identity())
    if not layers:
        raise ModelError(f"a lifted trainer cannot train {type(model).__name__}: it has no Linear layer; use model=mlp")
    return layers


def _check_linear(module: nn.Linear) -> None:
    """Checks that W and b are plain parameters of the layer, so that they can be written to."""
    if type(module) is not nn.Linear or not isinstance(module.weight, nn.Parameter):
        kind = type(module).__name__ if type(module) is not nn.Linear else "Linear whose weight is computed"
        raise ModelError(f"a lifted trainer trains plain Linear layers, not a {kind}; remove its parametrization")
    if module.bias is None:
        raise ModelError("a lifted trainer needs Linear layers that have a bias")


def _leaves(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a chain in order, repeated if used repeatedly. A module that is not a chain is a leaf."""
    if isinstance(model, nn.Sequential | MLP):
        for child in model._modules.values():  # children() skips repeated modules
            yield from _leaves(child)  # type: ignore[arg-type]
    else:
        yield model
