"""A program run as an optimizer: on a quadratic, and on logistic regression of real data. Proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from optnet.analysis.scalars import Array, points
from optnet.language.folding import one_call_per_point
from optnet.language.program import Program

LARGEST = 1e9
"""A run ends where its gap is this many times that of the start: it has no use for more digits than exist."""


@dataclass(frozen=True)
class Trial:
    """A 1-smooth convex function to be minimised from 0.

    Attributes:
        value, gradient: at a point (dimensions,).
        minimiser: x*.
    """

    name: str
    value: Callable[[Array], float]
    gradient: Callable[[Array], Array]
    minimiser: Array

    def gap(self, x: Array) -> float:
        return self.value(x) - self.value(self.minimiser)


@cache
def quadratic(dimensions: int = 100, kappa: float = 1000.0) -> Trial:
    """f(x) = sum_i lambda_i (x_i - x*_i)^2 / 2 with lambda from 1 / kappa to 1, equal factors apart, and x* = 1."""
    lam, ones = np.geomspace(1 / kappa, 1, dimensions), np.ones(dimensions)
    return Trial(
        "quadratic",
        lambda x: float(lam @ (x - ones) ** 2 / 2),
        lambda x: lam * (x - ones),
        ones,
    )


@cache
def logistic_regression(ridge: float = 1e-3) -> Trial:
    """f(x) = (mean_i log(1 + exp(-b_i a_i'x)) + ridge |x|^2 / 2) / L: scikit-learn's breast cancer data, 569 x 31.

    a_i are the standardised features and a 1, b_i = +-1 the diagnosis. L = |A|^2 / (4 n) + ridge makes f 1-smooth. x*
    is found by Newton's method.
    """
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    features = (found.data - found.data.mean(0)) / found.data.std(0)
    A = np.hstack([features, np.ones((len(features), 1))]) * np.where(found.target == 1, 1.0, -1.0)[:, None]
    n, size = A.shape
    L = np.linalg.norm(A, 2) ** 2 / (4 * n) + ridge

    def value(x: Array) -> float:
        return float(np.logaddexp(0, -A @ x).mean() + ridge / 2 * x @ x) / L

    def gradient(x: Array) -> Array:
        return np.asarray(ridge * x - A.T @ _sigmoid(-A @ x) / n) / L

    x = np.zeros(size)
    for _ in range(30):
        p = _sigmoid(-A @ x)
        x = x - np.linalg.solve((A.T * (p * (1 - p))) @ A / n + ridge * np.eye(size), L * gradient(x))
    return Trial("logistic regression", value, gradient, x)


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def ratio(program: Program, trial: Trial) -> float:
    """(f(x_N) - f*) / |x_0 - x*|^2: what the worst case bounds."""
    return trial.gap(_run(program, trial, np.zeros_like(trial.minimiser))[-1]) / float(
        trial.minimiser @ trial.minimiser
    )


def curve(program: Program, trial: Trial, evaluations: int) -> list[float]:
    """f - f* at each point where the program takes a gradient, and at its result.

    The program starts again from its result until there are ``evaluations`` gradients. The list is shorter if the
    method diverges.
    """
    x, gaps = np.zeros_like(trial.minimiser), [trial.gap(np.zeros_like(trial.minimiser))]
    limit = LARGEST * gaps[0]
    while len(gaps) <= evaluations:
        visited = _run(program, trial, x)
        for point in visited[1:]:
            gaps.append(trial.gap(point))
            if not gaps[-1] < limit:
                return gaps[:-1]
        x = visited[-1]
    return gaps[: evaluations + 1]


def _run(program: Program, trial: Trial, start: Array) -> list[Array]:
    """The points at which the program takes a gradient, and its result; T = id - grad f."""
    with np.errstate(all="ignore"):
        return points(one_call_per_point(program), start, trial.gradient)
