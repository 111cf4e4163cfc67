"""ADMM on two copies of one smooth function, and its Jacobi relative. Pure recurrences: no torch, no layers."""

from optnet.symbols import Iterate, Operator, identity
from optnet.tracing import algorithm


@algorithm(
    reference="Li, Yang, Chen, Lin 2018, ADMM, eq. (1); linearised ADMM: Lin, Liu, Su 2011",
    aliases=("linearised_admm", "linearized_admm"),
    network={"reading": "residual"},
)
def admm(T: Operator, x: Iterate, steps: int, *, rho: float = 1.0, P: Operator = identity) -> Iterate:
    """x'_{k+1} = P((T(x'_k) + rho (x_k - u_k)) / (1 + rho))
    x_{k+1} = P((T(x_k) + rho (x'_{k+1} + u_k)) / (1 + rho)),  u_{k+1} = u_k + x'_{k+1} - x_{k+1},  u_0 = 0

    min f(x') + f(x) subject to x' = x, both f linearised with a unit proximal term (Gauss-Seidel), u the scaled dual.
    With rho = 1 it is the published form, whose sums over all iterates are the carried u. It is slower than gradient
    descent on one smooth f: its use is the two-stream network. Not ``merge_and_run``, which has no dual.
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
    network={"layer": "basic", "reading": "residual", "last": {"merged": True}},
)
def merge_and_run(
    T: Operator,
    x: Iterate,
    y: Iterate,
    steps: int,
    *,
    step: float = 0.5,
    merged: bool = False,
    P: Operator = identity,
) -> Iterate | tuple[Iterate, Iterate]:
    """x_{k+1} = P((x_k + y_k) / 2 + step (T(x_k) - x_k)),  y_{k+1} = P((x_k + y_k) / 2 + step (T(y_k) - y_k))

    With step = 1/2 the Jacobi form of ADMM without dual: x_{k+1} = (T(x_k) + y_k) / 2. merged=True ends with
    P((x + y) / 2 + step (T(x) - x) + step (T(y) - y)), one iterate. With one T and x_0 = y_0 both streams stay equal.
    As a network with T = id + F: step = 1 is DMRNet (weights 1, 1/2, 1/2).
    """
    for k in range(steps):
        if merged and k == steps - 1:
            return P((x + y) / 2 + step * (T(x) - x) + step * (T(y) - y))
        x, y = P((x + y) / 2 + step * (T(x) - x)), P((x + y) / 2 + step * (T(y) - y))
    return x, y
