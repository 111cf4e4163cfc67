"""Data sets by name: where their pictures are, how they are split and normalised. Makes no batches and no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

from optnet.data.loading import FileLoader, Loader, TensorLoader
from optnet.errors import DataError

AUGMENTATIONS = ("none", "shift", "crop_flip")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Pictures:
    """One split: tensors in memory, or files."""

    images: Tensor | Dataset[Any]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Sequence[int]) -> Pictures:
        images = self.images[list(index)] if isinstance(self.images, Tensor) else Subset(self.images, list(index))
        return Pictures(images, self.labels[list(index)])


@dataclass(frozen=True)
class DataSet:
    """A data set with its three splits; ``shape`` is (channels, height, width) of one image."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Pictures
    validation: Pictures
    test: Pictures

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in SPLITS)
        return f"{self.name}: {sizes} pictures of {'x'.join(map(str, self.shape))}, {len(self.classes)} classes"

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
    ) -> Loader:
        """Batches of one split; shuffled and augmented if ``training``."""
        pictures: Pictures = getattr(self, split)
        augment = augment if training else "none"
        if isinstance(pictures.images, Tensor):
            padding = {"none": 0, "shift": 1, "crop_flip": 4}[augment]
            return TensorLoader(
                pictures.images, pictures.labels, batch_size, mean=self.mean, std=self.std, device=device,
                shuffle=training, padding=padding, mirror=augment == "crop_flip", seed=seed,
            )  # fmt: skip
        transform = self._file_transform(augment)
        return FileLoader(
            pictures.images, transform, batch_size, device=device, shuffle=training, workers=workers, seed=seed
        )

    def _file_transform(self, augment: str) -> Callable[[Any], Tensor]:
        size = self.shape[1]
        shaped: list[Any] = [transforms.Resize(size), transforms.CenterCrop(size)]
        if augment == "shift":
            shaped.append(transforms.RandomCrop(size, padding=1))
        elif augment == "crop_flip":
            shaped = [transforms.RandomResizedCrop(size, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
        grey = [transforms.Grayscale()] if self.shape[0] == 1 else []
        return transforms.Compose([*grey, *shaped, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)])


def load(
    name: str,
    root: str,
    *,
    validation: float = 0.1,
    seed: int = 0,
    size: int = 64,
    verify: bool = True,
    download: bool = False,
) -> DataSet:
    """Loads a data set.

    Args:
        name: ``digits``, ``mnist``, ``cifar10`` or ``folder``.
        root: the folder of the data sets, laid out as torchvision does; for ``folder`` the class folder itself.
        validation: the part of the training pictures held out, drawn by ``seed``. The test split never depends on it.
        size: height and width of a class folder's pictures, in pixels.
        verify: compare the files' checksums with the published ones.
        download: fetch missing files.

    Raises:
        DataError: the data set is unknown, missing, damaged or empty.
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set '{name}'; it is one of {', '.join(DATA_SETS)}")
    if name == "folder":
        return _folder(Path(root), validation, seed, size)
    classes, mean, std, train, test = DATA_SETS[name](root, verify, download)
    assert isinstance(train.images, Tensor)
    _, channels, height, width = train.images.shape
    held_out, rest = _split(len(train), validation, seed)
    return DataSet(
        name, classes, (channels, height, width), mean, std, train.select(rest), train.select(held_out), test
    )


def _split(n: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, round(n * fraction))
    return order[:count], order[count:]


_Source = tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...], Pictures, Pictures]


def _digits(root: str, verify: bool, download: bool) -> _Source:
    """1,797 digits of 8x8 pixels that come with scikit-learn; every fifth one is a test picture."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    everything = Pictures(images, labels)
    test, train = everything.select(order[::5]), everything.select([i for k, i in enumerate(order) if k % 5])
    return tuple(map(str, range(10))), (0.305,), (0.376,), train, test


def _torchvision(kind: type[Any], root: str, download: bool) -> list[Any]:
    try:
        return [kind(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{kind.__name__} is not in {root} ({reason}); set data.root or OPTNET_DATA, or data.download=true"
        ) from None


def _mnist(root: str, verify: bool, download: bool) -> _Source:
    train, test = (
        Pictures(part.data.unsqueeze(1), part.targets.long()) for part in _torchvision(datasets.MNIST, root, download)
    )
    return tuple(map(str, range(10))), (0.1307,), (0.3081,), train, test


class _UnverifiedCIFAR10(datasets.CIFAR10):
    """CIFAR-10 whose files are taken as they are."""

    train_list = [[file, None] for file, _ in datasets.CIFAR10.train_list]  # noqa: RUF012
    test_list = [[file, None] for file, _ in datasets.CIFAR10.test_list]  # noqa: RUF012
    meta = {**datasets.CIFAR10.meta, "md5": None}  # noqa: RUF012


def _cifar10(root: str, verify: bool, download: bool) -> _Source:
    try:
        parts = _torchvision(datasets.CIFAR10 if verify else _UnverifiedCIFAR10, root, download)
    except DataError as error:
        present = verify and (Path(root) / "cifar-10-batches-py").is_dir()
        hint = "; data.verify=false skips the checksum" if present else ""
        raise DataError(f"{error}{hint}") from None
    train, test = (
        Pictures(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return tuple(parts[0].classes), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), train, test


def _folder(root: Path, validation: float, seed: int, size: int) -> DataSet:
    """Pictures in one folder a class, under root/train and root/test (or val), or under root itself (then split)."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; data.root names the folder of the class folders")
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    pictures, classes = _image_folder(train_root)
    held_out, rest = _split(len(pictures), validation, seed)
    if train_root == root or test_root is None:  # one folder: a fixed fifth of it is the test split
        test_index, train_index = _split(len(pictures), 0.2, 0)
        test, kept = pictures.select(test_index), pictures.select(train_index)
        held_out, rest = _split(len(kept), validation, seed)
        pictures = kept
    else:
        test, test_classes = _image_folder(test_root)
        if test_classes != classes:
            different = sorted(set(classes) ^ set(test_classes))
            raise DataError(f"{train_root} and {test_root} have different classes: {', '.join(different)}")
    if not rest:
        raise DataError(f"{train_root} has too few pictures to split: {len(pictures)}")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return DataSet(
        "folder", classes, (3, size, size), mean, std, pictures.select(rest), pictures.select(held_out), test
    )


def _image_folder(root: Path) -> tuple[Pictures, tuple[str, ...]]:
    try:
        folder = datasets.ImageFolder(str(root))
    except FileNotFoundError as error:
        raise DataError(f"{root} has no class folders with pictures: {str(error).splitlines()[0]}") from None
    return Pictures(folder, torch.from_numpy(np.asarray(folder.targets)).long()), tuple(folder.classes)


DATA_SETS: dict[str, Any] = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "folder": _folder}
