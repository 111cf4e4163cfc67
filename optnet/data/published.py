"""Published data sets of small images, read by torchvision. Splits off no validation images."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from optnet.data.builtin import DIGITS
from optnet.data.examples import Examples, Source
from optnet.errors import DataError, reason


@dataclass(frozen=True)
class Published:
    """A data set of torchvision.

    Attributes:
        kind: its class in torchvision.
        axes: the order of its array's dimensions: ``nhw`` (grey), ``nhwc`` or ``nchw``.
        mean, std: those of the training images in 0..1, one number per channel.
        classes: the names of the classes; empty if torchvision knows them.
        folder: the folder of its files below the root, if torchvision creates none.
    """

    kind: type[Any]
    axes: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    folder: str = ""

    def read(self, root: str, verify: bool, download: bool) -> Source:
        """Reads both splits.

        Raises:
            DataError: the files are missing or damaged.
        """
        place = Path(root) / self.folder
        if not place.is_dir() and not download:
            place = Path(root)
        train, test = (self._part(place, split, verify, download) for split in ("train", "test"))
        classes = self.classes or tuple(train.classes)
        return Source(classes, self.mean, self.std, self._examples(train), self._examples(test))

    def _part(self, place: Path, split: str, verify: bool, download: bool) -> Any:
        kind = self.kind if verify else _unverified(self.kind)
        self._check_files(place)
        if not verify:
            self._check_pickles(place)
        which = {"split": split} if kind.__name__ == "SVHN" else {"train": split == "train"}
        try:
            return kind(str(place), download=download, **which)
        except Exception as error:  # every format raises its own exceptions
            advice = "set data.root or OPTNET_DATA, or data.download=true"
            if verify and kind is not _unverified(kind):
                advice += "; data.verify=false accepts other checksums"
            raise DataError(f"{kind.__name__} cannot be read from {place} ({reason(error)}); {advice}") from None

    def _check_files(self, place: Path) -> None:
        """Raises:
        DataError: one of the files that may be read is a pipe or a device, on which a reader waits.
        """
        inner = (place / self.kind.__name__ / "raw", place / getattr(self.kind, "base_folder", ""), place)
        for file in (file for folder in inner if folder.is_dir() for file in folder.iterdir()):
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise DataError(f"{self.kind.__name__} cannot be read from {place}: {file} is not a regular file")

    def _check_pickles(self, place: Path) -> None:
        """Torchvision unpickles CIFAR's files. Where nobody compares checksums they may run anything.

        Raises:
            DataError: one of them is damaged, or has more than arrays and plain containers.
        """
        if not issubclass(self.kind, datasets.CIFAR10) or not (folder := place / self.kind.base_folder).is_dir():
            return
        for name in (*(file for file, _ in (*self.kind.train_list, *self.kind.test_list)), self.kind.meta["filename"]):
            if (file := folder / name).is_file():
                try:
                    with open(file, "rb") as opened:
                        _Arrays(opened, encoding="latin1").load()
                except Exception as error:  # foreign bytes make the unpickler stumble in any way
                    raise DataError(f"{self.kind.__name__} cannot be read from {place}: {reason(error)}") from None

    def _examples(self, part: Any) -> Examples:
        images = torch.as_tensor(part.data)
        images = images.unsqueeze(1) if self.axes == "nhw" else images.permute(*map(self.axes.index, "nchw"))
        labels = part.labels if hasattr(part, "labels") else part.targets
        return Examples(images.contiguous(), torch.as_tensor(labels).long())


class _Arrays(pickle.Unpickler):
    """Unpickles arrays and plain containers alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it has a {module}.{name}, and no data set has one")
        return super().find_class(module, name)


ARRAYS = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode"),
}  # fmt: skip
"""What a pickled array of numpy refers to, in any version."""


def _unverified(kind: type[Any]) -> type[Any]:
    """A subclass without the checksums that torchvision verifies; the class itself if it has none."""
    if issubclass(kind, datasets.CIFAR10):
        lists: dict[str, Any] = {
            name: [[file, None] for file, _ in getattr(kind, name)] for name in ("train_list", "test_list")
        }
        return type(kind.__name__, (kind,), {**lists, "meta": {**kind.meta, "md5": None}})
    if issubclass(kind, datasets.SVHN):
        files = {split: [*source[:2], None] for split, source in kind.split_list.items()}
        return type(kind.__name__, (kind,), {"split_list": files})
    return kind


PUBLISHED = {
    "mnist": Published(datasets.MNIST, "nhw", (0.1307,), (0.3081,), DIGITS),
    "fashion_mnist": Published(datasets.FashionMNIST, "nhw", (0.2860,), (0.3530,)),
    "usps": Published(datasets.USPS, "nhw", (0.2469,), (0.2989,), DIGITS, folder="USPS"),
    "svhn": Published(datasets.SVHN, "nchw", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), DIGITS, folder="SVHN"),
    "cifar10": Published(datasets.CIFAR10, "nhwc", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Published(datasets.CIFAR100, "nhwc", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
