"""Heavy ball. Pure recurrences: no torch, no layers."""

from optnet.symbols import Iterate, Operator, identity
from optnet.tracing import algorithm


@algorithm(
    reference="Polyak 1964; Li, Yang, Chen, Lin 2018, eq. (2) and (16)",
    aliases=("hb", "polyak"),
    ancestor={"beta": 0.0},
    network={"reading": "residual"},
)
def heavy_ball(
    T: Operator, x: Iterate, steps: int, *, beta: float = 0.9, step: float = 1.0, P: Operator = identity
) -> Iterate:
    """x_{k+1} = P(x_k + step (T(x_k) - x_k) + beta (x_k - x_{k-1})),  x_{-1} = x_0

    Also called: gradient descent with (classical) momentum. Not Nesterov's method, which moves before it calls T.
    As a network: HB-Net; beta = 0 is ResNet (T = id + F), step = 1 - gamma and beta = gamma is Momentum ResNet.
    """
    previous = x
    for _ in range(steps):
        x, previous = P(x + step * (T(x) - x) + beta * (x - previous)), x
    return x
