"""Methods with exactly optimal worst cases: OGM, OGM-G, triple momentum, ITEM, Chebyshev, Halpern.

Pure recurrences: no torch, no layers.
"""

from math import sqrt

from optnet.language.declaration import algorithm
from optnet.language.symbols import Iterate, Operator, identity
from optnet.language.theorems import Theorem


def thetas(steps: int) -> list[float]:
    """theta_0 = 1, theta_{i+1} = (1 + sqrt(1 + 4 theta_i^2)) / 2; in the last theta, 8 replaces 4."""
    theta = [1.0]
    for i in range(steps):
        theta.append((1 + sqrt(1 + (8 if i == steps - 1 else 4) * theta[-1] ** 2)) / 2)
    return theta


@algorithm(
    reference="Drori and Teboulle 2014; Kim and Fessler 2016",
    aliases=("ogm",),
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: L / (2 * thetas(k)[-1] ** 2),
        text="L / (2 theta_N^2)",
        functions="convex",
        where="last iteration",
        reference="Kim and Fessler 2016, theorem 2; no method of N steps is better (Drori 2017)",
    ),
)
def optimized_gradient(T: Operator, x: Iterate, steps: int) -> Iterate:
    """y_{k+1} = T(x_k)
    x_{k+1} = y_{k+1} + (theta_k - 1) / theta_{k+1} (y_{k+1} - y_k) + theta_k / theta_{k+1} (y_{k+1} - x_k),  y_0 = x_0

    The number of iterations must be known in advance, because the last theta differs.
    """
    theta = thetas(steps)
    y = x
    for k in range(steps):
        new = T(x)
        a, b = (theta[k] - 1) / theta[k + 1], theta[k] / theta[k + 1]
        x, y = new + a * (new - y) + b * (new - x), new
    return x


@algorithm(
    reference="Kim and Fessler 2021",
    aliases=("ogm_g",),
    theorem=Theorem(
        metric="gradient",
        bound=lambda k, mu, L: 2 * L / thetas(k)[-1] ** 2,
        text="2 L / theta_N^2",
        functions="convex",
        where="last iteration",
        initial="gap",
        reference="Kim and Fessler 2021, theorem 6.1",
    ),
)
def optimized_gradient_norm(T: Operator, x: Iterate, steps: int) -> Iterate:
    """y_{k+1} = T(x_k),  x_{k+1} = y_{k+1} + a_k (y_{k+1} - y_k) + b_k (y_{k+1} - x_k),  y_0 = x_0
    a_k = (s_k - 1) (2 s_{k+1} - 1) / (s_k (2 s_k - 1)),  b_k = (2 s_{k+1} - 1) / (2 s_k - 1),  s_k = theta_{N-k}

    The counterpart of ``optimized_gradient`` for the gradient norm: its table is the anti-transpose of that method's.
    """
    s = thetas(steps)[::-1]
    y = x
    for k in range(steps):
        new = T(x)
        b = (2 * s[k + 1] - 1) / (2 * s[k] - 1)
        a = (s[k] - 1) / s[k] * b
        x, y = new + a * (new - y) + b * (new - x), new
    return x


@algorithm(
    reference="Van Scoy, Freeman, Lynch 2018",
    aliases=("tmm",),
    tuned=lambda mu, L: {"q": mu / L},
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: (1 - sqrt(mu / L)) ** (2 * k) * L * L / (2 * mu),
        text="L / (2 q) (1 - sqrt q)^(2k)",
        functions="strongly convex",
        reference="Van Scoy, Freeman, Lynch 2018, theorem 1",
    ),
)
def triple_momentum(T: Operator, x: Iterate, steps: int, *, q: float = 0.1) -> Iterate:
    """z_{k+1} = (1 + b) z_k - b z_{k-1} + a (T(y_k) - y_k),  y_k = (1 + c) z_k - c z_{k-1},  z_{-1} = z_0 = x_0
    x_{k+1} = (1 + d) z_{k+1} - d z_k, of which the method returns the last.

    r = 1 - sqrt q, a = 1 + r, b = r^2 / (2 - r), c = r^2 / ((1 + r) (2 - r)), d = r^2 / (1 - r^2), q = mu / L.
    """
    r = 1 - q**0.5
    a, b, c, d = 1 + r, r**2 / (2 - r), r**2 / ((1 + r) * (2 - r)), r**2 / (1 - r**2)
    z = previous = x
    for _ in range(steps):
        y = z + c * (z - previous)
        z, previous = z + b * (z - previous) + a * (T(y) - y), z
    return z + d * (z - previous)


