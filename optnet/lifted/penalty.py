"""The lifted quadratic penalty for ReLU networks: Zhang and Brand 2017, Askari et al. 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optnet.lifted.lpom import LPOM, W_STEPS, LPOMOptions
from optnet.networks.objectives import Activation
from optnet.options import choice, option


@dataclass(kw_only=True)
class PenaltyOptions(LPOMOptions):
    """``trainer=penalty``. The options are those of ``trainer=lpom``."""

    name: str = option("penalty", help="the trainer")
    w_step: str = choice(
        "pinv", *W_STEPS, help="pinv: the minimiser with ridge times |W - old W|^2; others: as in trainer=lpom"
    )


class Penalty(LPOM):
    """l(x_n, y) + sum_k mu_k/2 |x_k - W_k x_{k-1} - b_k|^2, with x_k >= 0 after a ReLU.

    This is LPOM with G(u) = u^2 / 2 instead of max(u, 0)^2 / 2. The forward pass is not a stationary point of this
    objective, so the method does not minimise the network's loss. ``pinv`` is the proximal step of each
    W~_k = [W_k, b_k]: argmin_V |x_k - x~_{k-1} V^T|^2 + ridge batch |V - W~_k|^2.
    """

    def __init__(
        self, model: nn.Module, options: PenaltyOptions, optimizer: Optimizer | None = None, scheduler: Any = None
    ) -> None:
        super().__init__(model, options, optimizer, scheduler)
        for layer in self.layers:
            phi = layer.activation
            self.need(phi.is_rectifier or phi.is_identity, f"relu activations, not {phi.name}; trainer=lpom takes any")

    def partner(self, activation: Activation, u: Tensor) -> Tensor:
        return u

    def G(self, activation: Activation, u: Tensor) -> Tensor:
        return u * u / 2

    def beta(self, activation: Activation) -> float:
        return 1.0
