"""MAC, the method of auxiliary coordinates: a quadratic penalty, with Gauss-Newton steps in weights and coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optnet.errors import ConfigError
from optnet.lifted.linalg import augment, conjugate_gradients, gram, ridge
from optnet.lifted.trainer import Blocks, Lifted, Options
from optnet.options import number, option

SAMPLES = 25
"""Number of samples whose coordinates are solved for at a time, so that their matrices fit into the cache."""

ELEMENTS = 2**24
"""Maximum number of elements of an array in the weights' normal equations."""

HALVINGS = 10


@dataclass(kw_only=True)
class MACOptions(Options):
    """``trainer=mac``."""

    name: str = option("mac", help="the trainer")
    mu: float = number(1.0, above=0, help="the initial penalty; it is constant if full_batch is false")
    growth: float = number(10.0, 1, help="the factor by which mu grows after a sweep over all images that stalls")
    stall: float = number(0.05, 0, 1, help="a sweep stalls if it lowers the objective by less than this fraction")
    mu_max: float = number(1e6, above=0, help="the largest mu")
    damping: float = number(
        1e-6, above=0, help="added to the diagonal of the weights' normal equations; multiplied by the batch size"
    )
    cg: int = number(
        10, 0,
        help="number of conjugate-gradient iterations for each unit's normal equations, preconditioned if full_batch; "
        "0 solves them by Cholesky factorisation",
    )  # fmt: skip
    full_batch: bool = option(
        True, help="each step takes all training images and keeps their activations; else each batch starts afresh"
    )

    def check(self) -> None:
        """Checks what the options' ranges do not.

        Raises:
            ConfigError: mu is larger than mu_max.
        """
        if self.mu > self.mu_max > 0:  # the options' ranges refuse values that are not positive
            raise ConfigError(f"trainer.mu={self.mu:g} is above trainer.mu_max={self.mu_max:g}; raise mu_max")


