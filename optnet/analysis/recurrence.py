"""A stationary or periodic method as a linear map of its live values, and its convergence factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from optnet.analysis.quadratics import Method, constants_for
from optnet.analysis.scalars import Array, check_range, factor, interpret
from optnet.language.lookup import find_algorithm
from optnet.language.program import Apply, Combine, Instruction, Program
from optnet.language.tracing import all_constants, traced

LOOKED = 120
"""Number of iterations that are compared."""
BEYOND = 20
"""Number of further iterations that are traced, because the last ones do not keep every value."""
LONGEST = LOOKED // 3
"""The longest period that is looked for."""
LATEST = LOOKED // 2
"""The last iteration at which a method may still change, to count as stationary from there on."""
ABRUPT = 1e-6
"""The least change of a weight at which a method changes; smaller changes are those of weights that converge."""


@dataclass(frozen=True)
class Recurrence:
    """A method whose iterations repeat, as a linear map of its live values: ``matrix(w)`` applies one period to them.

    Values that only weights of 0 read are left out.

    Attributes:
        program: the traced program.
        period: the number of iterations that repeat; 1 for a stationary method.
        first: the first iteration that repeats, counted from 0. The earlier ones differ.
        looked: the number of iterations that were compared.
        instructions: those of one period.
        live: the values before and after one period.
    """

    program: Program
    period: int
    first: int
    looked: int
    instructions: tuple[Instruction, ...]
    live: tuple[tuple[str, ...], tuple[str, ...]]

    def matrix(self, w: float) -> Array:
        """The matrix of one period, where the main operator multiplies by w."""
        return _matrices(self.program, self.instructions, *self.live, np.array([w]))[0]

    def radius(self, w: float) -> float:
        """The factor per iteration: the spectral radius of the matrix, to the power of 1 / period."""
        return float(self.radii(np.array([w]))[0])

    def radii(self, w: Array) -> Array:
        """``radius`` at many w."""
        found = _matrices(self.program, self.instructions, *self.live, w)
        if not found.shape[1]:
            return np.zeros(len(w))
        return np.asarray(np.abs(np.linalg.eigvals(found)).max(1) ** (1 / self.period))


def recurrence(
    method: Method, reading: str = "map", *, constants: Mapping[str, Any] | None = None, **more: Any
) -> Recurrence | None:
    """The method's linear recurrence, or None if its iterations do not repeat.

    The first ``LOOKED`` iterations are compared. They repeat if, from one of the first half on, their coefficients have
    a period of at most ``LONGEST`` iterations and do not depend on the number of all iterations.

    Raises:
        AlgorithmError: the method cannot take so many steps.
    """
    algorithm = find_algorithm(method)
    given = all_constants(algorithm, constants, more)
    if _grows(traced(algorithm, 13, reading=reading, constants=given)):
        return None
    one, other = (
        _Pieces(traced(algorithm, LOOKED + beyond, reading=reading, constants=given)) for beyond in (BEYOND, BEYOND + 1)
    )
    texts, others = one.texts(), other.texts()
    firsts = {p: _last_change(texts, p) for p in range(1, LONGEST + 1)}
    found = next((p for p, first in firsts.items() if first <= min(LATEST, LOOKED - 2 * p)), None)
    if found is None or any(_difference(a, b) for a, b in zip(texts, others, strict=True)):
        return None
    first = firsts[found]
    if first and _difference(texts[first - 1], texts[first - 1 + found]) < ABRUPT:
        return None
    instructions = tuple(step for k in range(first, first + found) for step in one.instructions[k])
    return Recurrence(one.program, found, first, LOOKED, instructions, (one.live[first], one.live[first + found]))


def _grows(program: Program) -> bool:
    """Whether the number of calls of every iteration is larger than that of the one before it."""
    counts = [0] * program.iterations
    for call in program.applies:
        counts[call.iteration] += 1
    return all(later > earlier for earlier, later in pairwise(counts[1:-1]))


def _last_change(texts: Sequence[Array], period: int) -> int:
    """The first iteration from which on every one equals the one a period later."""
    changes = (k for k in reversed(range(len(texts) - period)) if _difference(texts[k], texts[k + period]))
    return next(changes, -1) + 1


def _difference(one: Array, other: Array) -> float:
    """The largest difference of two iterations' matrices; 0 below rounding errors, infinite for different sizes."""
    if one.shape != other.shape:
        return np.inf
    difference = float(np.abs(one - other).max(initial=0.0))
    return difference if difference > 1e-12 * max(1.0, float(np.abs(one).max(initial=0.0))) else 0.0


