"""How a run ends early: what it raises, and the signals that ask it to stop. Saves nothing itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A signal ended the run. Like KeyboardInterrupt it is no ``Exception``: nothing on the way up swallows it.

    Attributes:
        said: whether a line about it was shown already.
    """

    def __init__(self, number: int, said: bool = False) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.signal, self.said = number, said


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


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a program to end."""
AGAIN = 2.0
"""Seconds after a signal in which another one is the same request: a group of processes gets a signal, and torchrun,
which got it too, passes it on."""


def heeded() -> list[signal.Signals]:
    """The signals that end a run: not a hangup where ``nohup`` started the program."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP.

    Raises:
        Interrupted: at a signal ``AGAIN`` seconds or more after the first one, at once.
    """
    caught: list[int] = []
    since = 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal since
        if not caught:
            caught.append(number)
            since = time.monotonic()
        elif time.monotonic() - since >= AGAIN:
            raise Interrupted(number)

    with _handler(note):
        yield caught


@contextmanager
def raised() -> Iterator[None]:
    """A signal in here raises ``Interrupted``; another one does after ``AGAIN`` seconds."""
    since: list[float] = []

    def note(number: int, frame: Any) -> None:
        if not since or time.monotonic() - since[0] >= AGAIN:
            since[:] = [time.monotonic()]
            raise Interrupted(number)

    with _handler(note):
        yield


@contextmanager
def _handler(note: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other thread may set one
        yield
        return
    old = {number: signal.signal(number, note) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
