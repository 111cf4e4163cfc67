"""Dropout inside dense layers: that of timm, torchvision and the paper, with the same random numbers."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import SMALL, random_images, settle
from timm.models.densenet import DenseNet
from torch import nn

from optnet import ModelError, convert, create_model
from optnet.networks.layers import FAMILIES

RATE = 0.3
X = random_images(4, 3, 64).double()
SIZES = {"growth_rate": 4, "block_config": (2, 3), "num_classes": 5}
THEIRS = {
    "timm": lambda rate: DenseNet(**SIZES, proj_drop_rate=rate),
    "torchvision": lambda rate: torchvision.models.DenseNet(**SIZES, num_init_features=8, drop_rate=rate),
}


def trained(model, x=X):
    """Logits and the gradients of all parameters of one batch in training mode, from the same random state."""
    model.train().zero_grad()
    torch.manual_seed(7)
    logits = model(x)
    logits.square().sum().backward()
    return logits.detach(), sum(parameter.grad.abs().sum() for parameter in model.parameters())


def equal(one, other):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def changed(one, other):
    return (one[0] - other[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", THEIRS)
def test_dropout_after_each_layer_is_that_of_others(kind):
    torch.manual_seed(0)
    theirs = settle(THEIRS[kind](RATE)).double()
    ours = convert.from_timm(theirs, coefficients="fixed")
    assert ours.options.proj_drop_rate == RATE and ours.options.drop_rate == 0
    equal(trained(ours), trained(theirs))
    torch.testing.assert_close(ours.eval()(X), theirs.eval()(X), rtol=1e-9, atol=1e-9)
    assert changed(trained(ours), trained(convert.from_timm(theirs, coefficients="fixed", proj_drop_rate=0.0)))
    again = convert.from_timm(convert.to_timm(ours))
    assert again.options.proj_drop_rate == RATE


@pytest.mark.parametrize("kind", THEIRS)
def test_dropout_after_every_convolution_but_the_first(kind):
    """As the paper says: to the others' it adds those after the 1x1 convolutions of layers and transitions."""
    torch.manual_seed(0)
    theirs = settle(THEIRS[kind](RATE)).double()
    ours = convert.from_timm(theirs, coefficients="fixed", proj_drop_place="convolutions")
    inner = [name for name, _ in theirs.named_modules() if name.endswith(("conv1", "transition1.conv"))]
    assert len(inner) == 6
    for name in inner:
        theirs.get_submodule(name).register_forward_hook(lambda module, x, y: F.dropout(y, RATE, module.training))
    equal(trained(ours), trained(theirs))
    with pytest.raises(ModelError, match="proj_drop_place=layers"):
        convert.to_timm(ours)


def test_the_papers_layers_without_bottlenecks():
    """BN-ReLU-conv3x3-dropout; transitions BN-ReLU-conv1x1-dropout-pool."""
    torch.manual_seed(0)
    options = {**SMALL, "widths": (4, 4), "coefficients": "fixed", "constants": {"skips": False}}
    options |= {"proj_drop_rate": RATE, "proj_drop_place": "convolutions", "dtype": torch.float64}
    model = settle(create_model("nesterov_dense", **options))

    class Original(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            x = self.parts.stem(x)
            for stage in self.parts.stages:
                if len(first := list(stage.transitions[0].children())) > 0:
                    norm, act, conv, *_ = first
                    x = F.avg_pool2d(F.dropout(conv(act(norm(x))), RATE), 2)
                for layer in stage.unrolled.body.children():
                    if hasattr(layer, "conv1"):
                        x = torch.cat([x, F.dropout(layer.conv1(layer.act1(layer.norm1(x))), RATE)], 1)
            return self.parts.head(self.parts.norm(x))

    x = random_images(4).double()
    equal(trained(model, x), trained(Original(), x))


@pytest.mark.parametrize("place", ["layers", "convolutions"])
@pytest.mark.parametrize("layer", ["dense", "dense_bc"])
@pytest.mark.sampled(2)
def test_recomputed_layers_drop_the_same(layer, place):
    made = []
    for memory in ("keep", "checkpoint"):
        torch.manual_seed(0)
        options = {**SMALL, "layer": layer, "memory": memory, "proj_drop_rate": RATE, "proj_drop_place": place}
        model = create_model("nesterov_dense", **options, dtype=torch.float64)
        made.append(trained(model, random_images(4).double()))
    equal(*made)
    model.set_grad_checkpointing(False)
    scripted = torch.jit.script(model.eval())
    assert torch.equal(scripted(random_images(2).double()), model(random_images(2).double()))


@pytest.mark.parametrize("layer", [name for name, family in FAMILIES.items() if not family.drops])
def test_layers_without_dropout_say_so(layer):
    with pytest.raises(ModelError, match=f"proj_drop_rate=0.2 does not go with layer={layer}"):
        create_model("heavy_ball", **SMALL, layer=layer, proj_drop_rate=0.2)


def test_several_rates_are_refused():
    theirs = timm.create_model("densenet121", proj_drop_rate=0.2)
    theirs.features.denseblock2.denselayer1.drop_rate = 0.5
    with pytest.raises(ModelError, match="several rates"):
        convert.from_timm(theirs, coefficients="fixed")
