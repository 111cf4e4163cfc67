"""Methods with a velocity: their relations to the others, and where a network puts their P."""

import itertools

import pytest
import torch
from helpers import EVERY, SMALL, SPLIT, build, call, label, random_images, some, weights_of_sums
from timm.layers import Attention, Mlp
from torch import nn

import optnet
from optnet import (
    Algorithm,
    AlgorithmError,
    Iterate,
    ModelError,
    Operator,
    analysis,
    create_model,
    find_algorithm,
    identity,
)
from optnet.analysis.certificate import identity_note
from optnet.networks.design import design, suitable_layer
from optnet.networks.layers import TOKEN_FAMILIES
from optnet.networks.unrolled import unrolled_in

VELOCITY = [name for name in optnet.list_algorithms() if find_algorithm(name).network.velocity]
ALONE = [name for name in VELOCITY if name not in SPLIT]


def test_the_lists_are_not_empty():
    assert {"momentum", "nesterov_momentum"} <= {*ALONE} <= {*EVERY}
    assert {"lie_trotter_momentum", "euler_momentum"} == {*SPLIT} <= {*VELOCITY}
    assert optnet.find_algorithm("yuriiformer") is optnet.find_algorithm("tmmformer")


def T(x):
    return torch.tanh(x @ torch.linspace(-0.4, 0.5, 25, dtype=torch.float64).view(5, 5) + 0.1)


def S(x):
    return torch.cos(x) / 2


X = torch.linspace(-1, 2, 15, dtype=torch.float64).view(3, 5)
TRIPLE = {"q": 0.1}
r = 1 - TRIPLE["q"] ** 0.5


def in_turn(first, second):
    """An operator whose calls alternate."""
    turns = itertools.cycle([first, second])
    return lambda x: next(turns)(x)


