"""Certificates of programs: known rates, true bounds, functions that attain them; every method of the library."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import METHODS, crossed, some
from torch import nn

import optnet
from optnet import RequestError, analysis, find_algorithm, list_algorithms, trace
from optnet.algorithms.optimized import item_sizes, thetas
from optnet.analysis import certificate, trials
from optnet.analysis.figures import certificate_figure
from optnet.analysis.interpolation import interpolant
from optnet.language.tracing import traced

pytest.importorskip("PEPit")

KAPPA = 10.0
NESTEROV = {1: 6.00, 2: 10.00, 3: 15.13, 4: 21.35, 5: 28.66}
"""L |x_0 - x*|^2 over the worst gap of the primary sequence, known as numbers (Kim and Fessler 2016)."""


@pytest.mark.parametrize("steps", some(NESTEROV, 1, 4))
def test_known_methods_get_their_known_rates(steps):
    found = analysis.certify(trace("heavy_ball", steps=steps), kappa=KAPPA)
    q = 1 / KAPPA
    convex = {"gradient_descent": 1 / (2 * (2 * steps + 1)), "optimized_gradient": 1 / (2 * thetas(steps)[-1] ** 2)}
    strongly = {
        "gradient_descent": ((KAPPA - 1) / (KAPPA + 1)) ** (2 * steps),
        "information_theoretic_exact": 1 / (1 + q * item_sizes(steps, q)[-1]),
    }
    for name, rate in convex.items():
        assert found.row(name).convex == pytest.approx(rate, rel=1e-4)
    for name, rate in strongly.items():
        assert found.row(name).strongly_convex == pytest.approx(rate, rel=1e-4)
    assert 1 / found.row("nesterov").convex == pytest.approx(NESTEROV[steps], abs=5.1e-3)
    best = found.row("information_theoretic_exact").strongly_convex
    assert all(row.strongly_convex >= best * (1 - 1e-6) for row in found.rows if row.strongly_convex is not None)


def moved(name, steps, scale, seed, reading="residual"):
    program = trace(name, steps=steps, reading=reading)
    rng = np.random.default_rng(seed)
    return program, program.with_weights({key: w + scale * rng.normal() for key, w in program.weights().items()})


class Gradient(nn.Module):
    """T = id - grad f, or in the residual reading -grad f."""

    def __init__(self, gradient, residual):
        super().__init__()
        self.gradient, self.residual = gradient, residual

    def forward(self, x):
        return -self.gradient(x) if self.residual else x - self.gradient(x)


def run(program, gradient, x):
    """The program's last result, by the network that it becomes."""
    residual = program.readings[program.main] == "residual"
    operators = {name: nn.Identity() for name in program.operators}
    operators[program.main] = Gradient(gradient, residual)
    net = optnet.unroll(program, operators=operators, coefficients="fixed", dtype=torch.float64)
    out = net(*[x] * len(program.starts))
    return out[-1] if isinstance(out, tuple) else out


