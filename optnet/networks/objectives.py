"""The function that a layer minimises, for each activation (Lemma 4), and the activation's proximal pair.

Lemma 4 (Li, Yang, Chen, Lin 2018): let W be symmetric positive definite, U = W^(1/2) and psi' = phi. Then
f(z) = |z|^2 / 2 - sum_i psi((U z + b)_i) satisfies z - grad f(z) = U phi(U z + b). So the layer x -> phi(W x + b) is
gradient descent with unit step size on f in z = U x. Three rows of the published table are misprinted and corrected
here: the psi of softsign for t <= 0 (the logarithm of a negative number), of leaky ReLU (alpha^2 instead of alpha) and
of ELU (a jump of alpha at 0).

Fenchel and Young: for a non-decreasing phi, G = psi and its conjugate F(x) = sup_u (x u - G(u)) satisfy
F(x) + G(u) - x u >= 0, with equality exactly at x = phi(u). Lifted training penalises this gap; (F, G) is the proximal
pair of phi.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from optnet.errors import RequestError

Function = Callable[[Tensor], Tensor]


Pieces = tuple[tuple[float, float, float, float], ...]
IDENTITY: Pieces = ((1, 0, -math.inf, math.inf),)
RECTIFIER: Pieces = ((0, 0, -math.inf, 0), (1, 0, 0, math.inf))


@dataclass(frozen=True)
class Activation:
    """An elementwise activation and the functions that belong to it.

    Attributes:
        name: its name.
        phi: the activation.
        psi: a function with psi' = phi; also the G of the proximal pair.
        lipschitz: the Lipschitz constant of phi.
        monotone: whether phi is non-decreasing.
        conjugate: F = psi*, infinite outside its domain; None if phi is not monotone.
        pieces: for a piecewise linear phi, (slope, offset, low, high) with phi(t) = slope t + offset on [low, high].
    """

    name: str
    phi: Function
    psi: Function
    lipschitz: float
    monotone: bool = True
    conjugate: Function | None = None
    pieces: Pieces = ()

    @property
    def is_identity(self) -> bool:
        """Whether phi(t) = t, according to ``pieces`` and not to the name."""
        return self.pieces == IDENTITY

    @property
    def is_rectifier(self) -> bool:
        """Whether phi(t) = max(t, 0), according to ``pieces``."""
        return self.pieces == RECTIFIER

    def slope(self, u: Tensor) -> Tensor:
        """phi'(u), elementwise; at a kink, one of the one-sided derivatives."""
        slopes: Tensor = torch.func.vjp(self.phi, u)[1](torch.ones_like(u))[0]
        return slopes

    def G(self, u: Tensor) -> Tensor:
        """G(u) = psi(u), elementwise."""
        return self.psi(u)

    def F(self, x: Tensor) -> Tensor:
        """F(x) = sup_u (x u - G(u)), elementwise; infinite outside the closure of the range of phi.

        Raises:
            RequestError: the activation decreases somewhere.
        """
        if self.conjugate is None:
            raise RequestError(
                f"{self.name} decreases somewhere, so it has no proximal pair; use a monotone activation"
            )
        return self.conjugate(x)


