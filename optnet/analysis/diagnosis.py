"""Tells whether a program (textbook or learned) is consistent, stable and bounded, and which method is nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optnet.analysis.scalars import Array, interpret, is_residual, run_on_scalars
from optnet.errors import RequestError
from optnet.language.folding import one_call_per_point
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.language.program import Apply, Program
from optnet.language.tracing import count_calls, traced

MOST_CALLS = 1000
"""The most calls whose table of coefficients is made: it has a row and a column for each."""
LARGEST = 100.0
"""The largest activation, in units of the input, that counts as bounded."""
SAME = 1e-12
"""The largest distance of two tables that counts as rounding errors."""


def sum_rule(program: Program) -> float:
    """The largest |result - 1| for T(1) = 1, x_0 = 1: 0 for a consistent method, whose fixed points are those of T."""
    values = run_on_scalars(program, np.ones(1))
    return max(float(abs(values[result][0] - 1)) for result in program.results)


def amplification(program: Program) -> float:
    """The largest factor by which a perturbation of any value reaches a result, with T = id (zero-stability)."""
    effect: dict[str, float] = {}
    worst = 0.0
    for result in program.results:
        effect = dict.fromkeys([*program.starts, *(one.value for one in program.instructions)], 0.0)
        effect[result] = 1.0
        for one in reversed(program.instructions):
            if isinstance(one, Apply):
                effect[one.argument] += (not is_residual(program, one)) * effect[one.value]
            else:
                for term, weight in zip(one.terms, one.weights, strict=True):
                    effect[term] += weight * effect[one.value]
        worst = max(worst, *map(abs, effect.values()))
    return worst


def amplification_limit(program: Program) -> float:
    """The largest ``amplification`` of a zero-stable program: a disturbance may grow linearly with the calls."""
    return 10.0 * max(1, len(program.calls(program.main))) + 10


def growth(program: Program) -> list[float]:
    """The norm of the argument of every call, then of the results, for random operators and starts of norm 1.

    A random operator (also a residual F) keeps the norm of its argument and maps it to a new orthogonal direction.

    Raises:
        RequestError: the program has more than ``MOST_CALLS`` calls.
    """
    _check_size(program)
    directions = np.eye(sum(1 for _ in program.applies) + 1)
    sizes: list[float] = []

    def apply(call: Apply, x: Array) -> Array:
        sizes.append(float(np.linalg.norm(x)))
        return sizes[-1] * directions[len(sizes)]

    values = interpret(program.instructions, dict.fromkeys(program.starts, directions[0]), apply)
    return [*sizes, max(float(np.linalg.norm(values[result])) for result in program.results)]


def canonical_table(program: Program) -> Array:
    """The weights of starts and earlier calls in the argument of every call of the main operator, and in the result.

    It has one row per call and one for the result, and one column per start and then one per call, in the map reading.
    Other operators are the identity.
    Two programs with the same table are the same method, whatever their text and reading.

    Raises:
        RequestError: the program has more than ``MOST_CALLS`` calls.
    """
    _check_size(program)
    calls = program.calls(program.main)
    column = {call.value: len(program.starts) + i for i, call in enumerate(calls)}
    units = np.eye(len(program.starts) + len(calls))
    rows: list[Array] = []

    def apply(call: Apply, x: Array) -> Array:
        if call.value not in column:
            return x * (not is_residual(program, call))
        rows.append(x)
        return units[column[call.value]] - x * is_residual(program, call)

    values = interpret(program.instructions, dict(zip(program.starts, units, strict=False)), apply)
    return np.array([*rows, values[program.results[-1]]])


def _check_size(program: Program) -> None:
    calls = sum(1 for _ in program.applies)
    if calls > MOST_CALLS:
        raise RequestError(f"{program.name} has {calls} calls; a table of them is made for at most {MOST_CALLS}")


def distances(program: Program) -> dict[str, float]:
    """The distance (root mean square over the table) to every method of the library, nearest first.

    Every method has its default constants; the program's own algorithm has the constants of the program. Relaxations
    of another method and methods that call their operator at another number of points are left out. At distances that
    are equal up to rounding the program's own algorithm is first.

    Raises:
        RequestError: the program has more than ``MOST_CALLS`` calls.
    """
    table = canonical_table(one_call_per_point(program))
    points = len(table) - 1
    most = max(points, min(points * (points + 1) // 2, 300))  # a method may call anew at each earlier point
    found = {}
    for name in list_algorithms():
        method = find_algorithm(name)
        if method.relaxation_of is not None and name != program.name:
            continue
        own = {key: program.constants[key] for key in method.constants if key in program.constants}
        constants = own if name == program.name else {}
        try:
            if count_calls(method, program.iterations, constants, most=most) < points:
                continue
            other = canonical_table(one_call_per_point(traced(method, program.iterations, constants=constants)))
        except RequestError:
            continue
        if other.shape == table.shape:
            found[name] = float(np.sqrt(((other - table) ** 2).mean()))
    return dict(sorted(found.items(), key=lambda item: (np.round(item[1] / SAME), item[0] != program.name)))


def nearest(program: Program) -> tuple[str, float]:
    """The first of ``distances``; ('', inf) if no method calls its operator the same number of times."""
    return next(iter(distances(program).items()), ("", np.inf))


@dataclass(frozen=True)
class Diagnosis:
    """The result of ``diagnose``, with a sentence for each finding.

    Attributes:
        bounded: whether activations stay bounded; None if the program has too many calls to say.
        nearest: the method of the library with the nearest table of coefficients, and its distance.
        same: the names of all methods of the library that have the same table.
    """

    consistent: bool
    stable: bool
    bounded: bool | None
    sentences: tuple[str, ...]
    nearest: tuple[str, float]
    same: tuple[str, ...] = ()


def diagnose(program: Program) -> Diagnosis:
    """Tells whether a program (textbook or learned) is consistent and zero-stable, and keeps activations bounded.

    For more than ``MOST_CALLS`` calls the growth of activations and the nearest method are left out.
    """
    off = sum_rule(program)
    depth = max(1, len(program.calls(program.main)))
    amplified = amplification(program)
    limit = amplification_limit(program)
    consistent, stable = off < 1e-6, amplified <= limit
    small = sum(1 for _ in program.applies) <= MOST_CALLS
    largest = max(growth(program)) if small else None
    bounded = None if largest is None else largest <= LARGEST
    found = distances(program) if small else {}
    sentences = (
        "Consistent: its weights sum to 1, so its fixed points are those of T."
        if consistent
        else f"Inconsistent: it moves a fixed point of T by {off:.3g} of its size, as its weights do not sum to 1.",
        f"Zero-stable: with T = id a disturbance grows at most {amplified:.3g} times; the limit is {limit:g}."
        if stable
        else f"Unstable: with T = id a disturbance grows {amplified:.3g} times over {depth} calls; the limit is "
        f"{limit:g}.",
        f"Activations: left out for more than {MOST_CALLS} calls."
        if largest is None
        else f"{'Bounded' if bounded else 'Exploding'}: with random operators the largest activation is {largest:.3g} "
        f"times the input; the limit is {LARGEST:g}.",
    )
    same = tuple(name for name, distance in found.items() if distance <= SAME)
    return Diagnosis(consistent, stable, bounded, sentences, next(iter(found.items()), ("", np.inf)), same)
