"""The network class: every family, timm's contract in the small, ancestors, coefficients that are alive."""

import copy
import itertools

import pytest
import timm
import torch
from helpers import (
    EVERY,
    LAYERED,
    OWN,
    SMALL,
    build,
    crossed,
    every_second,
    label,
    layer,
    random_images,
    settle,
    some,
    starts,
    weights_of_sums,
)
from timm.models import group_parameters

import optnet
from optnet import ModelError, create_model, find_algorithm
from optnet.networks.design import TRANSITIONS, design, suitable_layer
from optnet.networks.zoo import build_network

METHODS = [*EVERY, *OWN]
INITS = ["ancestor", "algorithm"]
COEFFICIENTS = ["learnable", "fixed"]


def is_dense(method):
    return suitable_layer(find_algorithm(method)) == "dense"


@pytest.mark.parametrize(
    "method, transition, init, coefficients",
    crossed(METHODS, TRANSITIONS, INITS, COEFFICIENTS, without=lambda m, t, *_: t == "project" and is_dense(m)),
)
def test_every_algorithm_makes_a_network(method, transition, init, coefficients):
    options = {"coefficient_init": init, "coefficients": coefficients, "transition": transition}
    model = build(algorithm=method, **options).train()
    model(random_images()).square().sum().backward()
    assert model(random_images()).shape == (4, 10)
    assert all(p.grad is not None for p in model.parameters())
    learnable = [name for name, _ in model.named_parameters() if "coefficients" in name]
    assert bool(learnable) == (coefficients == "learnable" and bool(optnet.coefficients(model)))


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("method", [*filter(is_dense, METHODS)], ids=label)
def test_dense_stages_are_not_projected(method, init, coefficients):
    options = {"coefficient_init": init, "coefficients": coefficients, "transition": "project"}
    with pytest.raises(ModelError, match="transition=project does not go with layer=dense"):
        build(algorithm=method, **options)


@pytest.mark.parametrize("family", LAYERED)
def test_fixed_and_learnable_are_the_same_network_at_the_start(family):
    learnable, fixed = (build(**LAYERED[family], coefficients=how) for how in ("learnable", "fixed"))
    missing, unexpected = fixed.load_state_dict(learnable.state_dict(), strict=False)
    assert not missing and all("coefficients" in name for name in unexpected)
    assert torch.allclose(fixed(random_images()), learnable(random_images()), rtol=1e-5, atol=1e-6)


def has_sums_of_one_width(family):
    return LAYERED[family].get("layer") != "dense_bc"  # its sums before and after P have different widths


@pytest.mark.parametrize(
    "family, per_channel",
    crossed(LAYERED, [False, True], without=lambda family, wide: wide and not has_sums_of_one_width(family)),
)
def test_no_coefficient_is_dead_behind_norms(family, per_channel):
    model = build(**LAYERED[family], per_channel=per_channel).double()
    x = random_images().double()
    with torch.no_grad():
        before = model(x)
        for name, weight in weights_of_sums(model):
            kept = weight.clone()
            weight += 0.1 * torch.where(weight == 0, torch.ones_like(weight), weight.abs())
            moved = (model(x) - before).norm() / before.norm()
            assert moved > 1e-4, f"{name}: {moved}"
            weight.copy_(kept)


def copy_resnet(source, target):
    """Weights of timm's ResNet into ours by order: both name and order their modules stem, stages, head."""
    theirs = [(n, v) for n, v in source.state_dict().items() if "downsample" not in n]
    ours = [n for n in target.state_dict() if "coefficients" not in n and "shortcut" not in n]
    state = dict(zip(ours, (v for _, v in theirs), strict=True))
    state.update(zip(
        [n for n in target.state_dict() if "shortcut" in n],
        [v for n, v in source.state_dict().items() if "downsample" in n], strict=True,
    ))  # fmt: skip
    target.load_state_dict(state, strict=False)


@pytest.mark.parametrize("algorithm", ["gradient_descent", "heavy_ball", "nesterov"])
def test_the_ancestor_is_timms_resnet18(algorithm):
    torch.manual_seed(0)
    ancestor = settle(timm.create_model("resnet18", num_classes=7))
    model = create_model(
        algorithm, blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), stem="imagenet", num_classes=7, layer="basic",
        reading="residual",
    )  # fmt: skip
    copy_resnet(ancestor, model)
    model.eval()
    x = random_images(4, 3, 64)
    with torch.no_grad():
        wanted, got = ancestor(x), model(x)
    assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_the_ancestor_starts_at_the_textbook_of_its_own_constants():
    model = build(algorithm="heavy_ball")
    table = {(e.stage, e.step, e.term): e for e in optnet.coefficients(model)}
    entry = table["stages.1.unrolled", "x3", "P0"]
    assert entry.value == 0 and entry.textbook == pytest.approx(-0.9)
    started = build(algorithm="heavy_ball", coefficient_init="algorithm")
    assert all(e.value == pytest.approx(e.textbook) for e in optnet.coefficients(started))


