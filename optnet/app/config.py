"""The configuration's keys with their types, ranges and choices. Reads no files and builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optnet.data import AUGMENTATIONS, DATA_SETS, SPLITS
from optnet.errors import ConfigError
from optnet.language.tracing import READINGS
from optnet.networks.activation_checkpointing import MEMORY
from optnet.networks.design import COEFFICIENT_INITS, TRANSITIONS
from optnet.networks.initialisation import OUTPUT_BIASES, SCHEMES
from optnet.networks.layers import FAMILIES, NORMS, PLACES
from optnet.networks.unrolled import COEFFICIENTS
from optnet.options import choice, number
from optnet.training.averaging import AVERAGES
from optnet.training.backprop import CLIPS, PRECISIONS
from optnet.training.distributed import BATCH_NORMS

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")


def _check_rising(key: str, milestones: list[float]) -> None:
    if sorted(milestones) != milestones or not all(0 < part < 1 for part in milestones):
        raise ConfigError(f"{key}={milestones} must rise between 0 and 1, like [0.5, 0.75]")


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
    norm: str | None = choice(None, *NORMS)
    norm_place: str | None = choice(None, *PLACES)
    act_layer: str | None = None
    drop_rate: float | None = number(None, 0, 1)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """``data=NAME``. ``validation`` is the part of the training split that the best checkpoint is chosen on.

    ``size`` is of a class folder's and of synthetic images, ``crop`` the part of a file's short side that is
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
    unreadable: str = choice("fail", "fail", "skip")


@dataclass
class Init:
    """``init=NAME``: how the weights start. What starts from data gets the first batch. See
    ``optnet.networks.initialisation``.

    ``gain`` is that of he and orthogonal, null: the activation's. ``bias`` is of all hidden layers and norms.
    """

    name: str = choice("default", *SCHEMES)
    gain: float | None = number(None, above=0, example=1.0)
    bias: float | None = number(None, example=0.1)
    output_bias: str | None = choice(None, *OUTPUT_BIASES)


@dataclass
class Optim:
    """``optim=NAME``: timm's optimizers by name. Coefficients and all other 1-d parameters are not decayed.

    ``coefficient_lr`` is the coefficients' own learning rate, scheduled like the others'; null: ``lr``. ``kwargs`` are
    the optimizer's own, like betas.
    """

    name: str = "sgd"
    momentum: float = number(0.9, 0, 1)
    weight_decay: float = number(5e-4, 0, 1)
    coefficient_lr: float | None = number(None, above=0, example=0.01)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Schedule:
    """``schedule=NAME``: timm's schedulers, stepped once a step. All lengths are parts of the run.

    ``milestones`` are multistep's; ``decay`` is the interval of step, and the last phase of wsd and rsqrt; ``factor``
    is that of step and multistep; ``power`` is poly's; ``cycles`` are those of cosine, tanh and poly,
    each from the full learning rate.
    """

    name: str = choice("cosine", *SCHEDULES)
    warmup: float = number(0.05, 0, 0.9)
    min_lr: float = number(0, 0)
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    decay: float = number(0.2, high=1, above=0)
    factor: float = number(0.1, high=1, above=0)
    power: float = number(1.0, above=0)
    cycles: int = number(1, 1)

    def check(self) -> None:
        _check_rising("schedule.milestones", self.milestones)


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
    """``trainer=backprop``; conf/trainer/backprop.yaml says what each key does."""

    name: str = "backprop"
    precision: str = choice("float32", *PRECISIONS)
    channels_last: bool = False
    compile: bool = False
    accumulate: int = number(1, 1)
    clip: float | None = number(None, above=0, example=1.0)
    clip_mode: str = choice("norm", *CLIPS)
    label_smoothing: float = number(0.0, 0, 0.99)
    mixup: float = number(0.0, 0)
    cutmix: float = number(0.0, 0)
    mix_probability: float = number(1.0, 0, 1)
    average: str = choice("none", *AVERAGES)
    average_decay: float = number(0.999, 0, 1)
    average_start: float = number(0.0, 0, 1)
    recalibrate: int = number(50, 0)


@dataclass
class Distributed:
    """``processes`` are started by this command, if torchrun does not; ``batch_norm``: see ``BATCH_NORMS``."""

    processes: int = number(1, 1, 1024)
    batch_norm: str = choice("reduce", *BATCH_NORMS)


@dataclass
class Train:
    """The keys of ``train.py``."""

    epochs: int = number(30, 1)
    max_steps: int | None = number(None, 1)
    limit_batches: int | None = number(None, 1)
    patience: int | None = number(None, 1)
    batch_size: int = number(64, 1)
    batch_milestones: list[float] = field(default_factory=list)
    batch_growth: int = number(2, 1)
    lr: float = number(0.1, above=0)
    seed: int = number(0, 0, 2**31 - 1)
    device: str = "auto"
    name: str | None = None
    resume: str | None = None
    runs: str = "runs"
    progress: bool = True
    profile: int = number(0, 0)
    model: Model = field(default_factory=Model)
    algorithm: dict[str, Any] = field(default_factory=dict)
    data: Data = field(default_factory=Data)
    init: Init = field(default_factory=Init)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    monitor: Monitor = field(default_factory=Monitor)
    distributed: Distributed = field(default_factory=Distributed)
    trainer: Any = field(default_factory=Backprop)  # one of the options in training/trainers.py

    def check(self) -> None:
        _check_rising("batch_milestones", self.batch_milestones)
        for key, rate in (("lr", self.lr), ("optim.coefficient_lr", self.optim.coefficient_lr or self.lr)):
            if self.schedule.min_lr > max(rate, 0):
                raise ConfigError(f"schedule.min_lr={self.schedule.min_lr} must be at most {key}={rate}, like 0")


@dataclass
class Evaluate:
    """The keys of ``evaluate.py``. ``checkpoint`` and ``model`` are a name or a list of names."""

    checkpoint: Any = field(default=None, metadata={"example": "best.pt"})
    model: Any = field(default=None, metadata={"example": "hbnet34"})
    pretrained: bool = False
    split: str = choice("test", *SPLITS)
    batch_size: int = number(256, 1)
    seed: int = number(0, 0, 2**31 - 1)
    device: str = "auto"
    output: str | None = None
    data: Data | None = None
