"""Pictures as files in one folder a class: your own, or ImageNet's. Reads names, not pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from optnet.data.pictures import Pictures, Source
from optnet.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, with which published weights were trained."""


def _read(path: str) -> Any:
    try:
        return datasets.folder.default_loader(path)
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(f"{path} cannot be read as a picture ({str(error).splitlines()[0]})") from None


class _Classes(datasets.ImageFolder):
    """Folders that begin with a dot (an editor's, a file manager's) are no classes."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = sorted(place.name for place in Path(directory).iterdir() if place.is_dir() and place.name[0] != ".")
        if not names:
            raise FileNotFoundError("there is no folder in it")
        return names, {name: i for i, name in enumerate(names)}


def read(root: Path) -> Source:
    """Pictures under root/train, root/val and root/test, or under root itself.

    With train and test, val is the validation split if it is there; with train and val alone, val is the test split
    (ImageNet's layout). One folder of classes without these is split: a fixed fifth of it is the test split. With val
    or test alone there is nothing to train on.

    Raises:
        DataError: a folder is missing or empty, or two of them have different classes.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; data.root names the folder of the class folders")
    if not (root / "train").is_dir():
        alone = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
        if alone is not None:
            test, classes = _pictures(alone)
            return Source(classes, MEAN, STD, test.select([]), test, test.select([]))
        everything, classes = _pictures(root)
        test, train = everything.split(0.2, seed=0)
        return Source(classes, MEAN, STD, train, test)
    train, classes = _pictures(root / "train")
    others: dict[str, Pictures] = {}
    for name in ("val", "test"):
        if (root / name).is_dir():
            others[name], found = _pictures(root / name)
            if found != classes:
                different = ", ".join(sorted(set(classes) ^ set(found)))
                raise DataError(f"{root / 'train'} and {root / name} have different classes: {different}")
    if "test" in others:
        return Source(classes, MEAN, STD, train, others["test"], others.get("val"))
    test, train = (others["val"], train) if others else train.split(0.2, seed=0)
    return Source(classes, MEAN, STD, train, test)


def _pictures(root: Path) -> tuple[Pictures, tuple[str, ...]]:
    try:
        folder = _Classes(str(root), loader=_read)
    except FileNotFoundError as error:
        raise DataError(f"{root} has no class folders with pictures: {str(error).splitlines()[0]}") from None
    return Pictures(folder, torch.tensor(folder.targets)), tuple(folder.classes)
