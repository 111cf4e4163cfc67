"""What the splitting methods share: pre-activations as variables of their own, kept from step to step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from optnet.lifted.linalg import gram, ridge
from optnet.lifted.trainer import Blocks, Lifted, Options


@dataclass(kw_only=True)
class SplittingOptions(Options):
    """What both splitting methods can be told.

    Attributes:
        full_batch: all training pictures in each step; else each batch starts anew from its forward pass.
    """

    full_batch: bool = True


class Splitting(Lifted):
    """Constraints u_k = W_k x_{k-1} + b_k and x_k = phi(u_k), both paid for by squares; no activation on the output."""

    def __init__(self, model: nn.Module, options: SplittingOptions) -> None:
        super().__init__(model, options, options.full_batch)
        self.need_linear_output()
        self._pictures: Tensor | None = None

    def regress(self, blocks: Blocks, k: int, target: Tensor, lam: float, around: Tensor | None = None) -> None:
        """W~_k <- argmin |target - x~ W~^T|^2 + lam |W~ - around|^2; x_0 never changes, so its Gram matrix is kept."""
        known = None
        if k == 0 and self.full_batch:
            known = self._pictures = gram(blocks.x[0]) if self._pictures is None else self._pictures
        self.layers[k].set(ridge(blocks.x[k], target, lam, around, known))

    def gaps(self, blocks: Blocks) -> list[Tensor]:
        """1/2 |x_k - phi(u_k)|^2 + 1/2 |u_k - W_k x_{k-1} - b_k|^2."""
        rows = zip(self.layers, blocks.x[:-1], blocks.u, blocks.x[1:], strict=True)
        return [
            ((after - layer.activation.phi(u)).square().sum(1) + (u - layer(before)).square().sum(1)).mean() / 2
            for layer, before, u, after in rows
        ]
