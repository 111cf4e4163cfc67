"""LPOM, lifted proximal operator machines: their penalty is convex in each block and needs only phi."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optnet.lifted.linalg import augment, pseudo_inverse, squared_norm
from optnet.lifted.trainer import Blocks, Lifted, Options
from optnet.networks.objectives import Activation
from optnet.options import choice, number, option

ORDERS = ("serial", "jacobi")
W_STEPS = ("optimizer", "gradient", "pinv", "apg")

ROWS = 256
"""Number of samples whose gaps are computed at a time, so that logging costs little memory."""


@dataclass(kw_only=True)
class LPOMOptions(Options):
    """``trainer=lpom``."""

    name: str = option("lpom", help="the trainer")
    mu: float = number(5.0, above=0, help="the penalty of the first layer")
    ratio: float = number(1.0, above=0, help="mu_{k+1} / mu_k, the ratio of the penalties of two layers")
    sweeps: int = number(1, 1, help="number of sweeps over all x_k in a step")
    iterations: int = number(3, 1, help="number of iterations for each x_k in a sweep")
    damped: bool = option(True, help="never raise the objective; false: the published iteration, which may diverge")
    order: str = choice("serial", *ORDERS, help="update x_k from last to first, or all from their old values")
    w_step: str = choice(
        "optimizer", *W_STEPS, help="the update of the weights: by optim, lr and schedule, or by a method without lr"
    )
    ridge: float = number(0.1, above=0, help="ridge parameter of the pseudo-inverse; multiplied by the batch size")
    w_iterations: int = number(5, 1, help="number of iterations of apg")


class LPOM(Lifted):
    """l(x_n, y) + sum_k mu_k (F_k(x_k) + G_k(u_k) - <x_k, u_k>), u_k = W_k x_{k-1} + b_k, F' = phi^-1, G' = phi.

    Li, Fang, Lin 2019 (AAAI). The gap of each layer is at least 0, and it is 0 exactly if x_k = phi_k(u_k).

    Activations: the update moves the pre-activation v of x_k = phi(v). With rho = mu_{k+1} / mu_k:
    v <- (1 - eta) v + eta (u_k - rho W_{k+1}^T (phi(W_{k+1} phi(v) + b_{k+1}) - x_{k+1})).
    eta = 1 is the published fixed-point iteration; it contracts if beta^2 rho |W|^2 < 1.
    eta = 1 / (1 + beta^2 rho |W|^2) is mirror descent with kernel F; it never raises the objective. |W|^2 is estimated
    by power iteration, times 1.1 to be an upper bound. The serial order goes backward, so one sweep carries the
    targets y to layer 1.

    Weights: the gradient in W_k is mu_k (phi(u_k) - x_k)^T x~_{k-1} / batch. If the x_k are at their minimiser
    (after many sweeps), it tends to the gradient of backpropagation as mu grows. After a single damped sweep it is
    smaller in the lower layers. ``optimizer`` passes it to a torch optimizer. ``gradient`` takes a gradient step of
    size batch / (mu_k beta |x~|^2), which cannot raise the objective. ``pinv`` is the paper's update
    (1/beta) (phi(u) - x)^T x~^+ with a ridge; ``apg`` repeats it with Nesterov's extrapolation and keeps the best
    result; neither raises the objective. The updates of the W_k are independent and could run in parallel.

    Memory: with serial order and one sweep, a step takes about the memory of an SGD step where the weights are
    larger than the activations: 1.06 times at three layers of width 2048 and batch 1000, but 1.3 times at width 512.

    Args:
        optimizer: for ``w_step='optimizer'``; by default SGD with lr 0.05 and momentum 0.9.
        scheduler: a scheduler of timm, stepped once per update.
    """

    def __init__(
        self, model: nn.Module, options: LPOMOptions, optimizer: Optimizer | None = None, scheduler: Any = None
    ) -> None:
        super().__init__(model, options)
        self.options = options
        self.mus = [options.mu * options.ratio**k for k in range(len(self.layers))]
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = scheduler
        self.updates = 0
        if self.loss.smoothness is None:
            self.need_linear_output()

    def partner(self, activation: Activation, u: Tensor) -> Tensor:
        """G'(u)."""
        return activation.phi(u)

    def G(self, activation: Activation, u: Tensor) -> Tensor:
        return activation.G(u)

    def beta(self, activation: Activation) -> float:
        """The Lipschitz constant of G'."""
        return activation.lipschitz

    def sweep(self, blocks: Blocks) -> Iterator[str]:
        n, v = len(self.layers), dict(enumerate(blocks.u))
        for left in reversed(range(self.options.sweeps)):
            first = blocks.u[0]
            if self.options.order == "jacobi":
                v = {k: self._activations(blocks, blocks.u[k], v[k], k + 1) for k in range(n)}
                blocks.x[1:] = [layer.activation.phi(v[k]) for k, layer in enumerate(self.layers)]
                yield "x"
            else:
                for k in range(n, 0, -1):
                    moved = self._activations(blocks, blocks.u.pop(), v.pop(k - 1), k)
                    blocks.x[k] = self.layers[k - 1].activation.phi(moved)
                    if left:
                        v[k - 1] = moved
                    del moved
                    yield f"x{k}"
            blocks.u = [first, *(layer(x) for layer, x in zip(self.layers[1:], blocks.x[1:-1], strict=True))]
        v.clear()
        self._measured = self.measure(blocks)
        for k in range(n):
            self._weights(blocks, blocks.u.pop(0), k)
            yield f"w{k + 1}"
        self.updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)

    # activations

    def _activations(self, blocks: Blocks, centre: Tensor, v: Tensor, k: int) -> Tensor:
        """The pre-activation v of x_k = phi(v) after its iterations, with all other blocks fixed; ``centre`` is u_k."""
        phi, mu = self.layers[k - 1].activation, self.mus[k - 1]
        if k == len(self.layers):
            if phi.is_identity or (phi.is_rectifier and self.loss.quadratic):
                return self.loss.prox(centre, blocks.y, mu)
            smooth = phi.lipschitz * (self.loss.smoothness or 0) / mu
        else:
            layer, rho = self.layers[k], self.mus[k] / mu
            smooth = phi.lipschitz * self.beta(layer.activation) * rho * squared_norm(layer.weight)
        eta = 1 / (1 + smooth) if self.options.damped else 1.0
        for _ in range(self.options.iterations):
            if k == len(self.layers):
                pull = self.loss.gradient(phi.phi(v), blocks.y) / mu
            else:
                ahead = self.partner(layer.activation, layer(phi.phi(v))).sub_(blocks.x[k + 1])
                pull = (ahead @ layer.weight).mul_(rho)
                del ahead
            v = pull.neg_().add_(centre).sub_(v).mul_(eta).add_(v)  # in place, to save memory
        return v

    # weights

    def _weights(self, blocks: Blocks, u: Tensor, k: int) -> None:
        layer, x, target = self.layers[k], blocks.x[k], blocks.x[k + 1]
        beta, share = self.beta(layer.activation), self.mus[k] / len(x)
        residual = self.partner(layer.activation, u) - target
        del u
        if self.options.w_step in ("optimizer", "gradient"):
            linear = layer.linear
            residual.mul_(share)
            linear.weight.grad, linear.bias.grad = residual.T @ x, residual.sum(0)
            if self.options.w_step == "optimizer":
                self.optimizer.step()  # updates only this layer: the others have no gradient
            else:
                lr = 1 / (share * beta * squared_norm(augment(x)))
                layer.set(layer.joined - lr * torch.cat([linear.weight.grad, linear.bias.grad[:, None]], 1))
            linear.weight.grad = linear.bias.grad = None
            return
        inverse = pseudo_inverse(x, self.options.ridge * len(x))
        if self.options.w_step == "pinv":
            layer.set(layer.joined - residual.T @ inverse / beta)
            return
        best = before = ahead = layer.joined
        lowest, t = self._layer_objective(blocks, k), 1.0
        for _ in range(self.options.w_iterations):
            layer.set(ahead)
            trial = ahead - (self.partner(layer.activation, layer(x)) - target).T @ inverse / beta
            layer.set(trial)
            value, later = self._layer_objective(blocks, k), (1 + (1 + 4 * t * t) ** 0.5) / 2
            before = best
            if value <= lowest:
                best, lowest = trial, value
            ahead = best + t / later * (trial - best) + (t - 1) / later * (best - before)
            t = later
        layer.set(best)

    def _layer_objective(self, blocks: Blocks, k: int) -> Tensor:
        u = self.layers[k](blocks.x[k])
        return (self.G(self.layers[k].activation, u) - blocks.x[k + 1] * u).sum() / len(u)

    # the log

    def measure(self, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
        """Measured at the weights that produced the given u_k."""
        gaps = []
        for layer, *pair in zip(self.layers, blocks.x[1:], blocks.u, strict=True):
            parts = zip(*(part.split(ROWS) for part in pair), strict=True)
            gap = [(layer.activation.F(x) + self.G(layer.activation, u) - x * u).sum() for x, u in parts]
            gaps.append(torch.stack(gap).sum() / len(blocks.y))
        penalty = torch.stack([mu * gap for mu, gap in zip(self.mus, gaps, strict=True)]).sum()
        return self.loss(blocks.x[-1], blocks.y).mean() + penalty, gaps

    def objective(self, blocks: Blocks) -> Tensor:
        u = [layer(x) for layer, x in zip(self.layers, blocks.x[:-1], strict=True)]
        return self.measure(Blocks(blocks.y, blocks.x, u))[0]

    def log(self, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
        """The values measured between the updates of activations and weights, when all u_k were known."""
        return self._measured

    def factor(self) -> float:
        return self.options.mu

    def scalars(self) -> dict[str, float]:
        used = {"optim/lr": self.optimizer.param_groups[0]["lr"]} if self.options.w_step == "optimizer" else {}
        return {**super().scalars(), **used}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)
