"""The exact worst case of a method over all smooth (strongly) convex functions, by PEPit (the extra ``proof``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from optnet.analysis.quadratics import Method
from optnet.analysis.scalars import Array, check_range, points
from optnet.errors import AlgorithmError, RequestError
from optnet.language.folding import one_call_per_point
from optnet.language.lookup import find_algorithm
from optnet.language.program import Program
from optnet.language.theorems import INITIAL, METRICS
from optnet.language.tracing import all_constants, traced

MOST_CALLS = 50
"""Number of calls of the main operator at most; PEPit's time grows faster than its fourth power."""
SOLVERS = ("CLARABEL", "SCS")
"""The solvers of the semidefinite program, the first that is installed: interior points, or ADMM to fewer digits."""
SMALL = 1e-3
"""Directions in which the points of a worst case are less than this part of their size apart are left out."""


class Samples(NamedTuple):
    """A function at some points: (points, dimensions), (points, dimensions), (points,). Its minimum, 0, is at 0."""

    points: Array
    gradients: Array
    values: Array


@dataclass(frozen=True)
class WorstCase:
    """A worst case: metric(x_N) <= value * initial.

    Attributes:
        value: infinity if it is unbounded.
        solver: of the semidefinite program.
        attained: a function where the two are equal, at x*, at every point where the program calls its main operator,
            in order, and at the result; None if it was not asked for or is not there.
    """

    value: float
    solver: str
    attained: Samples | None = None


def worst_case(
    method: Method,
    mu: float,
    L: float,
    steps: int,
    *,
    metric: str = "gap",
    initial: str = "distance",
    constants: Mapping[str, Any] | None = None,
    **more: Any,
) -> float:
    """The exact worst case over all L-smooth, mu-strongly convex functions: metric(x_N) <= value * initial.

    The algorithm's program runs on PEPit's points, and PEPit solves the resulting semidefinite program (Goujaud et al.
    2024; Drori and Teboulle 2014; Taylor, Hendrickx, Glineur 2017). The first operator is id - grad f / L, all others
    are the identity. All starting points are equal. Constants that are not given have their default values.

    Args:
        metric: ``gap`` f(x_N) - f*, ``distance`` |x_N - x*|^2, or ``gradient`` |grad f(x_N)|^2.
        initial: ``distance`` |x_0 - x*|^2 or ``gap`` f(x_0) - f*.

    Returns:
        The worst case; infinity if it is unbounded.

    Raises:
        RequestError: PEPit is not installed, or an argument is unknown.
        AlgorithmError: the algorithm returns several points, or it cannot run on points.
    """
    algorithm = find_algorithm(method)
    program = traced(algorithm, steps, constants=all_constants(algorithm, constants, more))
    if program.several:
        raise AlgorithmError(f"{algorithm.name} returns several points; a worst case needs one: return one iterate")
    return worst_case_of(program, mu, L, metric=metric, initial=initial).value


def worst_case_of(
    program: Program, mu: float, L: float, *, metric: str = "gap", initial: str = "distance", attained: bool = False
) -> WorstCase:
    """``worst_case`` of a program, for example with learned coefficients; of its last result if it has several.

    Args:
        attained: find a function that attains it, too. Of those nearly as bad (by 1e-4 of gradient descent's worst
            gap) it is the one whose points have the Gram matrix of the least trace, so mostly one of few dimensions.
    """
    check_range(mu, L)
    if metric not in METRICS or initial not in INITIAL:
        raise RequestError(
            f"metric={metric} or initial={initial} is unknown; metric is gap, distance or gradient; initial is "
            "distance or gap"
        )
    program = one_call_per_point(program)
    calls = len(program.calls(program.main))
    if calls > MOST_CALLS:
        raise RequestError(f"a worst case over {calls} calls of {program.main} takes too long; at most {MOST_CALLS} do")
    require()
    from PEPit import PEP
    from PEPit.functions import SmoothConvexFunction, SmoothStronglyConvexFunction

    problem = PEP()
    kind, options = (SmoothStronglyConvexFunction, {"mu": mu, "L": L}) if mu else (SmoothConvexFunction, {"L": L})
    f = problem.declare_function(kind, **options)
    solution = f.stationary_point()
    start = problem.set_initial_point()
    visited = [solution, *points(program, start, lambda x: f.gradient(x) / L)]
    optimum = f(solution)
    problem.set_initial_condition((start - solution) ** 2 <= 1 if initial == "distance" else f(start) - optimum <= 1)
    measured = {
        "gap": lambda: f(visited[-1]) - optimum,
        "distance": lambda: (visited[-1] - solution) ** 2,
        "gradient": lambda: f.gradient(visited[-1]) ** 2,
    }[metric]()
    problem.set_performance_metric(measured)
    known = [(point, f.gradient(point), f(point)) for point in visited] if attained else []
    solver = _solver()
    value = None
    if attained:
        nearly = 1e-4 * L / (4 * calls + 2)
        value = _solve(problem, solver, dimension_reduction_heuristic="trace", tol_dimension_reduction=nearly)
    if value is None:
        value = _solve(problem, solver)
    if value is None or not np.isfinite(value):
        return WorstCase(float("inf"), solver)
    return WorstCase(value, solver, _samples(known) if attained else None)


def require() -> None:
    """Raises:
    RequestError: PEPit is not installed.
    """
    try:
        import PEPit  # noqa: F401
    except ImportError:
        raise RequestError("worst cases need PEPit: pip install 'optnet-generator[proof]'") from None


def _solver() -> str:
    import cvxpy

    return next((solver for solver in SOLVERS if solver in cvxpy.installed_solvers()), SOLVERS[-1])


def _solve(problem: Any, solver: str, **options: Any) -> float | None:
    """The value; None if it is unbounded, or the solver finds none."""
    import cvxpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Solution may be inaccurate": it is where the problem is nearly degenerate
        try:
            value = problem.solve(verbose=0, solver=solver, **options)
        except cvxpy.error.SolverError:
            return None
    return None if value is None else float(value)


def _samples(known: list[tuple[Any, Any, Any]]) -> Samples:
    """What the solver found, around x* = 0 with f* = 0, in as few dimensions as there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points, gradients, values = (np.array([one[i].eval() for one in known]) for i in range(3))
    points = points - points[0]
    _, sizes, directions = np.linalg.svd(np.vstack([points, gradients]), full_matrices=False)
    basis = directions[sizes > SMALL * sizes[0]].T
    return Samples(points @ basis, gradients @ basis, values - values[0])
