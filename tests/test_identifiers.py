"""Any Python identifier may name an operator, a start, a constant or a state: the network is the algorithm."""

import copy
import itertools
import unicodedata

import pytest
import torch
from helpers import FEATURES, crossed, layer

from optnet import Iterate, Operator, Program, coefficients, trace, unroll
from optnet.language.declaration import Algorithm

ROLES = ["tied operator", "untied operator", "start", "second start", "constant", "state"]
NAMES = [
    "forward", "half", "to", "train", "graph", "code", "self", "torch", "coefficients", "shortcut_x", "type", "match",
    "case", "_", "None_", "True_", "T", "T_1", "T_1_1", "T0", "x0", "x1", "z", "y1", "v1", "super", "modules",
    "parameters", "training", "meta", "body", "add_module", "__init__", "__class__", "__dict__", "__name__", "__call__",
    "__T", "_modules", "_parameters", "_buffers", "_code", "_graph", "_0", "_1", "Äpfel", "λ", "μ", "µ", "ℵ", "ﬁ", "数",
    "inf", "nan", "device", "fx", "pytree", "NoneType", "starts", "layers", "rows", "print", "list", "dict", "object",
    "Tensor", "getitem", "reshape", "unbind", "addcmul", "mul", "math", "operator", "builtins", "typing", "args",
    "kwargs", "cls", "program", "textbook", "state_dict", "apply", "cuda", "cpu", "float_", "double", "eval",
    "zero_grad", "extra_repr", "recompile", "input", "output", "placeholder", "call_module", "operators", "reading",
    "channels",
]  # fmt: skip


def program_of(role, name):
    """A method with two states, one of whose parts has the name; the other parts have names of their own."""
    parts = {"operator": "O_", "start": "p_", "second start": "q_", "constant": "c_", "state": "s_"}
    parts[role.split()[-1] if "operator" in role else role] = name
    O, p, q, c, s = parts.values()  # noqa: E741
    text = (
        f"def made({O}: Operator, {p}: Iterate, {q}: Iterate, steps: int, *, {c}: float = 0.5):\n"
        f"    {s} = {q}\n    for iteration_ in range(steps):\n"
        f"        {s}, {p} = {p}, {c} * {p} + 0.25 * {O}({p}) + 0.25 * {O}({s}) + 0.1 * {q}\n    return {p}\n"
    )
    space = {"Operator": Operator, "Iterate": Iterate}
    exec(text, space)
    return Algorithm(space["made"]), parts["operator"], parts["constant"]


@pytest.mark.parametrize("role, name, learned", crossed(ROLES, NAMES, ["learnable", "fixed"], strength=1))
def test_any_identifier_may_name_anything(role, name, learned):
    method, operator, constant = program_of(role, name)
    shared = layer("tanh", 5)
    layers = [shared if role != "untied operator" else layer("tanh", 100 + k) for k in range(6)]
    given = shared if role != "untied operator" else lambda call: layer("tanh", 100 + call.index)
    network = unroll(method, steps=3, operators={operator: given}, coefficients=learned, constants={constant: 0.3})
    x, y = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    calls = itertools.count()
    wanted = method(lambda v: layers[next(calls)](v), x, y, steps=3, **{unicodedata.normalize("NFKC", constant): 0.3})
    assert torch.allclose(network(x, y), wanted, rtol=1e-12, atol=1e-12)
    again = copy.deepcopy(network)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, y), network(x, y)) and len(coefficients(network)) > 6
    program = network.program
    assert Program.from_json(program.to_json()) == program
    things = [
        *program.starts,
        *(one.value for one in program.instructions),
        *program.operators,
        *program.labels.values(),
    ]
    assert len(set(things)) == len(things)


@pytest.mark.parametrize("role, name", crossed(ROLES, ["self", "λ", "inf", "forward", "T_1", "__T"]))
@pytest.mark.sampled(2)
def test_export_takes_any_identifier(role, name):
    method, operator, _ = program_of(role, name)
    given = layer("tanh", 5) if role != "untied operator" else lambda call: layer("tanh", 100 + call.index)
    network = unroll(method, steps=2, operators={operator: given})
    x, y = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    assert torch.equal(torch.export.export(network, (x, y)).module()(x, y), network(x, y))
    assert torch.equal(torch.jit.script(network)(x, y), network(x, y))


def test_a_letter_of_several_forms_is_one_name():
    """Python reads the sign micro in a program as the Greek letter; a mapping's key keeps it."""

    def made(µ: Operator, x: Iterate, steps: int, *, ﬁ: float = 0.5):
        return µ(x) + ﬁ * x

    assert trace(made, steps=1, operators=["µ"], reading={"µ": "residual"}, constants={"ﬁ": 0.25}).weights() == {
        ("x1", "x"): 1.25, ("x1", "μ0"): 1.0,
    }  # fmt: skip
    network = unroll(made, steps=1, operators={"µ": torch.nn.Identity()}, constants={"ﬁ": 0.25})
    assert network(torch.ones(1, 2)).tolist() == [[1.25, 1.25]]


@pytest.mark.parametrize("tied", list(itertools.product([True, False], repeat=2)), ids=str)
def test_a_layer_a_call_beside_an_operator_of_its_name(tied):
    """T has the layers T_0, T_1, ..., and another operator is called T_1, T_0 or T_1_0."""
    for other in ("T_0", "T_1", "T_1_0", "T_0_"):
        text = (
            f"def made(T: Operator, {other}: Operator, x: Iterate, steps: int):\n    for _ in range(steps):\n"
            f"        x = 0.5 * T(x) + 0.25 * {other}(x)\n    return x\n"
        )
        space = {"Operator": Operator, "Iterate": Iterate}
        exec(text, space)
        layers = {
            name: [layer("tanh", 50 * seed + k * (not shared)) for k in range(3)]
            for seed, (name, shared) in enumerate(zip(("T", other), tied, strict=True))
        }
        given = {
            name: made[0] if shared else (lambda call, made=made: made[call.index])
            for (name, made), shared in zip(layers.items(), tied, strict=True)
        }
        x = torch.randn(2, FEATURES, dtype=torch.float64)
        wanted = x
        for k in range(3):
            one, two = (made[0 if shared else k] for made, shared in zip(layers.values(), tied, strict=True))
            wanted = 0.5 * one(wanted) + 0.25 * two(wanted)
        network = unroll(space["made"], steps=3, operators=given)
        assert torch.allclose(network(x), wanted, rtol=1e-12, atol=1e-12)
