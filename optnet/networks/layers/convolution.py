"""Convolutions whose weights are scaled per output or input channel. Knows no layer family."""

from __future__ import annotations

from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``scale * (W (in_scale * x) + b)``: a convolution whose weights are scaled, not its activations.

    ``scale`` is a 0-d tensor or has one value per output channel. ``in_scale`` has the shape (1 or output channels,
    input channels, 1, 1).
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
    """``scale * W norm(x)``: a norm followed by a convolution."""

    def __init__(self, norm: nn.Module, conv: Conv2d) -> None:
        super().__init__()
        self.norm = norm
        self.conv = conv

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.conv(self.norm(input), scale)
