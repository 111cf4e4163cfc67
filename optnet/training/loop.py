"""The training loop, the same for every trainer. Knows no options, files or model names."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from optnet.data import Loader
from optnet.options import number

LARGEST = sys.float_info.max
REFRESH = 0.2
"""Seconds between two calls of ``shown``. Between them the loss stays on the device."""


class Trainer(Protocol):
    """Trains a network batch by batch, by backpropagation or without it. The loop and the run know only this protocol.

    Attributes:
        model: the network whose forward pass is scored, checkpointed and described.
        full_batch: every step gets the whole training split, in its order, unaugmented and unshuffled.
    """

    model: nn.Module
    full_batch: bool

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update; returns (mean loss of the forward pass, number of correct answers), detached, on the device."""
        ...

    def scalars(self) -> dict[str, float]:
        """Further scalars to log at an epoch's end: tag -> value."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that resuming needs beside ``model.state_dict()``: plain containers and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Observer:
    """Watches a run, and may write to its logbook. Subclasses override the moments they need."""

    def on_start(self, progress: Progress, trainer: Trainer) -> None:
        """Before the first step. A resumed run has done ``progress.updates`` steps."""

    def on_step(self, progress: Progress, trainer: Trainer) -> None:
        """After every step; ``progress.updates`` are done."""

    def on_epoch(self, progress: Progress, trainer: Trainer) -> None:
        """After an epoch's last step, before it is scored; ``progress.epoch`` epochs are complete."""

    def on_end(self, summary: dict[str, Any], trainer: Trainer) -> None:
        """After the run's summary is known; the model has its best weights."""

    def close(self) -> None:
        """When the run ends, successfully or not."""


@dataclass
class Progress:
    """How far a run is: all that resuming needs besides the trainer's state and the random state.

    ``epoch`` epochs are complete; ``batch`` batches of the next one are done, with the sums of loss, right answers and
    seconds.
    """

    epoch: int = number(0, 0)
    batch: int = number(0, 0)
    updates: int = number(0, 0)
    loss_sum: float = number(0.0, -LARGEST, LARGEST)
    correct: int = number(0, 0)
    count: int = number(0, 0)
    epoch_seconds: float = number(0.0, 0, LARGEST)
    best: float = number(-1.0, -1, 100)
    best_loss: float = number(math.inf)
    best_epoch: int = number(0, 0)
    seconds: float = number(0.0, 0, LARGEST)
    images: int = number(0, 0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Diverged(RuntimeError):
    """The loss is not finite."""


def train_epoch(
    trainer: Trainer,
    loader: Loader,
    steps: int,
    progress: Progress,
    *,
    on_batch: Callable[[Progress], bool],
    shown: Callable[[Progress], None],
    observers: Sequence[Observer] = (),
) -> bool:
    """Trains from ``progress`` to the end of an epoch of ``steps`` steps. False: ``on_batch`` stopped it early.

    Args:
        shown: shows the progress, whose sums are settled.

    Raises:
        Diverged: the loss is not finite.
        ValueError: ``progress`` is beyond the epoch's end.
    """
    if progress.batch > steps:
        raise ValueError(f"{progress.batch} batches of an epoch of {steps} steps are done")
    started = last = time.perf_counter()
    pending: list[tuple[Tensor, Tensor, int]] = []

    def settle() -> None:
        """Moves the batches' sums to the host; the only place that waits for the device."""
        for step, (loss, right, count) in enumerate(pending, progress.updates - len(pending) + 1):
            if not math.isfinite(loss):
                raise Diverged(f"the loss is not finite at step {step}, in epoch {progress.epoch + 1}")
            progress.loss_sum += float(loss) * count
            progress.correct += int(right)
        pending.clear()

    if progress.batch == steps:
        return True
    with closing(loader.batches(progress.epoch, progress.batch)) as batches:
        for images, labels in batches:
            loss, right = trainer.step(images, labels)
            pending.append((loss, right, len(labels)))
            progress.batch += 1
            progress.updates += 1
            progress.count += len(labels)
            progress.images += len(labels)
            for observer in observers:
                observer.on_step(progress, trainer)
            stop = on_batch(progress) or progress.batch == steps
            now = time.perf_counter()
            if stop or now - last > REFRESH:
                settle()
                shown(progress)
                last = now
            if stop:
                break
    taken = time.perf_counter() - started
    progress.seconds += taken
    progress.epoch_seconds += taken
    return progress.batch == steps
