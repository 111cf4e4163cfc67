"""Coefficient rules: what the learned weights of a program's sums may be. Knows no tensor, layer or network.

A rule makes plans (see ``tables``), each for one sum or for several that belong together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from optnet.analysis.scalars import multiples
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
        self.iterates = set(program.iterates)
        sums = {row.value: row.terms for row in program.combines}
        for call in program.applies:  # P of a sum of iterates is one, also where sums alone read it
            if call.operator != program.main and self.iterates.intersection(sums.get(call.argument, ())):
                self.iterates.add(call.value)
        self.sizes = self._sizes()

    def _sizes(self) -> dict[str, float]:
        """The ``multiples`` of all values. Where a program has no fixed point, all values but F count as 1."""
        found = multiples(self.program)
        if all(found[call.argument] == 1 for call in self.program.calls(self.program.main)):
            return found
        return {value: float(value not in self.residual) for value in found}

    def multiples(self, row: Combine) -> Array:
        """The sizes of the terms. A sum keeps multiples @ weights, so that fixed points stay fixed points."""
        return np.array([self.sizes[term] for term in row.terms])

    def kept(self, row: Combine) -> Array:
        """Whether a rule restricts the weight; that of a residual call F is free."""
        return np.array([term not in self.residual for term in row.terms])

    def memory(self, row: Combine) -> Array:
        """Whether the term is an iterate."""
        return np.array([term in self.iterates for term in row.terms]) & self.kept(row)

    def newest_first(self, row: Combine) -> Array:
        """The places of the iterates, the one that was computed last first."""
        places = np.flatnonzero(self.memory(row))
        return places[np.argsort([-self.order[row.terms[place]] for place in places])]

    def one_sequence(self) -> bool:
        """Whether there is one sequence of iterates: one start, and at most one sum of several in an iteration."""
        several = sum(1 for row in self.program.combines if self.memory(row).sum() > 1)
        return len(self.program.starts) == 1 and several <= self.program.iterations


def consistent(program: Program) -> Iterator[Plan]:
    """Every sum keeps the sum of its weights, so that a fixed point of T stays one. Residual calls F do not count.

    A term counts as the multiple of an iterate that it is: the sum of two streams twice, a dual not at all.
    """
    terms = _Terms(program)
    for row in program.combines:
        multiples = terms.multiples(row)
        yield Plan((row,), np.hstack([_free(multiples == 0), _differences(multiples)]))


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
    2018). Map reading: sum |c| <= 1. With several sequences: no weight of an iterate is negative (``simplex``), or if
    some are from the start, all iterates keep their weights.

    Raises:
        ModelError: the program's weights are outside of this.
    """
    residual = "residual" in program.readings.values()
    terms = _Terms(program)
    alone = terms.one_sequence()
    negative = any(weight < 0 for row in program.combines for weight in np.array(row.weights)[terms.memory(row)])
    for row in program.combines:
        kept, memory, weights = terms.kept(row), terms.memory(row), np.array(row.weights)
        if residual and not alone:
            yield Plan((row,), _free(~kept)) if negative else _average(terms, row, "stable")
            continue
        multiples = terms.multiples(row)
        if not np.isin(multiples[kept], (0, 1)).all():
            yield Plan((row,), _free(~kept))
            continue
        centre = weights.copy()
        if residual and (memory == kept).all():
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
        yield Plan((row,), np.hstack([_free(~kept), _differences(kept * multiples)]), centre=centre, sums=sums)


def doubly_stochastic(program: Program) -> Iterator[Plan]:
    """The weights that n sums give to n iterates are a doubly stochastic matrix: the constraint of hyper-connections.

    n sums that a later sum or a P reads belong together if they read the same n iterates. All others are ``simplex``.
    There are no negative weights, so there is no momentum: a heavy ball's row, 1 + beta and -beta, is not allowed.

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
            if row.value in program.results
            or any(isinstance(reader, Combine) or reader.operator != program.main for reader in readers[row.value])
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
    zero_sum = _differences(np.ones(n))
    directions = np.zeros((len(weights), (n - 1) ** 2))
    directions[where.flatten()] = np.einsum("ia,jb->ijab", zero_sum, zero_sum).reshape(n * n, -1)
    centre = weights.copy()
    centre[where] = 1 / n
    return Plan(rows, np.hstack([_free(~inside), directions]), centre=centre, nonnegative=inside.tolist())


def _average(terms: _Terms, row: Combine, rule: str) -> Plan:
    """A sum whose weights, but those of residual calls, are not negative and keep their sum, times their multiples."""
    kept, weights, multiples = terms.kept(row), np.array(row.weights), terms.multiples(row)
    if (weights[kept] < 0).any():
        raise ModelError(
            f"coefficients={rule}: {row.value} of {terms.program.name} starts with a negative weight "
            f"({min(row.weights):g}); take coefficient_init=ancestor, or coefficients=consistent"
        )
    total = multiples @ weights
    if not total or (multiples[kept] <= 0).any():
        return Plan((row,), _free(~kept))
    centre = weights.copy()
    centre[kept] = total / kept.sum() / multiples[kept]
    return Plan((row,), np.hstack([_free(~kept), _differences(multiples)]), centre=centre, nonnegative=kept.tolist())


def _free(free: Array) -> Array:
    """The directions of single weights."""
    return np.eye(len(free))[:, free]


def _differences(multiples: Array) -> Array:
    """A basis of the directions in which multiples @ weights stays, (weights, non-zero multiples - 1).

    It is orthonormal if they are 1.
    """
    places = np.flatnonzero(multiples)
    basis = np.zeros((len(multiples), max(len(places) - 1, 0)))
    for i in range(1, len(places)):
        basis[places[:i], i - 1] = 1 / np.sqrt(i * (i + 1))
        basis[places[i], i - 1] = -i / np.sqrt(i * (i + 1))
    basis[places] /= multiples[places, None]
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
