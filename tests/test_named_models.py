"""Named models with another algorithm: the algorithm changes and the layers stay. Our plain ResNet is timm's."""

import pytest
import timm
import torch
from helpers import EVERY, call, crossed, random_images, settle, some

import optnet
from optnet import ModelError, find_algorithm
from optnet.networks.design import suitable_layer
from optnet.networks.unrolled import unrolled_in
from optnet.networks.zoo import MODELS

RESNETS = [name for name in MODELS if name.startswith("optnet_resnet")]


def tiny(name, **options):
    stages = len(MODELS[name].blocks)
    return timm.create_model(name, blocks=[2] * stages, widths=[8] * stages, stem_width=8, num_classes=3, **options)


def layers(model):
    """The class of the main operator's layers."""
    stages = unrolled_in(model).values()
    return {type(layer) for stage in stages for layer in stage.served_by(stage.program.main).values()}


def readings(model):
    return {program.start.readings[program.start.main] for program in model.programs}


@pytest.mark.parametrize(("name", "algorithm"), crossed(MODELS, EVERY))
def test_the_algorithm_changes_and_the_layers_stay(name, algorithm):
    own = tiny(name)
    try:
        model = tiny(name, algorithm=algorithm)
    except ModelError as error:
        assert own.layer.startswith("dense") and f"does not go with the layer={own.layer} of {name}" in str(error)
        assert str(error).endswith(f"or give it layer={suitable_layer(find_algorithm(algorithm))}")
        return
    assert layers(model) == layers(own) and model.layer == own.layer
    assert model.programs[0].start.name == find_algorithm(algorithm).name
    assert readings(model) == readings(own)
    model(torch.randn(2, 3, 32, 32)).sum().backward()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sampled(3)
def test_feature_maps_take_what_timms_take(name):
    """Gradient checkpointing, and timm's other ways to get at them."""
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    made = tiny(name, features_only=True).eval()
    wanted = made(x)
    made.set_grad_checkpointing()
    assert "recomputed" in made.model.stages[0].unrolled.body.code
    torch.manual_seed(0)
    traced = tiny(name, features_only=True, feature_cfg={"feature_cls": "fx"}).eval()
    for maps in (made(x), traced(x)) if made.model.streams == 1 else (made(x),):  # fx has each stage's first stream
        for one, other in zip(maps, wanted, strict=True):
            torch.testing.assert_close(one, other)
    assert len(tiny(name, features_only=True, out_indices=(0,))(x)) == 1


def test_the_figures_of_the_small_model():
    """Gradient descent on hbnet_small is a ResNet of its layers: as many parameters, less its coefficients."""
    models = [timm.create_model("hbnet_small"), timm.create_model("hbnet_small", algorithm="gradient_descent")]
    weights, descents = (
        sum(p.numel() for name, p in model.named_parameters() if ".coefficients." not in name) for model in models
    )
    assert weights == descents
    plain = timm.create_model("hbnet_small", algorithm="gradient_descent", layer="plain")
    assert sum(p.numel() for p in plain.parameters()) < weights / 2


def test_layers_that_are_given_win():
    assert timm.create_model("hbnet_small", algorithm="nesterov", layer="preact_basic").layer == "preact_basic"
    assert timm.create_model("agdnet_small", algorithm="heavy_ball", layer="basic").layer == "basic"


@pytest.mark.parametrize("model", ["mlp", "resnet18"])
def test_a_model_without_an_algorithm_says_so(model, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", f"model={model}", "algorithm=heavy_ball") == 2
    assert f"algorithm=heavy_ball does not go with model={model}" in capsys.readouterr().err


@pytest.mark.parametrize("name", RESNETS)
def test_our_resnet_has_no_coefficients(name):
    model = tiny(name)
    assert not [key for key, _ in model.named_parameters() if "coefficients" in key]
    assert not timm.is_model(name.removeprefix("optnet_")) or name.removeprefix("optnet_") in timm.list_models(
        "resnet*"
    )


@pytest.mark.parametrize("name", some(["optnet_resnet18", "optnet_resnet34", "optnet_resnet50"], "optnet_resnet18"))
def test_our_resnet_is_timms(name):
    """With timm's weights and random statistics, the logits are timm's."""
    torch.manual_seed(0)
    ancestor = settle(timm.create_model(name.removeprefix("optnet_"), num_classes=7))
    model = timm.create_model(name, num_classes=7).eval()
    model.load_state_dict(optnet.networks.convert.checkpoint_filter(ancestor.state_dict(), model))
    images = random_images(2, channels=3, size=64)
    with torch.no_grad():
        assert torch.allclose(model(images), ancestor(images), atol=1e-5)
    assert timm.is_model_pretrained(name)
