"""What a run has to do with its machine: the device, versions, memory, the state of the random numbers."""

from __future__ import annotations

import logging
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import timm
import torch
import torchvision
from torch import Tensor

from optnet.errors import ConfigError, reason
from optnet.version import __version__


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        made = torch.device(name)
        torch.empty(0, device=made)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        why = reason(error)
        raise ConfigError(f"device={name} cannot be used here ({why}); try device=auto or device=cpu") from None
    if made.type == "meta":
        raise ConfigError("device=meta computes nothing; try device=auto or device=cpu")
    return made


@contextmanager
def silent() -> Iterator[None]:
    """Keeps timm's and the hub's log messages to themselves: an error says in one line what they said in many."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


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
    """Restores a state; the part of another kind of device is left out."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], *_index(device))


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """Restores the state of the random numbers at its end."""
    states = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, states)


def _index(device: torch.device) -> list[torch.device]:
    return [] if device.index is None else [device]