class Elementwise(nn.Module):
    """x -> phi(x): an activation as a module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.phi = activation.phi  # an attribute of its own: TorchScript compiles functions, not records

    def forward(self, x: Tensor) -> Tensor:
        return self.phi(x)

    def extra_repr(self) -> str:
        return self.activation.name


def objective(activation: Activation, U: Tensor, bias: Tensor | None = None) -> Function:
    """f(z) = |z|^2 / 2 - sum_i psi((U z + b)_i) for z of shape (batch, n); returns shape (batch,).

    Args:
        activation: phi and psi.
        U: (n, n), symmetric positive definite, the square root of the layer's W.
        bias: b, of shape (n,), or (batch, n) for input injection.
    """

    def f(z: Tensor) -> Tensor:
        inner = z @ U.T if bias is None else z @ U.T + bias
        return (z * z).sum(-1) / 2 - activation.psi(inner).sum(-1)

    return f


def _outside(value: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside, value, torch.full_like(value, math.inf))


_DEBYE = (1.0, 0.25, 1 / 36, 0.0, -1 / 3600, 0.0, 1 / 211680, 0.0, -1 / 10886400, 0.0, 5 / 2634508800, 0.0,
          -691 / 16999766784000, 0.0, 1 / 1120863744000)  # fmt: skip


def log1pexp(t: Tensor) -> Tensor:
    """log(1 + e^t), to machine precision everywhere (torch's softplus is linear above 20)."""
    return torch.logaddexp(t, torch.zeros_like(t))


def softplus_integral(t: Tensor) -> Tensor:
    """-Li_2(-e^t), the integral of log(1 + e^s) from -infinity to t, to machine precision.

    For t <= 0 and u = log(1 + e^t) it is u + u^2/4 + sum_n B_2n u^(2n+1) / (2n+1)!. For t > 0 reflection gives
    t^2/2 + pi^2/6 - (the value at -t).
    """
    u = log1pexp(-t.abs())
    total = torch.zeros_like(u)
    for coefficient in reversed(_DEBYE):
        total = total * u + coefficient
    below = total * u
    return torch.where(t > 0, t * t / 2 + math.pi**2 / 6 - below, below)


def _elu_conjugate(alpha: float) -> Function:
    def F(x: Tensor) -> Tensor:
        low = torch.xlogy(x.clamp(max=0) + alpha, 1 + x.clamp(-alpha, 0) / alpha) - x.clamp(max=0)
        return _outside(torch.where(x > 0, x * x / 2, low), x >= -alpha)

    return F


def _softplus_conjugate(x: Tensor) -> Tensor:
    safe = x.clamp(min=torch.finfo(x.dtype).tiny)
    u = safe + torch.log(-torch.expm1(-safe))
    return _outside(torch.where(x > 0, x * u - softplus_integral(u), torch.zeros_like(x)), x >= 0)


def _softsign_conjugate(x: Tensor) -> Tensor:
    size = x.abs()
    return _outside(-size - torch.log1p(-size.clamp(max=1)), size < 1)


def sigmoid() -> Activation:
    """1 / (1 + e^-t); psi = log(1 + e^t), F = x log x + (1 - x) log(1 - x) on [0, 1]."""

    def F(x: Tensor) -> Tensor:
        return _outside(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x), (x >= 0) & (x <= 1))

    return Activation("sigmoid", torch.sigmoid, log1pexp, 0.25, conjugate=F)


def tanh() -> Activation:
    """tanh t; psi = log cosh t, F = ((1 + x) log(1 + x) + (1 - x) log(1 - x)) / 2 on [-1, 1]."""

    def psi(t: Tensor) -> Tensor:
        return t.abs() + torch.log1p(torch.exp(-2 * t.abs())) - math.log(2)

    def F(x: Tensor) -> Tensor:
        return _outside((torch.xlogy(1 + x, 1 + x) + torch.xlogy(1 - x, 1 - x)) / 2, x.abs() <= 1)

    return Activation("tanh", torch.tanh, psi, 1.0, conjugate=F)


def softplus() -> Activation:
    """log(1 + e^t); psi = -Li_2(-e^t), F = x u - psi(u) at u = log(e^x - 1), x > 0."""
    return Activation("softplus", log1pexp, softplus_integral, 1.0, conjugate=_softplus_conjugate)


def softsign() -> Activation:
    """t / (1 + |t|); psi = |t| - log(1 + |t|) (corrected), F = -|x| - log(1 - |x|) on (-1, 1)."""
    return Activation(
        "softsign", torch.nn.functional.softsign, lambda t: t.abs() - torch.log1p(t.abs()), 1.0,
        conjugate=_softsign_conjugate,
    )  # fmt: skip


def relu() -> Activation:
    """max(t, 0); psi = max(t, 0)^2 / 2, F = x^2 / 2 on x >= 0."""
    return Activation(
        "relu", torch.relu, lambda t: torch.relu(t) ** 2 / 2, 1.0, conjugate=lambda x: _outside(x * x / 2, x >= 0),
        pieces=RECTIFIER,
    )  # fmt: skip


def leaky_relu(alpha: float = 0.01) -> Activation:
    """t, or alpha t below 0; psi = t^2 / 2 and alpha t^2 / 2 (corrected), F = x^2 / 2 and x^2 / (2 alpha)."""
    _check("leaky_relu", "alpha", alpha, alpha > 0)
    return Activation(
        "leaky_relu", lambda t: torch.where(t > 0, t, alpha * t),
        lambda t: torch.where(t > 0, t * t, alpha * t * t) / 2,
        max(1.0, alpha), conjugate=lambda x: torch.where(x > 0, x * x, x * x / alpha) / 2,
        pieces=((alpha, 0, -math.inf, 0), (1, 0, 0, math.inf)),
    )  # fmt: skip


