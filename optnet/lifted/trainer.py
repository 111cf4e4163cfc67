"""The lifted problem and the block-coordinate loop that all its methods share. Knows no method by name.

A network x_k = phi_k(W_k x_{k-1} + b_k), k = 1..n, is lifted by turning its activations x_k into variables and
penalising violated constraints: minimise l(x_n, y) + sum_k mu_k gap_k over weights and activations, one block at a
time. Scores and checkpoints are always those of the network itself, through its forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optnet.errors import CheckpointError, DataError, ModelError
from optnet.lifted.chain import read
from optnet.lifted.losses import LOSSES
from optnet.options import check, choice


@dataclass
class Blocks:
    """The variables of one batch other than the weights.

    Attributes:
        y: targets, (batch, outputs).
        x: activations x_0 (the images) .. x_n, each (batch, width).
        u: pre-activations u_1 .. u_n, indexed from 0: u[k] belongs to x[k + 1] and to layer k.
        dual: the multiplier, if the method has one.
    """

    y: Tensor
    x: list[Tensor]
    u: list[Tensor]
    dual: Tensor | None = None


@dataclass(kw_only=True)
class Options:
    """The options that all methods share."""

    loss: str = choice("squared", *LOSSES, help="the loss of the last activations")


class Lifted(ABC):
    """A block-coordinate trainer; ``step`` updates all blocks of a batch once.

    Args:
        model: a chain of Linear layers and non-decreasing activations, like ``model=mlp``.
        options: the options of the method.
        full_batch: every step gets all training images in the same order, and the activations are kept between
            steps. If false, each batch starts from its forward pass.

    Raises:
        ModelError: the model is not such a chain.
        ConfigError: an option is unknown or out of range.
    """

    def __init__(self, model: nn.Module, options: Options, full_batch: bool = False) -> None:
        check(options, "trainer.")
        self.model = model
        self.full_batch = full_batch
        self.layers = read(model)
        self.loss = LOSSES[options.loss]
        self._kept: Blocks | None = None
        self._sums: list[Tensor] = []

    # what a method implements

    @abstractmethod
    def sweep(self, blocks: Blocks) -> Iterator[str]:
        """Updates one block after the other and yields the name of each: ``x2``, ``u1``, ``w1``, ``dual``."""

    @abstractmethod
    def measure(self, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
        """The objective that the updates lower, and each layer's gap without the factor mu; means over the batch."""

    def log(self, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
        """The objective and gaps to log after a sweep."""
        return self.measure(blocks)

    def objective(self, blocks: Blocks) -> Tensor:
        """The objective at the current weights and blocks."""
        return self.measure(blocks)[0]

    @abstractmethod
    def factor(self) -> float:
        """mu, to be logged."""

    def start(self, blocks: Blocks) -> Blocks:
        """The blocks that the method starts from, given the forward pass."""
        return blocks

    # the loop

    def forward(self, images: Tensor, labels: Tensor) -> Blocks:
        """The feasible point x_k = phi_k(u_k), u_k = W_k x_{k-1} + b_k.

        Raises:
            DataError: the images or labels do not fit the network or each other.
        """
        x, u = [images.flatten(1)], []
        given, wanted = x[0].shape[1], self.layers[0].weight.shape[1]
        if given != wanted:
            raise DataError(f"images of {given} values do not fit the network's {wanted} inputs")
        for layer in self.layers:
            u.append(layer(x[-1]))
            x.append(layer.activation.phi(u[-1]))
        return Blocks(self.loss.targets(labels, x[-1]), x, u)

    @torch.no_grad()
    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One sweep over the blocks of a batch (batch, ...). ``labels`` are classes, or targets (batch, outputs).

        Returns:
            The mean loss of the network's forward pass before the sweep, and the number of correct predictions. The
            loss is the cross-entropy in nats, or the trainer's own loss if targets were given. It is NaN once a block
            or the objective is not finite.

        Raises:
            DataError: the images or labels do not fit the network or each other.
        """
        blocks = self.forward(images, labels)
        outputs = blocks.x[-1]
        forward = self.loss(outputs, blocks.y).mean()
        right = torch.zeros((), dtype=torch.long, device=labels.device)
        if not labels.is_floating_point():
            right = (outputs.argmax(1) == labels).sum()
        loss = forward if labels.is_floating_point() else F.cross_entropy(outputs, labels)
        blocks = self._keep(blocks) if self.full_batch else self.start(blocks)
        try:
            for _ in self.sweep(blocks):
                pass
        except torch.linalg.LinAlgError:  # a block no longer has a finite minimiser
            return torch.full_like(loss, torch.nan), right
        objective, gaps = self.log(blocks)
        measured = [torch.ones_like(objective), objective, forward, *gaps]
        self._sums = [a + b for a, b in zip(self._sums, measured, strict=True)] if self._sums else measured
        return torch.where(objective.isfinite(), loss, torch.nan), right

    def _keep(self, fresh: Blocks) -> Blocks:
        """The blocks of the previous step with this step's images; at the first step, those of the forward pass."""
        if self._kept is None:
            self._kept = self.start(fresh)
        if len(self._kept.x[1]) != len(fresh.y):
            raise CheckpointError(
                f"the kept activations are of {len(self._kept.x[1])} images, but the step has "
                f"{len(fresh.y)}; give the same images in every step"
            )
        self._kept.y, self._kept.x[0] = fresh.y, fresh.x[0]
        return self._kept

    def scalars(self) -> dict[str, float]:
        """Means over the steps since the last call (objective, loss of the forward pass, gaps), mu and weight norms."""
        logged = {"mu": self.factor()}
        if self._sums:
            count, objective, forward, *gaps = (float(value) for value in self._sums)
            logged |= {"objective": objective / count, "forward_loss": forward / count}
            logged |= {f"gap/layer{k}": gap / count for k, gap in enumerate(gaps, 1)}
        self._sums = []
        for k, layer in enumerate(self.layers, 1):
            logged[f"norm/layer{k}"] = float(layer.weight.norm())
        return logged

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the model's own state, as tensors and plain containers."""
        kept = self._kept
        blocks = None if kept is None else {"x": kept.x[1:], "u": kept.u, "dual": kept.dual}
        return {"blocks": blocks, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        to = self.layers[0].weight.device
        self._sums = [value.to(to) for value in state["sums"]]
        if (kept := state["blocks"]) is not None:
            nowhere = torch.empty(0)  # the images and targets come with the next step
            dual = None if kept["dual"] is None else kept["dual"].to(to)
            x, u = ([value.to(to) for value in kept[key]] for key in "xu")
            self._kept = Blocks(nowhere, [nowhere, *x], u, dual)

    def need(self, condition: bool, what: str) -> None:
        """Checks a condition that the method needs; ``what`` is named in the message.

        Raises:
            ModelError: the condition does not hold.
        """
        if not condition:
            raise ModelError(f"trainer={type(self).__name__.lower()} needs {what}")

    def need_linear_output(self) -> None:
        last = self.layers[-1].activation
        self.need(last.is_identity, f"a linear last layer, without the {last.name} after it")
