"""One run from its configuration to its summary: the folder, the epochs, the best checkpoint, the end."""

from __future__ import annotations

import os
import platform
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import nn

from optnet.data import DataSet, Loader
from optnet.errors import CheckpointError, ConfigError
from optnet.options import check
from optnet.training import checkpoint, setup, trainers
from optnet.training.config import Train
from optnet.training.logbook import Logbook, is_terminal, new_folder, write_json
from optnet.training.loop import Diverged, Observer, Progress, Trainer, evaluate, train_epoch
from optnet.training.monitor import Monitor
from optnet.version import __version__

ON_RESUME = ("epochs", "device", "runs", "data.root", "progress", "resume")
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


def prepare(config: Train, overrides: Sequence[str] = ()) -> Parts:
    """Checks a request by building its parts; writes nothing.

    Raises:
        RequestError: the request is wrong.
    """
    resumed = None
    if config.resume is not None:
        config = _stored(config, overrides)
        resumed = checkpoint.load(Path(str(config.resume)) / "checkpoints" / "last.pt")
        if config.epochs < resumed["progress"]["epoch"]:
            raise ConfigError(f"epochs={config.epochs} is less than the {resumed['progress']['epoch']} done already")
    _check_place(config.runs, config.name)
    device = setup.device(config.device)
    data = setup.data(config.data, config.seed)
    torch.manual_seed(config.seed)
    if resumed is None:
        model, kwargs = setup.model(config.model, config.algorithm, len(data.classes), data.shape)
        described = checkpoint.describe(model, config.model.name, kwargs)
        trainers.try_step(config, model, data.shape)
    else:
        model, described = checkpoint.rebuild(resumed), resumed["model"]
    return Parts(config, device, data, model.to(device), described, resumed)


def _check_place(runs: str, name: str | None) -> None:
    """Whether a run's folder can be made there."""
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts or not name.strip()):
        raise ConfigError(f"name={name} must be the name of a folder under runs/")
    place = Path(runs).absolute() / (name or "")
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"runs={runs}: {existing} is no folder that can be written to; give another one")


def _stored(config: Train, overrides: Sequence[str]) -> Train:
    """The configuration of the run to go on with, with the overrides it allows."""
    file = Path(str(config.resume)) / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={config.resume} is not a run's folder: there is no {file}")
    try:
        stored: Any = trainers.typed(Train, OmegaConf.load(file))
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key not in ON_RESUME:
            raise ConfigError(f"{override}: a resumed run keeps its config; only {', '.join(ON_RESUME)} can be given")
        if key == "data.root":
            stored.data.root = config.data.root
        else:
            setattr(stored, key, getattr(config, key))
    stored.resume = config.resume
    check(stored)
    return stored


def train(parts: Parts) -> float:
    """Trains, keeps the best checkpoint by validation accuracy, scores it once on the test split; returns that."""
    config, data, model, device = parts.config, parts.data, parts.model, parts.device
    trainer = trainers.build(config, model, config.epochs * len(_training_loader(parts, full_batch=False)))
    loader = _training_loader(parts, trainer.full_batch)
    validation = data.loader("validation", 4 * config.batch_size, device=device, workers=config.data.workers)
    progress = Progress()
    if parts.resumed is None:
        folder = new_folder(config.runs, config.name or f"{_model_name(config)}-{data.name}")
    else:
        folder = Path(str(config.resume))
        try:
            progress = Progress(**parts.resumed["progress"])
            trainer.load_state_dict(parts.resumed["trainer"])
            torch.set_rng_state(parts.resumed["rng"])
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: its last checkpoint does not fit its run ({error})") from None
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    logbook = Logbook(folder, progress.epoch)
    parameters = sum(p.numel() for p in model.parameters())
    logbook.say(f"{data}; {_model_name(config)}, {parameters:,} parameters, on {device}; in {folder}")

    def content() -> dict[str, Any]:
        plain = OmegaConf.to_container(OmegaConf.structured(config))
        return {
            "model": parts.described, "state_dict": trainer.model.state_dict(), "trainer": trainer.state_dict(),
            "progress": progress.to_dict(), "rng": torch.get_rng_state(), "config": plain,
            "classes": list(data.classes), "versions": versions(),
        }  # fmt: skip

    observers: list[Observer] = [Monitor(config, logbook.events, data, device, lambda: peak_memory(device))]
    for observer in observers:
        observer.on_start(progress, trainer)
    total = config.epochs * len(loader)
    with _bar(config.progress, total, progress.updates) as bar, _signals() as caught:
        while progress.epoch < config.epochs:
            try:
                finished = train_epoch(
                    trainer, loader, progress, shown=bar.say, observers=observers,
                    on_batch=lambda now: bar.advance(now.updates, bool(caught)),
                )  # fmt: skip
            except Diverged as error:
                last = folder / "checkpoints" / "last.pt"
                logbook.say(
                    f"stopped: {error}; "
                    + (f"the last good checkpoint is {last}" if last.exists() else "try a lower lr")
                )
                logbook.close()
                sys.exit(1)
            if finished:
                _end_epoch(parts, trainer, progress, validation, logbook, observers, content)
            if caught and (not finished or progress.epoch < config.epochs):
                checkpoint.save(folder / "checkpoints" / "last.pt", content())
                logbook.say(f"interrupted and saved; python train.py resume={folder} goes on")
                logbook.close()
                sys.exit(128 + caught[0])
    return _finish(parts, trainer, progress, logbook, observers, parameters)


