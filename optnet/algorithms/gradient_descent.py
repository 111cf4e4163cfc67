"""Gradient descent, its averaged form, and the silver step sizes. Pure recurrences: no torch, no layers."""

from math import sqrt

from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator, identity
from optnet.language.theorems import Theorem


@algorithm(
    reference="Cauchy 1847; Lin 2019, 'From GD to Other Optimization Algorithms', eq. (1)",
    aliases=("gd",),
    network=NetworkDefaults(layer="plain", reading="map"),
    tuned=lambda mu, L: {"step": 2 * L / (L + mu)} if mu else {},
    theorem=Theorem(
        metric="distance",
        bound=lambda k, mu, L: ((L - mu) / (L + mu)) ** (2 * k),
        text="((1 - q) / (1 + q))^(2k)",
        functions="strongly convex",
        reference="Polyak 1963; Nesterov 2004, theorem 2.1.15",
    ),
)
def gradient_descent(T: Operator, x: Iterate, steps: int, *, step: float = 1.0, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(x_k + step (T(x_k) - x_k)); for step = 1 it is P(T(x_k)), without coefficients

    Also called steepest descent or Picard iteration; if P is a projection, projected gradient.
    As a network: a plain CNN (T is the layer) or a ResNet (T = id + F).

    For convex L-smooth f and step = 1: f(x_k) - f* <= 2 L |x_0 - x*|^2 / k (Lin 2019, theorem 1, where x_1 is the start
    and t - 1 = k). The exact worst case is L |x_0 - x*|^2 / (4 k + 2) (Drori and Teboulle 2014, theorem 3.1).
    """
    for _ in range(steps):
        x = P(T(x)) if step == 1 else P(x + step * (T(x) - x))
    return x


@algorithm(
    reference="Krasnosel'skii 1955; Mann 1953",
    aliases=("km", "averaged"),
    theorem=Theorem(
        metric="gradient",
        bound=lambda k, mu, L: 4 * L * L / (k + 1),
        text="4 L^2 / (k + 1)",
        functions="convex",
        reference="Cominetti, Soto, Vaisman 2014; Bauschke and Combettes 2011, theorem 5.15",
    ),
)
def krasnoselskii_mann(T: Operator, x: Iterate, steps: int, *, relax: float = 0.5, P: Operator = identity) -> Iterate:
    """x_{k+1} = P((1 - relax) x_k + relax T(x_k))

    For 0 < relax < 1 and every nonexpansive T: relax (1 - relax) (k + 1) |x_k - T(x_k)|^2 <= |x_0 - x*|^2.
    """
    for _ in range(steps):
        x = P((1 - relax) * x + relax * T(x))
    return x


def silver_step(k: int) -> float:
    """1 + r^(v(k) - 1), where r = 1 + sqrt 2 and 2^v(k) divides k exactly: sqrt 2, 2, sqrt 2, 2 + sqrt 2, ..."""
    return 1 + (1 + sqrt(2)) ** ((k & -k).bit_length() - 2)


@algorithm(
    reference="Altschuler and Parrilo 2023, silver step sizes",
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: L / (1 + sqrt(4 * (1 + sqrt(2)) ** (2 * k.bit_length()) - 3)),
        text="L / (1 + sqrt(4 r^(2m) - 3)), r = 1 + sqrt 2, k = 2^m - 1",
        functions="convex",
        where="iterations 2^m - 1",
        reference="Altschuler and Parrilo 2023b, theorem 1.1",
    ),
)
def silver(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k} = P(x_{k-1} + s_k (T(x_{k-1}) - x_{k-1})),  s_k = 1 + r^(v(k) - 1), r = 1 + sqrt 2, k = 1, 2, ...

    v(k) is the exponent of 2 in k. The rate O(k^-1.27) needs no memory of earlier iterates: it comes from the step
    sizes alone, some of which are larger than 2. x_{k+1} depends only on x_k.
    """
    for k in range(1, steps + 1):
        x = P(x + silver_step(k) * (T(x) - x))
    return x
