"""What learned coefficients are worth as an optimization method: a certificate of a program. Reads no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import inf, sqrt

import numpy as np

from optnet.analysis.diagnosis import nearest
from optnet.analysis.quadratics import constants_for
from optnet.analysis.scalars import multiples
from optnet.analysis.trials import Trial, logistic_regression, quadratic, ratio
from optnet.analysis.validity import (
    CONSISTENT,
    Stability,
    inconsistency,
    nearest_consistent,
    nearest_valid,
    stability,
)
from optnet.analysis.worst_case import MOST_CALLS, Samples, WorstCase, require, worst_case_of
from optnet.errors import RequestError
from optnet.language.folding import one_call_per_point
from optnet.language.lookup import find_algorithm
from optnet.language.program import Program
from optnet.language.tracing import traced

OWN = ("learned", "projected", "textbook")
CONVEX = ("gradient_descent", "nesterov", "optimized_gradient")
STRONGLY_CONVEX = ("gradient_descent", "nesterov", "triple_momentum", "information_theoretic_exact")
TRIALS = (quadratic, logistic_regression)
MOST_KAPPA = 1e6
"""The largest condition number whose worst cases the solver tells apart."""
MOST_OPERATORS = 3
"""A gradient step, and at most two more operators, which are taken as the identity: an MLP M, and a norm P."""


@dataclass(frozen=True)
class Row:
    """A method with as many gradients as the learned one.

    Attributes:
        name: one of ``OWN``, or of the library.
        convex: the worst f(x_N) - f* over L-smooth convex f, in units of L |x_0 - x*|^2. Infinity for an inconsistent
            method; None if it is not computed.
        strongly_convex: the worst |x_N - x*|^2 over smooth, strongly convex f, in units of |x_0 - x*|^2; likewise.
        measured: what ``convex`` bounds, on each of ``trials()`` by its name; empty for methods that need to know mu.
    """

    name: str
    convex: float | None = None
    strongly_convex: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """The result of ``certify``.

    Attributes:
        iterations, gradients: of the learned program; calls of T at the same point count as one gradient.
        kappa: the condition number of the strongly convex functions.
        inconsistency: see ``optnet.analysis.inconsistency``; the method is consistent if it is at most 1e-6.
        stability: of the learned program.
        distance, largest_change: between the learned and the projected coefficients, Euclidean and the largest.
        nearest: the method of the library with the nearest table of coefficients to the learned one, and the distance
            (root mean square); '' if none has so many calls.
        rows: learned, projected, textbook, then the library's methods.
        programs: by each name of ``OWN``.
        solver: of the worst cases; '' if there are none.
        attained: a convex function for which the projected method is as bad as it can be.
        notes: what a reader must know, a sentence each.
    """

    name: str
    iterations: int
    gradients: int
    kappa: float
    inconsistency: float
    stability: Stability
    distance: float
    largest_change: float
    nearest: tuple[str, float]
    programs: Mapping[str, Program]
    rows: tuple[Row, ...]
    solver: str = ""
    attained: Samples | None = None
    notes: tuple[str, ...] = ()

    @property
    def consistent(self) -> bool:
        return self.inconsistency <= CONSISTENT

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def certify(
    learned: Program, textbook: Program | None = None, *, kappa: float = 10.0, worst_cases: bool = True
) -> Certificate:
    """What the learned coefficients are worth as an optimization method.

    With T = id - grad f / L the program is a method. Its nearest valid method is ``nearest_valid``. The worst cases are
    exact (``worst_case_of``); an inconsistent method has no bound, because it leaves a minimiser that it starts from.
    All starts are the same point. Of several results the last iterate is judged.

    Args:
        textbook: the program with the algorithm's own coefficients; by default the learned one's.
        kappa: L / mu of the strongly convex functions.
        worst_cases: whether to compute them.

    Raises:
        RequestError: the program has too many calls or operators, or cannot be made consistent.
    """
    if not 1 < kappa <= MOST_KAPPA:
        raise RequestError(f"kappa={kappa} must be greater than 1 and at most {MOST_KAPPA:g}")
    _check(learned)
    textbook = textbook or learned
    notes = list(_notes(learned))
    learned, textbook = _judged(learned, textbook)
    short = one_call_per_point(learned)
    gradients = len(short.calls(short.main))
    if worst_cases and (why := _why_no_worst_cases(gradients)):
        notes.append(why)
        worst_cases = False
    projected = nearest_valid(learned, textbook)
    changes = np.array([w - v for w, v in zip(projected.weights().values(), learned.weights().values(), strict=True)])
    off = inconsistency(learned)
    exact = nearest_consistent(learned, textbook) if off <= CONSISTENT else learned  # rounding errors have no bound
    drawn = _worst(projected, inf, attained=True) if worst_cases else None

    def worst(program: Program | None, k: float) -> float | None:
        if program is None or drawn is None:
            return None
        return (drawn if k == inf and _text(program) == _text(projected) else _worst(program, k)).value

    pairs: dict[str, tuple[Program | None, Program | None]] = {
        "learned": (exact, exact), "projected": (projected, projected), "textbook": (textbook, textbook),
        **_library(gradients, kappa),
    }  # fmt: skip
    rows = tuple(
        Row(
            name, worst(first, inf), worst(second, kappa),
            {trial.name: ratio(first, trial) for trial in trials()} if first else {},
        )
        for name, (first, second) in pairs.items()
    )  # fmt: skip
    return Certificate(
        name=learned.name, iterations=learned.iterations, gradients=gradients, kappa=kappa, inconsistency=off,
        stability=stability(learned, textbook), distance=float(np.linalg.norm(changes)),
        largest_change=float(np.abs(changes).max(initial=0.0)),
        nearest=nearest(replace(learned, constants=textbook.constants)),
        programs=dict(zip(OWN, (learned, projected, textbook), strict=True)), rows=rows,
        solver=drawn.solver if drawn else "", attained=drawn.attained if drawn else None, notes=tuple(notes),
    )  # fmt: skip


def _why_no_worst_cases(gradients: int) -> str:
    """Why worst cases cannot be computed; empty if they can."""
    if gradients > MOST_CALLS:
        return f"The worst cases are left out: {gradients} gradients take too long; at most {MOST_CALLS} do."
    try:
        require()
    except RequestError as error:
        return str(error)
    return ""


def _library(gradients: int, kappa: float) -> dict[str, tuple[Program | None, Program | None]]:
    """The library's methods for convex, and those for strongly convex functions."""
    return {
        name: (
            library_method(name, gradients, inf) if name in CONVEX else None,
            library_method(name, gradients, kappa) if name in STRONGLY_CONVEX else None,
        )
        for name in dict.fromkeys((*CONVEX, *STRONGLY_CONVEX))
    }


