"""The keys of train.py and evaluate.py: composed from the options of each part, which are declared beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, make_dataclass
from typing import Any

from optnet.data import SPLITS, DataOptions
from optnet.errors import ConfigError
from optnet.networks.initialisation import InitOptions
from optnet.networks.options import NetworkOptions, TokenOptions
from optnet.options import choice, number, option, path
from optnet.training.backprop import BackpropOptions
from optnet.training.distributed import DistributedOptions
from optnet.training.job import RunOptions
from optnet.training.monitoring.monitor import MonitorOptions
from optnet.training.optimizers import OptimOptions
from optnet.training.schedules import ScheduleOptions
from optnet.training.trainers import Recipe


def _options() -> Iterator[tuple[str, str, Any]]:
    """The options of all kinds of networks, each once. They are null until they are given: then the model has its own.

    A choice that several kinds have is a choice of the words of all.
    """
    declared: dict[str, list[Field[Any]]] = {}
    for kind in (NetworkOptions, TokenOptions):
        for key in fields(kind):
            declared.setdefault(key.name, []).append(key)
    for name, (first, *others) in declared.items():
        words = dict.fromkeys(word for key in (first, *others) for word in key.metadata.get("options", ()))
        metadata = {**first.metadata, "options": tuple(words)} if words else first.metadata
        yield name, f"{str(first.type).removesuffix(' | None')} | None", field(default=None, metadata=metadata)


_Network: Any = make_dataclass("_Network", _options(), kw_only=True)


@dataclass
class Model(_Network):
    """``model=NAME``: one of ours or any of timm's. What is null is the model's own."""

    name: str = option("hbnet_small", help="the model: one of ours or any of timm's")
    blocks: list[int] | None = option(
        None, example=[2, 2, 2], help="iterations of the algorithm in each stage; null: the model's"
    )
    widths: list[int] | None = option(None, example=[16, 32, 64], help="channels of each stage; null: the model's")
    hidden: list[int] | None = option(
        None, example=[300, 100], help="units of each hidden layer of model=mlp; null: the model's"
    )
    kwargs: dict[str, Any] = option(factory=dict, help="what else timm.create_model gets, like {drop_path_rate: 0.1}")


@dataclass
class Train(RunOptions):
    """The keys of train.py."""

    lr: float = number(0.1, above=0, help="the learning rate")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    name: str | None = option(
        None, help="the run's folder under runs; null: made from the model's and the data's names"
    )
    resume: str | None = path(None, help="the folder of a run to resume; its settings are kept")
    edited_config: bool = option(False, help="with resume=: resume although the run's config.yaml or images changed")
    init_from: str | None = path(
        None,
        example="best.pt",
        help="weights to start from: a file, a run's folder, or timm's name of some",
    )
    freeze: Any = option(
        None, example="all_but_head",
        help="what is not trained: all_but_head, all_but_coefficients, or the name of a module or parameter, like "
        "stages.0 or *.bias, or several: [stem,stages.0]",
    )  # fmt: skip
    runs: str = path("runs", help="the folder that the runs' folders are made in")
    model: Model = field(default_factory=Model)
    algorithm: dict[str, Any] = option(factory=lambda: {"name": None}, help="the algorithm's name, and its constants")
    data: DataOptions = field(default_factory=lambda: DataOptions(augment="shift"))  # as data=digits has it
    init: InitOptions = field(default_factory=InitOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    trainer: Any = field(default_factory=BackpropOptions)  # the options of one of training/trainers.py

    def check(self) -> None:
        """Raises:
        ConfigError: two keys do not go together.
        """
        super().check()
        if self.patience is not None and not self.data.validation:
            raise ConfigError(
                f"patience={self.patience} stops by the validation score, and data.validation=0 leaves none; give one "
                f"of them"
            )
        if not all(isinstance(pattern, str) and pattern for pattern in self.frozen):
            raise ConfigError(
                f"freeze={self.freeze} must be all_but_head, all_but_coefficients, or names like stages.0"
            )
        for key, rate in (("lr", self.lr), ("optim.coefficient_lr", self.optim.coefficient_lr or self.lr)):
            if self.schedule.min_lr > max(rate, 0):
                raise ConfigError(f"schedule.min_lr={self.schedule.min_lr} must be at most {key}={rate}, like 0")

    @property
    def frozen(self) -> list[Any]:
        """What is not trained, as patterns."""
        return [] if self.freeze is None else self.freeze if isinstance(self.freeze, list) else [self.freeze]

    @property
    def recipe(self) -> Recipe:
        """What the trainer is made from."""
        return Recipe(self.trainer, self.optim, self.schedule, self.lr, self.seed)


@dataclass
class Evaluate:
    """The keys of evaluate.py."""

    checkpoint: Any = path(
        None, example="best.pt", help="a file like runs/.../checkpoints/best.pt, or several: [a.pt,b.pt]"
    )
    model: Any = option(
        None, example="hbnet34",
        help="the name of a model, ours or timm's, or several; with checkpoint=: whose weights the file has",
    )  # fmt: skip
    pretrained: bool = option(False, help="with model=: fetch published weights")
    split: str = choice("test", *SPLITS, help="the split of the data")
    batch_size: int = number(256, 1, help="images in a batch")
    seed: int = number(0, 0, 2**31 - 1, help="of the split of the data and of weights that are not loaded")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    output: str | None = path(
        None, help="the file to write; null: evaluation.json in the run's folder, or in one of its own"
    )
    data: DataOptions | None = option(None, help="the data set; null: a checkpoint's own, else the digits")
