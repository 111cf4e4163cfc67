"""What an algorithm is worth before training, from its traced program alone. Needs no torch, no layers, no data.

On a quadratic with spectrum in [mu, L] the map T = id - grad f / L acts on the error along an eigenvector as
multiplication by w = 1 - lambda / L, so that a program's result is a polynomial in lambda. Every operator but the first
is taken as the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from optnet.algorithms import find_algorithm, list_algorithms
from optnet.errors import AlgorithmError, RequestError
from optnet.guarantees import INITIAL, METRICS
from optnet.program import Apply, Combine, Program, Step
from optnet.tracing import Algorithm, trace

Array = np.ndarray[Any, np.dtype[np.float64]]
Method = str | Callable[..., Any] | Algorithm


def _check_range(mu: float, L: float) -> None:
    if not (0 <= mu < L < np.inf):
        raise RequestError(f"mu={mu} and L={L} must satisfy 0 <= mu < L")


def run_on_scalars(program: Program, w: Array) -> dict[str, Array]:
    """Every value, from starts of 1, where the first operator multiplies by ``w`` and the others do nothing."""
    starts = {name: np.ones(np.shape(w)) for name in program.starts}
    return _interpret(program.steps, starts, lambda call, x: _factor(program, call, w) * x)


def _interpret(
    steps: Iterable[Step], values: dict[str, Array], apply: Callable[[Apply, Array], Array]
) -> dict[str, Array]:
    """Runs steps on arrays: sums as they stand, calls as ``apply(call, argument)`` says. Returns ``values``, filled."""
    for step in steps:
        if isinstance(step, Apply):
            values[step.value] = apply(step, values[step.argument])
        else:
            total = step.weights[0] * values[step.terms[0]]
            for term, weight in zip(step.terms[1:], step.weights[1:], strict=True):
                total = total + weight * values[term]
            values[step.value] = total
    return values


def _factor(program: Program, call: Apply, w: Array | float) -> Array | float:
    """What a call multiplies its argument by: the first operator by ``w``, the others by 1; a residual F by 1 less."""
    return (w if call.operator == program.main else 1.0) - _is_residual(program, call)


def _is_residual(program: Program, call: Apply) -> bool:
    return program.readings.get(call.operator) == "residual"


def error_polynomial(program: Program, mu: float, L: float) -> chebyshev.Chebyshev:
    """The error of the program's last result as a polynomial in lambda on [mu, L], from a start of error 1."""
    degree = sum(step.operator == program.main for step in program.applies)
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    lam = mu + (L - mu) * (nodes + 1) / 2
    values = run_on_scalars(program, 1 - lam / L)[program.results[-1]]
    coefficients = 2 / (degree + 1) * chebyshev.chebvander(nodes, degree).T @ values
    coefficients[0] /= 2
    return chebyshev.Chebyshev(coefficients, domain=[mu, L])


def worst_error(program: Program, mu: float, L: float) -> float:
    """max over lambda in [mu, L] of |error|: at an end of the spectrum or a root of the polynomial's derivative."""
    polynomial = error_polynomial(program, mu, L)
    candidates = np.array([mu, L])
    if polynomial.degree() > 1:
        roots = polynomial.deriv().roots()
        real = roots.real[np.abs(roots.imag) < 1e-6 * (L - mu)]
        candidates = np.concatenate([candidates, real.clip(mu, L)])
    exact = run_on_scalars(program, 1 - candidates / L)[program.results[-1]]
    return float(np.abs(exact).max())


