"""Functions to programs: what becomes a value, what folds, what is refused."""

import math

import numpy as np
import pytest
import torch
from helpers import METHODS, names, required

import optnet
from optnet import AlgorithmError, Iterate, Operator, OperatorError, Program, ProgramError, TraceError, identity, trace
from optnet.algorithms.nesterov import dense_weights, momentum
from optnet.language.folding import fold


def rows(program):
    return {row.value: dict(zip(row.terms, row.weights, strict=True)) for row in program.combines}


def test_heavy_ball_becomes_its_recurrence():
    program = trace(optnet.find_algorithm("heavy_ball"), steps=3, beta=0.5)
    assert rows(program) == {
        "x1": {"x": 0.0, "T0": 1.0},
        "x2": {"x": -0.5, "x1": 0.5, "T1": 1.0},
        "x3": {"x1": -0.5, "x2": 0.5, "T2": 1.0},
    }
    assert "x3 = T_2(x2) + 0.5 x2 - 0.5 x1" in str(program)


def test_residual_reading_merges_terms():
    program = trace(optnet.find_algorithm("heavy_ball"), steps=2, beta=0.5, reading="residual")
    assert rows(program)["x2"] == {"x": -0.5, "x1": 1.5, "T1": 1.0}


def test_gradient_descent_in_the_map_reading_has_no_coefficient():
    program = trace(optnet.find_algorithm("gd"), steps=4)
    assert rows(program) == {} and program.results == ("T3",)


def test_a_projection_is_traced_only_if_it_is_named():
    method = optnet.find_algorithm("gd")
    assert trace(method, steps=2).operators == ("T",)
    assert trace(method, steps=2, operators=["T", "P"]).operators == ("T", "P")


def test_a_carried_dual_costs_the_same_every_step():
    sizes = [
        sum(len(row.terms) for row in trace(optnet.find_algorithm("admm"), steps=k).combines) for k in (10, 20, 30)
    ]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


def test_a_written_out_sum_costs_what_it_says():
    def averaged(T: Operator, x: Iterate, steps: int):
        xs = [x]
        for _ in range(steps):
            xs.append(T(sum(xs) / len(xs)))
        return xs[-1]

    assert [len(row.terms) for row in trace(averaged, steps=5).combines] == [2, 3, 4, 5]


def test_zero_weights_of_the_text_stay_and_cancellations_are_exact():
    def method(T: Operator, x: Iterate, steps: int):
        return T(x) + 0 * x + (0.1 + 0.2 - 0.3) * 0 * x

    def cancelling(T: Operator, x: Iterate, steps: int):
        return T(x) + (0.1 * x + 0.2 * x - 0.3 * x)

    assert rows(trace(method, steps=1)) == {"x1": {"x": 0.0, "T0": 1.0}}
    assert rows(trace(cancelling, steps=1)) == {"x1": {"x": 0.0, "T0": 1.0}}


def test_values_that_would_own_dead_coefficients_fold():
    def method(T: Operator, x: Iterate, steps: int):
        scaled = 2 * x  # one term
        nothing = 0 * x + 0 * scaled  # all zero
        a, b = T(scaled + nothing), T(nothing + x)
        unused = a + b  # used only with weight zero
        return a + scaled + 0 * unused, b + scaled + 0 * unused

    assert rows(trace(method, steps=1)) == {
        "x1": {"x": 2.0},
        "x2": {"x": 2.0, "T0": 1.0, "T1": 0.0},
        "x3": {"x": 2.0, "T0": 0.0, "T1": 1.0},
    }


def test_an_argument_without_coefficients_of_its_own_folds_into_sums():
    def method(T: Operator, x: Iterate, steps: int):
        y = 0 * x
        return T(y) + y

    assert rows(trace(method, steps=1)) == {"x1": {"x": 0.0}, "x2": {"x": 0.0, "T0": 1.0}}


def test_what_the_result_does_not_need_is_dropped():
    def wasteful(T: Operator, x: Iterate, steps: int):
        T(T(x))
        return T(x)

    assert len(trace(wasteful, steps=1).instructions) == 1


