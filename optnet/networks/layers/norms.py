"""The norms by their names in ``norm=``. A coefficient scales a norm's affine map, after the normalisation."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import LayerNorm, LayerNorm2d, RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """``scale * (gamma (x - mean) / sqrt(var + eps) + beta)``. Ioffe and Szegedy 2015.

    ``scale`` is a 0-d tensor or has one value per channel.
    """

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        weight = self.weight if scale is None else self.weight * scale
        bias = self.bias if scale is None else self.bias * scale
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the cumulative mean, as in torch
                momentum = 1.0 / float(self.num_batches_tracked)
        training = self.training or self.running_mean is None
        return F.batch_norm(input, self.running_mean, self.running_var, weight, bias, training, momentum, self.eps)


class MeanOnlyBatchNorm2d(nn.Module):
    """``scale * (x - mean + beta)``, mean: batch mean or running mean. Salimans and Kingma 2016."""

    running_mean: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        chs: int,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.bias = nn.Parameter(torch.zeros(chs, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(chs, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        mean = self.running_mean
        if self.training:
            mean = self.batch_mean(input)
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        shift = (self.bias - mean).type_as(input).reshape(-1, 1, 1)
        if scale is None:
            return input + shift
        scale = scale.type_as(input).reshape(-1, 1, 1)
        return torch.addcmul(shift * scale, input, scale)

    def batch_mean(self, input: Tensor) -> Tensor:
        return input.mean((0, 2, 3))

    def extra_repr(self) -> str:
        return f"{len(self.bias)}, momentum={self.momentum}"

    @torch.jit.ignore
    def synchronised(self) -> nn.Module:
        """The same norm with the mean over all processes' images; it has this one's parameter and buffers."""
        other = SyncMeanOnlyBatchNorm2d(len(self.bias), self.momentum, device="meta")
        other.bias, other.running_mean, other.num_batches_tracked = (
            self.bias, self.running_mean, self.num_batches_tracked,
        )  # fmt: skip
        return other.train(self.training)


class SyncMeanOnlyBatchNorm2d(MeanOnlyBatchNorm2d):
    """``MeanOnlyBatchNorm2d`` whose batch is that of all processes together."""

    synchronises = True

    @torch.jit.ignore
    def batch_mean(self, input: Tensor) -> Tensor:
        precision = torch.promote_types(input.dtype, torch.float32)
        count = input.new_tensor([input.numel() // input.shape[1]], dtype=precision)
        total = _Summed.apply(torch.cat([input.sum((0, 2, 3), dtype=precision), count]))
        return total[:-1] / total[-1]


class _Summed(torch.autograd.Function):
    """The sum over all processes, and its gradient. Without several processes, the same tensor."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _sum(mine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _sum(mine: Tensor) -> Tensor:
    total = mine.clone(memory_format=torch.contiguous_format)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


class GroupNorm(nn.GroupNorm):
    """``scale * (gamma (x - mean) / sqrt(var + eps) + beta)`` over groups of channels. Wu and He 2018.

    A group has 16 channels, as in the paper, or the next larger number that divides the channels.
    """

    def __init__(self, chs: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        size = next((size for size in range(16, chs) if chs % size == 0), chs)
        super().__init__(chs // size, chs, device=device, dtype=dtype)

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        weight = self.weight if scale is None else self.weight * scale
        bias = self.bias if scale is None else self.bias * scale
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class Unnormed(nn.Module):
    """``x``: takes the place of a norm. It ignores the scale, which goes into the convolution instead."""

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        return input


def scaled(norm: nn.Module, x: Tensor, scale: Tensor | None) -> Tensor:
    """``scale * norm(x)``: through our norms' affine map, or after any other norm (frozen or synchronised)."""
    if isinstance(norm, BatchNorm2d | MeanOnlyBatchNorm2d | GroupNorm | Unnormed):
        return norm(x, scale)
    return norm(x) if scale is None else norm(x) * scale.type_as(x).reshape(-1, 1, 1)


NORMS: dict[str, type[nn.Module] | None] = {
    "batch": BatchNorm2d,
    "mean": MeanOnlyBatchNorm2d,
    "group": GroupNorm,
    "weight": None,  # a parametrization of the convolutions: Salimans and Kingma 2016
    "weight_mean": MeanOnlyBatchNorm2d,  # both, as Salimans and Kingma 2016 recommend
    "none": None,
}
PIXEL_NORMS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "layer": (LayerNorm2d, LayerNorm),
    "rms": (RmsNorm2d, RmsNorm),
    "simple": (SimpleNorm2d, SimpleNorm),
}
"""timm's norms over the channels of each pixel, for tensors (batch, channels, height, width) and (..., channels).

layer: Ba, Kiros, Hinton 2016; rms: x / sqrt(mean x^2), Zhang and Sennrich 2019; simple: x / sqrt(var x). They take no
scale, so no coefficient goes into them.
"""
WEIGHT_NORMED = ("weight", "weight_mean")
"""The norms for which the convolutions' weights are g v / |v|."""
PLACES = ("after", "before")
"""The positions of a norm: after the linear map or before it."""
