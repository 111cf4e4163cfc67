"""Checkpoints: tensors, plain containers and the Program as JSON. Written whole or not at all; loaded weights-only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from timm.models import get_arch_name
from torch import nn

from optnet.data import Preprocessing
from optnet.data.record import DataRecord
from optnet.errors import CheckpointError, ConfigError, RequestError, printable, reason
from optnet.networks.trunk import Trunk
from optnet.networks.zoo import has_algorithm
from optnet.options import number, option
from optnet.training.folder import replacing, settle
from optnet.training.logbook import Record
from optnet.training.loop import Progress
from optnet.training.schema import conform, form
from optnet.training.shares import Share
from optnet.training.weights import Damaged, is_ours, joined, read

FORMAT = 5
"""The version of the file format. It rises when older files can no longer be read."""
LAST, BEFORE, BEST = "last.pt", "previous.pt", "best.pt"


@dataclass
class Described:
    """A model, as ``describe`` describes it."""

    name: str = option()
    kwargs: dict[str, Any] = option()


@dataclass
class Batches:
    """What determines the batches of an epoch."""

    images: int = number(1, 1)
    batch_size: int = number(1, 1)
    steps: int = number(1, 1)


@dataclass
class Checkpoint:
    """All that resuming a run and rebuilding its model need. A file has exactly these entries, and ``format``.

    Attributes:
        run: the identity of the run: the same in its config.yaml and in all its checkpoints, and in no other run's.
        model: how to build it: ``name`` and ``kwargs`` for timm; see ``describe``.
        state_dict: the weights and buffers of the model that is scored.
        trainer: the trainer's own state.
        progress: where the run stands; see ``loop.Progress``.
        shares: what each process has for itself, by its number, if there are several.
        epoch: what determines the batches of the current epoch.
        rng: the states of torch's generators, by the kind of device.
        records: of each epoch so far, as text; see ``logbook.Record.read``.
        events: the size of each of TensorBoard's files, in bytes.
        config: the run's settings.
        classes: the names of the data's classes, in order.
        preprocessing: of the images in evaluation; see ``data.Preprocessing``.
        data: how many images each split has, and which; see ``record.DataRecord``.
        versions: of what the file was written with.
    """

    run: str
    model: Annotated[dict[str, Any], Described]
    state_dict: dict[str, torch.Tensor]
    trainer: dict[str, Any]
    progress: Annotated[dict[str, Any], Progress]
    shares: Annotated[list[dict[str, Any]], list[Share]]
    epoch: Annotated[dict[str, int], Batches]
    rng: dict[str, torch.Tensor]
    records: str
    events: dict[str, int]
    config: dict[str, Any]
    classes: list[str]
    preprocessing: Annotated[dict[str, Any], Preprocessing]
    data: Annotated[dict[str, Any], DataRecord]
    versions: dict[str, str]


ENTRIES = tuple(entry.name for entry in fields(Checkpoint))


def save(path: Path, content: Checkpoint, keep: str | None = None) -> None:
    """Writes a checkpoint to a file beside ``path`` and renames it, so that no reader ever sees half a file.

    Args:
        keep: the new name of the file that it replaces.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as partial:
            with open(partial, "xb") as file:
                torch.save({"format": FORMAT, **{name: getattr(content, name) for name in ENTRIES}}, file)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, path.with_name(keep))
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):
            raise  # torch's zip writer hides the disk's error behind its own; this is another one
        raise OSError(f"{path} cannot be written: {reason(error)}") from None
    settle(path.parent)


def take_back(folder: Path) -> None:
    """Replaces a run's last checkpoint by the one before it."""
    before = folder / "checkpoints" / BEFORE
    if before.exists():
        os.replace(before, before.with_name(LAST))
        settle(before.parent)


def last(folder: Path) -> tuple[Checkpoint, str]:
    """The last checkpoint of a run that can be read, and a note if it is not the last one written.

    Raises:
        CheckpointError: no checkpoint can be read: neither the last one, nor a complete one that was to replace it, nor
            the one before. Or the last one can be read, and an entry is not what it must be.
    """
    place = folder / "checkpoints"
    try:
        return load(place / LAST), ""
    except Damaged as error:
        for name, which in ((f"{LAST}.partial", "the one that was to follow it"), (BEFORE, "the one before it")):
            with suppress(CheckpointError):
                return load(place / name), f"{error}; going on from {which}, {place / name}"
        raise


def check_run(content: Checkpoint, run: str, path: Path) -> None:
    """Checks that a checkpoint is one of a run.

    Raises:
        CheckpointError: it is another run's.
    """
    if content.run != run:
        raise CheckpointError(
            f"{path} is of another run ({content.run[:40]}) than its folder ({run[:40]}); put back its own"
        )


