"""The factor of methods that repeat, change or carry more than they read; and what the analysis costs in steps."""

import math
import time

import numpy as np
import pytest
from helpers import some
from torch import nn

from optnet import Algorithm, Iterate, Operator, RequestError, analysis, find_algorithm, list_algorithms, trace, unroll
from optnet.language.tracing import record

MU = 0.01


def forgetful(period):
    """Heavy ball that forgets its momentum every so many steps."""

    def restarted_ball(T: Operator, x: Iterate, steps: int, *, beta: float = 0.5, step: float = 1.0):
        previous = x
        for k in range(steps):
            previous = x if k % period == 0 else previous
            x, previous = x + step * (T(x) - x) + beta * (x - previous), x
        return x

    return restarted_ball


def product_of_steps(period, beta=0.5):
    """The same factor written out: the matrices of one period, for 20,000 lambda in [mu, 1]."""
    lam = np.linspace(MU, 1, 20_000)
    ones, zeros = np.ones_like(lam), np.zeros_like(lam)
    ball = np.array([[1 - lam + beta, -beta * ones], [ones, zeros]]).transpose(2, 0, 1)
    first = np.array([[1 - lam, zeros], [ones, zeros]]).transpose(2, 0, 1)
    total = first
    for _ in range(period - 1):
        total = ball @ total
    return float(np.abs(np.linalg.eigvals(total)).max() ** (1 / period))


@pytest.mark.parametrize("period, factor", [(5, 0.9837), (10, 0.9817), (20, 0.9807), (1, 0.99), (3, None), (17, None)])
def test_the_factor_of_a_method_that_restarts_is_that_of_its_period(period, factor):
    found = analysis.recurrence(forgetful(period))
    assert (found.period, found.looked) == (period, analysis.LOOKED) and found.first <= 1
    measured = analysis.convergence_factor(forgetful(period), MU, 1.0)
    assert measured == pytest.approx(product_of_steps(period), abs=1e-7)
    assert factor is None or measured == pytest.approx(factor, abs=5e-5)
    few, many = (analysis.worst_error(trace(forgetful(period), steps=k * period), MU, 1.0) for k in (60, 80))
    assert (many / few) ** (1 / (20 * period)) == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("period", [41, 50, 100, 119])
def test_a_period_that_is_too_long_to_be_seen_twice_is_not_guessed(period):
    assert analysis.convergence_factor(forgetful(period), MU, 1.0) is None


def changing(at):
    def late(T: Operator, x: Iterate, steps: int, *, before: float = 1.0, after: float = 0.06):
        for k in range(steps):
            x = x + (before if k < at else after) * (T(x) - x)
        return x

    return late


@pytest.mark.parametrize("at", [1, 15, 40, 60])
def test_the_factor_of_a_method_that_changes_is_that_of_what_comes_after(at):
    assert analysis.convergence_factor(changing(at), MU, 1.0) == pytest.approx(0.9994, abs=1e-9)
    assert analysis.recurrence(changing(at)).first == at


def test_a_change_that_comes_too_late_is_no_factor():
    assert analysis.convergence_factor(changing(100), MU, 1.0) is None


def dead_start(T: Operator, x: Iterate, steps: int):
    start = x
    for _ in range(steps):
        x = T(x) + 0 * start
    return x


def dead_second_start(T: Operator, x: Iterate, y: Iterate, steps: int):
    for _ in range(steps):
        x, y = T(x) + 0.0 * y, 2 * y
    return x


def dead_sum(T: Operator, x: Iterate, steps: int):
    total = x
    for _ in range(steps):
        x = T(x) + 0.0 * total
        total = total + x
    return x


def dead_call(T: Operator, x: Iterate, steps: int):
    start = x
    for _ in range(steps):
        x = T(x) + 0 * T(0.5 * x + 0.5 * start)
    return x


def davis_yin(P: Operator, Q: Operator, G: Operator, x: Iterate, steps: int):
    z = x
    for _ in range(steps):
        y = P(z)
        z = z + Q(2 * y - z + (G(y) - y)) - y
    return P(z)


def call_before(T: Operator, x: Iterate, steps: int):
    x = T(x)
    for _ in range(steps):
        x = T(x)
    return x


def call_before_and_after(T: Operator, x: Iterate, steps: int):
    x = T(0.5 * x)
    for _ in range(steps):
        x = 0.5 * x + 0.5 * T(x)
    return T(T(x))


def verlet(T: Operator, x: Iterate, steps: int, *, h: float = 0.5, friction: float = 0.9):
    """Velocity Verlet with friction: a force is kept from step to step, and the first is computed before the loop."""
    force, v = T(x) - x, 0 * x
    for _ in range(steps):
        v = friction * v + h / 2 * force
        x = x + h * v
        force = T(x) - x
        v = v + h / 2 * force
    return x


