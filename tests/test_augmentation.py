"""Colours of training images: fb.resnet.torch's formulas written out, and where they are not to be had."""

import numpy as np
import pytest
import torch
from helpers import class_folder
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from optnet.data import load
from optnet.data.augmentation import EIGENVALUES, EIGENVECTORS, Augmentation, Lighting
from optnet.data.preprocessing import Preprocessing
from optnet.errors import DataError

CPU = torch.device("cpu")
OWN = Preprocessing((24, 24), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = np.array([0.299, 0.587, 0.114])
CHANGES = (  # (image, factor) -> image, both in 0..1
    lambda image, factor: factor * image,
    lambda image, factor: factor * image + (1 - factor) * (image @ GREY).mean(),
    lambda image, factor: factor * image + (1 - factor) * (image @ GREY)[..., None],
)
"""Brightness, contrast and saturation as fb.resnet.torch's transforms.lua has them."""


def picture(low=90, high=150):
    """One whose values no factor up to 1.4 drives out of 0..255, where fb.resnet.torch would not stop."""
    noise = torch.randint(low, high, (24, 24, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(noise.byte().numpy())


def plain(image):
    """(height, width, 3) in 0..1"""
    return np.asarray(image, dtype=float) / 255


@pytest.mark.parametrize("seed", range(6))
def test_colour_jitter_is_that_of_fb_resnet_torch(seed):
    """Up to the rounding to whole numbers after each of the three."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    torch.manual_seed(seed)
    order, *factors, _ = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    assert all(0.6 <= factor <= 1.4 for factor in factors)
    wanted = plain(picture())
    for change in order.tolist():
        wanted = CHANGES[change](wanted, factors[change]) if change < 3 else wanted
    torch.manual_seed(seed)
    made = Augmentation("shift", color_jitter=0.4).transform(OWN)
    steps = made.transforms
    cropped = [i for i, step in enumerate(steps) if isinstance(step, transforms.RandomCrop)]
    del steps[cropped[0]]  # so that the image stays in its place
    got = made(picture()).permute(1, 2, 0).double().numpy() * np.array(OWN.std) + np.array(OWN.mean)
    assert np.abs(got - wanted).max() < 3 * 1.5 / 255 and np.abs(got - plain(picture())).max() > 0.02


def test_colour_jitter_is_that_of_timm():
    theirs = create_transform(24, is_training=True, color_jitter=0.4, scale=(0.08, 1), hflip=0.5)
    ours = Augmentation("zoom_flip", color_jitter=0.4).transform(OWN)
    (one,), (other,) = (
        [step for step in made.transforms if isinstance(step, transforms.ColorJitter)] for made in (ours, theirs)
    )
    assert str(one) == str(other)


def test_lighting_is_that_of_fb_resnet_torch():
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    alpha = torch.randn(3).numpy() * 0.1
    noise = [sum(EIGENVECTORS[c][i] * alpha[i] * EIGENVALUES[i] for i in range(3)) for c in range(3)]
    torch.manual_seed(3)
    got = Lighting(0.1)(image)
    np.testing.assert_allclose(got.numpy(), image.numpy() + np.array(noise)[:, None, None], atol=1e-7)
    many = torch.stack([Lighting(0.1)(torch.zeros(3, 1, 1)).flatten() for _ in range(4000)]).double()
    variances, vectors = torch.linalg.eigh(many.T @ many / len(many))
    np.testing.assert_allclose(variances.flip(0).sqrt(), 0.1 * np.array(EIGENVALUES), rtol=0.05)
    np.testing.assert_allclose(vectors.flip(1).abs(), np.abs(EIGENVECTORS), atol=0.05)


def test_the_vectors_are_orthonormal():
    vectors = np.array(EIGENVECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)


def loaded(augmentation, root, training=True, own=None):
    data = load("folder", str(root), size=16, validation=0.2)
    data = data if own is None else data.prepared(own)
    loader = data.loader("train", 4, device=CPU, training=training, augment=augmentation, seed=1)
    return torch.cat([images for images, _ in loader.batches()])


def test_training_images_in_files_are_coloured(tmp_path):
    class_folder(tmp_path / "data")
    plain, jittered, lit = (
        loaded(Augmentation("zoom_flip", *colours), tmp_path / "data") for colours in ((0, 0), (0.4, 0), (0, 0.1))
    )
    assert (jittered - plain).abs().max() > 0.1
    shift = (lit - plain) * torch.tensor(OWN.std).view(1, 3, 1, 1)
    assert 0 < shift.abs().max() < 0.1 and (shift - shift.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    assert torch.equal(jittered, loaded(Augmentation("zoom_flip", 0.4), tmp_path / "data"))  # from the seed alone
    for name, training in (("none", True), ("zoom_flip", False)):  # nothing is augmented
        made = loaded(Augmentation(name, 0.4, 0.1), tmp_path / "data", training)
        assert torch.equal(made, loaded("none", tmp_path / "data", training))


@pytest.mark.parametrize("colours", [{"color_jitter": 0.4}, {"lighting": 0.1}])
def test_where_there_are_no_colours_to_change(colours, tmp_path):
    (key,) = colours
    with pytest.raises(DataError, match=f"data.{key}=0.* is for images in files; digits takes data.{key}=0"):
        load("digits", "").loader("train", 4, device=CPU, training=True, augment=Augmentation("shift", **colours))
    class_folder(tmp_path / "data")
    with pytest.raises(DataError, match=f"data.{key}=0.* is for colour images; give data.{key}=0"):
        loaded(Augmentation("shift", **colours), tmp_path / "data", own=Preprocessing((16, 16), (0.5,), (0.2,)))
