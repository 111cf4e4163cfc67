"""ADMM: a multiplier on the last layer's constraint, quadratic penalties on all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optnet.errors import ConfigError
from optnet.lifted.fit import fit
from optnet.lifted.linalg import between
from optnet.lifted.splitting import Splitting, SplittingOptions
from optnet.lifted.trainer import Blocks
from optnet.options import choice, number, option

STARTS = ("forward", "gaussian")


@dataclass(kw_only=True)
class ADMMOptions(SplittingOptions):
    """``trainer=admm``."""

    name: str = option("admm", help="the trainer")
    beta: float = number(1.0, above=0, help="penalty on u_k = W_k x_{k-1} + b_k")
    gamma: float = number(1.0, above=0, help="penalty on x_k = phi(u_k)")
    warm: int = number(10, 0, help="number of sweeps before the multiplier is first updated")
    ridge: float = number(1e-6, above=0, help="ridge parameter of the regressions for W_k, times the batch size")
    start: str = choice("forward", *STARTS, help="initial x and u: the forward pass, or N(0, 1) as published")

    def check(self) -> None:
        """Checks what the options' ranges do not.

        Raises:
            ConfigError: ``full_batch`` is false. The multiplier would be lost between batches.
        """
        if not self.full_batch:
            raise ConfigError(
                "trainer.full_batch=false: trainer=admm keeps a multiplier for each image, so each step takes all of "
                "them; use trainer=bcd for batches"
            )


class ADMM(Splitting):
    """l(u_n, y) + <lambda, u_n - m_n> + beta |u_n - m_n|^2 + sum_{k<n} gamma |x_k - phi(u_k)|^2 + beta |u_k - m_k|^2.

    Taylor, Burmeister, Xu, Singh, Patel, Goldstein 2016 (ICML). Here m_k = W_k x_{k-1} + b_k, and the squares have no
    factor 1/2. One sweep goes from the first layer to the last and sets W~_k, x_k and u_k to the minimiser of this
    Lagrangian. (``fit`` computes u_k approximately. The paper leaves lambda out of the updates of W_n and x_{n-1}.)
    The sweep ends with lambda <- lambda + 2 beta (u_n - m_n), which makes lambda = -dl/du_n. Each image has its own
    multiplier, so every sweep needs all images.
    """

    def __init__(self, model: nn.Module, options: ADMMOptions) -> None:
        super().__init__(model, options)
        self.options = options
        self.sweeps = 0

    def start(self, blocks: Blocks) -> Blocks:
        if self.options.start == "gaussian":
            blocks.u = [torch.randn_like(u) for u in blocks.u]
            blocks.x[1:] = [torch.randn_like(x) for x in blocks.x[1:]]
        blocks.dual = torch.zeros_like(blocks.y)
        return blocks

    def sweep(self, blocks: Blocks) -> Iterator[str]:
        beta, gamma = self.options.beta, self.options.gamma
        x, u, n = blocks.x, blocks.u, len(self.layers)
        assert blocks.dual is not None
        lam = self.options.ridge * len(blocks.y)
        for k in range(1, n):
            layer, after = self.layers[k - 1], self.layers[k]
            self.regress(blocks, k - 1, u[k - 1] - layer(x[k - 1]), lam)
            yield f"w{k}"
            target = u[k] + blocks.dual / (2 * beta) if k == n - 1 else u[k]
            x[k] = between(after.weight, target - after.bias, layer.activation.phi(u[k - 1]), gamma / beta)
            yield f"x{k}"
            u[k - 1] = fit(layer.activation, x[k], layer(x[k - 1]), beta / gamma, u[k - 1])
            yield f"u{k}"
        last = self.layers[-1]
        self.regress(blocks, n - 1, u[-1] + blocks.dual / (2 * beta) - last(x[-2]), lam)
        yield f"w{n}"
        u[-1] = x[-1] = self.loss.prox(last(x[-2]) - blocks.dual / (2 * beta), blocks.y, 2 * beta)
        yield f"u{n}"
        self.sweeps += 1
        if self.sweeps > self.options.warm:
            blocks.dual = blocks.dual + 2 * beta * (u[-1] - last(x[-2]))
            yield "dual"

    def lagrangian(self, blocks: Blocks, violations: list[tuple[Tensor, Tensor]]) -> Tensor:
        assert blocks.dual is not None
        last = blocks.u[-1]
        bent = (blocks.dual * (last - self.layers[-1](blocks.x[-2]))).sum(1).mean()
        paid = [self.options.gamma * one + self.options.beta * other for one, other in violations]
        return self.loss(last, blocks.y).mean() + bent + torch.stack(paid).sum()

    def factor(self) -> float:
        return self.options.gamma

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sweeps": self.sweeps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.sweeps = state["sweeps"]
