"""What the lifted methods' blocks promise, and their limits. In float64, on random problems."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FIXED, MONOTONE, SMOOTH, crossed, lifted, net, problem
from torch import nn

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
from optnet.lifted.losses import LOSSES

pytestmark = pytest.mark.usefixtures("double")


STEPPED = {
    (LPOM, LPOMOptions): [
        *({"w_step": step, "loss": loss} for step in ("gradient", "pinv", "apg") for loss in LOSSES),
        {"w_step": "gradient", "mu": 0.3, "ratio": 8.0, "sweeps": 2},
    ],
    (Penalty, PenaltyOptions): [{"w_step": step} for step in ("gradient", "pinv", "apg")],
    (BCD, BCDOptions): [*({"loss": loss} for loss in LOSSES), {"gamma": 5.0, "rho": 0.2, "alpha": 0.1}],
    (ADMM, ADMMOptions): [
        *({"loss": loss, "warm": 2} for loss in LOSSES), {"start": "gaussian", "beta": 3.0, "warm": 1},
    ],
    (MAC, MACOptions): [{"loss": loss, "cg": cg, "mu": 0.2, "stall": 0.0} for loss in SMOOTH for cg in (0, 5)],
}  # fmt: skip
CASES = [
    case
    for (kind, made), options in STEPPED.items()
    for case in crossed([kind], [made], options, MONOTONE if kind is not Penalty else ["relu", "identity"])
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
@pytest.mark.sampled(4)
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


@pytest.mark.parametrize("case, act", crossed(FIXED, MONOTONE))
def test_a_network_that_is_right_is_a_fixed_point(case, act):
    kind, options = case
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


@pytest.mark.parametrize("act, loss, order", crossed(MONOTONE, SMOOTH, ["serial", "jacobi"]))
@pytest.mark.sampled(5)
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
