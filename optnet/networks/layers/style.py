"""The building blocks of all layers of a network: convolutions, norms, activations. Knows no layer and no stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from timm.layers import DropPath, create_act, get_act_layer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from optnet.errors import ModelError, unknown
from optnet.networks.emitting import Call
from optnet.networks.layers.convolution import Conv2d, NormConv2d
from optnet.networks.layers.norms import NORMS, PIXEL_NORMS, WEIGHT_NORMED, Unnormed

ACTIVATIONS = tuple(create_act._ACT_LAYER_DEFAULT)
"""The activations that timm knows by name."""
DROP_PLACES = ("layers", "convolutions")
"""Where the dropout of dense layers is: after each layer, as in timm and torchvision, or after every convolution but
the network's first, so also inside layers and in transitions (Huang, Liu, van der Maaten, Weinberger 2017)."""


@dataclass(frozen=True)
class Style:
    """The building blocks of all layers of a network.

    Attributes:
        act_layer: the activation's name in timm.
        norm: one of ``NORMS`` or ``PIXEL_NORMS``.
        norm_place: norms come ``after`` or ``before`` the linear maps; None takes the layer family's default.
        proj_drop_rate, proj_drop_place: the dropout inside the stages, and one of ``DROP_PLACES``.
        drop_path_rates: the rates of stochastic depth of this stage's layers T, by the number of the call.
        kernel_size, conv_mlp, use_grn, ls_init_value: of the layers of ConvNeXt, see ``NetworkOptions``.
        device, dtype: those of every module.

    Raises:
        ModelError: there is no such activation.
    """

    act_layer: str = "relu"
    norm: str = "batch"
    norm_place: str | None = None
    proj_drop_rate: float = 0.0
    proj_drop_place: str = "layers"
    drop_path_rates: Mapping[int, float] = field(default_factory=dict)
    kernel_size: int = 7
    conv_mlp: bool = False
    use_grn: bool = False
    ls_init_value: float | None = None
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
            raise ModelError(unknown("act_layer", self.act_layer, ACTIVATIONS))
        return found

    def normed_by(self, norms: Sequence[str], places: Sequence[str]) -> Self:
        """The same style with its norm position fixed to one of ``places``, by default the first.

        Raises:
            ModelError: the norm is not one of ``norms``, or its position not one of ``places``.
        """
        if self.norm not in norms:
            raise ModelError(f"norm={self.norm} does not go with this layer; it takes {', '.join(norms)}")
        place = self.norm_place or places[0]
        if place not in places:
            raise ModelError(f"norm_place={place} does not go with this layer; it takes {', '.join(places)}")
        return replace(self, norm_place=place)

    @property
    def normed(self) -> bool:
        """Whether norms are separate layers. If not, every convolution has a bias and takes the coefficients."""
        return self.norm in PIXEL_NORMS or NORMS[self.norm] is not None

    def conv(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> Conv2d:
        """Pads by half the kernel; an even kernel is as large as its stride and needs no padding."""
        conv = Conv2d(
            in_chs, out_chs, kernel, stride, padding=kernel // 2 if kernel % 2 else 0,
            bias=not self.normed or self.norm in PIXEL_NORMS,  # which do not cancel it, as a batch norm does
            device=self.device, dtype=self.dtype,
        )  # fmt: skip
        return weight_norm(conv) if self.norm in WEIGHT_NORMED else conv

    def norm_layer(self, chs: int) -> nn.Module:
        layer = PIXEL_NORMS[self.norm][0] if self.norm in PIXEL_NORMS else NORMS[self.norm]
        return Unnormed() if layer is None else layer(chs, device=self.device, dtype=self.dtype)

    def conv_norm(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
        """A convolution and the norm after it. A norm before the convolution is part of the first module."""
        conv = self.conv(in_chs, out_chs, kernel, stride)
        if self.normed and self.norm_place == "before":
            return NormConv2d(self.norm_layer(in_chs), conv), Unnormed()
        return conv, self.norm_layer(out_chs)

    def act(self, inplace: bool = True) -> nn.Module:
        """The activation. It may work in place after a norm or convolution, because neither needs its output again."""
        return self._act_class()(inplace=inplace).to(device=self.device, dtype=self.dtype)

    def dropout(self, inner: bool) -> nn.Module:
        """The dropout after a convolution; ``inner``: one that is not the last of its layer."""
        dropped = self.proj_drop_rate > 0 and (self.proj_drop_place == "convolutions" or not inner)
        return nn.Dropout(self.proj_drop_rate) if dropped else nn.Identity()

    def drop_path(self, call: Call) -> nn.Module:
        """The stochastic depth of the layer that serves a call. Huang, Sun, Liu, Sedra, Weinberger 2016."""
        rate = self.drop_path_rates.get(call.index, 0.0)
        return DropPath(rate) if rate else nn.Identity()

    def first_act(self) -> nn.Module:
        """The first activation of a layer. Without a norm before it, it may not overwrite its input."""
        return self.act(inplace=self.normed)
