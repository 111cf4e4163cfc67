"""Nesterov's accelerated gradient in its short form and its dense form. Pure recurrences: no torch, no layers."""

from functools import reduce
from math import sqrt
from operator import add

from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator, identity
from optnet.language.theorems import Theorem


def momentum(steps: int) -> list[float]:
    """beta_k = (t_{k-1} - 1) / t_k for k = 1, 2, ...,  t_0 = 1, t_k = (1 + sqrt(1 + 4 t_{k-1}^2)) / 2

    0, 0.2818, 0.4340, 0.5311, ...: the momentum in the second, third, ... call of T. Nesterov 1983.
    """
    betas, t = [], 1.0
    for _ in range(steps):
        t, previous = (1 + sqrt(1 + 4 * t * t)) / 2, t
        betas.append((previous - 1) / t)
    return betas


@algorithm(
    reference="Nesterov 1983; Beck and Teboulle 2009; Li, Yang, Chen, Lin 2018, AGD in one-T form",
    aliases=("agd", "nag", "accelerated_gradient"),
    ancestor={"beta": 0.0},
    network=NetworkDefaults(reading="residual"),
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: 2 * L / (k + 1) ** 2,
        text="2 L / (k + 1)^2",
        functions="convex",
        reference="Nesterov 1983; Beck and Teboulle 2009, theorem 4.4; Lin 2019, theorem 3 with t = k + 1",
    ),
)
def nesterov(T: Operator, x: Iterate, steps: int, *, beta: float | None = None, P: Operator = identity) -> Iterate:
    """y_k = x_k + beta_k (x_k - x_{k-1}),  x_{k+1} = P(T(y_k)),  x_{-1} = x_0

    By default beta_k is Nesterov's sequence (t_{k-1} - 1) / t_k with beta_0 = beta_1 = 0, so the first two calls of T
    have no momentum. A number makes beta constant; (1 - sqrt q) / (1 + sqrt q), q = mu/L, suits strongly convex f.
    As a network with T = id + F: beta = 0 is ResNet.
    """
    betas = [0.0, *momentum(steps)] if beta is None else [beta] * steps
    previous = x
    for k in range(steps):
        y = x + betas[k] * (x - previous)
        x, previous = P(T(y)), x
    return x


def dense_weights(steps: int) -> list[list[float]]:
    """h_{k+1,j} of the dense form, rows k = 0, 1, ...: the weight of the gradient at x_j in iteration k.

    h_{k+1,k} = 1 + beta_{k+1}, h_{k+1,k-1} = beta_{k+1} (h_{k,k-1} - 1), h_{k+1,j} = beta_{k+1} h_{k,j} for j <= k-2
    First rows: 1; 0, 1.2818; 0, 0.1223, 1.4340 (the first row's beta is 0, so it is 1). Drori and Teboulle 2014.
    """
    table: list[list[float]] = []
    for beta in momentum(steps):
        row = [beta * h for h in table[-1]] if table else []
        if row:
            row[-1] -= beta
        table.append([*row, 1 + beta])
    return table


@algorithm(
    reference="Li, Yang, Chen, Lin 2018, AGD in dense form, eq. (2) and (18)",
    aliases=("agd_dense",),
    ancestor={"alpha": 1.0, "beta": 0.0},
    network=NetworkDefaults(layer="dense", reading="map", constants={"all_iterates": True}),
)
def nesterov_dense(
    T: Operator,
    x: Iterate,
    steps: int,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    skips: bool = True,
    all_iterates: bool = False,
    P: Operator = identity,
) -> Iterate | tuple[Iterate, ...]:
    """x_{k+1} = P(sum_{j<=k} h_{k+1,j} T(x_j)) + x_k - sum_{j<=k} h_{k+1,j} x_j,  a new call of T at every use

    The x_k are the extrapolated points of ``nesterov``: T(x_k) here is x_{k+1} there. With P = identity this is
    Nesterov's method. P exists for the second half of a layer (DenseNet-BC) and acts only on the sum of the operators.
    alpha replaces every weight of a T(x_j), beta every weight of an x_j; skips=False leaves the x_j out.
    As a network: AGD-Net. alpha = 1 and beta = 0 with all iterates concatenated is DenseNet.
    """
    xs = [x]
    for k, h in enumerate(dense_weights(steps)):
        on_T = h if alpha is None else [alpha] * (k + 1)
        on_x = [float(j == k) - h[j] for j in range(k + 1)] if beta is None else [beta] * (k + 1)
        new = P(reduce(add, (a * T(x_j) for a, x_j in zip(on_T, xs, strict=True))))
        if skips:
            new = reduce(add, (b * x_j for b, x_j in zip(on_x, xs, strict=True)), new)
        xs.append(new)
    return tuple(xs) if all_iterates else xs[-1]
