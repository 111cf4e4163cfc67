"""Keys of a configuration with their ranges and choices, and their check. Knows no key by name."""

from __future__ import annotations

import math
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any

from optnet.errors import ConfigError


def number(
    default: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None, example: Any = None
) -> Any:
    """A number in [low, high], or (above, high]; ``example`` is a valid one where there is no default."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "example": example})


def choice(default: str | None, *options: str) -> Any:
    return field(default=default, metadata={"options": options})


def example(config: Any, key: str) -> Any:
    """A valid value of a dotted key of ``config``: its example, its value now, its first choice or its lowest value."""
    *path, name = key.partition("[")[0].split(".")
    for part in path:
        config = getattr(config, part)
    limits = type(config).__dataclass_fields__[name].metadata
    default = type(config).__dataclass_fields__[name].default
    known = (
        limits.get("example"),
        None if default is MISSING else default,
        *limits.get("options", ()),
        limits.get("low"),
    )
    return next((value for value in known if value is not None), "null" if default is None else getattr(config, name))


def check(config: Any, prefix: str = "") -> None:
    """Compares every value with its key's range and choices, and asks a class that has a ``check`` of its own.

    Raises:
        ConfigError: with the key, the bad value and valid ones.
    """
    if hasattr(config, "check"):
        config.check()
    for key in fields(config):
        value, name, limits = getattr(config, key.name), f"{prefix}{key.name}", key.metadata
        if is_dataclass(value):
            check(value, f"{name}.")
        elif value is not None and "options" in limits and value not in limits["options"]:
            raise ConfigError(f"{name}={value} is unknown; it is one of {', '.join(limits['options'])}")
        elif value is not None and "low" in limits:
            low, high, above = limits["low"], limits["high"], limits["above"]
            if not math.isfinite(value) or not low <= value <= high or (above is not None and value <= above):
                lower = f"greater than {above:g}" if above is not None else f"at least {low:g}"
                upper = f" and at most {high:g}" if high < math.inf else ""
                like = example(config, key.name)
                raise ConfigError(f"{name}={value} is out of range; it must be {lower}{upper}, like {like}")