def trials() -> tuple[Trial, ...]:
    """The functions that ``certify`` runs methods on."""
    return tuple(make() for make in TRIALS)


def _check(program: Program) -> None:
    if not program.calls(program.main):
        raise RequestError(
            f"{program.name}: no call of {program.main} is left in this stage; there is nothing to certify"
        )
    others = [name for name in program.operators if name != program.main]
    if len(others) >= MOST_OPERATORS:
        raise RequestError(
            f"{program.name} has the operators {', '.join(others)} beside {program.main}; only a gradient step and two "
            "operators that may be the identity can be certified"
        )


def identity_note(program: Program) -> str:
    """Says which operators are taken as the identity: all but the main one; "" if there is no other."""
    others = sorted(name for name in program.operators if name != program.main)
    return f"{' and '.join(others)} {'are' if len(others) > 1 else 'is'} taken as the identity." if others else ""


def _notes(learned: Program) -> Iterator[str]:
    if note := identity_note(learned):
        yield note
    if len(learned.results) > 1:
        yield f"The last iterate of its {len(learned.results)} results is judged."
    if len(learned.starts) > 1:
        yield f"Its {len(learned.starts)} starting points are taken as equal."


def _judged(learned: Program, textbook: Program) -> tuple[Program, Program]:
    """The two programs with one result: the last that is an iterate, and no dual, in the textbook."""
    sizes = multiples(textbook)
    iterates = [i for i, result in enumerate(textbook.results) if abs(sizes[result] - 1) <= CONSISTENT]
    chosen = iterates[-1] if iterates else -1
    return replace(learned, results=(learned.results[chosen],)), replace(textbook, results=(textbook.results[chosen],))


def _worst(program: Program, kappa: float, attained: bool = False) -> WorstCase:
    """Of the gap over convex functions (kappa infinite), or of the distance over strongly convex ones."""
    if inconsistency(program) > CONSISTENT:
        return WorstCase(inf, "")
    return _worst_of(_text(program), kappa, attained)


def _text(program: Program) -> str:
    """What a program computes, and nothing else, so that equal ones are solved once."""
    return replace(one_call_per_point(program), name="", constants={}).to_json()


@lru_cache(maxsize=256)
def _worst_of(text: str, kappa: float, attained: bool) -> WorstCase:
    metric = "gap" if kappa == inf else "distance"
    return worst_case_of(Program.from_json(text), 1 / kappa, 1.0, metric=metric, attained=attained)


def library_method(name: str, gradients: int, kappa: float) -> Program:
    """A method of the library with one gradient an iteration, and the constants that suit kappa."""
    method, q = find_algorithm(name), 1 / kappa
    given = {"beta": (1 - sqrt(q)) / (1 + sqrt(q))} if q and name == "nesterov" else {}
    return traced(method, gradients, constants=constants_for(method, q, 1.0, given))
