"""What is evaluated: a model by name, the checkpoint of a run, or a file of weights and the name of their model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from optnet.app import models
from optnet.app.config import Evaluate, Model
from optnet.data import DataOptions, DataRecord, DataSet, Loader, load_as
from optnet.errors import CheckpointError, ConfigError, ModelError, reason
from optnet.options import check
from optnet.training import checkpoint


@dataclass
class Subject:
    """A model with the data that it is evaluated on.

    Attributes:
        kind: ``checkpoint`` or ``model``.
        loading: how ``data`` is read: as asked for, else as in the checkpoint's training.
        changed: how the split differs from what it was when the model was trained; empty if it does not.
        transform: of images in files, as timm evaluates this model; None: as they were for its training.
    """

    kind: str
    name: str
    model: nn.Module
    data: DataSet
    loading: DataOptions
    transform: Callable[[Any], torch.Tensor] | None
    changed: str = ""

    def loader(self, config: Evaluate, device: torch.device) -> Loader:
        return self.data.loader(
            config.split, config.batch_size, device=device, workers=self.loading.workers,
            skip=self.loading.skip, transform=self.transform,
        )  # fmt: skip

    @torch.no_grad()
    def try_forward(self, split: str) -> None:
        """Scores a blank image, so that what cannot be evaluated is refused before anything is scored.

        Raises:
            ModelError: the model cannot take images of this data.
        """
        image = torch.zeros(self.data.shape)
        if self.transform is not None and _in_files(self.data, split):
            image = self.transform(Image.new("RGB", self.data.shape[:0:-1]))
        try:
            self.model.eval()(image[None])
        except Exception as error:
            size, why = "x".join(map(str, image.shape)), reason(error)
            raise ModelError(f"{self.kind}={self.name} cannot be evaluated on images of {size}: {why}") from None


def _in_files(data: DataSet, split: str) -> bool:
    return not isinstance(getattr(data, split).images, torch.Tensor)


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
    saved = checkpoint.parse(content, file)
    model = checkpoint.rebuild(saved)
    try:
        loading = config.data or replace(DataOptions(**saved.config["data"]), download=False)
        check(loading, "data.", CheckpointError)
        data = load_as(loading, int(saved.config["seed"]), training=False)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not say which data it was trained on ({error})") from None
    checkpoint.check_classes(saved, data.classes, file)
    then = DataRecord.from_dict(saved.data)
    changed = data.changes(then, (config.split,)) if then.name == data.name else ""
    return Subject("checkpoint", file, model, data, loading, None, changed)


def of_name(config: Evaluate, name: str) -> Subject:
    """A registered model, ours or timm's, with its published weights if they are asked for.

    Examples in files are brought to the size the model is made for; images in memory are what they are.

    Raises:
        ConfigError: the published weights are for another number of classes. ModelError: see ``models.build``.
    """
    loading = config.data or DataOptions()
    data = load_as(loading, config.seed, training=False)
    torch.manual_seed(config.seed)
    kwargs = {"pretrained": True} if config.pretrained else {}
    known = timm.get_pretrained_cfg_value(name, "num_classes") if timm.is_model_pretrained(name) else None
    if config.pretrained and known not in (None, len(data.classes)):
        raise ConfigError(
            f"pretrained=true: the published weights of model={name} are for {known} classes, and {data.name} has "
            f"{len(data.classes)}; try data=imagenet"
        )
    sized = not _in_files(data, config.split)
    model, _ = models.build(Model(name, kwargs=kwargs), {}, len(data.classes), data.shape, sized=sized)
    return Subject("model", name, model, data, loading, timms_transform(model))


def timms_transform(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    """Resize, crop, interpolation, mean and deviation of a model's configuration, as timm's validate.py has them."""
    resolved = resolve_data_config({}, model=model, use_test_size=True)
    made: Callable[[Any], torch.Tensor] = create_transform(**resolved)
    return made
