"""Checkpoints: tensors, plain containers and the Program as JSON. Written whole or not at all; loaded weights-only."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import load_checkpoint
from torch import nn

from optnet.errors import CheckpointError, ConfigError
from optnet.networks.network import Network
from optnet.networks.zoo import MODELS

FORMAT = 2
LAST, BEFORE, BEST = "last.pt", "previous.pt", "best.pt"
REQUIRED = {"model", "state_dict", "trainer", "progress", "rng", "records", "config", "classes"}


def save(path: Path, content: dict[str, Any], keep: str | None = None) -> None:
    """Writes a checkpoint beside its place and moves it there, so that no reader ever sees half of one.

    Args:
        keep: the name that the checkpoint which was there before goes on with.

    Raises:
        OSError: it cannot be written; the one that was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):
            raise  # torch's zip writer hides the disk's error behind its own; this is another one
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None
    if keep is not None and path.exists():
        os.replace(path, path.with_name(keep))
    os.replace(partial, path)
    _settle(path.parent)


def take_back(folder: Path) -> None:
    """Puts the run's checkpoint before the last one in the last one's place."""
    before = folder / "checkpoints" / BEFORE
    if before.exists():
        os.replace(before, before.with_name(LAST))
        _settle(before.parent)


def _settle(folder: Path) -> None:
    """Makes the disk keep the names of a folder's files, too."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def last(folder: Path) -> tuple[dict[str, Any], str]:
    """The last checkpoint of a run that can be read, and what has to be said about it, if anything.

    Raises:
        CheckpointError: neither the last one, nor a whole one that was to take its place, nor the one before it can be
            read.
    """
    place = folder / "checkpoints"
    try:
        return load(place / LAST), ""
    except CheckpointError as error:
        for name, which in ((f"{LAST}.partial", "the one that was to follow it"), (BEFORE, "the one before it")):
            with suppress(CheckpointError):
                return load(place / name), f"{error}; going on from {which}, {place / name}"
        raise


def load(path: str | Path) -> dict[str, Any]:
    """Reads a run's checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, truncated, would need unpickling, or is not one of ours.
    """
    content = read(path)
    if not is_ours(content):
        raise CheckpointError(f"{path} is not a checkpoint of optnet (format {FORMAT})")
    return content


def is_ours(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT and set(content) >= REQUIRED


def read(path: str | Path) -> Any:
    """What is in a file of weights (.safetensors, or torch's), on the CPU, whoever wrote it.

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
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({reason[0][:120]})") from None


def check_classes(content: dict[str, Any], classes: Sequence[str], where: str) -> None:
    """Whether data has the classes that a run's checkpoint was trained on, by their names and in their order.

    Raises:
        ConfigError: it has others.
    """
    trained, given = content["classes"], list(classes)
    if len(trained) != len(given):
        raise ConfigError(f"{where} has {len(trained)} classes, but the data has {len(given)}")
    for number, (one, other) in enumerate(zip(trained, given, strict=True)):
        if one != other:
            raise ConfigError(f"{where} has other classes than the data: class {number} is {one}, not {other}")


def put(model: nn.Module, path: str | Path) -> None:
    """Loads the weights of a file that timm can read; of averaged and plain ones, the averaged.

    Raises:
        CheckpointError: they do not fit the model.
    """
    try:
        load_checkpoint(model, str(path))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the weights of {path} do not fit the model: {reason}") from None


def describe(model: nn.Module, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What is needed to build ``model`` again without anybody's code: timm's name and arguments, and the programs."""
    kwargs = {key: value for key, value in kwargs.items() if key not in _STARTED_FROM}
    if isinstance(model, Network):
        kwargs = {key: value for key, value in kwargs.items() if key not in _TRACED}
        kwargs = {**kwargs, "algorithm": None, "programs": model.programs_json(), "layer": model.layer}
    return {"name": name, "kwargs": kwargs}


_STARTED_FROM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
_TRACED = ("algorithm", "constants", "coefficient_init", "reading", "transition")


def rebuild(content: dict[str, Any]) -> nn.Module:
    """The model of a checkpoint, with its weights. Whatever the file says, it is built from data: nobody's file is run,
    and nothing is fetched.

    Raises:
        CheckpointError: it describes no model of ours or timm's, or the weights do not fit the one it describes.
    """
    try:
        name, kwargs = content["model"]["name"], dict(content["model"]["kwargs"])
        if not timm.is_model(name):
            raise CheckpointError(f"the checkpoint's model '{str(name)[:80]}' is none of optnet's or timm's")
        kwargs = {key: value for key, value in kwargs.items() if key not in (*_STARTED_FROM, *_TRACED)}
        if name.partition(".")[0] in MODELS:
            kwargs["algorithm"] = None  # its programs, and they alone, say what it computes
        model: nn.Module = timm.create_model(name, **kwargs)
        model.load_state_dict(content["state_dict"])
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file may ask for anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"the checkpoint's weights do not fit its model: {reason}") from None
    return model
