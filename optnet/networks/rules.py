"""Coefficient rules: what the learned weights of a program's sums may be. Knows no tensor, layer or network.

A rule makes plans (see ``tables``), each for one sum or for several that belong together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from optnet.errors import ModelError
from optnet.language.program import Combine, Program
from optnet.networks.constants import constants
from optnet.networks.tables import SLACK, Array, Plan, Table


class _Terms:
    """What the terms of a program's sums are. Each method returns something for every term of a sum, or its places."""

    def __init__(self, program: Program) -> None:
        self.program = program
        readings = program.readings
        self.residual = {call.value for call in program.applies if readings.get(call.operator) == "residual"}
        values = [*program.starts, *(one.value for one in program.instructions)]
        self.order = {value: i for i, value in enumerate(values)}

    def kept(self, row: Combine) -> Array:
        """Whether the weight is in the sum that a rule keeps; a residual call F is 0 at a fixed point."""
        return np.array([term not in self.residual for term in row.terms])

    def memory(self, row: Combine) -> Array:
        """Whether the term is an iterate."""
        return np.array([term in self.program.iterates for term in row.terms]) & self.kept(row)

    def newest_first(self, row: Combine) -> Array:
        """The places of the iterates, the one that was computed last first."""
        places = np.flatnonzero(self.memory(row))
        return places[np.argsort([-self.order[row.terms[place]] for place in places])]

    def one_sequence(self) -> bool:
        """Whether there is one sequence of iterates: one start, and at most one sum of several in an iteration."""
        several = sum(1 for row in self.program.combines if self.memory(row).sum() > 1)
        return len(self.program.starts) == 1 and several <= self.program.iterations


def consistent(program: Program) -> Iterator[Plan]:
    """Every sum keeps the sum of its weights, so that a fixed point of T stays one. Residual calls F do not count."""
    terms = _Terms(program)
    for row in program.combines:
        kept = terms.kept(row)
        yield Plan((row,), np.hstack([_free(~kept), _differences(kept)]))


def simplex(program: Program) -> Iterator[Plan]:
    """``consistent``, and no weight is negative: each sum is an average, times a number. Residual calls F do not count.

    Raises:
        ModelError: the program has a negative weight.
    """
    terms = _Terms(program)
    for row in program.combines:
        yield _average(terms, row, "simplex")


def stable(program: Program) -> Iterator[Plan]:
    """``consistent``, and without the layers the iterates stay bounded: the companion matrix of the weights of the
    iterates has no eigenvalue outside the unit circle.

    With one sequence of iterates, x_{k+1} = c_1 x_k + c_2 x_{k-1} + ..., sufficient for that is: residual reading,
    sum c = 1: sum_i |c_{i+1} + c_{i+2} + ...| <= 1 (exact for two iterates: the zero-stability of LM-ResNet, Lu et al.
    2018). Map reading: sum |c| <= 1. With several sequences: no weight of an iterate is negative (``simplex``); a sum
    that has a negative one keeps the weights of its iterates.

    Raises:
        ModelError: the program's weights are outside of this.
    """
    residual = "residual" in program.readings.values()
    terms = _Terms(program)
    alone = terms.one_sequence()
    for row in program.combines:
        kept, memory, weights = terms.kept(row), terms.memory(row), np.array(row.weights)
        if residual and not alone:
            negative = bool((weights[memory] < 0).any())
            yield Plan((row,), _free(~kept)) if negative else _average(terms, row, "stable")
            continue
        centre = weights.copy()
        if residual:
            order = terms.newest_first(row)
            total = weights[memory].sum()
            centre[memory] = 0.0
            centre[order[:1]] = total
            sums = np.zeros((max(len(order) - 1, 0), len(weights)))
            for i in range(len(sums)):
                sums[i, order[i + 1 :]] = 1.0
        else:
            layers = kept & ~memory
            centre[memory] = 0.0
            centre[layers] += weights[memory].sum() / max(layers.sum(), 1)
            sums = np.diag(memory.astype(float))[memory]
        if np.abs(sums @ weights).sum() > 1 + SLACK:
            raise ModelError(
                f"coefficients=stable: {row.value} of {program.name} starts outside ({_written(row)}); take "
                f"coefficient_init=ancestor, or coefficients=consistent"
            )
        yield Plan((row,), np.hstack([_free(~kept), _differences(kept)]), centre=centre, sums=sums)


def doubly_stochastic(program: Program) -> Iterator[Plan]:
    """The weights that n sums give to n iterates are a doubly stochastic matrix: the constraint of hyper-connections.

    n sums that later sums read belong together if they read the same n iterates. All others are ``simplex``. There are
    no negative weights, so there is no momentum: a heavy ball's row, 1 + beta and -beta, is not allowed.

    Raises:
        ModelError: the program's weights are none.
    """
    terms, readers = _Terms(program), program.readers()

    def streams(row: Combine) -> tuple[str, ...]:
        return tuple(sorted(term for term, iterate in zip(row.terms, terms.memory(row), strict=True) if iterate))

    for read, group in groupby(program.combines, key=streams):
        rows = list(group)
        carried = [
            row for row in rows
            if row.value in program.results or any(isinstance(reader, Combine) for reader in readers[row.value])
        ]  # fmt: skip
        if len(carried) == len(read) > 1:
            yield _matrix(program, tuple(carried), read)
            rows = [row for row in rows if row not in carried]
        yield from (_average(terms, row, "doubly_stochastic") for row in rows)


