"""What a family of layers is: which modules one stage of a network puts in the place of an algorithm's operators."""

from __future__ import annotations

from torch import nn

from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.layers.norms import PLACES
from optnet.networks.layers.style import Style


class Family:
    """The layers of one stage: operators, shortcut of a starting point, transition in front of the stage.

    The first operator of an algorithm is the layer T; it alone may change shape, where it is applied to a starting
    point. Every other operator is a P.

    Args:
        in_chs: channels of what the stage gets.
        width: channels of the stage's convolutions; its iterates have ``width * expansion``.
        stride: of the first layer.
        first: whether this is the network's first stage.
        style: convolutions, norms and activations.

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
    one_width = True
    """Whether every sum has as many channels as the iterates."""

    places: tuple[str, ...] = PLACES
    """Where its norms may stand; first where they stand by default."""

    def __init__(self, in_chs: int, width: int, stride: int, first: bool, style: Style) -> None:
        self.in_chs = in_chs
        self.width = width
        self.stride = stride
        self.first = first
        self.style = style.placed(self.places)

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
        return self.style.act(inplace=call.owned) if shortcut is None else nn.Sequential(shortcut, self.style.act())

    def shortcut(self) -> nn.Module | None:
        """What a starting point goes through where it enters a sum; None if it needs nothing."""
        if not self.reshapes:
            return None
        return nn.Sequential(*self.style.conv_norm(self.in_chs, self.chs, 1, self.stride))

    def transition(self) -> nn.Module:
        """What the stage's input goes through first: the restart of the algorithm at another width."""
        return nn.Identity()

    def out_chs(self, own: int, results: int) -> int:
        """Channels of the results side by side, ``own`` of which are the starting point itself."""
        return self.chs * results

    def entry(self, call: Call) -> tuple[int, int]:
        """Input channels and stride of the layer of a call."""
        return (self.in_chs, self.stride) if call.starts[0] else (self.chs, 1)
