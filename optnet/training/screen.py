"""The progress bar of a run on a terminal. Where the output is no terminal, nothing is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Screen:
    """A bar over the steps of a run; without one, nothing is shown."""

    def __init__(self, bar: Bar | None, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def advance(self, updates: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=updates)

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=text)


@contextmanager
def screen(wanted: bool, total: int, done: int) -> Iterator[Screen]:
    if not (wanted and sys.stdout.isatty()):
        yield Screen(None, TaskID(0))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, transient=True) as bar:
        yield Screen(bar, bar.add_task("", total=total, completed=done))
