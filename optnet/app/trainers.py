"""Trainers by name: the one place where a configuration becomes a trainer. A new trainer is one line of TRAINERS."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError
from torch import nn

from optnet import lifted
from optnet.app import setup
from optnet.app.config import Backprop, Train
from optnet.errors import ConfigError, ModelError, RequestError
from optnet.options import example
from optnet.training.averaging import Recalibration, average
from optnet.training.backprop import PRECISIONS, Backpropagation
from optnet.training.course import Course
from optnet.training.loop import Observer, Trainer
from optnet.training.mixing import Mixing

Build = Callable[[Train, nn.Module, int], Trainer]
Watch = Callable[[Train, Trainer, Course], list[Observer]]


@dataclass(frozen=True)
class Kind:
    """One trainer.

    Attributes:
        options: the schema of ``conf/trainer/NAME.yaml``.
        build: makes it from (config, model, steps of the run in mini-batches).
        observers: what has to watch a run for this trainer's sake, from (config, trainer, course).
        distributed: whether several processes can train one network with it.
    """

    options: type[Any]
    build: Build
    observers: Watch = lambda config, trainer, course: []
    distributed: bool = False


def _backprop(config: Train, model: nn.Module, steps: int) -> Trainer:
    options: Backprop = config.trainer
    made = setup.optimizer(config.optim, model, config.lr)
    mixing = None
    if options.mixup or options.cutmix:
        mixing = Mixing(
            cast(int, model.num_classes), mixup=options.mixup, cutmix=options.cutmix,
            probability=options.mix_probability, smoothing=options.label_smoothing, seed=config.seed,
        )  # fmt: skip
    start = round(options.average_start * steps)
    averaged = None if options.average == "none" else average(model, options.average, options.average_decay, start)
    return Backpropagation(
        model, made, setup.schedule(config.schedule, made, steps), precision=PRECISIONS[options.precision],
        parts=options.accumulate, clip=options.clip, clip_mode=options.clip_mode, smoothing=options.label_smoothing,
        mixing=mixing, average=averaged, channels_last=options.channels_last, compiled=options.compile,
    )  # fmt: skip


def _backprop_observers(config: Train, trainer: Trainer, course: Course) -> list[Observer]:
    options: Backprop = config.trainer
    return [Recalibration(course, options.recalibrate)] if options.average != "none" and options.recalibrate else []


def _by_gradients(kind: type[lifted.LPOM]) -> Build:
    """A lifted trainer whose gradients in the weights go to the optimizer and schedule that are configured."""

    def build(config: Train, model: nn.Module, steps: int) -> Trainer:
        made = setup.optimizer(config.optim, model, config.lr)
        return kind(model, config.trainer, made, setup.schedule(config.schedule, made, steps))

    return build


TRAINERS = {
    "backprop": Kind(Backprop, _backprop, _backprop_observers, distributed=True),
    "lpom": Kind(lifted.LPOMOptions, _by_gradients(lifted.LPOM)),
    "penalty": Kind(lifted.PenaltyOptions, _by_gradients(lifted.Penalty)),
    "mac": Kind(lifted.MACOptions, lambda config, model, steps: lifted.MAC(model, config.trainer)),
    "bcd": Kind(lifted.BCDOptions, lambda config, model, steps: lifted.BCD(model, config.trainer)),
    "admm": Kind(lifted.ADMMOptions, lambda config, model, steps: lifted.ADMM(model, config.trainer)),
}


def typed(schema: type[Any], content: Any) -> Any:
    """A composed or stored configuration as objects, its trainer's options among them; every type is checked.

    Raises:
        ConfigError: there is no such trainer, or a value is of the wrong type. OmegaConfBaseException: an unknown key.
    """
    base = OmegaConf.structured(schema)
    if "trainer" in base:
        name = OmegaConf.select(content, "trainer.name")
        if name not in TRAINERS:
            raise ConfigError(f"trainer.name={name} is unknown; it is one of {', '.join(TRAINERS)}")
        base.trainer = OmegaConf.structured(TRAINERS[name].options)
    try:
        return OmegaConf.to_object(OmegaConf.merge(base, content))
    except ValidationError as error:
        raise wrong_type(error, OmegaConf.to_object(base)) from None


def wrong_type(error: ValidationError, defaults: Any) -> ConfigError:
    """Names the key, the value that is of the wrong type, and one of the right type."""
    key, value = str(error.full_key), getattr(error, "value", "")
    return ConfigError(f"{key}={value} is of the wrong type; give one like {example(defaults, key)}")


def build(config: Train, model: nn.Module, steps: int) -> Trainer:
    """The configured trainer of a model, for a run of so many steps (in mini-batches)."""
    return TRAINERS[config.trainer.name].build(config, model, steps)


def observers(config: Train, trainer: Trainer, course: Course) -> list[Observer]:
    """What has to watch a run for its trainer's sake."""
    return TRAINERS[config.trainer.name].observers(config, trainer, course)


def try_step(config: Train, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Trains a copy on two blank images, so that what cannot be trained is refused before a run begins.

    Raises:
        ConfigError: the trainer or its optimizer cannot be used so. ModelError: the model cannot take such images.
    """
    copied = copy.deepcopy(model).train()
    rng = torch.get_rng_state()
    images = torch.zeros(2, *shape)
    try:
        copied(images)
    except Exception as error:
        size = "x".join(map(str, shape))
        raise ModelError(f"the model cannot be trained on images of {size}: {str(error).splitlines()[0]}") from None
    trainer = build(config, copied, 10)
    try:
        with torch.compiler.set_stance("force_eager"):
            trainer.step(images, torch.zeros(2, dtype=torch.long))
    except RequestError:
        raise
    except Exception as error:
        given = f"trainer={config.trainer.name} with optim.name={config.optim.name}"
        raise ConfigError(f"{given} cannot be used: {str(error).splitlines()[0]}") from None
    torch.set_rng_state(rng)
