"""What is evaluated: a model by name, a checkpoint of a run, or weights with the name of the model that they are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.data import create_transform, resolve_data_config
from torch import nn

from optnet.data import DataSet, Loader
from optnet.errors import CheckpointError
from optnet.training import checkpoint, setup
from optnet.training.config import Data, Evaluate, Model


@dataclass
class Subject:
    """A model with the data that it is evaluated on.

    Attributes:
        kind: ``checkpoint`` or ``model``.
        data_config: how ``data`` is read: as asked for, else as in the checkpoint's training.
        transform: of pictures in files, as timm evaluates this model; None: as they were for its training.
    """

    kind: str
    name: str
    model: nn.Module
    data: DataSet
    data_config: Data
    transform: Callable[[Any], torch.Tensor] | None

    def loader(self, config: Evaluate, device: torch.device) -> Loader:
        return self.data.loader(
            config.split, config.batch_size, device=device, workers=self.data_config.workers,
            skip=self.data_config.unreadable == "skip", transform=self.transform,
        )  # fmt: skip


def of_checkpoint(config: Evaluate, file: str, name: str | None) -> Subject:
    """The model of a run's checkpoint, or ``name`` with the weights of timm's or anybody's, .safetensors too.

    Raises:
        CheckpointError: the file is missing, would need unpickling, or its weights do not fit.
        ConfigError: the data has other classes than those it was trained on.
    """
    content = checkpoint.read(file)
    if not checkpoint.is_ours(content):
        name = name or (content.get("arch") if isinstance(content, dict) else None)
        if not isinstance(name, str):
            raise CheckpointError(
                f"{file} is not a checkpoint of optnet (format {checkpoint.FORMAT}); "
                "if it holds a model's weights, say which model's: model=NAME"
            )
        subject = of_name(config, name)
        checkpoint.put(subject.model, file)
        return replace(subject, kind="checkpoint", name=file)
    if name is not None:
        raise CheckpointError(f"{file} says itself which model it is of; leave out model={name}")
    model = checkpoint.rebuild(content)
    try:
        data_config = config.data or Data(**content["config"]["data"])
        data = setup.data(data_config, int(content["config"]["seed"]), training=False)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not say which data it was trained on ({error})") from None
    checkpoint.check_classes(content, data.classes, file)
    return Subject("checkpoint", file, model, data, data_config, None)


def of_name(config: Evaluate, name: str) -> Subject:
    """A registered model, ours or timm's, with its published weights if they are asked for."""
    data_config = config.data or Data()
    data = setup.data(data_config, config.seed, training=False)
    torch.manual_seed(config.seed)
    kwargs = {"pretrained": True} if config.pretrained else {}
    model, _ = setup.model(Model(name, kwargs=kwargs), {}, len(data.classes), data.shape)
    return Subject("model", name, model, data, data_config, timms_transform(model))


def timms_transform(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    """Resize, crop, interpolation, mean and deviation of a model's configuration, as timm's validate.py has them."""
    resolved = resolve_data_config({}, model=model, use_test_size=True)
    made: Callable[[Any], torch.Tensor] = create_transform(**resolved)
    return made
