"""Coefficient rules: what the learned weights of a program's sums may be. Knows no layer and no network.

A rule makes blocks. A block holds the weights w of one sum, or of several that belong together, in the form

    w = c + (v - c) / max(1, g(v)),  v = w_0 + B u

with the weights w_0 of the program, a learned vector u that starts at 0, a basis B of the directions in which the
weights may move, a centre c, and a gauge g, which is at most 1 where the weights are allowed. So every rule starts at
the program's own weights, and what lies outside is drawn towards the centre.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from optnet.errors import ModelError
from optnet.language.program import Combine, Program

Array = np.ndarray
SLACK = 1e-12
"""Rounding that is allowed where a rule checks the weights that it starts from."""


@dataclass(frozen=True)
class Plan:
    """A block before it has tensors.

    Attributes:
        rows: the sums, in the order in which their weights follow each other.
        basis: B, (weights, directions).
        centre: c, by default the program's weights.
        nonnegative: for each weight, whether g keeps it at or above 0.
        sums: the rows of a matrix E; g keeps sum |E v| at most 1.
    """

    rows: tuple[Combine, ...]
    basis: Array
    centre: Array | None = None
    nonnegative: Sequence[bool] = ()
    sums: Array | None = None

    @property
    def start(self) -> Array:
        return np.concatenate([row.weights for row in self.rows])


class Block(nn.Module):
    """The weights of one plan; ``forward`` returns those of each sum, (terms,) or (terms * channels,).

    ``weights``, the learned u, is one vector; with ``channels`` it has that many values for each direction.
    """

    start: Tensor
    centre: Tensor
    basis: Tensor
    towards: Tensor
    sums: Tensor

    def __init__(self, plan: Plan, channels: int) -> None:
        super().__init__()

        def constant(name: str, values: Array) -> None:
            self.register_buffer(name, torch.tensor(values, device="cpu", dtype=torch.float64), persistent=False)

        centre = plan.start if plan.centre is None else plan.centre
        nonnegative = np.array([*plan.nonnegative] or [False] * len(plan.start))
        constant("start", plan.start[:, None])
        constant("centre", centre[:, None])
        constant("basis", plan.basis[:, :, None])
        constant("towards", np.where(nonnegative, 1 / np.where(centre > 0, centre, 1.0), 0.0)[:, None])
        sums = np.zeros((0, len(plan.start))) if plan.sums is None else plan.sums
        constant("sums", sums[:, :, None])
        self.bounded = bool(nonnegative.any())
        self.summed = len(sums) > 0
        self.sizes = [len(row.terms) for row in plan.rows]
        self.directions = plan.basis.shape[1]
        self.weights = nn.Parameter(torch.zeros(self.directions * (channels or 1), device="cpu", dtype=torch.float64))

    def forward(self) -> list[Tensor]:
        u = self.weights.reshape(1, self.directions, -1)
        w = self.start + (self.basis * u).sum(1)
        if self.bounded:  # the largest (c - v) / c
            gauge = ((self.centre - w) * self.towards).amax(0, keepdim=True)
            w = self.centre + (w - self.centre) / gauge.clamp(min=1.0)
        if self.summed:
            gauge = (self.sums * w.unsqueeze(0)).sum(1).abs().sum(0, keepdim=True)
            w = self.centre + (w - self.centre) / gauge.clamp(min=1.0)
        parts: list[Tensor] = []
        for part in w.split(self.sizes):
            parts.append(part.flatten())
        return parts


class Table(nn.Module):
    """The weights of the sums that a rule lets learn; ``forward`` returns them in the order of ``rows``.

    It is made in float64 on the CPU.
    """

    def __init__(self, plans: Sequence[Plan], channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(plan, channels) for plan in plans)
        self.rows = [row.value for plan in plans for row in plan.rows]

    def forward(self) -> list[Tensor]:
        weights: list[Tensor] = []
        for block in self.blocks:
            weights += block()
        return weights

    @torch.jit.ignore
    def weights(self) -> dict[str, Tensor]:
        """The weights of each sum now."""
        return dict(zip(self.rows, self(), strict=True))


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


def constants(program: Program, moved: Mapping[str, Program], *, per_iteration: bool) -> Iterator[Plan]:
    """The algorithm's own constants are what is learned, one for all sums or one for each iteration.

    Args:
        moved: for each constant, the program with this constant larger by 1. The weights are affine in the constants.
    """
    blocks: dict[int, list[Combine]] = {}
    iteration = 0
    for one in program.instructions:
        if isinstance(one, Combine):
            blocks.setdefault(iteration, []).append(one)
        elif per_iteration:
            iteration = one.iteration
    changed = {name: {row.value: np.array(row.weights) for row in other.combines} for name, other in moved.items()}
    for rows in blocks.values():
        columns = [np.concatenate([found[row.value] - row.weights for row in rows]) for found in changed.values()]
        effective = [column for column in columns if np.abs(column).max() > SLACK]
        size = sum(len(row.terms) for row in rows)
        yield Plan(tuple(rows), np.array(effective).reshape(len(effective), size).T)


Rule = Callable[[Program], Iterator[Plan]]
RULES: dict[str, Rule] = {
    "consistent": consistent, "stable": stable, "simplex": simplex, "doubly_stochastic": doubly_stochastic,
}  # fmt: skip
"""The rules that need the program alone, by their names in ``coefficients=``."""
CONSTANTS = {"constants": False, "iteration_constants": True}
"""The rules that learn the algorithm's constants -> whether each iteration has its own."""
NAMES = (*RULES, *CONSTANTS)
"""All rules, beside ``learnable`` (free) and ``fixed``."""


def table(
    rule: str,
    program: Program,
    channels: int = 0,
    equal: Sequence[str] = (),
    moved: Mapping[str, Program] | None = None,
) -> Table:
    """The weights of a program under a rule. Sums that the rule leaves no freedom are not in it.

    Args:
        channels: a weight for each channel; 0: one for all.
        equal: starting points with equal values. The difference of their weights changes nothing, so it is not learned.
        moved: see ``constants``.
    """
    if rule in CONSTANTS:
        made = constants(program, moved or {}, per_iteration=CONSTANTS[rule])
    else:
        made = (replace(plan, basis=_alike(plan, equal)) for plan in RULES[rule](program))
    return Table([plan for plan in made if plan.basis.shape[1]], channels)


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
