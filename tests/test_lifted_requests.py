"""The chains that lifted methods read, and the requests they refuse. In float64, on random problems."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FIXED, net, problem
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
    LPOMOptions,
    MACOptions,
    Penalty,
    PenaltyOptions,
)  # fmt: skip
from optnet.lifted.chain import PLAIN, read
from optnet.networks.objectives import own

pytestmark = pytest.mark.usefixtures("double")


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
    "narrow images": lambda: step(torch.randn(12, 1, 1, 5)),
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
