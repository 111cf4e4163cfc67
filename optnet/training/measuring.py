"""What a network costs: multiply-adds per image, images per second. Scores nothing."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Of the convolutions and matrix products of one forward pass of images (batch, c, h, w)."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


@torch.no_grad()
def throughput(model: nn.Module, images: Tensor, seconds: float = 1.0) -> float:
    """Images per second in forward passes of a batch of images (batch, c, h, w), for at least so many seconds.

    Loading is not counted; the first pass warms up.
    """
    model(images)
    _wait(images.device)
    passes, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        model(images)
        _wait(images.device)
        passes += 1
    return passes * len(images) / taken


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
