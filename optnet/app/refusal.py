"""What Hydra and OmegaConf refuse, in one line of ours with the nearest right name in front. Composes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import timm
from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from optnet.errors import AlgorithmError, ConfigError, did_you_mean, printable, unknown
from optnet.language.lookup import find_algorithm
from optnet.options import describe, example
from optnet.training.trainers import TRAINERS

ALL_MODELS = "; optnet list and timm.list_models() have all names"


def refused(error: Exception, defaults: Any, overrides: Sequence[str] = (), groups: Iterable[str] = ()) -> ConfigError:
    """The error to raise for one of Hydra's.

    Args:
        defaults: the configuration as it is without overrides.
        overrides: of this request: they choose the trainer and the algorithm, whose keys are suggested.
        groups: the names of the groups, which are keys too.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(str(error.missing_cfg_file), list(error.options or []))
    if isinstance(cause, ValidationError) and cause.full_key:
        return wrong_type(cause, defaults)
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        key = str(getattr(cause, "full_key", "") or getattr(cause, "key", ""))
        if key and not key.startswith("hydra."):
            keys = _keys(defaults, overrides)
            known = dict.fromkeys([*keys, *(name.partition(".")[0] for name in keys), *groups])
            return ConfigError(f"there is no key {printable(key)}{_nearest(key, known) or '; see --help'}")
    if str(error).startswith("Config group override must be"):
        odd = [text for text in overrides if "." not in text.partition("=")[0] and text.partition("=")[0] in groups]
        return ConfigError(f"{' or '.join(odd)}: the option of a group must be a name; see --help")
    return ConfigError(one_line(error))


def _unknown_option(file: str, options: list[str]) -> ConfigError:
    group, _, option = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
    if "/" not in file:
        return ConfigError(f"there is no configuration '{group}'; leave out --config-name")
    if not option:
        return ConfigError(f"{group}= is empty; give a value, like {options[0] if options else 'an option'}")
    if group == "model":
        near = did_you_mean(option, [*options, *timm.list_models()])
        return ConfigError(f"model={option} is unknown{near or ALL_MODELS}")
    if group == "algorithm":
        said = unknown(group, option.replace("|", "/"), options, most=100)
        return ConfigError(f"{said}; your own is given as my_file.py:my_method")
    return ConfigError(unknown(group, option, options) if options else f"there is no group {group}; see --help")


def _keys(defaults: Any, overrides: Sequence[str]) -> list[str]:
    """The keys that there are with these overrides."""
    keys = [option.name for option in describe(defaults)]
    chosen = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    trainer = chosen.get("trainer", "")
    if trainer in TRAINERS:
        keys = [key for key in keys if not key.startswith("trainer.")]
        keys += [f"trainer.{option.name}" for option in describe(TRAINERS[trainer].options())]
    if chosen.get("algorithm"):
        try:
            constants = find_algorithm(chosen["algorithm"].replace("|", "/")).constants
        except AlgorithmError:
            return keys
        keys += [f"algorithm.{name}" for name in constants]
    return keys


def _nearest(key: str, known: Iterable[str]) -> str:
    """The nearest keys. Of a key in a table: the table's; else those with its name elsewhere; else all the table's."""
    table, _, last = key.rpartition(".")
    parts = {name: name.rpartition(".") for name in known if name != key}
    inside = {part[2]: name for name, part in parts.items() if table and part[0] == table}
    ends = [name for name, part in parts.items() if part[2] == last]
    near = did_you_mean(last, inside) if inside else did_you_mean(key, list(parts))
    if not near and ends:
        return f"; did you mean {' or '.join(ends[:3])}?"
    return near or (f"; {table} has {', '.join(inside)}" if inside else "")


def wrong_type(error: ValidationError, defaults: Any) -> ConfigError:
    """Names the key, the value that is of the wrong type, and one of the right type."""
    key, value = str(error.full_key), getattr(error, "value", "")
    return ConfigError(f"{key}={value} is of the wrong type; give one like {example(defaults, key)}")


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages, the key in front, without their trailing hints for Python callers."""
    text = str(error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error)
    key = getattr(error.__cause__ or error, "full_key", None)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "Set the env"))
    ]
    line = " ".join(lines).partition(" Config search path:")[0].replace("is not in struct", "does not exist here")
    return f"{key}: {line}" if key and key not in line else line
