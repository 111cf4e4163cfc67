"""Every error that means "the request was wrong", and the one line that is made of anybody else's error."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


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


@contextmanager
def foreign(what: str, kind: type[RequestError]) -> Iterator[None]:
    """The boundary around a constructor or a loader of somebody else: whatever it raises is one line.

    Raises:
        RequestError: of this ``kind``, "what: the reason"; ours pass as they are.
    """
    try:
        yield
    except RequestError:
        raise
    except (Exception, SystemExit) as error:  # anybody's code may raise anything
        raise kind(f"{what}: {reason(error)}") from None


def reason(error: BaseException, most: int = 300) -> str:
    """An error of somebody else's code in one sentence: the first line of its message, or its name if it has none.

    Torch, timm, Hydra, Pillow and everybody's models raise what they like: several lines, or nothing at all
    (``assert x``). Control characters, which a stranger's file may hold, are shown as escapes.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):  # its message is the key alone
        line = f"there is no {line}"
    if isinstance(error, SystemExit):  # its message is the status alone
        line = f"it ends the program with {line}"
    if isinstance(error, TypeError) and (found := _UNEXPECTED.search(line)):
        owner, word = found.groups()
        line = f"there is no option '{word}'{did_you_mean(word, _parameters(error, owner))}"
    line = printable(line)
    return line if len(line) <= most else f"{line[:most]}..."


_UNEXPECTED = re.compile(r"([\w.<>]+)\(\) got an unexpected keyword argument '([^']*)'")
"""What Python says of an argument that a function does not take."""


def _parameters(error: BaseException, name: str) -> list[str]:
    """The parameters of the function ``name`` that an error says it was called with a wrong one of.

    The place where the call was made knows the function: as a variable, or as an attribute of one.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return []
    seen = [*trace.tb_frame.f_locals.values(), *trace.tb_frame.f_globals.values()]
    for value in seen:
        if getattr(value, "__qualname__", None) in (name, name.removesuffix(".__init__")):
            try:
                return list(inspect.signature(value).parameters)
            except (TypeError, ValueError):
                return []
    return []


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known ones, or nothing. Capitals do not count.

    Args:
        known: names, or what is compared -> what is shown.
    """
    shown = known if isinstance(known, Mapping) else {name: name for name in known}
    names = {name.lower(): text for name, text in shown.items()}
    near = difflib.get_close_matches(word.lower(), names, n=3)
    return f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""


def unknown(what: str, word: Any, known: Iterable[str], most: int = 40) -> str:
    """A message about an unknown name: the nearest known ones first, then all, if they are not more than ``most``."""
    names = list(known)
    named = ", ".join(names) if len(names) <= most else ""
    if near := did_you_mean(str(word), names):
        return f"{what}={word} is unknown{near}" + (f" It is one of {named}" if named else "")
    return f"{what}={word} is unknown" + (f"; it is one of {named}" if named else "")


def printable(text: str) -> str:
    """A text for a terminal: control characters, which a stranger's file may hold, are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def drawable(text: str, most: int = 60) -> str:
    """A text for matplotlib, which takes what stands between two dollar signs for a formula; at most so long."""
    shown = printable(text)
    return (shown if len(shown) <= most else f"{shown[: most - 3]}...").replace("$", r"\$")
