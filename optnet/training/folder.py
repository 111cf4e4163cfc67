"""A run's folder: its name and lock, and its files, which are written whole and never through a link. Knows no run."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optnet.errors import ConfigError, printable, reason


def new_folder(place: Path, label: str = "") -> Path:
    """Makes ``place/<date>_<time>_<label>``, with a number behind it if that exists."""
    stamp = "_".join(filter(None, (datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), label)))
    for attempt in range(1, 1000):
        folder = place / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not place.is_dir():
                raise
    raise FileExistsError(f"{place} has a thousand runs of this second")


def shortened(name: str, most: int) -> str:
    """The first letters of a name, in at most so many bytes: a file system counts bytes."""
    return name.encode(errors="replace")[:most].decode(errors="ignore")


def check_place(key: str, given: str, folder: Path) -> None:
    """Checks that files can be made in a folder, or that it can be made. Leaves nothing.

    Raises:
        ConfigError: they cannot; it names the ``key`` and the value that was ``given`` for it.
    """
    where = folder = folder.absolute()
    try:
        while not where.exists():
            where = where.parent
        with TemporaryDirectory(prefix=".optnet-", dir=where) as made:
            Path(made, *folder.parts[len(where.parts) :]).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise ConfigError(f"{key}={printable(given)}: nothing can be made in {where} ({why}); give another") from None


class Lock:
    """The right to write in a run's folder, which one process has at a time. It ends with the process.

    It is a POSIX lock on the file ``lock``, which names the process. The processes that read images do not inherit it.

    Raises:
        ConfigError: another process has it. OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "lock"
        while True:
            if os.path.lexists(self.file) and not is_own(self.file):
                self.file.unlink()
            self.number = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(self.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    holder = printable(os.read(self.number, 200).decode(errors="replace").strip())
                    os.close(self.number)
                    raise ConfigError(
                        f"{folder} is in use by {holder or 'another process'}; wait until it ends, or end it"
                    ) from None
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
                    raise
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.number), os.lstat(self.file)):
                    break
            os.close(self.number)  # its holder removed the file before we had it
        os.ftruncate(self.number, 0)
        os.write(self.number, f"process {os.getpid()} on {platform.node()}\n".encode())

    def release(self) -> None:
        with suppress(OSError):
            self.file.unlink()
        with suppress(OSError):
            os.close(self.number)


def is_own(file: Path) -> bool:
    """Whether this is a regular file and its only name: no link, pipe or device, through which others are changed."""
    try:
        found = os.lstat(file)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside ``path``, for which it is exchanged when it is complete.

    No reader sees half a file, the old one is lost only when the new one is complete, and no link is followed.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside ``path`` and renames it; see ``replacing``."""
    with replacing(path) as partial, open(partial, "x", encoding="utf-8") as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, as_json(content, indent=2))


def as_json(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=indent, allow_nan=False) + "\n"


def settle(folder: Path) -> None:
    """Flushes a folder's file names to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
