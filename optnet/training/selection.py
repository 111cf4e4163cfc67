"""Which epoch a run keeps: the best one on the validation split, or without such a split the newest. Scores nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from optnet.training.loop import Diverged, Progress
from optnet.training.scoring import Score


@dataclass(frozen=True)
class Verdict:
    """Of an epoch.

    Attributes:
        kept: whether it is the one to keep, so far.
        scalars: of its validation, by TensorBoard's tags; empty without a validation split.
        said: the same for the screen.
    """

    kept: bool
    scalars: dict[str, float] = field(default_factory=dict)
    said: str = ""


def judge(score: Score | None, progress: Progress, model: nn.Module) -> Verdict:
    """The verdict on the epoch that ``progress`` has completed; it notes there which epoch is kept.

    Args:
        score: on the validation split; None without one. The test split never takes its place.
        model: what is scored.

    Raises:
        Diverged: the validation loss, or without one a weight, is not finite.
    """
    where = f"after step {progress.updates}, epoch {progress.epoch}"
    if score is None:
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise Diverged(f"a weight is not finite {where}")
        progress.best_epoch = progress.epoch
        return Verdict(kept=True)
    if not score.loss < float("inf"):
        raise Diverged(f"the validation loss is not finite {where}")
    kept = (score.top1, -score.loss) > (progress.best, -progress.best_loss)  # of equal ones, the surer
    if kept:
        progress.best, progress.best_loss, progress.best_epoch = score.top1, score.loss, progress.epoch
    scalars = {"validation/loss": score.loss, "validation/top1": score.top1, "validation/top5": score.top5}
    said = f"  validation loss {score.loss:.4f} top-1 {score.top1:.2f} %" + ("  *" if kept else "")
    return Verdict(kept, scalars, said)
