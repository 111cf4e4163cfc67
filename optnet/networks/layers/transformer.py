"""The parts of transformer blocks as steps T = id + F on tokens (batch, tokens, channels). Rewrites none of timm's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import (
    Attention,
    AttentionRope,
    DiffAttention,
    DropPath,
    GluMlp,
    Mlp,
    RotaryEmbeddingCat,
    SwiGLU,
    SwiGLUPacked,
    get_act_layer,
    get_norm_layer,
)
from torch import Tensor, nn

from optnet.errors import ModelError, unknown
from optnet.networks.layers.linear import LayerScale, Linear, Unscaled
from optnet.networks.layers.style import ACTIVATIONS
from optnet.options import one_of


class RotaryAttention(AttentionRope):
    """Attention whose queries and keys are turned by angles that follow from their places in the image.

    Su et al. 2021; in two dimensions as in EVA-02, Fang et al. 2023.

    Args:
        grid: the patches in height and width.
        prefix: the tokens before them, which have no place.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], prefix: int, **options: Any) -> None:
        super().__init__(dim, num_heads, num_prefix_tokens=prefix, **options)
        placed = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.rope = RotaryEmbeddingCat(dim // num_heads, in_pixels=False, feat_shape=list(grid), **placed)

    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = super().forward(x, rope=self.rope.get_embed())
        return turned


ATTENTIONS: dict[str, type[nn.Module]] = {"attn": Attention, "diff": DiffAttention, "rope": RotaryAttention}
MLPS: dict[str, Any] = {"mlp": Mlp, "glu": GluMlp, "swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}


@dataclass(frozen=True)
class Parts:
    """What the blocks of a vision transformer consist of; the names are those of timm's ``VisionTransformer``.

    Attributes:
        dim: channels of a token.
        attn_layer, mlp_layer: one of ``ATTENTIONS`` and ``MLPS``.
        norm_layer, act_layer: timm's names.
        norm_eps: the constant of every norm; None for the norm's own.
        init_values: what layer scales start at; None for no layer scale.
        post_norm: whether the norm comes after a branch instead of before it (Liu et al. 2022, Swin V2).
        num_parallel: the number of branches in the place of one (Touvron et al. 2022).
        grid, prefix: the patches in height and width, and the tokens before them; for ``attn_layer=rope``.
        fuse_out_proj: whether attention and an MLP at one point have one bias after them, not two.

    Raises:
        ModelError: there is no such layer, or the heads do not divide the channels.
    """

    dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    scale_attn_norm: bool = False
    scale_mlp_norm: bool = False
    proj_bias: bool = True
    init_values: float | None = None
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    norm_layer: str | None = None
    norm_eps: float | None = None
    act_layer: str | None = None
    attn_layer: str = "attn"
    mlp_layer: str = "mlp"
    post_norm: bool = False
    num_parallel: int = 1
    grid: tuple[int, int] = (0, 0)
    prefix: int = 0
    fuse_out_proj: bool = False
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        one_of("attn_layer", self.attn_layer, ATTENTIONS, ModelError)
        one_of("mlp_layer", self.mlp_layer, MLPS, ModelError)
        for count in ("dim", "num_heads", "num_parallel"):
            if type(getattr(self, count)) is not int or getattr(self, count) < 1:
                raise ModelError(f"{count}={getattr(self, count)!r} must be a whole number of at least 1")
        if self.dim % self.num_heads:
            raise ModelError(f"num_heads={self.num_heads} must divide the {self.dim} channels of a token")
        if self.attn_layer == "rope" and self.dim // self.num_heads % 4:
            raise ModelError(f"attn_layer=rope needs 4, 8, 12, ... channels a head, not {self.dim // self.num_heads}")
        self.norm_class(self.norm_layer)
        self._act_class()
        if not self.mlp_ratio * self.dim >= 1:
            raise ModelError(f"mlp_ratio={self.mlp_ratio} leaves the MLP no hidden unit")

    @property
    def placed(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype}

    def norm_class(self, name: str | None) -> Any:
        """What makes the norm of a name, a layer norm for None, with the constant of all norms."""
        try:
            made = get_norm_layer(name) or get_norm_layer("layernorm")
        except (KeyError, AssertionError):
            raise ModelError(f"norm_layer={name} is unknown; layernorm and rmsnorm are for tokens") from None
        return made if self.norm_eps is None else partial(made, eps=self.norm_eps)

    def norm(self) -> nn.Module:
        made: nn.Module = self.norm_class(self.norm_layer)(self.dim, **self.placed)
        return made

    def attention(self, depth: int) -> nn.Module:
        kind = ATTENTIONS[self.attn_layer]
        of_kinds: dict[type[nn.Module], dict[str, Any]] = {
            DiffAttention: {"depth": depth}, RotaryAttention: {"grid": self.grid, "prefix": self.prefix},
        }  # fmt: skip
        more = of_kinds.get(kind, {})
        return kind(
            self.dim, num_heads=self.num_heads, qkv_bias=self.qkv_bias, qk_norm=self.qk_norm,
            scale_norm=self.scale_attn_norm, proj_bias=self.proj_bias, attn_drop=self.attn_drop_rate,
            proj_drop=self.proj_drop_rate, norm_layer=self.norm_class(self.norm_layer), **more, **self.placed,
        )  # fmt: skip

    def _act_class(self) -> Any:
        try:
            return get_act_layer(self.act_layer) or nn.GELU
        except (KeyError, AssertionError):
            raise ModelError(unknown("act_layer", self.act_layer, ACTIVATIONS)) from None

    def act(self) -> nn.Module:
        made: nn.Module = self._act_class()()
        return made

    def mlp(self, share: float = 1.0, bias: tuple[bool, bool] | None = None) -> nn.Module:
        """The MLP.

        Args:
            share: of the hidden units.
            bias: whether its first and its last linear map have one; None for ``proj_bias``.
        """
        made: nn.Module = MLPS[self.mlp_layer](
            self.dim, hidden_features=int(self.dim * self.mlp_ratio * share), act_layer=self._act_class(),
            norm_layer=self.norm_class(self.norm_layer) if self.scale_mlp_norm else None,
            bias=(self.proj_bias, self.proj_bias) if bias is None else bias, drop=self.proj_drop_rate, **self.placed,
        )  # fmt: skip
        return made

    def layer_scale(self) -> nn.Module:
        return LayerScale(self.dim, self.init_values, **self.placed) if self.init_values else Unscaled()


def _take_last(module: Any, last: str, dropout: str) -> tuple[Linear, nn.Module]:
    """Takes the last linear map of one of timm's modules out of it, and the dropout after it."""
    old, dropped = getattr(module, last), getattr(module, dropout)
    made = Linear(
        old.in_features, old.out_features, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
    )
    made.load_state_dict(old.state_dict())
    setattr(module, last, nn.Identity())
    setattr(module, dropout, nn.Identity())
    return made, dropped


def _placed(weight: Tensor | None, into_last: bool) -> tuple[Tensor | None, Tensor | None]:
    """The weight of a branch, passed either to its last linear map or to its layer scale."""
    return (weight, None) if into_last else (None, weight)


class HalfStep(nn.Module):
    """``F(x) = w gamma (W f(norm x))``: attention or the MLP of a block, ``f`` without its last linear map W.

    The weight w scales gamma if there is a layer scale, else W. With ``post_norm``, F(x) = w norm(W f(x)).

    Args:
        share: a constant factor of F, for a step of half the length.
        inner: one of timm's attention or MLP modules.
        last, dropout: the names of its last linear map, and of the dropout after it.
        drop_path: the rate of stochastic depth.
    """

    def __init__(
        self, parts: Parts, inner: nn.Module, last: str, dropout: str, drop_path: float = 0.0, share: float = 1.0
    ) -> None:
        super().__init__()
        if parts.fuse_out_proj:
            raise ModelError("fuse_out_proj=true needs attention and the MLP at one point; take layer=vit_parallel")
        self.share = share
        self.norm = nn.Identity() if parts.post_norm else parts.norm()
        self.last, self.drop = _take_last(inner, last, dropout)
        self.inner = inner
        self.post_norm = parts.norm() if parts.post_norm else nn.Identity()
        self.ls = Unscaled() if parts.post_norm else parts.layer_scale()
        self.scales_last = not parts.post_norm and isinstance(self.ls, Unscaled)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        if parts.post_norm and parts.init_values is not None:
            nn.init.constant_(self.post_norm.weight, parts.init_values)  # type: ignore[arg-type]

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        weight: Tensor | None = None
        if weights is not None:
            weight = weights[0] if self.share == 1.0 else weights[0] * self.share
        elif self.share != 1.0:
            weight = torch.full([], self.share, device=x[0].device, dtype=x[0].dtype)
        into_last, into_scale = _placed(weight, self.scales_last)
        out = self.drop(self.last(self.inner(self.norm(x[0])), into_last))
        return self.drop_path(self.ls(self.post_norm(out), into_scale)).type_as(x[0])


def attention(parts: Parts, drop_path: float = 0.0, depth: int = 0) -> nn.Module:
    """The half-step of attention. Vaswani et al. 2017; before it a norm: Xiong et al. 2020."""
    return _several(parts, lambda: HalfStep(parts, parts.attention(depth), "proj", "proj_drop", drop_path))


def mlp(parts: Parts, drop_path: float = 0.0, share: float = 1.0) -> nn.Module:
    """The half-step of the MLP, or a share of it with that share of the hidden units."""
    return _several(parts, lambda: HalfStep(parts, parts.mlp(share), "fc2", "drop2", drop_path, share))


def _several(parts: Parts, make: Any) -> nn.Module:
    return make() if parts.num_parallel == 1 else Sum([make() for _ in range(parts.num_parallel)])


class Sum(nn.Module):
    """``F(x) = w sum_i F_i(x)``: branches in parallel. Touvron et al. 2022."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        found: list[Tensor] = []
        for branch in self.branches:
            found.append(branch(x, weights))
        return torch.stack(found).sum(0)


class Composition(nn.Module):
    """``F(x) = w (S_n ... S_1 x - x)``, S_i = id + F_i: one after the other. One step of an operator splitting.

    With y = S_{n-1} ... S_1 x, this is w (y - x) + w F_n(y), and F_n takes its w into its last linear map.
    """

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps[:-1])
        self.last = steps[-1]

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        y = x[0]
        moved: list[Tensor] = []
        for step in self.steps:
            moved.append(step([y]))
            y = y + moved[-1]
        out = self.last([y], weights)
        if weights is None:
            for move in moved:
                out = out.add_(move)
            return out
        w = weights[0].type_as(out)
        return out.addcmul_(y, w).addcmul_(x[0], -w)


class Parallel(nn.Module):
    """``F(x) = w gamma (A(norm x) + M(norm x))``: attention and the MLP at one point, with one norm.

    Wang and Komatsuzaki 2021 (GPT-J), Dehghani et al. 2023 (ViT-22B). The MLP's first map always has a bias, as in
    timm's ``ParallelScalingBlock``.
    """

    def __init__(self, parts: Parts, drop_path: float = 0.0, depth: int = 0) -> None:
        super().__init__()
        if parts.post_norm or parts.num_parallel > 1:
            raise ModelError("layer=vit_parallel has neither post_norm=true nor num_parallel; take layer=vit")
        self.norm = parts.norm()
        self.attn = parts.attention(depth)
        self.mlp = parts.mlp(bias=(True, parts.proj_bias and not parts.fuse_out_proj))
        self.proj, self.proj_drop = _take_last(self.attn, "proj", "proj_drop")
        self.fc2, self.fc2_drop = _take_last(self.mlp, "fc2", "drop2")
        self.ls = parts.layer_scale()
        self.scales_last = isinstance(self.ls, Unscaled)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
        into_last, into_scale = _placed(None if weights is None else weights[0], self.scales_last)
        normed = self.norm(x[0])
        out = self.proj_drop(self.proj(self.attn(normed), into_last))
        out = out + self.fc2_drop(self.fc2(self.mlp(normed), into_last))
        return self.drop_path(self.ls(out, into_scale)).type_as(x[0])
