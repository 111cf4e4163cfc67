"""The token network: timm's vision transformer with an unrolled algorithm for its blocks. Knows no model by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from timm.layers import RotaryEmbeddingCat, calculate_drop_path_rates
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from optnet.errors import ModelError, reason, unknown
from optnet.language.declaration import Algorithm
from optnet.language.lookup import find_algorithm
from optnet.networks.design import StageProgram, design
from optnet.networks.layers import TOKEN_FAMILIES
from optnet.networks.layers.linear import Linear
from optnet.networks.layers.transformer import Parts
from optnet.networks.options import TokenOptions
from optnet.networks.rules import CONSTANTS
from optnet.networks.stage import Stage, merge
from optnet.networks.taps import newest_before, prune, with_results
from optnet.networks.trunk import Trunk, check_counts, family_of, method_options

OURS = {"self", "depth", "block_fn", "embed_layer", "embed_dim", "device", "dtype"}
TIMMS = frozenset(inspect.signature(VisionTransformer.__init__).parameters) - OURS
"""What timm's ``VisionTransformer`` takes, without what the network gives it."""
NAMES = frozenset(field.name for field in fields(TokenOptions))
PARTS = frozenset(field.name for field in fields(Parts)) - {"dim", "grid", "prefix", "device", "dtype"}


