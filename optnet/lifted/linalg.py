"""Linear algebra shared by the block updates: affine least squares, norms, conjugate gradients. Knows no network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 4096
"""Number of rows converted to float64 at a time."""

SAFETY = 1.1
"""Safety factor on a squared norm, because power iterations approach it from below."""


def augment(x: Tensor) -> Tensor:
    """x~, which is x with a column of ones appended, so that x~ W~^T = x W^T + b for W~ = [W, b]."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def gram(x: Tensor) -> Tensor:
    """x~^T x~ in float64, for x (samples, inputs)."""
    parts = (augment(rows.double()) for rows in x.split(CHUNK))
    return torch.stack([part.T @ part for part in parts]).sum(0)


def cross(t: Tensor, x: Tensor) -> Tensor:
    """t^T x~ for t (samples, outputs). Chunks are multiplied in their own dtype and summed in float64."""
    pairs = zip(t.split(CHUNK), x.split(CHUNK), strict=True)
    return torch.stack([(rows.T @ augment(columns)).double() for rows, columns in pairs]).sum(0)


def ridge(x: Tensor, residual: Tensor, lam: float, known: Tensor | None = None) -> Tensor:
    """argmin_D |residual - x~ D^T|^2 + lam |D|^2, in float64: (outputs, inputs + 1).

    With residual = t - x~ W~^T the result is the update from W~ to argmin_V |t - x~ V^T|^2 + lam |V - W~|^2. Solving
    for the update keeps the rounding error smallest.

    Args:
        known: x~^T x~, if it has been computed before.
    """
    square = gram(x) if known is None else known
    root = torch.linalg.cholesky(square + lam * torch.eye(len(square), dtype=square.dtype, device=square.device))
    return torch.cholesky_solve(cross(residual, x).T, root).T


def pseudo_inverse(x: Tensor, lam: float) -> Tensor:
    """x~ (x~^T x~ + lam)^-1, computed in float64 through the smaller of its two forms: (samples, inputs + 1)."""
    z = augment(x).double()
    wide = len(z) < z.shape[1]
    square = z @ z.T if wide else z.T @ z
    square.diagonal().add_(lam)
    root = torch.linalg.cholesky(square)
    return (torch.cholesky_solve(z, root) if wide else torch.cholesky_solve(z.T, root).T).to(x.dtype)


def spectral_norm(w: Tensor, iterations: int = 10) -> Tensor:
    """A lower bound of |w|_2 by power iteration; ten iterations come close.

    The start is the longest row plus a fixed irregular vector of the same length, because the row alone may be
    orthogonal to the top singular vector.
    """
    row = w[w.square().sum(1).argmax()]
    irregular = torch.arange(1, len(row) + 1, dtype=w.dtype, device=w.device) * 0.618034 % 1 - 0.5
    v = row + row.norm() / irregular.norm() * irregular
    for _ in range(iterations):
        v = w.T @ (w @ v)
        v = v / v.norm().clamp(min=torch.finfo(w.dtype).tiny)
    return (w @ v).norm()


def squared_norm(w: Tensor) -> float:
    """An upper estimate of |w|_2^2, for step sizes: ``SAFETY`` times the power iteration's value, at most |w|_F^2."""
    return min(SAFETY * float(spectral_norm(w)) ** 2, float(w.square().sum()))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
) -> Tensor:
    """An approximate solution x of apply(x) = b for rows b (systems, unknowns), starting at x = 0.

    All systems are positive definite.

    Args:
        precondition: r -> M^-1 r for a positive definite M that approximates the systems.
    """
    x, r = torch.zeros_like(b), b
    p = precondition(r)
    rz = (r * p).sum(1, keepdim=True)
    start = rz
    for _ in range(iterations):
        q = apply(p)
        curved = (p * q).sum(1, keepdim=True)
        going = (rz > 1e-14 * start) & (curved > 0)
        step = torch.where(going, rz / curved, torch.zeros_like(rz))
        x, r = x + step * p, r - step * q
        z = precondition(r)
        after = (r * z).sum(1, keepdim=True)
        p = z + torch.where(going, after / rz, torch.zeros_like(rz)) * p
        rz = after
    return x


def between(weight: Tensor, t: Tensor, v: Tensor, ratio: float) -> Tensor:
    """argmin_x |t - x W^T|^2 + ratio |v - x|^2, for t (samples, outputs) and v (samples, inputs)."""
    w = weight.double()
    square = w.T @ w + ratio * torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square)).to(weight.dtype)
    return (t @ weight + ratio * v) @ inverse
