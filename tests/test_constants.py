"""Learned constants: the network is the algorithm with these constants, whatever its weights make of them."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from helpers import crossed

import optnet
from optnet import Iterate, ModelError, Operator
from optnet.language.expressions import Tape
from optnet.networks.design import StageProgram, design
from optnet.networks.formulas import with_formulas
from optnet.networks.rules import table
from optnet.networks.unrolled import coefficient_names

FACTORS = ("q", "rho", "kappa")
"""The constants that weights are not affine in."""
SETTINGS = {
    "heavy_ball": {}, "heavy_ball_convex": {}, "momentum_residual": {}, "linear_multistep": {}, "adams_bashforth": {},
    "krasnoselskii_mann": {}, "merge_and_run": {"step": 0.5, "earlier": 0.125}, "nesterov": {"beta": 0.25},
    "nesterov_dense": {"alpha": 1.0, "beta": 0.25}, "admm": {}, "triple_momentum": {}, "chebyshev": {},
    "information_theoretic_exact": {}, "splitting_admm": {"rho": 0.75}, "pdhg": {}, "douglas_rachford": {},
    "momentum": {}, "nesterov_momentum": {"lookahead": 0.5}, "lie_trotter_momentum": {}, "euler_momentum": {},
}  # fmt: skip


def accelerated(T: Operator, x: Iterate, steps: int, *, kappa: float = 9.0, scale: float = 0.9) -> Iterate:
    """Nesterov's method for strongly convex functions: beta = (sqrt kappa - 1) / (sqrt kappa + 1)."""
    root = kappa**0.5
    previous = x
    for _ in range(steps):
        y = x + (root - 1) / (1 + root) * (x - previous)
        x, previous = scale * T(y), x
    return x


def tanhs(method):
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for name, needed in method.operators.items():
        if needed:
            layers[name] = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()).double()
            layers[name][0].weight.data = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return layers


def change(network, changes):
    """Changes the learned constants by these amounts; returns the constants."""
    for name, parameter in network.named_parameters():
        if name in coefficient_names(network):
            block = network.get_submodule(name.rpartition(".")[0])
            parameter.data[:] = torch.tensor([changes[key] for key in block.names])
    return {key: value.item() for key, value in network.constants().items()}


