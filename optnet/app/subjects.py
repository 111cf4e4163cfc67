"""What is evaluated: a model by name, the checkpoint of a run, or a file of weights and the name of their model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import timm
import torch
from torch import nn

from optnet.app import models
from optnet.app.config import Evaluate, Model
from optnet.data import DataOptions, DataRecord, DataSet, Loader, Preprocessing, load_as
from optnet.errors import CheckpointError, ConfigError, DataError, ModelError, foreign
from optnet.options import check
from optnet.training import checkpoint, weights


@dataclass
class Subject:
    """A model with the data that it is evaluated on.

    Attributes:
        kind: ``checkpoint`` or ``model``.
        data: with the preprocessing of the model's training, except for what this command states.
        loading: how ``data`` is read: as asked for, else as in the checkpoint's training.
        said: how that differs from the data set's own, or from the model's training; empty if it does not.
        changed: how the split differs from what it was when the model was trained; empty if it does not.
    """

    kind: str
    name: str
    model: nn.Module
    data: DataSet
    loading: DataOptions
    said: str
    changed: str = ""

    def loader(self, config: Evaluate, device: torch.device) -> Loader:
        return self.data.loader(
            config.split, config.batch_size, device=device, workers=self.loading.workers, skip=self.loading.skip
        )

    @torch.no_grad()
    def try_forward(self) -> None:
        """Scores a blank image, so that what cannot be evaluated is refused before anything is scored.

        Raises:
            ModelError: the model cannot take images of this data.
        """
        size = "x".join(map(str, self.data.shape))
        with foreign(f"{self.kind}={self.name} cannot be evaluated on images of {size}", ModelError):
            self.model.eval()(torch.zeros(1, *self.data.shape))


def _data(loading: DataOptions, seed: int) -> DataSet:
    with foreign(f"data={loading.name}", DataError):
        return load_as(loading, seed, training=False)


def of_checkpoint(config: Evaluate, file: str, name: str | None, stated: Collection[str] = ()) -> Subject:
    """The model of a run's checkpoint (of a run's folder: its best), or ``name`` with weights of anybody.

    Args:
        stated: the keys that the command line states; see ``DataOptions.stated``.

    Raises:
        CheckpointError: the file is missing, would need unpickling, or its weights do not fit.
        ConfigError: the data has other classes than those it was trained on.
    """
    file = str(weights.best_of(file))
    content = weights.read(file)
    if not weights.is_ours(content):
        name = name or (content.get("arch") if isinstance(content, dict) else None)
        if not isinstance(name, str):
            raise CheckpointError(
                f"{file} is not a checkpoint of optnet (format {checkpoint.FORMAT}); "
                "if it holds a model's weights, say which model's: model=NAME"
            )
        subject = of_name(config, name, stated)
        weights.put(subject.model, content, file)
        return replace(subject, kind="checkpoint", name=file)
    if name is not None:
        raise CheckpointError(f"{file} says itself which model it is of; leave out model={name}")
    saved = checkpoint.parse(content, file)
    model = checkpoint.rebuild(saved)
    try:
        loading = config.data or replace(DataOptions(**saved.config["data"]), download=False)
        check(loading, "data.", CheckpointError)
        data = _data(loading, int(saved.config["seed"]))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not say which data it was trained on ({error})") from None
    checkpoint.check_classes(saved, data.classes, file)
    then = DataRecord.from_dict(saved.data)
    changed = data.changes(then, (config.split,)) if then.name == data.name else ""
    prepared, said = data.as_trained(Preprocessing(**saved.preprocessing), loading, stated)
    return Subject("checkpoint", file, model, prepared, loading, said, changed)


def of_name(config: Evaluate, name: str, stated: Collection[str] = ()) -> Subject:
    """A registered model, ours or timm's, with its published weights if they are asked for.

    Examples in files are brought to the size the model is made for; images in memory are what they are.

    Raises:
        ConfigError: the published weights are for another number of classes. ModelError: see ``models.build``.
    """
    loading = config.data or DataOptions()
    data = _data(loading, config.seed)
    torch.manual_seed(config.seed)
    kwargs = {"pretrained": True} if config.pretrained else {}
    known = timm.get_pretrained_cfg_value(name, "num_classes") if timm.is_model_pretrained(name) else None
    if config.pretrained and known not in (None, len(data.classes)):
        raise ConfigError(
            f"pretrained=true: the published weights of model={name} are for {known} classes, and {data.name} has "
            f"{len(data.classes)}; try data=imagenet"
        )
    model, _ = models.build(Model(name, kwargs=kwargs), {}, len(data.classes), data.shape, sized=data.in_memory)
    said = ""
    if not data.in_memory:
        data, said = data.as_trained(Preprocessing.of(model), loading, stated, "timm evaluates it")
    return Subject("model", name, model, data, loading, said)
