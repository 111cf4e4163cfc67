"""The run to resume: its settings and its checkpoints, and whether they agree. Changes nothing in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from torch import nn

from optnet.app.compose import keys, typed
from optnet.app.config import Train
from optnet.data import DataOptions, DataRecord, DataSet
from optnet.errors import CheckpointError, ConfigError, printable, reason
from optnet.options import check
from optnet.training import checkpoint, trainers
from optnet.training.checkpoint import BEST, LAST, Checkpoint
from optnet.training.schema import alike

ON_RESUME = (
    "epochs", "device", "runs", "data.root", "data.download", "progress", "distributed.processes", "resume",
    "edited_config",
)  # fmt: skip
"""The keys that may change when a run is resumed."""
OF_THE_RUN = ("model", "algorithm", "init", "init_from", "freeze", "seed", "data", "trainer.name")
"""What makes the network and splits the data: with other values it would be another run."""
MOST = 1_000_000
"""Bytes of a config.yaml at most."""
DEEPEST = 50
"""Tables and lists in one another in a config.yaml at most."""


@dataclass
class GoingOn:
    """A run that goes on.

    Attributes:
        config: its settings, with those that may change as this command says.
        loading: how its data is read: nothing is downloaded to a place that only its folder names.
        last: the checkpoint that it resumes from.
        note: what has to be said about it.
        edited: whether other settings and images than the run had are allowed.
    """

    folder: Path
    config: Train
    loading: DataOptions
    last: Checkpoint
    note: str
    edited: bool

    def with_record(self, data: DataSet) -> DataSet:
        """The data as the run records it from now on. Notes how it differs from that before.

        Raises:
            CheckpointError: the run's record of it is not one. ConfigError: it differs, and that was not allowed.
        """
        earlier = DataRecord.from_dict(self.last.data)
        if changed := data.changes(earlier):
            if not self.edited:
                raise ConfigError(
                    f"resume={self.folder}: the images in {self.loading.root} are others than the run was trained on: "
                    f"{changed}; put them back, or add edited_config=true to go on with these"
                )
            self.note = "; ".join(filter(None, (self.note, f"going on with other images: {changed}")))
        return replace(data, record=data.record.after(earlier))

    def check_state(self, model: nn.Module, data: DataSet) -> None:
        """Checks that the trainer can go on, and that the best checkpoint is there and of the same run.

        Raises:
            CheckpointError: it cannot, or is not.
        """
        where = self.folder / "checkpoints"
        try:
            trainers.try_state(self.config.recipe, model, data.shape, self.last.trainer, len(data.train))
        except CheckpointError as error:
            raise CheckpointError(f"{where / LAST} does not fit its run: {error}") from None
        if self.last.progress["best_epoch"]:
            best = checkpoint.load(where / BEST)
            checkpoint.check_run(best, self.last.run, where / BEST)
            try:
                alike(best.state_dict, self.last.state_dict, "state_dict")
            except CheckpointError as error:
                raise CheckpointError(f"{where / BEST} does not fit {LAST}: {error}") from None


def stored(config: Train, overrides: Sequence[str]) -> GoingOn:
    """The run to resume.

    Raises:
        RequestError: there is no such run, it cannot be read, its files do not agree, or an override is not allowed.
    """
    folder = Path(str(config.resume))
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={config.resume} is not a run's folder: there is no {file}")
    given = keys(overrides)
    for key, override in zip(given, overrides, strict=True):
        if key not in ON_RESUME:
            raise ConfigError(f"{override}: a resumed run keeps its config; only {', '.join(ON_RESUME)} can be given")
    last, note = checkpoint.last(folder)
    run, settings = _read(file)
    checkpoint.check_run(last, run, folder / "checkpoints" / LAST)
    changes = [change for change in _differences(last.config, settings) if change[0] not in ON_RESUME]
    if changes:
        said = ", ".join(f"{key}={now}, which was {before}" for key, before, now in changes[:5])
        if fixed := [key for key, _, _ in changes if any(f"{key}.".startswith(f"{of}.") for of in OF_THE_RUN)]:
            raise ConfigError(f"{file} was edited: {said}; {fixed[0]} cannot change within a run, so put it back")
        if not config.edited_config:
            raise ConfigError(
                f"{file} was edited: {said}; put it back, or add edited_config=true to go on with the new values"
            )
        note = "; ".join(filter(None, (note, f"going on with the edited {file}: {said}")))
    kept = _typed(file, settings)
    for key in given:
        if key == "data.root":
            kept.data.root = config.data.root
        elif key == "data.download":
            kept.data.download = config.data.download
        elif key == "distributed.processes":
            kept.distributed.processes = config.distributed.processes
        elif key != "edited_config":
            setattr(kept, key, getattr(config, key))
    kept.resume = config.resume
    check(kept)
    if kept.epochs < last.progress["epoch"]:
        raise ConfigError(f"epochs={kept.epochs} is less than the {last.progress['epoch']} done already")
    loading = replace(kept.data, download=kept.data.download and "data.root" in given)
    return GoingOn(folder, kept, loading, last, note, config.edited_config)


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """The run's identity and its settings as plain containers, as they stand in a config.yaml.

    A stranger may have written it: nothing in it refers to anything, neither to the environment nor to itself.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        with open(file, "rb") as opened:
            text = opened.read(MOST + 1).decode()
        if len(text) > MOST:
            raise ValueError(f"it has more than {MOST:,} characters")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"*{event.anchor} is an alias; a run's config has values alone")
            if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
                raise ValueError(f"{event.value} is an interpolation; a run's config has values alone")
        settings = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(settings, dict) or not isinstance(run := settings.pop("run", None), str):
            raise ValueError("it has no run: the identity of the run")
        return run, {str(key): value for key, value in settings.items()}
    except Exception as error:  # what stands in it may be anything
        raise ConfigError(f"{file} cannot be read: {reason(error)}") from None


def _typed(file: Path, settings: dict[str, Any]) -> Train:
    """Raises:
    ConfigError: a key or a value is wrong.
    """
    try:
        config: Train = typed(Train, OmegaConf.create(settings))
    except Exception as error:
        raise ConfigError(f"{file} cannot be used: {reason(error)}") from None
    return config


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, its value before, its value now) of every difference between two tables of settings."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*before, *now)):
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(before.get(name, _MISSING), now.get(name, _MISSING), inner)
    elif before != now:
        yield key, printable(str(before))[:80], printable(str(now))[:80]


_MISSING = "not there"
