"""The lifted methods' closed forms against numerical optima. In float64, on random problems."""

import pytest
import torch
from helpers import MONOTONE, SMOOTH, lifted, net, problem

import optnet
from optnet import objectives
from optnet.lifted import (
    ADMM,
    LPOM,
    MAC,
    ADMMOptions,
    LPOMOptions,
    MACOptions,
)  # fmt: skip
from optnet.lifted.fit import fit
from optnet.lifted.linalg import (
    augment,
    between,
    conjugate_gradients,
    cross,
    gram,
    pseudo_inverse,
    ridge,
    spectral_norm,
    squared_norm,
)  # fmt: skip
from optnet.lifted.losses import LOSSES
from optnet.networks.objectives import activation, own

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("c", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, c):
    loss, (_, labels) = LOSSES[name], problem(40)
    y = loss.targets(labels, torch.zeros(40, 4))
    assert torch.equal(y.argmax(1), labels) and (y.sum(1) == 1).all()
    a = 2 * torch.randn(40, 4)
    gradient = torch.func.grad(lambda x: loss(x, y).sum())(a)
    assert (loss.gradient(a, y) - gradient).abs().max() < 1e-12
    for row, target, d in zip(a, y, torch.randn(40, 4), strict=True):
        hessian = torch.func.hessian(lambda x, t=target: loss(x[None], t[None])[0])(row)
        assert (loss.curvature(row[None], d[None])[0] - hessian @ d).abs().max() < 1e-12
        if loss.smoothness is not None:
            assert torch.linalg.matrix_norm(hessian, 2) <= loss.smoothness + 1e-12
    assert torch.allclose(
        loss.curvature(a, torch.eye(4).expand(40, 4, 4)) @ torch.ones(4), loss.curvature(a, torch.ones(40, 4))
    )

    def value(x):
        return loss(x, y) + c / 2 * (x - a).square().sum(1)

    x = loss.prox(a, y, c)
    best = value(x)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(300):
            assert (value(x + size * torch.randn(40, 4)) >= best - 1e-12).all()
    if loss.smoothness is not None:  # otherwise x may be at a kink
        assert (loss.gradient(x, y) + c * (x - a)).abs().max() < 1e-6 * (1 + c)


