"""Gradient descent. Pure recurrences: no torch, no layers."""

from optnet.symbols import Iterate, Operator, identity
from optnet.tracing import algorithm


@algorithm(
    reference="Cauchy 1847; Lin 2019, 'From GD to Other Optimization Algorithms', eq. (1)",
    aliases=("gd",),
    network={"layer": "plain", "reading": "map"},
)
def gradient_descent(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(T(x_k)),  T(x) = x - step grad f(x)

    Also called: steepest descent, Picard iteration; with P a projection, projected gradient.
    As a network: a plain CNN (T the layer), or ResNet (T = id + F).
    """
    for _ in range(steps):
        x = P(T(x))
    return x
