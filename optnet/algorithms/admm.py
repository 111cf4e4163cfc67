"""ADMM on two copies of one smooth function, its Jacobi form, and the general method. No torch, no layers."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator, identity


@algorithm(
    reference="Li, Yang, Chen, Lin 2018, ADMM, eq. (1); linearised ADMM: Lin, Liu, Su 2011",
    aliases=("linearised_admm", "linearized_admm"),
    network=NetworkDefaults(reading="residual"),
)
def admm(T: Operator, x: Iterate, steps: int, *, rho: float = 1.0, P: Operator = identity) -> Iterate:
    """x'_{k+1} = P((T(x'_k) + rho (x_k - u_k)) / (1 + rho))
    x_{k+1} = P((T(x_k) + rho (x'_{k+1} + u_k)) / (1 + rho)),  u_{k+1} = u_k + x'_{k+1} - x_{k+1},  u_0 = 0

    Solves min f(x') + f(x) subject to x' = x in Gauss-Seidel order. Both f are linearised with a unit proximal term;
    u is the scaled dual. rho = 1 is the published form, which writes u as sums over all iterates. On one smooth f the
    method is slower than gradient descent; it is meant for the two-stream network. ``merge_and_run`` is the variant
    without a dual.
    """
    prime = x
    u: Iterate | float = 0.0
    for _ in range(steps):
        prime = P((T(prime) + rho * (x - u)) / (1 + rho))
        x = P((T(x) + rho * (prime + u)) / (1 + rho))
        u = u + prime - x
    return x


@algorithm(
    reference="Li, Yang, Chen, Lin 2018, eq. (20); Zhao, Wang, Li, Tu, Zeng 2018 (DMRNet)",
    aliases=("dmr", "jacobi_admm"),
    ancestor={"step": 1.0},
    network=NetworkDefaults(layer="basic", reading="residual", last={"merged": True}),
)
def merge_and_run(
    T: Operator,
    x: Iterate,
    y: Iterate,
    steps: int,
    *,
    step: float = 0.5,
    earlier: float = 0.0,
    history: int | None = None,
    merged: bool = False,
    P: Operator = identity,
) -> Iterate | tuple[Iterate, Iterate]:
    """x_{k+1} = P(m_k + step (T(x_k) - x_k)),  y_{k+1} = P(m_k + step (T(y_k) - y_k))
    m_k = (x_k + y_k) / 2 + earlier sum_{t<k} (x_t + y_t)

    step = 1/2 is the Jacobi form of ADMM without a dual: x_{k+1} = (T(x_k) + y_k) / 2. m_k is the sum over
    t = 1, ..., k of (20), which both streams share. Its weights are learned in a network, from 0 on for t < k. It has
    the newest ``history`` iterates of each stream; None: all. With merged=True the last iteration returns a single
    iterate, P(m_k + step (T(x_k) - x_k) + step (T(y_k) - y_k)). If all calls share one T and x_0 = y_0, both streams
    stay equal. As a network with T = id + F: ADMM-Net. step = 1 and history = 1 is DMRNet (weights 1, 1/2, 1/2).
    """
    if history is not None and history < 1:
        raise ValueError(f"history={history} must be at least 1, or None for all iterates")
    past: list[Iterate] = []
    for k in range(steps):
        m = reduce(add, (earlier * v for v in past), (x + y) / 2)
        past = [x, y, *past] if history is None else [x, y, *past][: 2 * (history - 1)]
        to_x, to_y = step * (T(x) - x), step * (T(y) - y)
        if merged and k == steps - 1:
            return P(m + to_x + to_y)
        x, y = P(m + to_x), P(m + to_y)
    return x, y


def alternating_direction(
    solve_1: Callable[[Any, float], Any],
    solve_2: Callable[[Any, float], Any],
    A_1: Callable[[Any], Any],
    A_2: Callable[[Any], Any],
    b: Any,
    x_2: Any,
    steps: int,
    *,
    beta: float = 1.0,
    growth: float = 1.0,
    beta_max: float = 1e6,
) -> tuple[Any, Any, Any]:
    """The alternating direction method for min f_1(x_1) + f_2(x_2) subject to A_1 x_1 + A_2 x_2 = b, on tensors.

    x_1 = argmin f_1(x) + beta_k/2 |A_1 x - (b - A_2 x_2 - lambda/beta_k)|^2, then x_2 likewise with the new x_1,
    lambda = lambda + beta_k (A_1 x_1 + A_2 x_2 - b), beta_{k+1} = min(growth beta_k, beta_max). Lin 2019, 'Alternating
    Direction Method'; Lin, Liu, Su 2011. It cannot become a network, because the caller solves its inner problems.

    Args:
        solve_1, solve_2: (v, beta) -> argmin_x f_i(x) + beta/2 |A_i x - v|^2.
        A_1, A_2: the linear maps.
        b: the right-hand side of the constraint.
        x_2: the starting point; lambda starts at 0.
        steps: the number of iterations.
        beta, growth, beta_max: the penalty, its growth factor per iteration, and its maximum.

    Returns:
        x_1, x_2 and the multiplier lambda.
    """
    multiplier = 0 * b
    x_1 = None
    for _ in range(steps):
        x_1 = solve_1(b - A_2(x_2) - multiplier / beta, beta)
        x_2 = solve_2(b - A_1(x_1) - multiplier / beta, beta)
        multiplier = multiplier + beta * (A_1(x_1) + A_2(x_2) - b)
        beta = min(growth * beta, beta_max)
    return x_1, x_2, multiplier
