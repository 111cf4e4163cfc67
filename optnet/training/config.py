"""The configuration's keys with their types, ranges and choices. Reads no files and builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optnet.data import AUGMENTATIONS, DATA_SETS, SPLITS
from optnet.design import COEFFICIENT_INITS, TRANSITIONS
from optnet.errors import ConfigError
from optnet.layers import FAMILIES
from optnet.options import choice, number
from optnet.recomputing import MEMORY
from optnet.tracing import READINGS
from optnet.unroll import COEFFICIENTS


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
    hidden: list[int] | None = None
    memory: str | None = choice(None, *MEMORY)
    act_layer: str | None = None
    drop_rate: float | None = number(None, 0, 1)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """``data=NAME``. ``validation`` is the part of the training split that the best checkpoint is chosen on.

    ``size`` is of a class folder's and of synthetic pictures, ``crop`` the part of a file's short side that is
    evaluated, ``classes`` and ``images`` are of synthetic ones alone; ``limit`` is how many of each split at most.
    """

    name: str = choice("digits", *DATA_SETS)
    root: str = "data"
    verify: bool = True
    download: bool = False
    validation: float = number(0.1, high=0.5, above=0)
    augment: str = choice("none", *AUGMENTATIONS)
    size: int = number(64, 4, 4096)
    crop: float = number(1.0, high=1, above=0)
    classes: int = number(10, 2, 100_000)
    images: int = number(1000, 10)
    limit: int | None = number(None, 2)
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

    def check(self) -> None:
        if sorted(self.milestones) != self.milestones or not all(0 < part < 1 for part in self.milestones):
            raise ConfigError(f"schedule.milestones={self.milestones} must rise between 0 and 1, like [0.5, 0.75]")


MOMENTS = ("none", "epoch", "end")


@dataclass
class Monitor:
    """``monitor=NAME``: what TensorBoard shows beyond the scalars of an epoch. Steps between two looks; 0 is never."""

    every: int = number(100, 0)
    conditioning: int = number(2000, 0)
    lanczos: int = number(5, 1, 100)
    images: int = number(16, 2, 1024)
    histograms: str = choice("none", *MOMENTS)
    figures: str = choice("end", *MOMENTS)
    graph: bool = True


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
    monitor: Monitor = field(default_factory=Monitor)
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
