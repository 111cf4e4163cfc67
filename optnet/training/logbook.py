"""A run's records: console.log, metrics.jsonl, TensorBoard events, summary.json. Decides nothing."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from optnet.networks.unrolled import coefficients

EVENTS = "events.out.tfevents*"


def new_folder(place: Path, label: str = "") -> Path:
    """Makes ``place/<date>_<time>_<label>``, with a number behind it if that exists."""
    stamp = "_".join(filter(None, (datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), label)))
    for attempt in range(1, 1000):
        folder = place / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{place} has a thousand runs of this second")


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside ``path`` and renames it: the old file is lost only when the new one is complete."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def as_json(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=indent, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    write_whole(path, as_json(content, indent=2))


class Silence:
    """The logbook of a process that does not write."""

    def say(self, line: str) -> None: ...

    def epoch(self, epoch: int, scalars: dict[str, float], model: nn.Module) -> None: ...

    def close(self) -> None: ...


class Logbook:
    """One run's records in its folder.

    Args:
        show: what shows a line on the screen.
        marks: the sizes of the records (``marks()``) at the checkpoint that the run resumes from. What was written
            after it is cut off, so that every epoch has one line and every step one point in TensorBoard.

    Attributes:
        events: TensorBoard's writer. Its points are at epochs or at steps, as each tag likes.
    """

    def __init__(self, folder: Path, show: Callable[[str], None], marks: Mapping[str, int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a while

        self.folder, self.show = folder, show
        self.metrics_file = folder / "metrics.jsonl"
        if marks is not None:
            for file in (self.metrics_file, *folder.glob(EVENTS)):
                if file.name not in marks:
                    file.unlink(missing_ok=True)
                elif file.stat().st_size > marks[file.name]:
                    os.truncate(file, marks[file.name])
        self.console = open(folder / "console.log", "a")  # noqa: SIM115
        self.events = SummaryWriter(str(folder))

    def say(self, line: str) -> None:
        """Shows a line, and writes it to console.log."""
        self.show(line)
        self.console.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self.console.flush()

    def epoch(self, epoch: int, scalars: dict[str, float], model: nn.Module) -> None:
        """At step ``epoch``: a point of TensorBoard for each scalar and coefficient, and a line of metrics.jsonl.

        The tag ``train/loss`` is called ``train_loss`` in metrics.jsonl.
        """
        line = {"epoch": epoch, **{tag.replace("/", "_"): value for tag, value in scalars.items()}}
        with open(self.metrics_file, "a") as file:
            file.write(as_json(line))
        for tag, value in scalars.items():
            self.events.add_scalar(tag, value, epoch)
        for entry in coefficients(model):
            self.events.add_scalar(f"coefficients/{entry.stage}/{entry.step}/{entry.term}", entry.value, epoch)

    def marks(self) -> dict[str, int]:
        """The sizes of metrics.jsonl and the event files now, in bytes."""
        self.events.flush()
        files = [file for file in (self.metrics_file, *self.folder.glob(EVENTS)) if file.exists()]
        return {file.name: file.stat().st_size for file in files}

    def close(self) -> None:
        """Closes the files. What no longer fits on a full disk is lost."""
        for file in (self.events, self.console):
            with suppress(OSError):
                file.close()