class TokenNetwork(Trunk, VisionTransformer):
    """patch embedding, positions -> unrolled algorithm -> norm, pooling, classifier; timm's model contract.

    Images are (batch, in_chans, height, width), tokens (batch, tokens, embed_dim), logits (batch, num_classes). All
    but the blocks is timm's ``VisionTransformer``. ``TokenNetwork.from_algorithm`` builds one from an algorithm.

    Args:
        program: the program of the blocks.
        layer: the layer family that the program was made for, of ``optnet.networks.layers.TOKEN_FAMILIES``.
        embed_dim: channels of a token.
        options: see ``TokenOptions``; those that shape the program are not used.
        vit: what timm's ``VisionTransformer`` takes, and ``post_norm``, ``num_parallel``, ``norm_eps`` and
            ``fuse_out_proj`` of ``Parts``.

    Raises:
        ModelError: an option is wrong. TypeError: there is no such option.
    """

    if TYPE_CHECKING:
        options: TokenOptions
        patch_embed: Any
        norm: Any
        norm_pre: Any
        _pos_embed: Any
        patch_drop: Any
        init_weights: Any
        reset_classifier: Any
        forward_head: Any
        global_pool: str
        embed_dim: int
        num_prefix_tokens: int
        num_features: int
    first_parameters = "^cls_token|reg_token|pos_embed|patch_embed|norm_pre"

    def __init__(
        self,
        program: StageProgram,
        embed_dim: int = 192,
        *,
        layer: str,
        num_heads: int = 3,
        options: TokenOptions | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **vit: Any,
    ) -> None:
        options = (options or TokenOptions()).checked()
        family = family_of(layer, TOKEN_FAMILIES)
        check_counts(num_classes=num_classes, in_chans=in_chans)
        for name in vit:
            if name not in TIMMS | PARTS:
                raise TypeError(unknown("option", name, sorted(TIMMS | PARTS)))
        given = {**vit, "num_heads": num_heads, "act_layer": options.act_layer}
        given["proj_drop_rate"] = options.proj_drop_rate
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        parts = Parts(embed_dim, **{name: value for name, value in given.items() if name in PARTS}, **placed)
        weight_init = given.pop("weight_init", "")
        timms = {name: value for name, value in given.items() if name in TIMMS}
        embed_norm = timms.get("embed_norm_layer")
        norms = {
            "norm_layer": parts.norm_class(parts.norm_layer),
            "embed_norm_layer": parts.norm_class(embed_norm) if embed_norm else None,
        }
        try:
            super().__init__(
                depth=0, embed_dim=embed_dim, num_classes=num_classes, in_chans=in_chans, global_pool=global_pool,
                drop_rate=options.drop_rate, weight_init="skip",
                **{**timms, "attn_layer": "", "mlp_layer": nn.Identity, **norms, **placed},
            )  # fmt: skip
        except (AssertionError, TypeError, ValueError, KeyError) as error:
            raise ModelError(f"a vision transformer of timm does not take this: {reason(error)}") from None
        del self.blocks
        if not self.patch_embed.num_patches:
            size = "x".join(map(str, self.patch_embed.img_size))
            raise ModelError(f"patch_size={vit.get('patch_size', 16)} is larger than the images, {size}")
        parts = replace(parts, grid=self.patch_embed.grid_size, prefix=self.num_prefix_tokens)
        if parts.attn_layer == "rope" and (self.dynamic_img_size or vit.get("patch_drop_rate")):
            raise ModelError(
                "attn_layer=rope needs all patches of one size of images: no dynamic_img_size, no patch_drop_rate"
            )
        start = program.start
        self.programs, self.widths, self.layer, self.options = [program], [embed_dim], layer, options
        self.parts = parts
        self.vit = {**vit, "num_heads": num_heads}
        if weight_init == "skip":  # another network with its programs has no weights to take over
            del self.vit["weight_init"]
        self.per_block, self.streams = family.per_block(start.main), len(start.starts)
        blocks = -(-start.iterations // self.per_block)
        rate = options.drop_path_rate
        rates = calculate_drop_path_rates(rate, blocks) if rate else [0.0] * blocks
        layers = family(parts, rates, options.velocity_norm)
        stage = Stage(program, layers, self.streams, **placed, **method_options(options))
        self.stages = nn.ModuleList([stage])
        self._widen(stage.out_chs, parts)
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            {"module": "stages.0", "num_chs": embed_dim, "reduction": reduction} for _ in range(blocks - 1)
        ] + [{"module": "stages.0", "num_chs": stage.out_chs, "reduction": reduction}]
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def _widen(self, chs: int, parts: Parts) -> None:
        """Fits the norm and the classifier to the concatenated results of a method that returns several iterates."""
        if chs == self.embed_dim:
            return
        if self.attn_pool is not None:
            raise ModelError(
                f"global_pool={self.global_pool} does not go with a method that returns several iterates; take avg"
            )
        self.embed_dim = self.num_features = self.head_hidden_size = chs
        for name in ("norm", "fc_norm"):
            if not isinstance(getattr(self, name), nn.Identity):
                setattr(self, name, replace(parts, dim=chs, num_heads=1).norm())
        self.reset_classifier(self.num_classes)

    @classmethod
    def from_algorithm(
        cls,
        algorithm: str | Callable[..., Any] | Algorithm,
        depth: int = 12,
        embed_dim: int = 192,
        *,
        constants: Mapping[str, Any] | None = None,
        layer: str | None = None,
        **options: Any,
    ) -> Self:
        """A network whose blocks are a run of an algorithm.

        Args:
            algorithm: a name, ``my_file.py:my_method``, a dotted path, a function or an ``Algorithm``.
            depth: the number of blocks; the number of iterations, or half of it with ``layer=vit_half``.
            constants: the algorithm's constants.
            options: see ``TokenOptions`` and the arguments of the class.

        Raises:
            ModelError, AlgorithmError: the algorithm or an option is wrong.
        """
        method = find_algorithm(algorithm)
        ours, vit = cls.divided({"layer": layer, **options})
        chosen = TokenOptions(**ours).checked()
        check_counts(depth=depth, embed_dim=embed_dim)
        family = family_of(chosen.layer, TOKEN_FAMILIES)
        required = [name for name, needed in method.operators.items() if needed]
        program = design(
            method, [depth * family.per_block(required[0])], layer=chosen.layer, with_P=False, tokens=True,
            reading="residual", coefficient_init=chosen.coefficient_init, constants=constants,
            per_iteration=CONSTANTS.get(chosen.coefficients), velocity_norm=chosen.velocity_norm,
        )[0]  # fmt: skip
        return cls(program, embed_dim, layer=chosen.layer, options=chosen, **vit)

    @staticmethod
    def divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of some options that are in ``TokenOptions``, and those that the class takes; without what is None."""
        given = {name: value for name, value in options.items() if value is not None}
        return (
            {name: value for name, value in given.items() if name in NAMES},
            {name: value for name, value in given.items() if name not in NAMES},
        )

    def sizes(self) -> dict[str, Any]:
        return {"depth": len(self.feature_info), "embed_dim": self.widths[0], **self.vit}

    def with_programs(self, programs: Sequence[StageProgram], **options: Any) -> Self:
        first = next(self.parameters())
        return type(self)(
            programs[0], self.widths[0], layer=self.layer, num_classes=self.num_classes, in_chans=self.in_chans,
            options=replace(self.options, **options), global_pool=self.global_pool, device=first.device,
            dtype=first.dtype, **self.vit,
        )  # fmt: skip

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        super().set_input_size(img_size, patch_size)
        for module in self.modules():
            if isinstance(module, RotaryEmbeddingCat):
                module.update_feat_shape(list(self.patch_embed.grid_size))

    def fix_init_weight(self) -> None:
        """Divides the last linear maps of block l, counted from 1, by sqrt(2 l); timm's ``fix_init``."""
        unrolled = self._stage().unrolled
        for call in unrolled.program.applies:
            for module in unrolled.body.get_submodule(unrolled.layers[call.value]).modules():
                for name in ("last", "proj", "fc2"):
                    if isinstance(last := getattr(module, name, None), Linear):
                        with torch.no_grad():
                            last.weight.div_((2 * (call.iteration // self.per_block + 1)) ** 0.5)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """timm's reader of JAX's .npz files.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"{checkpoint_path} is read as a .npz file of JAX, whose names are not this network's; read it into timm's "
            "model and convert that with optnet.convert.from_timm, or give custom_load=False with another file"
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The coefficients, and the positions and tokens that timm's ``VisionTransformer`` names."""
        return Trunk.no_weight_decay(self) | VisionTransformer.no_weight_decay(self)

    def _stage(self) -> Any:
        return self.stages[0]

    def _embed(self, x: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        streams = [x for _ in range(self.streams)]
        for stage in self.stages:
            streams = stage(streams)
        return self.norm(merge(streams, -1))

    def forward(self, x: Tensor) -> Tensor:  # a real annotation, not a string: fx copies it into the generated code
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The iterates after the blocks, with or without the final features; timm's contract.

        An inner block's output is the newest iterate that the next block's layers read.

        Args:
            output_fmt: ``NCHW``, or ``NLC`` for (batch, tokens, channels).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ModelError(f"output_fmt='{output_fmt}' is unknown; it is NCHW or NLC")
        batch, _, height, width = x.shape
        take, deepest = feature_take_indices(len(self.feature_info), indices)
        *inner, last = self._outputs()
        early = stop_early and deepest < len(inner)
        wanted = [inner[i] for i in take if i < len(inner)]
        x = self._embed(x)
        tokens = with_results(self._stage().unrolled, wanted if early else wanted + last)([x] * self.streams)
        found = [*tokens[: len(wanted)]]
        final = found[-1] if early else self._merged(tokens[len(wanted) :])
        if len(inner) in take:
            found.append(final)
        if norm:
            found = [self._normed(one) for one in found]
        prefix = [one[:, : self.num_prefix_tokens] for one in found]
        spatial = [one[:, self.num_prefix_tokens :] for one in found]
        if output_fmt == "NCHW":
            size = self.patch_embed.dynamic_feat_size((height, width))
            spatial = [one.reshape(batch, *size, -1).permute(0, 3, 1, 2).contiguous() for one in spatial]
        intermediates = list(zip(spatial, prefix, strict=True)) if return_prefix_tokens else spatial
        return intermediates if intermediates_only else (self._normed(final), intermediates)

    def _outputs(self) -> list[Any]:
        """For each block but the last, the value that is its output; for the last, the list of the results."""
        program = self._stage().unrolled.program
        inner = range(self.per_block, program.iterations, self.per_block)
        return [*(newest_before(program, iteration) for iteration in inner), list(program.results)]

    def _normed(self, x: Tensor) -> Tensor:
        """The last norm is that of the results, which may be wider than the iterates in between."""
        return self.norm(x) if x.shape[-1] == self.num_features else x

    def _merged(self, results: list[Tensor]) -> Tensor:
        return merge(results if self._stage().out_streams > 1 else [torch.cat(results, -1)], -1)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks after the last of ``indices``; timm's contract."""
        take, deepest = feature_take_indices(len(self.feature_info), indices)
        if deepest < len(self.feature_info) - 1:
            prune(self._stage().unrolled, self._outputs()[deepest])
            self._stage().out_streams = 1
            self.feature_info = self.feature_info[: deepest + 1]
            prune_norm |= self.num_features != self.widths[0]
            self.embed_dim = self.num_features = self.feature_info[-1]["num_chs"]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take
