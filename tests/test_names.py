"""Names: whatever operators, starts and constants are called, the network is the algorithm; nothing parses names."""

import ast
import copy
import itertools
import keyword
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import timm
import torch
from helpers import FEATURES, layer
from torch import nn

import optnet
from optnet import AlgorithmError, Iterate, NetworkDefaults, Operator, algorithm, identity, trace, unroll
from optnet.language.declaration import Algorithm
from optnet.networks.unrolled import coefficient_names, unrolled_in

PACKAGE = Path(optnet.__file__).parent
PAIRS = [("T", "T_1"), ("T_1", "T"), ("T", "T_adjoint"), ("T", "T_0"), ("T1", "T"), ("T", "T1"), ("T", "shortcut_x")]
NASTY = [
    "forward",
    "half",
    "to",
    "train",
    "graph",
    "code",
    "self_",
    "torch_",
    "parameters",
    "coefficients",
    "children",
    "type",
    "shortcut_x",
    "layers",
    "device",
    "T_0",
    "x1",
    "print",
    "list",
    "super",
    "lambda_",
    "match",
    "_",
    "__doc__",
    "double",
    "compile",
    "register_buffer",
    "call_super_init",
    "body",
    "starts",
]
START_NAMES = [
    "self",
    "torch",
    "device",
    "forward",
    "inf",
    "nan",
    "print",
    "list",
    "fx",
    "T",
    "x1",
    "starts",
    "operators",
    "steps_",
]


def method(operators, start="x", constant="beta"):
    """x_{k+1} = beta x_k + sum over the operators of O(x_k) / 4, its operators, start and constant called as given."""
    arguments = ", ".join(f"{name}: Operator" for name in operators)
    total = " + ".join(f"0.25 * {name}({start})" for name in operators)
    text = (
        f"def made({arguments}, {start}: Iterate, steps: int, *, {constant}: float = 0.5):\n"
        f"    for iteration_ in range(steps):\n        {start} = {constant} * {start} + {total}\n    return {start}\n"
    )
    space = {"Operator": Operator, "Iterate": Iterate}
    exec(text, space)
    return Algorithm(space["made"])


def untied(seed):
    """A factory whose layers differ from call to call."""
    return lambda call: layer("tanh", 100 * seed + call.index)


def reference(names, layers, x, steps, beta=0.5):
    for k in range(steps):
        x = beta * x + sum(0.25 * layers[name][k](x) for name in names)
    return x


@pytest.mark.parametrize("coefficients", ["learnable", "fixed"])
@pytest.mark.parametrize("tied", list(itertools.product([True, False], repeat=2)), ids=str)
@pytest.mark.parametrize("names", PAIRS, ids=" ".join)
def test_operators_with_colliding_names_are_the_algorithm(names, tied, coefficients):
    """Each operator tied or with a layer a call: the network is the algorithm written out, and saves all its layers."""
    steps, layers, operators = 4, {}, {}
    for seed, (name, shared) in enumerate(zip(names, tied, strict=True)):
        make = untied(seed)
        if shared:
            operators[name] = layer("tanh", 100 * seed)
            layers[name] = [operators[name]] * steps
        else:
            operators[name] = make
            layers[name] = [make(optnet.Call(name, k, ("x",), (True,))) for k in range(steps)]
    network = unroll(
        method(names), steps=steps, operators=operators, coefficients=coefficients, dtype=torch.float64
    )  # fmt: skip
    x = torch.randn(3, FEATURES, dtype=torch.float64)
    wanted = reference(names, layers, x, steps)
    assert torch.allclose(network(x), wanted, rtol=1e-12, atol=1e-12)
    modules = [module for name in names for module in network.served_by(name).values()]
    assert len(set(modules)) == len(modules) == sum(1 if shared else steps for shared in tied)
    again = copy.deepcopy(network)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NASTY)
@pytest.mark.sampled(20)
def test_an_operator_may_have_any_name(name, tied):
    made, factory = method([name]), untied(7)
    shared = layer("tanh", 700)
    network = unroll(made, steps=3, operators={name: shared if tied else factory}, dtype=torch.float64)
    layers = [shared] * 3 if tied else [factory(optnet.Call(name, k, ("x",), (True,))) for k in range(3)]
    x = torch.randn(3, FEATURES, dtype=torch.float64)
    assert torch.allclose(network(x), reference([name], {name: layers}, x, 3), rtol=1e-12, atol=1e-12)
    assert network.train() is network and network.double() is network and len(list(network.parameters())) > 2
    assert torch.equal(torch.export.export(network, (x,)).module()(x), network(x))


