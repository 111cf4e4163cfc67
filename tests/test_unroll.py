"""Programs to modules: the network is the algorithm, no coefficient is dead, PyTorch's tools accept it."""

import copy
import time

import pytest
import torch
from helpers import FEATURES, METHODS, OWN, crossed, layer, names, required, starts
from torch import nn

import optnet
from optnet import Iterate, Operator, OperatorError, Program, ProgramError, ShapeError, find_algorithm, trace, unroll
from optnet.networks.emitting import LayerFactory

READINGS = ["map", "residual"]
COEFFICIENTS = ["fixed", "learnable"]


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def assert_close(got, wanted, tolerance=1e-12):
    for a, b in zip(as_tuple(got), as_tuple(wanted), strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def tensor_operators(layers, first_residual):
    """The layers as an optimizer would see them: the first one read as T = id + F if asked."""
    operators = dict(layers)
    if first_residual:
        first = next(iter(layers))
        operators[first] = lambda v: v + layers[first](v)
    return operators


@pytest.mark.parametrize(
    "method, kind, reading, coefficients", crossed(METHODS, ["identity", "relu", "tanh"], READINGS, COEFFICIENTS)
)
def test_the_network_is_the_algorithm(method, kind, reading, coefficients):
    layers = {name: layer(kind, seed) for seed, name in enumerate(required(method))}
    points = starts(method)
    for steps in (1, 2, 3, 8, 40):
        network = unroll(
            method, steps=steps, operators=layers, reading=reading, coefficients=coefficients, dtype=torch.float64
        )
        wanted = method(*tensor_operators(layers, reading == "residual").values(), *points, steps=steps)
        with torch.no_grad():
            assert_close(network(*points), wanted)
            assert_close(network(*points), wanted)  # the first call checks shapes, the second does not


@pytest.mark.parametrize("method", [m for m in METHODS if "P" in m.operators and not m.operators["P"]], ids=names)
def test_a_projection_is_a_layer_of_every_step(method):
    layers = {**{name: layer("tanh", seed) for seed, name in enumerate(required(method))}, "P": nn.ReLU()}
    network = unroll(method, steps=5, operators=layers, coefficients="fixed", dtype=torch.float64)
    wanted = method(**layers, **dict(zip(method.starts, starts(method), strict=True)), steps=5)
    assert_close(network(*starts(method)), wanted)


def test_the_two_nesterov_forms_agree_after_one_more_step():
    T = layer("tanh")
    (x,) = starts(find_algorithm("nesterov"))
    for k in range(1, 9):
        dense = find_algorithm("nesterov_dense")(T, x, steps=k)
        assert_close(T(dense), find_algorithm("nesterov")(T, x, steps=k + 1))


def test_admm_is_the_talks_written_out_sums():
    T = layer("tanh")
    (x0,) = starts(find_algorithm("admm"))
    xs, primes = [x0], [x0]
    for k in range(12):
        total = sum((primes[t] - xs[t] for t in range(1, k + 1)), torch.zeros_like(x0))
        primes.append((T(primes[k]) + xs[k] - total) / 2)
        xs.append((T(xs[k]) + primes[k + 1] + total) / 2)
        assert_close(find_algorithm("admm")(T, x0, steps=k + 1), xs[-1])


def test_merge_and_run_with_one_operator_keeps_its_streams_equal():
    T, (x, _) = layer("tanh"), starts(find_algorithm("merge_and_run"))
    a, b = find_algorithm("merge_and_run")(T, x, x, steps=7)
    assert torch.equal(a, b)


def untied(kind="tanh"):
    return lambda call: layer(kind, seed=17 * call.index + len(call.operator))


@pytest.mark.parametrize("method, reading, per_channel", crossed(METHODS, READINGS, [False, True]))
def test_no_coefficient_is_dead(method, reading, per_channel):
    operators = {name: untied() for name in required(method)}
    network = unroll(
        method, steps=5, operators=operators, reading=reading, dtype=torch.float64, per_channel=per_channel,
        channels=FEATURES,
    )  # fmt: skip
    points = starts(method)

    def output():
        return torch.cat(as_tuple(network(*points)), 1)

    before = output().detach()
    parameters = {n: p for n, p in network.named_parameters() if "coefficients" in n}
    assert len(parameters) == len(list(network.program.combines))
    (output() ** 2).sum().backward()
    for name, parameter in parameters.items():
        assert parameter.ndim == 1
        assert (parameter.grad != 0).all(), name
        for i in range(len(parameter)):
            kept = parameter.data[i].item()
            parameter.data[i] += 0.1
            assert not torch.allclose(output(), before, rtol=1e-9, atol=1e-12), f"{name}[{i}]"
            parameter.data[i] = kept


def folding(weighted=True, sums=False):
    """A factory of linear layers that fold their weights, alone or for a whole sum."""

    class Folding(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.layers = nn.ModuleList(
                layer("tanh", seed=100 * call.index + j)[0] for j, _ in enumerate(call.arguments)
            )

        def forward(self, xs, weights=None):
            weights = [1.0] * len(xs) if weights is None else weights
            return sum(w * f(x) for w, f, x in zip(weights, self.layers, xs, strict=True))

    return LayerFactory(Folding, weighted=weighted, sums=sums)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("method", METHODS, ids=names)
def test_weighted_layers_equal_plain_ones(method, coefficients):
    built = {}

    def plain(call):
        built[call.operator, call.index] = layer("tanh", seed=100 * call.index)[0]
        return built[call.operator, call.index]

    operators = required(method)
    options = {"steps": 4, "dtype": torch.float64, "coefficients": coefficients}
    one = unroll(method, operators=dict.fromkeys(operators, plain), **options)
    two = unroll(method, operators=dict.fromkeys(operators, folding()), **options)
    assert_close(two(*starts(method)), one(*starts(method)))


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_all_fresh_calls_of_a_sum_are_one_layer(coefficients):
    dense = find_algorithm("nesterov_dense")
    network = unroll(
        dense, steps=4, operators={"T": folding(sums=True)}, dtype=torch.float64, coefficients=coefficients
    )
    layers = [name for name, _ in network.body.named_children() if name.startswith("T_")]
    assert layers == ["T_0", "T_1", "T_3", "T_6"]
    sizes = [len(network.body.get_submodule(name).layers) for name in layers]
    assert sizes == [1, 2, 3, 4]
    modules = {(name, j): f for name in layers for j, f in enumerate(network.body.get_submodule(name).layers)}
    calls = iter([modules[name, j] for name, size in zip(layers, sizes, strict=True) for j in range(size)])
    wanted = dense(lambda x: next(calls)(x), *starts(dense), steps=4)
    assert_close(network(*starts(dense)), wanted)


def two_sums(T: Operator, S: Operator, x: Iterate, y: Iterate, steps: int):
    return 2 * T(x) + 3 * T(y) + 5 * S(x) + 7 * S(y)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_two_operators_that_take_whole_sums(coefficients):
    class Sum(nn.Module):
        def forward(self, xs, weights=None):
            return sum(w * x for w, x in zip(weights, xs, strict=True))

    factory = LayerFactory(lambda call: Sum(), weighted=True, sums=True)
    network = unroll(two_sums, steps=1, operators={"T": factory, "S": factory}, coefficients=coefficients)
    x, y = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.allclose(network.double()(x, y), 7 * x + 10 * y, rtol=1e-14)


def test_fixed_weights_cost_nothing_where_they_are_zero():
    network = unroll(
        find_algorithm("hb"), steps=1, operators={"T": nn.Linear(2, 3)}, shortcuts={"x": nn.Linear(2, 3)},
        coefficients="fixed",
    )  # fmt: skip
    assert [name for name, _ in network.body.named_children()] == ["T"]


def test_tied_and_untied():
    method = find_algorithm("hb")
    tied = unroll(method, steps=3, operators={"T": layer("tanh")})
    free = unroll(method, steps=3, operators={"T": untied()})
    assert [n for n, _ in tied.body.named_children()] == ["T", "coefficients"]
    assert sum(n.startswith("T_") for n, _ in free.body.named_children()) == 3


SHAPES = ["gradient_descent", "heavy_ball", "nesterov_dense", "admm", "merge_and_run", "pdhg", *map(names, OWN)]
"""Algorithms that differ in their graph: of one or several operators, starts, results, and lengths of their sums."""


OTHERS = [method for method in METHODS if method.name not in SHAPES]


@pytest.mark.parametrize("method, per_channel", [
    *crossed([method for method in METHODS if method.name in SHAPES], [False, True]),
    *(pytest.param(m, wide, marks=pytest.mark.slow, id=f"{m.name}-{wide}") for m in OTHERS for wide in (False, True)),
])  # fmt: skip
@pytest.mark.sampled(3)
def test_pytorch_accepts_it(method, per_channel):
    operators = {name: layer("tanh", dtype=torch.float32) for name in required(method)}
    network = unroll(method, steps=3, operators=operators, per_channel=per_channel, channels=FEATURES)
    points = [point.float() for point in starts(method)]
    wanted = network(*points)
    torch._dynamo.reset()
    assert_close(torch.compile(network, fullgraph=True, backend="aot_eager")(*points), wanted, 1e-6)
    assert_close(torch.export.export(network, tuple(points)).module()(*points), wanted, 1e-6)
    copied = copy.deepcopy(network)
    assert copied.program == network.program and copied.rows == network.rows
    assert_close(copied(*points), wanted, 0)
    assert_close(torch.jit.script(network)(*points), wanted, 1e-6)
    again = unroll(
        Program.from_json(network.program.to_json()), operators=operators, per_channel=per_channel, channels=FEATURES
    )
    assert_close(again(*points), wanted, 0)


def most_live(network):
    """The largest number of activations that are alive at once in the graph."""
    graph = network.body.graph
    values = [
        n
        for n in graph.nodes
        if n.op in ("placeholder", "call_module")
        or n.target in (torch.mul, torch.addcmul, torch.add, "mul_", "addcmul_", "add_")
    ]
    position = {node: i for i, node in enumerate(graph.nodes)}
    last = {node: max((position[user] for user in node.users), default=position[node]) for node in values}
    return max(sum(position[v] <= i <= last[v] for v in values) for i in position.values())


@pytest.mark.parametrize("name", ["gradient_descent", "heavy_ball", "nesterov", "admm"])
@pytest.mark.parametrize("reading", READINGS)
def test_live_values_do_not_grow_with_depth(name, reading):
    few, many = (
        most_live(unroll(find_algorithm(name), steps=steps, operators={"T": nn.Identity()}, reading=reading))
        for steps in (8, 64)
    )
    assert few == many


def test_a_thousand_steps_take_less_than_three_seconds():
    started = time.process_time()  # not perf_counter: other tests run beside it
    unroll(find_algorithm("hb"), steps=1000, operators={"T": nn.Identity()})
    assert time.process_time() - started < 3


def test_coefficient_table():
    textbook = trace(find_algorithm("hb"), steps=3, reading="residual")
    start = trace(find_algorithm("hb"), steps=3, reading="residual", beta=0.0)
    network = unroll(start, textbook=textbook, operators={"T": nn.Identity()})
    table = {(entry.step, entry.term): (entry.value, entry.textbook) for entry in optnet.coefficients(network)}
    assert table["x2", "x"] == (0.0, pytest.approx(-0.9))
    assert table["x2", "T1"] == (1.0, 1.0)
    network.body.coefficients.x2.data.fill_(0.25)
    assert {e.value for e in optnet.coefficients(network) if e.step == "x2"} == {0.25}
    wide = unroll(find_algorithm("hb"), steps=2, operators={"T": nn.Identity()}, per_channel=True, channels=8)
    assert len(optnet.coefficients(wide)) == 5 and wide.body.coefficients.x2.shape == (24,)


def test_a_start_of_another_shape():
    dense = find_algorithm("nesterov_dense")

    def make(call):
        return nn.ModuleList([nn.Linear(2 if start else FEATURES, FEATURES) for start in call.starts])[0]

    options = {"steps": 3, "operators": {"T": make}, "shortcuts": {"x": None}}
    network = unroll(dense, alpha=1.0, beta=0.0, **options)
    assert network(torch.randn(5, 2)).shape == (5, FEATURES)
    assert all("x" not in row.terms for row in network.program.combines)
    with pytest.raises(ProgramError, match="shortcut"):
        unroll(dense, alpha=1.0, beta=0.5, **options)
    projected = unroll(
        find_algorithm("hb"), steps=3, operators={"T": make}, shortcuts={"x": nn.Linear(2, FEATURES)}, beta=0.5
    )
    assert projected(torch.randn(5, 2)).shape == (5, FEATURES)


def test_bad_requests():
    method, T = find_algorithm("hb"), nn.Identity()
    bad = [
        {"operators": {}},
        {"operators": {"T": T, "Q": T}},
        {"operators": {"T": nn.ReLU}},
        {"operators": {"T": 3}},
        {"operators": {"T": lambda call: torch.relu}},
        {"operators": {"T": T}, "coefficients": "frozen"},
        {"operators": {"T": T}, "per_channel": True},
        {"operators": {"T": T}, "memory": "little"},
        {"operators": {"T": T}, "shortcuts": {"y": None}},
    ]
    for options in bad:
        with pytest.raises(OperatorError) as error:
            unroll(method, steps=2, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(optnet.AlgorithmError, match="steps"):
        unroll(method, operators={"T": T})
    with pytest.raises(optnet.AlgorithmError, match="program"):
        unroll(trace(method, steps=2), steps=2, operators={"T": T})


@pytest.mark.parametrize("T", [nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 3)])
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_shapes_that_do_not_match_are_named(T, coefficients):
    network = unroll(find_algorithm("hb"), steps=1, operators={"T": T}, coefficients=coefficients, reading="residual")
    for _ in range(2):
        with pytest.raises(ShapeError, match="x1 adds") as error:
            network(torch.randn(2, FEATURES))
    assert "\n" not in str(error.value)
