"""Solves the subproblem of splitting methods, min_u 1/2 (phi(u) - a)^2 + g/2 (u - b)^2 elementwise. No networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from optnet.networks.objectives import Activation

GRID, HALVINGS = 33, 16
"""For a phi that is not piecewise linear: the number of grid points, and how often the search halves their spacing."""


def fit(activation: Activation, a: Tensor, b: Tensor, g: float, old: Tensor) -> Tensor:
    """argmin_u 1/2 (phi(u) - a)^2 + g/2 (u - b)^2, elementwise, g > 0.

    The result is exact for a phi with ``pieces``: it is the best of the minimisers on each piece. For any other phi the
    problem may be non-convex. If phi is non-decreasing, the minimiser lies between b and b + (a - phi(b)) / sqrt(g). A
    grid search finds the first and the last local minimum in that interval, and repeated halving refines both. The
    activations of ``optnet.objectives`` have no other local minima. A phi that has more may get one that is not
    global, but the objective at the result never exceeds the objective at ``old``.
    """

    def value(u: Tensor) -> Tensor:
        return (activation.phi(u) - a).square() + g * (u - b).square()

    if activation.pieces:
        candidates = (
            ((slope * (a - offset) + g * b) / (slope**2 + g)).clamp(low, high)
            for slope, offset, low, high in activation.pieces
        )
        return _best(value, candidates)
    apart = (a - activation.phi(b)) / g**0.5 / (GRID - 1)
    before, first, last = value(b), b, b
    falling = torch.ones_like(b, dtype=torch.bool)
    for i in range(1, GRID):
        point = b + i * apart
        now = value(point)
        falling &= now < before
        first, last = torch.where(falling, point, first), torch.where(now < before, point, last)
        before = now
    for _ in range(HALVINGS):
        apart = apart / 2
        first = _best(value, (first, first + apart, first - apart))
        last = _best(value, (last, last + apart, last - apart))
    return _best(value, (old, first, last))


def _best(value: Callable[[Tensor], Tensor], candidates: Iterable[Tensor]) -> Tensor:
    """Elementwise, the candidate with the lowest value; the first one on ties."""
    first, *others = candidates
    best, lowest = first, value(first)
    for candidate in others:
        now = value(candidate)
        better = now < lowest
        best, lowest = torch.where(better, candidate, best), torch.where(better, now, lowest)
    return best
