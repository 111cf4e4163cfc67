"""The layers of DenseNet: one convolution over a concatenation computes the sum of all fresh calls of an operator."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from optnet.errors import ModelError
from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.layers.family import Family


class DenseSum(nn.Module):
    """``sum_j alpha_j W_j phi(BN x_j)``, computed as one convolution over the concatenated x_j.

    Each alpha_j scales its slice of the convolution's weights. Huang, Liu, van der Maaten, Weinberger 2017.

    Args:
        inner: another convolution of the same layer follows.
    """

    def __init__(self, family: Family, in_chs: list[int], out_chs: int, kernel: int, inner: bool = False) -> None:
        super().__init__()
        style = family.style
        self.runs = [(chs, len(list(same))) for chs, same in groupby(in_chs)]
        self.norm1 = style.norm_layer(sum(in_chs))
        self.act1 = style.act()
        self.conv1 = style.conv(sum(in_chs), out_chs, kernel)
        self.drop1 = style.dropout(inner)

    def forward(
        self, xs: list[Tensor], weights: list[Tensor] | None = None, per_sample: list[Tensor] | None = None
    ) -> Tensor:
        """Weights are 0-d or (out channels,). Those of each sample, (batch, 1, 1, 1), scale the convolution's input."""
        out = self.act1(self.norm1(torch.cat(xs, 1)))
        if per_sample is not None:
            out = out * self._repeated(torch.stack(per_sample).squeeze(2)).transpose(0, 1).type_as(out)
        scale: Tensor | None = None
        if weights is not None:
            scale = self._repeated(torch.stack(weights)).unsqueeze(1).flatten(1).t().unsqueeze(-1).unsqueeze(-1)
        return self.drop1(self.conv1(out, None, scale))

    def _repeated(self, alpha: Tensor) -> Tensor:
        """Weights (terms, ...), one for each input channel: (in channels, ...)."""
        repeated: list[Tensor] = []
        start = 0
        for chs, terms in self.runs:
            repeated.append(alpha[start : start + terms].repeat_interleave(chs, 0))
            start += terms
        return torch.cat(repeated)


class DenseTail(nn.Module):
    """``W phi(BN x)``: the 3x3 half of a DenseNet-BC layer; it serves as P."""

    def __init__(self, family: Family, in_chs: int) -> None:
        super().__init__()
        style = family.style
        self.norm2 = style.norm_layer(in_chs)
        self.act2 = style.first_act()
        self.conv2 = style.conv(in_chs, family.chs, 3)
        self.drop2 = style.dropout(inner=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.conv2(self.act2(self.norm2(x))))


class Dense(Family):
    """T = BN-ReLU-conv3x3 to ``width`` channels (the growth rate k), P = identity."""

    final_norm = True
    same_start = False
    drops = True
    places = ("before",)
    compression = 1.0

    def T(self) -> LayerFactory:
        return LayerFactory(
            lambda call: DenseSum(self, self.sum_chs(call), self.chs, 3), weighted=True, sums=True, fresh=True
        )

    def sum_chs(self, call: Call) -> list[int]:
        return [self.start_chs if start else self.chs for start in call.starts]

    @property
    def start_chs(self) -> int:
        """Channels of x_0, the transition's output."""
        return self.in_chs if self.first else int(self.in_chs * self.compression)

    def P(self) -> LayerFactory:
        return LayerFactory(self._tail)

    def _tail(self, call: Call) -> nn.Module:
        """The layer of a call of P.

        Raises:
            ModelError: P is applied to a starting point, whose width differs from that of P's output.
        """
        if call.starts[0]:
            raise ModelError(f"dense layers have no {call.operator} for a starting point; use another layer=")
        return self._activation(call)

    def shortcut(self) -> nn.Module | None:
        return None

    def transition(self) -> nn.Module:
        if self.first:
            return nn.Identity()
        layers = [
            self.style.norm_layer(self.in_chs),
            self.style.first_act(),
            self.style.conv(self.in_chs, self.start_chs, 1),
            self.style.dropout(inner=True),
        ]
        return nn.Sequential(*layers, nn.AvgPool2d(self.stride, self.stride))

    def out_chs(self, own: int, results: int) -> int:
        return self.chs * (results - own) + self.start_chs * own


class DenseBC(Dense):
    """T = BN-ReLU-conv1x1 to ``4 width`` channels, P = BN-ReLU-conv3x3 to ``width``; transitions halve the channels."""

    takes_P = True
    compression = 0.5
    one_width = False
    bottleneck = 4

    def T(self) -> LayerFactory:
        chs = self.bottleneck * self.width
        return LayerFactory(
            lambda call: DenseSum(self, self.sum_chs(call), chs, 1, inner=True), weighted=True, sums=True, fresh=True
        )

    def _activation(self, call: Call) -> nn.Module:
        return DenseTail(self, self.bottleneck * self.width)
