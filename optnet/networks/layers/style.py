"""What all layers of a network are made of: convolutions, norms and activations. Knows no layer and no stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from timm.layers import get_act_layer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from optnet.errors import ModelError
from optnet.networks.layers.convolution import Conv2d, NormConv2d
from optnet.networks.layers.norms import NORMS, Unnormed


@dataclass(frozen=True)
class Style:
    """What all layers of a network are made of.

    Attributes:
        act_layer: the activation, by timm's name.
        norm: one of ``NORMS``.
        norm_place: of the norms, ``after`` the linear maps or ``before``; None: where the layer family has them.
        device, dtype: of every module.

    Raises:
        ModelError: there is no such activation.
    """

    act_layer: str = "relu"
    norm: str = "batch"
    norm_place: str | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self._act_class()

    def _act_class(self) -> type[nn.Module]:
        try:
            found = get_act_layer(self.act_layer)
        except (KeyError, AssertionError):
            found = None
        if not isinstance(found, type):
            raise ModelError(f"act_layer='{self.act_layer}' is unknown; for instance 'relu', 'silu' or 'gelu'")
        return found

    def placed(self, places: Sequence[str]) -> Self:
        """The same style with its norms in one of the places that a layer family has, the first by default.

        Raises:
            ModelError: the family has no norms there.
        """
        place = self.norm_place or places[0]
        if place not in places:
            raise ModelError(f"norm_place={place} does not go with this layer, whose norms are {places[0]}")
        return replace(self, norm_place=place)

    @property
    def normed(self) -> bool:
        """Whether norms are layers of their own. Without them every convolution has a bias and takes the weights."""
        return NORMS[self.norm] is not None

    def conv(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> Conv2d:
        conv = Conv2d(
            in_chs, out_chs, kernel, stride, padding=kernel // 2, bias=not self.normed, device=self.device,
            dtype=self.dtype,
        )  # fmt: skip
        return weight_norm(conv) if self.norm == "weight" else conv

    def norm_layer(self, chs: int) -> nn.Module:
        layer = NORMS[self.norm]
        return Unnormed() if layer is None else layer(chs, device=self.device, dtype=self.dtype)

    def conv_norm(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
        """A linear map and the norm behind it; a norm before it is part of the map."""
        conv = self.conv(in_chs, out_chs, kernel, stride)
        if self.normed and self.norm_place == "before":
            return NormConv2d(self.norm_layer(in_chs), conv), Unnormed()
        return conv, self.norm_layer(out_chs)

    def act(self, inplace: bool = True) -> nn.Module:
        """The activation; in place behind a norm or a convolution, which have no use for their output any more."""
        return self._act_class()(inplace=inplace).to(device=self.device, dtype=self.dtype)

    def first_act(self) -> nn.Module:
        """The activation of a layer that begins with norm and activation: without a norm its input is not its own."""
        return self.act(inplace=self.normed)
