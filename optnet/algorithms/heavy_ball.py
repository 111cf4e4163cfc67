"""Heavy ball and related methods that use one earlier iterate. Pure recurrences: no torch, no layers."""

from math import sqrt

from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator, identity
from optnet.language.theorems import Theorem


def _tuned(mu: float, L: float) -> dict[str, float]:
    """Polyak's constants for T = id - grad f / L."""
    s = sqrt(mu / L)
    return {"step": 4 / (1 + s) ** 2, "beta": ((1 - s) / (1 + s)) ** 2}


def _bound(k: int, mu: float, L: float) -> float:
    rho = (sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu))
    return ((1 + (1 + rho) * k) * rho**k) ** 2


@algorithm(
    reference="Polyak 1964; Li, Yang, Chen, Lin 2018, eq. (2) and (16)",
    aliases=("hb", "polyak"),
    ancestor={"beta": 0.0},
    network=NetworkDefaults(reading="residual"),
    tuned=_tuned,
    theorem=Theorem(
        metric="distance",
        bound=_bound,
        text="((1 + (1 + r) k) r^k)^2, r = (1 - sqrt q) / (1 + sqrt q)",
        functions="quadratic",
        reference="Polyak 1964; the factor before r^k is derived in the docstring",
    ),
)
def heavy_ball(
    T: Operator, x: Iterate, steps: int, *, beta: float = 0.9, step: float = 1.0, P: Operator = identity
) -> Iterate:
    """x_{k+1} = P(x_k + step (T(x_k) - x_k) + beta (x_k - x_{k-1})),  x_{-1} = x_0

    Also called gradient descent with (classical) momentum. Nesterov's method differs: it extrapolates before calling T.
    As a network: HB-Net. beta = 0 is ResNet (T = id + F); step = 1 - gamma and beta = gamma is Momentum ResNet.

    On a quadratic with spectrum in [mu, L] Polyak's constants give the spectral radius r = (1 - sqrt q) / (1 + sqrt q).
    The error is often said to be at most r^k, but it is larger. For an eigenvalue with roots r e^{+-i t} the error is
    e_k = r^k (U_k(cos t) - r U_{k-1}(cos t)), with U_k the Chebyshev polynomials of the second kind (e_0 = e_{-1} = 1
    gives e_1 = 2 r cos t - r^2). As |U_k| <= k + 1, it follows that |e_k| <= (k + 1 + r k) r^k = (1 + c k) r^k with
    c = 1 + r; the bound is attained at the eigenvalue L.
    For convex f that are not quadratic, these constants guarantee nothing: the method may cycle (Lessard et al. 2016).
    """
    previous = x
    for _ in range(steps):
        x, previous = P(x + step * (T(x) - x) + beta * (x - previous)), x
    return x


@algorithm(
    reference="Ghadimi, Feyzmahdavian, Johansson 2015; Lin 2019, theorem 2",
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: L / (2 * (k + 1)),
        text="L / (2 (k + 1))",
        functions="convex",
        reference="Ghadimi, Feyzmahdavian, Johansson 2015; Lin 2019, theorem 2 with alpha_0 = 1/L",
    ),
)
def heavy_ball_convex(T: Operator, x: Iterate, steps: int, *, step: float = 1.0, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(x_k + step / (k + 2) (T(x_k) - x_k) + k / (k + 2) (x_k - x_{k-1}))

    Heavy ball with the schedule for convex f, 0 < step <= 1 (alpha_0 = step / L).
    """
    previous = x
    for k in range(steps):
        x, previous = P(x + step / (k + 2) * (T(x) - x) + k / (k + 2) * (x - previous)), x
    return x


@algorithm(
    reference="Sander, Ablin, Blondel, Peyre 2021 (Momentum ResNet)",
    aliases=("momentum_resnet",),
    network=NetworkDefaults(reading="residual"),
)
def momentum_residual(T: Operator, x: Iterate, steps: int, *, gamma: float = 0.9, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(x_k + (1 - gamma) (T(x_k) - x_k) + gamma (x_k - x_{k-1})),  x_{-1} = x_0

    This is heavy ball with step = 1 - gamma and beta = gamma. With T = id + F it is the Momentum ResNet,
    v = gamma v + (1 - gamma) F(x).
    """
    previous = x
    for _ in range(steps):
        x, previous = P(x + (1 - gamma) * (T(x) - x) + gamma * (x - previous)), x
    return x


@algorithm(
    reference="Lu, Zhong, Li, Dong 2018 (LM-ResNet)",
    aliases=("lm_resnet",),
    ancestor={"k": 0.0},
    network=NetworkDefaults(reading="residual"),
)
def linear_multistep(T: Operator, x: Iterate, steps: int, *, k: float = -0.1, P: Operator = identity) -> Iterate:
    """x_{k+1} = P((1 - k) x_k + k x_{k-1} + (T(x_k) - x_k)),  x_{-1} = x_0

    Zero-stable for -1 < k <= 1. As a network with T = id + F: LM-ResNet; k = 0 is ResNet.
    """
    previous = x
    for _ in range(steps):
        x, previous = P((1 - k) * x + k * previous + (T(x) - x)), x
    return x


@algorithm(reference="Bashforth and Adams 1883; gradient flow by the two-step method", aliases=("ab2",))
def adams_bashforth(T: Operator, x: Iterate, steps: int, *, h: float = 0.5, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(x_k + h (3/2 (T(x_k) - x_k) - 1/2 (T(x_{k-1}) - x_{k-1}))); the first iteration is Euler's

    It integrates the gradient flow x' = T(x) - x with step size h. It is stable for h < 1 on a spectrum in [0, 1].
    """
    slope = previous = T(x) - x
    for k in range(steps):
        slope = slope if k == 0 else T(x) - x
        x, previous = P(x + 1.5 * h * slope - 0.5 * h * previous), slope
    return x
