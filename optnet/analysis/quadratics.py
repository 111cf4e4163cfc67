"""Errors on quadratics, where a program's result is a polynomial in lambda, and a check of theorems against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from optnet.analysis.scalars import Array, check_range, last_result
from optnet.language.declaration import Algorithm
from optnet.language.lookup import find_algorithm
from optnet.language.program import Apply, Program
from optnet.language.tracing import all_constants, traced

Method = str | Callable[..., Any] | Algorithm

ROUNDING = 1e-24
"""Squared errors below it are rounding errors."""


def error_polynomial(program: Program, mu: float, L: float) -> chebyshev.Chebyshev:
    """The error of the program's last result, as a polynomial in lambda on [mu, L], for a start of error 1."""
    degree = _degree(program)
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    lam = mu + (L - mu) * (nodes + 1) / 2
    values = last_result(program, 1 - lam / L)
    coefficients = 2 / (degree + 1) * chebyshev.chebvander(nodes, degree).T @ values
    coefficients[0] /= 2
    return chebyshev.Chebyshev(coefficients, domain=[mu, L])


def _degree(program: Program) -> int:
    """The largest number of calls of the main operator on a path from a start to the last result."""
    longest = dict.fromkeys(program.starts, 0)
    for one in program.instructions:
        counts = isinstance(one, Apply) and one.operator == program.main
        longest[one.value] = max(longest[read] for read in one.reads) + counts
    return longest[program.results[-1]]


def worst_error(program: Program, mu: float, L: float) -> float:
    """max over lambda in [mu, L] of |error|, a polynomial in lambda.

    The error is computed at 8 points for each extremum that a polynomial of this degree may have, which lie as closely
    at the ends as those of a Chebyshev polynomial, and then again and again between the neighbours of the largest ones.
    """

    def at(position: Array) -> Array:
        lam = mu + (L - mu) * np.sin(np.pi / 2 * position) ** 2
        return np.abs(last_result(program, 1 - lam / L))

    position = np.linspace(0, 1, 8 * (_degree(program) + 1) + 1)
    found = at(position)
    width = position[1]
    for _ in range(4):
        largest = np.argsort(found)[-5:]
        best, centre = found[largest], position[largest]
        position = (centre[:, None] + width * np.linspace(-1, 1, 17)).ravel().clip(0, 1)
        position, found = np.append(position, centre), np.append(at(position), best)
        width /= 8
    return float(found.max())


def constants_for(method: Algorithm, mu: float, L: float, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The constants that the algorithm recommends for (mu, L), overridden by the given ones."""
    return {**(method.tuned(mu, L) if method.tuned is not None and mu > 0 else {}), **(given or {})}


def errors(
    method: Method, mu: float, L: float, steps: int, *, constants: Mapping[str, Any] | None = None, **more: Any
) -> list[float]:
    """The worst error over all quadratics with spectrum in [mu, L] after 1, 2, ... iterations, for a start of error 1.

    Constants that are not given have their recommended values. Every number of iterations is a separate run, because
    some methods depend on the total number; for the last number alone, ``worst_error`` is faster.
    """
    check_range(mu, L)
    algorithm = find_algorithm(method)
    chosen = constants_for(algorithm, mu, L, all_constants(algorithm, constants, more))
    return [worst_error(traced(algorithm, k, constants=chosen), mu, L) for k in range(1, steps + 1)]


def quadratic_metric(program: Program, mu: float, L: float, metric: str, initial: str) -> float:
    """The worst ratio metric / initial over quadratics with a single eigenvalue, for 2,000 eigenvalues in [mu, L].

    ``metric`` and ``initial`` are those of ``Theorem``.
    """
    lam = np.geomspace(mu, L, 2000)
    error = last_result(program, 1 - lam / L) ** 2
    scale = {"distance": np.ones_like(lam), "gap": lam / 2, "gradient": lam**2}
    return float((scale[metric] * error / scale[initial]).max())


def theorem_margin(method: Method, mu: float, L: float, steps: int, after: Iterable[int] | None = None) -> float | None:
    """The largest ratio of the measured value on quadratics to the bound, over the iterations that the theorem covers.

    Args:
        after: the numbers of iterations to look at; by default all up to ``steps``.

    It is at most 1 if the theorem holds on quadratics, and None if there is no theorem. Quadratics are convex, so this
    can refute a theorem on convex functions, but not prove it: see ``worst_case``.
    """
    check_range(mu, L)
    algorithm = find_algorithm(method)
    theorem = algorithm.theorem
    if theorem is None or mu == 0:
        return None
    chosen, worst = constants_for(algorithm, mu, L), 0.0
    for k in range(1, steps + 1) if after is None else after:
        if theorem.holds_after(k, k):
            program = traced(algorithm, k, constants=chosen)
            measured = quadratic_metric(program, mu, L, theorem.metric, theorem.initial)
            if measured > ROUNDING:
                worst = max(worst, measured / theorem.bound(k, mu, L))
    return worst
