"""The layers of ConvNeXt, T = id + F: a depthwise convolution, a norm and an MLP on each pixel; timm's block."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import trunc_normal_
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.layers.convolution import Conv2d
from optnet.networks.layers.family import Family
from optnet.networks.layers.linear import Linear
from optnet.networks.layers.norms import PIXEL_NORMS

LAYER_SCALE = 1e-6
"""What gamma starts from by default."""


class ConvNeXtBranch(ConvNeXtBlock):
    """``F(x) = gamma W2 phi(W1 LN(D x))`` with a depthwise convolution D. Liu et al. 2022, section 2.

    Without gamma and with ``use_grn`` it is ConvNeXt V2's ``W2 GRN(phi(W1 LN(D x)))``, Woo et al. 2023. The weight
    scales gamma, or W2 and its bias where there is no gamma.
    """

    __constants__ = ("use_grn",)

    def __init__(self, family: ConvNeXt, call: Call) -> None:
        style = family.style
        where: Any = {"device": style.device, "dtype": style.dtype}
        super().__init__(
            family.chs, kernel_size=style.kernel_size, conv_mlp=style.conv_mlp, use_grn=style.use_grn,
            ls_init_value=family.layer_scale, act_layer=partial(style.act, inplace=False),
            norm_layer=PIXEL_NORMS[style.norm][not style.conv_mlp], **where,
        )  # fmt: skip
        self.use_grn = style.use_grn
        self.drop_path = style.drop_path(call)
        if self.gamma is None:
            hidden = 4 * family.chs
            last = partial(Conv2d, kernel_size=1) if style.conv_mlp else Linear
            self.mlp.fc2 = last(hidden, family.chs, **where)

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        out = self.conv_dw(x[0])
        if not self.use_conv_mlp:
            out = out.permute(0, 2, 3, 1)
        out = self.norm(out)
        if self.gamma is not None:
            out = self.mlp(out)
        else:
            out = self.mlp.act(self.mlp.fc1(out))
            if self.use_grn:
                out = self.mlp.grn(out)
            out = self.mlp.fc2(out, None if weights is None else weights[0])
        if not self.use_conv_mlp:
            out = out.permute(0, 3, 1, 2)
        if self.gamma is not None:
            gamma = self.gamma if weights is None else self.gamma * weights[0]
            out = out.mul(gamma.reshape(1, -1, 1, 1))
        return self.drop_path(out)


class ConvNeXt(Family):
    """ConvNeXt's layers, P = identity. The transition is the downsampling, a norm and a convolution of stride 2."""

    norms = tuple(PIXEL_NORMS)
    places = ("before",)
    act_layer = "gelu"
    stem_acts = False
    head_norm = True
    takes = (
        "drop_path_rate", "conv_mlp", "use_grn", "ls_init_value", "kernel_sizes", "head_norm_first", "head_hidden_size",
    )  # fmt: skip
    filled = (nn.Conv2d, nn.Linear)

    @staticmethod
    def fill(weight: Tensor) -> None:
        """The weights of ConvNeXt at the start: N(0, 0.02^2), cut off."""
        trunc_normal_(weight, std=0.02)

    @property
    def layer_scale(self) -> float | None:
        """What gamma starts from; None if there is no gamma."""
        given = self.style.ls_init_value
        if given is None:
            return None if self.style.use_grn else LAYER_SCALE
        return given or None

    @property
    def start_chs(self) -> int:
        return self.chs

    @property
    def reshapes(self) -> bool:
        return False

    def T(self) -> LayerFactory:
        # without gamma the result is a view of the MLP's, which a sum would rather not overwrite, and of its precision
        return LayerFactory(self._branch, weighted=True, fresh=self.layer_scale is not None)

    def _branch(self, call: Call) -> nn.Module:
        return ConvNeXtBranch(self, call)

    def transition(self) -> nn.Module:
        if self.stride == 1 and self.in_chs == self.chs:
            return nn.Identity()
        return nn.Sequential(
            self.style.norm_layer(self.in_chs), self.style.conv(self.in_chs, self.chs, self.stride, self.stride)
        )
