"""The elementwise subproblem of splitting methods, min_u 1/2 (phi(u) - a)^2 + g/2 (u - b)^2. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from optnet.networks.objectives import Activation

GRID, HALVINGS = 33, 16
"""Points of the grid, and halvings of their distance around the lowest, for a phi that is not piecewise linear."""


def fit(activation: Activation, a: Tensor, b: Tensor, g: float, old: Tensor) -> Tensor:
    """argmin_u 1/2 (phi(u) - a)^2 + g/2 (u - b)^2, elementwise, g > 0.

    Exact for a piecewise linear phi that says so: the best of every piece's own minimiser. Else the problem need not be
    convex: for a non-decreasing phi its minimiser lies between b and b + (a - phi(b)) / sqrt(g). A grid finds the first
    and the last valley there, a search by halves the bottom of both; optnet.objectives' own have no others. A phi that
    has more may get one that is not the lowest, but never a u above ``old``.
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
    """Of several candidates, elementwise, the one with the lowest value; the first of equal ones."""
    first, *others = candidates
    best, lowest = first, value(first)
    for candidate in others:
        now = value(candidate)
        better = now < lowest
        best, lowest = torch.where(better, candidate, best), torch.where(better, now, lowest)
    return best
