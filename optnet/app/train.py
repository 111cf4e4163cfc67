"""train.py: a request from the command line is composed, checked, built and trained. Knows no training loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from optnet.app import models, provenance, resuming
from optnet.app.compose import keys, run
from optnet.app.config import Train
from optnet.app.exits import command, exit_statuses
from optnet.app.launch import launch
from optnet.app.sweep import Result
from optnet.data import DataOptions, DataSet, Preprocessing, load_as
from optnet.errors import ConfigError, DataError, foreign
from optnet.networks import initialisation
from optnet.training import checkpoint, distributed, trainers, transfer
from optnet.training.environment import find_device, random_state
from optnet.training.folder import check_place
from optnet.training.job import Job, RunOptions
from optnet.training.run import Finished, train

DataSets = dict[str, DataSet]
"""The data sets that were loaded for the jobs of a sweep, by their options and seed."""


@dataclass
class Request:
    """A request that was checked: the job of this process, or how many other processes to start for it."""

    config: Train
    overrides: Sequence[str]
    job: Job | None
    processes: int = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains as the command line says, by default that of this process; exits with a status if it fails."""
    if arguments is not None:
        sys.argv[1:] = arguments
    with command(), distributed.processes():
        run("train", Train, requests, start)


def requests(asked: Sequence[tuple[Train, Sequence[str]]]) -> list[Request]:
    """Checks all jobs of a sweep, or the one job, by building each once; see ``prepare``."""
    loaded: DataSets = {}
    checked = []
    for config, overrides in asked:
        job = prepare(config, overrides, loaded)
        processes = job.settings["distributed"]["processes"]
        here = distributed.launched() or processes == 1
        checked.append(Request(config, overrides, job if here else None, processes))
    return checked


def start(request: Request, label: str = "") -> Result:
    """Trains here, or in as many processes of its own as were asked for. A sweep optimises the validation accuracy.

    Args:
        label: the job of a sweep; the name of the run folder ends with it.
    """
    if request.job is not None:
        finished = train(replace(request.job, label=label), say)
    else:
        finished = launch(_process, (request.config, list(request.overrides), label), request.processes)
    found = {"test top-1 %": finished.test, "run": str(finished.folder)}
    if finished.validation is None:
        return Result(math.nan, found)
    return Result(finished.validation, {"validation top-1 %": finished.validation, **found})


def say(line: str) -> None:
    print(line, flush=True)


def _process(config: Train, overrides: Sequence[str], label: str) -> Finished:
    with exit_statuses(), distributed.processes():
        return train(replace(prepare(config, overrides), label=label), say)


def prepare(config: Train, overrides: Sequence[str] = (), loaded: DataSets | None = None) -> Job:
    """Checks a request by building its job; writes nothing. A job for other processes is built on the CPU.

    Args:
        loaded: data sets of other jobs, to share; this one's is added.

    Raises:
        RequestError: the request is wrong.
    """
    resumed, folder, loading = None, None, config.data
    if config.resume is None:
        _check_folder(config.runs, config.name)
    else:
        folder = Path(config.resume)
        going_on = resuming.stored(config, overrides)
        config, loading, resumed = going_on.config, going_on.loading, going_on.last
    _check_processes(config)
    elsewhere = config.distributed.processes > 1 and not distributed.launched()
    device = torch.device("cpu") if elsewhere else distributed.device(find_device(config.device))
    data = _data(loading, config.seed, {} if loaded is None else loaded)
    if len(data.train) < 2 * (processes := _processes(config)):
        raise ConfigError(f"{len(data.train)} training images are too few for {processes} processes; 2 for each")
    source, said = None, []
    if config.init_from is not None and resumed is None:
        source = transfer.find(config.init_from)
        if source.preprocessing is not None:
            data, note = data.as_started(source.preprocessing, config.data, keys(overrides), source.where)
            said.append(note)
    torch.manual_seed(config.seed)
    if resumed is None:
        model, kwargs = models.build(config.model, config.algorithm, len(data.classes), data.shape)
        described = checkpoint.describe(model, config.model.name, kwargs)
        data.preprocessing.describe(model, data.classes)
        said += _freeze(config, model)
        trainers.try_step(config.recipe, model, data.shape)
    else:
        checkpoint.check_classes(resumed, data.classes, f"resume={config.resume}")
        data = going_on.with_record(data).prepared(Preprocessing(**resumed.preprocessing))
        model, described = checkpoint.rebuild(resumed), resumed.model
        _freeze(config, model)
        going_on.check_state(model, data)
    least = _least_images(config, model, data)
    title = _title(config)
    settings: Any = OmegaConf.to_container(OmegaConf.structured(config))
    job = Job(
        title=title, options=_run_options(config), recipe=config.recipe, model=model.to(device), described=described,
        data=data, loading=loading, device=device, random={}, monitor=config.monitor,
        place=Path(config.runs) / (config.name or f"{title}-{data.name}"), least=least,
        batch_norm=config.distributed.batch_norm,
        settings=settings, record=OmegaConf.to_yaml(OmegaConf.create(settings)), folder=folder, resumed=resumed,
        note="" if resumed is None else going_on.note,
        origin=provenance.record(settings, overrides, model, data, device, processes),
        sources=provenance.sources(config.algorithm.get("name")) if resumed is None else {},
    )  # fmt: skip
    if resumed is None:
        _initialise(config, job)
        if source is not None:
            said.insert(0, transfer.start(model, source, data.classes))
        job.note = "; ".join(filter(None, said))
    model.cpu()  # until it is trained: a sweep may have many
    return replace(job, random=random_state(device))


