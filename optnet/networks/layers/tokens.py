"""The layer families on tokens (batch, tokens, channels): splittings of a transformer block into steps T = id + F."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from optnet.language.program import Program
from optnet.networks.design import SPLIT
from optnet.networks.emitting import Call, Factory, LayerFactory
from optnet.networks.layers.family import Family
from optnet.networks.layers.transformer import Composition, Parallel, Parts, attention, mlp

ATTENTION, MLP = SPLIT


class TokenFamily(Family):
    """The layers of a network on tokens. An iterate keeps its shape, so there is no transition and no shortcut.

    Every layer is F in T = id + F. Operators that are called A and M are the attention and the MLP of a block, in every
    family; the main operator of other methods is what the family says.

    Args:
        drop_path_rates: of each block, from the first to the last.
        velocity_norm: whether P is the norm of a velocity. If not, it is the activation.
    """

    channel_dim = -1
    halves = False
    """Whether an iteration is half a block."""

    def __init__(self, parts: Parts, drop_path_rates: Sequence[float], velocity_norm: bool = False) -> None:
        self.parts = parts
        self.velocity_norm = velocity_norm
        self.rates = list(drop_path_rates)
        self.in_chs = self.width = parts.dim
        self.stride, self.first = 1, True

    @classmethod
    def per_block(cls, main: str) -> int:
        """The number of iterations that are one block: 2 where the calls of T alternate between its halves.

        Args:
            main: the first operator of the method.
        """
        return 2 if cls.halves and main not in (ATTENTION, MLP) else 1

    def layers(self, program: Program) -> dict[str, LayerFactory]:
        made = super().layers(program)
        for name, build in ((ATTENTION, self._attention), (MLP, self._mlp)):
            if name in made:
                made[name] = self._step(build)
        return made

    def T(self) -> LayerFactory:
        return self._step(self._layer)

    def P(self) -> LayerFactory:
        return LayerFactory(lambda call: self.parts.norm() if self.velocity_norm else self.parts.act())

    def shortcut(self) -> nn.Module | None:
        return None

    @staticmethod
    def _step(build: Factory) -> LayerFactory:
        return LayerFactory(build, weighted=True, fresh=True)

    def _layer(self, call: Call) -> nn.Module:
        """The layer of one call of T."""
        raise NotImplementedError

    def _block(self, call: Call) -> int:
        return call.iteration // self.per_block(call.operator)

    def _attention(self, call: Call) -> nn.Module:
        block = self._block(call)
        return attention(self.parts, self.rates[block], block)

    def _mlp(self, call: Call, share: float = 1.0) -> nn.Module:
        return mlp(self.parts, self.rates[self._block(call)], share)


class Vit(TokenFamily):
    """T is a whole block, attention and then the MLP: the Lie-Trotter splitting. Dosovitskiy et al. 2021."""

    def _layer(self, call: Call) -> nn.Module:
        return Composition([self._attention(call), self._mlp(call)])


class VitHalf(TokenFamily):
    """T is attention in even iterations and the MLP in odd ones, so that two iterations are one block."""

    halves = True

    def _layer(self, call: Call) -> nn.Module:
        return self._mlp(call) if call.iteration % 2 else self._attention(call)


class VitParallel(TokenFamily):
    """T is attention and the MLP at one point: the Jacobi splitting."""

    def _layer(self, call: Call) -> nn.Module:
        block = self._block(call)
        return Parallel(self.parts, self.rates[block], block)


class VitSandwich(TokenFamily):
    """T is half a step of an MLP, attention, and half a step of another MLP: the Strang splitting.

    Lu et al. 2019 (Macaron Net): S x = x + MLP(x) / 2. The two MLPs are not shared, and each has half the hidden units
    of ``vit``'s, so that a block has about as many weights.
    """

    def _layer(self, call: Call) -> nn.Module:
        return Composition([self._mlp(call, 0.5), self._attention(call), self._mlp(call, 0.5)])
