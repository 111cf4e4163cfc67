"""What an algorithm's signature and constants may be, and what is said of the rest."""

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Optional

import numpy as np
import pytest
import torch
from helpers import FEATURES, layer
from torch import nn

from optnet import AlgorithmError, Iterate, Operator, Program, ProgramError, TraceError, analysis, trace, unroll
from optnet.language import symbols
from optnet.language.declaration import Algorithm

# the form of the parameters


def several(*Ts: Operator, x: Iterate, steps: int):
    return Ts[0](x)


def starts(T: Operator, *xs: Iterate, steps: int):
    return T(xs[0])


def keywords(T: Operator, x: Iterate, steps: int, **more: float):
    return T(x)


def positional(T: Operator, /, x: Iterate, steps: int):
    return T(x)


def positional_steps(T: Operator, x: Iterate, steps: int, /):
    return T(x)


def optional(T: Operator, x: Iterate, steps: int, *, P: Optional[Operator] = None):  # noqa: UP045
    return T(x)


def union(T: Operator, x: Iterate, steps: int, *, P: Operator | None = None):
    return T(x)


def listed(T: Operator, x: list[Iterate], steps: int):
    return T(x[0])


def annotated(T: Annotated[Operator, "the layer"], x: Iterate, steps: int):
    return T(x)


def quoted(T: "Operator", x: "Iterate | None", steps: int):
    return T(x)


@pytest.mark.parametrize("function, rule", [
    (several, "'*Ts' cannot be traced; name every operator"),
    (starts, "'*xs' cannot be traced; name every operator"),
    (keywords, "'**more' cannot be traced; name every operator"),
    (positional, "'T' is positional-only; remove the '/'"),
    (positional_steps, "is positional-only; remove the '/'"),
    (optional, "write Operator alone, for one operator, as in P: Operator = identity"),
    (union, "write Operator alone, for one operator, as in P: Operator = identity"),
    (listed, "write Iterate alone, for one starting point, as in x: Iterate"),
    (annotated, "write Operator alone"),
    (quoted, "write Iterate alone"),
])  # fmt: skip
def test_the_rule_is_said(function, rule):
    with pytest.raises(AlgorithmError, match=re.escape(rule)) as error:
        trace(function, steps=1)
    assert function.__name__ in str(error.value) and "\n" not in str(error.value)


def at_zero(T: Operator, x: Iterate, steps: int):
    return T(x) + T(0)


def test_an_operator_at_a_number_is_refused_with_the_rule():
    with pytest.raises(TraceError, match=r"at_zero: T takes exactly one iterate, not \(int\); write the point 0 as"):
        trace(at_zero, steps=1)


# constants


def scheduled(T: Operator, x: Iterate, steps: int, *, betas: list = [0.5, 0.25], shift: tuple = (1, 0)):  # noqa: B006
    for k in range(steps):
        x = T(x) + betas[k % len(betas)] * x + shift[0] * 0
    return x


LISTS = [
    [0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), [np.float64(0.1), Fraction(1, 5)],
    torch.tensor([0.1, 0.2], dtype=torch.float64),
]  # fmt: skip


@pytest.mark.parametrize("betas", LISTS, ids=lambda betas: type(betas).__name__)
def test_a_constant_whose_default_is_a_list_can_be_given(betas):
    program = trace(scheduled, steps=3, constants={"betas": betas})
    assert [row.weights[0] for row in program.combines] == [0.1, 0.2, 0.1]
    assert program.constants == {"betas": [0.1, 0.2]} and Program.from_json(program.to_json()) == program
    assert unroll(scheduled, steps=2, operators={"T": nn.Identity()}, betas=betas).program.constants["betas"] == [
        0.1,
        0.2,
    ]
    assert analysis.errors(scheduled, 0.1, 1.0, 2, constants={"betas": betas})


@pytest.mark.parametrize("betas", [0.5, "0.5", None, [[0.5]], [None], [math.inf], [np.nan], {"a": 1}, [1j]], ids=str)
def test_what_is_no_list_of_numbers_is_refused(betas):
    with pytest.raises(AlgorithmError, match="betas") as error:
        trace(scheduled, steps=2, constants={"betas": betas})
    assert "\n" not in str(error.value)


NUMBERS = [
    np.float64(0.5), np.float32(0.5), np.float16(0.5), Fraction(1, 2), Decimal("0.5"), np.array(0.5), torch.tensor(0.5),
]  # fmt: skip


def relaxed(T: Operator, x: Iterate, steps: int, *, beta: float = 0.9, count: int = 1, on: bool = True):
    for _ in range(count):
        x = T(x) + beta * x if on else T(x)
    return x


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: type(number).__name__)
def test_numbers_of_other_libraries_are_numbers(number):
    program = trace(relaxed, steps=1, constants={"beta": number, "count": np.int64(2), "on": np.bool_(True)})
    assert program.constants == {"beta": 0.5, "count": 2, "on": True}
    assert list(map(type, program.constants.values())) == [float, int, bool]
    assert [row.weights for row in program.combines] == [(0.5, 1.0)] * 2


