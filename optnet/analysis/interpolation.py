"""A smooth convex function through given points with given gradients and values. Draws nothing, proves nothing."""

from __future__ import annotations

import numpy as np

from optnet.analysis.scalars import Array
from optnet.analysis.worst_case import Samples


def interpolant(samples: Samples, x: Array, L: float = 1.0, iterations: int = 2000) -> tuple[Array, Array]:
    """The value (n,) and the gradient (n, dimensions) of an L-smooth convex function through ``samples``, at x (n, ..).

    f(x) = min over weights a >= 0 with sum a = 1 of L/2 |x - sum_i a_i u_i|^2 + sum_i a_i v_i,
    u_i = x_i - g_i / L,  v_i = f_i - |g_i|^2 / (2 L)

    It is the largest L-smooth convex function through the samples, if there is one (Taylor, Hendrickx, Glineur 2017,
    theorem 4 and remark 4). The weights are found by the accelerated projected gradient method with
    restarts, in so many iterations.
    """
    u = samples.points - samples.gradients / L
    v = samples.values - (samples.gradients**2).sum(1) / (2 * L)
    step = 1 / (L * max(float(np.linalg.norm(u, 2)) ** 2, 1e-12))
    a = np.full((len(x), len(u)), 1 / len(u))
    y, t = a, np.ones((len(x), 1))
    for _ in range(iterations):
        slope = L * (y @ u - x) @ u.T + v
        new = _onto_simplex(y - step * slope)
        turned = ((y - new) * (new - a)).sum(1, keepdims=True) > 0
        following = np.where(turned, 1.0, (1 + np.sqrt(1 + 4 * t * t)) / 2)
        y = new + np.where(turned, 0.0, (t - 1) / following) * (new - a)
        a, t = new, following
    off = x - a @ u
    return L / 2 * (off**2).sum(1) + a @ v, L * off


def _onto_simplex(y: Array) -> Array:
    """The nearest point with y >= 0 and sum y = 1, of every row (Held, Wolfe, Crowder 1974)."""
    falling = -np.sort(-y, axis=1)
    excess = (falling.cumsum(1) - 1) / np.arange(1, y.shape[1] + 1)
    last = (falling > excess).sum(1) - 1
    return np.asarray(np.maximum(y - excess[np.arange(len(y)), last][:, None], 0))
