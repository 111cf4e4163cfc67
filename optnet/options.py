"""Options: each is declared once, as a field of a dataclass with its default, its range and a sentence about it.

Signature checks, the command line, ``--help`` and messages all read the declaration. Knows no option by name.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from optnet.errors import ConfigError, RequestError, unknown


def number(
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float | None = None,
    example: Any = None,
    help: str = "",
) -> Any:
    """A number in [low, high], or in (above, high]; ``example`` is a valid one where the default is None."""
    limits = {"low": low, "high": high, "above": above, "example": example, "help": help}
    return field(default=default, metadata=limits)


def choice(default: str | None, *options: str, synonyms: Mapping[str, str] | None = None, help: str = "") -> Any:
    """One of several words; ``synonyms``: other words for some of them, which ``words`` replaces."""
    return field(default=default, metadata={"options": options, "synonyms": synonyms or {}, "help": help})


def option(default: Any = MISSING, *, factory: Any = MISSING, example: Any = None, help: str = "") -> Any:
    """Any other value: a truth value, a text, a list, a table."""
    return field(default=default, default_factory=factory, metadata={"example": example, "help": help})


def path(default: Any = MISSING, *, factory: Any = MISSING, example: Any = None, help: str = "") -> Any:
    """The name of a file or folder, or several; see ``expand_paths``."""
    return field(default=default, default_factory=factory, metadata={"example": example, "help": help, "path": True})


def tables(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of the options that are tables with free keys."""
    for key in fields(config):
        value = getattr(config, key.name)
        if is_dataclass(value):
            yield from tables(value, f"{prefix}{key.name}.")
        elif isinstance(value, dict):
            yield f"{prefix}{key.name}"


def expand_paths(config: Any) -> None:
    """Writes a person's home folder in the place of ``~`` in every path."""
    for key in fields(config):
        value = getattr(config, key.name)
        if is_dataclass(value):
            expand_paths(value)
        elif key.metadata.get("path") and value:
            expanded = (
                [os.path.expanduser(v) if isinstance(v, str) else v for v in value]
                if isinstance(value, list)
                else (os.path.expanduser(value) if isinstance(value, str) else value)
            )
            setattr(config, key.name, expanded)


def words(config: Any) -> dict[str, str]:
    """The choices that were made with a synonym, and their words."""
    given = {key.name: (getattr(config, key.name), key.metadata.get("synonyms", {})) for key in fields(config)}
    return {name: known[word] for name, (word, known) in given.items() if isinstance(word, str) and word in known}


def settle_words(config: Any) -> None:
    """Writes the word of every choice in the place of a synonym."""
    for key in fields(config):
        if is_dataclass(value := getattr(config, key.name)):
            settle_words(value)
    for name, word in words(config).items():
        setattr(config, name, word)


def one_of(name: str, value: Any, options: Collection[str], error: type[RequestError] = ConfigError) -> None:
    """Raises ``error`` unless the value is one of the words."""
    if value not in options:
        raise error(unknown(name, value, options))


@dataclass(frozen=True)
class Described:
    """An option as people read it: its dotted name, default, range and sentence."""

    name: str
    default: str
    range: str
    help: str


def describe(config: Any, prefix: str = "") -> Iterator[Described]:
    """Every option of a configuration, those of the dataclasses inside it too."""
    for key in fields(config):
        value, name, limits = getattr(config, key.name), f"{prefix}{key.name}", key.metadata
        if is_dataclass(value):
            yield from describe(value, f"{name}.")
        else:
            yield Described(name, _written(value), _range(key), limits.get("help", ""))


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(entry)}" for key, entry in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(key: Field[Any]) -> str:
    limits = key.metadata
    if "options" in limits:
        also = {word: f"{word} (or {synonym})" for synonym, word in limits["synonyms"].items()}
        return ", ".join(also.get(word, word) for word in limits["options"])
    if "low" in limits:
        return _interval(limits)
    return "true, false" if _kind(key) == "bool" else ""


