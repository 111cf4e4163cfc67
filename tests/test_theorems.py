"""Every algorithm against its theorem, and the analysis against closed forms."""

import functools
import math

import numpy as np
import pytest
import torch

import optnet
from optnet import Iterate, Operator, analysis, find_algorithm, list_algorithms, trace

PROVED = [name for name in list_algorithms() if find_algorithm(name).theorem is not None]
STEPS = (1, 2, 3, 5, 7, 10, 15, 31)


def run(method, T, x, steps, constants):
    operators = [T, *[lambda v: v] * (sum(method.operators.values()) - 1)]
    return method(*operators, *[x] * len(method.starts), steps=steps, **constants)


def check(method, mu, f, gradient, x_star, starts):
    """The theorem on f with L = 1 at every step count it speaks of."""
    theorem = method.theorem
    constants = analysis.constants_for(method, mu, 1.0)
    for steps in STEPS:
        if not theorem.holds_after(steps, steps):
            continue
        for x0 in starts:
            x = run(method, lambda v: v - gradient(v), x0, steps, constants)
            measured = {
                "gap": f(x) - f(x_star),
                "distance": (x - x_star).square().sum(),
                "gradient": gradient(x).square().sum(),
            }[theorem.metric]
            initial = {"distance": (x0 - x_star).square().sum(), "gap": f(x0) - f(x_star)}[theorem.initial]
            assert measured <= theorem.bound(steps, mu, 1.0) * initial * (1 + 1e-9) + 1e-14, f"{steps} steps"


@pytest.mark.parametrize("mu", [0.01, 0.1])
@pytest.mark.parametrize("name", PROVED)
def test_theorem_on_quadratics(name, mu):
    spectrum = torch.logspace(math.log10(mu), 0, 60, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(60, dtype=torch.float64, generator=generator) for _ in range(10)]
    starts += [row for row in torch.eye(60, dtype=torch.float64)[[0, 30, 59]]]
    x_star = torch.zeros(60, dtype=torch.float64)
    check(find_algorithm(name), mu, lambda x: (spectrum * x * x).sum() / 2, lambda x: spectrum * x, x_star, starts)


