"""What a run writes down: console.log, metrics.jsonl, TensorBoard events, summary.json. Decides nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter

from optnet.unroll import coefficients


def new_folder(runs: str, name: str) -> Path:
    """Makes ``runs/name/<date>_<time>``, with a number behind it if that exists."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        folder = Path(runs) / name / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{runs}/{name} has a thousand runs of this second")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON beside its place and moves it there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


class Logbook:
    """One run's records in its folder.

    Going on with a run first cuts away what was written after epoch ``epoch`` (0: a new run), so that every epoch has
    one line and every step one TensorBoard point.
    """

    def __init__(self, folder: Path, epoch: int = 0) -> None:
        self.folder = folder
        self.metrics_file = folder / "metrics.jsonl"
        if epoch and self.metrics_file.exists():
            lines = self.metrics_file.read_text().splitlines()
            kept = [line for line in lines if _epoch(line) is not None and _epoch(line) <= epoch]  # type: ignore[operator]
            self.metrics_file.write_text("".join(f"{line}\n" for line in kept))
        self.console = open(folder / "console.log", "a")  # noqa: SIM115
        self.events = SummaryWriter(str(folder), purge_step=epoch + 1)

    def say(self, line: str) -> None:
        """A line on the screen and in console.log."""
        print(line, flush=True)
        print(f"{time.strftime('%H:%M:%S')} {line}", file=self.console, flush=True)

    def epoch(self, epoch: int, scalars: dict[str, float], model: nn.Module) -> None:
        """At step ``epoch``: a point of TensorBoard for each scalar and coefficient, and a line of metrics.jsonl.

        The tag ``train/loss`` is called ``train_loss`` in metrics.jsonl.
        """
        line = {"epoch": epoch, **{tag.replace("/", "_"): value for tag, value in scalars.items()}}
        with open(self.metrics_file, "a") as file:
            file.write(json.dumps(line) + "\n")
        for tag, value in scalars.items():
            self.events.add_scalar(tag, value, epoch)
        for entry in coefficients(model):
            self.events.add_scalar(f"coefficients/{entry.stage}/{entry.step}/{entry.term}", entry.value, epoch)
        self.events.flush()

    def close(self) -> None:
        self.events.close()
        self.console.close()


def _epoch(line: str) -> int | None:
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return None  # a line cut off by a crash


def is_terminal() -> bool:
    return sys.stdout.isatty()
