"""Whether this process runs one of our programs, and what a signal does while it starts. Imports nothing slow.

``import optnet`` takes seconds. ``optnet/__init__.py`` imports this first: a signal in the meantime is one line, too.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from optnet.training.interruption import heeded

ROOT = Path(__file__).parent.parent.parent


def module() -> str:
    """The name of the module of ours that this process runs, with ``python -m`` or as a file; else nothing."""
    first, whole = (getattr(sys, "argv", None) or [""])[0], list(sys.orig_argv)
    if first == "-m" and "-m" in whole:
        name = (whole[whole.index("-m") + 1 :] or [""])[0]
        return name if name.partition(".")[0] == "optnet" else ""
    file = Path(first).absolute()
    if file.suffix == ".py" and file.is_relative_to(ROOT / "optnet"):
        return ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return ""


def is_ours() -> bool:
    """Whether it is train.py, evaluate.py, the command optnet or ``python -m optnet``, and not somebody's program."""
    script = Path((getattr(sys, "argv", None) or [""])[0])
    at_the_root = script.absolute().parent == ROOT and (ROOT / "conf").is_dir()
    return bool(module()) or script.name == "optnet" or (script.name in ("train.py", "evaluate.py") and at_the_root)


def reports() -> bool:
    """Whether this process speaks for the program: the one that was called, and the first of those of torchrun."""
    return multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"


def end(number: int, frame: Any = None) -> None:
    """Ends the process at once: a line on stderr and 128 + the signal's number, as a shell says it."""
    if reports():
        os.write(2, f"interrupted by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def begin() -> None:
    """From here on a signal is ``end``, until all is done and Python takes itself apart: then none is heeded."""
    for number in heeded():
        signal.signal(number, end)
        atexit.register(signal.signal, number, signal.SIG_IGN)


if is_ours():
    begin()
if module() not in ("", "optnet", "optnet.__main__"):
    os.write(2, f"error: {module()} is no program; python -m optnet --help lists all commands\n".encode())
    os._exit(2)
