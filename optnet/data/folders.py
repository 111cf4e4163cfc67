"""Image files in one folder per class: your own, or ImageNet. Reads them as 8-bit RGB. Makes no batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from optnet.data.examples import Examples, Source
from optnet.errors import DataError, reason

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics, with which published weights were trained."""
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The names that a split's folder may have, in lower or upper case."""


def read_image(path: str) -> Image.Image:
    """The image in a file as 8-bit RGB. Transparent pixels keep the colour that is stored for them.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return _eight_bit(opened).convert("RGB")
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(f"{path} cannot be read as an image ({reason(error)})") from None


def _eight_bit(opened: Image.Image) -> Image.Image:
    """The same image in a mode that Pillow converts to RGB faithfully."""
    if opened.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return Image.fromarray((np.asarray(opened).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    if opened.mode == "P" and "transparency" in opened.info:
        return opened.convert("RGBA")
    return opened


@cache
def extensions() -> frozenset[str]:
    """The lower-case extensions of all files that Pillow can open here, like ``.jpg``."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _is_image(path: str) -> bool:
    file = Path(path)
    return file.suffix.lower() in extensions() and not file.name.startswith(".")


class _Classes(datasets.ImageFolder):
    """One class per folder; only files with an image's extension count."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), loader=read_image, is_valid_file=_is_image)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = _folders(Path(directory))
        if not names:
            raise FileNotFoundError("it contains no folder")
        return names, {name: i for i, name in enumerate(names)}


def _folders(place: Path) -> list[str]:
    """The names of the folders in ``place``, without those that begin with a dot."""
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir() and entry.name[0] != ".")


def read(root: Path) -> Source:
    """Examples under root/train, root/val and root/test, or under root itself.

    If there are train and test, val is the validation split if it exists. If there are only train and val, val is the
    test split, as in ImageNet's layout. If there is only train, about a fifth of it becomes the test split, chosen by a
    hash of the images' names; a root that holds the class folders itself is treated like train. Without train the
    training split is empty.

    Raises:
        DataError: a folder is missing or empty, a split exists twice, another folder lies beside the splits, or two
            splits have different classes.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; data.root names the folder of the class folders")
    places = _splits(root) or {"train": root}
    parts, classes = {}, {}
    for split, place in places.items():
        parts[split], classes[split] = _examples(place)
    first, *others = places
    for split in others:
        if different := ", ".join(sorted(set(classes[first]) ^ set(classes[split]))):
            raise DataError(f"{places[first]} and {places[split]} have different classes: {different}")
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        parts["test"], parts["train"] = parts["train"].split(0.2, "test", seed=0)
    train = parts["train"] if "train" in parts else parts["test"].select([])
    return Source(classes[first], MEAN, STD, train, parts["test"], parts.get("val"))


def _splits(root: Path) -> dict[str, Path]:
    """The folders of the splits, train first; empty if the folders in root are classes."""
    folders = _folders(root)
    named = [name for name in folders if name.lower() in SPLITS]
    if others := ", ".join(name for name in folders if named and name not in named):
        raise DataError(
            f"{root} has the splits {' and '.join(named)} and also the folders {others}; move those away, or move all "
            f"class folders, whatever their names, into {root / 'train'}"
        )
    places: dict[str, Path] = {}
    for name in sorted(named, key=lambda name: [*SPLITS].index(name.lower())):
        split = SPLITS[name.lower()]
        if split in places:
            raise DataError(f"{places[split]} and {root / name} are the same split; leave one of them")
        places[split] = root / name
    below = [tuple(_folders(root / name)) for name in folders]
    if not named and len(below) > 1 and below[0] and len(set(below)) == 1:
        raise DataError(
            f"{', '.join(folders)} in {root} contain the same folders, {', '.join(below[0])}: "
            f"if they are splits, call them {', '.join(dict.fromkeys(SPLITS.values()))}"
        )
    return places


def _examples(root: Path) -> tuple[Examples, tuple[str, ...]]:
    try:
        folder = _Classes(root)
    except FileNotFoundError as error:
        raise DataError(f"{root} has no class folders with images: {reason(error)}") from None
    names = [Path(file).relative_to(root).as_posix() for file, _ in folder.samples]
    return Examples(folder, torch.tensor(folder.targets), names), tuple(folder.classes)
