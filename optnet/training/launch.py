"""A run in as many processes as it asks for: those that torchrun started, or its own. Trains nothing itself."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from optnet.errors import RequestError
from optnet.training import run
from optnet.training.config import Train
from optnet.training.distributed import launched, launched_first, processes


@dataclass
class Request:
    """A request that was checked: the parts of a run in this process, or what to start others with."""

    config: Train
    overrides: Sequence[str]
    parts: run.Parts | None


def prepare(config: Train, overrides: Sequence[str] = ()) -> Request:
    """Checks a request; see ``run.prepare``. Those who only start others build nothing on an accelerator."""
    if launched() or config.distributed.processes == 1:
        return Request(config, overrides, run.prepare(config, overrides))
    run.prepare(replace(config, device="cpu"), overrides)
    return Request(config, overrides, None)


def train(request: Request) -> float:
    """Trains here, or in processes of its own with the same configuration. Returns the test accuracy in per cent."""
    if request.parts is not None:
        return run.train(request.parts)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=request.config.distributed.processes, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", run_id=str(uuid.uuid4()), max_restarts=0, start_method="spawn",
    )  # fmt: skip
    try:
        results: dict[int, float] = elastic_launch(settings, _process)(request.config, list(request.overrides))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        print(f"process {first.local_rank} of {settings.nproc_per_node} ended with {first.exitcode}", file=sys.stderr)
        sys.exit(first.exitcode if first.exitcode > 0 else 1)
    return results[0]


def _process(config: Train, overrides: Sequence[str]) -> float:
    try:
        with processes():
            return run.train(run.prepare(config, overrides))
    except RequestError as error:
        if launched_first():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