def _matrix(program: Program, rows: tuple[Combine, ...], terms: tuple[str, ...]) -> Plan:
    """The block of n sums that read the same n iterates."""
    n, starts = len(rows), np.cumsum([0, *(len(row.terms) for row in rows)])
    where = np.array([[starts[i] + row.terms.index(term) for term in terms] for i, row in enumerate(rows)])
    weights = np.concatenate([row.weights for row in rows])
    matrix = weights[where]
    if (matrix < 0).any() or max(np.abs(matrix.sum(i) - 1).max() for i in (0, 1)) > SLACK:
        raise ModelError(
            f"coefficients=doubly_stochastic: {', '.join(row.value for row in rows)} of {program.name} start outside; "
            f"their weights are {matrix.tolist()}"
        )
    inside = np.zeros(len(weights), dtype=bool)
    inside[where] = True
    zero_sum = _differences(np.ones(n, dtype=bool))
    directions = np.zeros((len(weights), (n - 1) ** 2))
    directions[where.flatten()] = np.einsum("ia,jb->ijab", zero_sum, zero_sum).reshape(n * n, -1)
    centre = weights.copy()
    centre[where] = 1 / n
    return Plan(rows, np.hstack([_free(~inside), directions]), centre=centre, nonnegative=inside.tolist())


def _average(terms: _Terms, row: Combine, rule: str) -> Plan:
    """A sum whose weights, but those of residual calls, are not negative and keep their sum."""
    kept, weights = terms.kept(row), np.array(row.weights)
    if (weights[kept] < 0).any():
        raise ModelError(
            f"coefficients={rule}: {row.value} of {terms.program.name} starts with a negative weight "
            f"({min(row.weights):g}); take coefficient_init=ancestor, or coefficients=consistent"
        )
    if not weights[kept].sum():
        return Plan((row,), _free(~kept))
    centre = weights.copy()
    centre[kept] = weights[kept].sum() / kept.sum()
    return Plan((row,), np.hstack([_free(~kept), _differences(kept)]), centre=centre, nonnegative=kept.tolist())


def _free(free: Array) -> Array:
    """The directions of single weights."""
    return np.eye(len(free))[:, free]


def _differences(kept: Array) -> Array:
    """An orthonormal basis of the directions in which the sum of the weights stays, (weights, kept weights - 1)."""
    places = np.flatnonzero(kept)
    basis = np.zeros((len(kept), max(len(places) - 1, 0)))
    for i in range(1, len(places)):
        basis[places[:i], i - 1] = 1 / np.sqrt(i * (i + 1))
        basis[places[i], i - 1] = -i / np.sqrt(i * (i + 1))
    return basis


def _written(row: Combine) -> str:
    return ", ".join(f"{weight:g} {term}" for term, weight in zip(row.terms, row.weights, strict=True))


Rule = Callable[[Program], Iterator[Plan]]
RULES: dict[str, Rule] = {
    "consistent": consistent, "stable": stable, "simplex": simplex, "doubly_stochastic": doubly_stochastic,
}  # fmt: skip
"""The rules that need the program alone, by their names in ``coefficients=``."""
CONSTANTS = {"constants": False, "iteration_constants": True}
"""The rules that learn the algorithm's constants -> whether each iteration has its own."""
DYNAMIC = "dynamic"
"""The rule under which the weights follow from features, for each sample."""
NAMES = (*RULES, *CONSTANTS, DYNAMIC)
"""All rules, beside ``learnable`` (free) and ``fixed``."""


def table(
    rule: str,
    program: Program,
    channels: int = 0,
    equal: Sequence[str] = (),
    formulas: Program | None = None,
) -> Table:
    """The weights of a program under a rule. Sums that the rule leaves no freedom are not in it.

    Args:
        channels: a weight for each channel; 0: one for all.
        equal: starting points with equal values. The difference of their weights changes nothing, so it is not learned.
        formulas: the program with weights that are expressions of the constants; see ``constants``.
    """
    if rule in CONSTANTS:
        assert formulas is not None
        return Table(constants(formulas), channels)
    return Table((replace(plan, basis=_alike(plan, equal)) for plan in RULES[rule](program)), channels)


def _alike(plan: Plan, equal: Sequence[str]) -> Array:
    """The directions of a plan in which the weights of equal terms change alike."""
    basis, terms = plan.basis, [(i, term) for i, row in enumerate(plan.rows) for term in row.terms]
    groups = [[j for j, (i, term) in enumerate(terms) if i == row and term in equal] for row in range(len(plan.rows))]
    for first, *others in filter(None, groups):
        for other in others:
            difference = basis[first] - basis[other]
            if np.abs(difference).max(initial=0) > SLACK:
                basis = basis @ np.linalg.svd(difference[None])[2][1:].T
    return basis
