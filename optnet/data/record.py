"""What a run remembers of its data: how many images each split had, and which. Reads no files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from optnet.data.examples import Examples, digest
from optnet.errors import CheckpointError
from optnet.options import number, option

SPLITS = ("train", "validation", "test")
SHOWN = 3
"""New images that are named at most."""


@dataclass(frozen=True)
class SplitRecord:
    """One split.

    Attributes:
        count: of its images.
        per_class: how many images each class has, in the order of the classes.
        digests: int64, sorted. Of images in files a hash of each one's class and name. Of images in memory one hash of
            all labels and pixels.
    """

    count: int = number(0, 0)
    per_class: list[int] = option(factory=list)
    digests: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


@dataclass(frozen=True)
class DataRecord:
    """The three splits of a data set.

    Attributes:
        name: of the data set, as in ``data.name``.
        before: the digests of images that the run was trained on before its data changed, and which have left its
            training split.
    """

    name: str
    train: SplitRecord
    validation: SplitRecord
    test: SplitRecord
    before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, which are not copied."""
        return {**vars(self), **{split: dict(vars(getattr(self, split))) for split in SPLITS}}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> DataRecord:
        """Raises:
        CheckpointError: the digests are not int64 vectors.
        """
        made = cls(**{**stored, **{split: SplitRecord(**stored[split]) for split in SPLITS}})
        for digests in (made.before, *(getattr(made, split).digests for split in SPLITS)):
            if digests.dtype != torch.long or digests.ndim != 1:
                raise CheckpointError("its data.digests must be vectors of whole numbers")
        return made

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """What a person reads: of each split its images, those of each class, and one hash of all names."""
        return {"name": self.name} | {
            split: {
                "images": (part := getattr(self, split)).count,
                "classes": dict(zip(classes, part.per_class, strict=True)),
                "digest": hashlib.blake2b(part.digests.numpy().tobytes(), digest_size=16).hexdigest(),
            }
            for split in SPLITS
        }

    def after(self, earlier: DataRecord) -> DataRecord:
        """The same for a run that went on with this data and was trained on other data before."""
        trained = torch.cat([earlier.before, earlier.train.digests]).unique()
        return replace(self, before=_without(trained, self.train.digests))


def record(name: str, classes: int, splits: Sequence[Examples], exact: bool) -> DataRecord:
    """The record of a data set with these three splits.

    Args:
        exact: whether the pixels of images in memory are the same on every machine, and count.
    """
    made: list[SplitRecord] = []
    for examples in splits:
        if examples.names:
            digests = torch.tensor([_signed(digest(name)) for name in examples.names]).sort().values
        else:
            digests = torch.tensor([_signed(_content(examples, exact))] if len(examples) else [], dtype=torch.long)
        made.append(SplitRecord(len(examples), examples.labels.bincount(minlength=classes).tolist(), digests))
    train, validation, test = made
    return DataRecord(name, train, validation, test)


def _content(examples: Examples, exact: bool) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    images = examples.images
    assert isinstance(images, Tensor)
    hashed.update(f"{tuple(images.shape)} {images.dtype}".encode())
    hashed.update(examples.labels.numpy().tobytes())
    if exact:
        hashed.update(images.contiguous().view(torch.uint8).numpy().data)
    return int.from_bytes(hashed.digest())


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def changes(then: DataRecord, now: DataRecord, names: Sequence[Examples], splits: Sequence[str] = SPLITS) -> str:
    """How the data of today differs from that of a run; empty if it does not.

    Args:
        names: the three splits of today, which know the names of their images.
        splits: those that are compared.
    """
    return "; ".join(
        line for split, examples in zip(SPLITS, names, strict=True) if split in splits
        for line in _changes(then, now, split, examples)
    )  # fmt: skip


def _changes(then: DataRecord, now: DataRecord, split: str, examples: Examples) -> Iterator[str]:
    before, after = getattr(then, split), getattr(now, split)
    counted = f"{split} has {after.count:,} images" + (f", not {before.count:,}" if after.count != before.count else "")
    if torch.equal(before.digests, after.digests):
        if before.count != after.count:
            yield counted
        return
    if not examples.names:
        yield f"{counted}, and other ones" if after.count == before.count else counted
        return
    new, gone = _without(after.digests, before.digests), _without(before.digests, after.digests)
    parts = []
    if len(new):
        kinds = set(new.tolist())
        named = [name for name in examples.names if _signed(digest(name)) in kinds]
        shown = ", ".join(named[:SHOWN]) + (", ..." if len(named) > SHOWN else "")
        parts.append(f"{len(named):,} new ({shown})")
    if len(gone):
        parts.append(f"{len(gone):,} gone")
    if split != "train":
        trained = _without(torch.cat([then.train.digests, then.before]), before.digests)
        if leaked := int(torch.isin(after.digests, trained).sum()):
            parts.append(f"{leaked:,} of them trained on")
    yield f"{counted}: {', '.join(parts)}"


def _without(some: Tensor, others: Tensor) -> Tensor:
    return some[~torch.isin(some, others)]
