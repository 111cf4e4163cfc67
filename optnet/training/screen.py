"""The progress of a run: on a terminal a line that moves, elsewhere a plain line now and then. Trains nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from optnet.training.loop import Progress

EVERY = 30.0
"""Seconds between two plain lines."""


class Screen:
    """Shows how far a run is.

    Args:
        say: shows a plain line.
        bar: rich's line; None where the output is no terminal.
        total: steps of the run.
        epochs: of the run.
        processes: that train together; ``Progress`` counts the images of one.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        bar: Bar | None,
        task: TaskID,
        total: int,
        epochs: int,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.say, self.bar, self.task, self.clock = say, bar, task, clock
        self.total, self.epochs, self.processes = total, epochs, processes
        self.start: tuple[float, int, int] | None = None
        self.said = clock()

    def advance(self, progress: Progress) -> None:
        """After every step."""
        if self.start is None:
            self.start = (self.clock(), progress.updates, progress.images)
        if self.bar is not None:
            self.bar.update(self.task, completed=progress.updates)

    def show(self, progress: Progress, steps: int) -> None:
        """Shows an epoch of ``steps`` steps; its sums are settled."""
        if self.bar is not None:
            self.bar.update(self.task, description=self.text(progress, steps))
        elif self.clock() - self.said >= EVERY:
            self.said = self.clock()
            self.say(f"{self.text(progress, steps)}  {self.left(progress)} left")

    def text(self, progress: Progress, steps: int) -> str:
        loss, top1 = progress.loss_sum / progress.count, 100 * progress.correct / progress.count
        return (
            f"epoch {progress.epoch + 1}/{self.epochs}  step {progress.batch}/{steps}  "
            f"{self._rate(progress)[1]:,.0f} images/s  loss {loss:.4f}  top-1 {top1:.1f} %"
        )

    def left(self, progress: Progress) -> str:
        """The time to the end of the run at the rate so far."""
        rate, _ = self._rate(progress)
        return str(timedelta(seconds=round((self.total - progress.updates) / rate))) if rate else "?"

    def _rate(self, progress: Progress) -> tuple[float, float]:
        """Steps and images a second since the first step here, the images of all processes."""
        since, updates, images = self.start or (0.0, progress.updates, progress.images)
        seconds = max(self.clock() - since, 1e-9)
        return (progress.updates - updates) / seconds, self.processes * (progress.images - images) / seconds


class Blank(Screen):
    """Shows nothing."""

    def __init__(self) -> None:
        super().__init__(lambda line: None, None, TaskID(0), 0, 0)

    def show(self, progress: Progress, steps: int) -> None: ...


@contextmanager
def screen(
    wanted: bool, say: Callable[[str], None], total: int, done: int, epochs: int, processes: int = 1
) -> Iterator[Screen]:
    """The screen of a run of ``total`` steps, ``done`` of which are done; a blank one if none is ``wanted``."""
    if not wanted:
        yield Blank()
        return
    if not sys.stdout.isatty():
        yield Screen(say, None, TaskID(0), total, epochs, processes)
        return
    columns = (BarColumn(20), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    with Bar(*columns, transient=True, console=Console(markup=False)) as bar:
        yield Screen(say, bar, bar.add_task("", total=total, completed=done), total, epochs, processes)
