"""The branches F of residual networks, T = id + F: basic and bottleneck, post-activation and pre-activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.layers.family import Family
from optnet.networks.layers.norms import Unnormed, scaled


def _places(into_norm: bool, weights: list[Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    """The weight of a branch, passed either to its last convolution or to the norm after it."""
    if weights is None:
        return None, None
    return (None, weights[0]) if into_norm else (weights[0], None)


class BasicBranch(nn.Module):
    """``F(x) = BN W2 phi(BN W1 x)``. He, Zhang, Ren, Sun 2016, figure 5 left. The weight scales the last norm."""

    def __init__(self, family: Family, in_chs: int, stride: int) -> None:
        super().__init__()
        style = family.style
        self.conv1, self.bn1 = style.conv_norm(in_chs, family.width, 3, stride)
        self.act1 = style.act()
        self.conv2, self.bn2 = style.conv_norm(family.width, family.chs, 3)
        self.scales_norm = not isinstance(self.bn2, Unnormed)

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        into_conv, into_norm = _places(self.scales_norm, weights)
        out = self.act1(self.bn1(self.conv1(x[0])))
        out = self.conv2(out, into_conv)
        return self.bn2(out, into_norm) if torch.jit.is_scripting() else scaled(self.bn2, out, into_norm)


class BottleneckBranch(nn.Module):
    """``F(x) = BN W3 phi(BN W2 phi(BN W1 x))``, 1x1, 3x3, 1x1. He, Zhang, Ren, Sun 2016, figure 5 right."""

    def __init__(self, family: Family, in_chs: int, stride: int) -> None:
        super().__init__()
        style = family.style
        self.conv1, self.bn1 = style.conv_norm(in_chs, family.width, 1)
        self.act1 = style.act()
        self.conv2, self.bn2 = style.conv_norm(family.width, family.width, 3, stride)
        self.act2 = style.act()
        self.conv3, self.bn3 = style.conv_norm(family.width, family.chs, 1)
        self.scales_norm = not isinstance(self.bn3, Unnormed)

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        into_conv, into_norm = _places(self.scales_norm, weights)
        out = self.act1(self.bn1(self.conv1(x[0])))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.conv3(out, into_conv)
        return self.bn3(out, into_norm) if torch.jit.is_scripting() else scaled(self.bn3, out, into_norm)


class PreActBasicBranch(nn.Module):
    """``F(x) = W2 phi(BN W1 phi(BN x))``. He, Zhang, Ren, Sun 2016b. The weight scales the last convolution."""

    def __init__(self, family: Family, in_chs: int, stride: int, normed: bool) -> None:
        super().__init__()
        style = family.style
        self.norm1 = nn.Identity() if normed else style.norm_layer(in_chs)
        self.act1 = nn.Identity() if normed else style.first_act()
        self.conv1 = style.conv(in_chs, family.width, 3, stride)
        self.norm2 = style.norm_layer(family.width)
        self.act2 = style.act()
        self.conv2 = style.conv(family.width, family.chs, 3)

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        out = self.conv1(self.act1(self.norm1(x[0])))
        return self.conv2(self.act2(self.norm2(out)), None if weights is None else weights[0])


class PreActBottleneckBranch(nn.Module):
    """``F(x) = W3 phi(BN W2 phi(BN W1 phi(BN x)))``, 1x1, 3x3, 1x1. He, Zhang, Ren, Sun 2016b."""

    def __init__(self, family: Family, in_chs: int, stride: int, normed: bool) -> None:
        super().__init__()
        style = family.style
        self.norm1 = nn.Identity() if normed else style.norm_layer(in_chs)
        self.act1 = nn.Identity() if normed else style.first_act()
        self.conv1 = style.conv(in_chs, family.width, 1)
        self.norm2 = style.norm_layer(family.width)
        self.act2 = style.act()
        self.conv2 = style.conv(family.width, family.width, 3, stride)
        self.norm3 = style.norm_layer(family.width)
        self.act3 = style.act()
        self.conv3 = style.conv(family.width, family.chs, 1)

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        out = self.conv1(self.act1(self.norm1(x[0])))
        out = self.conv2(self.act2(self.norm2(out)))
        return self.conv3(self.act3(self.norm3(out)), None if weights is None else weights[0])


class Basic(Family):
    """Post-activation basic block: F = conv-BN-ReLU-conv-BN, P = ReLU."""

    takes_P = True
    branch: type[BasicBranch] | type[BottleneckBranch] = BasicBranch

    def T(self) -> LayerFactory:
        return LayerFactory(self._branch, weighted=True, fresh=True)

    def _branch(self, call: Call) -> nn.Module:
        return self.branch(self, *self.entry(call))


class Bottleneck(Basic):
    """Post-activation bottleneck block: four times as many channels outside the block as inside."""

    expansion = 4
    branch = BottleneckBranch


class PreActBasic(Family):
    """Pre-activation basic block, P = identity.

    Where a stage needs a projection, the shortcut and the first layer share the first norm, which the transition holds.
    """

    final_norm = True
    places = ("before",)
    branch: type[PreActBasicBranch] | type[PreActBottleneckBranch] = PreActBasicBranch

    def T(self) -> LayerFactory:
        return LayerFactory(self._branch, weighted=True, fresh=True)

    def _branch(self, call: Call) -> nn.Module:
        return self.branch(self, *self.entry(call), normed=call.starts[0] and self.reshapes)

    def shortcut(self) -> nn.Module | None:
        return self.style.conv(self.in_chs, self.chs, 1, self.stride) if self.reshapes else None

    def transition(self) -> nn.Module:
        return (
            nn.Sequential(self.style.norm_layer(self.in_chs), self.style.first_act())
            if self.reshapes
            else nn.Identity()
        )


class PreActBottleneck(PreActBasic):
    """Pre-activation bottleneck block."""

    expansion = 4
    branch = PreActBottleneckBranch