@pytest.mark.parametrize("reading", ["map", "residual"])
@pytest.mark.parametrize("method", METHODS, ids=names)
def test_json_and_invariants(method, reading):
    program = trace(method, steps=7, reading=reading)
    again = Program.from_json(program.to_json())
    assert again == program and fold(again).renamed().instructions == program.instructions
    readers = program.readers()
    for row in program.combines:
        users = readers[row.value]
        lone = len(users) == 1 and isinstance(users[0], optnet.Combine) and row.value not in program.results
        assert not lone, f"{row.value} should be folded into {users[0].value}"


@pytest.mark.parametrize("reading", ["map", "residual"])
@pytest.mark.parametrize("method", [m for m in METHODS if m.name not in ("three_step_mean", "pdhg")], ids=names)
def test_a_fixed_point_stays_one(method, reading):
    """With T(1) = 1 (F(1) = 0) every method must return 1 from 1: its weights are consistent.

    (PDHG has no such fixed point: its K is no map to be iterated.)"""
    program = trace(method, steps=7, reading=reading)
    values = dict.fromkeys(program.starts, 1.0)
    for step in program.instructions:
        if isinstance(step, optnet.Apply):
            values[step.value] = values[step.argument] if program.readings[step.operator] == "map" else 0.0
        else:
            values[step.value] = sum(w * values[t] for t, w in zip(step.terms, step.weights, strict=True))
    assert [values[result] for result in program.results] == pytest.approx([1.0] * len(program.results), abs=1e-12)


def test_nesterov_constants():
    assert momentum(5) == pytest.approx([0, 0.2818, 0.4340, 0.5311, 0.5988], abs=5e-5)
    assert dense_weights(4)[1] == pytest.approx([0, 1.2818], abs=5e-5)
    assert dense_weights(4)[3] == pytest.approx([0, 0.0649, 0.2305, 1.5311], abs=5e-5)


