"""Image files in one folder per class: your own, or ImageNet. Says what counts as an image. Makes no batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from optnet.data.examples import Examples, Source
from optnet.data.images import extensions, read_image
from optnet.errors import DataError, printable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics, with which published weights were trained."""
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The names that a split's folder may have, in lower or upper case."""
NO_DATA = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that archivers, network drives and file systems make. They do not count, nor does what begins with a dot."""


class Images(Dataset[tuple[Image.Image, int]]):
    """Files below a folder, by their names there, with their labels."""

    def __init__(self, root: Path, names: Sequence[str], labels: Tensor) -> None:
        self.root, self.names, self.labels = root, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(os.path.join(self.root, self.names[index])), int(self.labels[index])


def read(root: Path) -> Source:
    """Examples under root/train, root/val and root/test, or under root itself.

    If there are train and test, val is the validation split if it exists. If there are only train and val, val is the
    test split, as in ImageNet's layout. If there is only train, about a fifth of it becomes the test split, chosen by a
    hash of the images' names; a root that holds the class folders itself is treated like train. Without train the
    training split is empty.

    An image is a file with an image's extension, at any depth below its class's folder. Hidden files and folders do not
    count. A link to a folder is followed, except to one that contains it. A file that two links of a class lead to
    counts once.

    Raises:
        DataError: a folder is missing, empty or the only class, a split exists twice, another folder lies beside the
            splits, two splits have different classes, two classes have the same name in lower case, or a file is in
            two classes or splits.
    """
    try:
        return _read(root)
    except (DataError, OSError) as error:  # names may hold control characters
        about = "" if isinstance(error, DataError) else f"{root} cannot be read: "
        raise DataError(printable(f"{about}{error}")) from None


def _read(root: Path) -> Source:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; data.root names the folder of the class folders")
    places = _splits(root) or {"train": root}
    seen = _Seen(root)
    parts = {split: _examples(place, root, seen) for split, place in places.items()}
    first, *others = places
    classes = {split: names for split, (_, names) in parts.items()}
    for split in others:
        if different := ", ".join(sorted(set(classes[first]) ^ set(classes[split]))):
            raise DataError(f"{places[first]} and {places[split]} have different classes: {different}")
    made = {split: examples for split, (examples, _) in parts.items()}
    if "test" not in made and "val" in made:
        made["test"] = made.pop("val")
    if "test" not in made:
        made["test"], made["train"] = made["train"].split(0.2, "test", seed=0)
    train = made["train"] if "train" in made else made["test"].select([])
    return Source(classes[first], MEAN, STD, train, made["test"], made.get("val"))


def _folders(place: Path) -> list[str]:
    """The names of the folders in ``place`` that count; a link to ``place`` itself or to one around it does not."""
    return sorted(
        entry.name for entry in _entries(place)
        if _counts(entry.name) and _is_folder(entry) and not (entry.is_symlink() and _around(entry.path, place))
    )  # fmt: skip


def _entries(place: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _has_images(place: Path) -> bool:
    return any(_is_image(entry.name) and not _is_folder(entry) for entry in _entries(place))


def _counts(name: str) -> bool:
    return name[0] != "." and name not in NO_DATA


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _around(link: str | Path, place: str | Path) -> bool:
    """Whether ``link`` leads to ``place`` or to a folder that it lies in."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(link))


def _is_image(name: str) -> bool:
    return _counts(name) and os.path.splitext(name)[1].lower() in extensions()


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
    below = {name: tuple(_folders(root / name)) for name in folders if not named}
    for name, inner in below.items():
        if len({SPLITS[one.lower()] for one in inner if one.lower() in SPLITS}) > 1:
            raise DataError(f"{root / name} has the splits {', '.join(inner)}; give data.root={root / name}")
    if len(below) > 1 and len(set(below.values())) == 1 and (common := below[folders[0]]):
        raise DataError(
            f"{', '.join(folders)} in {root} contain the same folders, {', '.join(common)}: "
            f"if they are splits, call them {', '.join(dict.fromkeys(SPLITS.values()))}"
        )
    return places


def _examples(place: Path, root: Path, seen: _Seen) -> tuple[Examples, tuple[str, ...]]:
    """One split, and the names of its classes."""
    folders = _folders(place)
    _check_classes(place, folders, "data.root" if place == root else "")
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(seen.images(place / folder))
        names += [f"{folder}/{name}" for name in found]
        labels += [label] * len(found)
    if empty := [folder for label, folder in enumerate(folders) if label not in set(labels)]:
        raise DataError(
            f"{place} has class folders without an image: {', '.join(empty[:10])}; remove them, or fill them"
        )
    targets = torch.tensor(labels)
    return Examples(Images(place, names, targets), targets, names), tuple(map(printable, folders))


def _check_classes(place: Path, folders: list[str], key: str) -> None:
    """Checks that these can be the folders of classes.

    Raises:
        DataError: there are none or one, or two of the same name.
    """
    if not folders:
        above = _has_images(place)
        advice = (
            f"has images, but they must be in class folders, like {place / 'cat'}" if above else "has no class folders"
        )
        raise DataError(f"{place} {advice}; data.root names the folder of the class folders")
    if len(folders) == 1:
        (only,) = folders
        inner = _folders(place / only)
        if not inner or _has_images(place / only):
            raise DataError(f"{place} has one class, {only}; there must be two at least")
        listed = ", ".join(inner[:5]) + (", ..." if len(inner) > 5 else "")
        advice = f"give {key}={place / only}" if key else f"move these into {place}"
        raise DataError(
            f"{place} has one class, {only}, which has the folders {listed}; if these are the classes, {advice}"
        )
    alike: dict[str, str] = {}
    for folder in folders:
        other = alike.setdefault(printable(folder).casefold(), folder)
        if other != folder:
            raise DataError(
                f"classes {other} and {folder} in {place} are the same but for case and control characters; rename one"
            )


class _Seen:
    """The image files below ``root`` that were counted, each with the class folder that it was counted in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, str] = {}

    def images(self, folder: Path) -> list[str]:
        """The names of the images of one class, below its folder. Links come last.

        Raises:
            DataError: one of them is in another class or split, too.
        """
        names: list[str] = []
        plain, links, linked_files, visited = [""], list[str](), list[str](), set[str]()
        while plain or links:
            inner = plain.pop() if plain else links.pop()
            place = os.path.join(folder, inner)
            real = os.path.realpath(place)
            if real in visited:
                continue
            visited.add(real)
            for entry in reversed(_entries(place)):
                name = os.path.join(inner, entry.name)
                if not _counts(entry.name):
                    continue
                if _is_folder(entry):
                    if not entry.is_symlink():
                        plain.append(name)
                    elif not (_around(entry.path, place) or _around(entry.path, self.root)):
                        links.append(name)
                elif _is_image(entry.name):
                    if entry.is_symlink():
                        linked_files.append(name)
                    elif self._is_new(os.path.join(real, entry.name), folder, name):
                        names.append(name)
        for name in sorted(linked_files):
            if self._is_new(os.path.realpath(os.path.join(folder, name)), folder, name):
                names.append(name)
        return names

    def _is_new(self, file: str, folder: Path, name: str) -> bool:
        count, before = len(self.files), self.files.setdefault(hash(file), str(folder))
        if before != str(folder):
            raise DataError(
                f"{folder / name} is the same file as one in {before}; an image has one class and one split"
            )
        return len(self.files) > count
