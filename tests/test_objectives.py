"""Lemma 4 and the proximal pairs, for every activation."""

import pytest
import torch

import optnet
from optnet import find_algorithm
from optnet.networks import objectives
from optnet.networks.objectives import ACTIVATIONS, activation, objective

MONOTONE = [name for name in ACTIVATIONS if activation(name).monotone]


def layer(norm, seed=0, n=12):
    """(U, W = U U) with W random symmetric positive definite of the given norm, and an injected bias."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    spectrum = norm * (0.05 + 0.95 * torch.rand(n, dtype=torch.float64, generator=generator))
    spectrum[0] = norm
    U = Q @ torch.diag(spectrum.sqrt()) @ Q.T
    return U, U @ U, torch.randn(n, dtype=torch.float64, generator=generator)


def points(count=20, n=12):
    return torch.randn(count, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("norm", [0.9, 3.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lemma_4(name, norm, injected):
    phi = activation(name)
    U, _, bias = layer(norm)
    bias = bias if injected else None
    f, z = objective(phi, U, bias), points()
    inner = z @ U if bias is None else z @ U + bias
    step = phi.phi(inner) @ U
    gradient = torch.func.vmap(torch.func.grad(lambda v: f(v[None])[0]))(z)
    assert (z - gradient - step).abs().max() < 1e-10
    h = 1e-6
    central = torch.stack([(f(z + h * e) - f(z - h * e)) / (2 * h) for e in torch.eye(12, dtype=torch.float64)], 1)
    assert (z - central - step).abs().max() < 1e-6


@pytest.mark.parametrize("norm", [0.9, 3.0])
@pytest.mark.parametrize("name", MONOTONE)
def test_the_network_decreases_its_objective(name, norm):
    """x -> phi(W x + b) in x is gradient descent on f in z = U x: the very function that becomes the network."""
    phi = activation(name)
    U, W, bias = layer(norm)
    f, x = objective(phi, U, bias), points()
    values = []
    for steps in range(1, 15):
        x_k = find_algorithm("gradient_descent")(lambda v: phi.phi(v @ W + bias), x, steps=steps)
        values.append(f(x_k @ U))
    before = f(x @ U)
    for value in values:
        assert (value <= before + 1e-9 * (1 + before.abs())).all()
        before = value


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lipschitz_constant_and_monotony(name):
    phi = activation(name)
    t = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    slope = phi.phi(t).diff() / t.diff()
    assert slope.max() <= phi.lipschitz + 1e-6 and slope.max() >= phi.lipschitz - 1e-2
    assert bool((slope >= -1e-9).all()) == phi.monotone


@pytest.mark.parametrize("name", MONOTONE)
def test_fenchel_and_young(name):
    phi = activation(name)
    u, v = points(2, 400) * 3
    x = phi.phi(v)
    for one, other in ((u, phi.phi(u)), (v, x)):
        assert (phi.F(other) + phi.G(one) - other * one).abs().max() < 1e-12
    excess = phi.F(x[:, None]) + phi.G(u[None]) - x[:, None] * u[None]
    assert excess.min() > -1e-12
    apart = (x[:, None] - phi.phi(u)[None]).abs() > 1e-3
    assert (excess[apart] > 1e-9).all()


def test_domains_and_refusals():
    x = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    for name in ("sigmoid", "tanh", "softsign"):
        assert torch.isinf(activation(name).F(x)).all()
    for name in ("relu", "softplus", "elu"):
        assert torch.isinf(activation(name).F(x)).tolist() == [True, False]
    for name in ("swish", "gelu"):
        with pytest.raises(optnet.RequestError, match="decreases"):
            activation(name).F(x)
    unknown, low = (lambda: activation("nonsense")), (lambda: activation("elu", alpha=-1.0))
    for bad in (unknown, low, lambda: objectives.leaky_relu(0)):
        with pytest.raises(optnet.RequestError):
            bad()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_and_pieces(name):
    phi = activation(name)
    t = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    t = t[(t.abs() > 1e-3) & ((t.abs() - 0.5).abs() > 1e-3)]  # without the kinks
    central = (phi.phi(t + 1e-6) - phi.phi(t - 1e-6)) / 2e-6
    assert (phi.slope(t) - central).abs().max() < 1e-8
    assert bool(phi.pieces) == (name in ("relu", "leaky_relu", "soft_threshold", "identity"))
    for slope, offset, low, high in phi.pieces:
        inside = t[(t >= low) & (t <= high)]
        assert (phi.phi(inside) - slope * inside - offset).abs().max() < 1e-15


@pytest.mark.parametrize("name", MONOTONE)
def test_your_own_activation_is_as_good_as_ours(name):
    ours = activation(name)
    own = objectives.own(ours.phi)
    assert own.lipschitz == pytest.approx(ours.lipschitz, abs=1e-3) and own.monotone
    u, v = points(2, 200) * 3
    kinked = name == "soft_threshold"  # at 1/2 and -1/2, where the quadrature does not expect it
    assert (own.G(u) - own.G(v) - ours.G(u) + ours.G(v)).abs().max() < (1e-3 if kinked else 1e-9)
    x = ours.phi(v)
    assert (own.F(x) + own.G(v) - x * v).abs().max() < 1e-9
    assert (own.F(x) + own.G(u) - x * u).min() > -(1e-3 if kinked else 1e-9)


@pytest.mark.parametrize("phi", [torch.cos, torch.neg, torch.nn.functional.gelu, torch.log, lambda t: t.sum()])
def test_your_own_activation_must_not_decrease(phi):
    with pytest.raises(optnet.RequestError) as error:
        objectives.own(phi)
    assert "\n" not in str(error.value)
