"""The convolution that takes a weight on its output or on its input channels. No norm and no layer of a family."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``scale * (W (in_scale * x) + b)``: a convolution that is scaled through its weights.

    ``scale`` has no dimension, or one value for each output channel; ``in_scale`` (1 or output channels, input
    channels, 1, 1). Eager training in full precision does not keep the scaled weights for the backward pass.
    """

    def forward(self, input: Tensor, scale: Tensor | None = None, in_scale: Tensor | None = None) -> Tensor:
        bias: Tensor | None = self.bias
        if scale is None:
            if in_scale is None:
                return self._conv_forward(input, self.weight, bias)
            factor = in_scale
        else:
            factor = scale.reshape(-1, 1, 1, 1)
            factor = factor if in_scale is None else factor * in_scale
            bias = None if bias is None else bias * scale
        if not torch.jit.is_scripting():
            eager = self.padding_mode == "zeros" and _is_eager(input, self.weight)
            if eager:
                how = (self.stride, self.padding, self.dilation, self.groups)
                result: Tensor = _ScaledConvolution.apply(input, self.weight, bias, factor, how)
                return result
        return self._conv_forward(input, self.weight * factor, bias)


def _is_eager(input: Tensor, weight: Tensor) -> bool:
    """Training on numbers in the weights' precision: not compiled, traced, transformed by torch.func, or cast."""
    seen = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    if seen or type(input) is not Tensor or not torch.is_grad_enabled():
        return False
    kind = input.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return input.dtype == weight.dtype and not cast


class _ScaledConvolution(torch.autograd.Function):
    """A convolution with ``factor * weight``, which the backward pass multiplies again."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor, how: tuple[Any, ...]) -> Tensor:
        return F.conv2d(input, weight * factor, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias, factor, ctx.how = inputs
        ctx.bias_sizes = None if bias is None else bias.shape
        ctx.save_for_backward(input, weight, factor)
        ctx.save_for_forward(input, weight, factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, factor = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        by_input, by_weight, by_bias, by_factor = ctx.needs_input_grad[:4]
        change, scaled, shift = torch.ops.aten.convolution_backward(
            gradient, input, weight * factor, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups,
            [by_input, by_weight or by_factor, by_bias],
        )  # fmt: skip
        return (
            change if by_input else None,
            scaled * factor if by_weight else None,
            shift if by_bias else None,
            (scaled * weight).sum_to_size(factor.shape) if by_factor else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor, how: None) -> Tensor:
        x, w, f = ctx.saved_tensors
        return F.conv2d(input, w * f, bias, *ctx.how) + F.conv2d(x, weight * f + w * factor, None, *ctx.how)


class NormConv2d(nn.Module):
    """``scale * W norm(x)``: the norm before the linear map."""

    def __init__(self, norm: nn.Module, conv: Conv2d) -> None:
        super().__init__()
        self.norm = norm
        self.conv = conv

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.conv(self.norm(input), scale)
