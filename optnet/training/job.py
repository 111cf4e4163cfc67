"""What a run is made of, and its options. Builds nothing and trains nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optnet.data import DataOptions, DataSet, Loader
from optnet.options import number, option
from optnet.training import distributed
from optnet.training.checkpoint import Checkpoint
from optnet.training.course import check_rising
from optnet.training.monitoring.monitor import MonitorOptions
from optnet.training.trainers import Recipe


@dataclass
class RunOptions:
    """How long a run goes on, and in which batches."""

    epochs: int = number(40, 1, 1_000_000, help="epochs at most")
    max_steps: int | None = number(None, 1, help="steps of the whole run at most")
    limit_batches: int | None = number(None, 1, help="batches of an epoch at most")
    patience: int | None = number(None, 1, help="stop after so many epochs without a better validation score")
    batch_size: int = number(64, 1, help="images in a batch, of all processes together")
    batch_milestones: list[float] = option(factory=list, help="parts of the run after which the batch grows")
    batch_growth: int = number(2, 1, help="the factor by which it grows")
    seed: int = number(0, 0, 2**31 - 1, help="of the weights, the batches and the split of the data")
    progress: bool = option(True, help="show a line that moves, on a terminal; elsewhere a line every 30 seconds")
    profile: int = number(0, 0, help="steps to record in profile.json")

    def check(self) -> None:
        """Raises:
        ConfigError: the milestones do not rise between 0 and 1.
        """
        check_rising("batch_milestones", self.batch_milestones)


@dataclass
class Job:
    """All that a run is made of, checked and built before anything is written.

    Attributes:
        title: what the records call the model.
        model: on the CPU; ``described`` is what a checkpoint says of it.
        loading: how the images of ``data`` are augmented and read.
        least: the images that a process needs in a training batch; see ``trainers.least_images``.
        batch_norm: one of ``distributed.BATCH_NORMS``.
        place: the folder, inside the folder of all runs, that the run's own folder is made in.
        settings: the whole request as plain containers; ``record`` is the same as the text of config.yaml.
        origin: what record.jsonl says of this start of the run.
        sources: of the user's own algorithm: the name of a file -> its text.
        label: what the name of the run folder ends with, after the date and time.
        random: the state of the random numbers that training begins with.
        folder, resumed: of a run that goes on: its folder, and the checkpoint it goes on from.
        note: what has to be said about that checkpoint.
    """

    title: str
    options: RunOptions
    recipe: Recipe
    model: nn.Module
    described: dict[str, Any]
    data: DataSet
    loading: DataOptions
    device: torch.device
    random: dict[str, Tensor]
    place: Path
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    least: int = 1
    batch_norm: str = "reduce"
    settings: dict[str, Any] = field(default_factory=dict)
    record: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    label: str = ""
    folder: Path | None = None
    resumed: Checkpoint | None = None
    note: str = ""

    def loader(self, split: str, batch_size: int, *, training: bool = False) -> Loader:
        """This process's share of each batch."""
        whole = self.data.loader(
            split, batch_size, device=self.device, training=training, augment=self.loading.augmentation,
            workers=self.loading.workers, seed=self.options.seed, skip=self.loading.skip, least=self.least,
        )  # fmt: skip
        return whole.shared(distributed.rank(), distributed.size())