def verlet_factor():
    """Its state (x, v) with force = -lambda x, from the text."""
    h, friction, worst = 0.5, 0.9, 0.0
    for lam in np.linspace(MU, 1, 2000):
        kick = np.array([[1, 0], [-h / 2 * lam, 1]])
        drift = np.array([[1, h], [0, 1]])
        first = np.array([[1, 0], [-h / 2 * lam, friction]])
        worst = max(worst, np.abs(np.linalg.eigvals(kick @ drift @ first)).max())
    return worst


def every_second(T: Operator, x: Iterate, steps: int):
    for k in range(steps):
        x = T(x) if k % 2 == 0 else 0.5 * x
    return x


@pytest.mark.parametrize("method, factor, period", [
    (dead_start, 0.99, 1), (dead_second_start, 0.99, 1), (dead_sum, 0.99, 1), (dead_call, 0.99, 1),
    (davis_yin, 0.99, 1), (call_before, 0.99, 1), (call_before_and_after, 0.995, 1), (verlet, verlet_factor(), 1),
    (every_second, math.sqrt(0.495), 2), ("douglas_rachford", 0.99, 1), ("gradient_descent", 99 / 101, 1),
])  # fmt: skip
def test_methods_that_repeat_have_their_factor(method, factor, period):
    assert analysis.convergence_factor(method, MU, 1.0) == pytest.approx(factor, abs=1e-5)
    assert analysis.recurrence(method).period == period


def total_dependent(T: Operator, x: Iterate, steps: int):
    for _ in range(steps):
        x = x + (T(x) - x) / steps
    return x


@pytest.mark.parametrize(
    "method", [total_dependent, "nesterov", "chebyshev", "silver", "ogm", "halpern", "nesterov_dense"]
)
def test_methods_that_do_not_repeat_have_no_factor(method):
    for mu in (0.1, 0.01):
        assert analysis.convergence_factor(method, mu, 1.0) is None


@pytest.mark.parametrize("steps", [1, 2, 5, 24])
@pytest.mark.parametrize("name", list_algorithms())
def test_the_worst_error_is_the_largest_of_many(name, steps):
    program = trace(name, steps=steps, constants=analysis.constants_for(find_algorithm(name), MU, 1.0))
    lam = np.concatenate([np.linspace(MU, 1, 20_000), np.geomspace(MU, 1, 20_000)])
    seen = float(np.abs(analysis.run_on_scalars(program, 1 - lam)[program.results[-1]]).max())
    assert seen * (1 - 1e-12) <= analysis.worst_error(program, MU, 1.0) <= seen * (1 + 1e-4)


# starts that are a plain 0


def plain_zero(T: Operator, x: Iterate, steps: int):
    """Gradient descent with a momentum that is never used, from the number 0."""
    u = 0
    for _ in range(steps):
        u = u + (T(x) - x)
        x = x + (T(x) - x) + 0 * u
    return x


def built_sum(T: Operator, x: Iterate, steps: int):
    for _ in range(steps):
        x = sum([T(x), np.float64(0.0) * x])
    return x


def test_worst_cases_of_methods_that_start_from_a_plain_0():
    """At rho = 0 each half of ADMM is a gradient step, so its x is gradient descent's: 1 / (4 N + 2)."""
    pytest.importorskip("PEPit")
    for steps in (1, 2):
        for method in (plain_zero, built_sum, "gradient_descent"):
            assert analysis.worst_case(method, 0.0, 1.0, steps) == pytest.approx(1 / (4 * steps + 2), rel=1e-4)
        assert analysis.worst_case("admm", 0.0, 1.0, steps, rho=0.0) == pytest.approx(1 / (4 * steps + 2), rel=1e-4)
        assert 1 / (4 * steps + 2) < analysis.worst_case("admm", 0.0, 1.0, steps) < 0.5
        assert 1 / (4 * steps + 2) < analysis.worst_case("splitting_admm", 0.0, 1.0, steps) < 0.5
    with pytest.raises(RequestError, match="takes too long; at most 50 do"):
        analysis.worst_case("gradient_descent", 0.0, 1.0, 51)


# what it costs


def nesterov_second(T: Operator, x: Iterate, steps: int):
    """Nesterov 1988: y = (1 - a) x + a z,  z = z + (T(y) - y) / a,  x = (1 - a) x + a z,  a = 2 / (k + 2)"""
    z = x
    for k in range(steps):
        a = 2 / (k + 2)
        y = (1 - a) * x + a * z
        z = z + (T(y) - y) / a
        x = (1 - a) * x + a * z
    return x


