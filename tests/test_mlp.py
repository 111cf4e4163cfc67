"""The multilayer perceptron: timm's contract, its activations, other sizes of images."""

import math

import pytest
import timm
import torch
from helpers import go, prepare

import optnet
from optnet.app.config import Model, Train
from optnet.networks.objectives import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_the_formula(name):
    torch.manual_seed(0)
    net = timm.create_model("mlp", hidden=[7, 5], act_layer=name, in_chans=2, img_size=(4, 3), num_classes=4)
    x = torch.randn(6, 2, 4, 3)
    phi = optnet.objectives.activation(name).phi
    first, second = (layer for layer in net.body if isinstance(layer, torch.nn.Linear))
    hidden = phi(phi(x.flatten(1) @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    assert torch.allclose(net(x), hidden @ net.head.weight.T + net.head.bias, atol=1e-6)
    assert torch.equal(net.forward_features(x), hidden) or torch.allclose(net.forward_features(x), hidden, atol=1e-6)
    assert first.weight.abs().max() <= 1 / math.sqrt(24) and first.weight.abs().max() > 0.8 / math.sqrt(24)
    assert torch.export.export(net, (x,)).module()(x).allclose(net(x), atol=1e-6)


def test_timms_contract():
    net = timm.create_model("mlp", hidden=(30,), num_classes=7)
    x = torch.randn(2, 1, 28, 28)
    assert net(x).shape == (2, 7) and net.num_features == 30 and net.get_classifier() is net.head
    assert torch.equal(net.forward_head(net.forward_features(x)), net(x))
    net.reset_classifier(0)
    assert torch.equal(net(x), net.forward_features(x))
    assert timm.get_pretrained_cfg_value("mlp", "input_size") == (1, 28, 28)


def test_torchscript_and_fx():
    net, x = timm.create_model("mlp").eval(), torch.randn(2, 1, 28, 28)
    assert torch.equal(torch.jit.script(net)(x), net(x))
    assert torch.equal(torch.jit.script(torch.fx.symbolic_trace(net))(x), net(x))
    with pytest.raises(optnet.ModelError, match="no feature maps"):
        timm.create_model("mlp", features_only=True)


def test_own_activations_and_refusals():
    net = optnet.MLP(act_layer=lambda t: torch.relu(t) + 0.1 * t, img_size=4)
    assert net(torch.randn(3, 1, 4, 4)).shape == (3, 10)
    bad = [{"hidden": []}, {"hidden": [0]}, {"hidden": [2.5]}, {"act_layer": "nonsense"}, {"act_layer": torch.cos}]
    for options in bad:
        with pytest.raises(optnet.RequestError) as error:
            optnet.MLP(**options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model", [Model("mlp", hidden=[20]), Model("vit_tiny_patch16_224", kwargs={"depth": 1, "patch_size": 4})]
)
@pytest.mark.sampled(1)
def test_models_of_one_size_are_told_the_size(tmp_path, model):
    config = Train(runs=str(tmp_path), epochs=2, device="cpu", progress=False, lr=0.01, model=model)
    parts = prepare(config)
    assert parts.described["kwargs"]["img_size"] == (8, 8)
    assert go(parts).test > 10
