"""The image network: stem, stages, head, and timm's model contract. Knows no algorithm and no model by name."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from timm.layers import calculate_drop_path_rates, get_device_dtype
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from optnet.errors import ModelError
from optnet.language.declaration import Algorithm
from optnet.language.lookup import find_algorithm
from optnet.language.program import Program
from optnet.networks.design import StageProgram, design, suitable_layer
from optnet.networks.ends import STEMS, head, stem
from optnet.networks.initialisation import set_weight
from optnet.networks.layers import FAMILIES, Style
from optnet.networks.options import NetworkOptions
from optnet.networks.rules import CONSTANTS
from optnet.networks.stage import Stage, merge
from optnet.networks.trunk import Trunk, check_counts, family_of, method_options


def _shown(this: Program, following: Program, streams: int) -> int:
    """The number of the stream that represents the features: the one that the next stage's first layer reads, else the
    last. It is -1, for the mean of all, if the streams are the algorithm's own and not carried iterates."""
    if len(this.results) == streams or len(following.starts) == streams:
        return -1
    read = following.calls(following.main)[0].argument
    return following.starts.index(read) if read in following.starts else len(following.starts) - 1


class Network(Trunk):
    """stem -> [transition -> unrolled algorithm] x stages -> head; timm's model contract.

    Images are (batch, in_chans, height, width), features (batch, channels, height, width), logits (batch, num_classes).
    ``Network.from_algorithm`` builds one from an algorithm.

    Args:
        programs: the program of each stage.
        widths: the width of each stage, in channels.
        layer: the layer family that the programs were made for, of ``optnet.networks.layers.FAMILIES``.
        options: see ``NetworkOptions``; those that shape the programs are not used.
        global_pool: the pooling of the head, by timm's name.
        device, dtype: those of every parameter.

    Raises:
        ModelError: an option is wrong, or the programs are not the stages of one network.
    """

    if TYPE_CHECKING:
        options: NetworkOptions

    def __init__(
        self,
        programs: Sequence[StageProgram],
        widths: Sequence[int],
        *,
        layer: str,
        options: NetworkOptions | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options = (options or NetworkOptions()).checked()
        family = family_of(layer, FAMILIES)
        check_counts(widths=widths, num_classes=num_classes, in_chans=in_chans)
        _check_stages(programs, widths, layer)
        if options.per_channel and not family.one_width:
            raise ModelError(
                f"per_channel=true does not go with layer={layer}: its sums and its iterates differ in width"
            )
        if options.proj_drop_rate and not family.drops:
            raise ModelError(
                f"proj_drop_rate={options.proj_drop_rate:g} does not go with layer={layer}, whose layers have no "
                f"dropout; drop_rate is the dropout before the classifier"
            )
        options = _settled(options, layer, len(widths))
        shared = {key.name for key in fields(Style)} & {key.name for key in fields(options)}
        style = Style(**{name: getattr(options, name) for name in shared}, device=device, dtype=dtype)
        how = {**method_options(options), "device": device, "dtype": dtype}
        self.programs, self.widths, self.layer, self.options = list(programs), list(widths), layer, options
        self.num_classes, self.in_chans = num_classes, in_chans
        self.streams = len(programs[0].start.starts)
        followed = itertools.pairwise(program.start for program in programs)
        self.shown = [_shown(this, following, self.streams) for this, following in followed] + [-1]

        chs = options.stem_width or widths[0]
        reduction = STEMS[options.stem]
        self.stem = stem(options.stem, style, family, in_chans, chs)
        rates, kernels = _path_rates(options.drop_path_rate, programs), options.kernel_sizes or [7] * len(widths)
        self.stages = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        for i, (program, width) in enumerate(zip(programs, widths, strict=True)):
            stride = 1 if i == 0 else 2
            reduction *= stride
            following = programs[(i + 1) % len(programs)].start
            own = replace(style, drop_path_rates=rates[i], kernel_size=kernels[i])
            stage = Stage(program, family(chs, width, stride, i == 0, own), len(following.starts), **how)
            if i and stage.streams != self.stages[-1].out_streams:
                raise ModelError(
                    f"{program.start.name} returns {self.stages[-1].out_streams} iterate(s) to a stage with "
                    f"{stage.streams} starting points; return as many as it starts from"
                )
            self.stages.append(stage)
            chs = stage.out_chs
            self.feature_info.append({"num_chs": chs, "reduction": reduction, "module": f"stages.{i}"})
        last = [style.norm_layer(chs)] if family.final_norm or options.head_norm_first else []
        last += [style.first_act()] if family.final_norm else []
        self.norm = nn.Sequential(*last) if last else nn.Identity()
        self.num_features = chs
        normed = family.head_norm and not options.head_norm_first
        self.head = head(style, normed, chs, num_classes, global_pool, options.drop_rate, options.head_hidden_size)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    @classmethod
    def from_algorithm(
        cls,
        algorithm: str | Callable[..., Any] | Algorithm,
        blocks: Sequence[int] = (2, 2),
        widths: Sequence[int] = (16, 32),
        *,
        constants: Mapping[str, Any] | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """A network whose stages are runs of an algorithm.

        Args:
            algorithm: a name, ``my_file.py:my_method``, a dotted path, a function or an ``Algorithm``.
            blocks, widths: the iterations and the width of each stage.
            constants: the algorithm's constants.
            options: see ``NetworkOptions``.

        Raises:
            ModelError, AlgorithmError: the algorithm or an option is wrong.
        """
        method = find_algorithm(algorithm)
        chosen = NetworkOptions(**options).checked()
        layer = chosen.layer or suitable_layer(method)
        check_counts(blocks=blocks, widths=widths)
        programs = design(
            method, blocks, with_P=family_of(layer, FAMILIES).takes_P, layer=layer, reading=chosen.reading,
            coefficient_init=chosen.coefficient_init, transition=chosen.transition, constants=constants,
            per_iteration=CONSTANTS.get(chosen.coefficients),
        )  # fmt: skip
        return cls(
            programs, widths, layer=layer, options=chosen, num_classes=num_classes, in_chans=in_chans,
            global_pool=global_pool, device=device, dtype=dtype,
        )  # fmt: skip

    def sizes(self) -> dict[str, Any]:
        blocks = [stage.start.iterations for stage in self.programs]
        return {
            "blocks": blocks, "widths": list(self.widths), "stem_width": self.options.stem_width or self.widths[0],
        }  # fmt: skip

    def with_programs(self, programs: Sequence[StageProgram], **options: Any) -> Self:
        first = next(self.parameters())
        return type(self)(
            programs, self.widths, layer=self.layer, num_classes=self.num_classes, in_chans=self.in_chans,
            options=replace(self.options, **options), global_pool=self.head.global_pool.pool_type,
            device=first.device, dtype=first.dtype,
        )  # fmt: skip

    @torch.jit.ignore
    def init_weights(self) -> None:
        """The layer family's own initialisation of its linear maps; everything else keeps its initial values."""
        family = FAMILIES[self.layer]
        for module in self.modules():
            if isinstance(module, family.filled):
                weight = torch.empty_like(cast(Tensor, module.weight))
                family.fill(weight)
                set_weight(module, weight)
                if module.bias is not None:
                    nn.init.zeros_(cast(Tensor, module.bias))

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        where = get_device_dtype(self)
        self.head.reset(num_classes, global_pool, reset_other, in_features=self.num_features, **where)
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        streams = [x for _ in range(self.streams)]
        for stage in self.stages:
            streams = stage(streams)
        return self.norm(merge(streams, self.shown[len(self.stages) - 1]))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:  # a real annotation, not a string: fx copies it into the generated code
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The stages' outputs (streams merged), with or without the final features; timm's contract.

        With ``transition='project'``, an inner stage's output is the iterate that the next layer reads. With
        ``stop_early``, the final features are those of the last stage that ran; the last norm acts only after the last
        stage of the network.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"output_fmt='{output_fmt}' is unknown; features are NCHW")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        streams = [x for _ in range(self.streams)]
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            streams = stage(streams)
            x = merge(streams, self.shown[i])
            final = self.norm(x) if i == len(self.stages) - 1 else x
            if i in take:
                intermediates.append(final if norm else x)
        return intermediates if intermediates_only else (final, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last of ``indices``; timm's contract."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm or last + 1 < len(self.programs):
            self.norm = nn.Identity()
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last + 1 < len(self.programs):
            self.reset_classifier(0, "", reset_other=True)
        return take


def _check_stages(programs: Sequence[StageProgram], widths: Sequence[int], layer: str) -> None:
    """Checks that the programs are the stages of one network."""
    if not programs or len(programs) != len(widths):
        raise ModelError(f"there are {len(programs)} programs and {len(widths)} widths; give one of each per stage")
    first = programs[0].start
    if any(two.start.starts not in (one.start.results, first.starts) for one, two in itertools.pairwise(programs)):
        raise ModelError("the programs are not the stages of one network in their order; give Network.programs")
    for i, program in enumerate(programs, 1):
        if not program.start.calls(program.start.main):
            raise ModelError(
                f"stage {i} of {len(programs)} has no call of {program.start.main}; give other blocks, or "
                f"transition=restart"
            )
        if len(program.start.starts) > len(first.starts) and not family_of(layer, FAMILIES).same_start:
            raise ModelError(f"transition=project does not go with layer={layer}, whose iterates have different widths")


def _settled(options: NetworkOptions, layer: str, stages: int) -> NetworkOptions:
    """The options with the layer family's norm and activation in the place of null.

    Raises:
        ModelError: an option does not go with the layer family, or has not one entry for each stage.
    """
    family = family_of(layer, FAMILIES)
    for name in sorted({name for other in FAMILIES.values() for name in other.takes} - set(family.takes)):
        given = getattr(options, name)
        if given != getattr(NetworkOptions(), name):
            raise ModelError(f"{name}={given} does not go with layer={layer}, whose networks have nothing like it")
    kernels = options.kernel_sizes
    if kernels is not None and len(kernels) != stages:
        raise ModelError(f"kernel_sizes={list(kernels)} must have one entry for each of {stages} stages")
    return replace(
        options, norm=options.norm or family.norms[0], act_layer=options.act_layer or family.act_layer
    )  # fmt: skip


def _path_rates(rate: float, programs: Sequence[StageProgram]) -> list[dict[int, float]]:
    """The rates of stochastic depth of each stage's layers T, by the numbers of their calls; they grow linearly."""
    if not rate:
        return [{} for _ in programs]
    calls = [[call.index for call in program.start.calls(program.start.main)] for program in programs]
    rates = calculate_drop_path_rates(rate, [len(numbers) for numbers in calls], stagewise=True)
    return [dict(zip(numbers, grown, strict=True)) for numbers, grown in zip(calls, rates, strict=True)]
