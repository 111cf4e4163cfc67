"""The trainer by backpropagation and its options: one stochastic gradient step a batch. Reads no files."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from optnet.options import choice, number, option
from optnet.training import distributed
from optnet.training.averaging import AVERAGES
from optnet.training.mixing import Mixing

CLIPS = ("norm", "value", "agc")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class BackpropOptions:
    """Stochastic gradients by backpropagation, with an optimizer and a schedule."""

    name: str = option("backprop", help="the trainer")
    precision: str = choice(
        "float32", *PRECISIONS, help="of the forward pass in training, by autocast; float16 scales the loss"
    )
    channels_last: bool = option(False, help="the memory layout of images and weights")
    compile: bool = option(False, help="run the forward pass through torch.compile")
    accumulate: int = number(
        1, 1,
        help="micro-batches that a batch is split into where it does not fit in memory; batch norm sees each alone",
    )  # fmt: skip
    clip: float | None = number(None, above=0, example=1.0, help="the limit of clip_mode; null: nothing is clipped")
    clip_mode: str = choice(
        "norm", *CLIPS, help="limit the gradient's norm, each entry, or each row's norm as a part of its weights' norm"
    )
    label_smoothing: float = number(0.0, 0, 0.99, help="the part of a label that is spread over all classes")
    mixup: float = number(0.0, 0, help="alpha of mixup; 0: none")
    cutmix: float = number(0.0, 0, help="alpha of CutMix; 0: none; with mixup, each batch gets one of them")
    mix_probability: float = number(1.0, 0, 1, help="the probability of mixing a batch")
    average: str = choice("none", *AVERAGES, help="score and keep an average of the weights in place of the weights")
    average_decay: float = number(0.999, 0, 1, help="the decay of ema")
    average_start: float = number(0.0, 0, 1, help="the part of the run that comes before the average")
    recalibrate: int = number(
        50, 0, help="batches for the averaged weights' batch-norm statistics at each epoch's end; 0 leaves them"
    )


class Backpropagation:
    """w <- w - lr d(w), with d the optimizer's direction from the gradient of the batch's mean cross-entropy.

    Micro-batches have two images at least. Their gradients add up to the batch's, except that batch norm has the
    statistics of each. Adaptive clipping (agc) is Brock et al. 2021, eq. (3); label smoothing Szegedy et al. 2016.

    Args:
        model: the network that is trained, on its device.
        optimizer: over its parameters.
        scheduler: one of timm's, stepped once an update; None leaves the learning rate as it is.
        options: how to train; see ``BackpropOptions``.
        mixing: mixes images and labels first; it smooths labels itself.
        average: of the weights; it is scored and kept in place of the weights themselves.

    Attributes:
        gradient_norms: of each parameter's gradient in the last step before it was clipped; None: nothing is clipped.
    """

    full_batch = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        options: BackpropOptions | None = None,
        *,
        mixing: Mixing | None = None,
        average: ModelEmaV3 | None = None,
    ) -> None:
        self.options = options = options or BackpropOptions()
        self.layout = torch.channels_last if options.channels_last else torch.preserve_format
        self.network = model.to(memory_format=self.layout)
        self.average = average
        self.model = self.network if average is None else average.module.to(memory_format=self.layout)
        self.replica = distributed.replica(self.network)
        self.forward = torch.compile(self.replica) if options.compile else self.replica
        self.optimizer, self.scheduler, self.mixing = optimizer, scheduler, mixing
        self.device = next(model.parameters()).device
        self.precision = PRECISIONS[options.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
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
        count = max(1, min(self.options.accumulate, len(labels) // 2))
        micro_batches = list(zip(images.tensor_split(count), target.tensor_split(count), strict=True))
        share = distributed.share(len(labels))
        for i, (part, wanted) in enumerate(micro_batches, 1):
            with nullcontext() if i == count else distributed.no_sync(self.replica):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    logits = self.forward(part)
                smoothing = self.options.label_smoothing if self.mixing is None else 0.0
                loss = F.cross_entropy(logits.float(), wanted, label_smoothing=smoothing) * (len(wanted) / len(labels))
                self.scaler.scale(loss * share).backward()
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == (wanted if wanted.ndim == 1 else wanted.argmax(1))).sum()
        self._update()
        return loss_sum, correct

    def _update(self) -> None:
        clip, mode = self.options.clip, self.options.clip_mode
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            weights = list(self.network.parameters())
            self.gradient_norms = torch._foreach_norm([weight.grad for weight in weights if weight.grad is not None])
            # as in timm, the classifier's weight and bias, the last two, are left out of the adaptive clipping
            dispatch_clip_grad(weights[:-2] if mode == "agc" else weights, clip, mode)
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
