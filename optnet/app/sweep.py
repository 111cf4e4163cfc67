"""The jobs of a sweep, and what became of each: a line of jobs.jsonl and a row of a table. Knows no training."""

from __future__ import annotations

import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from optnet.app.exits import one_line
from optnet.app.terminal import console, table
from optnet.errors import RequestError, reason
from optnet.training.folder import shortened
from optnet.training.interruption import Interrupted, Stopped
from optnet.training.logbook import as_json

Job = Callable[[Any, str], "Result"]
"""Runs a request; the second argument is the label of a sweep's job, else empty."""
DONE, FAILED, REFUSED, INTERRUPTED = "done", "failed", "refused", "interrupted"
_STARTED: list[Path] = []
"""The folder of the sweep that this process began."""


@dataclass(frozen=True)
class Result:
    """What a job found: the value that a sweep optimises, and what its table shows, by name."""

    value: float
    found: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: done, failed, refused or interrupted.
        reason: why, if it is not done.
        found: of a job that is done; see ``Result``.
    """

    number: int
    overrides: list[str]
    status: str
    reason: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    def record(self, folder: Path) -> None:
        """Adds a line to jobs.jsonl in the sweep's folder; jobs that run at the same time may do so too."""
        with open(folder / "jobs.jsonl", "a") as file:
            file.write(as_json(asdict(self)))


class Begin(Callback):
    """Hydra calls this in the process that the sweep was started in; conf/ names it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(str(config.hydra.sweep.dir))
        _STARTED[:] = [folder]
        launcher = str(config.hydra.launcher.get("_target_", ""))
        if "submitit" in launcher:  # its jobs write to files of their own
            print(f"the jobs of this sweep write to {folder / '.submitit'}; waiting for them", flush=True)


def attempt(find: Callable[[], Any], job: Job) -> float:
    """Runs one job of a sweep; whatever becomes of it, the sweep goes on. Only a signal to this process ends the sweep.

    Returns:
        The value that the sweep optimises; not a number if the job was not done.

    Raises:
        Interrupted: a signal came.
    """
    hydra = HydraConfig.get()
    number, overrides = int(hydra.job.num), [str(override) for override in hydra.overrides.task]
    folder = Path(str(hydra.sweep.dir))

    def end(status: str, reason: str = "", found: Mapping[str, Any] | None = None) -> None:
        Outcome(number, overrides, status, reason, dict(found or {})).record(folder)

    try:
        request = find()
        name = label(number, hydra.job.override_dirname, getattr(request.config, "seed", None))
        print(f"job {number}: {' '.join(overrides)}", flush=True)
        result = job(request, name)
    except RequestError as error:
        print(one_line(error), file=sys.stderr, flush=True)
        end(REFUSED, str(error))
    except Stopped as error:
        if not error.said:
            print(error, file=sys.stderr, flush=True)
        end(FAILED, error.why)
    except Interrupted as error:
        end(INTERRUPTED, str(error))
        raise
    except Exception as error:  # a fault of a model, a driver or this program; the next job may be spared it
        traceback.print_exc()
        end(FAILED, f"{type(error).__name__}: {reason(error)}")
    else:
        end(DONE, found=result.found)
        return result.value
    return math.nan


def label(number: int, swept: str, seed: Any) -> str:
    """The end of the name of a job's run folder: its number, its swept overrides and its seed."""
    parts = [str(number), *filter(None, [swept])]
    if seed is not None and not re.search(r"\bseed-\d+", swept):
        parts.append(f"seed-{seed}")
    return shortened(re.sub(r"[^\w.+-]+", "_", "_".join(parts)), 120).rstrip("_")


def outcomes(folder: Path) -> list[Outcome]:
    """What became of the jobs of a sweep, by their numbers."""
    file = folder / "jobs.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return sorted((Outcome(**json.loads(line)) for line in lines), key=lambda job: job.number)


def end() -> int:
    """Shows what became of each job of the sweep that this process began. Returns 1 if one of them is not done."""
    if not _STARTED:
        return 0
    folder = _STARTED.pop()
    jobs = outcomes(folder)
    columns = list(dict.fromkeys(name for job in jobs for name in job.found))
    rows = [
        [str(job.number), " ".join(job.overrides), job.status, job.reason, *_shown(job.found, columns)] for job in jobs
    ]
    if rows:
        heads = ["job", "overrides", "status", "reason", *columns]
        console().print(table(f"{len(rows)} jobs; {folder / 'jobs.jsonl'}", heads, rows, text=4))
    return int(any(job.status != DONE for job in jobs))


def _shown(found: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    values = [found.get(column, "") for column in columns]
    return [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
