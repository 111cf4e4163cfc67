"""Signals that ask a run to stop: noted, so that it can save first. Saves nothing itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one of them acts at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise SystemExit(128 + number)
        caught.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
