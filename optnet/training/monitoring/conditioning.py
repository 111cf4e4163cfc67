"""How the loss bends along the gradient: g'g, g'Hg, and the most negative curvature. Trains nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp

from optnet.networks.statistics import synchronised

Point = dict[str, Tensor]


@dataclass(frozen=True)
class Conditioning:
    """The second-order image of a loss at a point: g its gradient, H its Hessian.

    Attributes:
        gg: g'g.
        gHg: g'Hg.
        curvature: the smallest Ritz value of H after the Lanczos steps, an upper bound of its smallest eigenvalue.
        direction: the unit vector, by parameter, whose curvature that is.
    """

    gg: float
    gHg: float
    curvature: float
    direction: Point

    def change(self, eps: float) -> float:
        """1/2 eps^2 g'Hg - eps g'g, what a gradient step of size eps is predicted to change the loss by.

        Goodfellow, Bengio, Courville 2016, eq. (8.10): as g'Hg outgrows g'g / eps, steps must shrink.
        """
        return 0.5 * eps**2 * self.gHg - eps * self.gg


def measure(loss: Callable[[Point], Tensor], point: Point, steps: int = 5) -> Conditioning:
    """Measures a loss at a point; ``steps`` are Lanczos steps, each one product with H, which is never formed.

    The Lanczos process begins with g and orthogonalises every vector against all before it.
    """
    gradient, product = vjp(grad(loss), point)  # type: ignore[misc]  # the product is v'H, and H is symmetric
    g = _detached(gradient)
    gg = _dot(g, g) if g else 0.0
    if gg == 0:
        return Conditioning(0.0, 0.0, 0.0, g)
    v = _scaled(g, gg**-0.5)
    basis: list[Point] = []
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(max(1, steps)):
        basis.append(v)
        w = _detached(product(v)[0])
        diagonal.append(_dot(v, w))
        for q in basis:
            w = _sum(w, q, -_dot(q, w))
        norm = _dot(w, w) ** 0.5
        if norm <= 1e-6 * max(map(abs, diagonal)):  # the basis spans an invariant space
            break
        beside.append(norm)
        v = _scaled(w, 1 / norm)
    beside = beside[: len(basis) - 1]
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, value in enumerate(beside):
        T[i, i + 1] = T[i + 1, i] = value
    values, vectors = torch.linalg.eigh(T)
    direction = _scaled(basis[0], float(vectors[0, 0]))
    for q, weight in zip(basis[1:], vectors[1:, 0].tolist(), strict=True):
        direction = _sum(direction, q, weight)
    return Conditioning(gg, gg * diagonal[0], float(values[0]), direction)


def training_loss(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Callable[[Point], Tensor], Point]:
    """The mean cross-entropy of a batch as a function of the trainable parameters, and where they are.

    Norms use the batch's statistics, as in training (their running ones, if they are synchronised over processes), and
    random layers draw the same numbers each time; the model's own buffers and the random state stay as they are. Images
    are (batch, channels, height, width).
    """
    together = synchronised(model)
    point = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    buffers = dict(model.named_buffers())

    def loss(parameters: Point) -> Tensor:
        own: dict[str, Any] = {name: buffer.clone() for name, buffer in buffers.items()}
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(0)
            training = [norm.training for norm in together]
            for norm in together:  # the other processes do not look on
                norm.eval()
            logits = functional_call(model, {**parameters, **fixed, **own}, (images,))
            for norm, mode in zip(together, training, strict=True):
                norm.train(mode)
        return F.cross_entropy(logits, labels)

    return loss, point


def _detached(a: Point) -> Point:
    return {name: value.detach() for name, value in a.items()}


def _dot(a: Point, b: Point) -> float:
    return float(torch.stack([torch.sum(a[name] * b[name], dtype=torch.float64) for name in a]).sum())


def _scaled(a: Point, factor: float) -> Point:
    return {name: factor * value for name, value in a.items()}


def _sum(a: Point, b: Point, factor: float) -> Point:
    return {name: value + factor * b[name] for name, value in a.items()}