def _training_loader(parts: Parts, full_batch: bool) -> Loader:
    config = parts.config
    batch_size = len(parts.data.train) if full_batch else config.batch_size
    return parts.data.loader(
        "train", batch_size, device=parts.device, training=not full_batch, augment=config.data.augment,
        workers=config.data.workers, seed=config.seed,
    )  # fmt: skip


def _end_epoch(
    parts: Parts, trainer: Trainer, progress: Progress, validation: Loader, logbook: Logbook,
    observers: Sequence[Observer], content: Callable[[], dict[str, Any]],
) -> None:  # fmt: skip
    scalars = {"train/loss": progress.loss_sum / progress.count, "train/top1": 100 * progress.correct / progress.count}
    progress.epoch += 1
    progress.batch = progress.count = progress.correct = 0
    progress.loss_sum = 0.0
    for observer in observers:
        observer.on_epoch(progress, trainer)
    score = evaluate(trainer.model, validation, len(parts.data.classes))
    scalars.update({
        "validation/loss": score.loss, "validation/top1": score.top1,
        "validation/top5": score.top5, **trainer.scalars(),
        "time/images_per_second": progress.images / progress.seconds, "time/train_seconds": progress.seconds,
    })  # fmt: skip
    is_best = (score.top1, -score.loss) > (progress.best, -progress.best_loss)  # of equal ones, the surer
    if is_best:
        progress.best, progress.best_loss, progress.best_epoch = score.top1, score.loss, progress.epoch
    logbook.epoch(progress.epoch, scalars, trainer.model)
    logbook.say(
        f"epoch {progress.epoch}/{parts.config.epochs}  train loss {scalars['train/loss']:.4f} "
        f"top-1 {scalars['train/top1']:.2f} %  validation loss {score.loss:.4f} top-1 {score.top1:.2f} %"
        + ("  *" if is_best else "")
    )
    for name in ("best.pt", "last.pt")[not is_best :]:
        checkpoint.save(logbook.folder / "checkpoints" / name, content())


def _finish(
    parts: Parts, trainer: Trainer, progress: Progress, logbook: Logbook, observers: Sequence[Observer], parameters: int
) -> float:
    config, data, device = parts.config, parts.data, parts.device
    best = checkpoint.load(logbook.folder / "checkpoints" / "best.pt")
    trainer.model.load_state_dict(best["state_dict"])
    test = data.loader("test", 4 * config.batch_size, device=device, workers=config.data.workers)
    score = evaluate(trainer.model, test, len(data.classes))
    summary = {
        "model": _model_name(config), "parameters": parameters, "dataset": data.name, "metric": "top1",
        "best": progress.best, "best_epoch": progress.best_epoch, "final": score.top1, "correct": score.correct,
        "count": score.count, "epochs": progress.epoch, "train_seconds": progress.seconds,
        "images_per_second": progress.images / max(progress.seconds, 1e-9), "peak_memory_bytes": peak_memory(device),
        "seed": config.seed, "versions": versions(), "device": str(device),
    }  # fmt: skip
    write_json(logbook.folder / "summary.json", summary)
    for observer in observers:
        observer.on_end(summary, trainer)
    logbook.say(
        f"test top-1 {score.top1:.2f} % ({score.correct} of {score.count}) with the checkpoint of epoch "
        f"{progress.best_epoch}, {progress.seconds:.0f} s of training; {logbook.folder}"
    )
    logbook.close()
    return score.top1


def _model_name(config: Train) -> str:
    algorithm = config.algorithm.get("name")
    return f"{Path(algorithm).name.replace(':', '.')}-{config.model.name}" if algorithm else config.model.name


def versions() -> dict[str, str]:
    return {
        "optnet": __version__, "torch": str(torch.__version__), "torchvision": str(torchvision.__version__),
        "timm": timm.__version__, "python": platform.python_version(),
    }  # fmt: skip


def peak_memory(device: torch.device) -> int:
    """Bytes: of the accelerator's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Shown:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, bar: Bar | None, total: int, done: int) -> None:
        self.bar = bar
        if bar is not None:
            self.task = bar.add_task("", total=total, completed=done)

    def advance(self, updates: int, stop: bool) -> bool:
        if self.bar is not None:
            self.bar.update(self.task, completed=updates)
        return stop

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=text)


@contextmanager
def _bar(wanted: bool, total: int, done: int) -> Iterator[_Shown]:
    if not (wanted and is_terminal()):
        yield _Shown(None, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, transient=True) as bar:
        yield _Shown(bar, total, done)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one of them acts at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise SystemExit(128 + number)
        caught.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