@pytest.mark.parametrize("name", [name for name in START_NAMES if not keyword.iskeyword(name)])
def test_a_start_may_have_any_name(name):
    made = method(["G"], start=name)
    shared = layer("tanh", 5)
    network = unroll(made, steps=3, operators={"G": shared}, dtype=torch.float64)
    x = torch.randn(3, FEATURES, dtype=torch.float64)
    assert torch.allclose(network(x), reference(["G"], {"G": [shared] * 3}, x, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["shortcut_x", "coefficients", "T"])
def test_shortcuts_and_coefficients_are_nobody_elses_modules(name):
    """A shared operator called like a shortcut or the coefficients, next to one: all three are there, and apart."""
    shared, shortcut = layer("tanh", 3), layer("tanh", 4)
    before = set(dict(shared.named_parameters()))
    networks = [
        unroll(method([name]), steps=2, operators={name: shared}, shortcuts={"x": shortcut}, dtype=torch.float64)
        for _ in range(2)
    ]
    assert set(dict(shared.named_parameters())) == before
    one, two = (dict(network.named_parameters()) for network in networks)
    own = coefficient_names(networks[0])
    assert own and all("coefficients" in entry and one[entry] is not two[entry] for entry in own)
    assert networks[0].body.get_submodule(networks[0].shortcuts["x"]) is shortcut
    assert list(networks[0].served_by(name).values()) == [shared]
    x = torch.randn(3, FEATURES, dtype=torch.float64)
    first = 0.5 * shortcut(x) + 0.25 * shared(x)
    assert torch.allclose(networks[0](x), 0.5 * first + 0.25 * shared(first), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("names", PAIRS, ids=" ".join)
def test_printing_has_one_name_for_one_thing(names):
    program = trace(method(names), steps=3)
    values = [*program.starts, *(one.value for one in program.instructions)]
    things = [*program.operators, *values, *program.labels.values()]
    assert len(set(things)) == len(things)
    assert all(f"{label}(" in str(program) for label in program.labels.values())


CONSTANTS = [
    "memory",
    "reading",
    "function",
    "device",
    "dtype",
    "channels",
    "packed",
    "textbook",
    "operators",
    "coefficients",
    "constants",
    "algorithm",
]


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_may_be_called_like_an_option(name):
    """It goes as constants={...}; the option of that name stays the option."""
    made = method(["T"], constant=name)
    program = trace(made, steps=2, constants={name: 0.25})
    assert program.constants == {name: 0.25} and 0.25 in program.weights().values()
    shared = layer("tanh", 1)
    network = unroll(made, steps=2, operators={"T": shared}, constants={name: 0.25}, dtype=torch.float64)
    x = torch.randn(3, FEATURES, dtype=torch.float64)
    assert torch.allclose(network(x), reference(["T"], {"T": [shared] * 2}, x, 2, beta=0.25), rtol=1e-12)
    assert optnet.analysis.errors(made, 0.1, 1.0, 2, constants={name: 0.25})
    model = optnet.create_model(made, blocks=[1], widths=[4], constants={name: 0.25})
    assert model.programs[0].textbook.constants == {name: 0.25}


def test_constants_given_twice_or_not_as_a_mapping_are_refused():
    with pytest.raises(AlgorithmError, match="'beta' is given twice"):
        trace("heavy_ball", steps=2, constants={"beta": 0.5}, beta=0.6)
    with pytest.raises(AlgorithmError, match="must be a mapping"):
        trace("heavy_ball", steps=2, constants=[0.5])
    with pytest.raises(AlgorithmError, match="no constant 'gamma'"):
        trace("heavy_ball", steps=2, constants={"gamma": 0.5})


MINE = """
from optnet import Iterate, Operator

def mine(T: Operator, x: Iterate, steps: int, *, beta: float = 0.9):
    for _ in range(steps):
        x = T(x) + beta * x
    return x
"""


def test_an_algorithm_is_one_thing(tmp_path, monkeypatch):
    """A name, an alias, file:function, a dotted path, a function and an Algorithm are taken alike, everywhere."""
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    import my_methods

    alike = [f"{tmp_path}/my_methods.py:mine", "my_methods.mine", my_methods.mine, Algorithm(my_methods.mine)]
    alike_2 = ["heavy_ball", "polyak", "optnet.algorithms.heavy_ball.heavy_ball", optnet.find_algorithm("heavy_ball")]
    for group in (alike, [name for name in alike_2 if not isinstance(name, str) or name in _known()]):
        programs = {str(trace(one, steps=3)) for one in group}
        assert len(programs) == 1
        for one in group:
            network = unroll(one, steps=2, operators={"T": nn.Identity()})
            model = optnet.create_model(one, blocks=[1], widths=[4])
            factor = optnet.analysis.convergence_factor(one, 0.1, 1.0, constants={"beta": 0.1})
            assert network and model and factor


def _known():
    registered = {"optnet.algorithms.heavy_ball.heavy_ball", *optnet.list_algorithms()}
    return registered | {alias for name in optnet.list_algorithms() for alias in optnet.find_algorithm(name).aliases}


def test_a_typo_in_an_algorithms_network_is_an_error():
    def mistyped(T: Operator, x: Iterate, steps: int, *, beta: float = 0.5, P: Operator = identity):
        return P(T(x) + beta * x)

    with pytest.raises(AlgorithmError, match="network= has no 'layers'; it has: layer, reading"):
        algorithm(network={"layers": "plain"})(mistyped)
    with pytest.raises(AlgorithmError, match=r"network.constants names 'gamma', which is not a constant"):
        algorithm(network={"constants": {"gamma": 1}})(mistyped)
    with pytest.raises(TypeError, match="layers"):
        NetworkDefaults(layers="plain")
    assert Algorithm(mistyped, network={"layer": "plain"}).network == NetworkDefaults(layer="plain")
    assert "mistyped" not in optnet.list_algorithms()


def test_a_users_file_runs_once_until_it_is_changed(tmp_path):
    file, log = tmp_path / "mine.py", tmp_path / "log"
    file.write_text(f"with open({str(log)!r}, 'a') as log:\n    log.write('x')\n{MINE}")
    for _ in range(3):
        trace(f"{file}:mine", steps=1)
        unroll(f"{file}:mine", steps=1, operators={"T": nn.Identity()})
    assert log.read_text() == "x"
    file.write_text(file.read_text().replace("beta * x", "2 * beta * x"))
    assert 1.8 in trace(f"{file}:mine", steps=1).weights().values() and log.read_text() == "xx"


def test_a_users_file_imports_what_lies_beside_it_and_its_algorithms_may_be_found_twice(tmp_path, monkeypatch):
    (tmp_path / "my_helper.py").write_text("BETA = 0.25\n")
    text = MINE.replace(
        "def mine", "from my_helper import BETA\nfrom optnet import algorithm\n\n@algorithm()\ndef mine_2"
    )
    (tmp_path / "my_decorated.py").write_text(text.replace("0.9", "BETA"))
    first = trace(f"{tmp_path}/my_decorated.py:mine_2", steps=1)
    monkeypatch.syspath_prepend(tmp_path)
    import my_decorated

    assert 0.25 in first.weights().values() and trace(my_decorated.mine_2, steps=1) == first


LAZY = """
from optnet import Iterate, Operator

def lazy(T: Operator, x: Iterate, steps: int):
    from my_late_helper import BETA
    return T(x) + BETA * x
"""


@pytest.mark.parametrize("helper", ["my_shared_helper.py", "my_shared_package/__init__.py"])
def test_files_of_two_folders_import_each_its_own_neighbour(tmp_path, helper):
    """The helpers have one name; a helper may also be imported only when the algorithm runs."""
    module = helper.partition("/")[0].removesuffix(".py")
    for folder, beta in (("a", 0.25), ("b", 0.75)):
        (tmp_path / folder / helper).parent.mkdir(parents=True)
        (tmp_path / folder / helper).write_text(f"BETA = {beta}\n")
        (tmp_path / folder / "mine.py").write_text(f"from {module} import BETA\n{MINE.replace('0.9', 'BETA')}")
    for folder, beta in (("a", 0.25), ("b", 0.75), ("a", 0.25)):
        assert beta in trace(f"{tmp_path}/{folder}/mine.py:mine", steps=1).weights().values()
    (tmp_path / "a" / "my_late_helper.py").write_text("BETA = 0.125\n")
    (tmp_path / "a" / "lazy.py").write_text(LAZY)
    assert 0.125 in trace(f"{tmp_path}/a/lazy.py:lazy", steps=1).weights().values()


@pytest.mark.parametrize("ending", ["import sys\nsys.exit(7)", "1 / 0", "assert False", "def"])
def test_a_users_file_that_fails_is_one_line(tmp_path, ending):
    (tmp_path / "bad.py").write_text(f"{MINE}\n{ending}\n")
    with pytest.raises(AlgorithmError, match="cannot be imported") as error:
        trace(f"{tmp_path}/bad.py:mine", steps=1)
    assert "\n" not in str(error.value)


def test_a_call_knows_its_iteration():
    assert [call.iteration for call in trace("heavy_ball", steps=5).calls("T")] == [0, 1, 2, 3, 4]
    dense = trace("nesterov_dense", steps=4, constants={"skips": False})
    assert [call.iteration for call in dense.calls("T")] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [call.iteration for call in trace("merge_and_run", steps=3).calls("T")] == [0, 0, 1, 1, 2, 2]
    program = trace("nesterov", steps=6)
    assert (program.main, program.iterations) == ("T", 6) and optnet.Program.from_json(program.to_json()) == program


def test_programs_of_earlier_versions_are_refused_in_one_line():
    old = '{"name": "gd", "starts": ["x"], "steps": [], "results": ["x"], "readings": {}, "constants": {"steps": 1}}'
    with pytest.raises(optnet.ProgramError, match="format 1; this optnet reads 2: trace the algorithm again"):
        optnet.Program.from_json(old)


# no module parses names

PARSING = {"startswith", "endswith", "partition", "rpartition", "split", "rsplit", "removeprefix", "removesuffix"}
NAMED = {"named_modules", "named_children", "named_parameters", "named_buffers", "state_dict", "children"}
NETWORK_FILES = [
    file for room in ("networks", "training", "lifted", "analysis") for file in sorted((PACKAGE / room).rglob("*.py"))
]


@pytest.mark.parametrize("file", NETWORK_FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_module_name_is_parsed(file):
    """A function that walks modules or parameters by name takes no name apart, and uses no regular expression on one.

    timm's contract wants regular expressions for groups of parameters: ``Network.group_matcher`` makes them.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.FunctionDef) or node.name == "group_matcher":
            continue
        called = {
            inner.func.attr for inner in ast.walk(node)
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute)
        }  # fmt: skip
        parses = called & PARSING or {
            inner.value.id for inner in ast.walk(node)
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "re"
        }  # fmt: skip
        assert not (called & NAMED and parses), f"{node.name} in {file.name} parses names: {parses}"


def test_a_network_says_what_serves_what():
    model = optnet.create_model("nesterov", layer="basic", blocks=[2, 2], widths=[4, 8])
    stages = unrolled_in(model)
    assert list(stages) == ["stages.0.unrolled", "stages.1.unrolled"]
    for stage in stages.values():
        served = stage.served_by("T")
        assert list(served) == [stage.layers[call.value] for call in stage.program.calls("T")] and len(served) == 2
    assert stages["stages.1.unrolled"].shortcuts and not stages["stages.0.unrolled"].shortcuts
    learnable = {name for name, _ in model.named_parameters() if name in coefficient_names(model)}
    assert len(learnable) == sum(bool(row) for stage in stages.values() for row in stage.rows.values()) > 0


def test_no_module_is_called_like_a_public_function():
    """``import optnet.unroll as u`` must not yield a function."""
    functions = {name for name in optnet.__all__ if callable(getattr(optnet, name)) and name.islower()}
    assert {"trace", "unroll", "coefficients", "algorithm"} <= functions
    assert not functions & {file.stem for file in PACKAGE.rglob("*.py")}
    assert not any(PathFinder.find_spec(f"optnet.{name}", list(optnet.__path__)) for name in functions)


def test_every_model_that_timm_knows_of_ours_is_listed():
    registered = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("optnet.")}
    assert registered == set(optnet.list_models()) and "mlp" in registered
