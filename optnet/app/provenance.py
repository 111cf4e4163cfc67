"""Where a run comes from: its command, the state of the code around it, what its settings came to. Writes nothing."""

from __future__ import annotations

import copy
import inspect
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import optnet
from optnet.data import DataSet
from optnet.errors import AlgorithmError
from optnet.language.lookup import find_algorithm
from optnet.networks.trunk import Trunk
from optnet.training.environment import versions

SECONDS = 10
"""Within which git has to answer."""


def record(
    settings: Mapping[str, Any], overrides: Sequence[str], model: nn.Module, data: DataSet, device: torch.device,
    processes: int,
) -> dict[str, Any]:  # fmt: skip
    """What record.jsonl says of one start of a run; ``settings`` as they were given, and as they came to be."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"), "command": shlex.join(sys.argv),
        "overrides": list(overrides), "folder": os.getcwd(), "git": git(Path.cwd()),
        "effective": effective(settings, model, data, device, processes), "python": sys.executable,
        "machine": platform.platform(), "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip


def git(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder is at, and whether nothing in it was changed since; None outside a repository."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments], cwd=folder, capture_output=True, text=True, check=True,
            errors="replace", timeout=SECONDS,
        )  # fmt: skip
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "clean": not ask("status", "--porcelain")}
    except (OSError, subprocess.SubprocessError):
        return None


def effective(
    settings: Mapping[str, Any], model: nn.Module, data: DataSet, device: torch.device, processes: int
) -> dict[str, Any]:
    """The settings with what the code chose where they were null or automatic."""
    chosen: dict[str, Any] = copy.deepcopy(dict(settings))
    chosen["device"] = str(device)
    chosen["distributed"]["processes"] = processes
    if chosen["optim"]["coefficient_lr"] is None:
        chosen["optim"]["coefficient_lr"] = chosen["lr"]
    chosen["data"]["root"] = str(Path(chosen["data"]["root"]).absolute())
    chosen["data"]["classes"], chosen["data"]["shape"] = len(data.classes), list(data.shape)
    chosen["data"] |= {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    if isinstance(model, Trunk):
        program = model.programs[0].start
        own = {key: getattr(model.options, key) for key in chosen["model"] if hasattr(model.options, key)}
        chosen["model"] |= own | {"layer": model.layer, "reading": program.readings[program.main]}
        for key, size in model.sizes().items():
            (chosen["model"] if key in chosen["model"] else chosen["model"]["kwargs"])[key] = size
        chosen["algorithm"] |= {"name": chosen["algorithm"].get("name") or program.name, **program.constants}
    return chosen


def sources(algorithm: str | None) -> dict[str, str]:
    """The file that a user's own algorithm stands in: its name -> its text. Ours are not copied."""
    if not algorithm:
        return {}
    try:
        file = Path(inspect.getsourcefile(find_algorithm(algorithm).function) or "")
        if file.resolve().is_relative_to(Path(optnet.__file__).resolve().parent):
            return {}
        return {file.name: file.read_text(encoding="utf-8", errors="replace")}
    except (AlgorithmError, TypeError, OSError):
        return {}
