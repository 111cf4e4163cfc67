"""The model of a configuration. Trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.layers import create_norm
from torch import nn

from optnet.app.config import Model
from optnet.errors import AlgorithmError, ConfigError, ModelError, foreign, unknown
from optnet.networks import zoo
from optnet.networks.layers.style import ACTIVATIONS
from optnet.training import weights
from optnet.training.environment import silent

LAYERS = {
    "act_layer": ACTIVATIONS,
    "norm_layer": tuple(create_norm._NORM_MAP),
}
"""The layers that timm's models take by name."""

FIXED = {
    "num_classes": "the data says how many classes there are",
    "in_chans": "the data says how many channels its images have",
    "features_only": "a classifier is trained and scored",
}
"""What timm.create_model gets from somewhere else."""


def build(
    config: Model, algorithm: dict[str, Any], classes: int, shape: tuple[int, int, int], *, sized: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a configuration and the arguments it was made with.

    A model of a fixed image size (timm says which) gets the size of these images, ``shape[1:]``; without ``sized`` it
    keeps its own.

    Raises:
        ModelError: there is no such model, or it does not take an option that is set.
        ConfigError: the algorithm cannot be found or traced.
    """
    _check_name(config.name)
    for key, why in FIXED.items():
        if key in config.kwargs:
            raise ModelError(f"model.kwargs.{key}={config.kwargs[key]} cannot be set: {why}")
    kwargs = {key: value for key, value in vars(config).items() if value is not None and key not in ("name", "kwargs")}
    kwargs.update(config.kwargs, num_classes=classes, in_chans=shape[0])
    if sized and getattr(_pretrained(config.name), "fixed_input_size", False):
        kwargs.setdefault("img_size", shape[1:])
    constants = {key: value for key, value in algorithm.items() if key != "name" and value is not None}
    if algorithm.get("name"):
        if not zoo.has_algorithm(config.name):
            raise ModelError(
                f"algorithm={algorithm['name']} does not go with model={config.name}, which has no algorithm; "
                "it goes with the models that optnet list shows, but not mlp"
            )
        kwargs["algorithm"] = algorithm["name"]
    if constants:
        kwargs["constants"] = constants
    file = kwargs.get("checkpoint_path")
    if file and not Path(str(file)).is_file():
        raise ModelError(f"model.kwargs.checkpoint_path={file}: there is no such file")
    try:
        with silent(), foreign(f"model={config.name}", ModelError):
            try:
                model = timm.create_model(config.name, **{**kwargs, "checkpoint_path": None} if file else kwargs)
            except (KeyError, AssertionError):
                _check_layers(kwargs, f"model={config.name}: ")
                raise
    except AlgorithmError as error:
        raise ConfigError(f"algorithm={algorithm.get('name') or config.name}: {error}") from None
    if file:
        weights.put(model, weights.read(str(file)), f"model.kwargs.checkpoint_path={file}")
    return model, kwargs


def _check_layers(kwargs: dict[str, Any], where: str) -> None:
    """Raises:
    ModelError: timm has no activation or norm of such a name.
    """
    for key, known in LAYERS.items():
        word = kwargs.get(key)
        if isinstance(word, str) and word.replace("_", "").lower() not in {name.replace("_", "") for name in known}:
            raise ModelError(where + unknown(key, word, known))


def _check_name(name: str) -> None:
    """Raises:
    ModelError: timm has no such model, or not with such weights.
    """
    if not timm.is_model(name):
        raise ModelError(unknown("model", name, timm.list_models()))
    architecture, _, tag = name.partition(".")
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise ModelError(unknown("model", name, known) if known else f"model={name}: {architecture} has no weights")


def _pretrained(name: str) -> Any:
    """What timm knows of a model's weights; None of a model that somebody registered without.

    Raises:
        ModelError: there are no such weights.
    """
    with foreign(f"model={name}", ModelError):
        return timm.get_pretrained_cfg(name)
