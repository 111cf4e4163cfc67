"""The trainer by backpropagation: one stochastic gradient step a batch. Reads no configuration and no files."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


class Backpropagation:
    """w <- w - lr d(w), with d the optimizer's direction from the gradient of the batch's mean cross-entropy.

    Args:
        model: the network, on its device.
        optimizer: over its parameters.
        scheduler: one of timm's, stepped once an update.
    """

    full_batch = False

    def __init__(self, model: nn.Module, optimizer: Optimizer, scheduler: Any) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.updates = 0

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.model.train()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        self.scheduler.step_update(self.updates)
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def scalars(self) -> dict[str, float]:
        return {"optim/lr": self.optimizer.param_groups[0]["lr"]}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self.scheduler.step_update(self.updates)