EQUAL = {
    "heavy ball": (("momentum", {"beta": 0.7, "step": 0.3}), ("heavy_ball", {"beta": 0.7, "step": 0.3})),
    "heavy ball, no lookahead": (
        ("nesterov_momentum", {"beta": 0.7, "step": 0.3, "lookahead": 0.0}), ("heavy_ball", {"beta": 0.7, "step": 0.3}),
    ),
    "Nesterov": (("nesterov_momentum", {"beta": 0.7}), ("nesterov", {"beta": 0.7})),
    "nu is a size of the velocity": (
        ("nesterov_momentum", {"beta": 0.7, "lookahead": 0.4, "step": 0.5, "nu": 2.0}),
        ("nesterov_momentum", {"beta": 0.7, "lookahead": 0.2, "step": 1.0}),
    ),
    "gradient descent": (("momentum", {"beta": 0.0, "step": 0.6}), ("gradient_descent", {"step": 0.6})),
}  # fmt: skip
"""(a method of one operator, its constants), and another one that is the same without P."""
SPLIT_EQUAL = {
    "Lie-Trotter": ("lie_trotter_momentum", "nesterov_momentum", {"beta": 0.6, "step": 0.3, "nu": 1.2}),
    "Lie-Trotter, own lookahead": (
        "lie_trotter_momentum", "nesterov_momentum", {"beta": 0.6, "lookahead": 0.4, "step": 0.3},
    ),
    "Euler": ("euler_momentum", "nesterov_momentum", {"beta": 0.6, "lookahead": 0.4, "step": 0.3, "nu": 1.2}),
}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", EQUAL)
def test_the_methods_are_each_others_special_cases(name, steps):
    one, other = (find_algorithm(method)(T, X, steps, **constants) for method, constants in EQUAL[name])
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("P", [identity, torch.tanh])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", SPLIT_EQUAL)
def test_split_methods_are_the_method_on_half_steps_or_on_a_sum(name, steps, P):
    """Lie-Trotter: twice as many steps, whose operators alternate. Euler: T = A + M - id."""
    method, whole, constants = SPLIT_EQUAL[name]
    split = find_algorithm(method)(T, S, X, steps, P=P, **constants)
    operator, length = (in_turn(T, S), 2 * steps) if "Lie" in name else (lambda x: T(x) + S(x) - x, steps)
    wanted = find_algorithm(whole)(operator, X, length, P=P, **constants)
    torch.testing.assert_close(split, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("P", [identity, torch.tanh])
def test_polyaks_momentum_has_no_lookahead(P):
    split = find_algorithm("lie_trotter_momentum")(T, S, X, 5, beta=0.6, step=0.3, lookahead=0.0, P=P)
    wanted = find_algorithm("momentum")(in_turn(T, S), X, 10, beta=0.6, step=0.3, P=P)
    torch.testing.assert_close(split, wanted, rtol=1e-13, atol=1e-13)


def test_triple_momentum_is_a_setting():
    """Its z_k, before the last extrapolation; a, b and c as in ``triple_momentum``."""
    for steps in (1, 2, 6):
        a, b, c, d = 1 + r, r**2 / (2 - r), r**2 / ((1 + r) * (2 - r)), r**2 / (1 - r**2)
        z = [
            find_algorithm("nesterov_momentum")(T, X, k, beta=b, lookahead=c, step=a) if k else X
            for k in (steps - 1, steps)
        ]
        wanted = find_algorithm("triple_momentum")(T, X, steps, **TRIPLE)
        torch.testing.assert_close(z[1] + d * (z[1] - z[0]), wanted, rtol=1e-13, atol=1e-13)


# P in networks


@pytest.mark.parametrize("layer", ["basic", "preact_basic", "plain"])
@pytest.mark.parametrize("name", ALONE)
def test_no_activation_gets_onto_the_velocity(name, layer):
    model = build(algorithm=name, layer=layer)
    assert all(set(program.start.operators) == {"T"} for program in model.programs)
    model(random_images())
    assert suitable_layer(find_algorithm(name)) == "preact_basic"


@pytest.mark.parametrize("layer", ["preact_basic", "basic"])
@pytest.mark.parametrize("name", ALONE)
def test_at_the_ancestor_it_is_gradient_descent(name, layer):
    """With basic layers, gradient descent's own P (its ReLU) is left out: the velocity's P is none."""
    options = {"layer": layer, "dtype": torch.float64, "blocks": [4], "widths": [4]}
    model = build(algorithm=name, **options)
    (stage,) = unrolled_in(model).values()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    wanted = x
    for branch in stage.served_by("T").values():
        wanted = wanted + branch([wanted])
    torch.testing.assert_close(stage([x])[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", VELOCITY)
def test_a_norm_of_the_velocity_is_only_there_if_asked_for(name):
    options = {"with_P": True, "layer": "vit_half", "tokens": True}
    (without,), (with_norm,) = (design(name, [3], velocity_norm=norm, **options) for norm in (False, True))
    calls = 6 if name == "lie_trotter_momentum" else 3
    assert "P" not in without.start.operators and len(with_norm.start.calls("P")) == calls
    assert with_norm.start.readings == {**without.start.readings, "P": "map"}
    assert {*without.start.readings.values()} == {"residual"}


@pytest.mark.parametrize("name", [name for name in [*EVERY, *SPLIT] if name not in VELOCITY])
def test_methods_without_a_velocity_refuse_its_norm(name):
    with pytest.raises(ModelError, match=f"velocity_norm=true does not go with {name}, .* take .*momentum"):
        design(name, [2], with_P=False, layer="vit_half", tokens=True, velocity_norm=True)


def test_a_declared_velocity_needs_its_operator():
    def forgotten(T: Operator, x: Iterate, steps: int) -> Iterate:
        return T(x)

    with pytest.raises(AlgorithmError, match=r"forgotten: network.velocity is about an optional P; add P: Operator ="):
        Algorithm(forgotten, network={"velocity": True})


# attention and MLP as operators of their own


def own_split(A: Operator, M: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(M(A(x_k)))"""
    for _ in range(steps):
        x = P(M(A(x)))
    return x


@pytest.mark.parametrize("layer", [None, "basic", "plain", "dense"])
@pytest.mark.parametrize("method", [*SPLIT, own_split], ids=label)
def test_image_networks_refuse_attention_and_mlp(method, layer):
    with pytest.raises(ModelError, match=r"has attention A and an MLP M as operators; layer=.* take a transformer"):
        create_model(method, **SMALL, layer=layer)


def test_attention_and_mlp_are_read_alike():
    options = {"with_P": True, "layer": "vit_half", "tokens": True}
    (stage,) = design(own_split, [2], **options)
    assert stage.start.readings == {"A": "residual", "M": "residual", "P": "map"}
    (stage,) = design(own_split, [2], **options, reading={"A": "residual"})
    assert stage.start.readings == {"A": "residual", "M": "map", "P": "map"}
    (stage,) = design("ista", [2], **options)
    assert stage.start.readings == {"G": "residual", "P": "map"}


# transformers


def transformer(name, **options):
    torch.manual_seed(0)
    sizes = {"depth": 3, "embed_dim": 8, "num_heads": 2, "img_size": 8, "patch_size": 4, "num_classes": 3}
    return create_model(name, **{"layer": "vit_half", **sizes, **options}).double().eval()


@pytest.mark.parametrize("layer", TOKEN_FAMILIES)
@pytest.mark.parametrize("name", VELOCITY)
def test_transformers_have_a_norm_of_the_velocity_if_asked(name, layer):
    """One a call of the branches, and nothing else is new."""
    without, normed = (transformer(name, layer=layer, velocity_norm=norm) for norm in (False, True))
    program = normed.programs[0].start
    calls = len(program.calls(program.main)) * (2 if name == "lie_trotter_momentum" else 1)
    norms = normed.stages[0].unrolled.served_by("P").values()
    assert len(norms) == calls and all(isinstance(one, nn.LayerNorm) for one in norms)
    more = sum(p.numel() for p in normed.parameters()) - sum(p.numel() for p in without.parameters())
    sums = [sum(len(row.terms) for row in one.programs[0].start.combines) for one in (normed, without)]
    assert more == calls * 2 * 8 + sums[0] - sums[1]
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    normed(images).square().sum().backward()
    assert all(p.grad is not None for p in normed.parameters())
    assert not torch.allclose(normed(images), without(images))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", VELOCITY)
def test_no_coefficient_is_dead_behind_a_norm_of_the_velocity(name, norm):
    """Behind it the size of a sum is lost, and every weight still turns it."""
    model = transformer(name, velocity_norm=norm, coefficient_init="algorithm")
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        before = model(images)
        for row, weight in weights_of_sums(model):
            weight *= 1.1
            assert (model(images) - before).norm() > 1e-5 * before.norm(), row
            weight /= 1.1


@pytest.mark.parametrize("norm", [False, True])
def test_yuriiformer_is_nesterovs_momentum_on_half_steps(norm):
    split, whole = (transformer(name, velocity_norm=norm) for name in ("yuriiformer", "nesterov_momentum"))
    assert len([*split.parameters()]) == len([*whole.parameters()])
    for module, other in zip(by_calls(split), by_calls(whole), strict=True):
        other.load_state_dict(module.state_dict())
    shared = {name: value for name, value in split.state_dict().items() if not name.startswith("stages")}
    whole.load_state_dict(shared, strict=False)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(split(images), whole(images))


def by_calls(model):
    (stage,) = unrolled_in(model).values()
    return [stage.body.get_submodule(stage.layers[call.value]) for call in stage.program.applies]


@pytest.mark.parametrize("layer", TOKEN_FAMILIES)
def test_a_method_of_ones_own_has_attention_and_mlp(layer):
    model = transformer(own_split, layer=layer)
    (stage,) = unrolled_in(model).values()
    for name, kind in (("A", Attention), ("M", Mlp)):
        layers = stage.served_by(name).values()
        assert len(layers) == 3 and all(any(isinstance(one, kind) for one in layer.modules()) for layer in layers)
    assert transformer("nesterov").programs[0].start.readings == {"T": "residual"}


def normed_and_plain():
    both = {"A": "residual", "M": "residual"}
    normed = optnet.trace("yuriiformer", steps=2, operators=["A", "M", "P"], reading=both)
    return normed, optnet.trace("yuriiformer", steps=2)


def test_analysis_takes_the_norm_and_the_mlp_as_the_identity():
    normed, plain = normed_and_plain()
    assert analysis.canonical_table(normed) == pytest.approx(analysis.canonical_table(plain), abs=1e-12)
    assert [identity_note(one) for one in (normed, plain, optnet.trace("momentum", steps=2))] == [
        "M and P are taken as the identity.", "M is taken as the identity.", "",
    ]  # fmt: skip


@pytest.mark.slow
def test_certificates_take_them_so_too():
    found, wanted = map(analysis.certify, normed_and_plain())
    assert found.consistent and found.stability.stable and found.notes[0] == "M and P are taken as the identity."
    assert found.row("learned").measured == pytest.approx(wanted.row("learned").measured)


def test_only_methods_with_a_velocity_make_transformers_with_its_norm():
    with pytest.raises(ModelError, match="velocity_norm=true does not go with nesterov, which has no velocity; take"):
        transformer("nesterov", velocity_norm=True)


def test_a_start_at_the_number_0_learns_constants():
    """0 times a constant is 0, so the velocity is no iterate before the first step."""
    network = optnet.unroll("momentum", steps=3, operators={"T": nn.Tanh()}, coefficients="constants", beta=0.4)
    assert {name: round(value.item(), 6) for name, value in network.constants().items()} == {"beta": 0.4, "step": 1.0}


MACARON = """
from optnet import Iterate, Operator

def macaron(A: Operator, M: Operator, x: Iterate, steps: int) -> Iterate:
    for _ in range(steps):
        x = (x + M(x)) / 2
        x = A(x)
        x = (x + M(x)) / 2
    return x
"""
TRAINED = {
    "algorithm=mine.py:macaron": {"A": 2, "M": 4},
    "algorithm=yuriiformer model.velocity_norm=true": {"A": 2, "M": 2, "P": 4},
}


@pytest.mark.parametrize("request_", some(TRAINED, "algorithm=mine.py:macaron"))
def test_they_train_from_the_command_line(request_, tmp_path, monkeypatch):
    """Also a method with attention and an MLP of one's own, from a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MACARON)
    small = ("model.kwargs={depth:2,embed_dim:24}", "epochs=1", "limit_batches=2", "device=cpu", "monitor=none")
    assert call(monkeypatch, "train", "model=hbvit_cifar", *request_.split(), "data=digits", *small) == 0
    (folder,) = tmp_path.glob("runs/*/*")
    program = optnet.load(folder).programs[0].start
    assert {name: len(program.calls(name)) for name in program.operators} == TRAINED[request_]
