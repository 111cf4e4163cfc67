"""Data sets by name: how they are split, normalised and augmented. Makes no batches and no models."""

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
"""Of the training images: nothing; moved by up to 1 pixel; moved by up to 4, and mirrored (of files: at least 0.35 of
the area, and mirrored); at least 0.08 of the area, and mirrored, as usual for ImageNet (Szegedy et al. 2015)."""
DATA_SETS = ("digits", *PUBLISHED, "imagenet", "folder", "synthetic")
_PADDING = {"none": 0, "shift": 1, "crop_flip": 4}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSet:
    """A data set with its three splits; ``shape`` is (channels, height, width) of one image.

    ``crop`` is the part of a file's short side that evaluation looks at, in its middle.
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
        """Batches of one split; shuffled and augmented if ``training``.

        Of images in files, ``skip`` leaves out those that cannot be read, and ``transform`` takes the place of the
        data set's own.

        Raises:
            DataError: the split is empty, or ``augment`` is for images in files.
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
        root: the folder of the data sets, laid out as torchvision does; for ``imagenet`` and ``folder`` the one with
            the class folders, or with train, val and test above them.
        validation: the part of the training images held out, drawn by ``seed``, if there is no such split already.
            The test split never depends on it.
        size: height and width of a class folder's or of synthetic images, in pixels.
        crop: the part of a file's short side that evaluation looks at, in its middle.
        classes, images: how many synthetic ones.
        limit: at most so many images of each split, the same ones in every run.
        verify: compare the files' checksums with the published ones.
        download: fetch missing files.
        training: whether there must be training images.

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
