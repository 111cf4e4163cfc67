"""Methods with several operators, such as a gradient step G and a proximal step P. No torch, no layers."""

from optnet.algorithms.nesterov import momentum
from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator
from optnet.language.theorems import Theorem

_RECONSTRUCTION = "its operators model a measurement; use optnet.unroll with your own operators"


@algorithm(
    reference="Daubechies, Defrise, De Mol 2004; Combettes and Wajs 2005",
    aliases=("proximal_gradient", "forward_backward"),
    network=NetworkDefaults(layer="basic", reading="residual"),
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: L / (2 * k),
        text="L / (2 k)",
        functions="convex",
        reference="Beck and Teboulle 2009, theorem 3.1 (f the whole objective)",
    ),
)
def ista(G: Operator, P: Operator, x: Iterate, steps: int, *, relax: float = 1.0) -> Iterate:
    """x_{k+1} = (1 - relax) x_k + relax P(G(x_k)),  G = id - step grad f, P = prox of step g

    Minimises f + g. Also called proximal gradient, forward-backward splitting or iterative shrinkage-thresholding.
    """
    for _ in range(steps):
        x = P(G(x)) if relax == 1 else (1 - relax) * x + relax * P(G(x))
    return x


@algorithm(
    reference="Beck and Teboulle 2009",
    aliases=("accelerated_proximal_gradient",),
    network=NetworkDefaults(layer="basic", reading="residual"),
    theorem=Theorem(
        metric="gap",
        bound=lambda k, mu, L: 2 * L / (k + 1) ** 2,
        text="2 L / (k + 1)^2",
        functions="convex",
        reference="Beck and Teboulle 2009, theorem 4.4 (f the whole objective)",
    ),
)
def fista(G: Operator, P: Operator, x: Iterate, steps: int) -> Iterate:
    """y_k = x_k + beta_k (x_k - x_{k-1}),  x_{k+1} = P(G(y_k)),  beta_k = (t_{k-1} - 1) / t_k as in ``nesterov``

    G = id - step grad f, P = prox of step g; minimises f + g.
    """
    previous = x
    for beta in [0.0, *momentum(steps)][:steps]:
        x, previous = P(G(x + beta * (x - previous))), x
    return x


@algorithm(
    reference="Douglas and Rachford 1956; Lions and Mercier 1979",
    aliases=("dr",),
    network=NetworkDefaults(unsuited=_RECONSTRUCTION),
)
def douglas_rachford(P: Operator, Q: Operator, x: Iterate, steps: int, *, relax: float = 1.0) -> Iterate:
    """z_{k+1} = z_k + relax (Q(2 P(z_k) - z_k) - P(z_k)),  x_{k+1} = P(z_{k+1}),  z_0 = x_0

    P = prox of f, Q = prox of g; minimises f + g; 0 < relax < 2.
    """
    z = x
    for _ in range(steps):
        y = P(z)
        z = z + relax * (Q(2 * y - z) - y)
    return P(z)


@algorithm(
    reference="Boyd, Parikh, Chu, Peleato, Eckstein 2011, section 3; Yang, Sun, Li, Xu 2016 (ADMM-Net)",
    aliases=("admm_gp", "proximal_admm"),
    network=NetworkDefaults(unsuited=_RECONSTRUCTION),
)
def splitting_admm(
    G: Operator, P: Operator, x: Iterate, steps: int, *, rho: float = 0.5, relax: float = 1.0
) -> Iterate:
    """x_{k+1} = (G(x_k) + rho (z_k - u_k)) / (1 + rho),  v = relax x_{k+1} + (1 - relax) z_k
    z_{k+1} = P(v + u_k),  u_{k+1} = u_k + v - z_{k+1},  z_0 = x_0, u_0 = 0; z_N is returned

    Solves min f(x) + g(z) subject to x = z with penalty rho (in units of 1/step). f is linearised with a proximal term:
    G = id - step grad f, P = prox of (step / rho) g. 1 < relax < 2 over-relaxes.
    (At rho = 1 the second to last call of P has weight 0 in the result.)
    """
    z: Iterate = x
    u: Iterate | float = 0.0
    for _ in range(steps):
        x = (G(x) + rho * (z - u)) / (1 + rho)
        v = relax * x + (1 - relax) * z if relax != 1 else x
        z, u = P(v + u), v + u
        u = u - z
    return z


@algorithm(
    reference="Chambolle and Pock 2011",
    aliases=("primal_dual", "chambolle_pock"),
    network=NetworkDefaults(unsuited=_RECONSTRUCTION),
)
def pdhg(
    P: Operator,
    Q: Operator,
    K: Operator,
    Kt: Operator,
    x: Iterate,
    y: Iterate,
    steps: int,
    *,
    tau: float = 0.9,
    sigma: float = 0.9,
) -> tuple[Iterate, Iterate]:
    """x_{k+1} = P(x_k - tau K' y_k),  y_{k+1} = Q(y_k + sigma K (2 x_{k+1} - x_k))

    Solves min_x max_y <K x, y> + f(x) - g*(y). P = prox of tau f, Q = prox of sigma g*, Kt is the adjoint K' of K.
    Converges for tau sigma |K|^2 <= 1.
    """
    for _ in range(steps):
        x, previous = P(x - tau * Kt(y)), x
        y = Q(y + sigma * K(2 * x - previous))
    return x, y
