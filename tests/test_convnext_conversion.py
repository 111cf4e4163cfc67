"""timm's ConvNeXts as networks of ours and back: every variant that timm has, equal outputs, weights and gradients."""

import pytest
import timm
import torch
from helpers import random_images, settle
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models.convnext import ConvNeXt
from torch import nn

from optnet import ModelError
from optnet.networks import convert

SECOND = {"use_grn": True, "ls_init_value": None}
VARIANTS = {
    "first version": {},
    "1x1 convolutions": {"conv_mlp": True},
    "second version": SECOND,
    "second version, 1x1 convolutions": {**SECOND, "conv_mlp": True},
    "overlap": {"stem_type": "overlap"},
    "overlap, half as wide": {"stem_type": "overlap_tiered", "conv_mlp": True},
    "overlap, activation": {"stem_type": "overlap_act", "norm_layer": "simplenorm"},
    "rms": {"norm_layer": "rmsnorm2d", "conv_mlp": True, "norm_eps": 1e-3},
    "norm first": {"head_norm_first": True, "kernel_sizes": (7, 5, 5, 3), "act_layer": "gelu_tanh"},
    "hidden layer": {"head_hidden_size": 12, "act_layer": "silu"},
    "no layer scale": {"ls_init_value": None},
    "both": {"use_grn": True},
    "dropped paths": {"drop_path_rate": 0.3, "drop_rate": 0.2},
    "no classifier": {"num_classes": 0, "global_pool": "max"},
}
X = random_images(3, 3, 64)


def small(variant="first version", **options):
    torch.manual_seed(0)
    chosen = {"depths": (1, 2, 2, 1), "dims": (16, 24, 32, 40), "num_classes": 5, **VARIANTS[variant], **options}
    return settle(ConvNeXt(**chosen))


def logits(model, x=X):
    torch.manual_seed(3)
    return model(x.to(next(model.parameters()).dtype))


def difference(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def agree(theirs, ours, x=X):
    for training in (False, True):
        theirs.train(training), ours.train(training)
        with torch.no_grad():
            assert difference(logits(ours, x), logits(theirs, x)) < 1e-5
            theirs.double(), ours.double()
            assert difference(logits(ours, x), logits(theirs, x)) < 1e-10
            theirs.float(), ours.float()


def same(back, theirs):
    """The same state dict, norms' constants and rates."""
    assert type(back) is type(theirs)
    one, two = theirs.state_dict(), back.state_dict()
    assert list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)
    assert repr(back) == repr(theirs)  # kernels, strides, eps and rates


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.sampled(3)
def test_every_variant_is_reproduced(variant):
    theirs = small(variant)
    ours = convert.from_timm(theirs)
    agree(theirs, ours)
    same(convert.to_timm(ours).train(theirs.training), theirs)


@pytest.mark.parametrize("variant", ["first version", "second version", "second version, 1x1 convolutions"])
@pytest.mark.sampled(1)
def test_mixed_precision_loses_nothing_more(variant):
    """Timm adds the branches in float32: a sum in the branch's own tensor would be in bfloat16."""
    theirs = small(variant)
    ours = convert.from_timm(theirs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(X), theirs(X))


@pytest.mark.parametrize("coefficients", ["learnable", "fixed"])
@pytest.mark.parametrize("variant", ["first version", "second version, 1x1 convolutions", "dropped paths"])
@pytest.mark.sampled(2)
def test_a_step_is_the_same(variant, coefficients):
    theirs = small(variant).double()
    ours = convert.from_timm(theirs, coefficients=coefficients)
    for model in (theirs, ours):
        model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".coefficients." not in name)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        nn.functional.cross_entropy(logits(model), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        model.eval()
    with torch.no_grad():
        assert difference(logits(ours), logits(theirs)) < 1e-9


REGISTERED = timm.list_models(["convnext*", "test_convnext*"])


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTERED)
def test_every_convnext_of_timm(name):
    """At depth 2, and narrow where it is wide."""
    torch.manual_seed(0)
    made = timm.create_model(name, device="meta")
    narrow = {"dims": (32, 48, 64, 80)} if made.stages[0].blocks[0].conv_dw.out_channels > 64 else {}
    theirs = settle(timm.create_model(name, depths=(2, 2, 2, 2), num_classes=5, **narrow))
    ours = convert.from_timm(theirs)
    agree(theirs, ours)
    same(convert.to_timm(ours).train(theirs.training), theirs)