def _freeze(config: Train, model: nn.Module) -> list[str]:
    """Freezes what is asked for; returns what has to be said about it.

    Raises:
        ConfigError: the trainer does not heed it, or see ``transfer.freeze``.
    """
    if not config.frozen:
        return []
    if not trainers.TRAINERS[config.trainer.name].freezes:
        raise ConfigError(
            f"freeze={config.freeze} does not go with trainer={config.trainer.name}; use trainer=backprop"
        )
    return [transfer.freeze(model, config.frozen)]


def _least_images(config: Train, model: nn.Module, data: DataSet) -> int:
    """``trainers.least_images``, tried where it matters: in batches of one image, or that a skip may leave with one.

    Raises:
        ConfigError: the batches are too small for the model.
    """
    if config.batch_size > 1 and not config.data.skip:
        return 1
    least = trainers.least_images(model, data.shape)
    if config.batch_size < least:
        size = "x".join(map(str, data.shape))
        raise ConfigError(
            f"batch_size={config.batch_size} is too small for model={config.model.name} on images of {size}, whose "
            f"batch norm would have one value per channel; give batch_size={least} or more, or model.norm=group"
        )
    return least


def _data(options: DataOptions, seed: int, loaded: DataSets) -> DataSet:
    key = f"{options} {seed}"
    if key not in loaded:
        with foreign(f"data={options.name}", DataError):
            loaded[key] = distributed.primary_first(lambda: load_as(options, seed))
    return loaded[key]


def _run_options(config: Train) -> RunOptions:
    return RunOptions(**{key: getattr(config, key) for key in RunOptions.__dataclass_fields__})


def _title(config: Train) -> str:
    """The name of the model in the run's folder and records."""
    algorithm = config.algorithm.get("name")
    return f"{Path(algorithm).name.replace(':', '.')}-{config.model.name}" if algorithm else config.model.name


def _initialise(config: Train, job: Job) -> None:
    """Initialises the weights. Schemes that need data get the first training batch, whole in every process.

    Raises:
        ConfigError: the scheme does not go with the model.
    """
    init = config.init
    loader = job.loader("train", config.batch_size, training=True).shared(0, 1)
    needed = initialisation.needs_data(job.model, init.name)
    images = next(iter(loader.batches()))[0] if needed else None
    initialisation.initialise(
        job.model, init.name, images=images, labels=job.data.train.labels, gain=init.gain, bias=init.bias,
        output_bias=init.output_bias,
    )  # fmt: skip


def _processes(config: Train) -> int:
    """How many processes there are or will be."""
    return distributed.size() if distributed.launched() else config.distributed.processes


def _check_processes(config: Train) -> None:
    """Checks that the processes can train together on the devices of this machine."""
    processes = _processes(config)
    if processes == 1:
        return
    if not trainers.TRAINERS[config.trainer.name].distributed:
        raise ConfigError(f"trainer={config.trainer.name} trains in one process alone")
    if config.batch_size < 2 * processes:
        raise ConfigError(f"batch_size={config.batch_size} must be at least {2 * processes}, 2 for each process")
    on_gpus = config.device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
    if not on_gpus:
        find_device(config.device)
    elif not distributed.launched() and torch.cuda.device_count() < processes:
        raise ConfigError(
            f"device={config.device}: the GPUs here, {torch.cuda.device_count()}, are too few for {processes} "
            f"processes; or device=cpu"
        )
    if config.distributed.batch_norm == "synchronise" and not on_gpus:
        raise ConfigError("distributed.batch_norm=synchronise works on GPUs alone; use reduce")


def _check_folder(runs: str, name: str | None) -> None:
    """Checks that a run's folder can be made."""
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts or not name.strip()):
        raise ConfigError(f"name={name} must be the name of a folder under runs/")
    for key, value in (("runs", runs), ("name", name or "")):
        if not value.isprintable():
            raise ConfigError(f"{key}={value!r} has control characters; give another one")
    if not runs.strip():
        raise ConfigError("runs= is empty; it must be a folder, like runs=runs")
    check_place("runs" if name is None else "name", runs if name is None else name, Path(runs) / (name or ""))
