"""Processes that this command starts itself, as torchrun would. Knows no run: only a function to call in each."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from optnet.training.interruption import Interrupted, Stopped

T = TypeVar("T")


def launch(function: Callable[..., T], arguments: tuple[Any, ...], processes: int) -> T:
    """Calls ``function(*arguments)`` in several processes; returns the result of the first.

    A signal to this process is passed on: the others agree on a step and save.

    Raises:
        Stopped: one of the processes failed; it has said why, or this process has.
        Interrupted: a signal came.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=str(uuid.uuid4()), max_restarts=0, start_method="spawn",
    )  # fmt: skip
    try:
        results: dict[int, T] = elastic_launch(settings, function)(*arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in (2, 129, 130, 143):  # it has said why itself
            print(f"process {first.local_rank} of {processes} ended with {first.exitcode}", file=sys.stderr)
        if first.exitcode in (129, 130, 143):
            raise Interrupted(first.exitcode - 128, said=True) from None
        status = first.exitcode if first.exitcode > 0 else 1
        raise Stopped(f"process {first.local_rank} of {processes} ended", said=True, status=status) from None
    except SignalException as error:
        raise Interrupted(int(error.sigval)) from None
    return results[0]