def elu(alpha: float = 1.0) -> Activation:
    """t, or alpha (e^t - 1) below 0; psi = t^2 / 2 and alpha (e^t - t - 1) (corrected: continuous at 0).

    F = x^2 / 2, and (x + alpha) log(1 + x / alpha) - x on [-alpha, 0] (corrected by alpha in the same way).
    """
    _check("elu", "alpha", alpha, alpha > 0)

    def phi(t: Tensor) -> Tensor:
        return torch.where(t > 0, t, alpha * torch.expm1(t.clamp(max=0)))

    def psi(t: Tensor) -> Tensor:
        return torch.where(t > 0, t * t / 2, alpha * (torch.expm1(t.clamp(max=0)) - t))

    return Activation("elu", phi, psi, max(1.0, alpha), conjugate=_elu_conjugate(alpha))


def swish() -> Activation:
    """t / (1 + e^-t), also called SiLU; psi = t log(1 + e^t) + Li_2(-e^t). It is decreasing for t < -1.278."""

    def psi(t: Tensor) -> Tensor:
        return t * log1pexp(t) - softplus_integral(t)

    return Activation("swish", torch.nn.functional.silu, psi, 1.0998393, monotone=False)


def gelu() -> Activation:
    """t Phi(t), Phi the normal CDF; psi = ((t^2 - 1) Phi(t) + t Phi'(t)) / 2. It is decreasing for t < -0.752."""

    def psi(t: Tensor) -> Tensor:
        density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        return ((t * t - 1) * torch.special.ndtr(t) + t * density) / 2

    return Activation("gelu", torch.nn.functional.gelu, psi, 1.1289042, monotone=False)


def soft_threshold(lam: float = 0.5) -> Activation:
    """sign(t) max(|t| - lam, 0), the prox of lam |.|; psi = max(|t| - lam, 0)^2 / 2, F = x^2 / 2 + lam |x|."""
    _check("soft_threshold", "lam", lam, lam >= 0)
    return Activation(
        "soft_threshold", lambda t: torch.sign(t) * torch.relu(t.abs() - lam),
        lambda t: torch.relu(t.abs() - lam) ** 2 / 2, 1.0, conjugate=lambda x: x * x / 2 + lam * x.abs(),
        pieces=((1, lam, -math.inf, -lam), (0, 0, -lam, lam), (1, -lam, lam, math.inf)),
    )  # fmt: skip


def identity() -> Activation:
    """t; psi = t^2 / 2, F = x^2 / 2."""
    return Activation(
        "identity", lambda t: t, lambda t: t * t / 2, 1.0, conjugate=lambda x: x * x / 2,
        pieces=IDENTITY,
    )  # fmt: skip


def own(phi: Function, name: str = "own") -> Activation:
    """An activation made from your own non-decreasing phi.

    psi comes from quadrature, F from the inverse of phi by bisection, and the Lipschitz constant from a grid.
    psi(t) = int_0^t phi is accurate to 1e-9 if phi is smooth, except for a kink at 0.

    Raises:
        RequestError: on [-40, 40] phi decreases somewhere, is not finite, or has an infinite slope.
    """
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    values = phi(grid)
    if values.shape != grid.shape or not bool(values.isfinite().all()):
        raise RequestError(f"{name}: phi must map a tensor elementwise to a finite tensor of the same shape")
    steps = values.diff() / grid.diff()
    low = steps.argmin()
    if steps[low] < -1e-9:
        raise RequestError(f"{name} decreases at t = {grid[low]:.3g}, so it has no proximal pair; use a monotone phi")
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(64))

    def psi(t: Tensor) -> Tensor:
        at, share = ((nodes + 1) / 2).to(t), (weights / 2).to(t)
        return t * (phi(t[..., None] * at) * share).sum(-1)

    def F(x: Tensor) -> Tensor:
        below, above = torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        reached = (phi(below) <= x) & (x <= phi(above))
        for _ in range(60):
            middle = (below + above) / 2
            low = phi(middle) < x
            below, above = torch.where(low, middle, below), torch.where(low, above, middle)
        return _outside(x * above - psi(above), reached)

    return Activation(name, phi, psi, float(steps.max()), conjugate=F)


def _check(name: str, parameter: str, value: float, good: bool) -> None:
    if not good:
        raise RequestError(f"{name}: {parameter}={value} is out of range; it must be positive")


ACTIVATIONS: dict[str, Callable[..., Activation]] = {
    made.__name__: made
    for made in (
        sigmoid, tanh, softplus, softsign, relu, leaky_relu, elu, swish, gelu, soft_threshold, identity,
    )
}  # fmt: skip


def activation(name: str, **parameters: float) -> Activation:
    """The activation of this name.

    Raises:
        RequestError: there is no such activation, or a parameter is out of range.
    """
    if name not in ACTIVATIONS:
        raise RequestError(f"unknown activation '{name}'; it is one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](**parameters)
