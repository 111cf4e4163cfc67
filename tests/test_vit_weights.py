"""Weights of timm's vision transformers in files: through tags, init_from, and what does not fit."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from vits import SMALL, far, images, outputs, shaken, vit

import optnet
from optnet import ModelError
from optnet.errors import CheckpointError
from optnet.networks import convert
from optnet.networks.token_zoo import TOKEN_MODELS
from optnet.networks.unrolled import coefficient_names
from optnet.training import transfer


def changed(model):
    """With other weights, but for the coefficients."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "coefficients" not in name:
                parameter += 1.0
    return model


@pytest.mark.parametrize("options", [
    {}, {"img_size": 96}, {"img_size": (64, 96), "patch_size": 8}, {"in_chans": 1}, {"num_classes": 5},
    {"layer": "vit", "in_chans": 2, "num_classes": 5, "img_size": 64},
])  # fmt: skip
@pytest.mark.sampled(3)
def test_published_weights_load_through_tags(options, tmp_path):
    """As timm's model loads them from the same file: resized to the image and the patches, adapted to the channels."""
    small = {"depth": 2, "embed_dim": 48, "img_size": 32}
    torch.manual_seed(0)
    source = shaken(timm.create_model("vit_tiny_patch16_224", **small))
    file = str(tmp_path / "model.safetensors")
    save_file(source.state_dict(), file)
    overlay = {"file": file, "custom_load": False}
    layer = {name: value for name, value in options.items() if name == "layer"}
    given = {**small, **{name: value for name, value in options.items() if name not in layer}}
    loaded = []
    for begin, more in (("vit", {}), ("hbvit", layer)):
        loaded.append(timm.create_model(
            f"{begin}_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True, pretrained_cfg_overlay=overlay, **given,
            **more,
        ).eval())  # fmt: skip
    theirs, ours = loaded
    for features in (False, True):
        got, wanted = ((m.forward_features(images(m)) if features else m(images(m))) for m in (ours, theirs))
        if features or "num_classes" not in options:
            assert torch.equal(got, wanted) if not layer else far(got, wanted) < 1e-6
    fresh = timm.create_model("hbvit_tiny_patch16_224", **small, **layer)
    assert optnet.coefficients(ours) == optnet.coefficients(fresh)
    optnet.freeze_all_but_coefficients(ours)
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == coefficient_names(ours) != set()


def test_every_tag_is_its_ancestors():
    for name, preset in TOKEN_MODELS.items():
        tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
        assert bool(tags) == bool(preset.ancestor)
        for tag in tags:
            ours, theirs = (timm.get_pretrained_cfg(f"{one}.{tag}") for one in (name, preset.ancestor))
            assert (ours.hf_hub_id, ours.num_classes, ours.mean) == (theirs.hf_hub_id, theirs.num_classes, theirs.mean)
            assert not ours.custom_load


def test_a_npz_file_of_jax_is_refused():
    with pytest.raises(ModelError, match=r"x\.npz is read as a \.npz file of JAX.*convert\.from_timm"):
        timm.create_model("hbvit_tiny_patch16_224", depth=1, pretrained=True, pretrained_cfg_overlay={
            "file": "x.npz", "custom_load": True,
        })  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "parallel branches", "in parallel, fused"])
@pytest.mark.parametrize("layout", ["plain", "Lightning", "an average"])
@pytest.mark.sampled(3)
def test_a_run_starts_from_timms_weights(name, layout, tmp_path):
    theirs = vit(name)
    target = changed(convert.from_timm(vit(name)))
    state, file = theirs.state_dict(), tmp_path / "weights.pth"
    if layout == "Lightning":
        state = {"state_dict": {f"model.{key}": value for key, value in state.items()}}
    elif layout == "an average":
        state = {"state_dict": {}, "model_ema": {f"module.{key}": value for key, value in state.items()}}
    torch.save(state, file)
    said = transfer.start(target, transfer.find(str(file)))
    assert torch.equal(*outputs((target, theirs))) if name == "plain" else far(*outputs((target, theirs))) < 1e-6
    total = len(target.state_dict())
    assert f"{total} of the model's {total} tensors are loaded" in said
    assert {entry.value for entry in optnet.coefficients(target)} == {0.0, 1.0}


def test_positions_and_heads_of_another_size():
    theirs = vit()
    target = convert.from_timm(vit(img_size=64, num_classes=3))
    head = target.head.weight.clone()
    said = transfer.start(target, transfer.Source("x", theirs.state_dict()))
    assert "head has 7 outputs and not 3" in said and torch.equal(target.head.weight, head)
    wanted = timm.layers.resample_abs_pos_embed(theirs.pos_embed, (8, 8), (4, 4), num_prefix_tokens=1)
    assert torch.equal(target.pos_embed, wanted)


def test_weights_of_other_transformers_are_refused():
    target = convert.from_timm(vit())
    for options, said in (
        ({"depth": 3}, "no counterpart of the weights' blocks.2"),
        ({"mlp_ratio": 3}, "is 144x48, but"),
    ):
        with pytest.raises(CheckpointError, match=f"^x: .*{said}"):
            transfer.start(target, transfer.Source("x", vit(**options).state_dict()))
    for other in (target, optnet.create_model("heavy_ball", layer="vit_sandwich", **SMALL)):
        with pytest.raises(ModelError, match=r"no counterpart of the weights' blocks\.0"):
            convert.checkpoint_filter(vit("in parallel").state_dict(), other)
