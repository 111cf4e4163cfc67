"""The options of the networks, each declared once. Builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from optnet.errors import ModelError
from optnet.language.tracing import READINGS
from optnet.networks.activation_checkpointing import MEMORY
from optnet.networks.design import COEFFICIENT_INITS, TRANSITIONS
from optnet.networks.ends import STEMS
from optnet.networks.layers import DROP_PLACES, FAMILIES, NORMS, PIXEL_NORMS, PLACES, TOKEN_FAMILIES
from optnet.networks.unrolled import COEFFICIENTS, SYNONYMS
from optnet.options import check, choice, number, option, words


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The options of every network: how its algorithm is read and what becomes of its coefficients.

    Raises:
        ModelError: from ``checked``: a value is unknown or out of range.
    """

    coefficients: str = choice(
        "learnable", *COEFFICIENTS, synonyms=SYNONYMS,
        help="the algorithm's coefficients: trained freely, fixed, or trained under a rule",
    )  # fmt: skip
    coefficient_init: str = choice(
        "ancestor", *COEFFICIENT_INITS, help="start at the classical network's coefficients or at the algorithm's own"
    )
    per_channel: bool = option(False, help="one coefficient per channel instead of one per term")
    memory: str = choice(
        "keep", *MEMORY, help="keep the activations for the backward pass, or recompute them (activation checkpointing)"
    )
    drop_rate: float = number(0.0, 0, 1, help="dropout before the classifier")
    proj_drop_rate: float = number(
        0.0, 0, 1,
        help="dropout inside dense layers (DenseNet takes 0.2 without augmentation) and after the linear maps of a "
        "transformer",
    )  # fmt: skip
    drop_path_rate: float = number(
        0.0, 0, 1,
        help="stochastic depth of convnext layers and transformers: the last one's rate; it grows linearly with depth",
    )  # fmt: skip
    act_layer: str | None = option(
        None, example="relu", help="the activation, by timm's name; null: the layer's default, relu or gelu"
    )

    def checked(self) -> Self:
        """Checks that every value is in its range; returns the options, with the word for each synonym."""
        check(self, error=ModelError)
        settled: dict[str, Any] = words(self)
        return replace(self, **settled)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(MethodOptions):
    """The options of an image network, apart from its algorithm, its sizes and its number of classes."""

    layer: str | None = choice(None, *FAMILIES, help="the layer family; null: the one that suits the algorithm")
    reading: str | None = choice(
        None, *READINGS, help="map: T is the layer; residual: T = id + F, F is the layer; null: the one that suits"
    )
    transition: str = choice(
        "restart", *TRANSITIONS, help="restart the algorithm in each stage, or project every live iterate into the next"
    )
    norm: str | None = choice(
        None, *NORMS, *PIXEL_NORMS,
        help="the norm; mean: mean-only batch norm; weight: weight normalisation; weight_mean: both; layer, rms and "
        "simple are norms over a pixel's channels, for convnext layers; null: the layer's default",
    )  # fmt: skip
    norm_place: str | None = choice(
        None, *PLACES, help="norms after or before the linear maps; null: the layer's default"
    )
    stem: str = choice(
        "small", *STEMS,
        help="a 3x3 convolution; imagenet: 7x7 with stride 2 and max pooling; patch: 4x4 with stride 4; overlap: "
        "3x3 with stride 2, twice, the first half as wide (overlap_tiered) or with an activation (overlap_act)",
    )  # fmt: skip
    stem_width: int | None = number(None, 1, help="the stem's channels; null: the first stage's width", example=16)
    proj_drop_place: str = choice(
        "layers",
        *DROP_PLACES,
        help="that dropout comes after each dense layer, as in timm, or after every convolution but the first, as in "
        "the paper",
    )
    ls_init_value: float | None = number(
        None, 0, example=1e-6,
        help="what the layer scale of convnext layers starts from; 0: there is none; null: 1e-6, or none with use_grn",
    )  # fmt: skip
    use_grn: bool = option(False, help="global response norm in convnext layers, as in ConvNeXt V2")
    conv_mlp: bool = option(
        False, help="1x1 convolutions for the linear layers of convnext layers, as in small ConvNeXts"
    )
    kernel_sizes: list[int] | None = option(
        None, example=[7, 7], help="the depthwise kernel of convnext layers in each stage, an odd number; null: 7"
    )
    head_norm_first: bool = option(False, help="the last norm of a network of convnext layers comes before the pooling")
    head_hidden_size: int | None = number(
        None, 1, example=64, help="units of a hidden layer before the classifier, after convnext layers; null: none"
    )

    def check(self) -> None:
        """Raises:
        ModelError: the kernels are no odd whole numbers.
        """
        kernels = self.kernel_sizes
        if kernels is None:
            return
        if not isinstance(kernels, (list, tuple)) or any(type(k) is not int or k < 1 or k % 2 == 0 for k in kernels):
            raise ModelError(f"kernel_sizes={kernels!r} must be a list of odd whole numbers, one for each stage")


@dataclass(frozen=True, kw_only=True)
class TokenOptions(MethodOptions):
    """The options of a network on tokens, apart from its algorithm and what timm's ``VisionTransformer`` takes."""

    layer: str = choice(
        "vit_half", *TOKEN_FAMILIES, help="the layer family: how a step is split into attention and the MLP"
    )
    velocity_norm: bool = option(False, help="a norm of the velocity, for methods that carry one")
