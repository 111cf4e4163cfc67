"""Methods with two operators on a real sparse problem, against its solution; and the general ADM."""

import functools

import pytest
import torch

from optnet import find_algorithm
from optnet.algorithms.admm import alternating_direction
from optnet.networks.objectives import soft_threshold


@functools.cache  # nothing changes what it returns
def lasso(seed=0, m=30, n=20, weight=0.5):
    """min |A x - b|^2 / 2 + weight |x|_1, and its solution by 20,000 steps of ISTA."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(m, n, dtype=torch.float64, generator=generator)
    b = A @ (torch.randn(n, dtype=torch.float64, generator=generator) * (torch.arange(n) % 4 == 0))
    step = 1 / torch.linalg.matrix_norm(A, 2) ** 2
    x = torch.zeros(n, dtype=torch.float64)
    for _ in range(20_000):
        x = soft_threshold(float(step * weight)).phi(x - step * A.T @ (A @ x - b))
    return A, b, float(step), weight, x


def value(A, b, weight, x):
    return (A @ x - b).square().sum() / 2 + weight * x.abs().sum()


@pytest.mark.parametrize("name", ["ista", "fista"])
def test_bounds_on_a_composite_problem(name):
    A, b, step, weight, solution = lasso()
    method, zero = find_algorithm(name), torch.zeros_like(solution)
    prox = soft_threshold(step * weight).phi
    for steps in (1, 3, 10, 40, 160):
        x = method(lambda v: v - step * A.T @ (A @ v - b), prox, zero, steps=steps)
        gap = value(A, b, weight, x) - value(A, b, weight, solution)
        assert gap <= method.theorem.bound(steps, 0.0, 1 / step) * solution.square().sum() * (1 + 1e-9)


@pytest.mark.parametrize("relax", [1.0, 1.6])
@pytest.mark.parametrize("rho", [0.3, 1.0])
def test_admm_with_a_gradient_step_solves_it(rho, relax):
    A, b, step, weight, solution = lasso()
    x = find_algorithm("splitting_admm")(
        lambda v: v - step * A.T @ (A @ v - b), soft_threshold(step * weight / rho).phi, torch.zeros_like(solution),
        steps=20_000, rho=rho, relax=relax,
    )  # fmt: skip
    assert (x - solution).norm() < 1e-8 * solution.norm()


@pytest.mark.parametrize("relax", [0.8, 1.0, 1.5])
def test_douglas_rachford_solves_it(relax):
    A, b, step, weight, solution = lasso()
    inverse = torch.linalg.inv(torch.eye(20, dtype=torch.float64) + step * A.T @ A)
    x = find_algorithm("douglas_rachford")(
        soft_threshold(step * weight).phi, lambda v: inverse @ (v + step * A.T @ b), torch.zeros_like(solution),
        steps=5_000, relax=relax,
    )  # fmt: skip
    assert (x - solution).norm() < 1e-8 * solution.norm()


def test_pdhg_solves_it():
    A, b, step, weight, solution = lasso()
    tau = sigma = 0.99 * step**0.5
    x, _ = find_algorithm("pdhg")(
        soft_threshold(tau * weight).phi, lambda y: (y - sigma * b) / (1 + sigma), lambda x: A @ x, lambda y: A.T @ y,
        torch.zeros(20, dtype=torch.float64), torch.zeros(30, dtype=torch.float64), steps=20_000, tau=tau, sigma=sigma,
    )  # fmt: skip
    assert (x - solution).norm() < 1e-8 * solution.norm()


@pytest.mark.parametrize("growth", [1.0, 1.02])
def test_the_general_alternating_direction_method(growth):
    A, b, _, weight, solution = lasso()
    eye = torch.eye(20, dtype=torch.float64)
    x_1, x_2, multiplier = alternating_direction(
        lambda v, beta: torch.linalg.solve(A.T @ A + beta * eye, A.T @ b + beta * v),
        lambda v, beta: soft_threshold(weight / beta).phi(-v),
        lambda x: x, lambda x: -x, torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64),
        steps=2_000, growth=growth, beta_max=100.0,
    )  # fmt: skip
    for x in (x_1, x_2):
        assert (x - solution).norm() < 1e-7 * solution.norm()
    assert (multiplier + A.T @ (A @ x_1 - b)).norm() < 1e-6 * multiplier.norm()  # stationarity of f_1
