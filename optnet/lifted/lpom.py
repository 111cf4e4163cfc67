"""LPOM, lifted proximal operator machines: the penalty whose every block is convex and which needs phi alone."""

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
"""Samples whose gaps are computed at a time, so that the log costs little memory."""


@dataclass(kw_only=True)
class LPOMOptions(Options):
    """``trainer=lpom``."""

    name: str = option("lpom", help="the trainer")
    mu: float = number(5.0, above=0, help="the penalty of the first layer")
    ratio: float = number(1.0, above=0, help="the penalty of the next layer over a layer's")
    sweeps: int = number(1, 1, help="sweeps over all activations in a step")
    iterations: int = number(3, 1, help="iterations of each layer's activations in a sweep")
    damped: bool = option(True, help="never raise the objective; false: the published iteration, which may diverge")
    order: str = choice("serial", *ORDERS, help="from the last layer to the first, or all at once from the old ones")
    w_step: str = choice(
        "optimizer", *W_STEPS, help="the weights' gradients go to optim, lr and schedule; or a step that needs no lr"
    )
    ridge: float = number(0.1, above=0, help="of the pseudo-inverse, times the batch")
    w_iterations: int = number(5, 1, help="iterations of apg")


class LPOM(Lifted):
    """l(x_n, y) + sum_k mu_k (F_k(x_k) + G_k(u_k) - <x_k, u_k>), u_k = W_k x_{k-1} + b_k, F' = phi^-1, G' = phi.

    Li, Fang, Lin 2019 (AAAI). Each layer's gap is at least 0, and 0 only if x_k = phi_k(u_k).

    x_k moves by its pre-activation v, x_k = phi(v), with rho = mu_{k+1} / mu_k:
    v <- (1 - eta) v + eta (u_k - rho W_{k+1}^T (phi(W_{k+1} phi(v) + b_{k+1}) - x_{k+1})).
    eta = 1 is the published fixed point, a contraction if beta^2 rho |W|^2 < 1. eta = 1 / (1 + beta^2 rho |W|^2) is
    mirror descent with kernel F and never raises the objective. The sweep goes backward: one carries y to layer 1.
    |W|^2 is what power iterations find, times 1.1 to be above it.

    W_k sees the gradient mu_k (phi(u_k) - x_k)^T x~_{k-1} / batch, which tends to backpropagation's as mu grows if the
    x_k are at their minimiser, after many sweeps; after a single damped one it is smaller in the lower layers.
    ``optimizer`` hands it to one of torch's; ``gradient`` takes the step that cannot raise the objective,
    batch / (mu_k beta |x~|^2); ``pinv`` is the paper's (1/beta) (phi(u) - x)^T x~^+ with a ridge; ``apg`` repeats it by
    Nesterov's extrapolation and keeps the best: neither raises it. No W_k needs another: all may go in parallel.

    A step takes about the memory of SGD's where the weights outweigh the activations, in serial order with one sweep:
    1.06 times at three layers of width 2048 and batch 1000, but 1.3 times at width 512.

    Args:
        optimizer: for ``w_step='optimizer'``; by default SGD with lr 0.05 and momentum 0.9.
        scheduler: one of timm's, stepped once an update.
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
        """v with x_k = phi(v) after the iterations of x_k, the other blocks fixed; ``centre`` is u_k."""
        phi, mu = self.layers[k - 1].activation, self.mus[k - 1]
        if k == len(self.layers):
            if phi.name == "identity" or (phi.name == "relu" and self.loss.name == "squared"):
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
                self.optimizer.step()  # of this layer alone: the others have no gradient
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
        """At the weights for which u_k is given."""
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
        """As measured between activations and weights, when u_k was known."""
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
