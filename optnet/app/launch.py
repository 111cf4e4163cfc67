"""A run in as many processes as it asks for: those that torchrun started, or its own. Trains nothing itself."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from optnet.app import run
from optnet.app.config import Train
from optnet.app.preparation import stored
from optnet.errors import RequestError
from optnet.training.distributed import launched, launched_first, processes


@dataclass
class Request:
    """A request that was checked: the parts of a run in this process, or how many others to start."""

    config: Train
    overrides: Sequence[str]
    parts: run.Parts | None
    processes: int = 1


def prepare(config: Train, overrides: Sequence[str] = ()) -> Request:
    """Checks a request; see ``preparation.prepare``. Those who only start others build nothing on an accelerator."""
    wanted = config if config.resume is None else stored(config, overrides)
    if launched() or wanted.distributed.processes == 1:
        return Request(config, overrides, run.prepare(config, overrides))
    run.prepare(config, overrides, trial=True)
    return Request(config, overrides, None, wanted.distributed.processes)


def train(request: Request) -> float:
    """Trains here, or in processes of its own with the same configuration. Returns the test accuracy in per cent.

    A signal that ends this process is handed on first: the others save, and agree on the step.
    """
    if request.parts is not None:
        return run.train(request.parts)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=request.processes, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", run_id=str(uuid.uuid4()), max_restarts=0, start_method="spawn",
    )  # fmt: skip
    try:
        results: dict[int, float] = elastic_launch(settings, _process)(request.config, list(request.overrides))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in (2, 130, 143):  # it has said why itself
            print(f"process {first.local_rank} of {request.processes} ended with {first.exitcode}", file=sys.stderr)
        sys.exit(first.exitcode if first.exitcode > 0 else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    return results[0]


def _process(config: Train, overrides: Sequence[str]) -> float:
    try:
        with processes():
            return run.train(run.prepare(config, overrides))
    except RequestError as error:
        if launched_first():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