UNLIKE = {
    "stem of kernels": lambda: small(patch_size=2),
    "different outputs": lambda: small(output_stride=16),
    r"stem\.conv\.bias": lambda: small(conv_bias=False),
    "BatchNorm": lambda: small(norm_layer="batchnorm2d", conv_mlp=True),
    "grow linearly": lambda: drops_evenly(small(drop_path_rate=0.3)),
    r"head\.norm\.weight": lambda: without_head(small()),
    "blocks.0.mlp.drop1 drops": lambda: drops_inside(small()),
}


def drops_evenly(model):
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.1
    return model


def without_head(model):
    model.reset_classifier(3, reset_other=True)
    return model


def drops_inside(model):
    model.stages[1].blocks[0].mlp.drop1.p = 0.1
    return model


@pytest.mark.parametrize("said", UNLIKE)
def test_what_does_not_fit_is_refused_by_name(said):
    with pytest.raises(ModelError, match=said) as error:
        convert.from_timm(UNLIKE[said]())
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_networks_that_timm_lacks_are_refused():
    for options in ({"blocks": (1, 1), "widths": (8, 8)}, {"blocks": (1,) * 4, "widths": (8,) * 4, "stem": "small"}):
        with pytest.raises(ModelError, match="no model with layer=convnext"):
            convert.to_timm(timm.create_model("hbconvnext_tiny", **options))
    ours = convert.from_timm(small())
    body = ours.stages[1].unrolled.body
    with torch.no_grad():
        body.get_parameter("coefficients.x2")[0] += 0.25
    with pytest.raises(ModelError, match=r"coefficient of .* in stages\.1\.unrolled x2 is"):
        convert.to_timm(ours)


def test_momentum_is_one_option_away():
    theirs = small()
    ours = convert.from_timm(theirs, constants={"step": 0.1, "beta": 0.9})
    assert difference(logits(ours.eval()), logits(theirs)) > 1e-2


NARROW = {"blocks": (1, 2, 2, 1), "widths": (16, 24, 32, 40)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small ConvNeXt, and its safetensors file as it would be downloaded."""
    theirs = small(num_classes=1000)
    file = tmp_path_factory.mktemp("published") / "convnext.safetensors"
    save_file(theirs.state_dict(), file)
    return theirs, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}


def test_published_weights_load_from_a_local_file(published, tmp_path):
    theirs, pretrained = published
    ours = timm.create_model("hbconvnext_tiny", **NARROW, **pretrained).eval()
    with torch.no_grad():
        assert difference(logits(ours), logits(theirs)) < 1e-5
        own = tmp_path / "own.safetensors"
        save_file(ours.state_dict(), own)
        again = timm.create_model("hbconvnext_tiny", **NARROW, checkpoint_path=str(own)).eval()
        assert torch.equal(logits(again), logits(ours))
    with pytest.raises(ModelError, match=r"no counterpart of the weights' stages\.0\.blocks\.0\.gamma"):
        timm.create_model("hbconvnext_tiny", **NARROW, **pretrained, use_grn=True)


@pytest.mark.parametrize("options", [{"num_classes": 10}, {"num_classes": 0}, {"in_chans": 1}, {"features_only": True}])
def test_published_weights_are_adapted_as_timm_does(published, options):
    _, pretrained = published
    ours = timm.create_model("hbconvnext_tiny", **NARROW, **pretrained, **options).eval()
    sizes = {"depths": NARROW["blocks"], "dims": NARROW["widths"]}
    theirs = timm.create_model("convnext_tiny", **sizes, **pretrained, **options).eval()
    x = random_images(2, options.get("in_chans", 3), 64)
    with torch.no_grad():
        if "features_only" in options:
            assert difference(ours(x)[-1], theirs(x)[-1]) < 1e-5
        else:
            assert difference(ours.forward_features(x), theirs.forward_features(x)) < 1e-5
            assert ours(x).shape == theirs(x).shape


@pytest.mark.slow
def test_the_model_is_timms_convnext_tiny(tmp_path):
    torch.manual_seed(0)
    theirs = settle(timm.create_model("convnext_tiny"))
    save_file(theirs.state_dict(), tmp_path / "tiny.safetensors")
    pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "tiny.safetensors")}}
    ours = timm.create_model("hbconvnext_tiny", **pretrained).eval()
    with torch.no_grad():
        assert difference(logits(ours), logits(theirs)) < 1e-5
    same(convert.to_timm(ours).eval(), theirs)