def quadratics(low, count=10, size=8):
    """f(x) = (x - x*)' H (x - x*) / 2 with random eigenvalues in [low, 1], the largest 1."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        lam = low + (1 - low) * torch.rand(size, generator=generator, dtype=torch.float64) ** 4
        lam[0] = 1.0
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        H, centre = basis @ torch.diag(lam) @ basis.T, torch.randn(size, generator=generator, dtype=torch.float64)
        yield (lambda x, H=H, c=centre: (x - c) @ H @ (x - c) / 2), (lambda x, H=H, c=centre: H @ (x - c)), centre


def log_sum_exps(count=10, size=8):
    """f(x) = log sum_i exp(a_i'(x - x*)) with the a_i in pairs +-a, so that its minimiser is x*; 1-smooth."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(6, size, generator=generator, dtype=torch.float64)
        half = 3 * half / torch.linalg.matrix_norm(half, 2)
        A = torch.cat([half, -half])
        L = A.norm(dim=1).max() ** 2
        centre = 3 * torch.randn(size, generator=generator, dtype=torch.float64)
        yield (
            lambda x, A=A, c=centre, L=L: (torch.logsumexp(A @ (x - c), 0) - math.log(len(A))) / L,
            lambda x, A=A, c=centre, L=L: A.T @ torch.softmax(A @ (x - c), 0) / L,
            centre,
        )


def assert_bounds(found):
    """The projected method's worst cases hold on quadratics and log-sum-exp functions."""
    program, bound = found.programs["projected"], found.row("projected")
    for f, gradient, centre in [*quadratics(0.0), *log_sum_exps()]:
        start = torch.zeros_like(centre)
        assert f(run(program, gradient, start)) <= bound.convex * centre @ centre * (1 + 1e-6)
    for _, gradient, centre in quadratics(1 / found.kappa):
        end = run(program, gradient, torch.zeros_like(centre))
        assert (end - centre) @ (end - centre) <= bound.strongly_convex * centre @ centre * (1 + 1e-6)
    assert all(value <= bound.convex * (1 + 1e-6) for value in bound.measured.values())


@pytest.mark.parametrize("name, scale, reading", [("heavy_ball", 0.3, "residual"), ("nesterov_dense", 0.2, "map")])
def test_the_worst_case_of_a_projected_method_is_a_bound_and_is_attained(name, scale, reading):
    textbook, learned = moved(name, 3, scale, 0, reading)
    found = analysis.certify(learned, textbook, kappa=KAPPA)
    assert not found.consistent and found.row("learned").convex == math.inf and found.solver == "CLARABEL"
    assert_bounds(found)
    points, _, values = found.attained
    assert interpolant(found.attained, points)[0] == pytest.approx(values, abs=1e-6)
    end = run(
        found.programs["projected"],
        lambda x: torch.from_numpy(interpolant(found.attained, x.numpy()[None])[1][0]),
        torch.from_numpy(points[1].copy()),
    )
    reached = interpolant(found.attained, end.numpy()[None])[0][0] / (points[1] @ points[1])
    assert reached == pytest.approx(found.row("projected").convex, rel=1e-3)


def test_a_function_through_samples_is_smooth_and_convex():
    _, learned = moved("heavy_ball", 4, 0.3, 1)
    samples = analysis.certify(learned).attained
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, samples.points.shape[1]))
    (f, g), (h, k) = interpolant(samples, x), interpolant(samples, y)
    gap = h - f - (g * (y - x)).sum(1)
    assert (gap >= ((g - k) ** 2).sum(1) / 2 - 1e-6).all()  # exactly the condition of 1-smooth convex functions


@pytest.mark.parametrize("method, reading", crossed(METHODS, ["map", "residual"]))
def test_every_method_is_certified_or_refused_in_one_line(method, reading):
    program = traced(method, 2, reading=reading)
    try:
        found = analysis.certify(program)
    except RequestError as error:
        assert str(error).startswith(method.name) and "\n" not in str(error)
        assert method.name in ("pdhg",)
        return
    assert found.gradients >= 1 and [row.name for row in found.rows][:3] == ["learned", "projected", "textbook"]
    assert (found.row("learned").convex < math.inf) == found.consistent
    assert found.row("projected").convex < math.inf and found.row("projected").strongly_convex < math.inf
    if method.name in list_algorithms():
        assert found.consistent and found.stability.stable and found.distance == 0 and found.nearest[1] < 1e-12


def test_what_cannot_be_certified_is_said_in_one_line():
    with pytest.raises(RequestError, match="pdhg has the operators Kt, K, Q beside P"):
        optnet.certify("pdhg")
    with pytest.raises(RequestError, match="kappa=1 must be greater than 1"):
        optnet.certify("gd", kappa=1)
    with pytest.raises(RequestError, match="no unrolled algorithm"):
        optnet.certify(nn.Linear(2, 2))
    found = optnet.certify("gd", steps=51)["gradient_descent"]
    assert "51 gradients take too long; at most 50 do" in found.notes[0] and found.row("learned").convex is None


