"""Averages of the weights along a run, and the running statistics of their norms."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

from timm.utils import ModelEmaV3
from torch import nn

from optnet.networks.statistics import recompute
from optnet.training.course import Course
from optnet.training.environment import keeping_random_state
from optnet.training.loop import Observer, Progress, Trainer

AVERAGES = ("none", "ema", "polyak")


def average(model: nn.Module, kind: str, decay: float, start: int) -> ModelEmaV3:
    """A copy of ``model`` for the average of its weights; ``update(model, step)`` takes in step's weights.

    ``ema``: a_k = d_k a_{k-1} + (1 - d_k) w_k with d_k = min(decay, 1 - k^(-2/3)), buffers too (timm).
    ``polyak``: a_k = (w_1 + ... + w_k) / k (Polyak and Juditsky 1992); buffers are those of w_k.
    Both count k from the step ``start``; before it a = w.
    """
    if kind == "polyak":
        return ModelEmaV3(
            model, 1.0, update_after_step=start, use_warmup=True, warmup_gamma=1.0, warmup_power=1.0,
            exclude_buffers=True,
        )  # fmt: skip
    return ModelEmaV3(model, decay, update_after_step=start, use_warmup=True)


class Recalibration(Observer):
    """At an epoch's end, before it is scored, gives the trainer's model the running statistics of ``batches`` batches.

    The statistics along the run are not those of the averaged weights (Izmailov et al. 2018, section 3.2).
    """

    def __init__(self, course: Course, batches: int) -> None:
        self.course, self.batches = course, batches

    def on_epoch(self, progress: Progress, trainer: Trainer) -> None:
        made = self.course.loader(progress.epoch).batches(progress.epoch)
        device = next(trainer.model.parameters()).device
        with closing(made), keeping_random_state(device):  # for dropout
            recompute(trainer.model, (images for images, _ in islice(made, self.batches)))
