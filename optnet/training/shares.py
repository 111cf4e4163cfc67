"""What each of several processes that train one network has for itself in the midst of an epoch. Knows no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optnet.options import number, option
from optnet.training import distributed
from optnet.training.loop import Progress, Trainer


@dataclass
class Share:
    """One process's sums of the current epoch, and its networks' buffers, like batch norm's: of its images alone."""

    loss_sum: float = number(0.0)
    correct: int = number(0, 0)
    count: int = number(0, 0)
    buffers: dict[str, torch.Tensor] = option(factory=dict)


def gather(sums: tuple[float, int, int], trainer: Trainer) -> list[dict[str, Any]]:
    """Every process's share, by its number; empty if there is one process."""
    if distributed.size() == 1:
        return []
    return distributed.all_gather(asdict(Share(*sums, {name: b.cpu() for name, b in _buffers(trainer).items()})))


def restore(shares: Sequence[dict[str, Any]], progress: Progress, trainer: Trainer) -> None:
    """Restores this process's share. In another number of processes the first one takes the sums of all, which
    ``progress`` has, and every one has the first one's buffers.

    Raises:
        KeyError, RuntimeError: the buffers are not those of the trainer's networks.
    """
    if not distributed.is_primary():
        progress.loss_sum = progress.correct = progress.count = progress.images = 0
    if len(shares) == distributed.size():
        share = Share(**shares[distributed.rank()])
        progress.loss_sum, progress.correct, progress.count = share.loss_sum, share.correct, share.count
        for name, buffer in _buffers(trainer).items():
            buffer.copy_(share.buffers[name])


def _buffers(trainer: Trainer) -> dict[str, Tensor]:
    """The buffers of the networks that are scored and trained; these differ where weights are averaged."""
    networks: list[nn.Module] = [trainer.model, getattr(trainer, "network", trainer.model)]
    return {f"{i}.{name}": buffer for i, network in enumerate(networks) for name, buffer in network.named_buffers()}
