"""Every error that means "the request was wrong", and the one line that is made of anybody else's error."""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request was wrong; the message is one line that says what to write instead."""


class AlgorithmError(RequestError):
    """An algorithm's text, its constants or its number of steps cannot be read."""


class TraceError(AlgorithmError, TypeError):
    """An iterate was used for something a linear recurrence cannot do."""


class ProgramError(RequestError):
    """A program (also one read from JSON) is not a straight-line program."""


class OperatorError(RequestError):
    """An operator is missing, unknown, given twice, or not a layer."""


class ShapeError(RequestError, RuntimeError):
    """Two terms of one sum do not have the same shape."""


class ModelError(RequestError):
    """An unknown model, or an option that the model cannot have."""


class ConfigError(RequestError):
    """A configuration key or value is unknown, of the wrong type or out of range."""


class DataError(RequestError):
    """A data set is unknown, missing or empty."""


class CheckpointError(RequestError):
    """A checkpoint is missing, truncated, or not one of ours."""


def reason(error: BaseException, most: int = 300) -> str:
    """An error of somebody else's code in one sentence: the first line of its message, or its name if it has none.

    Torch, timm, Hydra, Pillow and everybody's models raise what they like: several lines, or nothing at all
    (``assert x``). Control characters, which a stranger's file may hold, are shown as escapes.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):  # its message is the key alone
        line = f"there is no {line}"
    line = printable(line)
    return line if len(line) <= most else f"{line[:most]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known ones, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def printable(text: str) -> str:
    """A text for a terminal: control characters, which a stranger's file may hold, are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def drawable(text: str, most: int = 60) -> str:
    """A text for matplotlib, which takes what stands between two dollar signs for a formula; at most so long."""
    shown = printable(text)
    return (shown if len(shown) <= most else f"{shown[: most - 3]}...").replace("$", r"\$")
