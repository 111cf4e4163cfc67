"""TensorBoard's event files on the disk: how far one is whole, and the points in it. Writes no point."""

from __future__ import annotations

import os
import struct
from pathlib import Path

PATTERN = "events.out.tfevents*"
Point = tuple[str, int]
"""A tag and a step."""


def cut(file: Path, size: int) -> bool:
    """Cuts off what is behind the first ``size`` bytes, and what follows a damaged record. False: it was damaged."""
    whole = _whole(file.read_bytes()[:size])
    if file.stat().st_size > whole:
        os.truncate(file, whole)
    return whole == size


def _whole(content: bytes) -> int:
    """The bytes of the records before the first one that is torn or changed.

    A record is the length of its data (8 bytes), a checksum (4) of the length, the data, and a checksum (4) of it.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    start = 0
    while start + 16 <= len(content):
        length, sum_of_length = struct.unpack_from("<QI", content, start)
        end = start + 16 + length
        if end > len(content) or masked_crc32c(content[start : start + 8]) != sum_of_length:
            break
        if masked_crc32c(content[start + 12 : end - 4]) != struct.unpack_from("<I", content, end - 4)[0]:
            break
        start = end
    return start


def points(folder: Path) -> set[Point]:
    """Of which scalars a folder's event files, which are whole, have a point."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: set[Point] = set()
    for file in folder.glob(PATTERN):
        for event in LegacyEventFileLoader(str(file)).Load():
            found.update((value.tag, event.step) for value in event.summary.value)
    return found
