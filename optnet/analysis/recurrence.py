"""A stationary method as a linear map of its live values, and its convergence factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from optnet.analysis.quadratics import Method, constants_for
from optnet.analysis.scalars import Array, check_range, factor, interpret
from optnet.language.lookup import find_algorithm
from optnet.language.program import Apply, Program
from optnet.language.tracing import all_constants, trace

DEPTH = 13
"""Number of traced iterations; those in the middle are compared."""


@dataclass(frozen=True)
class Recurrence:
    """A stationary method as a linear map of its live values: ``matrix(w)`` applies one iteration to them."""

    program: Program
    first: int
    second: int
    live: tuple[tuple[str, ...], tuple[str, ...]]

    def matrix(self, w: float) -> Array:
        start = dict(zip(self.live[0], np.eye(len(self.live[0])), strict=True))
        instructions = self.program.instructions[self.first : self.second]
        values = interpret(instructions, start, lambda call, x: factor(self.program, call, w) * x)
        return np.array([values[name] for name in self.live[1]])

    def radius(self, w: float) -> float:
        return float(np.abs(np.linalg.eigvals(self.matrix(w))).max())


def recurrence(
    method: Method, reading: str = "map", *, constants: Mapping[str, Any] | None = None, **more: Any
) -> Recurrence | None:
    """The method's linear recurrence, or None if its coefficients or its memory change between iterations."""
    algorithm = find_algorithm(method)
    given = all_constants(algorithm, constants, more)
    program = trace(algorithm, steps=DEPTH, reading=reading, constants=given)
    counts = [sum(call.iteration == k for call in program.applies) for k in range(1, DEPTH)]
    if len(set(counts)) != 1 or not counts[0]:
        return None
    cuts = [_cut(program, iteration) for iteration in (DEPTH // 2, DEPTH // 2 + 1, DEPTH // 2 + 2)]
    if len({len(live) for _, live in cuts}) != 1:
        return None
    one, two = (Recurrence(program, a, b, (before, after)) for (a, before), (b, after) in pairwise(cuts))
    same = all(np.allclose(one.matrix(w), two.matrix(w), rtol=1e-12, atol=1e-12) for w in (0.0, 0.3, 0.9))
    return one if same else None


def _cut(program: Program, iteration: int) -> tuple[int, tuple[str, ...]]:
    """The position of an iteration's first call in the program, and the values that are live there."""
    calls = ((i, one) for i, one in enumerate(program.instructions) if isinstance(one, Apply))
    at = next(i for i, call in calls if call.iteration == iteration)
    return at, program.live(at)


def convergence_factor(
    method: Method, mu: float, L: float, *, constants: Mapping[str, Any] | None = None, **more: Any
) -> float | None:
    """The asymptotic factor per iteration on quadratics: the largest spectral radius over lambda in [mu, L].

    None if the method is not stationary; use ``errors`` instead.
    """
    check_range(mu, L)
    algorithm = find_algorithm(method)
    given = all_constants(algorithm, constants, more)
    found = recurrence(algorithm, constants=constants_for(algorithm, mu, L, given))
    if found is None:
        return None
    lam = np.unique(np.concatenate([np.linspace(mu, L, 400), np.geomspace(max(mu, 1e-9 * L), L, 400).clip(mu, L)]))
    radii = [found.radius(1 - x / L) for x in lam]
    best = int(np.argmax(radii))
    low, high = lam[max(best - 1, 0)], lam[min(best + 1, len(lam) - 1)]
    fine = [found.radius(1 - x / L) for x in np.linspace(low, high, 201)]
    return max(radii[best], *fine)