REGISTERED = [name for name in optnet.list_models() if name.endswith("_small")]


@pytest.mark.parametrize("name", some(REGISTERED, "hbnet_small", "agdnet_small", "admmnet_small"))
@pytest.mark.sampled(1)
def test_registered_models(name):
    model = settle(timm.create_model(name, num_classes=5))
    x = random_images(2, 3, 32)
    wanted = model(x)
    assert wanted.shape == (2, 5)
    assert torch.equal(copy.deepcopy(model)(x), wanted)
    assert torch.allclose(torch.jit.script(model)(x), wanted, atol=1e-5)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted, atol=1e-5)
    assert torch.allclose(torch.fx.symbolic_trace(model)(x), wanted, atol=1e-5)
    assert [f.shape[1] for f in timm.create_model(name, features_only=True)(x)] == [
        info["num_chs"] for info in model.feature_info
    ]
    model.set_grad_checkpointing()
    assert torch.allclose(model(x), wanted, atol=1e-6)
    assert all("coefficients" in n for n in model.no_weight_decay())
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("family", LAYERED)
def test_a_network_comes_back_from_its_programs(family):
    model = build(**LAYERED[family])
    again = build_network(programs=model.programs_json(), layer=model.layer, **SMALL)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(random_images()), model(random_images()))
    assert optnet.coefficients(again) == optnet.coefficients(model)


@pytest.mark.parametrize("method, blocks", crossed(METHODS, [(2, 3, 2), (1, 1), (4,)]))
def test_projected_stages_are_one_run_of_the_algorithm(method, blocks):
    """The stages' programs, one behind the other, take the steps of the whole one, and give its result to the bit."""
    method = find_algorithm(method)
    constants = method.network.constants
    whole = optnet.trace(method, steps=sum(blocks), **constants)
    parts = [part.textbook for part in design(
        method, blocks, with_P=False, layer="basic", reading="map", coefficient_init="algorithm", transition="project",
        constants={name: method.constants[name] for name in method.network.last},
    )]  # fmt: skip
    assert [one for part in parts for one in part.instructions] == list(whole.instructions)
    assert parts[0].starts == whole.starts and parts[-1].results == whole.results
    assert all(one.results == two.starts for one, two in itertools.pairwise(parts))
    assert [part.iterations for part in parts] == list(blocks)
    layers = {name: layer("tanh") for name in whole.operators}
    values = tuple(starts(method))
    for part in parts:
        operators = {name: layers[name] for name in part.operators}
        unrolled = optnet.unroll(part, operators=operators, dtype=torch.float64)
        values = unrolled(*values)
        values = values if part.several else (values,)
    wanted = optnet.unroll(whole, operators=layers, dtype=torch.float64)(*starts(method))
    for got, result in zip(values, wanted if whole.several else (wanted,), strict=True):
        assert torch.equal(got, result)


def test_what_fixed_zeros_do_not_read_is_not_there():
    """Heavy ball with beta = 0 is ResNet: no projection, and no norm of one, for the iterate that nothing reads."""
    for family in ("basic", "preact_basic"):
        options = {"algorithm": "heavy_ball", "layer": family, "coefficients": "fixed"}
        projected, restarted = build(**options, transition="project"), build(**options)
        count = [sum(p.numel() for p in model.parameters()) for model in (projected, restarted)]
        assert count[0] == count[1]


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_projected_heavy_ball_is_the_one_written_by_hand(beta):
    """Both iterates cross a border through projections of their own; the layer gets the newest one raw."""
    model = build(algorithm="heavy_ball", transition="project", constants={"beta": beta}, blocks=(2, 2))
    x = previous = model.stem(random_images())
    for i, stage in enumerate(model.stages):
        body = stage.unrolled.body
        for step in (2 * i, 2 * i + 1):
            moved = body.get_submodule(f"T_{step}")([x])
            if step == 2:
                x, previous = body.shortcut_P1(x), body.shortcut_P0(previous)
            x, previous = body.get_submodule(f"P_{step}")(moved + x + beta * (x - previous)), x
    assert torch.allclose(model(random_images()), model.head(x), rtol=1e-5, atol=1e-6)


