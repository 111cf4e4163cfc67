"""From a checked configuration to the parts of a run, new or gone on with. Trains nothing and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from timm.layers import convert_sync_batchnorm
from torch import nn

from optnet.app import setup, trainers
from optnet.app.config import Train
from optnet.data import DataSet, Loader
from optnet.errors import ConfigError
from optnet.options import check
from optnet.training import checkpoint, distributed

ON_RESUME = ("epochs", "device", "runs", "data.root", "progress", "distributed.processes", "resume")
"""The keys that going on with a run may change."""


@dataclass
class Parts:
    """All that a run is made of, checked and built before anything is written."""

    config: Train
    device: torch.device
    data: DataSet
    model: nn.Module
    described: dict[str, Any]
    resumed: dict[str, Any] | None
    note: str = ""

    def loader(self, split: str, batch_size: int, *, training: bool = False) -> Loader:
        """This process's share of each batch."""
        whole = self.whole_loader(split, batch_size, training=training)
        return whole.shared(distributed.rank(), distributed.size())

    def whole_loader(self, split: str, batch_size: int, *, training: bool = False) -> Loader:
        """All of each batch, in every process."""
        config = self.config.data
        return self.data.loader(
            split, batch_size, device=self.device, training=training, augment=config.augment, workers=config.workers,
            seed=self.config.seed, skip=config.unreadable == "skip",
        )  # fmt: skip


def prepare(config: Train, overrides: Sequence[str] = (), *, trial: bool = False) -> Parts:
    """Checks a request by building its parts; writes nothing. A ``trial`` builds them on the CPU, for others to train.

    Raises:
        RequestError: the request is wrong.
    """
    resumed, note = None, ""
    if config.resume is not None:
        config = stored(config, overrides)
        resumed, note = checkpoint.last(Path(str(config.resume)))
        if config.epochs < resumed["progress"]["epoch"]:
            raise ConfigError(f"epochs={config.epochs} is less than the {resumed['progress']['epoch']} done already")
    _check_place(config.runs, config.name)
    _check_processes(config)
    device = torch.device("cpu") if trial else distributed.device(setup.device(config.device))
    data = distributed.primary_first(lambda: setup.data(config.data, config.seed))
    if len(data.train) < 2 * (processes := _processes(config)):
        raise ConfigError(f"{len(data.train)} training images are too few for {processes} processes; 2 for each")
    torch.manual_seed(config.seed)
    if resumed is None:
        model, kwargs = setup.model(config.model, config.algorithm, len(data.classes), data.shape)
        described = checkpoint.describe(model, config.model.name, kwargs)
        trainers.try_step(config, model, data.shape)
    else:
        checkpoint.check_classes(resumed, data.classes, f"resume={config.resume}")
        model, described = checkpoint.rebuild(resumed), resumed["model"]
    parts = Parts(config, device, data, model.to(device), described, resumed, note)
    if resumed is None:
        loader = parts.whole_loader("train", config.batch_size, training=True)
        setup.initialise(config.init, parts.model, loader, data.train.labels)
    if distributed.size() > 1 and config.distributed.batch_norm == "synchronise":
        parts.model = convert_sync_batchnorm(parts.model)
    return parts


def _processes(config: Train) -> int:
    """How many there are, or, before they are started, are to be."""
    return distributed.size() if distributed.launched() else config.distributed.processes


def _check_processes(config: Train) -> None:
    """Whether as many processes as there are to be can train together, on the devices there are."""
    processes = _processes(config)
    if processes == 1:
        return
    if not trainers.TRAINERS[config.trainer.name].distributed:
        raise ConfigError(f"trainer={config.trainer.name} trains in one process alone")
    if config.batch_size < 2 * processes:
        raise ConfigError(f"batch_size={config.batch_size} must be at least {2 * processes}, 2 for each process")
    on_gpus = config.device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
    if not on_gpus:
        setup.device(config.device)
    elif not distributed.launched() and torch.cuda.device_count() < processes:
        raise ConfigError(
            f"device={config.device}: the GPUs here, {torch.cuda.device_count()}, are too few for {processes} "
            f"processes; or device=cpu"
        )
    if config.distributed.batch_norm == "synchronise" and not on_gpus:
        raise ConfigError("distributed.batch_norm=synchronise works on GPUs alone; use reduce")


def _check_place(runs: str, name: str | None) -> None:
    """Whether a run's folder can be made there."""
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts or not name.strip()):
        raise ConfigError(f"name={name} must be the name of a folder under runs/")
    place = Path(runs).absolute() / (name or "")
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"runs={runs}: {existing} is no folder that can be written to; give another one")


def stored(config: Train, overrides: Sequence[str]) -> Train:
    """The configuration of the run to go on with, with the overrides it allows."""
    file = Path(str(config.resume)) / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={config.resume} is not a run's folder: there is no {file}")
    try:
        kept: Any = trainers.typed(Train, OmegaConf.load(file))
    except Exception as error:  # what stands in it may be no YAML, or any other
        raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key not in ON_RESUME:
            raise ConfigError(f"{override}: a resumed run keeps its config; only {', '.join(ON_RESUME)} can be given")
        if key == "data.root":
            kept.data.root = config.data.root
        elif key == "distributed.processes":
            kept.distributed.processes = config.distributed.processes
        else:
            setattr(kept, key, getattr(config, key))
    kept.resume = config.resume
    check(kept)
    return kept
