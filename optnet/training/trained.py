"""A trained model, ready for use, from its checkpoint. Trains nothing and fetches nothing."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch import nn

from optnet.data import Preprocessing
from optnet.training import checkpoint
from optnet.training.weights import best_of


def load(path: str | PathLike[str]) -> nn.Module:
    """The model of a checkpoint that train.py wrote, with its weights, on the CPU and in evaluation mode.

    It is built from data alone: no file of a user's algorithm is run. Nothing is unpickled or fetched.

    Args:
        path: a file like ``runs/.../checkpoints/best.pt``, or a run's folder: then its best checkpoint.

    Returns:
        One of our models or timm's. Its ``preprocess``, a torchvision transform, turns a Pillow image of any size and
        mode into the model's input (channels, height, width), as in its training. ``classes`` are the names of its
        outputs, in order. ``pretrained_cfg`` says the same in timm's words.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of optnet of this version.
    """
    content = checkpoint.load(best_of(path))
    model: Any = checkpoint.rebuild(content).eval()
    model.preprocess = Preprocessing(**content.preprocessing).transform()
    model.classes = tuple(content.classes)
    made: nn.Module = model
    return made
