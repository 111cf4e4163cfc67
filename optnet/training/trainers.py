"""Trainers by name: from options to a trainer. A new trainer is one line of ``TRAINERS``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from optnet import lifted
from optnet.errors import CheckpointError, ConfigError, ModelError, RequestError, foreign, reason
from optnet.training.averaging import Recalibration, average
from optnet.training.backprop import Backpropagation, BackpropOptions
from optnet.training.course import Course
from optnet.training.environment import keeping_random_state
from optnet.training.loop import Observer, Trainer
from optnet.training.mixing import Mixing
from optnet.training.optimizers import OptimOptions, optimizer
from optnet.training.schedules import ScheduleOptions, schedule
from optnet.training.schema import alike


@dataclass(frozen=True)
class Recipe:
    """What a trainer is made from.

    Attributes:
        options: the trainer's own; one of the ``options`` classes of ``TRAINERS``.
        lr: the learning rate.
        seed: of what the trainer draws.
    """

    options: Any
    optim: OptimOptions
    schedule: ScheduleOptions
    lr: float
    seed: int


@dataclass(frozen=True)
class Kind:
    """One trainer.

    Attributes:
        options: the class of its options.
        build: makes it from (recipe, model, steps of the run in mini-batches).
        observers: what has to watch a run for this trainer, from (recipe, course).
        distributed: whether several processes can train one network with it.
        freezes: whether it leaves parameters alone that need no gradient.
    """

    options: type[Any]
    build: Callable[[Recipe, nn.Module, int], Trainer]
    observers: Callable[[Recipe, Course], list[Observer]] = lambda recipe, course: []
    distributed: bool = False
    freezes: bool = False


def _backprop(recipe: Recipe, model: nn.Module, steps: int) -> Trainer:
    options: BackpropOptions = recipe.options
    made = optimizer(recipe.optim, model, recipe.lr)
    mixing = None
    if options.mixup or options.cutmix:
        mixing = Mixing(
            cast(int, model.num_classes), mixup=options.mixup, cutmix=options.cutmix,
            probability=options.mix_probability, smoothing=options.label_smoothing, seed=recipe.seed,
        )  # fmt: skip
    start = round(options.average_start * steps)
    averaged = None if options.average == "none" else average(model, options.average, options.average_decay, start)
    return Backpropagation(
        model, made, schedule(recipe.schedule, made, steps), options, mixing=mixing, average=averaged
    )


def _recalibration(recipe: Recipe, course: Course) -> list[Observer]:
    options: BackpropOptions = recipe.options
    return [Recalibration(course, options.recalibrate)] if options.average != "none" and options.recalibrate else []


def _by_gradients(kind: type[lifted.LPOM]) -> Callable[[Recipe, nn.Module, int], Trainer]:
    """A lifted trainer that hands its gradients in the weights to the optimizer and the schedule."""

    def build(recipe: Recipe, model: nn.Module, steps: int) -> Trainer:
        made = optimizer(recipe.optim, model, recipe.lr)
        return kind(model, recipe.options, made, schedule(recipe.schedule, made, steps))

    return build


TRAINERS = {
    "backprop": Kind(BackpropOptions, _backprop, _recalibration, distributed=True, freezes=True),
    "lpom": Kind(lifted.LPOMOptions, _by_gradients(lifted.LPOM)),
    "penalty": Kind(lifted.PenaltyOptions, _by_gradients(lifted.Penalty)),
    "mac": Kind(lifted.MACOptions, lambda recipe, model, steps: lifted.MAC(model, recipe.options)),
    "bcd": Kind(lifted.BCDOptions, lambda recipe, model, steps: lifted.BCD(model, recipe.options)),
    "admm": Kind(lifted.ADMMOptions, lambda recipe, model, steps: lifted.ADMM(model, recipe.options)),
}


def build(recipe: Recipe, model: nn.Module, steps: int) -> Trainer:
    """The trainer of a model, for a run of so many steps (in mini-batches)."""
    return TRAINERS[recipe.options.name].build(recipe, model, steps)


def observers(recipe: Recipe, course: Course) -> list[Observer]:
    """What has to watch a run for its trainer."""
    return TRAINERS[recipe.options.name].observers(recipe, course)


def least_images(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """How many images of this shape a training batch must have: 2 where one is refused, else 1.

    Torch refuses one where a batch norm has one value per channel, as at a height and width of 1.
    """
    with keeping_random_state(torch.device("cpu")), torch.no_grad():
        try:
            copy.deepcopy(model).train()(torch.zeros(1, *shape))
        except Exception:  # timm's and anybody's models may have other reasons
            return 2
    return 1


def try_step(recipe: Recipe, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Trains a copy on two blank images, so that what cannot be trained is refused before a run begins.

    Raises:
        ConfigError: the trainer or its optimizer cannot be used so. ModelError: the model cannot take such images.
    """
    copied = copy.deepcopy(model).train()
    with keeping_random_state(torch.device("cpu")):
        with foreign(f"the model cannot be trained on images of {'x'.join(map(str, shape))}", ModelError):
            copied(torch.zeros(2, *shape))
        trainer = build(recipe, copied, 10)
        with foreign(f"trainer={recipe.options.name} with optim.name={recipe.optim.name} cannot be used", ConfigError):
            _step(trainer, 2, shape)


def try_state(recipe: Recipe, model: nn.Module, shape: tuple[int, int, int], state: Any, images: int) -> None:
    """Trains a copy on blank images, then once more from a stored state of its trainer.

    Args:
        images: in the training split.

    Raises:
        CheckpointError: the state is not one of such a trainer.
    """
    with keeping_random_state(torch.device("cpu")):
        trainer = build(recipe, copy.deepcopy(model).train(), 10)
        count = images if trainer.full_batch else 2
        _step(trainer, count, shape)
        alike(state, trainer.state_dict(), "trainer")
        try:
            trainer.load_state_dict(copy.deepcopy(state))
            _step(trainer, count, shape)
        except RequestError as error:
            raise CheckpointError(str(error)) from None
        except Exception as error:
            raise CheckpointError(f"its trainer's state cannot be used ({reason(error)})") from None


def _step(trainer: Trainer, images: int, shape: tuple[int, int, int]) -> None:
    with torch.compiler.set_stance("force_eager"):
        trainer.step(torch.zeros(images, *shape), torch.zeros(images, dtype=torch.long))
