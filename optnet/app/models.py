"""The model of a configuration. Trains nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from torch import nn

from optnet.app.config import Model
from optnet.errors import AlgorithmError, ConfigError, ModelError, RequestError, did_you_mean, reason


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
    if not timm.is_model(config.name):
        near = did_you_mean(config.name, timm.list_models()) or "; see optnet.list_models() and timm.list_models()"
        raise ModelError(f"unknown model '{config.name}'{near}")
    kwargs = {key: value for key, value in vars(config).items() if value is not None and key not in ("name", "kwargs")}
    kwargs.update(config.kwargs, num_classes=classes, in_chans=shape[0])
    if sized and getattr(_pretrained(config.name), "fixed_input_size", False):
        kwargs.setdefault("img_size", shape[1:])
    constants = {key: value for key, value in algorithm.items() if key != "name" and value is not None}
    if algorithm.get("name"):
        kwargs = {"layer": None, "reading": None, **kwargs, "algorithm": algorithm["name"]}
    if constants:
        kwargs["constants"] = constants
    file = kwargs.get("checkpoint_path")
    if file and not Path(str(file)).is_file():
        raise ModelError(f"model.kwargs.checkpoint_path={file}: there is no such file")
    try:
        with _silent():
            return timm.create_model(config.name, **kwargs), kwargs
    except AlgorithmError as error:
        raise ConfigError(f"algorithm={algorithm.get('name') or config.name}: {error}") from None
    except RequestError:
        raise
    except TypeError as error:
        raise ModelError(f"model={config.name} does not take an option that is set: {reason(error)}") from None
    except Exception as error:  # anybody's model may raise anything
        raise ModelError(f"model={config.name}: {reason(error)}") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps timm's and the hub's log messages to themselves: an error says in one line what they said in many."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _pretrained(name: str) -> Any:
    """What timm knows of a model's weights; None of a model that somebody registered without.

    Raises:
        ModelError: there are no such weights.
    """
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(f"model={name}: {reason(error)}") from None
