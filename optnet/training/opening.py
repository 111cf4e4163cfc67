"""A run's folder is made or opened: its lock, its identity, its records. If that fails nothing in it has changed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optnet.errors import CheckpointError, ConfigError, RequestError, reason
from optnet.training import checkpoint
from optnet.training.checkpoint import Checkpoint
from optnet.training.folder import Lock, as_json, is_own, new_folder, write_whole
from optnet.training.logbook import Logbook, Record


@dataclass
class Opened:
    """A run's folder that this process has for itself.

    Attributes:
        run: the identity of the run, which no other run's configuration and checkpoints have.
    """

    folder: Path
    run: str
    lock: Lock
    logbook: Logbook

    def close(self) -> None:
        self.logbook.close()
        self.lock.release()


def make(place: Path, label: str, say: Callable[[str], None]) -> Opened:
    """The folder of a new run, in ``place``; the end of its name is ``label``.

    Raises:
        ConfigError: it cannot be written; it is not there then.
    """
    folder: Path | None = None
    try:
        folder = new_folder(place, label)
        return Opened(folder, uuid.uuid4().hex, Lock(folder), Logbook(folder, say))
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                place.rmdir()  # if it is empty
        raise ConfigError(f"{folder or place} cannot be written ({reason(error)}); make room, or give runs=") from None


def go_on(folder: Path, saved: Checkpoint, say: Callable[[str], None]) -> Opened:
    """The folder of a run that goes on from a checkpoint. What was recorded after it is cut off.

    Raises:
        ConfigError: it cannot be written, or another process uses it. CheckpointError: one went on with the run since
            the checkpoint was read.
    """
    lock = None
    try:
        lock = Lock(folder)
        if (folder / "checkpoints").is_symlink():
            raise ConfigError(f"{folder}/checkpoints is a link; a run has its checkpoints in its own folder")
        now, _ = checkpoint.last(folder)
        if (now.run, now.progress) != (saved.run, saved.progress):
            raise CheckpointError(f"another process went on with {folder} in the meantime; give resume= again")
        return Opened(folder, saved.run, lock, Logbook(folder, say, Record.read(saved.records), saved.events))
    except (OSError, RequestError) as error:
        if lock is not None:
            lock.release()
        if isinstance(error, RequestError):
            raise
        raise ConfigError(f"{folder} cannot be written ({reason(error)}); make room, or copy it elsewhere") from None


def record(folder: Path, origin: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Adds a line for this start to record.jsonl, and keeps the sources of its algorithm beside its checkpoints."""
    file = folder / "record.jsonl"
    if not is_own(file):
        file.unlink(missing_ok=True)
    with open(file, "a", encoding="utf-8") as opened:
        opened.write(("" if _whole(file) else "\n") + as_json(origin))
    for name, text in sources.items():
        write_whole(folder / "checkpoints" / name, text)


def _whole(file: Path) -> bool:
    """Whether the last line of a file is complete."""
    text = file.read_bytes()
    return not text or text.endswith(b"\n")