def _interval(limits: Any) -> str:
    low, high, above = limits["low"], limits["high"], limits["above"]
    lower = f"greater than {_written(above)}" if above is not None else f"at least {_written(low)}"
    lower = lower if above is not None or low > -math.inf else ""
    upper = f"at most {_written(high)}" if high < math.inf else ""
    return " and ".join(filter(None, (lower, upper)))


def _kind(key: Field[Any]) -> str:
    """The declared type, without ``| None``."""
    kind = key.type if isinstance(key.type, str) else getattr(key.type, "__name__", "")
    return kind.removesuffix(" | None")


def example(config: Any, key: str) -> Any:
    """A valid value of a dotted key of ``config``: its example, its default, its first choice or its lowest value."""
    *path, name = key.partition("[")[0].split(".")
    for part in path:
        config = getattr(config, part)
    declared = type(config).__dataclass_fields__[name]
    limits, default = declared.metadata, declared.default
    known = (
        limits.get("example"),
        None if default is MISSING else default,
        *limits.get("options", ()),
        limits.get("low"),
    )
    return next((value for value in known if value is not None), "null" if default is None else getattr(config, name))


def check(config: Any, prefix: str = "", error: type[RequestError] = ConfigError) -> None:
    """Compares every value with its option's type, range and choices, and asks a class that has a ``check`` of its own.

    Raises:
        ConfigError: (or ``error``) with the option, the bad value and valid ones.
    """
    if hasattr(config, "check"):
        config.check()
    for key in fields(config):
        value, name, limits = getattr(config, key.name), f"{prefix}{key.name}", key.metadata
        if is_dataclass(value):
            check(value, f"{name}.", error)
            continue
        _check_text(name, value, error)
        if key.metadata.get("path"):
            _check_path(name, value, error)
        if value == "":
            given = example(config, key.name)
            raise error(f"{name}= is empty; give a value" + (f" like {given}" if given != "null" else ", or null"))
        if value is None:
            if key.default is not None and key.default is not MISSING:
                raise error(f"{name} is null; give a value like {example(config, key.name)}")
        elif "options" in limits:
            one_of(name, value, (*limits["options"], *limits["synonyms"]), error)
        elif _kind(key) == "bool" and type(value) is not bool:
            raise error(f"{name}={value!r} must be true or false")
        elif "low" in limits:
            low, high, above = limits["low"], limits["high"], limits["above"]
            number_like = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number_like or (_kind(key) == "int" and type(value) is not int):
                kind = "a whole number" if _kind(key) == "int" else "a number"
                raise error(f"{name}={value!r} must be {kind}, like {example(config, key.name)}")
            if not math.isfinite(value) or not low <= value <= high or (above is not None and value <= above):
                must = _interval(limits) or "finite"
                raise error(f"{name}={value} is out of range; it must be {must}, like {example(config, key.name)}")


def _check_text(name: str, value: Any, error: type[RequestError]) -> None:
    """Checks that every text in a value can be written to a file, and be a file's name."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_text(name, key, error)
            _check_text(f"{name}.{key}", entry, error)
    elif isinstance(value, list):
        for entry in value:
            _check_text(name, entry, error)
    elif isinstance(value, str) and ("\0" in value or (not value.isascii() and _surrogates(value))):
        raise error(f"{name}={value!r} has a character that no name can have; leave it out")


def _check_path(name: str, value: Any, error: type[RequestError]) -> None:
    """Checks that a path, or each of several, is not too long for the file system."""
    for path in value if isinstance(value, list) else [value]:
        try:
            os.lstat(path if isinstance(path, str) else ".")
        except OSError as failure:
            if failure.errno == errno.ENAMETOOLONG:
                raise error(f"{name}={path} is too long for a path; give a shorter one") from None


def _surrogates(text: str) -> bool:
    """Whether some of it is no Unicode: bytes of the command line that were not UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)
