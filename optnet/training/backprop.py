"""The trainer by backpropagation: one stochastic gradient step a batch. Reads no configuration and no files."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from optnet.training import distributed
from optnet.training.mixing import Mixing

CLIPS = ("norm", "value", "agc")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Backpropagation:
    """w <- w - lr d(w), with d the optimizer's direction from the gradient of the batch's mean cross-entropy.

    Args:
        model: the network that is trained, on its device.
        optimizer: over its parameters.
        scheduler: one of timm's, stepped once an update; None leaves the learning rate as it is.
        precision: of the forward pass, by autocast; float16 scales the loss.
        parts: that a batch is taken in, one after the other, where it does not fit in memory, of two images at
            least; their gradients add up to the batch's, except that batch norm has the statistics of each part.
        clip, clip_mode: the gradient's norm at most, each entry's size at most, or (agc) each row's norm at most as a
            part of its weights' norm (Brock et al. 2021, eq. (3)). None: nothing is clipped.
        smoothing: the part of a label that is spread over all classes (Szegedy et al. 2016).
        mixing: mixes images and labels first; it smooths labels itself.
        average: of the weights, which is then scored and kept in place of the weights themselves.
        channels_last: the layout of images and weights in memory.
        compiled: run the forward pass through torch.compile.

    Attributes:
        gradient_norms: of each parameter's gradient in the last step before it was clipped; None: nothing is clipped.
    """

    full_batch = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        *,
        precision: torch.dtype = torch.float32,
        parts: int = 1,
        clip: float | None = None,
        clip_mode: str = "norm",
        smoothing: float = 0.0,
        mixing: Mixing | None = None,
        average: ModelEmaV3 | None = None,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.network = model.to(memory_format=layout)
        self.average = average
        self.model = self.network if average is None else average.module.to(memory_format=layout)
        self.replica = distributed.replica(self.network)
        self.forward = torch.compile(self.replica) if compiled else self.replica
        self.optimizer, self.scheduler, self.mixing = optimizer, scheduler, mixing
        self.device = next(model.parameters()).device
        self.precision, self.layout, self.parts = precision, layout, parts
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.clip, self.clip_mode, self.smoothing = clip, clip_mode, smoothing
        self.gradient_norms: tuple[Tensor, ...] | None = None
        self.updates = 0

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        images = images.contiguous(memory_format=self.layout) if self.layout != torch.preserve_format else images
        target = labels
        if self.mixing is not None:
            images, target = self.mixing(images, labels, self.updates)
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device, dtype=torch.long)
        count = max(1, min(self.parts, len(labels) // 2))
        parts = list(zip(images.tensor_split(count), target.tensor_split(count), strict=True))
        share = distributed.share(len(labels))
        for i, (part, wanted) in enumerate(parts, 1):
            with nullcontext() if i == len(parts) else distributed.gathering(self.replica):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    logits = self.forward(part)
                smoothing = self.smoothing if self.mixing is None else 0.0
                loss = F.cross_entropy(logits.float(), wanted, label_smoothing=smoothing) * (len(wanted) / len(labels))
                self.scaler.scale(loss * share).backward()
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == (wanted if wanted.ndim == 1 else wanted.argmax(1))).sum()
        self._update()
        return loss_sum, correct

    def _update(self) -> None:
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            weights = list(self.network.parameters())
            self.gradient_norms = torch._foreach_norm([weight.grad for weight in weights if weight.grad is not None])
            # as in timm, the classifier's weight and bias, the last two, are left out of the adaptive clipping
            dispatch_clip_grad(weights[:-2] if self.clip_mode == "agc" else weights, self.clip, self.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)
        if self.average is not None:
            self.average.update(self.network, self.updates)

    def scalars(self) -> dict[str, float]:
        return {"optim/lr": self.optimizer.param_groups[0]["lr"]}

    def state_dict(self) -> dict[str, Any]:
        state = {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "scaler": self.scaler.state_dict()}
        return state if self.average is None else {**state, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)
        if self.average is not None:
            self.network.load_state_dict(state["network"])