def item_sizes(steps: int, q: float) -> list[float]:
    """A_0 = 0, A_{k+1} = ((1 + q) A_k + 2 (1 + sqrt((1 + A_k) (1 + q A_k)))) / (1 - q)^2"""
    A = [0.0]
    for _ in range(steps):
        A.append(((1 + q) * A[-1] + 2 * (1 + ((1 + A[-1]) * (1 + q * A[-1])) ** 0.5)) / (1 - q) ** 2)
    return A


@algorithm(
    reference="Taylor and Drori 2023",
    aliases=("item",),
    tuned=lambda mu, L: {"q": mu / L},
    theorem=Theorem(
        metric="distance",
        bound=lambda k, mu, L: 1 / (1 + mu / L * item_sizes(k, mu / L)[-1]),
        text="1 / (1 + q A_k)",
        functions="strongly convex",
        reference="Taylor and Drori 2023, theorem 3; no method is better",
    ),
)
def information_theoretic_exact(T: Operator, x: Iterate, steps: int, *, q: float = 0.1) -> Iterate:
    """y_k = (1 - b_k) z_k + b_k x_k,  x_{k+1} = T(y_k),  z_{k+1} = (1 - q d_k) z_k + q d_k y_k + d_k (T(y_k) - y_k)

    b_k = A_k / ((1 - q) A_{k+1}), d_k = ((1 - q)^2 A_{k+1} - (1 + q) A_k) / (2 (1 + q + q A_k)), q = mu / L, z_0 = x_0.
    z_k is returned.
    """
    A = item_sizes(steps, q)
    z = x
    for k in range(steps):
        b = A[k] / ((1 - q) * A[k + 1])
        d = ((1 - q) ** 2 * A[k + 1] - (1 + q) * A[k]) / (2 * (1 + q + q * A[k]))
        y = (1 - b) * z + b * x if k else z
        x = T(y)
        z = (1 - q * d) * z + q * d * y + d * (x - y)
    return z


def _chebyshev(k: int, mu: float, L: float) -> float:
    rho = (sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu))
    return (2 * rho**k / (1 + rho ** (2 * k))) ** 2


@algorithm(
    reference="Flanders and Shortley 1950; Golub and Varga 1961",
    aliases=("chebyshev_semi_iteration",),
    tuned=lambda mu, L: {"q": mu / L},
    theorem=Theorem(
        metric="distance",
        bound=_chebyshev,
        text="(2 r^k / (1 + r^(2k)))^2, r = (1 - sqrt q) / (1 + sqrt q)",
        functions="quadratic",
        reference="Flanders and Shortley 1950; no polynomial of degree k is better",
    ),
)
def chebyshev(T: Operator, x: Iterate, steps: int, *, q: float = 0.1, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(w_{k+1} (x_k + 2 / (1 + q) (T(x_k) - x_k) - x_{k-1}) + x_{k-1}),  x_{-1} = x_0

    w_1 = 1 and w_{k+1} = 1 / (1 - s^2 w_k / 4) with s = (1 - q) / (1 + q); w_2 is computed with 2 in place of w_1.
    The limit of the recurrence is Polyak's heavy ball.
    """
    s, w = (1 - q) / (1 + q), 1.0
    previous = x
    for k in range(steps):
        x, previous = P(w * (x + 2 / (1 + q) * (T(x) - x) - previous) + previous), x
        w = 1 / (1 - s * s * (w if k else 2.0) / 4)
    return x


@algorithm(
    reference="Halpern 1967; Lieder 2021",
    aliases=("anchored",),
    theorem=Theorem(
        metric="gradient",
        bound=lambda k, mu, L: 4 * L * L / (k + 1) ** 2,
        text="4 L^2 / (k + 1)^2",
        functions="convex",
        reference="Lieder 2021, theorem 2.1",
    ),
)
def halpern(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(x_0 / (k + 2) + (k + 1) / (k + 2) T(x_k))

    |x_k - T(x_k)| <= 2 |x_0 - x*| / (k + 1) for every nonexpansive T. As a network: a skip connection from the input
    whose weight decays.
    """
    start = x
    for k in range(steps):
        x = P(1 / (k + 2) * start + (k + 1) / (k + 2) * T(x))
    return x
