"""``Theorem``: what an algorithm guarantees, as data for tests, ``analyse`` and the docs. No torch, no tracing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Tuning = Callable[[float, float], Mapping[str, Any]]
"""(mu, L) -> the recommended constants, for T = id - grad f / L."""

METRICS = {
    "gap": "f(x_k) - f*",
    "distance": "|x_k - x*|^2",
    "gradient": "|grad f(x_k)|^2",
}
INITIAL = {"distance": "|x_0 - x*|^2", "gap": "(f(x_0) - f*)"}
WHERE = ("every iteration", "last iteration", "iterations 2^m - 1")
FUNCTIONS = ("convex", "strongly convex", "quadratic")


@dataclass(frozen=True)
class Theorem:
    """metric(x_k) <= bound(k, mu, L) * initial, for T = id - grad f / L and the algorithm's tuned constants.

    Attributes:
        metric: what is bounded; a key of ``METRICS``.
        bound: the factor as a function of (k, mu, L).
        text: the bound as a formula, with q = mu / L.
        functions: the class of f: L-smooth and convex, mu-strongly convex, or quadratic with spectrum in [mu, L].
        where: whether it holds after every iteration, only after a run's last one, or only after 2^m - 1 iterations.
        initial: the bound is a multiple of this initial error; a key of ``INITIAL``.
        reference: where it is proved.
    """

    metric: str
    bound: Callable[[int, float, float], float]
    text: str
    functions: str
    reference: str
    where: str = "every iteration"
    initial: str = "distance"

    def __post_init__(self) -> None:
        assert self.metric in METRICS and self.initial in INITIAL
        assert self.where in WHERE and self.functions in FUNCTIONS

    def holds_after(self, k: int, steps: int) -> bool:
        """Whether the theorem covers iterate k of a run of ``steps`` iterations."""
        if self.where == "last iteration":
            return k == steps
        return k >= 1 and (self.where == "every iteration" or k & (k + 1) == 0)

    def __str__(self) -> str:
        return f"{METRICS[self.metric]} <= {self.text} {INITIAL[self.initial]}, {self.functions} f, {self.where}"
