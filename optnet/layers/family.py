"""What a family of layers is: which modules one stage of a network puts in the place of an algorithm's operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from optnet.emitting import Call, LayerFactory
from optnet.errors import ModelError
from optnet.layers.convolution import Conv2d, NormConv2d
from optnet.layers.norms import NORMS, PLACES, Unnormed


@dataclass(frozen=True)
class Style:
    """What all layers of a network are made of.

    Attributes:
        act_layer: the activation's class.
        norm: one of ``NORMS``.
        place: of the norms, ``after`` the linear maps or ``before``; by default where the family has them.
        dd: device and dtype of every module.
    """

    act_layer: type[nn.Module]
    norm: str = "batch"
    place: str | None = None
    dd: dict[str, Any] = field(default_factory=dict)


class Family:
    """The layers of one stage: operators, shortcut of a starting point, transition in front of the stage.

    The first operator of an algorithm is the layer T; it alone may change shape, where it is applied to a starting
    point. Every other operator is a P.

    Args:
        in_chs: channels of what the stage gets.
        width: channels of the stage's convolutions; its iterates have ``width * expansion``.
        stride: of the first layer.
        first: whether this is the network's first stage.
        style: norm, activation, device.

    Raises:
        ModelError: the family has no place for the norm there.
    """

    expansion = 1
    final_norm = False
    """Whether the network normalises and activates after its last stage."""
    takes_P = False
    """Whether the family has a place for an algorithm's optional P: an activation behind each step."""
    same_start = True
    """Whether the starting point can be given the shape of its successors."""

    places: tuple[str, ...] = PLACES
    """Where its norms may stand; first where they stand by default."""

    def __init__(self, in_chs: int, width: int, stride: int, first: bool, style: Style) -> None:
        self.in_chs = in_chs
        self.width = width
        self.stride = stride
        self.first = first
        self.style = style
        self.place = style.place or self.places[0]
        if self.place not in self.places:
            raise ModelError(f"norm_place={self.place} does not go with this layer, whose norms are {self.places[0]}")

    @property
    def chs(self) -> int:
        """Channels of the stage's iterates."""
        return self.width * self.expansion

    @property
    def reshapes(self) -> bool:
        """Whether a starting point must be projected to be added to its successors."""
        return self.stride != 1 or self.in_chs != self.chs

    def T(self) -> LayerFactory:
        raise NotImplementedError

    def P(self) -> LayerFactory:
        """The activation; in front of it the shortcut, where it is applied to a starting point."""
        return LayerFactory(self._activation)

    def _activation(self, call: Call) -> nn.Module:
        shortcut = self.shortcut() if call.starts[0] else None
        return self.act(inplace=call.owned) if shortcut is None else nn.Sequential(shortcut, self.act())

    def shortcut(self) -> nn.Module | None:
        """What a starting point goes through where it enters a sum; None if it needs nothing."""
        if not self.reshapes:
            return None
        return nn.Sequential(*self.conv_norm(self.in_chs, self.chs, 1, self.stride))

    def transition(self) -> nn.Module:
        """What the stage's input goes through first: the restart of the algorithm at another width."""
        return nn.Identity()

    def out_chs(self, own: int, results: int) -> int:
        """Channels of the results side by side, ``own`` of which are the starting point itself."""
        return self.chs * results

    def entry(self, call: Call) -> tuple[int, int]:
        """Input channels and stride of the layer of a call."""
        return (self.in_chs, self.stride) if call.starts[0] else (self.chs, 1)

    @property
    def normed(self) -> bool:
        """Whether norms are layers of their own. Without them every convolution has a bias and takes the weights."""
        return NORMS[self.style.norm] is not None

    def conv(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> Conv2d:
        bias = not self.normed
        conv = Conv2d(in_chs, out_chs, kernel, stride, padding=kernel // 2, bias=bias, **self.style.dd)
        return weight_norm(conv) if self.style.norm == "weight" else conv

    def norm(self, chs: int) -> nn.Module:
        layer = NORMS[self.style.norm]
        return Unnormed() if layer is None else layer(chs, **self.style.dd)

    def conv_norm(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
        """A linear map and the norm behind it; a norm before it is part of the map."""
        conv = self.conv(in_chs, out_chs, kernel, stride)
        if self.normed and self.place == "before":
            return NormConv2d(self.norm(in_chs), conv), Unnormed()
        return conv, self.norm(out_chs)

    def act(self, inplace: bool = True) -> nn.Module:
        """The activation; in place behind a norm or a convolution, which have no use for their output any more."""
        return self.style.act_layer(inplace=inplace).to(**self.style.dd)

    def first_act(self) -> nn.Module:
        """The activation of a layer that begins with norm and activation: without a norm its input is not its own."""
        return self.act(inplace=self.normed)