@pytest.mark.parametrize("g", [0.02, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", MONOTONE)
def test_the_elementwise_fit_is_a_grids_best(name, g):
    phi = activation(name)
    a, b = 1.5 * torch.randn(120), 2.5 * torch.randn(120)
    u = fit(phi, a, b, g, torch.full_like(b, 50.0))

    def value(t):
        return (phi.phi(t) - a).square() / 2 + g / 2 * (t - b).square()

    grid = torch.linspace(-40, 40, 80_001)[:, None]
    best = torch.stack(
        [((phi.phi(grid) - a[i]).square() / 2 + g / 2 * (grid - b[i]).square()).min() for i in range(len(a))]
    )
    assert (value(u) - best).max() < 1e-6


def test_the_fit_never_leaves_a_lower_point():
    """A staircase has more valleys than a grid's first and last."""

    def phi(t):
        return sum(torch.sigmoid(60 * (t - c)) for c in (0.5, 1.5, 2.5, 3.5, 4.5))

    stairs, (a, b), g = own(phi), 5 * torch.rand(2, 400), 0.4

    def value(t):
        return (phi(t) - a).square() + g * (t - b).square()

    grid = torch.linspace(-1, 6, 7001)[:, None]
    old = grid[value(grid).argmin(0)][:, 0]
    assert (value(fit(stairs, a, b, g, old)) <= value(old)).all()
    assert (value(fit(stairs, a, b, g, b)) > value(old) + 1e-3).any()


def test_linear_algebra():
    x, t, w = torch.randn(50, 6), torch.randn(50, 3), torch.randn(3, 7)
    z = augment(x)
    assert torch.allclose(gram(x), z.T @ z) and torch.allclose(cross(t, x), t.T @ z)
    many = torch.randn(9000, 2)
    assert torch.allclose(gram(many), augment(many).T @ augment(many))
    stacked = torch.linalg.lstsq(torch.cat([z, 0.7**0.5 * torch.eye(7)]), torch.cat([t, 0.7**0.5 * w.T])).solution
    for known in (None, gram(x)):
        assert torch.allclose(w + ridge(x, t - z @ w.T, 0.7, known), stacked.T)
    for part in (x, x[:4]):
        assert torch.allclose(pseudo_inverse(part, 1e-12), torch.linalg.pinv(augment(part)).T, atol=1e-8)
    across = torch.tensor([[3.0, 0.0], [0.0, 2.9], [0.0, 2.9]])  # its longest row is orthogonal to its top direction
    for matrix in (w, w.T, torch.randn(30, 20), across):
        norm = torch.linalg.matrix_norm(matrix, 2)
        assert 0.97 < spectral_norm(matrix) / norm <= 1 + 1e-12
        assert norm**2 <= squared_norm(matrix) <= 1.1 * norm**2
    assert squared_norm(torch.ones(4, 3)) == pytest.approx(12)  # of rank 1: |w|_F^2
    v, weight = torch.randn(50, 6), torch.randn(3, 6)
    system = torch.cat([weight, 0.4**0.5 * torch.eye(6)])
    wanted = torch.linalg.lstsq(system, torch.cat([t, 0.4**0.5 * v], 1).T).solution.T
    assert torch.allclose(between(weight, t, v, 0.4), wanted)
    A = torch.randn(5, 8, 8)
    A = A @ A.mT + torch.eye(8)
    b = torch.randn(5, 8)
    found = conjugate_gradients(lambda p: (A @ p[:, :, None])[:, :, 0], b, 60)
    assert torch.allclose(found, torch.linalg.solve(A, b), atol=1e-6)
    uneven = A * torch.logspace(-3, 3, 8)[:, None] * torch.logspace(-3, 3, 8)
    diagonal = uneven.diagonal(dim1=1, dim2=2)
    found = conjugate_gradients(lambda p: (uneven @ p[:, :, None])[:, :, 0], b, 60, lambda r: r / diagonal)
    assert torch.allclose(found, torch.linalg.solve(uneven, b), rtol=1e-6)


@pytest.mark.parametrize("act", ["identity", "sigmoid", "tanh", "relu"])
def test_macs_weights_by_conjugate_gradients_come_near_choleskys(act):
    """Three steps preconditioned against three plain ones, which batches take; with a constant slope one is exact."""
    images, labels = problem(60)
    images[..., -1] = 1e-3 * images[..., -1]  # badly scaled, like pixels that are almost always blank

    def moved(cg, full_batch=True):
        torch.manual_seed(1)
        trainer = MAC(net(act), MACOptions(cg=cg, full_batch=full_batch))
        blocks = lifted(trainer, images, labels)
        blocks.x[1] = blocks.x[1] + 0.1 * torch.randn_like(blocks.x[1])
        start = trainer.layers[0].joined
        with torch.no_grad():
            trainer._hidden(blocks, 0)
        return trainer.layers[0].joined - start

    exact = moved(0)
    near, plain, whole = ((moved(*how) - exact).norm() / exact.norm() for how in ((3,), (3, False), (30,)))
    assert near < 0.3 * plain
    assert whole < 1e-5
    assert act != "identity" or (moved(1) - exact).norm() < 1e-9 * exact.norm()


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("outputs", [3, 9])
@pytest.mark.parametrize("hidden", [(5,), (7, 5), (6, 4, 5)])
def test_macs_direction_solves_the_block_tridiagonal_system(hidden, outputs, name):
    trainer = MAC(net("tanh", hidden, outputs), MACOptions(mu=0.7, loss=name))
    blocks = lifted(trainer, *problem(outputs=outputs))
    x = [blocks.x[0], *(part + 0.3 * torch.randn_like(part) for part in blocks.x[1:])]
    d = torch.cat(trainer._direction(x, blocks.y), 1)
    for i in range(len(d)):
        sizes = [part.shape[1] for part in x[1:]]

        def residual(flat, i=i, sizes=sizes):
            parts = [x[0][i], *flat.split(sizes)]
            pairs = zip(trainer.layers[:-1], parts[:-1], parts[1:], strict=True)
            return torch.cat([after - torch.tanh(layer(before)) for layer, before, after in pairs])

        flat = torch.cat([part[i] for part in x[1:]])
        J, r = torch.func.jacrev(residual)(flat), residual(flat)
        last = trainer.layers[-1]
        V = torch.zeros(outputs, len(flat))
        V[:, -sizes[-1] :] = last.weight
        u, y = last(x[-1][i : i + 1]), blocks.y[i : i + 1]
        H = trainer.loss.curvature(u, torch.eye(outputs)[None])[0]
        matrix = 0.7 * J.T @ J + V.T @ H @ V
        right = -0.7 * J.T @ r - V.T @ trainer.loss.gradient(u, y)[0]
        assert torch.allclose(d[i], torch.linalg.solve(matrix, right), atol=1e-9)


def test_apg_is_nesterovs_iteration_and_better_than_as_many_plain_steps():
    trainer = LPOM(net("tanh"), LPOMOptions(w_step="apg", w_iterations=6))
    blocks = lifted(trainer, *problem())
    steps = trainer.sweep(blocks)
    while next(steps) != "x1":
        pass
    for k, layer in enumerate(trainer.layers):
        x, target, phi = augment(blocks.x[k]), blocks.x[k + 1], layer.activation
        inverse = pseudo_inverse(blocks.x[k], 0.1 * len(x))

        def value(w, x=x, target=target, phi=phi):
            return (phi.G(x @ w.T) - target * (x @ w.T)).sum()

        def plain(w, x=x, target=target, phi=phi, inverse=inverse):
            return w - (phi.phi(x @ w.T) - target).T @ inverse / phi.lipschitz

        stepped = best = y = layer.joined
        t = 1.0
        for _ in range(6):
            z, later = plain(y), (1 + (1 + 4 * t * t) ** 0.5) / 2
            old, best = best, z if value(z) <= value(best) else best
            y = best + t / later * (z - best) + (t - 1) / later * (best - old)
            t, stepped = later, plain(stepped)
        assert next(steps) == f"w{k + 1}"
        assert torch.allclose(layer.joined, best, atol=1e-10)
        assert value(best) < value(stepped) - 1e-6


def test_admms_multiplier_is_the_losss_slope_and_closes_the_gap():
    images, labels = problem()
    for name in SMOOTH:
        gaps = []
        for warm in (0, 1000):  # the latter never moves it
            torch.manual_seed(2)
            trainer = ADMM(net(), ADMMOptions(loss=name, warm=warm))
            blocks = lifted(trainer, images, labels)
            for _ in range(40):
                moved = [
                    trainer.loss.gradient(blocks.u[-1], blocks.y) for step in trainer.sweep(blocks) if step == "dual"
                ]
                assert len(moved) == (not warm)
                assert all((blocks.dual + slope).abs().max() < 1e-6 for slope in moved)
            gaps.append((blocks.u[-1] - trainer.layers[-1](blocks.x[-2])).square().sum())
        assert gaps[0] < 0.01 * gaps[1]


def test_macs_mu_grows_after_each_sweep_that_gains_too_little():
    def run(count=8, **options):
        torch.manual_seed(3)
        trainer, seen = MAC(net("tanh"), MACOptions(mu=0.5, growth=3.0, mu_max=10.0, **options)), []
        images, labels = problem()
        for _ in range(count):
            before = trainer.objective(trainer._kept or lifted(trainer, images, labels))
            trainer.step(images, labels)
            seen.append((trainer.mu, before, trainer.objective(trainer._kept or lifted(trainer, images, labels))))
        return seen

    assert [mu for mu, *_ in run(stall=1.0)] == [0.5, 1.5, 4.5, 10, 10, 10, 10, 10]
    assert [mu for mu, *_ in run(stall=0.0)] == [0.5] * 8
    assert [mu for mu, *_ in run(stall=1.0, full_batch=False)] == [0.5] * 8
    images, labels = problem()
    torch.manual_seed(3)
    trainer = MAC(net("tanh"), MACOptions(mu=0.5, growth=3.0, mu_max=1e4, stall=0.3))
    blocks, mu, grown = lifted(trainer, images, labels), 0.5, []
    for _ in range(12):
        before = None
        for _ in trainer.sweep(blocks):
            before = before or trainer.before
        assert trainer.mu == pytest.approx(mu)
        grown.append(bool(trainer.objective(blocks) > 0.7 * before))
        mu = min(mu * 3.0, 1e4) if grown[-1] else mu
    assert any(grown) and not all(grown)


@pytest.mark.parametrize("name", ["identity", "relu"])
def test_an_activation_is_what_it_computes_not_what_it_is_called(name, double):
    """An own tanh called identity or relu takes the path of a tanh."""
    steps = []
    for called in (name, "my tanh"):
        torch.manual_seed(1)
        model = net(objectives.own(torch.tanh, called))
        model.head = torch.nn.Sequential(model.head, objectives.Elementwise(objectives.own(torch.tanh, called)))
        trainer = LPOM(model, LPOMOptions(w_step="gradient"))
        torch.manual_seed(2)
        images, labels = problem()
        trainer.step(images, labels)
        steps.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))
    assert not objectives.own(torch.tanh, name).is_identity and not objectives.own(torch.tanh, name).is_rectifier
    with pytest.raises(optnet.ModelError, match="linear last layer"):
        MAC(model, MACOptions())