def load(path: str | Path) -> Checkpoint:
    """Reads a run's checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, truncated, changed, would need unpickling, is not one of ours, of an earlier
            version, or an entry is not what it must be.
    """
    content = read(path)
    if not is_ours(content):
        raise CheckpointError(
            f"{printable(str(path))} is not a checkpoint of optnet (format {FORMAT}); others' weights need the name of "
            f"their model: evaluate.py model=NAME checkpoint=FILE, or train.py model=NAME init_from=FILE"
        )
    return parse(content, path)


def parse(content: dict[str, Any], path: str | Path) -> Checkpoint:
    """What is in a file of ours, as a checkpoint.

    Raises:
        CheckpointError: an entry is missing or not what it must be, or the file is of another version.
    """
    version = content["format"]
    if version != FORMAT:
        which, advice = ("an earlier", "train anew") if version < FORMAT else ("a later", "update optnet")
        raise CheckpointError(
            f"{path} was written by {which} version of optnet (format {version}, this one reads {FORMAT}); {advice}, "
            f"or use that version"
        )
    entries = {name: entry for name, entry in content.items() if name != "format"}
    try:
        conform(entries, Checkpoint, "")
        Record.read(entries["records"])
        Preprocessing(**entries["preprocessing"])
    except RequestError as error:
        raise CheckpointError(f"{path} is not a checkpoint of optnet (format {FORMAT}): {error}") from None
    return Checkpoint(**entries)


def check_classes(content: Checkpoint, classes: Sequence[str], where: str) -> None:
    """Checks that the data has the classes that a checkpoint was trained on, with the same names in the same order.

    Raises:
        ConfigError: it has other classes.
    """
    trained, given = content.classes, list(classes)
    if len(trained) != len(given):
        raise ConfigError(f"{where} has {len(trained)} classes, but the data has {len(given)}")
    for index, (one, other) in enumerate(zip(trained, given, strict=True)):
        if one != other:
            raise ConfigError(f"{where} has other classes than the data: class {index} is {one}, not {other}")


def describe(model: nn.Module, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What is needed to build ``model`` again without anybody's code: timm's name and arguments, and the programs."""
    kwargs = {key: value for key, value in kwargs.items() if key not in _STARTED_FROM}
    if isinstance(model, Trunk):
        kwargs = {key: getattr(model.options, key, value) for key, value in kwargs.items() if key not in _TRACED}
        kwargs = {**kwargs, "algorithm": None, "programs": model.programs_json(), "layer": model.layer}
    return {"name": name, "kwargs": kwargs}


_STARTED_FROM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
_TRACED = ("algorithm", "constants", "coefficient_init", "reading", "transition")


def rebuild(content: Checkpoint) -> nn.Module:
    """The model of a checkpoint, with its weights and its ``pretrained_cfg``.

    It is built from data alone: whatever the file says, no code of a user is run, and nothing is fetched.

    Raises:
        CheckpointError: it describes no model of ours or timm's, or the weights do not fit the one it describes.
    """
    model = build(content.model, content.state_dict)
    outputs = getattr(model, "num_classes", len(content.classes))
    if outputs != len(content.classes):
        raise CheckpointError(f"the checkpoint names {len(content.classes)} classes, but its model has {outputs}")
    Preprocessing(**content.preprocessing).describe(model, content.classes)
    return model


def build(described: Mapping[str, Any], state_dict: Mapping[str, Any]) -> nn.Module:
    """The model that ``describe`` described, with these weights. See ``rebuild``."""
    try:
        name, kwargs = described["name"], dict(described["kwargs"])
        if not timm.is_model(name):
            raise CheckpointError(f"the checkpoint's model '{str(name)[:80]}' is none of optnet's or timm's")
        kwargs = {key: value for key, value in kwargs.items() if key not in (*_STARTED_FROM, *_TRACED)}
        if has_algorithm(get_arch_name(name)):
            kwargs["algorithm"] = None  # its programs, and they alone, say what it computes
        model: nn.Module = timm.create_model(name, **kwargs)
        for key, own in model.state_dict().items():
            if key in state_dict and form(state_dict[key]) != form(own):
                raise CheckpointError(
                    f"the checkpoint's weights do not fit its model: {key} is {form(state_dict[key])}, not {form(own)}"
                )
        model.load_state_dict(state_dict)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file may ask for anything
        raise CheckpointError(f"the checkpoint's weights do not fit its model: {joined(error)}") from None
    return model
