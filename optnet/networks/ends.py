"""The two ends of an image network: its stems, by their names in ``stem=``, and its head. Knows no stage."""

from __future__ import annotations

from typing import Any

from timm.layers import ClassifierHead, NormMlpClassifierHead, make_divisible
from torch import nn

from optnet.errors import ModelError, reason
from optnet.networks.layers import PIXEL_NORMS, Family, Style

STEMS = {"small": 1, "imagenet": 4, "patch": 4, "overlap": 4, "overlap_tiered": 4, "overlap_act": 4}
"""The stems, and how many times smaller than the images their outputs are.

``patch`` and ``overlap*`` are timm's stems of ConvNeXt: one convolution of disjoint patches, or two of stride 2, the
first of them half as wide (``overlap_tiered``) or with an activation (``overlap_act``).
"""


def stem(kind: str, style: Style, family: type[Family], in_chs: int, chs: int) -> nn.Sequential:
    """The layers before the first stage. They end with a norm, unless the first stage's layers begin with one.

    The large stem of a dense network has one all the same, as DenseNet's.
    """
    made = nn.Sequential()
    if kind.startswith("overlap"):
        middle = make_divisible(chs // 2) if kind == "overlap_tiered" else chs
        made.add_module("conv", style.conv(in_chs, middle, 3, 2))
        if kind == "overlap_act":
            made.add_module("act1", style.act())
        made.add_module("conv2", style.conv(middle, chs, 3, 2))
    else:
        made.add_module("conv", style.conv(in_chs, chs, *{"small": (3, 1), "imagenet": (7, 2), "patch": (4, 4)}[kind]))
    if not family.final_norm or (kind != "small" and not family.same_start):
        made.add_module("norm", style.norm_layer(chs))
        if family.stem_acts:
            made.add_module("act", style.act())
    if kind == "imagenet":
        made.add_module("pool", nn.MaxPool2d(3, 2, 1))
    return made


def head(
    style: Style, norm: bool, chs: int, classes: int, pool: str, drop_rate: float, hidden: int | None
) -> ClassifierHead | NormMlpClassifierHead:
    """Pooling, a norm if the head has one, a hidden layer if it has one, and the classifier.

    Raises:
        ModelError: timm has no such pooling or no such rate, or a head with a hidden layer has no norm.
    """
    shared: dict[str, Any] = {
        "pool_type": pool, "drop_rate": drop_rate, "device": style.device, "dtype": style.dtype,
    }  # fmt: skip
    if hidden and not norm:
        raise ModelError(f"head_hidden_size={hidden} does not go with head_norm_first; give one of them")
    try:
        if norm:
            norm_layer = PIXEL_NORMS[style.norm][0]
            return NormMlpClassifierHead(
                chs, classes, hidden_size=hidden, norm_layer=norm_layer, act_layer="gelu", **shared
            )
        return ClassifierHead(chs, classes, **shared)
    except (AssertionError, ValueError) as error:
        raise ModelError(f"global_pool='{pool}' or drop_rate={drop_rate} is wrong: {reason(error)}") from None
