"""Examples as files in one folder a class: your own, or ImageNet's. Lists files, and reads one as 8-bit colours."""

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
"""ImageNet's, with which published weights were trained."""
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What a split's folder may be called, in small letters or capitals."""


def read_image(path: str) -> Image.Image:
    """The image in a file, as 8-bit RGB; what is transparent has the colour that is stored there.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return _eight_bit(opened).convert("RGB")
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(f"{path} cannot be read as an image ({reason(error)})") from None


def _eight_bit(opened: Image.Image) -> Image.Image:
    """An image that Pillow converts to RGB as it looks."""
    if opened.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        return Image.fromarray((np.asarray(opened).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    if opened.mode == "P" and "transparency" in opened.info:
        return opened.convert("RGBA")
    return opened


@cache
def extensions() -> frozenset[str]:
    """Of all files that Pillow opens here, in small letters, like ``.jpg``."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _is_image(path: str) -> bool:
    file = Path(path)
    return file.suffix.lower() in extensions() and not file.name.startswith(".")


class _Classes(datasets.ImageFolder):
    """A class for each folder, of the files with an image's extension."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), loader=read_image, is_valid_file=_is_image)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = _folders(Path(directory))
        if not names:
            raise FileNotFoundError("there is no folder in it")
        return names, {name: i for i, name in enumerate(names)}


def _folders(place: Path) -> list[str]:
    """Folders that begin with a dot (an editor's, a file manager's) do not count."""
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir() and entry.name[0] != ".")


def read(root: Path) -> Source:
    """Examples under root/train, root/val and root/test, or under root itself.

    With train and test, val is the validation split if it is there; with train and val alone, val is the test split
    (ImageNet's layout), and with train alone a fixed fifth of it. One folder of classes without these is split in the
    same way. Without train there is nothing to train on.

    Raises:
        DataError: a folder is missing or empty, no split or one that is there twice, or two of them have different
            classes.
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
        parts["test"], parts["train"] = parts["train"].split(0.2, seed=0)
    train = parts["train"] if "train" in parts else parts["test"].select([])
    return Source(classes[first], MEAN, STD, train, parts["test"], parts.get("val"))


def _splits(root: Path) -> dict[str, Path]:
    """The folders of the splits, train first; none if those in root are classes."""
    folders = _folders(root)
    named = [name for name in folders if name.lower() in SPLITS]
    if others := ", ".join(name for name in folders if named and name not in named):
        raise DataError(
            f"{root} has {' and '.join(named)}, by its name a split, and beside it {others}: move what is no split "
            f"away; a class may be called so if all class folders lie in {root / 'train'}"
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
            f"{', '.join(folders)} in {root} have the same folders in them, {', '.join(below[0])}: "
            f"if they are splits, call them {', '.join(dict.fromkeys(SPLITS.values()))}"
        )
    return places


def _examples(root: Path) -> tuple[Examples, tuple[str, ...]]:
    try:
        folder = _Classes(root)
    except FileNotFoundError as error:
        raise DataError(f"{root} has no class folders with images: {reason(error)}") from None
    return Examples(folder, torch.tensor(folder.targets)), tuple(folder.classes)
