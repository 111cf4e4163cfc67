"""Trainers by name: the one place where a configuration becomes a trainer. A new trainer is one line of TRAINERS."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from optnet.errors import ConfigError, ModelError, RequestError
from optnet.training import setup
from optnet.training.backprop import Backpropagation
from optnet.training.config import Backprop, Train
from optnet.training.loop import Trainer


@dataclass(frozen=True)
class Kind:
    """A trainer's options, the schema of ``conf/trainer/NAME.yaml``, and how it is built: (config, model, steps)."""

    options: type[Any]
    build: Callable[[Train, nn.Module, int], Trainer]


def _backprop(config: Train, model: nn.Module, steps: int) -> Trainer:
    optimizer = setup.optimizer(config.optim, model, config.lr)
    return Backpropagation(model, optimizer, setup.schedule(config.schedule, optimizer, steps))


TRAINERS = {"backprop": Kind(Backprop, _backprop)}


def typed(schema: type[Any], content: Any) -> Any:
    """A composed or stored configuration as objects, its trainer's options among them; every type is checked.

    Raises:
        ConfigError: there is no such trainer. OmegaConfBaseException: a key or a value's type does not fit.
    """
    base = OmegaConf.structured(schema)
    if "trainer" in base:
        name = OmegaConf.select(content, "trainer.name")
        if name not in TRAINERS:
            raise ConfigError(f"trainer.name={name} is unknown; it is one of {', '.join(TRAINERS)}")
        base.trainer = OmegaConf.structured(TRAINERS[name].options)
    return OmegaConf.to_object(OmegaConf.merge(base, content))


def build(config: Train, model: nn.Module, steps: int) -> Trainer:
    """The configured trainer of a model, for a run of so many steps."""
    return TRAINERS[config.trainer.name].build(config, model, steps)


def try_step(config: Train, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Trains a copy on two blank pictures, so that what cannot be trained is refused before a run begins.

    Raises:
        ConfigError: the trainer or its optimizer cannot be used so. ModelError: the model cannot take such pictures.
    """
    copied = copy.deepcopy(model).train()
    rng = torch.get_rng_state()
    images = torch.zeros(2, *shape)
    try:
        copied(images)
    except Exception as error:
        size = "x".join(map(str, shape))
        raise ModelError(f"the model cannot be trained on pictures of {size}: {str(error).splitlines()[0]}") from None
    trainer = build(config, copied, 1)
    try:
        trainer.step(images, torch.zeros(2, dtype=torch.long))
    except RequestError:
        raise
    except Exception as error:
        given = f"trainer={config.trainer.name} with optim.name={config.optim.name}"
        raise ConfigError(f"{given} cannot be used: {str(error).splitlines()[0]}") from None
    torch.set_rng_state(rng)
