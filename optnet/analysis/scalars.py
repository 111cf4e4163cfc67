"""Runs a program on numbers: the errors along the eigenvectors of a quadratic. Judges nothing.

On a quadratic with spectrum in [mu, L], the map T = id - grad f / L multiplies the error along an eigenvector by
w = 1 - lambda / L. Every operator other than the main one is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optnet.errors import RequestError
from optnet.language.program import Apply, Instruction, Program

Array = np.ndarray[Any, np.dtype[np.float64]]
ROUNDING = 1e-9
"""How far rounding takes a multiple of a fixed point from a whole number at most."""


def check_range(mu: float, L: float) -> None:
    """Raises ``RequestError`` unless 0 <= mu < L."""
    if not (0 <= mu < L < np.inf):
        raise RequestError(f"mu={mu} and L={L} must satisfy 0 <= mu < L")


def run_on_scalars(program: Program, w: Array) -> dict[str, Array]:
    """Every value of the program for starts of 1. The main operator multiplies by ``w``, the others by 1."""
    starts = {name: np.ones(np.shape(w)) for name in program.starts}
    return interpret(program.instructions, starts, lambda call, x: factor(program, call, w) * x)


def multiples(program: Program, starts: Mapping[str, float] | None = None) -> dict[str, float]:
    """Which multiple of a fixed point of T every value is.

    It is 0 for a residual call F and for a dual, and 2 for the sum of two streams. Where only rounding keeps a multiple
    from a whole number, it is that number: 1.9 - 0.9 is 1.

    Args:
        starts: those of the starting points; by default 1.
    """
    values = {name: np.full(1, (starts or {}).get(name, 1.0)) for name in program.starts}
    found = interpret(program.instructions, values, lambda call, x: factor(program, call, 1.0) * x)
    exact = {value: float(size[0]) for value, size in found.items()}
    return {value: float(round(size)) if abs(size - round(size)) <= ROUNDING else size for value, size in exact.items()}


def last_result(program: Program, w: Array) -> Array:
    """As ``run_on_scalars``, but only the program's last result; other values are freed after their last use."""
    starts = {name: np.ones(np.shape(w)) for name in program.starts}
    wanted = program.results[-1]
    read_last: dict[str, int] = {}
    for i, one in enumerate(program.instructions):
        read_last.update(dict.fromkeys(one.reads, i))
    done: list[list[str]] = [[] for _ in program.instructions]
    for value, i in read_last.items():
        if value != wanted:
            done[i].append(value)
    return interpret(program.instructions, starts, lambda call, x: factor(program, call, w) * x, done)[wanted]


def interpret(
    instructions: Iterable[Instruction],
    values: dict[str, Array],
    apply: Callable[[Apply, Array], Array],
    done: Sequence[Sequence[str]] = (),
) -> dict[str, Array]:
    """Runs instructions on arrays: sums are computed, calls are passed to ``apply(call, argument)``.

    A term of weight 0 is not read. Every result is added to ``values``, which is returned.

    Args:
        done: for each instruction the values that are not read after it.
    """
    for i, one in enumerate(instructions):
        if isinstance(one, Apply):
            values[one.value] = apply(one, values[one.argument])
        else:
            terms = [(term, weight) for term, weight in zip(one.terms, one.weights, strict=True) if weight]
            total = terms[0][1] * values[terms[0][0]] if terms else 0.0 * next(iter(values.values()))
            for term, weight in terms[1:]:
                total = total + weight * values[term]
            values[one.value] = total
        for value in done[i] if done else ():
            del values[value]
    return values


def factor(program: Program, call: Apply, w: Array | float) -> Array | float:
    """The factor of a call: ``w`` for the main operator, 1 for the others, and 1 less in the residual reading."""
    return (w if call.operator == program.main else 1.0) - is_residual(program, call)


def is_residual(program: Program, call: Apply) -> bool:
    return program.readings.get(call.operator) == "residual"


def points(program: Program, start: Any, gradient: Callable[[Any], Any]) -> list[Any]:
    """The points at which the program takes a gradient, and its last result, if it runs from ``start``.

    The main operator is T = id - gradient, all others are the identity. Points may be arrays, or symbols of PEPit.
    """
    visited: list[Any] = []

    def apply(call: Apply, x: Any) -> Any:
        kept = x * (not is_residual(program, call))
        if call.operator != program.main:
            return kept
        visited.append(x)
        return kept - gradient(x)

    values = interpret(program.instructions, dict.fromkeys(program.starts, start), apply)
    return [*visited, values[program.results[-1]]]