class MAC(Lifted):
    """sum over samples of l(W_n x_{n-1} + b_n, y) + mu/2 sum_{k<n} |x_k - phi(W_k x_{k-1} + b_k)|^2, mu -> infinity.

    Carreira-Perpinan and Wang 2014 (AISTATS). The poster writes the squared loss without 1/2; its mu is twice this one.

    Weights: each hidden unit is a separate nonlinear least-squares problem and takes one Gauss-Newton step with step
    halving. The last layer is a regression. Coordinates: each sample is a separate problem whose Gauss-Newton system is
    block tridiagonal; it is solved exactly by elimination from the first layer on. No update raises the objective.
    """

    def __init__(self, model: nn.Module, options: MACOptions) -> None:
        super().__init__(model, options, options.full_batch)
        self.options = options
        self.mu, self.before = options.mu, math.inf
        self.need_linear_output()
        self.need(self.loss.smoothness is not None, "a loss with curvature: squared or cross_entropy, not hinge")
        self.need(len(self.layers) > 1, "a hidden layer")

    def sweep(self, blocks: Blocks) -> Iterator[str]:
        if self.full_batch:
            self._raise(blocks)
        self._output(blocks)
        yield f"w{len(self.layers)}"
        self._coordinates(blocks)
        yield "x"
        for k in range(len(self.layers) - 1):
            self._hidden(blocks, k)
            yield f"w{k + 1}"
        self._output(blocks)
        yield f"w{len(self.layers)}"

    def start(self, blocks: Blocks) -> Blocks:
        """Only the coordinates x_1 .. x_{n-1} are variables."""
        return Blocks(blocks.y, blocks.x[:-1], [])

    def _raise(self, blocks: Blocks) -> None:
        """Raises mu if the last sweep lowered the objective too little; ``before`` is the objective it began with."""
        now = float(self.objective(blocks))
        if now > (1 - self.options.stall) * self.before:
            self.mu = min(self.mu * self.options.growth, self.options.mu_max)
            now = float(self.objective(blocks))
        self.before = now

    # weights

    def _hidden(self, blocks: Blocks, k: int) -> None:
        """(x~^T diag(phi'^2) x~ + damping) dw = x~^T (phi' (target - phi)) for every unit."""
        layer, x, target = self.layers[k], augment(blocks.x[k]), blocks.x[k + 1]
        phi, damping = layer.activation.phi, self.options.damping * len(x)
        u, joined = layer(blocks.x[k]), layer.joined
        slope = layer.activation.slope(u)
        right = (slope * (target - phi(u))).T @ x
        if self.options.cg:
            curved = slope.square()
            step = conjugate_gradients(
                lambda p: ((x @ p.T) * curved).T @ x + damping * p,
                right,
                self.options.cg,
                self._preconditioner(blocks.x[k], curved.mean(0)),
            )
        else:
            step = torch.cat([_normal(x, part, rows, damping) for part, rows in _units(x, slope, right)])
        moved = x @ step.T

        def value(size: Tensor) -> Tensor:
            return (phi(u + size * moved) - target).square().sum(0)

        layer.set(joined + _halved(value, step.shape[0], x)[:, None] * step)

    def _output(self, blocks: Blocks) -> None:
        layer, x = self.layers[-1], blocks.x[-1]
        damping = self.options.damping * len(x)
        if self.loss.quadratic:
            layer.set(layer.joined + ridge(x, blocks.y - layer(x), damping))
            return
        z, joined, u = augment(x), layer.joined, layer(x)

        def hessian(p: Tensor) -> Tensor:
            d = p.view_as(joined)
            return (self.loss.curvature(u, z @ d.T).T @ z + damping * d).view(1, -1)

        right = -(self.loss.gradient(u, blocks.y).T @ z).view(1, -1)
        precondition = self._preconditioner(x, x.new_ones(len(joined)))
        step = conjugate_gradients(
            hessian, right, self.options.cg or 50, lambda r: precondition(r.view_as(joined)).view(1, -1)
        ).view_as(joined)
        moved = z @ step.T
        size = _halved(lambda size: self.loss(u + size * moved, blocks.y).sum()[None], 1, z)
        layer.set(joined + size * step)

    def _preconditioner(self, x: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """An approximation of (curvature_d x~^T x~ + damping)^-1 for each unit d: one inverse, scaled for each unit.

        Batches are not preconditioned: a few plain iterations regularise, where exact solutions would fit each batch.
        """
        if not self.full_batch:
            return lambda r: r
        factor = curvature[:, None].clamp(min=self.options.damping)  # for a nearly dead unit
        square = gram(x)
        square.diagonal().add_(self.options.damping * len(x) / float(factor.max()))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(square))
        return lambda r: (r.double() @ inverse).to(r.dtype) / factor

    # coordinates

    def _coordinates(self, blocks: Blocks) -> None:
        """One Gauss-Newton step for every sample, halved per sample until its objective does not rise."""
        d = self._direction(blocks.x, blocks.y)

        def value(size: Tensor) -> Tensor:
            moved = [blocks.x[0], *(a + size[:, None] * b for a, b in zip(blocks.x[1:], d, strict=True))]
            return self._energy(moved, blocks.y)

        size = _halved(value, len(blocks.y), blocks.x[0])[:, None]
        blocks.x[1:] = [a + size * b for a, b in zip(blocks.x[1:], d, strict=True)]

    def _direction(self, x: list[Tensor], y: Tensor) -> list[Tensor]:
        """The Gauss-Newton direction d_1 .. d_{n-1} of the coordinates x_1 .. x_{n-1}.

        It minimises mu/2 sum_k |r_k + d_k - B_k d_{k-1}|^2 plus the loss's second-order model in V d_{n-1}, where
        r_k = x_k - phi(u_k), B_k = diag(phi'(u_k)) W_k and V = W_n. The residuals e_k = r_k + d_k - B_k d_{k-1} satisfy
        e_{k-1} = B_k^T e_k, so all follow from the last one, e = e_{n-1}: d_{n-1} = m + P e with m = m_{n-1},
        P = P_{n-1}, m_k = B_k m_{k-1} - r_k, P_k = I + B_k P_{k-1} B_k^T, and mu e = -V^T (g + H V (m + P e)), where g
        and H are the gradient and Hessian of the loss.
        """
        hidden, V = self.layers[:-1], self.layers[-1].weight
        residuals, slopes = [], []
        m = torch.zeros(())
        for k, layer in enumerate(hidden):
            u = layer(x[k])
            residuals.append(x[k + 1] - layer.activation.phi(u))
            slopes.append(layer.activation.slope(u))
            m = slopes[k] * (m @ layer.weight.T) - residuals[k] if k else -residuals[0]
        u = self.layers[-1](x[-1])
        linear = self.loss.gradient(u, y) + self.loss.curvature(u, m @ V.T)
        parts = zip(*(part.split(SAMPLES) for part in (u, linear, *slopes)), strict=True)
        excess = [torch.cat([self._excess(u, linear, slopes) for u, linear, *slopes in parts])]
        for k in range(len(hidden) - 1, 0, -1):
            excess.insert(0, (slopes[k] * excess[0]) @ hidden[k].weight)
        d = [excess[0] - residuals[0]]
        for k in range(1, len(hidden)):
            d.append(slopes[k] * (d[-1] @ hidden[k].weight.T) - residuals[k] + excess[k])
        return d

    def _excess(self, u: Tensor, linear: Tensor, slopes: list[Tensor]) -> Tensor:
        """e = e_{n-1} for some samples, from mu e + V^T H V P e = -V^T ``linear`` with ``linear`` = g + H V m."""
        V, mu = self.layers[-1].weight, self.mu
        first, *others = self.layers[:-1]
        P = torch.eye(len(first.weight), dtype=V.dtype, device=V.device)
        for layer, slope in zip(others, slopes[1:], strict=True):
            P = layer.weight @ P @ layer.weight.T * slope[:, :, None]
            P.mul_(slope[:, None, :]).diagonal(dim1=-2, dim2=-1).add_(1)
        if V.shape[0] <= V.shape[1]:
            system = self.loss.curvature(u, (V @ P @ V.T).expand(len(u), -1, -1)) / mu
            system = system + torch.eye(V.shape[0], dtype=V.dtype, device=V.device)
            return -torch.linalg.solve(system, linear) @ V / mu
        Q = V.T @ self.loss.curvature(u, V.expand(len(u), -1, -1)) if not self.loss.quadratic else V.T @ V
        system = Q @ P + mu * torch.eye(V.shape[1], dtype=V.dtype, device=V.device)
        return -torch.linalg.solve(system.expand(len(u), -1, -1), linear @ V)

    def _energy(self, x: list[Tensor], y: Tensor) -> Tensor:
        """The objective of each sample at x_0 .. x_{n-1}."""
        total = self.loss(self.layers[-1](x[-1]), y)
        for layer, before, after in zip(self.layers[:-1], x[:-1], x[1:], strict=True):
            total = total + self.mu / 2 * (after - layer.activation.phi(layer(before))).square().sum(1)
        return total

    # the log

    def measure(self, blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
        """The gaps are 1/2 |x_k - phi(W_k x_{k-1} + b_k)|^2 of the hidden layers; the output has no coordinate."""
        rows = zip(self.layers[:-1], blocks.x[:-1], blocks.x[1:], strict=True)
        gaps = [
            (after - layer.activation.phi(layer(before))).square().sum(1).mean() / 2 for layer, before, after in rows
        ]
        loss = self.loss(self.layers[-1](blocks.x[-1]), blocks.y).mean()
        return loss + self.mu * torch.stack(gaps).sum(), gaps

    def factor(self) -> float:
        return self.mu

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mu": self.mu, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mu, self.before = state["mu"], state["before"]


def _units(x: Tensor, slope: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of slopes (samples, units) and right-hand sides (units, inputs), for as many units as fit into memory."""
    count = max(1, ELEMENTS // x.numel())
    yield from zip(slope.split(count, 1), right.split(count), strict=True)


def _normal(x: Tensor, slope: Tensor, right: Tensor, damping: float) -> Tensor:
    """(x^T diag(slope_d^2) x + damping)^-1 right_d for each unit d: (units, inputs)."""
    scaled = slope.T[:, :, None] * x
    square = (scaled.mT @ scaled).double()
    square.diagonal(dim1=-2, dim2=-1).add_(damping)
    return torch.cholesky_solve(right.double()[:, :, None], torch.linalg.cholesky(square))[:, :, 0].to(x.dtype)


def _halved(value: Callable[[Tensor], Tensor], count: int, like: Tensor) -> Tensor:
    """For each of ``count`` values, the largest of 1, 1/2, 1/4, ... where it is not above its value at 0; else 0."""
    size = like.new_ones(count)
    start = value(torch.zeros_like(size))
    for _ in range(HALVINGS):
        rises = ~(value(size) <= start)
        if not rises.any():
            return size
        size = torch.where(rises, size / 2, size)
    return torch.where(value(size) <= start, size, torch.zeros_like(size))
