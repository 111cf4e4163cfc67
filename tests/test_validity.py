"""The projection onto valid methods: what it reaches, that nothing valid is nearer, and what counts as stable."""

import numpy as np
import pytest
from helpers import METHODS, crossed, names, required

from optnet import Iterate, Operator, RequestError, analysis, trace
from optnet.language.declaration import as_algorithm
from optnet.language.program import Apply, Combine, Program
from optnet.language.tracing import traced


def perturbed(program, scale, seed):
    rng = np.random.default_rng(seed)
    return program.with_weights({key: w + scale * rng.normal() for key, w in program.weights().items()})


def vector(program):
    return np.array(list(program.weights().values()))


KNOWN = [method for method in METHODS if method.name not in ("pdhg", "three_step_mean")]


@pytest.mark.parametrize("method, reading", crossed(KNOWN, ["map", "residual"]))
def test_a_projection_is_valid_and_stays_where_it_is(method, reading):
    for seed, (steps, scale) in enumerate(((1, 0.3), (2, 1.5), (3, 0.02), (3, 0.3), (6, 0.3), (6, 1.5))):
        textbook = traced(method, steps, reading=reading)
        learned = perturbed(textbook, scale, seed)
        found = analysis.nearest_valid(learned, textbook)
        size = max(1.0, np.abs(vector(found)).max(initial=0))
        assert analysis.inconsistency(found) <= 1e-8 * size and analysis.stability(found, textbook).stable
        assert (
            np.linalg.norm(vector(found) - vector(learned)) <= np.linalg.norm(vector(textbook) - vector(learned)) + 1e-9
        )
        assert vector(analysis.nearest_valid(found, textbook)) == pytest.approx(vector(found), abs=1e-7 * size)
        assert vector(analysis.nearest_valid(textbook)) == pytest.approx(vector(textbook), abs=1e-12)


def halves(A: Operator, M: Operator, x: Iterate, steps: int) -> Iterate:
    """x'_k = (x_k + M(x_k)) / 2,  x_{k+1} = A(x'_k): the sum that is kept is twice an iterate."""
    for _ in range(steps):
        x = A((x + M(x)) / 2)
    return x


@pytest.mark.parametrize("method", [*METHODS, as_algorithm(halves)], ids=names)
def test_a_method_is_the_same_in_each_reading(method):
    """With every operator read as id + F too: the same table, so as consistent, and as stable."""
    one, other = (traced(method, 5, reading=dict.fromkeys(required(method), how)) for how in ("map", "residual"))
    assert analysis.canonical_table(other) == pytest.approx(analysis.canonical_table(one), abs=1e-12)
    assert analysis.stability(other).stable == analysis.stability(one).stable


@pytest.mark.parametrize("name", ["heavy_ball", "linear_multistep", "nesterov", "chebyshev"])
@pytest.mark.parametrize("reading", ["map", "residual"])
def test_nothing_valid_is_nearer(name, reading):
    """(learned - found)'(valid - found) <= 0 for all valid coefficients: each memory has two successive iterates."""
    textbook = trace(name, steps=4, reading=reading)
    others = [vector(analysis.nearest_valid(perturbed(textbook, 2.0, seed), textbook)) for seed in range(20, 40)]
    for seed in range(5):
        learned = perturbed(textbook, 1.0, seed)
        found = vector(analysis.nearest_valid(learned, textbook))
        for valid in [vector(textbook), *others]:
            assert (vector(learned) - found) @ (valid - found) <= 1e-6


def two_step(*weights, more=0):
    """x_1 = x + F(x), x_2 = c_1 x_1 + c_2 x + F(x_1), ... with (c_1, c_2) in every sum but the first."""
    c_1, c_2 = weights
    program = trace("heavy_ball", steps=2 + more, reading="residual")
    values = program.weights()
    for row in list(program.combines)[1:]:
        calls = {call.value for call in program.applies}
        older, newer = (term for term in row.terms if term not in calls)
        values |= {(row.value, newer): c_1, (row.value, older): c_2}
    return program.with_weights(values), program


@pytest.mark.parametrize(
    "learned, valid, root",
    [((2.5, -1.5), (2.0, -1.0), 1.5), ((1.2, 0.0), (1.1, -0.1), 1.2), ((-1.5, 2.5), (0.0, 1.0), 2.5),
     ((1.9, -0.9), (1.9, -0.9), 1.0), ((2.0, -1.0), (2.0, -1.0), 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("more", [0, 3])
def test_the_memory_of_two_iterates_keeps_its_momentum_between_minus_1_and_1(learned, valid, root, more):
    program, textbook = two_step(*learned, more=more)
    assert analysis.stability(program, textbook).root == pytest.approx(root, abs=1e-6)
    assert analysis.stability(program, textbook).stable == (root <= 1)
    found = analysis.nearest_valid(program, textbook)
    assert vector(found) == pytest.approx(vector(two_step(*valid, more=more)[0]), abs=1e-7)


def test_a_longer_memory_keeps_the_differences_of_its_iterates():
    """x_3 = 2 x_2 + x_1 - 2 x_0 is consistent with roots 1, -1, 2; |m_2 + m_3| + |m_3| must come down from 3 to 1."""
    weights = {"x3": (-2.0, 1.0, 2.0, 1.0)}
    program = Program(
        "long", ("x",),
        (Apply("T0", "T", 0, "x", 0), Combine("x1", ("x", "T0"), (1.0, 1.0)), Apply("T1", "T", 1, "x1", 1),
         Combine("x2", ("x1", "T1"), (1.0, 1.0)), Apply("T2", "T", 2, "x2", 2),
         Combine("x3", ("x", "x1", "x2", "T2"), weights["x3"])),
        ("x3",), "T", 3, readings={"T": "residual"},
    )  # fmt: skip
    assert analysis.inconsistency(program) == 0 and analysis.stability(program).root == pytest.approx(2)
    x_0, x_1, x_2, F = vector(analysis.nearest_valid(program))[-4:]
    assert x_0 + x_1 + x_2 == pytest.approx(1) and abs(x_1 + x_0) + abs(x_0) == pytest.approx(1) and F == 1
    grid = np.linspace(-1, 1, 401)
    nearest = min(
        (c0 + 2) ** 2 + (c1 - 1) ** 2 + (1 - c0 - c1 - 2) ** 2
        for c0 in grid for c1 in (t - c0 for t in (1 - abs(c0)) * np.linspace(-1, 1, 41))
    )  # fmt: skip
    assert (x_0 + 2) ** 2 + (x_1 - 1) ** 2 + (x_2 - 2) ** 2 == pytest.approx(nearest, abs=2e-2)
    assert (x_0 + 2) ** 2 + (x_1 - 1) ** 2 + (x_2 - 2) ** 2 <= nearest + 1e-9


def test_a_sum_without_iterates_cannot_be_made_consistent():
    program = Program(
        "lost", ("x",), (Apply("T0", "T", 0, "x"), Combine("x1", ("T0",), (2.0,))), ("x1",), "T", 1,
        readings={"T": "residual"},
    )  # fmt: skip
    with pytest.raises(RequestError, match="lost: x1 cannot be made consistent, because none of its terms"):
        analysis.nearest_valid(program)