def estimate_sequence(T: Operator, x: Iterate, steps: int):
    """Nesterov 2005: z = x_0 - sum of weighted gradients,  x = 2 / (k + 3) z + (k + 1) / (k + 3) y"""
    start, total, y = x, 0, x
    for k in range(steps):
        gradient = x - T(x)
        y = x - gradient
        total = total + (k + 1) / 2 * gradient
        x = 2 / (k + 3) * (start - total) + (k + 1) / (k + 3) * y
    return y


def linear_coupling(T: Operator, x: Iterate, steps: int):
    """Allen-Zhu and Orecchia 2017, with two calls of T."""
    z = x
    for k in range(steps):
        a = 2 / (k + 2)
        y = (1 - a) * x + a * z
        x, z = T(y), z + (T(y) - y) / a
    return x


LINEAR = [nesterov_second, estimate_sequence, linear_coupling, "nesterov", "admm", "heavy_ball", "linear_multistep"]


@pytest.mark.parametrize("reading", ["map", "residual"])
@pytest.mark.parametrize("method", LINEAR)
def test_programs_and_their_graphs_are_linear_in_steps(method, reading):
    sizes = []
    for steps in (25, 50, 100):
        network = unroll(method, steps=steps, operators={"T": nn.Identity()}, reading=reading)
        terms = sum(len(row.terms) for row in network.program.combines)
        sizes.append((terms, len(network.program.instructions), len(network.body.graph.nodes)))
    for few, middle, many in zip(*sizes, strict=True):
        assert many - middle == 2 * (middle - few)


def seconds(work):
    """The shorter of two times: the machine is shared."""
    times = []
    for _ in range(2):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("method", [nesterov_second, estimate_sequence])
def test_unrolling_takes_time_linear_in_steps(method):
    few, many = (
        seconds(lambda steps=steps: unroll(method, steps=steps, operators={"T": nn.Identity()})) for steps in (50, 200)
    )
    assert many < 4 * 2 * few


def every_third(T: Operator, x: Iterate, steps: int):
    for k in range(steps):
        x = 0.5 * x + 0.5 * T(x) if k % 3 == 0 else 0.9 * x
    return x


def late_second_call(T: Operator, x: Iterate, steps: int):
    for k in range(steps):
        x = T(T(x)) if k > 20 else T(x)
    return x


def growing(T: Operator, x: Iterate, steps: int):
    for k in range(steps):
        for _ in range(k + 1 if k % 2 else 1):
            x = T(x)
    return x


@pytest.mark.parametrize("method", [every_third, late_second_call, growing, call_before_and_after, "nesterov_dense"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 39, 40, 41, 60])
def test_every_call_knows_its_iteration_however_many_calls_an_iteration_has(method, steps):
    algorithm = find_algorithm(method)
    counts = [0]
    for k in range(1, steps + 1):
        called = []
        algorithm(lambda x, called=called: called.append(1) or x, 1.0, steps=k)
        counts.append(len(called))
    wanted = [k for k in range(steps) for _ in range(counts[k + 1] - counts[k])]
    assert [call.iteration for call in record(algorithm, steps).applies] == wanted


@pytest.mark.parametrize("name", some(["heavy_ball", "nesterov", "admm", "ista", "silver"], "nesterov"))
def test_the_analysis_takes_time_linear_in_steps(name):
    method = find_algorithm(name)

    def work(steps):
        program = trace(method, steps=steps)
        str(program), program.weights(), analysis.worst_error(program, MU, 1.0), analysis.diagnose(program)

    few, many = (seconds(lambda steps=steps: work(steps)) for steps in (100, 200))
    assert many < 3 * few


def test_tables_of_too_many_calls_are_left_out_and_said():
    diagnosis = analysis.diagnose(trace("gradient_descent", steps=1001))
    assert diagnosis.consistent and diagnosis.bounded is None and diagnosis.same == ()
    assert any("left out for more than 1000 calls" in sentence for sentence in diagnosis.sentences)
    for call in (analysis.growth, analysis.canonical_table, analysis.nearest):
        with pytest.raises(RequestError, match="at most 1000"):
            call(trace("gradient_descent", steps=1001))


def test_methods_with_the_same_recurrence_are_named():
    assert analysis.diagnose(trace("nesterov", steps=10)).nearest == ("nesterov", 0.0)
    assert analysis.diagnose(trace("nesterov", steps=10)).same == ("nesterov", "fista")
    assert analysis.diagnose(trace("fista", steps=10)).same == ("fista", "nesterov")
    mine = Algorithm(forgetful(1000))
    found = analysis.diagnose(trace(mine, steps=10, constants={"beta": 0.9}))
    assert found.same == ("heavy_ball", "momentum") and found.nearest[0] == "heavy_ball"
    other = analysis.diagnose(trace(mine, steps=10, constants={"beta": 0.85}))
    assert other.same == () and other.nearest[0] == "heavy_ball" and 0 < other.nearest[1] < 0.1
