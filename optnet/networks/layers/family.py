"""The base of all layer families: the modules that serve as an algorithm's operators in one stage of a network."""

from __future__ import annotations

from torch import Tensor, nn

from optnet.language.program import Program
from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.layers.norms import NORMS, PLACES
from optnet.networks.layers.style import Style


class Family:
    """The layers of one stage: the operators, the shortcut of a starting point, and the transition before the stage.

    The main operator of an algorithm is the layer T. Only T may change the shape, and only where it is applied to a
    starting point. Every other operator is a P.

    Args:
        in_chs: channels of the stage's input.
        width: channels of the stage's convolutions; its iterates have ``width * expansion`` channels.
        stride: the stride of the first layer.
        first: whether this is the first stage of the network.
        style: convolutions, norms and activations.

    Raises:
        ModelError: the family does not support the style's norm or its position.
    """

    channel_dim = 1
    expansion = 1
    final_norm = False
    """Whether the network applies a norm and an activation after its last stage."""
    takes_P = False
    """Whether the family supplies an algorithm's optional P, such as an activation after each iteration."""
    same_start = True
    """Whether the starting point can be projected to the shape of the later iterates."""
    one_width = True
    """Whether every sum has the same number of channels as the iterates."""
    drops = False
    """Whether its layers take the style's dropout."""
    takes: tuple[str, ...] = ()
    """The options of a network that not all families take, but this one does."""
    act_layer = "relu"
    """The activation, if none is given."""
    stem_acts = True
    """Whether an activation follows the norm of the stem."""
    head_norm = False
    """Whether the head has a norm between the pooling and the classifier."""

    norms: tuple[str, ...] = tuple(NORMS)
    """The norms that it takes, the default first."""

    places: tuple[str, ...] = PLACES
    """The positions that its norms may have, the default first."""

    filled: tuple[type[nn.Module], ...] = (nn.Conv2d,)
    """The linear maps whose weights ``fill`` starts; all others keep their initial values."""

    @staticmethod
    def fill(weight: Tensor) -> None:
        """He's initialisation (fan out)."""
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    def __init__(self, in_chs: int, width: int, stride: int, first: bool, style: Style) -> None:
        self.in_chs = in_chs
        self.width = width
        self.stride = stride
        self.first = first
        self.style = style.normed_by(self.norms, self.places)

    @property
    def chs(self) -> int:
        """Channels of the stage's iterates."""
        return self.width * self.expansion

    @property
    def start_chs(self) -> int:
        """Channels of a starting point, as the operators get it."""
        return self.in_chs

    @property
    def reshapes(self) -> bool:
        """Whether a starting point must be projected before it is added to later iterates."""
        return self.stride != 1 or self.in_chs != self.chs

    def layers(self, program: Program) -> dict[str, LayerFactory]:
        """What makes the layers of each operator of a program."""
        return {name: self.T() if name == program.main else self.P() for name in program.operators}

    def T(self) -> LayerFactory:
        raise NotImplementedError

    def P(self) -> LayerFactory:
        """The activation. On a starting point, the shortcut comes before it."""
        return LayerFactory(self._activation)

    def _activation(self, call: Call) -> nn.Module:
        shortcut = self.shortcut() if call.starts[0] else None
        return self.style.act(inplace=call.owned) if shortcut is None else nn.Sequential(shortcut, self.style.act())

    def shortcut(self) -> nn.Module | None:
        """The module that projects a starting point where it enters a sum; None if no projection is needed."""
        if not self.reshapes:
            return None
        return nn.Sequential(*self.style.conv_norm(self.in_chs, self.chs, 1, self.stride))

    def transition(self) -> nn.Module:
        """The module that the stage's input passes through before the algorithm starts at this width."""
        return nn.Identity()

    def out_chs(self, own: int, results: int) -> int:
        """Channels of the concatenated results, ``own`` of which are the starting point itself."""
        return self.chs * results

    def entry(self, call: Call) -> tuple[int, int]:
        """Input channels and stride of the layer that serves a call."""
        return (self.in_chs, self.stride) if call.starts[0] else (self.chs, 1)