@pytest.mark.parametrize(
    "number", [np.float64(0.5), np.float32(0.5), np.int64(2), Fraction(1, 2), Decimal("0.5")], ids=repr
)
def test_numbers_of_other_libraries_multiply_iterates(number):
    def method(T: Operator, x: Iterate, steps: int):
        return number * T(x) - T(T(x)) * number + T(T(T(x))) / number + sum([np.int64(0) + x, number * 0 + x])

    n = float(number)
    assert trace(method, steps=1).weights() == {
        ("x1", "T0"): n, ("x1", "T2"): -n, ("x1", "T5"): 1 / n, ("x1", "x"): 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("given", [{"beta": 10**400}, {"beta": Fraction(10**400)}, {"beta": Decimal("1e999")},
                                   {"beta": np.float64("nan")}, {"beta": np.inf}, {"beta": 1j}, {"beta": np.ones(2)},
                                   {"count": 1.5}, {"on": np.float64(1)}], ids=str)  # fmt: skip
def test_constants_that_are_no_such_numbers_are_named(given):
    (name,) = given
    with pytest.raises(AlgorithmError, match=f"relaxed: {name}=") as error:
        trace(relaxed, steps=1, constants=given)
    assert "\n" not in str(error.value)


OVERFLOWS = {
    "product": lambda T, x, huge: huge * (huge * T(x)) + x,
    "quotient": lambda T, x, huge: T(x / (1 / huge)) * 1.0 + huge * (x / (1 / huge)),
    "power": lambda T, x, huge: huge**2 * T(x),
    "number": lambda T, x, huge: huge * huge * T(x),
    "sum": lambda T, x, huge: huge * 1e107 * T(x) + 1.7 * (1e108 * huge * x) + 1.7 * (1e108 * huge * x),
}


@pytest.mark.parametrize("kind", OVERFLOWS)
def test_an_overflow_names_the_constant(kind):
    def method(T: Operator, x: Iterate, steps: int, *, huge: float = 1.0):
        return OVERFLOWS[kind](T, x, huge)

    with pytest.raises(AlgorithmError, match=r"huge=1e\+200") as error:
        trace(method, steps=1, constants={"huge": 1e200})
    assert "\n" not in str(error.value) and not re.search(r"\b_\d", str(error.value))


# constants that are called like options


def clashing(name, default=0.5):
    text = (
        f"def made(T: Operator, x: Iterate, steps: int, *, {name}={default!r}):\n"
        f"    return T(x) + (0.5 if isinstance({name}, (str, bool)) else {name}) * x\n"
    )
    space = {"Operator": Operator, "Iterate": Iterate}
    exec(text, space)
    return Algorithm(space["made"])


@pytest.mark.parametrize("name, default, given", [
    ("channels", 3, 5), ("per_channel", False, True), ("packed", False, True), ("device", "a", "cpu"),
    ("memory", "a", "checkpoint"), ("reading", "a", "residual"), ("coefficients", "a", "fixed"),
])  # fmt: skip
def test_a_constant_that_is_given_as_an_option_is_named(name, default, given):
    options = {"steps": 1, "operators": {"T": nn.Identity()}, name: given, **({"channels": 4} if given is True else {})}
    with pytest.raises(AlgorithmError, match=f"has a constant '{name}'.*constants="):
        unroll(clashing(name, default), **options)
    network = unroll(clashing(name, default), **options, constants={name: default})
    assert network.program.constants == {name: default}


@pytest.mark.parametrize("name, given", [
    ("dtype", torch.float64), ("device", "cpu"), ("memory", "keep"), ("textbook", None), ("coefficients", "fixed"),
    ("reading", "residual"),
])  # fmt: skip
def test_an_option_that_the_constant_cannot_be_stays_the_option(name, given):
    network = unroll(clashing(name), steps=1, operators={"T": nn.Identity()}, **{name: given})
    assert 0.5 in [weight % 1 for weight in network.program.weights().values()] and not network.program.constants


def test_trace_names_a_clash_too():
    with pytest.raises(AlgorithmError, match="has a constant 'reading'"):
        trace(clashing("reading", "a"), steps=1, reading="residual")


# operators that some steps do not reach


def in_turn(T1: Operator, T2: Operator, T3: Operator, x: Iterate, steps: int):
    for k in range(steps):
        x = 0.5 * x + 0.5 * (T1, T2, T3)[k % 3](x)
    return x


@pytest.mark.parametrize("steps, missed", [(1, "T2, T3"), (2, "T3")])
def test_the_steps_that_reach_every_operator_are_said(steps, missed):
    with pytest.raises(AlgorithmError, match=f"steps={steps} does not depend on.*{missed}; take at least steps=3"):
        trace(in_turn, steps=steps)
    operators = dict.fromkeys(("T1", "T2", "T3"), nn.Identity())
    with pytest.raises(AlgorithmError, match="take at least steps=3"):
        unroll(in_turn, steps=steps, operators=operators)
    assert trace(in_turn, steps=3).operators == ("T1", "T2", "T3")


def test_an_operator_that_no_steps_reach_is_the_texts_fault():
    def forgets(T: Operator, S: Operator, x: Iterate, steps: int):
        S(x)
        return T(x)

    with pytest.raises(AlgorithmError, match=r"does not depend on its operator S; call S\(x\)"):
        trace(forgets, steps=1)


def test_analysis_runs_where_one_step_does_not_reach_every_operator():
    """T2 and T3 are the identity: every third step is (x + T1(x)) / 2, whose factor at lambda is 1 - lambda / 2."""
    errors = analysis.errors(in_turn, 0.1, 1.0, 4)
    assert errors == pytest.approx([0.95, 0.95, 0.95, 0.95**2])
    assert analysis.convergence_factor(in_turn, 0.1, 1.0) == pytest.approx(0.95 ** (1 / 3))
    assert analysis.diagnose(trace(in_turn, steps=6)).consistent


# coefficients and layers


@pytest.mark.parametrize("made", ["shared", "factory"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_coefficients_take_the_layers_dtype(dtype, made):
    T = layer("tanh", dtype=torch.float64).to(dtype)
    network = unroll("heavy_ball", steps=2, operators={"T": T if made == "shared" else lambda call: T})
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert network(torch.randn(2, FEATURES, dtype=dtype)).dtype == dtype
    values = torch.tensor([-0.9, 0.9, 1.0], dtype=dtype)
    assert torch.allclose(network.body.coefficients.x2, values, rtol=1e-14, atol=0)


def test_coefficients_of_layers_of_several_dtypes_take_the_widest_and_no_digit_is_lost():
    def mixed(T: Operator, S: Operator, x: Iterate, steps: int):
        return T(x) + S(x) / 3

    operators = {"T": nn.Linear(2, 2), "S": nn.Linear(2, 2, dtype=torch.float64)}
    network = unroll(mixed, steps=1, operators=operators)
    assert network.body.coefficients.x1.dtype == torch.float64 and network.body.coefficients.x1[1].item() == 1 / 3
    asked = unroll(mixed, steps=1, operators=operators, dtype=torch.float32)
    assert asked.body.coefficients.x1.dtype == torch.float32
    bare = unroll("heavy_ball", steps=2, operators={"T": nn.Identity()})
    assert {parameter.dtype for parameter in bare.parameters()} == {torch.get_default_dtype()}
    meta = unroll("heavy_ball", steps=2, operators={"T": nn.Linear(2, 2, device="meta")})
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}


# sizes


def sums(count):
    one = '{"value": "x%d", "terms": ["x%d", "x"], "weights": [0.5, 0.5]}'
    rows = ", ".join(
        ['{"value": "x0", "call": ["T", 0, 0], "argument": "x"}', *(one % (k, k - 1) for k in range(1, count))]
    )
    return (
        '{"format": 2, "name": "long", "main": "T", "iterations": 1, "starts": ["x"], "several": false, '
        f'"readings": {{}}, "constants": {{}}, "results": ["x{count - 1}"], "instructions": [{rows}]}}'
    )


NESTED = '{"format": 2, "name": ' + "[" * 100_000 + "]" * 100_000 + "}"
INFINITE = (
    sums(2).replace('"constants": {}', '"constants": {"a": 1e999}').replace('"iterations": 1', '"iterations": 1e999')
)


@pytest.mark.parametrize("text, why", [
    ("[" * 100_000, "not the JSON of a program"), (NESTED, "not the JSON of a program"),
    ("[" * 100_000 + "]" * 100_000, "not the JSON of a program"), ('{"a":' * 100_000, "not the JSON of a program"),
    (300_000, "more than 100,000 instructions"), (INFINITE, "not the JSON of a program"),
    (sums(2).replace('"iterations": 1', '"iterations": 1000000000000'), "1,000,000,000,000 iterations are too many"),
    (sums(2).replace('"iterations": 1', '"iterations": ' + "1" * 5000), "not the JSON of a program"),
], ids=["open", "nested", "lists", "tables", "300,000 sums", "infinite", "iterations", "5000 digits"])  # fmt: skip
@pytest.mark.sampled(3)
def test_programs_that_are_too_large_or_too_deep_are_refused(text, why):
    with pytest.raises(ProgramError, match=why) as error:
        Program.from_json(sums(text) if isinstance(text, int) else text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def many_sums(T: Operator, x: Iterate, steps: int):
    y = T(x)
    for _ in range(300_000):
        y = 0.5 * y + 0.5 * x
    return y


@pytest.mark.slow
def test_a_text_of_many_sums_ends():
    with pytest.raises(AlgorithmError, match=r"many_sums: it has more than 500,000 operations; take fewer steps"):
        trace(many_sums, steps=1)


def test_a_text_with_too_many_operations_or_steps_is_refused(monkeypatch):
    monkeypatch.setattr(symbols, "MOST", 1000)
    for method, steps in ((many_sums, 1), ("gradient_descent", 10**12), ("nesterov_dense", 100)):
        with pytest.raises(AlgorithmError, match="more than 1,000 operations; take fewer steps"):
            trace(method, steps=steps)
    with pytest.raises(ProgramError, match="too many for a module, which has at most 20,000; take fewer steps"):
        unroll(Program.from_json(sums(20_001)), operators={"T": nn.Identity()})
