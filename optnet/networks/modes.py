"""A context that sets training or evaluation mode and restores the old one. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """``model.train(training)``; afterwards each module gets its own mode back: frozen modules stay frozen."""
    kept = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, own in kept.items():
            module.training = own
