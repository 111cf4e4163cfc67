"""The base of the splitting methods: pre-activations are variables too and are kept between steps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from optnet.lifted.linalg import gram, ridge
from optnet.lifted.trainer import Blocks, Lifted, Options
from optnet.options import option


@dataclass(kw_only=True)
class SplittingOptions(Options):
    """The options that both splitting methods share."""

    full_batch: bool = option(
        True, help="take all training images in each step and keep their activations; else each batch starts afresh"
    )


class Splitting(Lifted):
    """Penalises two constraints per layer, x_k = phi(u_k) and u_k = W_k x_{k-1} + b_k.

    Their violations are |x_k - phi(u_k)|^2 and |u_k - W_k x_{k-1} - b_k|^2, averaged over the batch. The last layer
    must be linear.
    """

    def __init__(self, model: nn.Module, options: SplittingOptions) -> None:
        super().__init__(model, options, options.full_batch)
        self.need_linear_output()
        self._gram: Tensor | None = None

    def regress(self, blocks: Blocks, k: int, residual: Tensor, lam: float) -> None:
        """Adds argmin_D |residual - x~ D^T|^2 + lam |D|^2 to W~_k. The Gram matrix of x_0, a constant, is kept."""
        known = None
        if k == 0 and self.full_batch:
            known = self._gram = gram(blocks.x[0]) if self._gram is None else self._gram
        layer = self.layers[k]
        layer.set(layer.joined + ridge(blocks.x[k], residual, lam, known))

    @abstractmethod
    def lagrangian(self, blocks: Blocks, violations: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The objective, given the violations of every layer."""

    def measure(self, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
        """The gap of a layer is the mean of its two violations."""
        rows = zip(self.layers, blocks.x[:-1], blocks.u, blocks.x[1:], strict=True)
        violations = [
            ((after - layer.activation.phi(u)).square().sum(1).mean(), (u - layer(before)).square().sum(1).mean())
            for layer, before, u, after in rows
        ]
        return self.lagrangian(blocks, violations), [(one + other) / 2 for one, other in violations]