def constants_for(method: Algorithm, mu: float, L: float, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The constants that the algorithm recommends for (mu, L), with the given ones on top."""
    return {**(method.tuned(mu, L) if method.tuned is not None and mu > 0 else {}), **(given or {})}


def errors(method: Method, mu: float, L: float, steps: int, **constants: Any) -> list[float]:
    """The worst error over all quadratics with spectrum in [mu, L] after 1, 2, ... steps, from a start of error 1.

    Constants that are not given are the algorithm's recommended ones. A method that needs to know its number of steps
    is run anew for every number.
    """
    _check_range(mu, L)
    algorithm = find_algorithm(method)
    chosen = constants_for(algorithm, mu, L, constants)
    return [worst_error(trace(algorithm, steps=k, **chosen), mu, L) for k in range(1, steps + 1)]


@dataclass(frozen=True)
class Recurrence:
    """A stationary method as a linear map of its live values: ``matrix(w)`` carries them over one iteration."""

    program: Program
    first: int
    second: int
    live: tuple[tuple[str, ...], tuple[str, ...]]

    def matrix(self, w: float) -> Array:
        start = dict(zip(self.live[0], np.eye(len(self.live[0])), strict=True))
        steps = self.program.steps[self.first : self.second]
        values = _interpret(steps, start, lambda call, x: _factor(self.program, call, w) * x)
        return np.array([values[name] for name in self.live[1]])

    def radius(self, w: float) -> float:
        return float(np.abs(np.linalg.eigvals(self.matrix(w))).max())


def recurrence(method: Method, reading: str = "map", **constants: Any) -> Recurrence | None:
    """The method's linear recurrence, or None if its coefficients or its memory change from step to step."""
    algorithm = find_algorithm(method)
    depth = 12
    programs = [trace(algorithm, steps=n, reading=reading, **constants) for n in (depth, depth + 1)]
    calls = [sum(1 for _ in program.applies) for program in programs]
    period = calls[1] - calls[0]
    if calls[0] != period * depth:
        return None
    program = programs[1]
    cuts = [_cut(program, period * k) for k in (depth // 2, depth // 2 + 1, depth // 2 + 2)]
    if len({len(live) for _, live in cuts}) != 1:
        return None
    one, two = (Recurrence(program, a, b, (before, after)) for (a, before), (b, after) in pairwise(cuts))
    same = all(np.allclose(one.matrix(w), two.matrix(w), rtol=1e-12, atol=1e-12) for w in (0.0, 0.3, 0.9))
    return one if same else None


def _cut(program: Program, call: int) -> tuple[int, tuple[str, ...]]:
    """The position of a call in the program, and the values that are set before it and read from it on."""
    at = [i for i, step in enumerate(program.steps) if isinstance(step, Apply)][call]
    before = [*program.starts, *(step.value for step in program.steps[:at])]
    needed = set(program.results).union(*(step.reads for step in program.steps[at:]))
    return at, tuple(value for value in before if value in needed)


def convergence_factor(method: Method, mu: float, L: float, **constants: Any) -> float | None:
    """The asymptotic factor per step on quadratics: the largest spectral radius over lambda in [mu, L].

    None if the method is not stationary; see ``errors`` then.
    """
    _check_range(mu, L)
    algorithm = find_algorithm(method)
    found = recurrence(algorithm, **constants_for(algorithm, mu, L, constants))
    if found is None:
        return None
    lam = np.unique(np.concatenate([np.linspace(mu, L, 400), np.geomspace(max(mu, 1e-9 * L), L, 400).clip(mu, L)]))
    radii = [found.radius(1 - x / L) for x in lam]
    best = int(np.argmax(radii))
    low, high = lam[max(best - 1, 0)], lam[min(best + 1, len(lam) - 1)]
    fine = [found.radius(1 - x / L) for x in np.linspace(low, high, 201)]
    return max(radii[best], *fine)


def sum_rule(program: Program) -> float:
    """How far the results are from 1 if T(1) = 1: 0 for a consistent method, whose fixed points are T's."""
    values = run_on_scalars(program, np.ones(1))
    return max(float(abs(values[result][0] - 1)) for result in program.results)


def amplification(program: Program) -> float:
    """The largest effect on a result of a disturbance of any value, with T = id (zero-stability of the recurrence)."""
    effect: dict[str, float] = {}
    worst = 0.0
    for result in program.results:
        effect = dict.fromkeys([*program.starts, *(step.value for step in program.steps)], 0.0)
        effect[result] = 1.0
        for step in reversed(program.steps):
            if isinstance(step, Apply):
                effect[step.argument] += (not _is_residual(program, step)) * effect[step.value]
            else:
                for term, weight in zip(step.terms, step.weights, strict=True):
                    effect[term] += weight * effect[step.value]
        worst = max(worst, *map(abs, effect.values()))
    return worst


def growth(program: Program) -> list[float]:
    """The size of every operator's argument, and last of the results, for random operators, from starts of size 1.

    A random operator keeps the size of what it gets and turns it into a direction of its own (the residual F as well).
    """
    directions = np.eye(sum(1 for _ in program.applies) + 1)
    sizes: list[float] = []

    def apply(call: Apply, x: Array) -> Array:
        sizes.append(float(np.linalg.norm(x)))
        return sizes[-1] * directions[len(sizes)]

    values = _interpret(program.steps, dict.fromkeys(program.starts, directions[0]), apply)
    return [*sizes, max(float(np.linalg.norm(values[result])) for result in program.results)]


def canonical_table(program: Program) -> Array:
    """Rows: what every call of the first operator, and the result, is made of; columns: starts, then calls (as maps).

    Two programs with the same table are the same method, however they are written and read.
    """
    calls = [step for step in program.applies if step.operator == program.main]
    column = {step.value: len(program.starts) + i for i, step in enumerate(calls)}
    units = np.eye(len(program.starts) + len(calls))
    rows: list[Array] = []

    def apply(call: Apply, x: Array) -> Array:
        if call.value not in column:
            return x
        rows.append(x)
        return units[column[call.value]] - x * _is_residual(program, call)

    values = _interpret(program.steps, dict(zip(program.starts, units, strict=False)), apply)
    return np.array([*rows, values[program.results[-1]]])


def nearest(program: Program) -> tuple[str, float]:
    """The method of the library whose table is nearest (root mean square over the table).

    Every method is taken at its default constants, the program's own algorithm at the program's.
    ('', inf) if no method calls its operator as often.
    """
    table = canonical_table(program)
    best = ("", np.inf)
    steps = int(program.constants.get("steps", 0)) or len(table) - 1
    for name in list_algorithms():
        try:
            method = find_algorithm(name)
            own = {key: program.constants[key] for key in method.constants if key in program.constants}
            other = canonical_table(trace(method, steps=steps, **(own if name == program.name else {})))
        except RequestError:
            continue
        if other.shape == table.shape:
            distance = float(np.sqrt(((other - table) ** 2).mean()))
            best = min(best, (name, distance), key=lambda found: found[1])
    return best


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found, and what it means in a sentence each."""

    consistent: bool
    stable: bool
    bounded: bool
    sentences: tuple[str, ...]
    nearest: tuple[str, float]


def diagnose(program: Program) -> Diagnosis:
    """Whether a program, textbook or learned, is consistent, zero-stable, and of bounded activations."""
    off = sum_rule(program)
    depth = max(1, sum(step.operator == program.main for step in program.applies))
    amplified, sizes = amplification(program), growth(program)
    limit = 10.0 * depth + 10
    consistent, stable, bounded = off < 1e-6, amplified <= limit, max(sizes) <= 100
    sentences = (
        "Consistent: its weights sum to 1, so that its fixed points are those of T."
        if consistent
        else f"Inconsistent: where T(x) = x it moves x by {off:.3g} of its size, because its weights do not sum to 1.",
        f"Zero-stable: a disturbance grows at most {amplified:.3g} times."
        if stable
        else f"Unstable: with T = id a disturbance grows {amplified:.3g} times over {depth} calls.",
        f"Activations stay bounded: with random operators they grow to {max(sizes):.3g} times the input."
        if bounded
        else f"Exploding: with random operators activations grow to {max(sizes):.3g} times the input.",
    )
    return Diagnosis(consistent, stable, bounded, sentences, nearest(program))


def with_weights(program: Program, weights: Mapping[tuple[str, str], float]) -> Program:
    """The program with other weights, as learned: ``{(row, term): weight}``."""
    steps = tuple(
        replace(step, weights=tuple(weights[step.value, term] for term in step.terms))
        if isinstance(step, Combine) else step
        for step in program.steps
    )  # fmt: skip
    return replace(program, steps=steps)


def worst_case(
    method: Method,
    mu: float,
    L: float,
    steps: int,
    *,
    metric: str = "gap",
    initial: str = "distance",
    **constants: Any,
) -> float:
    """The exact worst case over all L-smooth, mu-strongly convex functions: metric(x_N) <= value * initial.

    The algorithm's own function runs on the points of PEPit (Goujaud et al. 2024; Drori and Teboulle 2014; Taylor,
    Hendrickx, Glineur 2017), which turns the question into a semidefinite program. Operators but the first are the
    identity; all starting points are one. Constants that are not given are the function's defaults.

    Args:
        metric: ``gap`` f(x_N) - f*, ``distance`` |x_N - x*|^2, or ``gradient`` |grad f(x_N)|^2.
        initial: ``distance`` |x_0 - x*|^2 or ``gap`` f(x_0) - f*.

    Returns:
        The worst case; infinity if it is unbounded.

    Raises:
        RequestError: PEPit is not installed, or an argument is unknown.
        AlgorithmError: the algorithm returns several points, or cannot run on points.
    """
    _check_range(mu, L)
    if metric not in METRICS or initial not in INITIAL:
        raise RequestError(
            f"metric={metric} or initial={initial} is unknown; gap, distance or gradient; distance or gap"
        )
    try:
        from PEPit import PEP
        from PEPit.functions import SmoothConvexFunction, SmoothStronglyConvexFunction
    except ImportError:
        raise RequestError("worst cases need PEPit: pip install 'optnet-generator[proof]'") from None
    algorithm = find_algorithm(method)
    algorithm.check_constants(constants)
    problem = PEP()
    kind, options = (SmoothStronglyConvexFunction, {"mu": mu, "L": L}) if mu else (SmoothConvexFunction, {"L": L})
    f = problem.declare_function(kind, **options)
    solution = f.stationary_point()
    start = problem.set_initial_point()
    first, *others = [name for name, needed in algorithm.operators.items() if needed]
    operators = {first: lambda x: x - f.gradient(x) / L, **{name: (lambda x: x) for name in others}}
    points = dict.fromkeys(algorithm.starts, start)
    result = algorithm(**operators, **points, steps=steps, **constants)
    if isinstance(result, (tuple, list)):
        raise AlgorithmError(f"{algorithm.name} returns several points; a worst case needs one")
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


def quadratic_metric(program: Program, mu: float, L: float, metric: str, initial: str) -> float:
    """The worst metric / initial over quadratics with one eigenvalue of 2,000 in [mu, L]; both as in ``Theorem``."""
    lam = np.geomspace(mu, L, 2000)
    error = run_on_scalars(program, 1 - lam / L)[program.results[-1]] ** 2
    scale = {"distance": np.ones_like(lam), "gap": lam / 2, "gradient": lam**2}
    return float((scale[metric] * error / scale[initial]).max())


def theorem_margin(method: Method, mu: float, L: float, steps: int) -> float | None:
    """The largest (measured on quadratics) / (promised) over all steps that the algorithm's theorem speaks of.

    At most 1 if the theorem holds; None if there is no theorem. A quadratic is convex, so this can refute a theorem on
    convex functions, not prove it: see ``worst_case``.
    """
    _check_range(mu, L)
    algorithm = find_algorithm(method)
    theorem = algorithm.theorem
    if theorem is None or mu == 0:
        return None
    chosen, worst = constants_for(algorithm, mu, L), 0.0
    for k in range(1, steps + 1):
        if theorem.holds_after(k, k):
            program = trace(algorithm, steps=k, **chosen)
            measured = quadratic_metric(program, mu, L, theorem.metric, theorem.initial)
            worst = max(worst, measured / theorem.bound(k, mu, L))
    return worst
