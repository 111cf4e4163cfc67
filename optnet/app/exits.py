"""How a command ends: one line for a wrong request or a stopped run, and the exit status. Nothing else exits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from optnet.errors import RequestError, printable
from optnet.training.distributed import launched_first
from optnet.training.interruption import Interrupted, Stopped


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Ends this process where what happens in here fails: 2 for a wrong request, 128 + n after signal n, 1 for a run
    that stopped. Several processes report a wrong request once.
    """
    try:
        yield
    except RequestError as error:
        if launched_first():
            print(one_line(error), file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        sys.exit(128 + error.signal)
    except Stopped as error:
        if not error.said:
            print(error, file=sys.stderr, flush=True)
        sys.exit(error.status)


def one_line(error: RequestError) -> str:
    return printable(f"error: {' '.join(str(error).split())}")