@functools.cache  # nothing changes what it returns
def log_sum_exp(mu):
    """f(x) = s log sum_i exp(a_i'x - b_i) + mu |x|^2 / 2 in 20 dimensions, scaled to L = 1; x* by Newton's method.

    Returns f, its gradient, x* and starting points."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(40, 20, dtype=torch.float64, generator=generator)
    b = torch.randn(40, dtype=torch.float64, generator=generator)
    scale = (1 - mu) / torch.linalg.matrix_norm(A, 2) ** 2  # the Hessian of log-sum-exp is at most A'A

    def f(x):
        return scale * torch.logsumexp(A @ x - b, 0) + mu / 2 * x @ x

    gradient = torch.func.grad(f)
    x_star = torch.zeros(20, dtype=torch.float64)
    for _ in range(50):
        x_star = x_star - torch.linalg.solve(torch.func.hessian(f)(x_star), gradient(x_star))
    assert gradient(x_star).norm() < 1e-12
    starts = [x_star + 3 * torch.randn(20, dtype=torch.float64, generator=generator) for _ in range(10)]
    return f, gradient, x_star, starts


@pytest.mark.parametrize("mu", [0.01, 0.1])
@pytest.mark.parametrize("name", [n for n in PROVED if find_algorithm(n).theorem.functions != "quadratic"])
@pytest.mark.sampled(8)
def test_theorem_on_log_sum_exp(name, mu):
    check(find_algorithm(name), mu, *log_sum_exp(mu))


def test_theorem_1_of_the_talk():
    """f(x_t) - f* <= 2 L |x_1 - x*|^2 / (t - 1) for gradient descent of step 1 / L that starts at x_1."""
    f, gradient, x_star, starts = log_sum_exp(0.01)
    method = find_algorithm("gradient_descent")
    for start in starts[:3]:
        x = start
        for t in range(2, 33):
            x = method(lambda v: v - gradient(v), x, steps=1)
            assert 0 < f(x) - f(x_star) <= 2 * (start - x_star).square().sum() / (t - 1)
    for t in (2, 3, 5):
        worst = analysis.worst_case(method, 0.0, 1.0, t - 1)
        assert worst == pytest.approx(1 / (4 * (t - 1) + 2), rel=1e-4) and worst < 2 / (t - 1)


def test_theorem_2_of_the_talk():
    """f(x_t) - f* <= |x_0 - x*|^2 / (2 alpha_0 (t + 1)) for every alpha_0 in (0, 1 / L]."""
    for step in (0.1, 0.5, 1.0):
        worst = analysis.worst_case("heavy_ball_convex", 0.0, 1.0, 3, step=step)
        assert worst <= 1 / (2 * step * 4) * (1 + 1e-4)


@pytest.mark.parametrize("name", PROVED)
def test_theorem_margin_sees_a_broken_promise(name):
    assert analysis.theorem_margin(name, 0.01, 1.0, 15) <= 1 + 1e-9
    method = find_algorithm(name)
    harder = optnet.Algorithm(method.function, tuned=method.tuned, theorem=type(method.theorem)(
        **{**vars(method.theorem), "bound": lambda k, mu, L: 1e-6 * method.theorem.bound(k, mu, L)}
    ))  # fmt: skip
    assert analysis.theorem_margin(harder, 0.01, 1.0, 15) > 1


def test_heavy_balls_printed_bound_does_not_hold_step_by_step():
    r = (1 - 0.1) / (1 + 0.1)
    errors = analysis.errors("heavy_ball", 0.01, 1.0, 20)
    assert all(error > r**k for k, error in enumerate(errors, 1))
    assert errors == pytest.approx([(1 + (1 + r) * k) * r**k for k in range(1, 21)], rel=1e-6)  # attained at L


@pytest.mark.parametrize("kappa", [10.0, 100.0, 10_000.0])
def test_factors_equal_the_closed_forms(kappa):
    mu, s = 1 / kappa, math.sqrt(1 / kappa)
    factor = analysis.convergence_factor
    assert factor("gradient_descent", mu, 1.0) == pytest.approx((kappa - 1) / (kappa + 1), abs=1e-6)
    assert factor("heavy_ball", mu, 1.0) == pytest.approx((1 - s) / (1 + s), abs=1e-6)
    assert factor("heavy_ball", mu, 1.0, step=1.0, beta=(1 - s) ** 2) == pytest.approx(1 - s, abs=1e-6)
    assert factor("nesterov", mu, 1.0, beta=(1 - s) / (1 + s)) == pytest.approx(1 - s, abs=1e-6)
    assert factor("triple_momentum", mu, 1.0) == pytest.approx(1 - s, abs=1e-6)
    assert factor("chebyshev", mu, 1.0) is None
    sigma = (1 - mu) / (1 + mu)
    wanted = [1 / math.cosh(k * math.acosh(1 / sigma)) for k in range(1, 21)]
    assert analysis.errors("chebyshev", mu, 1.0, 20) == pytest.approx(wanted, rel=1e-6)


def test_other_units_of_L():
    assert analysis.errors("heavy_ball", 0.5, 50.0, 9) == pytest.approx(analysis.errors("heavy_ball", 0.01, 1.0, 9))


def test_ogm_and_its_twin():
    for steps in (1, 2, 5, 12):
        one, two = (trace(find_algorithm(name), steps=steps) for name in ("ogm", "ogm_g"))
        lam = np.linspace(0, 1, 101)
        errors = [analysis.run_on_scalars(p, 1 - lam)[p.results[0]] for p in (one, two)]
        assert np.allclose(*errors, atol=1e-12)
        h, g = (step_table(p) for p in (one, two))
        assert np.allclose(h, np.fliplr(np.flipud(g)).T, atol=1e-12)


def step_table(program):
    """h: x_{k+1} = x_0 - sum_j H_{k+1,j} g(x_j), as x_{k+1} - x_k; g(x_j) = x_j - T(x_j)."""
    table = analysis.canonical_table(program)  # rows: x_0, ..., x_N in terms of x_0 and T(x_j)
    count = len(table) - 1
    points = [np.eye(count + 1)[0]]  # in terms of x_0 and g(x_j)
    for k in range(1, count + 1):
        row = table[k, 0] * points[0]
        for j in range(count):
            row = row + table[k, 1 + j] * ((points[j] if j < len(points) else 0) - np.eye(count + 1)[1 + j])
        points.append(row)
    return -np.diff(np.array(points), axis=0)[:, 1:]


def test_chebyshev_tends_to_polyaks_heavy_ball():
    q = 0.04
    last = trace(find_algorithm("chebyshev"), steps=60, q=q)
    row = [r for r in last.combines][-1]
    weights = dict(zip(row.terms, row.weights, strict=True))
    polyak = analysis.constants_for(find_algorithm("heavy_ball"), q, 1.0)
    assert weights["T59"] == pytest.approx(polyak["step"], abs=1e-6)
    assert weights["x58"] == pytest.approx(-polyak["beta"], abs=1e-6)


NOTED = {  # relative errors after 63 steps on a quadratic with mu = 0.01 in 60 dimensions, as noted beforehand
    "gradient_descent": 0.45, "silver": 0.10, "heavy_ball unit step": 0.0081, "heavy_ball": 3.4e-5,
    "nesterov constant": 0.0081, "nesterov": 0.033, "optimized_gradient": 0.029, "triple_momentum": 0.0011,
    "information_theoretic_exact": 0.0019, "chebyshev": 6.0e-6, "halpern": 0.64, "admm": 0.56,
    "momentum_residual": 0.47,
}  # fmt: skip


def test_the_order_of_methods_after_63_steps():
    """T(x) = W x + b with the 60 eigenvalues of I - W evenly spaced in [0.01, 1], b = 1 along each, from x_0 = 0."""
    s, spectrum = 0.1, np.linspace(0.01, 1, 60)
    special = {
        "gradient_descent": ("gradient_descent", {"step": 1.0}),
        "heavy_ball unit step": ("heavy_ball", {"step": 1.0, "beta": (1 - s) ** 2}),
        "nesterov constant": ("nesterov", {"beta": (1 - s) / (1 + s)}),
    }
    measured = {}
    for name in NOTED:
        method, constants = special.get(name, (name, {}))
        algorithm = find_algorithm(method)
        program = trace(algorithm, steps=63, **analysis.constants_for(algorithm, 0.01, 1.0, constants))
        error = analysis.run_on_scalars(program, 1 - spectrum)[program.results[0]]
        measured[name] = float(np.linalg.norm(error / spectrum) / np.linalg.norm(1 / spectrum))
    assert measured == pytest.approx(NOTED, rel=0.1)
    for one in NOTED:
        for other in NOTED:
            if NOTED[one] > 2 * NOTED[other]:
                assert measured[one] > measured[other], f"{one} {measured[one]:.2g}, {other} {measured[other]:.2g}"


def test_worst_cases_are_the_published_ones():
    """As in PEPit's own examples, which write out each method again; and their closed forms, where those are tight."""
    from PEPit.examples import unconstrained_convex_minimization as published

    worst = analysis.worst_case
    tau, closed = published.wc_gradient_descent(L=3, gamma=1 / 3, n=4, verbose=-1)
    assert worst("gradient_descent", 0.0, 3.0, 4) == pytest.approx(tau, rel=1e-4)
    assert tau == pytest.approx(closed, rel=1e-4)
    for n in (1, 4):
        tau, closed = published.wc_accelerated_gradient_convex(mu=0, L=1, n=n, verbose=-1)
        assert worst("nesterov", 0.0, 1.0, n) == pytest.approx(tau, rel=1e-4)
        assert worst("fista", 0.0, 1.0, n) == pytest.approx(tau, rel=1e-4)
    tau, closed = published.wc_optimized_gradient(L=3, n=4, verbose=-1)
    assert worst("optimized_gradient", 0.0, 3.0, 4) == pytest.approx(tau, rel=1e-4)
    assert tau == pytest.approx(closed, rel=1e-4)
    tau, closed = published.wc_triple_momentum(mu=0.1, L=1.0, n=4, verbose=-1)
    assert (
        worst("triple_momentum", 0.1, 1.0, 4, q=0.1) == pytest.approx(tau, rel=1e-4) == pytest.approx(closed, rel=1e-4)
    )
    q = 0.1
    item = worst("information_theoretic_exact", q, 1.0, 3, metric="distance", q=q)
    assert item == pytest.approx(find_algorithm("item").theorem.bound(3, q, 1.0), rel=1e-4)


