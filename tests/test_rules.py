"""Coefficient rules: each starts at the ancestor, keeps what it promises while it trains, and has no dead parameter."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import crossed

import optnet
from optnet import Iterate, ModelError, Operator
from optnet.analysis import run_on_scalars
from optnet.app.compose import compose, register
from optnet.app.config import Train
from optnet.app.train import prepare
from optnet.data import load
from optnet.networks.rules import CONSTANTS, DYNAMIC, NAMES, RULES, table
from optnet.networks.unrolled import coefficient_names, unrolled_in

FAMILIES = {
    "GD-Net": {"model_name": "resnet_small"}, "HB-Net": {"model_name": "hbnet_small"},
    "AGD-Net": {"model_name": "agdnet_small", "blocks": [4, 4], "widths": [6, 6], "stem_width": 8},
    "AGD-Net-BC": {"model_name": "agdnet_small", "blocks": [3, 3], "widths": [6, 6], "layer": "dense_bc"},
    "ADMM-Net": {"model_name": "admmnet_small"}, "ADMM": {"model_name": "admmnet_small", "algorithm": "admm"},
    "DMRNet": {"model_name": "dmrnet20_cifar"},
    "hyper-connections": {"model_name": "hbnet_small", "algorithm": "hyper_connections"},
    "DenseFormer": {"model_name": "hbnet_small", "algorithm": "denseformer"},
    "HB-Net, project": {"model_name": "hbnet_small", "transition": "project"},
    "bottlenecks": {"model_name": "hbnet_small", "layer": "preact_bottleneck", "widths": [4, 4]},
    "ConvNeXt": {"model_name": "hbconvnext_tiny", "stem": "small", "ls_init_value": 0.1},
}  # fmt: skip
CANNOT = [(rule, family) for rule in CONSTANTS for family in ("hyper-connections", "DenseFormer")]  # they have none
CANNOT += [(rule, "ADMM") for rule in ("simplex", "doubly_stochastic")]  # it has a negative weight
SAME_STREAMS = {"hyper-connections": 2}
"""Where two streams are equal at first, the difference of their weights has no effect: steps until it has."""
SMALL = {"in_chans": 1, "num_classes": 10, "blocks": [3, 3], "widths": [6, 8]}


def build(family, rule, **options):
    torch.manual_seed(0)
    return timm.create_model(**{**SMALL, **FAMILIES[family], "coefficients": rule, **options})


def ruled(model):
    """The learned coefficients."""
    names = coefficient_names(model)
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def weights(model):
    """Of each sum: the program, the sum, and its weights now."""
    for module in unrolled_in(model).values():
        learned = module.learned()
        for row in module.program.combines:
            if row.value in learned:
                yield module.program, row, learned[row.value].detach().double().numpy()


def iterates(program, row):
    """Whether each term is in the sum that is kept, and whether it is an iterate: a start, a sum, or P of one."""
    layers = {call.value for call in program.applies if call.operator == program.main}
    layers |= {call.value for call in program.applies if layers.issuperset(terms_of(program, call.argument))}
    residual = program.readings[program.main] == "residual"
    return np.array([not (residual and t in layers) for t in row.terms]), np.array([t not in layers for t in row.terms])


def terms_of(program, value):
    return next((row.terms for row in program.combines if row.value == value), (value,))


def one_sequence(program):
    several = sum(1 for row in program.combines if iterates(program, row)[1].sum() > 1)
    return len(program.starts) == 1 and several <= program.iterations


def sizes(program, row):
    """Of each term of a sum: T = id is run on ones, a residual call is 0; all 1 if that is no fixed point."""
    found = run_on_scalars(program, np.ones(1))
    if max(abs(found[call.argument][0] - 1) for call in program.calls(program.main)) > 1e-9:
        return iterates(program, row)[0].astype(float)
    return np.array([found[term][0] for term in row.terms])


def check(rule, model, tolerance=1e-6):
    """The promise of each rule, read from the weights alone."""
    if rule in (*CONSTANTS, DYNAMIC):
        return
    for program, row, now in weights(model):
        start, (kept, memory) = np.array(row.weights), iterates(program, row)
        multiples = sizes(program, row)
        assert abs(multiples @ (now - start)) < tolerance  # all rules are consistent
        if rule in ("simplex", "doubly_stochastic"):
            assert now[kept].min(initial=0) > -tolerance
        if rule == "stable":
            order = [*program.starts, *(one.value for one in program.instructions)]
            newest = sorted(np.flatnonzero(memory), key=lambda i: -order.index(row.terms[i]))
            if not one_sequence(program):
                fixed = any(min(one.weights) < 0 for one in program.combines)
                assert np.allclose(now[kept], start[kept]) if fixed else now[memory].min(initial=0) > -tolerance
            elif len(newest):
                companion = np.zeros((len(newest), len(newest)))
                companion[0] = now[newest]
                companion[1:, :-1] = np.eye(len(newest) - 1)
                assert np.abs(np.linalg.eigvals(companion)).max() < 1 + 1e-5


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.7, 0.9])
def test_rounding_takes_no_freedom(beta):
    """1 + beta - beta is not always 1 to the last digit."""
    program = optnet.trace("heavy_ball", steps=5, reading="residual", constants={"beta": beta})
    assert [block.directions for block in table("stable", program).blocks] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("rule, family", crossed(NAMES, FAMILIES, without=lambda *case: case in CANNOT))
@pytest.mark.sampled(4)
def test_a_rule_is_kept_at_every_step(rule, family):
    data = load("digits", "")
    model = build(family, rule)
    free = build(family, "learnable")
    rest = {name: value for name, value in model.state_dict().items() if name not in ruled(model)}
    free.load_state_dict(rest, strict=False)
    batches = data.loader("train", 64, device=torch.device("cpu"), training=True)
    images, labels = next(batches.batches())
    torch.testing.assert_close(model(images), free(images), atol=1e-6, rtol=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer.add_param_group({"params": [extra := torch.zeros((), requires_grad=True)]})
    steps, alive = 0, {}
    for epoch in range(10):
        for images, labels in batches.batches(epoch):
            optimizer.zero_grad()
            (F.cross_entropy(model(images), labels) + 0 * extra).backward()
            for name, parameter in ruled(model).items():
                alive[name] = alive.get(name, False) | (parameter.grad != 0)
            if steps == SAME_STREAMS.get(family, 0):
                assert all(one.ndim == 1 and one.all() for one in alive.values()), alive
            for parameter in ruled(model).values():
                parameter.grad *= 20  # they leave the allowed set many times over
            optimizer.step()
            check(rule, model)
            steps += 1
            if steps == 50:
                moved = [not np.allclose(now, row.weights) for _, row, now in weights(model)]
                some_stay = rule in CONSTANTS or rule in ("simplex", "doubly_stochastic")  # corners are reached again
                assert any(moved) and (all(moved) or some_stay)
                return


@pytest.mark.parametrize("rule", sorted(RULES))
def test_far_outside_the_rule_still_holds(rule):
    model = build("HB-Net", rule)
    for scale in (0.1, 1, 10, 1000):
        for parameter in ruled(model).values():
            parameter.data.normal_(0, scale, generator=torch.Generator().manual_seed(int(scale)))
        check(rule, model, 1e-4 * max(1, scale / 10))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_weights_at_a_border_come_back(rule):
    """The loss first asks for a weight outside, then for another inside."""
    program = optnet.trace("heavy_ball", steps=3, reading="residual", constants={"beta": 0.0})
    rules = table(rule, program)
    optimizer = torch.optim.SGD(rules.parameters(), lr=0.05)
    for wanted, reached in ((-3.0, None), (0.4, 0.4)):  # of x_{k-1}
        for _ in range(200):
            optimizer.zero_grad()
            last = rules.weights()["x3"]
            (last[0] - wanted).square().backward()
            assert all(block.weights.grad is None or block.weights.grad.any() for block in rules.blocks[-1:])
            optimizer.step()
        if rule in ("simplex", "doubly_stochastic") and reached is None:
            assert -1e-12 < rules.weights()["x3"][0] < 0.2  # at the border, up to a step of the optimizer
    assert rules.weights()["x3"][0].item() == pytest.approx(reached, abs=1e-3)


@pytest.mark.parametrize(
    "rule, per_channel", crossed(sorted(NAMES), [False, True], without=lambda *case: case == (DYNAMIC, True))
)
@pytest.mark.sampled(3)
def test_pytorchs_tools_accept_it(rule, per_channel, tmp_path):
    model = build("HB-Net", rule, per_channel=per_channel).eval()
    for parameter in ruled(model).values():
        parameter.data.normal_(0, 0.3)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.jit.script(copy.deepcopy(model))(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        again = build("HB-Net", rule, per_channel=per_channel).eval()
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(again(x), expected)
        torch.testing.assert_close(copy.deepcopy(model).double()(x.double()), expected.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["stable", DYNAMIC])
def test_one_pass_of_training_through_activation_checkpointing(rule):
    plain, kept = build("HB-Net", rule), build("HB-Net", rule, memory="checkpoint")
    x = torch.randn(4, 1, 8, 8)
    for model in (plain, kept):
        model(x).square().mean().backward()
    for (name, one), other in zip(ruled(plain).items(), ruled(kept).values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


FREE = {
    "create_model": lambda word: optnet.create_model("heavy_ball", coefficients=word),
    "timm": lambda word: timm.create_model("hbnet_small", coefficients=word),
    "Network": lambda word: optnet.Network.from_algorithm("heavy_ball", coefficients=word),
    "unroll": lambda word: optnet.unroll("heavy_ball", steps=3, operators={"T": torch.nn.Tanh()}, coefficients=word),
}  # fmt: skip


@pytest.mark.parametrize("how", FREE)
def test_free_is_another_word_for_learnable(how):
    free, learnable = FREE[how]("free"), FREE[how]("learnable")
    assert free.state_dict().keys() == learnable.state_dict().keys()
    assert coefficient_names(free) == coefficient_names(learnable) != set()
    if how != "unroll":
        assert free.options == learnable.options


@pytest.mark.parametrize("key", ["model.coefficients", "model.kwargs.coefficients"])
def test_free_is_stored_as_learnable(key, tmp_path):
    request = register("train", Train, ["model=hbnet_small", f"runs={tmp_path}", "device=cpu", f"{key}=free"])
    config = compose("train", Train, request)
    job = prepare(config)
    assert job.described["kwargs"]["coefficients"] == "learnable"
    assert config.model.coefficients == (None if "kwargs" in key else "learnable")
    assert coefficient_names(job.model)


def hyper(T: Operator, x: Iterate, y: Iterate, z: Iterate, steps: int) -> tuple[Iterate, Iterate, Iterate]:
    """Three streams that are mixed: x_i = sum_j h_ij x_j + T(mean)."""
    for _ in range(steps):
        new = T((x + y + z) / 3)
        x, y, z = x + 0.0 * y + 0.0 * z + new, 0.0 * x + y + 0.0 * z + new, 0.0 * x + 0.0 * y + z + new
    return x, y, z


def test_doubly_stochastic_matrices_of_streams():
    program = optnet.trace(hyper, steps=4)
    rules = table("doubly_stochastic", program)
    matrices = [block for block in rules.blocks if len(block.sizes) == 3]
    assert len(matrices) >= 3
    rows = {row.value: row for row in program.combines}
    for scale in (0.0, 0.1, 1, 100):
        for parameter in rules.parameters():
            parameter.data.normal_(0, scale) if scale else parameter.data.zero_()
        found = rules.weights()
        for block in matrices:
            first = next(i for i, other in enumerate(rules.blocks) if other is block)
            place = sum(len(other.sizes) for other in list(rules.blocks)[:first])
            names = rules.rows[place : place + 3]
            shared = set.intersection(*(set(rows[name].terms) for name in names))
            terms = sorted(shared - {call.value for call in program.applies})
            matrix = torch.stack([found[name][[rows[name].terms.index(term) for term in terms]] for name in names])
            assert len(terms) == 3 and matrix.min() > -1e-12
            torch.testing.assert_close(matrix.sum(0), torch.ones(3, dtype=torch.float64))
            torch.testing.assert_close(matrix.sum(1), torch.ones(3, dtype=torch.float64))
            if not scale:
                assert sorted(matrix.flatten().tolist()) == [0.0] * 6 + [1.0] * 3


@pytest.mark.parametrize("rule", ["simplex", "doubly_stochastic"])
def test_momentum_is_refused_where_no_weight_may_be_negative(rule):
    with pytest.raises(ModelError, match="negative weight") as error:
        optnet.create_model("momentum_residual", coefficients=rule)
    assert "\n" not in str(error.value) and f"coefficients={rule}" in str(error.value)


def test_a_program_outside_is_refused_by_stable():
    with pytest.raises(ModelError, match=r"coefficients=stable.*starts outside"):
        optnet.create_model("heavy_ball", constants={"beta": 1.5}, coefficients="stable", coefficient_init="algorithm")


@pytest.mark.parametrize(
    "beta, allowed", [(0.0, True), (0.5, True), (1.0, True), (-0.5, True), (-1.0, True), (1.01, False)]
)
def test_what_is_stable_for_two_iterates_is_zero_stability(beta, allowed):
    """x_{k+1} = (1 + beta) x_k - beta x_{k-1}: the roots are 1 and beta."""
    program = optnet.trace("heavy_ball", steps=5, reading="residual", constants={"beta": beta})
    if allowed:
        assert table("stable", program).rows
    else:
        with pytest.raises(ModelError):
            table("stable", program)


@pytest.mark.parametrize("rule", sorted(NAMES))
def test_the_coefficient_table_shows_the_weights(rule):
    model = build("HB-Net", rule)
    before = {(entry.stage, entry.step, entry.term): entry.value for entry in optnet.coefficients(model)}
    for parameter in ruled(model).values():
        parameter.data.normal_(0, 0.2)
    after = {(entry.stage, entry.step, entry.term): entry.value for entry in optnet.coefficients(model)}
    assert before.keys() == after.keys() and before != after
    for stage, module in unrolled_in(model).items():
        for row, now in module.learned().items():
            terms = next(one.terms for one in module.program.combines if one.value == row)
            assert [after[stage, row, term] for term in terms] == pytest.approx(now.tolist())


@pytest.mark.parametrize("rule", sorted(NAMES))
def test_only_the_coefficients_are_trained(rule):
    model = optnet.freeze_all_but_coefficients(build("ADMM-Net", rule))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(ruled(model))
    assert coefficient_names(model) <= model.no_weight_decay()


@pytest.mark.parametrize("rule", sorted(NAMES))
def test_a_checkpoint_rebuilds_it(rule):
    from optnet.training.checkpoint import build as rebuilt
    from optnet.training.checkpoint import describe

    model = build("HB-Net", rule).eval()
    for parameter in ruled(model).values():
        parameter.data.normal_(0, 0.1)
    kwargs = {"coefficients": rule, **SMALL, "blocks": [3, 3]}
    again = rebuilt(describe(model, "hbnet_small", kwargs), model.state_dict()).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(again(x), model(x))
