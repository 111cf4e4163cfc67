"""Learning rates along a run: timm's schedules by name, with their options. Knows no trainer and no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer

from optnet.errors import ConfigError, foreign
from optnet.options import choice, number, option
from optnet.training.course import check_rising

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")


@dataclass
class ScheduleOptions:
    """The schedule of the learning rate, stepped once an update. All lengths are parts of the run."""

    name: str = choice("cosine", *SCHEDULES, help="the schedule, by timm's name")
    warmup: float = number(0.05, 0, 0.9, help="the part of the run in which the rate rises from 0")
    min_lr: float = number(0, 0, help="the rate at the end")
    milestones: list[float] = option(
        factory=lambda: [0.5, 0.75], help="the parts of the run after which multistep multiplies the rate by factor"
    )
    decay: float = number(0.2, high=1, above=0, help="the interval of step; the last phase of wsd and rsqrt")
    factor: float = number(0.1, high=1, above=0, help="what step and multistep multiply the rate by")
    power: float = number(1.0, above=0, help="the power of poly")
    cycles: int = number(1, 1, help="cycles of cosine, tanh and poly, each from the full rate")

    def check(self) -> None:
        """Raises:
        ConfigError: the milestones do not rise between 0 and 1.
        """
        check_rising("schedule.milestones", self.milestones)


def schedule(options: ScheduleOptions, optimizer: Optimizer, updates: int) -> Any:
    """timm's schedule for an optimizer, over so many updates."""
    warmup = round(options.warmup * updates)
    left = max(1, updates - warmup)
    with foreign(f"schedule.name={options.name}", ConfigError):
        scheduler, _ = create_scheduler_v2(
            optimizer, sched=options.name, num_epochs=max(1, left // options.cycles), min_lr=options.min_lr,
            warmup_lr=0.0, decay_milestones=[round(part * updates) for part in options.milestones],
            decay_epochs=max(1, round(options.decay * (updates if options.name == "step" else left))),
            decay_rate=options.power if options.name == "poly" else options.factor, cycle_limit=options.cycles,
            cycle_decay=1.0,
            warmup_epochs=warmup, warmup_prefix=options.name in ("cosine", "tanh", "poly", "wsd", "rsqrt"),
            step_on_epochs=False, updates_per_epoch=1,
        )  # fmt: skip
    return scheduler
