"""The convolution that takes a weight on its output or on its input channels. No norm and no layer of a family."""

from __future__ import annotations

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


class NormConv2d(nn.Module):
    """``scale * W norm(x)``: the norm before the linear map."""

    def __init__(self, norm: nn.Module, conv: Conv2d) -> None:
        super().__init__()
        self.norm = norm
        self.conv = conv

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.conv(self.norm(input), scale)