MISUSES = {
    "branch": lambda T, x: x if x else T(x),
    "equal": lambda T, x: T(x) if x == 0 else x,
    "less": lambda T, x: T(x) if x < 1 else x,
    "product": lambda T, x: T(x) * x,
    "division": lambda T, x: T(x) / x,
    "reciprocal": lambda T, x: 1 / T(x),
    "divide by zero": lambda T, x: T(x) / 0,
    "number": lambda T, x: T(x) + 1,
    "number first": lambda T, x: 1 - T(x),
    "power": lambda T, x: T(x) ** 2,
    "absolute": lambda T, x: abs(T(x)),
    "numpy number added": lambda T, x: np.float64(0.5) + T(x),
    "numpy number divided": lambda T, x: np.float64(0.5) / T(x),
    "numpy truth number": lambda T, x: np.bool_(True) * T(x),
    "numpy array": lambda T, x: np.ones(3) * T(x),
    "numpy power": lambda T, x: np.float64(2.0) ** T(x),
    "complex": lambda T, x: 1j * T(x),
    "too large": lambda T, x: 10**400 * T(x),
    "division by almost 0": lambda T, x: T(x) / 5e-324,
    "numpy function": lambda T, x: np.exp(T(x)),
    "tensor": lambda T, x: torch.tensor(0.5) * T(x),
    "tensor behind": lambda T, x: T(x) * torch.tensor(0.5),
    "torch function": lambda T, x: torch.relu(T(x)),
    "method": lambda T, x: T(x).relu(),
    "float": lambda T, x: math.sqrt(T(x)),
    "entry": lambda T, x: T(x)[0],
    "length": lambda T, x: T(x) if len(x) else x,
    "loop": lambda T, x: [T(y) for y in x],
    "truth number": lambda T, x: True * T(x),
    "infinite": lambda T, x: math.inf * T(x),
    "two arguments": lambda T, x: T(x, x),
    "operator on a number": lambda T, x: T(0.0),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_of_an_iterate_is_refused(misuse):
    def method(T: Operator, x: Iterate, steps: int):
        return MISUSES[misuse](T, x)

    with pytest.raises(TraceError) as error:
        trace(method, steps=1)
    assert "\n" not in str(error.value) and str(error.value).startswith("method: ")


@pytest.mark.parametrize("symbol", ["+=", "-=", "*=", "/="])
def test_inplace_arithmetic_is_refused(symbol):
    def method(T: Operator, x: Iterate, steps: int):
        y = T(x)
        if symbol == "+=":
            y += x
        elif symbol == "-=":
            y -= x
        elif symbol == "*=":
            y *= 2
        else:
            y /= 2
        return y

    with pytest.raises(TraceError, match="write x = x"):
        trace(method, steps=1)


def test_iterates_of_another_trace_are_refused():
    kept = []

    def method(T: Operator, x: Iterate, steps: int):
        kept.append(x)
        return T(x) + kept[0]

    trace(method, steps=1)
    with pytest.raises(TraceError, match="another trace"):
        trace(method, steps=1)


def never_calls(T: Operator, x: Iterate, steps: int):
    return 2 * x


def drops_the_call(T: Operator, x: Iterate, steps: int):
    T(x)
    return x


def returns_nothing(T: Operator, x: Iterate, steps: int):
    T(x)


def returns_a_number(T: Operator, x: Iterate, steps: int):
    return T(x), 3.0


def raises(T: Operator, x: Iterate, steps: int):
    raise ZeroDivisionError("oops")


def no_operator(x: Iterate, steps: int):
    return x


def no_start(T: Operator, steps: int):
    return T


def no_steps(T: Operator, x: Iterate):
    return T(x)


def bare_constant(T: Operator, x: Iterate, steps: int, *, beta):
    return T(x)


@pytest.mark.parametrize(
    "function",
    [
        never_calls,
        drops_the_call,
        returns_nothing,
        returns_a_number,
        raises,
        no_operator,
        no_start,
        no_steps,
        bare_constant,
    ],
)
def test_unreadable_algorithms(function):
    with pytest.raises(AlgorithmError) as error:
        trace(function, steps=2)
    assert function.__name__ in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3", True, None])
def test_steps_must_be_positive(steps):
    with pytest.raises(AlgorithmError, match="steps="):
        trace(never_calls, steps=steps)


def test_operators_and_constants_must_exist():
    method = optnet.find_algorithm("heavy_ball")
    for operators in (["T", "Q"], ["P"], ["T", "T"]):
        with pytest.raises(OperatorError):
            trace(method, steps=1, operators=operators)
    for reading in ("nonsense", {"Q": "map"}, {"P": "map"}):
        with pytest.raises(OperatorError):
            trace(method, steps=1, reading=reading)
    for constants in (
        {"gamma": 1},
        {"beta": "x"},
        {"beta": math.nan},
        {"beta": True},
        {"beta": None},
        {"beta": (0.3,)},
    ):
        with pytest.raises(AlgorithmError):
            trace(method, steps=1, **constants)


def test_finding_algorithms(tmp_path):
    assert optnet.find_algorithm("hb") is optnet.find_algorithm("heavy_ball")
    assert optnet.find_algorithm("optnet.algorithms.admm.admm").name == "admm"
    file = tmp_path / "mine.py"
    file.write_text("from optnet import *\ndef mine(T: Operator, x: Iterate, steps: int):\n    return T(x)\n")
    assert optnet.find_algorithm(f"{file}:mine").name == "mine"
    (tmp_path / "broken.py").write_text("def f(:\n")
    for spec in ("havy_ball", f"{file}:yours", f"{tmp_path}/none.py:f", "no.such.module.f", f"{tmp_path}/broken.py:f"):
        with pytest.raises(AlgorithmError) as error:
            optnet.find_algorithm(spec)
        assert "\n" not in str(error.value)
    with pytest.raises(AlgorithmError, match="exists already"):

        @optnet.algorithm()
        def heavy_ball(T: Operator, x: Iterate, steps: int):
            return T(x)


def test_programs_check_themselves():
    good = trace(optnet.find_algorithm("hb"), steps=2).to_json()
    for bad in ("", "[]", "{}", "null", good.replace('"x1"', '"y"', 1), good.replace("0.9", "NaN"), good[:-9]):
        with pytest.raises(ProgramError):
            Program.from_json(bad)


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_every_algorithm_says_what_it_is(method):
    assert (method.__doc__ and "x_{k+1}" in method.__doc__) or method.name in ("restarted",)
    assert required(method) and identity(3) == 3
