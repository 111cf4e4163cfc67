"""Data sets by name: options, splits, normalisation and augmentation. Makes no batches and no models."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optnet.data import builtin, folders
from optnet.data.augmentation import AUGMENTATIONS, Augmentation
from optnet.data.examples import Examples, Source
from optnet.data.loading import FileLoader, Loader, TensorLoader
from optnet.data.preprocessing import INTERPOLATIONS, Preprocessing
from optnet.data.published import PUBLISHED
from optnet.data.record import DataRecord, changes, record
from optnet.errors import DataError
from optnet.options import choice, number, option, path

DATA_SETS = ("digits", *PUBLISHED, "imagenet", "folder", "synthetic")
_PADDING = {"none": 0, "shift": 1, "crop_flip": 4}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSet:
    """A data set with its three splits, and what is done to its images.

    ``preprocessing`` is that in evaluation; ``augment`` of ``loader`` changes it in training.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Examples
    validation: Examples
    test: Examples
    record: DataRecord

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.preprocessing.shape

    @property
    def mean(self) -> tuple[float, ...]:
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.preprocessing.std

    @property
    def in_memory(self) -> bool:
        """Whether the images are tensors; else they are files."""
        return isinstance(self.test.images, Tensor)

    def prepared(self, preprocessing: Preprocessing) -> DataSet:
        """The same images with another preprocessing, like that which a network was trained with.

        Raises:
            DataError: the images are in memory and have another number of channels.
        """
        given, own = len(preprocessing.mean), len(self.mean)
        if given != own and self.in_memory:
            raise DataError(f"the images of {self.name} have {own} channel(s), and {given} are needed")
        return replace(self, preprocessing=preprocessing)

    def as_trained(
        self, trained: Preprocessing, options: DataOptions, stated: Collection[str], what: str = "it was trained"
    ) -> tuple[DataSet, str]:
        """The data with the preprocessing that a model was trained with, except for the keys that are ``stated``.

        Returns it with a sentence about how that differs from the data set's own, or from the training; empty if it
        does not. ``what`` stands for the training.

        Raises:
            DataError: the images are in memory and have another number of channels.
        """
        used, said = options.stated(trained, stated), ""
        if used != trained:
            keys = sorted(key for key in stated if key.removeprefix("data.") in vars(used))
            said = f"images of {used}, by {', '.join(keys)}; {what} with {trained}"
        elif used != self.preprocessing:
            said = f"images of {used}, as {what}; {self.name}'s own are {self.preprocessing}"
        return self.prepared(used), said

    def as_started(
        self, before: Preprocessing, options: DataOptions, stated: Collection[str], where: str
    ) -> tuple[DataSet, str]:
        """The data for a training that starts from weights which were trained with the preprocessing ``before``.

        As ``as_trained``, but images in memory keep their size, and their own mean and deviation if they have another
        number of channels.
        """
        if self.in_memory:
            own, alike = self.preprocessing, len(before.mean) == len(self.mean)
            before = own.changed(mean=before.mean, std=before.std) if alike else own
        return self.as_trained(before, options, stated, f"{where} was trained")

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in SPLITS)
        names = self.classes if len(self.classes) <= 10 else (*self.classes[:3], "...", self.classes[-1])
        shape = "x".join(map(str, self.shape))
        return f"{self.name}: {sizes} images of {shape}, {len(self.classes)} classes ({', '.join(names)})"

    def changes(self, then: DataRecord, splits: Sequence[str] = SPLITS) -> str:
        """How these splits differ from those that a run was trained on; empty if they do not."""
        return changes(then, self.record, [getattr(self, split) for split in SPLITS], splits)

    def loader(
        self,
        split: str,
        batch_size: int,
        *,
        device: torch.device,
        training: bool = False,
        augment: str | Augmentation = "none",
        workers: int = 0,
        seed: int = 0,
        skip: bool = False,
        least: int = 1,
    ) -> Loader:
        """The loader of one split. It shuffles and augments if ``training``.

        For images in files, ``skip`` leaves out those that cannot be read; in training ``least`` images of a batch are
        left at least.

        Raises:
            DataError: the split is empty, ``augment`` works only for images in files, or for colour images.
        """
        examples: Examples = getattr(self, split)
        if not len(examples):
            raise DataError(f"{self.name} has no images for the {split} split")
        asked = Augmentation(augment) if isinstance(augment, str) else augment
        asked = asked if training else Augmentation()
        if isinstance(examples.images, Tensor):
            if asked.name not in _PADDING:
                raise DataError(
                    f"data.augment={asked.name} is for images in files; {self.name} takes {', '.join(_PADDING)}"
                )
            if asked.colours:
                key, value = next(iter(asked.colours.items()))
                raise DataError(f"data.{key}={value:g} is for images in files; {self.name} takes data.{key}=0")
            padding = _PADDING[asked.name]
            images = self.preprocessing.shaped(examples.images)
            return TensorLoader(
                images, examples.labels, batch_size, mean=self.mean, std=self.std, device=device,
                shuffle=training, padding=padding, mirror=asked.name == "crop_flip", seed=seed,
            )  # fmt: skip
        return FileLoader(
            examples.images, asked.transform(self.preprocessing), batch_size, device=device, shuffle=training,
            workers=workers, seed=seed, skip=skip, least=least,
        )  # fmt: skip