@pytest.mark.parametrize("name", [n for n in PROVED if find_algorithm(n).theorem.functions != "quadratic"])
def test_worst_cases_stay_below_the_theorems(name):
    method, mu = find_algorithm(name), 0.1
    theorem = method.theorem
    if theorem.functions == "convex":
        mu = 0.0
    value = analysis.worst_case(
        method, mu, 1.0, 3, metric=theorem.metric, initial=theorem.initial, **analysis.constants_for(method, mu, 1.0)
    )
    assert value <= theorem.bound(3, mu, 1.0) * (1 + 1e-4)


def test_heavy_ball_does_not_converge_on_all_convex_functions():
    """Lessard, Recht, Packard 2016: with Polyak's constants heavy ball cycles on a 1-strongly convex 25-smooth f."""
    mu, L = 1.0, 25.0
    tuned = analysis.constants_for(find_algorithm("heavy_ball"), mu, L)
    r = (math.sqrt(L) - math.sqrt(mu)) / (math.sqrt(L) + math.sqrt(mu))
    few, many = (analysis.worst_case("heavy_ball", mu, L, k, metric="distance", **tuned) for k in (4, 12))
    assert many > 0.5 * few and many > 100 * r**24
    safe = analysis.worst_case("gradient_descent", mu, L, 12, metric="distance")
    assert safe < 0.5


