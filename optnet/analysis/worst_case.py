"""The exact worst case of a method over all smooth (strongly) convex functions, by PEPit (the extra ``proof``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optnet.analysis.quadratics import Method
from optnet.analysis.scalars import check_range, interpret
from optnet.errors import AlgorithmError, RequestError
from optnet.language.lookup import find_algorithm
from optnet.language.theorems import INITIAL, METRICS
from optnet.language.tracing import all_constants, traced

MOST_CALLS = 50
"""Number of calls of the main operator at most; PEPit's time grows faster than its fourth power."""


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
    check_range(mu, L)
    if metric not in METRICS or initial not in INITIAL:
        raise RequestError(
            f"metric={metric} or initial={initial} is unknown; metric is gap, distance or gradient; initial is "
            "distance or gap"
        )
    try:
        from PEPit import PEP
        from PEPit.functions import SmoothConvexFunction, SmoothStronglyConvexFunction
    except ImportError:
        raise RequestError("worst cases need PEPit: pip install 'optnet-generator[proof]'") from None
    algorithm = find_algorithm(method)
    program = traced(algorithm, steps, constants=all_constants(algorithm, constants, more))
    if program.several:
        raise AlgorithmError(f"{algorithm.name} returns several points; a worst case needs one: return one iterate")
    calls = len(program.calls(program.main))
    if calls > MOST_CALLS:
        raise RequestError(f"a worst case over {calls} calls of {program.main} takes too long; at most {MOST_CALLS} do")
    problem = PEP()
    kind, options = (SmoothStronglyConvexFunction, {"mu": mu, "L": L}) if mu else (SmoothConvexFunction, {"L": L})
    f = problem.declare_function(kind, **options)
    solution = f.stationary_point()
    start = problem.set_initial_point()
    values: dict[str, Any] = dict.fromkeys(program.starts, start)
    interpret(
        program.instructions, values, lambda call, x: x - f.gradient(x) / L if call.operator == program.main else x
    )
    result = values[program.results[0]]
    optimum = f(solution)
    problem.set_initial_condition((start - solution) ** 2 <= 1 if initial == "distance" else f(start) - optimum <= 1)
    measured = {
        "gap": lambda: f(result) - optimum,
        "distance": lambda: (result - solution) ** 2,
        "gradient": lambda: f.gradient(result) ** 2,
    }[metric]()
    problem.set_performance_metric(measured)
    value = problem.solve(verbose=0)
    return float("inf") if value is None else float(value)
