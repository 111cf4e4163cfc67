"""Signals that ask a run to stop: caught, so that it can save first. Saves nothing itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A signal ended the run. Like KeyboardInterrupt it is no ``Exception``: nothing on the way up swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM.

    Raises:
        Interrupted: at a second signal, at once.
    """
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise Interrupted(number)
        caught.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
