"""Checkpoints: tensors, plain containers and the Program as JSON. Written whole or not at all; loaded weights-only."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import load_checkpoint
from torch import nn

from optnet.errors import CheckpointError, ConfigError, reason
from optnet.networks.network import Network
from optnet.networks.zoo import MODELS

FORMAT = 3
"""The version of the file format. It rises when older files can no longer be read."""
LAST, BEFORE, BEST = "last.pt", "previous.pt", "best.pt"


@dataclass
class Checkpoint:
    """All that resuming a run and rebuilding its model need. A file has exactly these entries, and ``format``.

    Attributes:
        model: how to build it: ``name`` and ``kwargs`` for timm; see ``describe``.
        state_dict: the weights and buffers of the model that is scored.
        trainer: the trainer's own state.
        progress: where the run stands; see ``loop.Progress``.
        epoch: what determines the batches of the current epoch.
        rng: the states of torch's generators, by the kind of device.
        records: how far each of the run's records goes, in bytes.
        config: the run's settings.
        classes: the names of the data's classes, in order.
        versions: of what the file was written with.
    """

    model: dict[str, Any]
    state_dict: dict[str, Any]
    trainer: dict[str, Any]
    progress: dict[str, Any]
    epoch: dict[str, int]
    rng: dict[str, torch.Tensor]
    records: dict[str, int]
    config: dict[str, Any]
    classes: list[str]
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
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **{name: getattr(content, name) for name in ENTRIES}}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):
            raise  # torch's zip writer hides the disk's error behind its own; this is another one
        raise OSError(f"{path} cannot be written: {reason(error)}") from None
    if keep is not None and path.exists():
        os.replace(path, path.with_name(keep))
    os.replace(partial, path)
    _settle(path.parent)


def take_back(folder: Path) -> None:
    """Replaces a run's last checkpoint by the one before it."""
    before = folder / "checkpoints" / BEFORE
    if before.exists():
        os.replace(before, before.with_name(LAST))
        _settle(before.parent)


def _settle(folder: Path) -> None:
    """Flushes a folder's file names to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def last(folder: Path) -> tuple[Checkpoint, str]:
    """The last checkpoint of a run that can be read, and a note if it is not the last one written.

    Raises:
        CheckpointError: no checkpoint can be read: neither the last one, nor a complete one that was to replace it, nor
            the one before.
    """
    place = folder / "checkpoints"
    try:
        return load(place / LAST), ""
    except CheckpointError as error:
        for name, which in ((f"{LAST}.partial", "the one that was to follow it"), (BEFORE, "the one before it")):
            with suppress(CheckpointError):
                return load(place / name), f"{error}; going on from {which}, {place / name}"
        raise


def load(path: str | Path) -> Checkpoint:
    """Reads a run's checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, truncated, would need unpickling, is not one of ours, or of an earlier version.
    """
    content = read(path)
    if not is_ours(content):
        raise CheckpointError(f"{path} is not a checkpoint of optnet (format {FORMAT})")
    return parse(content, path)


def is_ours(content: Any) -> bool:
    """Whether what is in a file was written by optnet, of any version."""
    return isinstance(content, dict) and type(content.get("format")) is int


def parse(content: dict[str, Any], path: str | Path) -> Checkpoint:
    """What is in a file of ours, as a checkpoint.

    Raises:
        CheckpointError: an entry is missing, or the file is of another version.
    """
    version = content["format"]
    if version != FORMAT:
        which, advice = ("an earlier", "train anew") if version < FORMAT else ("a later", "update optnet")
        raise CheckpointError(
            f"{path} was written by {which} version of optnet (format {version}, this one reads {FORMAT}); {advice}, "
            f"or use that version"
        )
    if missing := [name for name in ENTRIES if name not in content]:
        raise CheckpointError(f"{path} is not a checkpoint of optnet (format {FORMAT}): it has no {missing[0]}")
    return Checkpoint(**{name: content[name] for name in ENTRIES})


def read(path: str | Path) -> Any:
    """The content of a file of weights (.safetensors, or torch's), on the CPU, whoever wrote it.

    Raises:
        CheckpointError: it is missing, truncated, or would need unpickling.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; a run keeps its own in RUN_FOLDER/checkpoints/best.pt")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # timm's own checkpoints hold their command line as a Namespace: attributes alone, nothing that runs
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch wonders about foreign pickles before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler stumble in any way
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({reason(error, 120)})") from None


def check_classes(content: Checkpoint, classes: Sequence[str], where: str) -> None:
    """Checks that the data has the classes that a checkpoint was trained on, with the same names in the same order.

    Raises:
        ConfigError: it has other classes.
    """
    trained, given = content.classes, list(classes)
    if len(trained) != len(given):
        raise ConfigError(f"{where} has {len(trained)} classes, but the data has {len(given)}")
    for number, (one, other) in enumerate(zip(trained, given, strict=True)):
        if one != other:
            raise ConfigError(f"{where} has other classes than the data: class {number} is {one}, not {other}")


def put(model: nn.Module, path: str | Path) -> None:
    """Loads the weights of a file that timm can read. Averaged weights come before plain ones.

    Raises:
        CheckpointError: they do not fit the model.
    """
    try:
        load_checkpoint(model, str(path))
    except Exception as error:
        raise CheckpointError(f"the weights of {path} do not fit the model: {_joined(error)}") from None


def describe(model: nn.Module, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What is needed to build ``model`` again without anybody's code: timm's name and arguments, and the programs."""
    kwargs = {key: value for key, value in kwargs.items() if key not in _STARTED_FROM}
    if isinstance(model, Network):
        kwargs = {key: value for key, value in kwargs.items() if key not in _TRACED}
        kwargs = {**kwargs, "algorithm": None, "programs": model.programs_json(), "layer": model.layer}
    return {"name": name, "kwargs": kwargs}


_STARTED_FROM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
_TRACED = ("algorithm", "constants", "coefficient_init", "reading", "transition")


def rebuild(content: Checkpoint) -> nn.Module:
    """The model of a checkpoint, with its weights. It is built from data alone: whatever the file says, no code of a
    user is run, and nothing is fetched.

    Raises:
        CheckpointError: it describes no model of ours or timm's, or the weights do not fit the one it describes.
    """
    return build(content.model, content.state_dict)


def build(described: Mapping[str, Any], state_dict: Mapping[str, Any]) -> nn.Module:
    """The model that ``describe`` described, with these weights. See ``rebuild``."""
    try:
        name, kwargs = described["name"], dict(described["kwargs"])
        if not timm.is_model(name):
            raise CheckpointError(f"the checkpoint's model '{str(name)[:80]}' is none of optnet's or timm's")
        kwargs = {key: value for key, value in kwargs.items() if key not in (*_STARTED_FROM, *_TRACED)}
        if name.partition(".")[0] in MODELS:
            kwargs["algorithm"] = None  # its programs, and they alone, say what it computes
        model: nn.Module = timm.create_model(name, **kwargs)
        model.load_state_dict(state_dict)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file may ask for anything
        raise CheckpointError(f"the checkpoint's weights do not fit its model: {_joined(error)}") from None
    return model


def _joined(error: Exception) -> str:
    """All lines of an error in one: torch names the weights that do not fit in those behind the first."""
    return reason(ValueError(" ".join(str(error).split()) or type(error).__name__), 200)
