"""The lifted methods: their closed forms, what their blocks promise, their limits. In float64, on random problems."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import optnet
from optnet.lifted import (
    ADMM,
    BCD,
    LPOM,
    MAC,
    ADMMOptions,
    BCDOptions,
    Blocks,
    LPOMOptions,
    MACOptions,
    Penalty,
    PenaltyOptions,
)  # fmt: skip
from optnet.lifted.chain import PLAIN, read
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
from optnet.objectives import ACTIVATIONS, activation, own

MONOTONE = [name for name in ACTIVATIONS if activation(name).monotone]
SMOOTH = [name for name in LOSSES if name != "hinge"]


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(act="relu", hidden=(7, 5), outputs=4, inputs=6):
    return optnet.MLP(hidden, act_layer=act, num_classes=outputs, in_chans=1, img_size=(1, inputs))


def problem(count=12, outputs=4, inputs=6):
    return torch.randn(count, 1, 1, inputs), torch.randint(outputs, (count,))


def lifted(trainer, images, labels):
    """The blocks at the start of a sweep."""
    with torch.no_grad():
        return trainer.start(trainer.forward(images, labels))


# closed forms


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


# what the blocks promise

STEPPED = [
    *((LPOM, LPOMOptions, {"w_step": step, "loss": loss}) for step in ("gradient", "pinv", "apg") for loss in LOSSES),
    (LPOM, LPOMOptions, {"w_step": "gradient", "mu": 0.3, "ratio": 8.0, "sweeps": 2}),
    *((Penalty, PenaltyOptions, {"w_step": step}) for step in ("gradient", "pinv", "apg")),
    *((BCD, BCDOptions, {"loss": loss}) for loss in LOSSES),
    (BCD, BCDOptions, {"gamma": 5.0, "rho": 0.2, "alpha": 0.1}),
    *((ADMM, ADMMOptions, {"loss": loss, "warm": 2}) for loss in LOSSES),
    (ADMM, ADMMOptions, {"start": "gaussian", "beta": 3.0, "warm": 1}),
    *((MAC, MACOptions, {"loss": loss, "cg": cg, "mu": 0.2, "stall": 0.0}) for loss in SMOOTH for cg in (0, 5)),
]
CASES = [
    pytest.param(kind, made, options, act, id=f"{kind.__name__}-{options}-{act}")
    for kind, made, options in STEPPED
    for act in (MONOTONE if kind is not Penalty else ["relu", "identity"])
]


@pytest.mark.parametrize("kind, made, options, act", CASES)
def test_no_block_raises_its_objective(kind, made, options, act):
    trainer = kind(net(act), made(**options))
    images, labels = problem()
    blocks = lifted(trainer, images, labels)
    before = start = trainer.objective(blocks)
    for _ in range(6):
        if not trainer.full_batch:
            blocks = lifted(trainer, images, labels)
            before = trainer.objective(blocks)
        for name in trainer.sweep(blocks):
            now = trainer.objective(blocks)
            assert name == "dual" or now <= before + 1e-10 * (1 + before.abs()), name
            before = now
    assert before < 0.95 * start or kind is ADMM


@pytest.mark.parametrize("act", ["relu", "sigmoid", "elu"])
@pytest.mark.parametrize("loss", SMOOTH)
def test_lpom_takes_an_activation_behind_the_last_layer(act, loss):
    made = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "elu": nn.ELU}[act]
    chain = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), made())
    trainer = LPOM(chain, LPOMOptions(loss=loss, w_step="pinv"))
    images, labels = problem()
    for _ in range(5):
        blocks = lifted(trainer, images, labels)
        before = trainer.objective(blocks)
        for _ in trainer.sweep(blocks):
            now = trainer.objective(blocks)
            assert now <= before + 1e-10
            before = now


@pytest.mark.parametrize("act", [*MONOTONE, lambda t: torch.relu(t) + 0.2 * t])
def test_lpoms_objective_is_convex_in_each_block(act):
    trainer = LPOM(net(act), LPOMOptions(loss="cross_entropy", mu=3.0))
    blocks = lifted(trainer, *problem())
    phis = [layer.activation.phi for layer in trainer.layers]

    def at(k, x):
        return trainer.objective(Blocks(blocks.y, [*blocks.x[:k], x, *blocks.x[k + 1 :]], blocks.u))

    for k in range(1, 4):
        for _ in range(30):
            a, b = (phis[k - 1](3 * torch.randn_like(blocks.x[k])) for _ in range(2))
            assert at(k, (a + b) / 2) <= (at(k, a) + at(k, b)) / 2 + 1e-9
    for layer in trainer.layers:
        old = layer.joined
        for _ in range(30):
            a, b = (3 * torch.randn_like(old) for _ in range(2))
            values = []
            for joined in (a, b, (a + b) / 2):
                layer.set(joined)
                values.append(trainer.objective(blocks))
            assert values[2] <= (values[0] + values[1]) / 2 + 1e-9
        layer.set(old)


FIXED = [
    (LPOM, LPOMOptions(w_step="apg")), (LPOM, LPOMOptions(order="jacobi")), (BCD, BCDOptions()), (MAC, MACOptions()),
    (ADMM, ADMMOptions(warm=0)), (LPOM, LPOMOptions(damped=False, w_step="pinv")),
]  # fmt: skip


@pytest.mark.parametrize("act", MONOTONE)
@pytest.mark.parametrize("kind, options", FIXED, ids=lambda part: getattr(part, "__name__", ""))
def test_a_network_that_is_right_is_a_fixed_point(kind, options, act):
    model, (images, _) = net(act), problem()
    targets = model(images).detach()
    trainer = kind(model, options)
    blocks = lifted(trainer, images, targets)
    before, weights = [part.clone() for part in blocks.x], [layer.joined for layer in trainer.layers]
    assert torch.stack(trainer.measure(blocks)[1]).abs().max() < 1e-12
    for _ in range(3):
        blocks = blocks if trainer.full_batch else lifted(trainer, images, targets)
        list(trainer.sweep(blocks))
    for old, new in zip(before, blocks.x, strict=True):
        assert (old - new).abs().max() < 1e-7
    for old, layer in zip(weights, trainer.layers, strict=True):
        assert (old - layer.joined).abs().max() < 1e-5


def test_the_forward_pass_is_no_fixed_point_of_the_penalty_without_g():
    model, (images, _) = net("relu"), problem()
    trainer = Penalty(model, PenaltyOptions(w_step="pinv"))
    blocks = lifted(trainer, images, model(images).detach())
    before = blocks.x[1].clone()
    list(trainer.sweep(blocks))
    assert (blocks.x[1] - before).abs().max() > 1e-2


@pytest.mark.parametrize("order", ["serial", "jacobi"])
@pytest.mark.parametrize("loss", SMOOTH)
@pytest.mark.parametrize("act", MONOTONE)
def test_at_a_large_mu_lpoms_gradient_is_backpropagations(act, loss, order):
    model, (images, labels) = net(act), problem()
    y = F.one_hot(labels, 4).double()
    total = LOSSES[loss](model(images), y).mean()
    wanted = torch.autograd.grad(total, list(model.parameters()))
    relative = []
    for mu in (1e2, 1e4, 1e6):
        seen = []

        class Seen(torch.optim.SGD):
            def step(self, seen=seen):
                seen.extend(p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)

        options = LPOMOptions(mu=mu, loss=loss, sweeps=40 if order == "serial" else 80, order=order, iterations=8)
        trainer = LPOM(model, options, Seen(model.parameters(), lr=1.0))
        trainer.step(images, labels)
        assert len(seen) == len(wanted)
        difference = sum((a - b).square().sum() for a, b in zip(seen, wanted, strict=True)).sqrt()
        relative.append(difference / sum(b.square().sum() for b in wanted).sqrt())
    assert relative[2] < 1e-5 and (relative[2] < relative[1] < relative[0])


def test_undamped_steps_blow_up_where_damped_ones_descend():
    """rho |W|^2 = 25 > 1: the published iteration is no contraction."""
    images, labels = problem()
    objectives = {}
    for damped in (True, False):
        torch.manual_seed(1)
        model = net("relu", (7,))
        model.head.weight.data *= 5 / torch.linalg.matrix_norm(model.head.weight.data, 2)
        trainer = LPOM(model, LPOMOptions(damped=damped, iterations=20, mu=1.0))
        blocks = lifted(trainer, images, labels)
        before = trainer.objective(blocks)
        next(steps := trainer.sweep(blocks))
        next(steps)
        objectives[damped] = float(trainer.objective(blocks) / before)
    assert objectives[True] < 1 < objectives[False]


# chains


def test_a_chain_is_read_as_it_is_computed():
    act, images = nn.Tanh(), torch.randn(5, 6)
    shared = nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 4), act, nn.Linear(4, 4))
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 4), act), shared[4], nn.Identity(), act)
    for model in (shared, nested, net("tanh")):
        trainer = LPOM(model, LPOMOptions())
        assert torch.equal(trainer.forward(images, torch.zeros(5, dtype=torch.int32)).x[-1], model(images))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    images, labels = problem()
    trainer = LPOM(net(), LPOMOptions())
    assert torch.equal(trainer.forward(images, labels.to(dtype)).y, F.one_hot(labels, 4).double())


# refusals


def conv():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if kind not in (nn.SiLU, nn.GELU)])
def test_torchs_activations_are_ours(kind):
    t = torch.linspace(-6, 6, 999)
    (layer,) = read(nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Dropout(0.0), kind()))
    assert torch.allclose(layer.activation.phi(t), kind()(t), atol=1e-12)


def twice():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


class Own(nn.Linear):
    pass


def computed():
    """A weight that is no parameter, as the older torch.nn.utils.weight_norm leaves it."""
    layer = nn.Linear(2, 2)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return nn.Sequential(layer)


def step(images=None, labels=None):
    usual = problem()
    return LPOM(net(), LPOMOptions()).step(
        *(a if b is None else b for a, b in zip(usual, (images, labels), strict=True))
    )


BAD = {
    "weight norm": lambda: LPOM(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), LPOMOptions()),
    "a weight that is computed": lambda: LPOM(computed(), LPOMOptions()),
    "a Linear of one's own": lambda: LPOM(nn.Sequential(Own(2, 2)), LPOMOptions()),
    "a Linear twice": lambda: LPOM(twice(), LPOMOptions()),
    "mu above its end": lambda: MAC(net(), MACOptions(mu=10.0, mu_max=1.0)),
    "batches for ADMM": lambda: ADMM(net(), ADMMOptions(full_batch=False)),
    "one target for all": lambda: step(labels=torch.zeros(1, 4)),
    "one label for all": lambda: step(labels=torch.zeros(1, dtype=torch.long)),
    "labels in a column": lambda: step(labels=torch.zeros(12, 1, dtype=torch.long)),
    "logical labels": lambda: step(labels=torch.zeros(12, dtype=torch.bool)),
    "narrow pictures": lambda: step(torch.randn(12, 1, 1, 5)),
    "softplus of another slope": lambda: LPOM(nn.Sequential(nn.Linear(2, 2), nn.Softplus(2.0)), LPOMOptions()),
    "decreasing": lambda: LPOM(net("gelu"), LPOMOptions()),
    "decreasing torch layer": lambda: LPOM(nn.Sequential(nn.Linear(2, 2), nn.SiLU()), LPOMOptions()),
    "decreasing, your own": lambda: own(torch.sin),
    "convolution": lambda: BCD(conv(), BCDOptions()),
    "network": lambda: LPOM(optnet.create_model("heavy_ball", blocks=[1], widths=[4]), LPOMOptions()),
    "no bias": lambda: LPOM(nn.Sequential(nn.Linear(2, 2, bias=False)), LPOMOptions()),
    "no linear layer": lambda: LPOM(nn.Sequential(nn.Flatten()), LPOMOptions()),
    "two activations": lambda: LPOM(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), LPOMOptions()),
    "dropout": lambda: LPOM(optnet.MLP((3,), drop_rate=0.5), LPOMOptions()),
    "activation on the output": lambda: ADMM(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ADMMOptions()),
    "hinge behind an activation": lambda: LPOM(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()), LPOMOptions(loss="hinge")
    ),
    "hinge in MAC": lambda: MAC(net(), MACOptions(loss="hinge")),
    "no hidden layer in MAC": lambda: MAC(nn.Sequential(nn.Linear(2, 2)), MACOptions()),
    "tanh in the penalty": lambda: Penalty(net("tanh"), PenaltyOptions()),
    "mu": lambda: LPOM(net(), LPOMOptions(mu=-1.0)),
    "loss": lambda: BCD(net(), BCDOptions(loss="nonsense")),
    "label too high": lambda: LPOM(net(), LPOMOptions()).step(problem()[0], torch.full((12,), 4)),
    "label too low": lambda: MAC(net(), MACOptions()).step(problem()[0], torch.full((12,), -1)),
    "targets of another shape": lambda: LPOM(net(), LPOMOptions()).step(problem()[0], torch.zeros(12, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_one_line(name):
    with pytest.raises(optnet.RequestError) as error:
        BAD[name]()
    assert "\n" not in str(error.value) and len(str(error.value)) > 20


@pytest.mark.parametrize(
    "kind, options", [*FIXED, (Penalty, PenaltyOptions())], ids=lambda part: getattr(part, "__name__", "")
)
def test_what_is_not_finite_is_said_by_nan(kind, options):
    images, labels = problem()
    loss, _ = kind(net(), options).step(images * torch.nan, labels)
    assert loss.isnan()


def test_a_diverging_step_says_nan():
    model = net("relu")
    trainer = LPOM(model, LPOMOptions(), torch.optim.SGD(model.parameters(), lr=1e6))
    images, labels = problem()
    losses = [float(trainer.step(images, labels)[0]) for _ in range(60)]
    assert losses[0] == losses[0] and losses[-1] != losses[-1]
