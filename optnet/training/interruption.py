"""How a run ends early: what it raises, and the signals that ask it to stop. Saves nothing itself."""

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


class Stopped(Exception):
    """The run could not go on; its records are closed.

    Attributes:
        why: the reason alone; the line also says how to continue.
        said: whether the line was shown already.
        status: the exit status of a process that ends here.
    """

    def __init__(self, line: str, said: bool, why: str = "", status: int = 1) -> None:
        super().__init__(line)
        self.why, self.said, self.status = why or line, said, status


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
