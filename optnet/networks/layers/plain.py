"""The plain layer: convolution, norm, activation. Gradient descent on it is a plain CNN."""

from __future__ import annotations

from torch import Tensor, nn

from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.layers.family import Family


class PlainLayer(nn.Module):
    """``T(x) = phi(BN(W x))``, or ``phi(W BN(x))``. Simonyan and Zisserman 2015, Ioffe and Szegedy 2015."""

    def __init__(self, family: Family, in_chs: int, stride: int) -> None:
        super().__init__()
        style = family.style
        self.conv1, self.bn1 = style.conv_norm(in_chs, family.chs, 3, stride)
        self.act1 = style.act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(x)))


class Plain(Family):
    """T = conv-BN-activation, for the map reading. An optional P stays the identity."""

    def T(self) -> LayerFactory:
        return LayerFactory(self._layer)

    def _layer(self, call: Call) -> nn.Module:
        return PlainLayer(self, *self.entry(call))
