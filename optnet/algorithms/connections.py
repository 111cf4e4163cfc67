"""Gradient descent with more connections than it needs: they do nothing until a network learns them. No torch."""

from functools import reduce
from operator import add

from optnet.language.declaration import NetworkDefaults, algorithm
from optnet.language.symbols import Iterate, Operator


@algorithm(
    reference="Zhu, Huang, Huang, Zeng, Mao, Wu, Min, Zhou 2024 (hyper-connections, expansion rate 2)",
    network=NetworkDefaults(layer="preact_basic", reading="residual"),
    relaxation_of="gradient_descent",
)
def hyper_connections(T: Operator, x: Iterate, y: Iterate, steps: int) -> tuple[Iterate, Iterate]:
    """x_{k+1} = x_k + (T(m_k) - m_k),  y_{k+1} = y_k + (T(m_k) - m_k),  m_k = x_k for even k, y_k for odd k

    From x_0 = y_0 both streams are gradient descent. In a network the weights of x_k and y_k in all three sums are
    learned, from 1 or 0 on, and those of T(m_k) - m_k: A_m, A_r and B of the paper. It starts as ResNet; the network
    takes the mean of the streams, where the paper takes their sum. ``coefficients=doubly_stochastic`` is the form of
    Xie et al. 2025 (mHC), which keeps A_r doubly stochastic.
    """
    for k in range(steps):
        even = float(k % 2 == 0)
        m = even * x + (1 - even) * y
        new = T(m) - m
        x, y = x + 0.0 * y + new, 0.0 * x + y + new
    return x, y


@algorithm(
    reference="Pagliardini, Mohtashami, Fleuret, Jaggi 2024 (DenseFormer)",
    aliases=("denseformer",),
    network=NetworkDefaults(layer="preact_basic", reading="residual"),
    relaxation_of="gradient_descent",
)
def depth_weighted_average(T: Operator, x: Iterate, steps: int) -> Iterate:
    """z_{k+1} = T(x_k),  x_{k+1} = z_{k+1} + 0 (z_k + ... + z_0),  z_0 = x_0

    This is gradient descent. In a network the weights of all z_j are learned, from 1 for the newest and 0 for the
    earlier ones on: DenseFormer, if T is a whole transformer block.
    """
    z = [x]
    for _ in range(steps):
        new = T(x)
        x = reduce(add, (0.0 * earlier for earlier in z), new)
        z.append(new)
    return x
