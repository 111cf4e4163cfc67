"""The form that every data set is read into: images, labels and their statistics. Knows no data set by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset


def digest(name: str, key: str = "") -> int:
    """A hash of an image's name in 0 .. 2^64 - 1, the same on every machine. Each ``key`` has its own."""
    hashed = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=key.encode())
    return int.from_bytes(hashed.digest())


@dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
        images: a tensor (n, channels, height, width), uint8 or float32 in 0..1, or a data set of files.
        names: of images in files: ``class/name`` of each, which no other image of the split has.
    """

    images: Tensor | Dataset[Any]
    labels: Tensor
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Sequence[int]) -> Examples:
        images = self.images[list(index)] if isinstance(self.images, Tensor) else Subset(self.images, list(index))
        return Examples(images, self.labels[list(index)], [self.names[i] for i in index] if self.names else ())

    def split(self, fraction: float, key: str, seed: int) -> tuple[Examples, Examples]:
        """Two parts: about ``fraction`` of the images, and the rest.

        Of images in files a hash of its name, with ``key`` and ``seed``, decides where an image is: images that are
        added or removed move no other, and a part of few images may be empty. Images in memory are drawn with ``seed``;
        the first part has at least one.
        """
        if self.names:
            limit, key = round(fraction * 2**64), f"{key} {seed}"
            chosen = [digest(name, key) < limit for name in self.names]
            first, second = ([i for i, c in enumerate(chosen) if c == part] for part in (True, False))
            return self.select(first), self.select(second)
        order = self._shuffled(seed)
        count = max(1, round(len(self) * fraction))
        return self.select(order[:count]), self.select(order[count:])

    def limited(self, count: int | None) -> Examples:
        """At most ``count`` images, the same in every run. Of images in files those whose names have the smallest
        hashes: an image that is added displaces one at most. Those in memory are drawn at random."""
        if count is None:
            return self
        if self.names:
            first = sorted(range(len(self)), key=lambda i: digest(self.names[i], "limit"))[:count]
            return self.select(sorted(first))
        return self.select(self._shuffled(seed=0)[:count])

    def _shuffled(self, seed: int) -> list[int]:
        order: list[int] = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return order


@dataclass(frozen=True)
class Source:
    """A data set as it is stored: ``validation`` is None if it comes without a validation split.

    ``mean`` and ``std`` are those of the training images in 0..1, one number per channel. ``exact``: the pixels are the
    same on every machine.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    test: Examples
    validation: Examples | None = None
    exact: bool = True
