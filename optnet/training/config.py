"""The configuration's keys with their types, ranges and choices. Reads no files and builds nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from optnet.data import AUGMENTATIONS, DATA_SETS, SPLITS
from optnet.design import COEFFICIENT_INITS, TRANSITIONS
from optnet.errors import ConfigError
from optnet.layers import FAMILIES
from optnet.tracing import READINGS
from optnet.unroll import COEFFICIENTS


def number(default: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None) -> Any:
    """A number in [low, high], or (above, high]."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def choice(default: str | None, *options: str) -> Any:
    return field(default=default, metadata={"options": options})


@dataclass
class Model:
    """``model=NAME``: one of ours or any of timm's. What is null is the model's own."""

    name: str = "hbnet_small"
    layer: str | None = choice(None, *FAMILIES)
    blocks: list[int] | None = None
    widths: list[int] | None = None
    stem_width: int | None = number(None, 1)
    reading: str | None = choice(None, *READINGS)
    transition: str | None = choice(None, *TRANSITIONS)
    coefficients: str | None = choice(None, *COEFFICIENTS)
    coefficient_init: str | None = choice(None, *COEFFICIENT_INITS)
    per_channel: bool | None = None
    act_layer: str | None = None
    drop_rate: float | None = number(None, 0, 1)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """``data=NAME``. ``validation`` is the part of the training split that the best checkpoint is chosen on.

    ``size`` is of a class folder's and of synthetic pictures, ``classes`` and ``images`` are of synthetic ones alone.
    """

    name: str = choice("digits", *DATA_SETS)
    root: str = "data"
    verify: bool = True
    download: bool = False
    validation: float = number(0.1, high=0.5, above=0)
    augment: str = choice("none", *AUGMENTATIONS)
    size: int = number(64, 4, 4096)
    classes: int = number(10, 2, 100_000)
    images: int = number(1000, 10)
    workers: int = number(0, 0, 256)


@dataclass
class Optim:
    """``optim=NAME``: timm's optimizers by name. Coefficients and all other 1-d parameters are not decayed."""

    name: str = "sgd"
    momentum: float = number(0.9, 0, 1)
    weight_decay: float = number(5e-4, 0, 1)


@dataclass
class Schedule:
    """``schedule=NAME``: timm's schedulers, stepped once a batch. ``warmup``, ``milestones``: parts of the run."""

    name: str = choice("cosine", "cosine", "constant", "multistep", "poly")
    warmup: float = number(0.05, 0, 0.9)
    min_lr: float = number(0, 0)
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    factor: float = number(0.1, high=1, above=0)


@dataclass
class Backprop:
    """``trainer=backprop``."""

    name: str = "backprop"


@dataclass
class Train:
    """The keys of ``train.py``."""

    epochs: int = number(30, 1)
    batch_size: int = number(64, 1)
    lr: float = number(0.1, above=0)
    seed: int = number(0, 0, 2**31 - 1)
    device: str = "auto"
    name: str | None = None
    resume: str | None = None
    runs: str = "runs"
    progress: bool = True
    model: Model = field(default_factory=Model)
    algorithm: dict[str, Any] = field(default_factory=dict)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    trainer: Any = field(default_factory=Backprop)  # one of the options in training/trainers.py


@dataclass
class Evaluate:
    """The keys of ``evaluate.py``."""

    checkpoint: str | None = None
    model: str | None = None
    pretrained: bool = False
    split: str = choice("test", *SPLITS)
    batch_size: int = number(256, 1)
    seed: int = number(0, 0, 2**31 - 1)
    device: str = "auto"
    output: str | None = None
    data: Data | None = None


def _check_milestones(milestones: list[float]) -> None:
    if sorted(milestones) != milestones or not all(0 < part < 1 for part in milestones):
        raise ConfigError(f"schedule.milestones={milestones} must be rising parts of the run, like [0.5, 0.75]")


def check(config: Any, prefix: str = "") -> None:
    """Compares every value with its key's range and choices.

    Raises:
        ConfigError: with the key, the bad value and valid ones.
    """
    if isinstance(config, Schedule):
        _check_milestones(config.milestones)
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
                example = low if key.default is None else key.default
                raise ConfigError(f"{name}={value} is out of range; it must be {lower}{upper}, like {example}")