def test_without_pepit_a_note_names_the_extra(monkeypatch):
    def missing():
        raise RequestError("worst cases need PEPit: pip install 'optnet-generator[proof]'")

    monkeypatch.setattr(certificate, "require", missing)
    found = analysis.certify(trace("heavy_ball", steps=2))
    assert found.notes == ("worst cases need PEPit: pip install 'optnet-generator[proof]'",)
    assert all(row.convex is None and row.strongly_convex is None for row in found.rows)
    assert found.attained is None and found.row("learned").measured


def test_single_precision_is_consistent():
    textbook = trace("heavy_ball", steps=4)
    rounded = textbook.with_weights({key: float(np.float32(w)) for key, w in textbook.weights().items()})
    found = analysis.certify(rounded, textbook)
    assert 0 < found.inconsistency < 1e-6 and found.consistent
    assert found.row("learned").convex == pytest.approx(found.row("textbook").convex, rel=1e-5)


def test_an_inconsistent_program_is_unbounded_for_the_solver_too():
    _, learned = moved("heavy_ball", 2, 0.3, 0)
    assert analysis.worst_case_of(learned, 0.0, 1.0).value == math.inf


def test_several_results_and_operators_are_explained():
    found = analysis.certify(traced(find_algorithm("merge_and_run"), 2, ["T", "P"], "residual"))
    assert found.notes == (
        "P is taken as the identity.", "The last iterate of its 2 results is judged.",
        "Its 2 starting points are taken as equal.",
    )  # fmt: skip


@pytest.mark.parametrize(
    "dimensions, said", [(0, "no worst case"), (1, "a worst"), (2, "a worst"), (3, "the plane of")]
)
def test_a_worst_case_is_drawn_in_as_many_dimensions_as_it_has(dimensions, said):
    found = analysis.certify(trace("gd", steps=2))
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, dimensions)) * (np.arange(4) > 0)[:, None]
    H = np.diag(np.linspace(0.2, 1, dimensions))
    samples = analysis.Samples(points, points @ H, np.einsum("ni,ij,nj->n", points, H, points) / 2)
    figure = certificate_figure({"a$stage": replace(found, attained=samples if dimensions else None)})
    first, *others = figure.axes
    assert said in first.get_xlabel() + "".join(text.get_text() for text in first.texts)
    assert [axes.get_title() for axes in others] == ["quadratic", "logistic regression"]
    assert all(len(axes.lines) == 5 for axes in others)
    if dimensions == 3:  # x*, x_0 and x_N alone, at their distances
        (path,) = (line for line in first.lines if line.get_marker() == "o")
        start, end = path.get_xydata()
        assert np.linalg.norm(start) == pytest.approx(np.linalg.norm(points[1]))
        assert np.linalg.norm(end - start) == pytest.approx(np.linalg.norm(points[-1] - points[1]))


def test_the_trials_are_smooth_and_their_minima_known():
    for trial in certificate.trials():
        assert np.abs(trial.gradient(trial.minimiser)).max() < 1e-12
        x = np.random.default_rng(0).normal(size=len(trial.minimiser))
        step = 1e-6 * np.ones_like(x)
        slope = (trial.value(x + step) - trial.value(x - step)) / 2
        assert slope == pytest.approx(trial.gradient(x) @ step, rel=1e-5)
        H = np.array([trial.gradient(x + e) - trial.gradient(x - e) for e in 1e-5 * np.eye(len(x))]) / 2e-5
        assert np.linalg.eigvalsh((H + H.T) / 2).max() <= 1 + 1e-6 and np.linalg.eigvalsh((H + H.T) / 2).min() > 0


def test_a_run_starts_again_and_ends_where_it_diverges():
    trial = trials.quadratic()
    one, whole = (trials.curve(trace("gd", steps=steps), trial, 12) for steps in (4, 12))
    assert one == pytest.approx(whole) and len(one) == 13
    lam = np.geomspace(1e-3, 1, 100)
    assert one[12] == pytest.approx(float(lam @ (1 - lam) ** 24 / 2))
    far = trace("heavy_ball", steps=4, constants={"step": 50.0})
    assert len(trials.curve(far, trial, 60)) < 60 and all(map(math.isfinite, trials.curve(far, trial, 60)))
