"""The length of a run: its epochs, and the batch size and number of steps of each. Trains nothing."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

from optnet.data import Loader
from optnet.errors import ConfigError

ROUNDING = 1e-9
"""100 * 0.55 is more than 55 in floating point."""


def check_rising(key: str, milestones: Sequence[float]) -> None:
    """Raises:
    ConfigError: the milestones are not parts of a run in rising order.
    """
    if sorted(milestones) != milestones or not all(0 < part < 1 for part in milestones):
        raise ConfigError(f"{key}={milestones} must rise between 0 and 1, like [0.5, 0.75]")


class Course:
    """The batch size of epoch e (from 0) is batch_size * growth^#{m in milestones : e >= m epochs}.

    A growing batch takes the place of a falling learning rate (Smith, Kindermans, Ying, Le 2018).

    Args:
        loader: the training batches, with the first epochs' batch size.
        epochs: how many at most.
        milestones: parts of the run's epochs, rising, after which the batch is ``growth`` times as large.
        limit: steps of an epoch at most.
        max_steps: steps of the run at most; the epoch that they end in is the last one, the milestones are parts of
            the shorter run.

    Attributes:
        steps: of each epoch.
    """

    def __init__(
        self,
        loader: Loader,
        epochs: int,
        *,
        milestones: Sequence[float] = (),
        growth: int = 1,
        limit: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self._loader, self._epochs, self._milestones, self._growth = loader, epochs, milestones, growth
        self._limit = limit or sys.maxsize
        if max_steps is not None:
            self._epochs = 1 + bisect_left(range(1, epochs), max_steps, key=self._total)
        self.steps: list[int] = []
        left = max_steps or sys.maxsize
        for count, steps in self._phases(self._epochs):
            whole = min(count, left // steps)
            rest = left - whole * steps if whole < count else 0
            self.steps += [steps] * whole + [rest] * (rest > 0)
            left -= whole * steps + rest

    def _phases(self, epochs: int) -> Iterator[tuple[int, int]]:
        """For each batch size of a run of so many epochs: how many epochs it has, and the steps of one of them."""
        starts = [math.ceil(milestone * epochs - ROUNDING) for milestone in self._milestones]
        for first, end in pairwise((0, *starts, epochs)):
            if end > first:
                yield end - first, min(len(self._resized(first, epochs)), self._limit)

    def _total(self, epochs: int) -> int:
        """The steps of a run of so many epochs."""
        return sum(count * steps for count, steps in self._phases(epochs))

    def _resized(self, epoch: int, epochs: int) -> Loader:
        grown = sum(epoch >= milestone * epochs - ROUNDING for milestone in self._milestones)
        return self._loader.resized(self._loader.batch_size * self._growth**grown)

    @property
    def epochs(self) -> int:
        return len(self.steps)

    @property
    def total(self) -> int:
        """The steps of the whole run."""
        return sum(self.steps)

    def loader(self, epoch: int) -> Loader:
        """The batches of an epoch (from 0)."""
        return self._resized(epoch, self._epochs)
