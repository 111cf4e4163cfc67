"""Data sets, splits, augmentation. MNIST and CIFAR-10 are real, and found by OPTNET_DATA."""

import os

import pytest
import torch
from PIL import Image

from optnet import DataError
from optnet.data import load
from optnet.data.loading import TensorLoader, flip, pad_crop

CPU = torch.device("cpu")
real = pytest.mark.skipif("OPTNET_DATA" not in os.environ, reason="OPTNET_DATA names no folder of data sets")


def class_folder(root, classes=("cat", "dog"), count=12, size=20):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            generator = torch.Generator().manual_seed(100 * label + i)
            noise = (torch.rand(size, size, 3, generator=generator) * 100 + 100 * label).byte().numpy()
            Image.fromarray(noise).save(root / name / f"{i}.jpg")


def pixels(loader, **kwargs):
    return torch.cat([images for images, _ in loader.batches(**kwargs)])


def test_digits_splits():
    first, second = load("digits", "", seed=0), load("digits", "", seed=1)
    assert [len(first.train), len(first.validation), len(first.test)] == [1293, 144, 360]
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    everything = torch.cat([first.train.images, first.validation.images, first.test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797
    assert everything.mean() == pytest.approx(first.mean[0], abs=1e-3)
    assert everything.std() == pytest.approx(first.std[0], abs=1e-3)


def test_batches_depend_on_seed_epoch_and_number_alone():
    data = load("digits", "")
    options = {"device": CPU, "training": True, "augment": "crop_flip"}
    one, two = (data.loader("train", 50, seed=3, **options) for _ in range(2))
    assert torch.equal(pixels(one, epoch=4), pixels(two, epoch=4))
    assert torch.equal(pixels(one, epoch=4)[500:], pixels(two, epoch=4, start=10))
    assert not torch.equal(pixels(one, epoch=4), pixels(two, epoch=5))
    assert not torch.equal(pixels(one, epoch=4), pixels(data.loader("train", 50, seed=4, **options), epoch=4))
    labels = torch.cat([labels for _, labels in one.batches()])
    assert torch.equal(labels.bincount(), data.train.labels.bincount())


def test_pad_crop_and_flip_move_every_picture_on_its_own():
    images = torch.arange(2000 * 25).view(2000, 1, 5, 5).float() + 1
    cropped = pad_crop(images, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    counts = torch.zeros(3, 3)
    for i in range(3):
        for j in range(3):
            counts[i, j] = (cropped == padded[:, :, i : i + 5, j : j + 5]).flatten(1).all(1).sum()
    assert counts.sum() == 2000 and (counts > 2000 / 9 * 0.7).all()
    mirrored = (flip(images, torch.Generator().manual_seed(0)) == images.flip(3)).flatten(1).all(1).sum()
    assert 900 < mirrored < 1100


def test_eight_bit_pictures_are_normalised():
    images = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    loader = TensorLoader(images, torch.zeros(3).long(), 2, mean=(0.5,), std=(0.25,), device=CPU)
    assert len(loader) == 2 and (pixels(loader) == 2).all()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_class_folder(tmp_path, split, workers):
    for part in ("train", "test") if split else (".",):
        class_folder(tmp_path / part)
    data = load("folder", str(tmp_path), size=16)
    assert data.classes == ("cat", "dog") and data.shape == (3, 16, 16)
    assert len(data.train) + len(data.validation) + len(data.test) == (48 if split else 24)
    loader = data.loader("train", 4, device=CPU, training=True, augment="crop_flip", workers=workers, seed=1)
    assert torch.equal(pixels(loader, epoch=2)[4:], pixels(loader, epoch=2, start=1))
    for images, labels in data.loader("test", 8, device=CPU).batches():
        assert torch.equal((images.mean((1, 2, 3)) > 0).long(), labels)  # dogs are brighter


def test_bad_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    class_folder(tmp_path / "two" / "train")
    class_folder(tmp_path / "two" / "test", classes=("cat", "cow"))
    requests = [("nonsense", ""), ("mnist", str(tmp_path)), ("cifar10", str(tmp_path))]
    requests += [("folder", str(tmp_path / name)) for name in ("none", "empty", "hollow", "two")]
    for name, root in requests:
        with pytest.raises(DataError) as error:
            load(name, root)
        assert "\n" not in str(error.value)


@real
def test_mnist():
    data = load("mnist", os.environ["OPTNET_DATA"])
    assert [len(data.train), len(data.validation), len(data.test)] == [54000, 6000, 10000]
    images = data.train.images.float() / 255
    assert images.mean() == pytest.approx(data.mean[0], abs=2e-3) and images.std() == pytest.approx(
        data.std[0], abs=2e-3
    )


@real
def test_cifar10():
    data = load("cifar10", os.environ["OPTNET_DATA"], verify=False)
    assert [len(data.train), len(data.validation), len(data.test)] == [45000, 5000, 10000]
    assert data.classes[3] == "cat" and data.shape == (3, 32, 32)
    assert data.train.images.float().mean((0, 2, 3)).tolist() == pytest.approx([255 * m for m in data.mean], abs=0.5)
    with pytest.raises(DataError, match=r"data\.verify=false"):
        load("cifar10", os.environ["OPTNET_DATA"])
