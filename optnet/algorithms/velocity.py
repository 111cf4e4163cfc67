"""Momentum with the velocity as a state of its own, alone and split over attention and an MLP. No torch, no layers."""

from optnet.algorithms.heavy_ball import heavy_ball
from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator, identity


@algorithm(
    reference="Polyak 1964 in the form of Sutskever, Martens, Dahl, Hinton 2013, eq. (1) and (2)",
    aliases=("classical_momentum",),
    ancestor={"beta": 0.0},
    network=NetworkDefaults(reading="residual", velocity=True),
    tuned=heavy_ball.tuned,
    theorem=heavy_ball.theorem,
)
def momentum(
    T: Operator, x: Iterate, steps: int, *, beta: float = 0.9, step: float = 1.0, P: Operator = identity
) -> Iterate:
    """v_{k+1} = P(step (T(x_k) - x_k) + beta v_k),  x_{k+1} = x_k + v_{k+1},  v_0 = 0

    P acts on the velocity: a norm in YuriiFormer and TMMFormer. With P = identity this is ``heavy_ball``.
    As a network it learns more weights than heavy ball, because v_{k+1} has its own.
    """
    v: Iterate | float = 0.0
    for _ in range(steps):
        v = P(step * (T(x) - x) + beta * v)
        x = x + v
    return x


@algorithm(
    reference="Sutskever, Martens, Dahl, Hinton 2013, eq. (3) and (4); Gai, Huang, Wu 2026 (nu)",
    ancestor={"beta": 0.0},
    network=NetworkDefaults(reading="residual", velocity=True),
)
def nesterov_momentum(
    T: Operator,
    x: Iterate,
    steps: int,
    *,
    beta: float = 0.9,
    lookahead: float | None = None,
    step: float = 1.0,
    nu: float = 1.0,
    P: Operator = identity,
) -> Iterate:
    """y_k = x_k + lookahead v_k,  v_{k+1} = P(step (T(y_k) - y_k) + beta v_k),  x_{k+1} = x_k + nu v_{k+1},  v_0 = 0

    By default lookahead = beta; with P = identity this is then ``nesterov`` with a constant beta. Other values of beta,
    lookahead and step give every method with two iterates, ``triple_momentum`` (but for its last extrapolation) too.
    nu is TMMFormer's. With P = identity it only changes the size of v: nu and step = s are 1 and step = nu s.
    """
    v: Iterate | float = 0.0
    for _ in range(steps):
        y = x + (beta if lookahead is None else lookahead) * v
        v = P(step * (T(y) - y) + beta * v)
        x = x + nu * v
    return x


@algorithm(
    reference="Zimin, Polyanskiy, Rigollet 2026 (YuriiFormer); Gai, Huang, Wu 2026 (TMMFormer: nu)",
    aliases=("yuriiformer", "tmmformer"),
    ancestor={"beta": 0.0},
    network=NetworkDefaults(reading="residual", velocity=True),
)
def lie_trotter_momentum(
    A: Operator,
    M: Operator,
    x: Iterate,
    steps: int,
    *,
    beta: float = 0.9,
    lookahead: float | None = None,
    step: float = 1.0,
    nu: float = 1.0,
    P: Operator = identity,
) -> Iterate:
    """y_k = x_k + lookahead v_k,  v'_k = P(step (A(y_k) - y_k) + beta v_k),  x'_k = x_k + nu v'_k
    y'_k = x'_k + lookahead v'_k,  v_{k+1} = P(step (M(y'_k) - y'_k) + beta v'_k),  x_{k+1} = x'_k + nu v_{k+1}

    ``nesterov_momentum`` with the Lie-Trotter splitting: a half-step with attention A, then one with the MLP M. Both
    move the same velocity, v_0 = 0. By default lookahead = beta (Nesterov's momentum); lookahead = 0 is Polyak's.
    beta = 0 is the pre-norm transformer, with A = id + attention and M = id + MLP. The papers learn the four constants
    anew in each half-step (here: as the weights of the sums) and start from a learned embedding v_0.
    """
    v: Iterate | float = 0.0
    for _ in range(steps):
        for T in (A, M):
            y = x + (beta if lookahead is None else lookahead) * v
            v = P(step * (T(y) - y) + beta * v)
            x = x + nu * v
    return x


@algorithm(
    reference="Zimin, Polyanskiy, Rigollet 2026 (Euler splitting)",
    ancestor={"beta": 0.0},
    network=NetworkDefaults(reading="residual", velocity=True),
)
def euler_momentum(
    A: Operator,
    M: Operator,
    x: Iterate,
    steps: int,
    *,
    beta: float = 0.9,
    lookahead: float | None = None,
    step: float = 1.0,
    nu: float = 1.0,
    P: Operator = identity,
) -> Iterate:
    """y_k = x_k + lookahead v_k,  v_{k+1} = P(step (A(y_k) - y_k) + step (M(y_k) - y_k) + beta v_k)
    x_{k+1} = x_k + nu v_{k+1},  v_0 = 0

    ``nesterov_momentum`` with the Euler splitting: attention A and the MLP M at one point. beta = 0 is the parallel
    transformer block. The recurrence follows from the splitting's name; the code that we know has Lie-Trotter alone.
    """
    v: Iterate | float = 0.0
    for _ in range(steps):
        y = x + (beta if lookahead is None else lookahead) * v
        v = P(step * (A(y) - y) + step * (M(y) - y) + beta * v)
        x = x + nu * v
    return x
