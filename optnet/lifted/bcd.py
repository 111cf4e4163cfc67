"""BCD: block coordinate descent on the three-splitting penalty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optnet.lifted.fit import fit
from optnet.lifted.linalg import between
from optnet.lifted.splitting import Splitting, SplittingOptions
from optnet.lifted.trainer import Blocks
from optnet.options import number, option


@dataclass(kw_only=True)
class BCDOptions(SplittingOptions):
    """``trainer=bcd``."""

    name: str = option("bcd", help="the trainer")
    gamma: float = number(1.0, above=0, help="penalty on x_k = phi(u_k)")
    rho: float = number(1.0, above=0, help="penalty on u_k = W_k x_{k-1} + b_k")
    alpha: float = number(1.0, above=0, help="proximal weight: the penalty on a block's distance to its old value")


class BCD(Splitting):
    """sum over samples of l(x_n, y) + gamma/2 sum_k |x_k - phi(u_k)|^2 + rho/2 sum_k |u_k - W_k x_{k-1} - b_k|^2.

    Zeng, Lau, Lin, Yao 2019 (ICML). One sweep goes from the last layer to the first and sets x_k, u_k and
    W~_k = [W_k, b_k] to their minimisers (``fit`` computes u_k approximately). The proximal term
    alpha/2 |block - old|^2 is added where their theorem requires it. No update raises the objective.
    """

    def __init__(self, model: nn.Module, options: BCDOptions) -> None:
        super().__init__(model, options)
        self.options = options

    def sweep(self, blocks: Blocks) -> Iterator[str]:
        gamma, rho, alpha = self.options.gamma, self.options.rho, self.options.alpha
        x, u, n = blocks.x, blocks.u, len(self.layers)
        for k in range(n, 0, -1):
            layer = self.layers[k - 1]
            if k == n:
                weight = gamma + alpha
                x[k] = self.loss.prox((gamma * u[k - 1] + alpha * x[k]) / weight, blocks.y, weight)
            else:
                after = self.layers[k]
                x[k] = between(after.weight, u[k] - after.bias, layer.activation.phi(u[k - 1]), gamma / rho)
            yield f"x{k}"
            m = layer(x[k - 1])
            centre = (rho * m + alpha * u[k - 1]) / (rho + alpha)
            u[k - 1] = fit(layer.activation, x[k], centre, (rho + alpha) / gamma, u[k - 1])
            yield f"u{k}"
            self.regress(blocks, k - 1, u[k - 1] - m, alpha / rho)
            yield f"w{k}"

    def lagrangian(self, blocks: Blocks, violations: list[tuple[Tensor, Tensor]]) -> Tensor:
        paid = [self.options.gamma / 2 * one + self.options.rho / 2 * other for one, other in violations]
        return self.loss(blocks.x[-1], blocks.y).mean() + torch.stack(paid).sum()

    def factor(self) -> float:
        return self.options.gamma
