"""What all networks of unrolled algorithms share: their programs, options and timm's groups. Knows no stem, no head."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import nn

from optnet.errors import ModelError
from optnet.networks.design import StageProgram
from optnet.networks.initialisation import weight_norm_scales
from optnet.networks.layers import Family
from optnet.networks.options import MethodOptions
from optnet.networks.rules import DYNAMIC
from optnet.networks.unrolled import coefficient_names, unrolled_in
from optnet.options import one_of

F = TypeVar("F", bound=Family)
MOST = 10_000
"""Iterations of a stage, and channels of it, at most."""


class Trunk(nn.Module):
    """A network whose stages are runs of an algorithm, with the part of timm's model contract that concerns them.

    Attributes:
        programs: the program of each stage.
        widths: the channels of each stage.
        layer: the layer family that the programs were made for.
        stages: the stages.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations of a class, and fails on those that it does not know
        programs: list[StageProgram]
        widths: list[int]
        layer: str
        options: MethodOptions
        num_classes: int
        in_chans: int
        stages: nn.ModuleList
    per_block = 1
    """The iterations that are one block; 2 if an iteration is half a block."""
    first_parameters = "^stem"
    """The parameters before the first stage, as a pattern."""

    def sizes(self) -> dict[str, Any]:
        """The arguments that say how large the network is, by their names."""
        raise NotImplementedError

    def with_programs(self, programs: Sequence[StageProgram], **options: Any) -> Self:
        """A network of the same sizes with other programs, and its own parameters.

        Args:
            options: those that differ.
        """
        raise NotImplementedError

    @torch.jit.ignore
    def programs_json(self) -> list[dict[str, Any]]:
        """The stages' programs as data; ``StageProgram.from_json`` reads them."""
        return [program.to_json() for program in self.programs]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups: the stem, the stages (``coarse``) or their layers T with what follows each, the head."""
        blocks: list[tuple[str, tuple[int, ...] | None]] = []
        for i, (name, stage) in enumerate({} if coarse else unrolled_in(self.stages).items()):
            depth, layers = 0, stage.served_by(stage.program.main)
            for child, _ in stage.body.named_children():
                depth += child in layers
                blocks += [(rf"^{re.escape(f'stages.{name}.body.{child}.')}", (i, depth))]
        return {"stem": self.first_parameters, "blocks": [*blocks, (r"^stages\.(\d+)", None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The coefficients, which weight decay would pull away from the algorithm, and the scales of weight norm."""
        return coefficient_names(self) | weight_norm_scales(self)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for module in unrolled_in(self).values():
            module.set_checkpointing(enable)


def method_options(options: MethodOptions) -> dict[str, Any]:
    """The options of a stage's unrolled algorithm.

    Raises:
        ModelError: two of them exclude each other.
    """
    if options.per_channel and options.coefficients == DYNAMIC:
        raise ModelError("per_channel=true does not go with coefficients=dynamic: a sample has one weight per term")
    return {name: getattr(options, name) for name in ("coefficients", "per_channel", "memory")}


def family_of(layer: str, families: Mapping[str, type[F]]) -> type[F]:
    """The layer family of a name.

    Raises:
        ModelError: there is none.
    """
    one_of("layer", layer, families, ModelError)
    return families[layer]


def check_counts(**given: Any) -> None:
    """Raises:
    ModelError: a number of iterations, channels or classes is none.
    """
    for name, value in given.items():
        many = name in ("blocks", "widths")
        if many and (isinstance(value, str) or not isinstance(value, Sequence) or not value):
            raise ModelError(f"{name}={value!r} must be a list of whole numbers, one for each stage")
        least = 0 if name == "num_classes" else 1
        if any(type(count) is not int or count < least for count in (value if many else [value])):
            shown = list(value) if many else repr(value)
            raise ModelError(
                f"{name}={shown} must be {'whole numbers' if many else 'a whole number'} of at least {least}"
            )
        if many and max(value) > MOST:
            raise ModelError(f"{name}={list(value)} must be at most {MOST:,} in each stage")
    if "blocks" in given and len(given["blocks"]) != len(given["widths"]):
        raise ModelError(
            f"blocks={list(given['blocks'])} and widths={list(given['widths'])} must have one entry for each stage"
        )
