"""The last affine map of a layer, which takes a weight on the layer's output. No layer of a family lives here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``scale * (W (in_scale * x) + b)``: a convolution that is scaled through its weights.

    ``scale`` has no dimension, or one value for each output channel; ``in_scale`` (1 or output channels, input
    channels, 1, 1).
    """

    def forward(self, input: Tensor, scale: Tensor | None = None, in_scale: Tensor | None = None) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if in_scale is not None:
            weight = weight * in_scale
        if scale is not None:
            weight = weight * scale.reshape(-1, 1, 1, 1)
            bias = None if bias is None else bias * scale
        return self._conv_forward(input, weight, bias)


class BatchNorm2d(nn.BatchNorm2d):
    """``scale * (gamma (x - mean) / sqrt(var + eps) + beta)``: a batch norm whose output is scaled through its affine.

    ``scale`` has no dimension, or one value for each channel.
    """

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        weight = self.weight if scale is None else self.weight * scale
        bias = self.bias if scale is None else self.bias * scale
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        return F.batch_norm(input, self.running_mean, self.running_var, weight, bias, self.training, momentum, self.eps)
