"""How a command ends: one line for a wrong request or a stopped run, and the exit status. Nothing else exits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from optnet.app.program import reports
from optnet.errors import RequestError, printable
from optnet.training.distributed import launched_first
from optnet.training.interruption import Interrupted, Stopped, raised


@contextmanager
def command() -> Iterator[None]:
    """A whole program: from its first line to its last a signal is one line and 128 + its number."""
    with exit_statuses(), raised():
        yield


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
        if not error.said and reports():
            print(error, file=sys.stderr, flush=True)
        sys.exit(128 + error.signal)
    except Stopped as error:
        if not error.said:
            print(error, file=sys.stderr, flush=True)
        sys.exit(error.status)


MOST = 1000
"""Letters of a line, at most: a name may have thousands."""


def one_line(error: RequestError) -> str:
    line = printable(f"error: {' '.join(str(error).split())}")
    return line if len(line) <= MOST else f"{line[: MOST // 2]} ... {line[-MOST // 2 :]}"
