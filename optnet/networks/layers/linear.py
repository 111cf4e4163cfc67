"""Linear maps on tokens whose weights are scaled, not their activations. Knows no layer family."""

from __future__ import annotations

import timm.layers
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``scale * (W x + b)``; ``scale`` is a 0-d tensor or has one value per output channel."""

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        if scale is None:
            return F.linear(input, self.weight, self.bias)
        bias: Tensor | None = self.bias
        return F.linear(input, self.weight * scale.reshape(-1, 1), None if bias is None else bias * scale)


class LayerScale(timm.layers.LayerScale):
    """``scale * gamma * x``. Touvron et al. 2021."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return x * (self.gamma if scale is None else self.gamma * scale)


class Unscaled(nn.Module):
    """``scale * x``: what is in the place of a layer scale that is not there."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return x if scale is None else x * scale
