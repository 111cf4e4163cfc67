"""A picture that a command draws: whether its file can be written, and writing it. Draws nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from optnet.errors import ConfigError, reason


def check(option: str, file: Path) -> None:
    """Refuses a file that is no .png or cannot be written, before anything is computed. Leaves nothing behind.

    Raises:
        ConfigError: it names the ``option`` that the file was given by.
    """
    if file.suffix != ".png":
        raise ConfigError(f"{option} {file} must end in .png")
    try:
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
        if file.exists():
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=file.absolute().parent).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise ConfigError(f"{option} {file} cannot be written: {why}") from None


def save(option: str, file: Path, figure: Any) -> None:
    """Writes a figure of matplotlib.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        figure.savefig(file)
    except OSError as error:
        raise ConfigError(f"{option} {file} cannot be written: {reason(error)}") from None
