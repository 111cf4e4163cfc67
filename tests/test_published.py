"""Published networks as settings of ours: each equals its paper's recurrence, written out, with random coefficients."""

import pytest
import torch
from helpers import settle

import optnet
from optnet.app.compose import compose, register
from optnet.app.config import Train
from optnet.app.train import prepare
from optnet.networks.dynamic import EPS
from optnet.networks.unrolled import coefficient_names, unrolled_in

BLOCKS = 5


def momentum_resnet(network, F, x):
    """v = gamma v + (1 - gamma) F(x), x = x + v. Sander, Ablin, Blondel, Peyre 2021."""
    v = torch.zeros_like(x)
    for layer in F:
        v = 0.7 * v + (1 - 0.7) * layer(x)
        x = x + v
    return x


def lm_resnet(network, F, x):
    """x_{n+1} = (1 - k_n) x_n + k_n x_{n-1} + F(x_n); the first block has no x_{n-1}. Lu, Zhong, Li, Dong 2018."""
    (stage,) = unrolled_in(network).values()
    k = stage.constants()
    assert len(k) == BLOCKS - 1
    before, x = x, x + F[0](x)
    for k_n, layer in zip(k.values(), F[1:], strict=True):
        before, x = x, (1 - k_n) * x + k_n * before + layer(x)
    return x


def rows(network):
    """The weights of every sum, by its terms. Equal streams have no freedom in A_m under a rule."""
    (stage,) = unrolled_in(network).values()
    learned = stage.learned()
    return [
        dict(zip(row.terms, learned.get(row.value, torch.tensor(row.weights, dtype=torch.float64)), strict=True))
        for row in stage.program.combines
    ]


def hyper_connections(network, F, x):
    """H = A_r' H + B' T(A_m' H), H = two copies of x. Zhu et al. 2024; the mean of the rows at the end."""
    weights = rows(network)
    h = torch.stack([x, x])
    for k, layer in enumerate(F):
        first, *both = weights[3 * k : 3 * k + 3]
        names = [*first]  # the two streams, as the program calls them
        A_m = torch.stack([first[name] for name in names])
        A_r = torch.stack([torch.stack([row[name] for name in names]) for row in both])
        B = torch.stack([next(weight for name, weight in row.items() if name not in names) for row in both])
        new = layer(torch.einsum("i,ibchw->bchw", A_m, h))
        h = torch.einsum("ij,jbchw->ibchw", A_r, h) + torch.einsum("i,bchw->ibchw", B, new)
    return h.mean(0)


def dynamic_hyper_connections(network, F, x):
    """The same, but A_m, A_r and B are b + A z for each image; z: the second stream, pooled, over its norm."""
    (stage,) = unrolled_in(network).values()
    sums = [stage.body.get_submodule(stage.rows[row.value]) for row in stage.program.combines]
    h = torch.stack([x, x])
    for k, layer in enumerate(F):
        z = h[1].mean((2, 3))
        z = z / (z.square().sum(1, keepdim=True) + EPS).sqrt()
        A_m, *both = (
            row.start + row.static + torch.einsum("tc,bc->bt", row.slopes.reshape(-1, z.shape[1]), z)
            for row in sums[3 * k : 3 * k + 3]
        )
        new = layer(torch.einsum("bi,ibchw->bchw", A_m, h))
        h = torch.stack([
            torch.einsum("bj,jbchw->bchw", row[:, :2], h) + row[:, 2, None, None, None] * new for row in both
        ])  # fmt: skip
    return h.mean(0)


def dense_former(network, F, x):
    """X_i = B_i(Y_{i-1}), Y_i = sum_{j<=i} alpha_ij X_j, B = id + F. Pagliardini et al. 2024.

    Ours has weights in B too, which the paper has not; they are 1 here.
    """
    weights = rows(network)
    X, Y = [x], x
    for layer, alpha in zip(F, [*weights[1::2], weights[-1]], strict=True):
        X.append(Y + layer(Y))
        Y = sum(a * past for a, past in zip([*alpha.values()][: len(X)], X, strict=True))
    return Y


PUBLISHED = {
    "Momentum ResNet": (
        momentum_resnet, {"algorithm": "momentum_residual", "constants": {"gamma": 0.7}, "coefficients": "fixed",
                          "coefficient_init": "algorithm"},
    ),
    "LM-ResNet": (lm_resnet, {"algorithm": "linear_multistep", "coefficients": "iteration_constants"}),
    "hyper-connections": (hyper_connections, {"algorithm": "hyper_connections"}),
    "mHC": (hyper_connections, {"algorithm": "hyper_connections", "coefficients": "doubly_stochastic"}),
    "dynamic hyper-connections": (
        dynamic_hyper_connections, {"algorithm": "hyper_connections", "coefficients": "dynamic"},
    ),
    "DenseFormer": (dense_former, {"algorithm": "denseformer"}),
}  # fmt: skip


