"""The processes that read images: how they start, that they did start, and how they end. Knows no image."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import DataLoader

from optnet.errors import DataError

FORK = "fork" if sys.platform == "linux" else None
"""How processes that read images are started, also in a process that was itself spawned, where they would be, too: then
each of them would import torch anew, in every epoch. None: as the system does."""
PATIENCE, ATTEMPTS = 60.0, 3
"""Seconds until a process must have started, and how often that is tried."""
_AT_WORK: weakref.WeakSet[Any] = weakref.WeakSet()
"""The loaders of torch whose processes may still read images."""


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of torch's loader, with all its processes at work.

    A forked process can wait for ever for a lock that another thread of its parent held (Python 3.11 takes the lock of
    all threads' states before it makes it new). One that does not say in time that it runs is killed, and all are
    started again.

    Raises:
        DataError: they do not start.
    """
    if not loader.num_workers:
        return iter(loader)
    for _ in range(ATTEMPTS):
        reader, writer = os.pipe()
        try:
            if FORK:
                loader.worker_init_fn = _Here(writer)
            with _deaf():
                loaded: Any = iter(loader)
            _AT_WORK.add(loaded)
            if _all_here(reader, loader.num_workers):
                return loaded
            _end(loaded)
        finally:
            os.close(reader)
            os.close(writer)
    raise DataError(
        f"the processes that read images did not start within {PATIENCE:.0f} s; try data.workers=0, or fewer than "
        f"data.workers={loader.num_workers}"
    )


class _Here:
    """What a process does first: it says that it runs."""

    def __init__(self, writer: int) -> None:
        self.writer = writer

    def __call__(self, number: int) -> None:
        os.write(self.writer, b".")


def _all_here(reader: int, count: int) -> bool:
    """Whether so many processes say in time that they run."""
    if FORK is None:
        return True
    until, here = time.monotonic() + PATIENCE, 0
    while here < count and select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        here += len(os.read(reader, count))
    return here == count


def _end(loaded: Any) -> None:
    """Ends the processes of a loader, also those that hear nothing."""
    for process in loaded._workers:
        with suppress(RuntimeError):  # torch's own handler wonders who ended it
            process.kill()
            process.join()
    with suppress(RuntimeError):
        loaded._shutdown_workers()


@contextmanager
def _deaf() -> Iterator[None]:
    """The processes that are started in here never get SIGINT or SIGTERM; this one gets them at the end.

    Who asks a group of processes to stop wants the run to save first. For that it needs them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def _send_home() -> None:
    """When Python exits it asks its processes to end by SIGTERM, which these never get, and waits for them."""
    for loaded in list(_AT_WORK):
        loaded.__del__()  # as when nobody refers to it any more: it tells its processes
