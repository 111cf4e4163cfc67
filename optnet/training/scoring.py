"""The one evaluation: a model's score on every image of a loader. Writes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optnet.data import Loader
from optnet.data.loading import unreadable
from optnet.errors import DataError
from optnet.networks.modes import mode
from optnet.training import distributed

BINS = 15
"""Of the calibration error, as in Guo, Pleiss, Sun, Weinberger 2017."""


@dataclass(frozen=True)
class Score:
    """An evaluation: accuracies in per cent, the mean cross-entropy in nats, and counts.

    Attributes:
        confusion: (classes, classes) counts; row the label, column the answer.
        calibration_error: sum_b n_b / n |accuracy_b - confidence_b| over 15 equal bins of the confidence (Guo et al.
            2017, eq. (3)).
    """

    top1: float
    top5: float
    loss: float
    count: int
    correct: int
    confusion: Tensor
    calibration_error: float

    @property
    def per_class(self) -> list[float]:
        """The accuracy of each class in per cent; nan where it has no image."""
        hits, totals = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [100 * hit / total if total else math.nan for hit, total in zip(hits, totals, strict=True)]


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, classes: int) -> Score:
    """Scores a model on every image of a loader, in evaluation mode; several processes score the whole together.

    Raises:
        DataError: an image cannot be read, or none where they are skipped. RequestError: another process cannot read
            one of its share.
    """
    loss = torch.zeros((), dtype=torch.float64)
    confusion, top5 = torch.zeros(classes * classes, dtype=torch.long), torch.zeros((), dtype=torch.long)
    bins = torch.zeros(BINS, 2, dtype=torch.float64)  # sums of confidence and of right answers

    def score_share() -> None:
        for images, labels in loader.batches():
            logits = model(images).float()
            loss.add_(F.cross_entropy(logits, labels, reduction="sum").double().cpu())
            confidence, answers = logits.softmax(1).max(1)
            top5.add_((logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(1).sum().cpu())
            confusion.add_(torch.bincount((labels * classes + answers).cpu(), minlength=classes * classes))
            number = (confidence.cpu() * BINS).ceil().long().clamp(1, BINS) - 1
            bins.index_add_(0, number, torch.stack([confidence, (answers == labels).float()], 1).double().cpu())

    with mode(model, training=False):
        distributed.together(score_share)
    distributed.all_reduce_sum(loss, confusion, top5, bins)
    matrix = confusion.view(classes, classes)
    count, correct = int(matrix.sum()), int(matrix.trace())
    if not count:
        raise DataError(unreadable(sorted(distributed.all_gather_union(loader.unreadable))))
    gap = float((bins[:, 0] - bins[:, 1]).abs().sum())
    return Score(
        100 * correct / count, 100 * int(top5) / count, float(loss) / count, count, correct, matrix, gap / count
    )