class _Pieces:
    """A program cut before the first call of every iteration, without what only weights of 0 read.

    Attributes:
        instructions: those of each iteration.
        live: the values that are read at each cut or after it.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        order = {value: i for i, value in enumerate([*program.starts, *(one.value for one in program.instructions)])}
        cuts = [len(program.instructions)] * (program.iterations + 1)
        for i, one in reversed(list(enumerate(program.instructions))):
            if isinstance(one, Apply):
                cuts[one.iteration] = i
        for k in reversed(range(program.iterations)):  # an iteration without a call is empty
            cuts[k] = min(cuts[k], cuts[k + 1])
        cuts[0] = 0
        self.instructions: list[list[Instruction]] = [[] for _ in range(program.iterations)]
        self.live: list[tuple[str, ...]] = []
        needed = set(program.results)
        for k in reversed(range(program.iterations)):
            for one in reversed(program.instructions[cuts[k] : cuts[k + 1]]):
                if one.value in needed:
                    needed.discard(one.value)
                    needed.update(_reads(one))
                    self.instructions[k].insert(0, one)
            self.live.insert(0, tuple(sorted(needed, key=order.__getitem__)))
        self.live.append(tuple(program.results))

    def texts(self) -> list[Array]:
        """The matrices of the first ``LOOKED`` iterations, at some w."""
        w = np.array([0.0, 0.3, 0.9])
        pieces = zip(self.instructions, self.live[:-1], self.live[1:], strict=True)
        return [_matrices(self.program, *piece, w) for piece, _ in zip(pieces, range(LOOKED), strict=False)]


def _reads(one: Instruction) -> tuple[str, ...]:
    if isinstance(one, Combine):
        return tuple(term for term, weight in zip(one.terms, one.weights, strict=True) if weight)
    return one.reads


def _matrices(
    program: Program, instructions: Sequence[Instruction], before: Sequence[str], after: Sequence[str], w: Array
) -> Array:
    """The matrices (w, after, before) of instructions as a linear map of values."""
    units = np.broadcast_to(np.eye(len(before))[:, None, :], (len(before), len(w), len(before)))
    start = dict(zip(before, units, strict=True))
    values = interpret(instructions, start, lambda call, x: factor(program, call, w[:, None]) * x)
    return np.stack([values[name] for name in after], 1) if after else np.zeros((len(w), 0, len(before)))


def convergence_factor(
    method: Method, mu: float, L: float, *, constants: Mapping[str, Any] | None = None, **more: Any
) -> float | None:
    """The asymptotic factor per iteration on quadratics: the largest spectral radius over lambda in [mu, L].

    None if the method's iterations do not repeat (see ``recurrence``); use ``errors`` instead.
    """
    found = tuned_recurrence(method, mu, L, constants=constants, **more)
    return None if found is None else largest_radius(found, mu, L)


def tuned_recurrence(
    method: Method, mu: float, L: float, *, constants: Mapping[str, Any] | None = None, **more: Any
) -> Recurrence | None:
    """``recurrence`` with the constants that the algorithm recommends for (mu, L), where no others are given."""
    check_range(mu, L)
    algorithm = find_algorithm(method)
    given = all_constants(algorithm, constants, more)
    return recurrence(algorithm, constants=constants_for(algorithm, mu, L, given))


def largest_radius(found: Recurrence, mu: float, L: float) -> float:
    """The largest radius over 800 lambda in [mu, L], and near the largest of them over 201 more."""
    lam = np.unique(np.concatenate([np.linspace(mu, L, 400), np.geomspace(max(mu, 1e-9 * L), L, 400).clip(mu, L)]))
    radii = found.radii(1 - lam / L)
    best = int(np.argmax(radii))
    low, high = lam[max(best - 1, 0)], lam[min(best + 1, len(lam) - 1)]
    return float(max(radii[best], found.radii(1 - np.linspace(low, high, 201) / L).max()))
