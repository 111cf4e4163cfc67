"""The length of a run: its epochs, and the batch size and number of steps of each. Trains nothing."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from optnet.data import Loader
from optnet.errors import ConfigError


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
        self._limit = limit or math.inf
        if max_steps is not None:
            self._epochs = 1 + bisect_left(range(1, epochs), float(max_steps), key=lambda span: sum(self._steps(span)))
        self.steps: list[int] = []
        left: float = max_steps or math.inf
        for steps in self._steps(self._epochs):
            if left:
                self.steps.append(int(min(steps, left)))
                left -= self.steps[-1]

    def _steps(self, epochs: int) -> list[float]:
        """The steps of each epoch of a run of so many."""
        return [min(len(self._resized(epoch, epochs)), self._limit) for epoch in range(epochs)]

    def _resized(self, epoch: int, epochs: int) -> Loader:
        # 100 * 0.55 is more than 55 in floating point
        grown = sum(epoch >= milestone * epochs - 1e-9 for milestone in self._milestones)
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
