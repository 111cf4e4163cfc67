"""Training and evaluation mode for a while. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """``model.train(training)``; afterwards each module is in its own mode again: what was frozen stays frozen."""
    kept = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, own in kept.items():
            module.training = own
