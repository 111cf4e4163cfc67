"""Compares two models: alternating timings, bytes kept for the backward pass, multiply-adds. Knows no model."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optnet.training.measuring import multiply_adds

NOISE = 0.03
"""The largest difference between the ratios of a measurement's two halves, and width of the median's 95 % interval."""

PATIENCE = 5
"""A noisy measurement continues to at most this many times its number of pairs. No pair is left out."""


@dataclass(frozen=True)
class Times:
    """Median seconds of both sides; the median of the pairs' ratios, overall and in each half; and its relative error.

    ``error`` is half the median's 95 % interval: 1.86 interquartile ranges over the root of the number of pairs.
    """

    ours: float
    theirs: float
    ratio: float
    halves: tuple[float, float]
    error: float
    pairs: int

    @property
    def noisy(self) -> bool:
        return abs(self.halves[0] / self.halves[1] - 1) > NOISE or 2 * self.error > NOISE

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "noisy": self.noisy}


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed memory; returns whether it does.

    By default malloc returns the top of the heap to the system again and again. The page faults take up to 10 % of a
    step, depending on how the heap happens to be laid out.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    return mallopt is not None and bool(mallopt(mmap_threshold, 2**25) and mallopt(trim_threshold, 2**31 - 1))


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, device: torch.device) -> Times:
    """Times the two jobs alternately and swaps their order in every pair, so that a slow machine slows both."""

    def seconds(job: Callable[[], Any]) -> float:
        synchronise(device)
        started = time.perf_counter()
        job()
        synchronise(device)
        return time.perf_counter() - started

    for job in (ours, theirs) * 2:
        job()
    spent: dict[Callable[[], Any], list[float]] = {ours: [], theirs: []}
    while True:
        for pair in range(pairs):
            for job in (ours, theirs) if pair % 2 else (theirs, ours):
                spent[job].append(seconds(job))
        times = judge(spent[ours], spent[theirs])
        if not times.noisy or times.pairs >= PATIENCE * pairs:
            return times


def judge(ours: list[float], theirs: list[float]) -> Times:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    half = len(ratios) // 2
    halves = (statistics.median(ratios[:half]), statistics.median(ratios[half:]))
    low, middle, high = statistics.quantiles(ratios, n=4)
    error = 1.86 * (high - low) / middle / len(ratios) ** 0.5
    return Times(statistics.median(ours), statistics.median(theirs), middle, halves, error, len(ratios))


def autocast(device: torch.device) -> Any:
    return nullcontext() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16)


def step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A job: the forward and backward pass of a training step."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(images.device):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()

    return run


def inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad(), autocast(images.device):
            model(images)

    return run


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass saves for backward, without parameters and buffers.

    Checkpointed layers keep their inputs without calling the hooks; ``held_bytes`` counts them.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # kept alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(images.device):
        model(images)
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own)


def held_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass leaves allocated until the backward pass, as counted by the allocator."""
    with torch.profiler.profile(profile_memory=True) as profile, autocast(images.device):
        result = model(images)
    events = profile.key_averages()
    on_cpu = images.device.type == "cpu"
    total = sum(event.self_cpu_memory_usage if on_cpu else event.self_device_memory_usage for event in events)
    return total - result.numel() * result.element_size()


def sizes(model: nn.Module, images: Tensor) -> dict[str, int]:
    """The figures that do not depend on the machine's speed."""
    model.train()
    inference(model, images)()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": multiply_adds(model, images),
        "saved_bytes": saved_bytes(model, images),
        "held_bytes": held_bytes(model, images),
    }