def own(T: Operator, x: Iterate, steps: int):
    for _ in range(steps):
        x = 0.25 * x + 0.75 * T(x)
    return x


def test_a_users_algorithm_is_proved_too():
    value = analysis.worst_case(own, 0.0, 1.0, 4)
    assert value == pytest.approx(1 / (2 * (2 * 4 * 0.75 + 1)), rel=1e-4)


def inconsistent(T: Operator, x: Iterate, steps: int):
    for _ in range(steps):
        x = 0.5 * T(x) + 0.4 * x
    return x


def unstable(T: Operator, x: Iterate, steps: int):
    previous = x
    for _ in range(steps):
        x, previous = T(x) + 1.5 * (x - previous), x
    return x


def exploding(T: Operator, x: Iterate, steps: int):
    for _ in range(steps):
        x = 2 * T(x) - x
    return x


def test_bad_methods_are_called_so():
    good = analysis.diagnose(trace(find_algorithm("krasnoselskii_mann"), steps=20))
    assert (good.consistent, good.stable, good.bounded) == (True, True, True)
    assert good.nearest == ("krasnoselskii_mann", 0.0)
    found = [analysis.diagnose(trace(f, steps=20)) for f in (inconsistent, unstable, exploding)]
    assert [d.consistent for d in found] == [False, True, True]
    assert [d.stable for d in found] == [True, False, True]
    assert not found[2].bounded
    for diagnosis, word in zip(found, ("Inconsistent", "Unstable", "Exploding"), strict=True):
        (sentence,) = [s for s in diagnosis.sentences if s.startswith(word)]
        assert sentence.count(". ") == 0 and sentence.endswith(".")


def test_learned_coefficients_are_diagnosed():
    network = optnet.unroll(find_algorithm("heavy_ball"), steps=5, operators={"T": torch.nn.Identity()})
    with torch.no_grad():
        network.body.coefficients.x3 += torch.tensor([0.0, 0.02, -0.02])
    learned = {(e.step, e.term): e.value for e in optnet.coefficients(network)}
    program = network.program.with_weights(learned)
    diagnosis = analysis.diagnose(program)
    assert diagnosis.consistent and diagnosis.stable and diagnosis.nearest[0] == "heavy_ball"
    with torch.no_grad():
        network.body.coefficients.x3 += 0.3
    learned = {(e.step, e.term): e.value for e in optnet.coefficients(network)}
    assert not analysis.diagnose(network.program.with_weights(learned)).consistent


@pytest.mark.parametrize("mu, L", [(-1, 1), (1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
def test_bad_ranges(mu, L):
    for call in (analysis.errors, analysis.worst_case):
        with pytest.raises(optnet.RequestError, match="mu="):
            call("heavy_ball", mu, L, 3)
