"""How far a run goes: its epochs, and the batch size and the number of steps of each. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optnet.data import Loader


class Course:
    """The batch size of epoch e (from 0) is batch_size * growth^#{m in milestones : e >= m epochs}.

    A growing batch takes the place of a falling learning rate (Smith, Kindermans, Ying, Le 2018).

    Args:
        loader: the training batches, with the first epochs' batch size.
        epochs: how many at most.
        milestones: parts of the epochs, rising, after which the batch is ``growth`` times as large.
        limit: steps of an epoch at most.
        max_steps: steps of the run at most; the epoch that they end in is the last one.

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
        self.steps: list[int] = []
        left: float = max_steps or math.inf
        while left and len(self.steps) < epochs:
            steps = min(len(self.loader(len(self.steps))), limit or math.inf, left)
            self.steps.append(int(steps))
            left -= steps

    @property
    def epochs(self) -> int:
        return len(self.steps)

    @property
    def total(self) -> int:
        """The steps of the whole run."""
        return sum(self.steps)

    def loader(self, epoch: int) -> Loader:
        """The batches of an epoch (from 0)."""
        grown = sum(epoch >= milestone * self._epochs for milestone in self._milestones)
        return self._loader.resized(self._loader.batch_size * self._growth**grown)