def test_the_dense_family_refuses_to_add_a_start_of_another_shape():
    with pytest.raises(optnet.ProgramError, match="another shape"):
        build(algorithm="nesterov_dense", constants={"skips": True, "beta": 0.5})


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": (2,)},
        {"blocks": (0, 2)},
        {"blocks": (), "widths": ()},
        {"layer": "nonsense"},
        {"coefficients": "frozen"},
        {"memory": "little"},
        {"coefficient_init": "random"},
        {"stem": "huge"},
        {"widths": (0, 8)},
        {"widths": (4, 8), "layer": "dense_bc", "per_channel": True},
        {"transition": "jump"},
        {"blocks": 3},
        {"widths": "48"},
        {"stem_width": 0},
        {"num_classes": -1},
        {"in_chans": 0},
        {"per_channel": "false"},
        {"global_pool": "nonsense"},
        {"drop_rate": 2.0},
        {"programs": 3, "layer": "basic"},
        {"programs": [3, 4], "layer": "basic"},
        {"act_layer": "nonsense"},
        {"programs": [{"start": "x"}], "layer": "basic"},
        {"nonsense": 1},
    ],
)
def test_bad_options(options):
    with pytest.raises(ModelError) as error:
        create_model("heavy_ball", **{**SMALL, **options})
    assert "\n" not in str(error.value)


def test_stages_without_a_layer_and_stages_in_disorder_are_refused():
    with pytest.raises(ModelError, match="stage 2 of 2 has no call of T"):
        build(algorithm=every_second, blocks=(1, 1), transition="project")
    programs = build(algorithm="heavy_ball", transition="project").programs_json()
    with pytest.raises(ModelError, match="in their order"):
        build_network(programs=programs[::-1], layer="basic", **SMALL)
    with pytest.raises(optnet.AlgorithmError, match="no constant 'steps'"):
        build(algorithm="heavy_ball", constants={"steps": 3})


@pytest.mark.parametrize("family", LAYERED)
def test_features_stop_early_as_they_are(family):
    model = build(**LAYERED[family], blocks=(1, 2, 1), widths=(4, 8, 8))
    x = random_images()
    last, features = model.forward_intermediates(x, indices=[0, 1, 2], norm=True)
    assert torch.equal(last, model.forward_features(x)) and torch.equal(last, features[-1])
    early, some = model.forward_intermediates(x, indices=[0, 1], norm=True, stop_early=True)
    assert torch.equal(some[0], features[0]) and torch.equal(early, features[1])


def test_features_of_projected_stages_are_one_iterate():
    """With fixed beta = 0 the projected network is the restarted one, inside too; of ADMM it is x', not the dual."""
    options = {"algorithm": "heavy_ball", "coefficients": "fixed", "blocks": (2, 2, 2), "widths": (4, 8, 8)}
    one, two = build(**options, transition="project"), build(**options)
    values = iter(two.state_dict().values())
    one.load_state_dict({key: next(values) for key in one.state_dict()})
    for got, wanted in zip(
        *(m.forward_intermediates(random_images(), intermediates_only=True) for m in (one, two)), strict=True
    ):
        assert torch.equal(got, wanted)
    model = build(algorithm="admm", transition="project")
    stage, x = model.stages[0], model.stem(random_images())
    (feature, _) = model.forward_intermediates(random_images(), intermediates_only=True)
    carried = stage([x])
    assert len(carried) == 3 and torch.equal(feature, carried[0])


def test_layers_are_grouped_by_depth():
    model = build(algorithm="heavy_ball", blocks=(2, 3))
    grouped = group_parameters(model, model.group_matcher())
    assert len(grouped) == 1 + (1 + 2) + (1 + 3) + 1  # the stem, each stage's rest and layers, the head
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 1 + 2 + 1


def test_the_operator_declared_first_is_the_layer():
    for method in OWN[3:]:
        body = build(algorithm=method).stages[0].unrolled.body
        kinds = {name.split("_")[0]: type(layer).__name__ for name, layer in body.named_children()}
        assert "Branch" in kinds["T"] and "Branch" not in kinds.get("P", kinds.get("S"))


def test_layers_are_chosen_by_the_algorithm():
    wanted = {"gd": "plain", "hb": "basic", "agd_dense": "dense"}
    assert {name: suitable_layer(find_algorithm(name)) for name in wanted} == wanted
    assert suitable_layer(OWN[1]) == "preact_basic"
