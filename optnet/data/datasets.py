"""Data sets by name: splits, normalisation and augmentation. Makes no batches and no models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms

from optnet.data import builtin, folders
from optnet.data.examples import Examples, Source
from optnet.data.loading import FileLoader, Loader, TensorLoader
from optnet.data.published import PUBLISHED
from optnet.errors import DataError

AUGMENTATIONS = ("none", "shift", "crop_flip", "zoom_flip")
"""The augmentations of training images. ``none``: no augmentation. ``shift``: pad by 1 pixel and crop at random.
``crop_flip``: pad by 4 pixels, crop at random, flip at random; for images in files, a random resized crop of at least
0.35 of the area instead. ``zoom_flip``: the same with at least 0.08 of the area, as is usual for ImageNet (Szegedy et
al. 2015)."""
DATA_SETS = ("digits", *PUBLISHED, "imagenet", "folder", "synthetic")
_PADDING = {"none": 0, "shift": 1, "crop_flip": 4}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSet:
    """A data set with its three splits; ``shape`` is (channels, height, width) of one image.

    ``crop`` is the side of the centre crop in evaluation, as a fraction of the short side; only for images in files.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    validation: Examples
    test: Examples
    crop: float = 1.0

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in SPLITS)
        names = self.classes if len(self.classes) <= 10 else (*self.classes[:3], "...", self.classes[-1])
        shape = "x".join(map(str, self.shape))
        return f"{self.name}: {sizes} images of {shape}, {len(self.classes)} classes ({', '.join(names)})"

    def loader(
        self,
        split: str,
        batch_size: int,
        *,
        device: torch.device,
        training: bool = False,
        augment: str = "none",
        workers: int = 0,
        seed: int = 0,
        skip: bool = False,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> Loader:
        """The loader of one split. It shuffles and augments if ``training``.

        For images in files, ``skip`` leaves out those that cannot be read, and ``transform`` replaces the data set's
        own transform.

        Raises:
            DataError: the split is empty, or ``augment`` works only for images in files.
        """
        examples: Examples = getattr(self, split)
        if not len(examples):
            raise DataError(f"{self.name} has no images for the {split} split")
        augment = augment if training else "none"
        if isinstance(examples.images, Tensor):
            if augment not in _PADDING:
                raise DataError(
                    f"data.augment={augment} is for images in files; {self.name} takes {', '.join(_PADDING)}"
                )
            padding = _PADDING[augment]
            return TensorLoader(
                examples.images, examples.labels, batch_size, mean=self.mean, std=self.std, device=device,
                shuffle=training, padding=padding, mirror=augment == "crop_flip", seed=seed,
            )  # fmt: skip
        transform = transform or self._file_transform(augment)
        return FileLoader(
            examples.images, transform, batch_size, device=device, shuffle=training, workers=workers, seed=seed,
            skip=skip,
        )  # fmt: skip

    def _file_transform(self, augment: str) -> Callable[[Any], Tensor]:
        size = self.shape[1]
        shaped: list[Any] = [transforms.Resize(round(size / self.crop)), transforms.CenterCrop(size)]
        if augment == "shift":
            shaped.append(transforms.RandomCrop(size, padding=1))
        elif augment != "none":
            area = 0.35 if augment == "crop_flip" else 0.08
            shaped = [transforms.RandomResizedCrop(size, scale=(area, 1.0)), transforms.RandomHorizontalFlip()]
        return transforms.Compose([*shaped, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)])


def load(
    name: str,
    root: str,
    *,
    validation: float = 0.1,
    seed: int = 0,
    size: int = 64,
    classes: int = 10,
    images: int = 1000,
    crop: float = 1.0,
    limit: int | None = None,
    verify: bool = True,
    download: bool = False,
    training: bool = True,
) -> DataSet:
    """Loads a data set.

    Args:
        name: one of ``DATA_SETS``.
        root: the folder of the data sets, in torchvision's layout; for ``imagenet`` and ``folder``, the folder that has
            the class folders, or train, val and test with the class folders below them.
        validation: the fraction of the training images that is held out, drawn with ``seed``, if the data set has no
            validation split. The test split never depends on it.
        seed: the seed of the validation split.
        size: height and width in pixels, for images in files and synthetic images.
        crop: the side of the centre crop in evaluation, as a fraction of the short side; only for images in files.
        classes, images: the numbers of synthetic classes and images.
        limit: the maximum number of images in each split; the same images in every run.
        verify: whether to compare the files' checksums with the published ones.
        download: whether to download missing files.
        training: whether training images are required.

    Raises:
        DataError: the data set is unknown, missing, damaged or empty.
    """
    source = _find(name, root, size, classes, images, verify, download)
    held_out, train = source.validation, source.train
    if held_out is None:
        held_out, train = train.split(validation, seed)
    if training and not len(train):
        raise DataError(f"{name} in {root} has too few images to split: {len(source.train)}")
    train, held_out, test = (part.limited(limit) for part in (train, held_out, source.test))
    channels, height, width = train.images.shape[1:] if isinstance(train.images, Tensor) else (3, size, size)
    shape = (channels, height, width)
    return DataSet(name, source.classes, shape, source.mean, source.std, train, held_out, test, crop)


def _find(name: str, root: str, size: int, classes: int, images: int, verify: bool, download: bool) -> Source:
    if name in PUBLISHED:
        return PUBLISHED[name].read(root, verify, download)
    if name in ("imagenet", "folder"):
        return folders.read(Path(root))
    if name == "synthetic":
        return builtin.synthetic(size, classes, images)
    if name == "digits":
        return builtin.digits()
    raise DataError(f"unknown data set '{name}'; it is one of {', '.join(DATA_SETS)}")