@pytest.mark.parametrize("algorithm, reading", crossed([*SETTINGS, accelerated], ["map", "residual"]))
def test_learned_constants_are_those_of_the_algorithm(algorithm, reading):
    """The network with moved constants is the network of the algorithm with these constants."""
    method = optnet.find_algorithm(algorithm)
    given = SETTINGS.get(method.name, {})
    before = {name: value for name, value in {**method.constants, **given}.items() if type(value) is float}
    before.pop("relax", None) if method.name == "splitting_admm" else None  # 1 has other terms than 1.1
    options = {"steps": 4, "operators": tanhs(method), "reading": reading, "dtype": torch.float64}
    network = optnet.unroll(method, coefficients="constants", constants=given, **options)
    points = [torch.randn(2, 3, dtype=torch.float64) for _ in method.starts]
    for size in (0.0, 0.3, -0.4):
        changes = {key: size * (1 + i) / 2 for i, key in enumerate(before)}
        now = change(network, changes)
        for key, value in before.items():
            expected = value * math.exp(changes[key]) if key in FACTORS else value + changes[key]
            assert now[key] == pytest.approx(expected)
        other = optnet.unroll(method, coefficients="fixed", constants={**given, **now}, **options)
        for ours, theirs in zip(network(*points), other(*points), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    network(*points)[0].square().sum().backward()
    for name in coefficient_names(network):
        assert (network.get_parameter(name).grad != 0).all(), name


def test_a_constant_an_iteration():
    program = optnet.trace("heavy_ball", steps=4, reading="residual", constants={"beta": 0.5, "step": 1.0})
    formulas = with_formulas(
        optnet.find_algorithm("heavy_ball"), program, {"beta": 0.5}, {"reading": "residual"}, per_iteration=True
    )
    betas = table("iteration_constants", program, formulas=formulas)
    assert [block.names for block in betas.blocks] == [  # x_0 - x_{-1} is 0: the step alone has an effect
        ["step of iteration 0"],
        *([f"beta of iteration {k}", f"step of iteration {k}"] for k in (1, 2, 3)),
    ]
    for k, block in enumerate(betas.blocks[1:], 1):
        block.weights.data[0] = 0.1 * k
    for k, found in enumerate(betas()):
        beta = 0.5 + 0.1 * k
        assert sorted(found.tolist()) == pytest.approx(sorted([1.0, 1 + beta, -beta] if k else [1.0, 1.0]))


def test_a_penalty_an_iteration():
    """ADMM with a rho of its own in each iteration, written out."""
    layer = torch.nn.Linear(3, 3).double()
    network = optnet.unroll("admm", steps=5, operators={"T": layer}, coefficients="iteration_constants", rho=0.5)
    rhos = [*change(network, {f"rho of iteration {k}": 0.2 * k - 0.3 for k in range(5)}).values()]
    assert rhos == pytest.approx([0.5 * math.exp(0.2 * k - 0.3) for k in range(5)])
    start = torch.randn(2, 3, dtype=torch.float64)
    prime = x = start
    u = torch.zeros_like(x)
    for rho in rhos:
        prime = (layer(prime) + rho * (x - u)) / (1 + rho)
        x = (layer(x) + rho * (prime + u)) / (1 + rho)
        u = u + prime - x
    torch.testing.assert_close(network(start), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transition", ["restart", "project"])
@pytest.mark.parametrize("algorithm", ["heavy_ball", "admm"])
def test_formulas_go_through_json(algorithm, transition):
    stages = design(algorithm, [2, 3], with_P=True, layer="basic", transition=transition, per_iteration=False)
    for stage in stages:
        text = json.dumps(stage.to_json())
        again = StageProgram.from_json(json.loads(text))
        assert json.dumps(again.to_json()) == text
        ours, theirs = (table("constants", one.start, formulas=one.formulas).double() for one in (stage, again))
        for module in (ours, theirs):
            for parameter in module.parameters():
                parameter.data.fill_(0.3)
        for one, other in zip(ours(), theirs(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert any(row.weights != tuple(now.tolist()) for row, now in zip(stage.start.combines, ours(), strict=False))


@pytest.mark.parametrize("rule, per_channel", crossed(["constants", "iteration_constants"], [False, True]))
def test_pytorchs_tools_accept_formulas(rule, per_channel):
    network = optnet.unroll(
        "admm", steps=3, operators={"T": torch.nn.Conv2d(2, 2, 1)}, reading="residual", coefficients=rule,
        per_channel=per_channel, channels=2,
    )  # fmt: skip
    for name in coefficient_names(network):
        network.get_parameter(name).data.uniform_(-0.2, 0.2)
    x = torch.randn(2, 2, 3, 3)
    with torch.no_grad():
        expected = network(x)
        for made in (
            torch.jit.script(copy.deepcopy(network)), torch.jit.trace(network, x),
            torch.export.export(network, (x,)).module(), torch.compile(network, backend="eager", fullgraph=True),
            pickle.loads(pickle.dumps(network)),
        ):  # fmt: skip
            torch.testing.assert_close(made(x), expected)


DAMAGED = [
    ("steps", [["div", 0, 0.0]]), ("steps", [["exec", 0, 1.0]]), ("steps", [["add", 7, 1.0]]), ("steps", 3),
    ("places", [99] * 50), ("places", []), ("constants", {"rho": "x"}), ("constants", None),
]  # fmt: skip


@pytest.mark.parametrize("entry, value", DAMAGED, ids=str)
def test_damaged_formulas_are_refused(entry, value):
    (stage,) = design("admm", [2], with_P=True, layer="basic", per_iteration=False)
    content = stage.to_json()
    content["formulas"][entry] = value
    with pytest.raises(ModelError, match="no formulas of admm") as error:
        StageProgram.from_json(content)
    assert "\n" not in str(error.value)


def by_root(T: Operator, x: Iterate, steps: int, *, q: float = 0.25) -> Iterate:
    for _ in range(steps):
        x = math.sqrt(q) * T(x) + (1 - math.sqrt(q)) * x
    return x


def by_size(T: Operator, x: Iterate, steps: int, *, beta: float = 0.25) -> Iterate:
    for _ in range(steps):
        x = T(x) + (beta if beta > 0.2 else 2 * beta) * x
    return x


def by_numpy(T: Operator, x: Iterate, steps: int, *, beta: float = 0.25) -> Iterate:
    for share in np.linspace(beta, 1, steps):
        x = T(x) + float(share) * x
    return x


def by_count(T: Operator, x: Iterate, steps: int, *, times: int = 2) -> Iterate:
    for _ in range(steps * times):
        x = 0.5 * T(x) + 0.5 * x
    return x


def by_step(T: Operator, x: Iterate, steps: int, *, q: float = 0.0) -> Iterate:
    for _ in range(steps):
        x = T(x) + (1 + q**0.5) * x
    return x


CANNOT = [
    ("halpern", "halpern has no constant to learn"), (by_count, "no constant to learn"),
    (by_root, r"by_root: its weights follow from q .* q \*\* 0.5"),
    (by_numpy, "by_numpy: its weights follow from beta"),
    (by_size, "by_size: it asks whether beta is larger or smaller"), (by_step, "not affine in q.*value 0"),
    ("gradient_descent", "which terms its sums have depends on step"),
]  # fmt: skip


@pytest.mark.parametrize("rule", ["constants", "iteration_constants"])
@pytest.mark.parametrize("algorithm, why", CANNOT)
def test_constants_that_cannot_be_learned_are_named(algorithm, why, rule):
    with pytest.raises(ModelError, match=why) as error:
        optnet.create_model(algorithm, coefficients=rule, reading="map")
    assert "\n" not in str(error.value) and "take consistent" in str(error.value)


def test_a_tape_is_arithmetic():
    """Every operation on expressions, in both orders, at other values than those it was written at."""
    tape = Tape({"a": 0.5, "b": 2.0})
    a, b = tape.inputs().values()

    def made(a, b):
        one = (a + b) * 3 - a / b + 2 / a - (1 - b) ** 2 + b**a + 2**b
        return -one + (+a) * one - 1 / (b + one), 1 + a

    found = made(a, b)
    assert [float(one) for one in found] == pytest.approx([float(one) for one in made(0.5, 2.0)])
    values = tape.evaluate({"a": 1.5, "b": 3.0})
    assert [values[one.place] for one in found] == pytest.approx(made(1.5, 3.0))
    short, weights = tape.cut([found[1], 4.0])
    assert len(short.steps) == 1 < len(tape.steps) and weights[1] == 4.0
    assert sum([a, b]) != 2.5 and a != 0.5 and len({a, b, a}) == 2 and bool(a) and not bool(a.zero())
