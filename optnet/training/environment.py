"""What a figure was obtained with: versions, memory, and the random numbers' state."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import timm
import torch
import torchvision
from torch import Tensor

from optnet.version import __version__


def versions() -> dict[str, str]:
    return {
        "optnet": __version__, "torch": str(torch.__version__), "torchvision": str(torchvision.__version__),
        "timm": timm.__version__, "python": platform.python_version(),
    }  # fmt: skip


def peak_memory(device: torch.device) -> int:
    """Bytes: of the accelerator's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of torch's generators: the CPU's, and the accelerator's if ``device`` is one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(*_index(device))
    return states


def set_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Takes up a state; that of another kind of device is left out."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], *_index(device))


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """What is drawn in here leaves the random numbers behind it as they would have been without."""
    states = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, states)


def _index(device: torch.device) -> list[torch.device]:
    return [] if device.index is None else [device]