def made(name):
    """The network of one stage, with random weights and coefficients, and its branches F."""
    torch.manual_seed(0)
    network = optnet.create_model(
        blocks=[BLOCKS], widths=[6], in_chans=1, layer="preact_basic", dtype=torch.float64, **PUBLISHED[name][1]
    )
    settle(network)
    for key in sorted(coefficient_names(network)):
        parameter = network.get_parameter(key)
        parameter.data += 0.3 * torch.randn_like(parameter)
    (stage,) = unrolled_in(network).values()
    if name == "DenseFormer":
        for row in [*stage.rows.values()][:-1:2]:
            stage.body.get_parameter(row).data.fill_(1.0)
        last = stage.body.get_parameter([*stage.rows.values()][-1]).data
        last[-1] = last[-2]
    return network, stage.served_by("T").values()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_a_setting(name):
    network, layers = made(name)
    F = [lambda x, layer=layer: layer([x]) for layer in layers]
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    ours = network(images)
    theirs = network.head(network.norm(PUBLISHED[name][0](network, F, network.stem(images))))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    wanted = {"images": images, **dict(network.named_parameters())}
    seed = torch.randn_like(ours)
    found = torch.autograd.grad(ours, [*wanted.values()], seed)
    expected = torch.autograd.grad(theirs, [*wanted.values()], seed, allow_unused=name == "DenseFormer")
    for key, one, other in zip(wanted, found, expected, strict=True):
        if other is not None and not (name == "DenseFormer" and "coefficients" in key):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=key)


@pytest.mark.parametrize("layer", ["preact_basic", "basic"])
@pytest.mark.parametrize("scale", [0.1, 10])
def test_the_streams_of_mhc_are_mixed_by_doubly_stochastic_matrices(layer, scale):
    network = optnet.create_model(**PUBLISHED["mHC"][1], blocks=[3, 3], widths=[4, 6], layer=layer)
    for name in coefficient_names(network):
        network.get_parameter(name).data.normal_(0, scale)
    first, _ = unrolled_in(network).values()
    for stage in unrolled_in(network).values():
        learned = stage.learned()
        moved = []
        mixing = [row for row in stage.program.combines if len(row.terms) == 3]
        assert len(mixing) == 6
        for one, other in zip(mixing[::2], mixing[1::2], strict=True):
            matrix = torch.stack([learned[row.value].double()[:2] for row in (one, other)])
            assert one.terms[:2] == other.terms[:2] and matrix.min() > -1e-6
            torch.testing.assert_close(matrix.sum(0), torch.ones(2).double(), rtol=0, atol=1e-5)
            torch.testing.assert_close(matrix.sum(1), torch.ones(2).double(), rtol=0, atol=1e-5)
            moved.append((matrix - torch.eye(2)).abs().max() > 1e-6)
        assert moved == [stage is not first, True, True]  # at the start of the network both streams are the same


LIKE_RESNET = [name for name in PUBLISHED if name != "Momentum ResNet"]


@pytest.mark.parametrize("layer", ["preact_basic", "basic"])
@pytest.mark.parametrize("name", LIKE_RESNET)
def test_it_starts_as_resnet(name, layer):
    """In one stage: later stages of two streams have a shortcut for each. ``basic`` layers have P after each sum."""
    options = {"blocks": [3], "widths": [4], "in_chans": 1, "layer": layer, "dtype": torch.float64}
    network = settle(optnet.create_model(**options, **PUBLISHED[name][1]))
    resnet = settle(optnet.create_model("gradient_descent", reading="residual", coefficients="fixed", **options))
    assert not resnet.load_state_dict(network.state_dict(), strict=False).missing_keys
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(images), resnet(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["denseformer", "hb", "lm_resnet", "momentum_resnet"])
def test_an_alias_is_a_name_on_the_command_line_too(name):
    config = compose("train", Train, register("train", Train, [f"algorithm={name}"]))
    assert optnet.find_algorithm(config.algorithm["name"]) is optnet.find_algorithm(name)
    assert prepare(config).model.programs[0].start.name == optnet.find_algorithm(name).name