@dataclass
class DataOptions:
    """The data set, the folder of its files, and how its images are split, augmented and read."""

    name: str = choice("digits", *DATA_SETS, help="the data set")
    root: str = path(
        factory=lambda: os.environ.get("OPTNET_DATA", "data"),
        example="data",
        help="the folder of the data sets, in torchvision's layouts; for imagenet and folder: the folder of the class "
        "folders, or of train, val and test above them",
    )
    verify: bool = option(True, help="compare the files' checksums with the published ones")
    download: bool = option(False, help="download missing files")
    validation: float = number(
        0.1,
        0,
        0.5,
        help="the held-out fraction of the training images, which chooses the best checkpoint; 0: none is held out, "
        "and the last epoch is scored",
    )
    augment: str = choice(
        "none",
        *AUGMENTATIONS,
        help="training images: none; pad by 1 and crop; pad by 4, crop and flip; a random resized crop and flip",
    )
    color_jitter: float = number(
        0.0, 0, 1,
        help="augmented colour images in files: the part by which brightness, contrast and saturation change at random",
    )  # fmt: skip
    lighting: float = number(
        0.0, 0, 1,
        help="augmented colour images in files: the deviation of the noise along the principal components of the "
        "colours",
    )  # fmt: skip
    size: int = number(64, 4, 4096, help="height and width, in pixels, of images in files and of synthetic ones")
    crop: float = number(
        1.0, high=1, above=0, help="the side of evaluation's centre crop, as a fraction of the short side"
    )
    interpolation: str = choice("bilinear", *INTERPOLATIONS, help="of images that are resized")
    mean: list[float] | None = option(
        None, example=[0.485, 0.456, 0.406], help="of each channel, in 0..1; null: the data set's own"
    )
    std: list[float] | None = option(
        None, example=[0.229, 0.224, 0.225], help="of each channel, in 0..1; null: the data set's own"
    )
    classes: int = number(10, 2, 100_000, help="the number of synthetic classes")
    images: int = number(1000, 10, help="the number of synthetic images")
    limit: int | None = number(None, 2, help="the maximum number of images in each split; the same images in every run")
    workers: int = number(0, 0, 256, help="number of worker processes that read files")
    unreadable: str = choice("fail", "fail", "skip", help="stop at an image that cannot be read, or leave it out")

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.augment, self.color_jitter, self.lighting)

    @property
    def skip(self) -> bool:
        """Whether images that cannot be read are left out."""
        return self.unreadable == "skip"

    def stated(self, given: Preprocessing, keys: Collection[str]) -> Preprocessing:
        """A preprocessing with those values of its own that these keys, like ``data.size``, state.

        Raises:
            DataError: they do not go together.
        """
        own = {
            "size": (self.size, self.size), "crop": self.crop, "interpolation": self.interpolation,
            "mean": tuple(self.mean or given.mean), "std": tuple(self.std or given.std),
        }  # fmt: skip
        try:
            return given.changed(**{key: value for key, value in own.items() if f"data.{key}" in keys})
        except DataError as error:
            raise DataError(f"data.{error}") from None


def load(name: str, root: str, *, seed: int = 0, training: bool = True, **options: Any) -> DataSet:
    """Loads a data set by its name and folder; ``options`` are those of ``DataOptions``. See ``load_as``."""
    return load_as(DataOptions(name=name, root=root, **options), seed, training)


def load_as(options: DataOptions, seed: int = 0, training: bool = True) -> DataSet:
    """Loads a data set.

    If the data set has no validation split, ``seed`` draws it. The test split never depends on ``seed``. A hash of
    its name assigns an image in a file to a split: one that is added moves no other.

    Args:
        training: whether all three splits must have images, but for a validation split that is not wanted.

    Raises:
        DataError: the data set is unknown, missing, damaged or empty; or it comes with a validation split and none is
            wanted.
    """
    source = _find(options)
    held_out, train, wanted = source.validation, source.train, options.validation > 0
    if held_out is None:
        held_out, train = train.split(options.validation, "validation", seed) if wanted else (train.select([]), train)
    elif training and not wanted:
        raise DataError(
            f"data.validation=0, but {options.root} has a validation split; leave data.validation out, or move these "
            f"images into train"
        )
    if training and not (len(train) and (len(held_out) or not wanted)):
        raise DataError(_too_few(options, len(source.train), "validation" if len(train) else "train"))
    if training and not len(source.test):
        raise DataError(_too_few(options, len(source.train), "test"))
    train, held_out, test = (part.limited(options.limit) for part in (train, held_out, source.test))
    if isinstance(train.images, Tensor):
        height, width = train.images.shape[2:]
        own, keys = Preprocessing((height, width), source.mean, source.std), {"data.mean", "data.std"}
    else:
        own = Preprocessing((options.size, options.size), source.mean, source.std)
        keys = {"data.mean", "data.std", "data.crop", "data.interpolation"}
    made = record(options.name, len(source.classes), (train, held_out, test), source.exact)
    return DataSet(options.name, source.classes, options.stated(own, keys), train, held_out, test, made)


def _too_few(options: DataOptions, images: int, split: str) -> str:
    return (
        f"{options.name} in {options.root} has too few images to split: of {images} none is in the {split} split; add "
        f"some, raise data.validation, or make the folders train, val and test"
    )


def _find(options: DataOptions) -> Source:
    name = options.name
    if name in PUBLISHED:
        return PUBLISHED[name].read(options.root, options.verify, options.download)
    if name in ("imagenet", "folder"):
        return folders.read(Path(options.root))
    if name == "synthetic":
        return builtin.synthetic(options.size, options.classes, options.images)
    if name == "digits":
        return builtin.digits()
    raise DataError(f"unknown data set '{name}'; it is one of {', '.join(DATA_SETS)}")
