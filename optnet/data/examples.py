"""The form that every data set is read into: images, labels and their statistics. Knows no data set by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset


@dataclass(frozen=True)
class Examples:
    """One split. Images are a tensor (n, channels, height, width), uint8 or float32 in 0..1, or a data set of files."""

    images: Tensor | Dataset[Any]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Sequence[int]) -> Examples:
        images = self.images[list(index)] if isinstance(self.images, Tensor) else Subset(self.images, list(index))
        return Examples(images, self.labels[list(index)])

    def split(self, fraction: float, seed: int) -> tuple[Examples, Examples]:
        """Two parts, drawn with ``seed``: ``fraction`` of the images (at least one), and the rest."""
        order = self._shuffled(seed)
        count = max(1, round(len(self) * fraction))
        return self.select(order[:count]), self.select(order[count:])

    def limited(self, count: int | None) -> Examples:
        """At most ``count`` images, drawn at random but the same in every run."""
        return self if count is None else self.select(self._shuffled(seed=0)[:count])

    def _shuffled(self, seed: int) -> list[int]:
        order: list[int] = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return order


@dataclass(frozen=True)
class Source:
    """A data set as it is stored: ``validation`` is None if it comes without a validation split.

    ``mean`` and ``std`` are those of the training images in 0..1, one number per channel.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    test: Examples
    validation: Examples | None = None
