"""The registered models on tokens: presets of ``TokenNetwork`` that ``timm.create_model`` knows by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from optnet.errors import ModelError
from optnet.language.declaration import Algorithm
from optnet.networks.convert import checkpoint_filter
from optnet.networks.design import StageProgram
from optnet.networks.features import Features
from optnet.networks.options import TokenOptions
from optnet.networks.tokens import TokenNetwork


@dataclass(frozen=True)
class TokenPreset:
    """A named model.

    Attributes:
        algorithm: its name.
        depth, embed_dim, num_heads: the number of blocks, the channels of a token, and its attention heads.
        options: what else ``TokenNetwork.from_algorithm`` takes.
        ancestor: timm's model whose weights it can load, or "".
    """

    algorithm: str
    depth: int
    embed_dim: int
    num_heads: int
    options: Mapping[str, Any] = field(default_factory=dict)
    ancestor: str = ""


METHODS = {"gd": "gradient_descent", "hb": "heavy_ball", "agd": "nesterov", "ogm": "optimized_gradient"}
"""The algorithms of the named models, by the beginning of their names."""
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
_SMALL_IMAGES = {"img_size": 32, "patch_size": 4, "mlp_ratio": 2.0, "num_classes": 10}
_FIXED = ("gradient_descent",)
"""Their models have no learnable coefficients: they are timm's."""
_AT_THE_ANCESTOR = ("gradient_descent", "heavy_ball", "nesterov")
"""Their models start as timm's, and so take published weights; the optimized gradient method has no such setting."""


def _presets() -> dict[str, TokenPreset]:
    made = {}
    for short, algorithm in METHODS.items():
        fixed = {"coefficients": "fixed"} if algorithm in _FIXED else {}
        made[f"{short}vit_cifar"] = TokenPreset(algorithm, 7, 256, 4, {**_SMALL_IMAGES, **fixed})  # ViT-Lite-7/4
        for size, (chs, heads) in _SIZES.items():
            name = f"vit_{size}_patch16_224"
            ancestor = name if algorithm in _AT_THE_ANCESTOR else ""
            made[f"{short}{name}"] = TokenPreset(algorithm, 12, chs, heads, fixed, ancestor)
    return made


TOKEN_MODELS = _presets()


def _cfg(small: bool) -> dict[str, Any]:
    """The images that a model without published weights is meant for: those of CIFAR-10 or ImageNet."""
    shared = {
        "fixed_input_size": True, "pool_size": None, "interpolation": "bicubic", "first_conv": "patch_embed.proj",
        "classifier": "head", "license": "mit",
    }  # fmt: skip
    if small:
        return shared | {
            "num_classes": 10, "input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
        }  # fmt: skip
    half = (0.5, 0.5, 0.5)  # as timm's
    return shared | {"num_classes": 1000, "input_size": (3, 224, 224), "crop_pct": 0.9, "mean": half, "std": half}


def _default_cfgs() -> dict[str, Any]:
    cfgs: dict[str, Any] = {}
    for name, preset in TOKEN_MODELS.items():
        if preset.ancestor:
            for published in timm.list_pretrained(f"{preset.ancestor}.*"):
                cfg = timm.get_pretrained_cfg(published)
                assert cfg is not None
                npz = {"custom_load": False, "url": None} if cfg.custom_load else {}  # the hub has them as safetensors
                cfgs[f"{name}.{published.partition('.')[2]}"] = replace(cfg, **npz)
        else:
            cfgs[name] = _cfg(small=preset.options.get("img_size") == 32)
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())


def build_token_network(
    algorithm: str | Callable[..., Any] | Algorithm | None = None,
    depth: int = 12,
    embed_dim: int = 192,
    *,
    programs: Sequence[Mapping[str, Any]] | None = None,
    layer: str | None = None,
    constants: Mapping[str, Any] | None = None,
    **options: Any,
) -> TokenNetwork:
    """A token network from an algorithm, or from its program as a checkpoint holds it, which runs no user file.

    Raises:
        ModelError: neither is given, or an option is wrong.
    """
    if programs is None:
        if algorithm is None:
            raise ModelError("algorithm is missing; see optnet.list_algorithms()")
        return TokenNetwork.from_algorithm(algorithm, depth, embed_dim, layer=layer, constants=constants, **options)
    if layer is None or len(programs) != 1:
        raise ModelError("programs= takes one program for a network on tokens, and layer=, the family it was made for")
    ours, vit = TokenNetwork.divided(options)
    return TokenNetwork(
        StageProgram.from_json(programs[0]), embed_dim, layer=layer, options=TokenOptions(layer=layer, **ours), **vit
    )


def _entry_point(name: str, preset: TokenPreset) -> Callable[..., nn.Module]:
    features = {"out_indices": 3, "feature_cls": Features}

    def create(pretrained: bool = False, feature_cfg: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
        own = {
            "algorithm": preset.algorithm, "depth": preset.depth, "embed_dim": preset.embed_dim,
            "num_heads": preset.num_heads, **preset.options,
        }  # fmt: skip
        if kwargs.get("algorithm") and kwargs.get("programs") is None:
            own.pop("coefficients", None)  # of its own algorithm
        model: nn.Module = build_model_with_cfg(
            build_token_network, name, pretrained, pretrained_filter_fn=checkpoint_filter,
            feature_cfg={**features, **(feature_cfg or {})}, **{**own, **kwargs},
        )  # fmt: skip
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{preset.algorithm} as a vision transformer; see ``TokenNetwork.from_algorithm``."
    return create


for _name, _preset in TOKEN_MODELS.items():
    register_model(_entry_point(_name, _preset))
