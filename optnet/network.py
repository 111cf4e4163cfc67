"""The one network class: stem, stages, head, and timm's model contract. Knows no algorithm and no model by name."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, get_act_layer, get_device_dtype
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from optnet.algorithms import find_algorithm
from optnet.design import StageProgram, design, suitable_layer
from optnet.errors import ModelError
from optnet.initialisation import set_weight
from optnet.layers import FAMILIES, NORMS, PLACES, Family, Style
from optnet.program import Program
from optnet.recomputing import MEMORY
from optnet.tracing import Algorithm
from optnet.unroll import COEFFICIENTS, Unrolled, unroll


class Stage(nn.Module):
    """One run of the algorithm at one width, or its part there: a transition, then the unrolled steps.

    Takes and returns a list of tensors (batch, channels, height, width), one for each stream: the results, if there
    are as many as the next stage (behind the last stage: the algorithm) has starting points, else one stream of all
    results side by side.
    """

    def __init__(self, program: StageProgram, family: Family, next_streams: int, **options: Any) -> None:
        super().__init__()
        start = program.start
        self.streams = len(start.starts)
        self.out_streams = len(start.results) if len(start.results) in (1, next_streams) else 1
        self.out_chs = family.out_chs(start.results.count(start.starts[0]), len(start.results) // self.out_streams)
        self.transitions = nn.ModuleList(family.transition() for _ in range(self.streams))
        operators = {name: family.T() if name == start.main else family.P() for name in start.operators}
        shortcuts = {name: family.shortcut() for name in start.starts}
        self.steps = unroll(
            start, textbook=program.textbook, operators=operators, channels=family.chs, packed=True, **options,
            shortcuts={name: layer for name, layer in shortcuts.items() if layer is not None or not family.same_start},
        )  # fmt: skip
        for i in set(range(self.streams)) - self.steps.reads():
            self.transitions[i] = nn.Identity()

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        starts: list[Tensor] = []
        for i, transition in enumerate(self.transitions):
            starts.append(transition(streams[i]))
        results: list[Tensor] = self.steps(starts)
        return [torch.cat(results, 1)] if len(results) > self.out_streams else results


def _merge(streams: list[Tensor], shown: int) -> Tensor:
    """One tensor of all streams: the one of that number, or with -1 their mean."""
    if shown >= 0:
        return streams[shown]
    total = streams[0]
    for stream in streams[1:]:
        total = total + stream
    return total if len(streams) == 1 else total / len(streams)


def _shown(this: Program, following: Program, streams: int) -> int:
    """Which of the values carried into the next stage stands for the features: the one that its first layer reads, else
    the last; of an algorithm's own streams (-1) all do."""
    if len(this.results) == streams or len(following.starts) == streams:
        return -1
    read = next(step.argument for step in following.applies if step.operator == following.main)
    return following.starts.index(read) if read in following.starts else len(following.starts) - 1


class Network(nn.Module):
    """stem -> [transition -> unrolled algorithm] x stages -> head; timm's model contract.

    Images are (batch, in_chans, height, width), features (batch, channels, height, width), logits (batch, num_classes).

    Args:
        algorithm: an algorithm's name, ``my_file.py:my_method``, dotted path or function; or None with ``programs``.
        programs: the stages' programs as JSON (``programs_json``), in the place of an algorithm: runs nobody's file.
        blocks, widths: steps and width of each stage.
        layer: the layers' family (``optnet.layers.FAMILIES``); by default what suits the algorithm.
        reading: ``map`` or ``residual``; by default what suits the algorithm.
        transition: ``restart`` the algorithm in each stage, or ``project`` every live iterate into the next (see
            ``optnet.design.design``).
        stem: ``small`` (3x3) or ``imagenet`` (7x7 stride 2 and a max-pool).
        stem_width: channels of the stem, by default the first stage's width.
        coefficients: ``learnable`` or ``fixed``; ``coefficient_init``: ``ancestor`` or ``algorithm``.
        per_channel: a coefficient for each channel.
        memory: ``keep`` the layers' activations for the backward pass, or ``checkpoint``: compute them again.
        algorithm_kwargs: the algorithm's constants.
        norm: ``batch``, ``mean`` (mean-only batch norm), ``group``, ``weight`` (weight norm) or ``none``.
        norm_place: ``after`` the linear maps or ``before``; by default, and with most families only, their own.
        act_layer: the activation by timm's name.
        drop_rate: of the dropout before the classifier.

    Raises:
        ModelError: an unknown or impossible option.
    """

    def __init__(
        self,
        algorithm: str | Callable[..., Any] | Algorithm | None = None,
        blocks: Sequence[int] = (2, 2),
        widths: Sequence[int] = (16, 32),
        *,
        programs: Sequence[Mapping[str, str]] | None = None,
        layer: str | None = None,
        reading: str | None = None,
        transition: str = "restart",
        stem: str = "small",
        stem_width: int | None = None,
        coefficients: str = "learnable",
        coefficient_init: str = "ancestor",
        per_channel: bool = False,
        memory: str = "keep",
        algorithm_kwargs: Mapping[str, Any] | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        norm: str = "batch",
        norm_place: str | None = None,
        act_layer: str = "relu",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        _check_sizes(blocks, widths, stem_width=stem_width, num_classes=num_classes, in_chans=in_chans)
        if memory not in MEMORY:
            raise ModelError(f"memory='{memory}' is unknown; it is 'keep' or 'checkpoint'")
        if norm not in NORMS:
            raise ModelError(f"norm='{norm}' is unknown; it is one of {', '.join(NORMS)}")
        if norm_place not in (None, *PLACES):
            raise ModelError(f"norm_place='{norm_place}' is unknown; it is one of {', '.join(PLACES)}")
        if coefficients not in COEFFICIENTS:
            raise ModelError(f"coefficients='{coefficients}' is unknown; it is 'learnable' or 'fixed'")
        if type(per_channel) is not bool:
            raise ModelError(f"per_channel={per_channel!r} must be true or false")
        if programs is not None:
            if layer is None:
                raise ModelError("programs= needs layer=, the layers' family they were made for")
            stages = [StageProgram.from_json(program) for program in programs]
            if len(stages) != len(blocks):
                raise ModelError(f"there are {len(stages)} programs for {len(blocks)} stages")
            follow = itertools.pairwise(program.start for program in stages)
            if any(two.starts not in (one.results, stages[0].start.starts) for one, two in follow):
                raise ModelError("programs= are not the stages of one network in their order")
        elif algorithm is None:
            raise ModelError("algorithm is missing; see optnet.list_algorithms()")
        else:
            algorithm = find_algorithm(algorithm)
            layer = layer or suitable_layer(algorithm)
            stages = design(
                algorithm, blocks, with_P=_family(layer).takes_P, layer=layer, reading=reading,
                coefficient_init=coefficient_init, transition=transition, algorithm_kwargs=algorithm_kwargs,
            )  # fmt: skip
        for i, program in enumerate(stages):
            if all(step.operator != program.start.main for step in program.start.applies):
                raise ModelError(
                    f"stage {i + 1} of {len(stages)} has no call of {program.start.main}; give other blocks, or "
                    f"transition=restart"
                )
        if per_channel and layer == "dense_bc":
            raise ModelError(
                "per_channel=true does not go with layer=dense_bc: its sums and its iterates differ in width"
            )
        self.programs = stages
        self.layer = layer
        self.widths = list(widths)
        self.stem_kind = stem
        self.streams = len(stages[0].start.starts)
        self.shown = [_shown(one.start, two.start, self.streams) for one, two in itertools.pairwise(stages)] + [-1]
        self.act_layer = act_layer
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.norm_kind = norm
        family, style = _family(layer), Style(_act_layer(act_layer), norm, norm_place, dd)
        if any(len(program.start.starts) > self.streams for program in stages) and not family.same_start:
            raise ModelError(f"transition=project does not go with layer={layer}, whose iterates have several widths")

        chs = stem_width or widths[0]
        probe = family(in_chans, chs, 1, True, style)
        reduction = 4 if stem == "imagenet" else 1
        self.stem = _stem(stem, probe, in_chans, chs)
        self.stages = nn.ModuleList()
        how = {"coefficients": coefficients, "per_channel": per_channel, "memory": memory, **dd}
        self.feature_info: list[dict[str, Any]] = []
        for i, (program, width) in enumerate(zip(stages, widths, strict=True)):
            stride = 1 if i == 0 else 2
            reduction *= stride
            following = [*stages[i + 1 :], stages[0]][0]
            layers = family(chs, width, stride, i == 0, style)
            stage = Stage(program, layers, len(following.start.starts), **how)
            if i and stage.streams != self.stages[-1].out_streams:
                raise ModelError(f"{program.start.name} ends a stage with one iterate and starts the next with two")
            self.stages.append(stage)
            chs = stage.out_chs
            self.feature_info.append({"num_chs": chs, "reduction": reduction, "module": f"stages.{i}"})
        self.norm = nn.Sequential(probe.norm(chs), probe.first_act()) if family.final_norm else nn.Identity()
        self.num_features = self.head_hidden_size = chs
        try:
            self.head = ClassifierHead(chs, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        except (AssertionError, ValueError) as error:
            raise ModelError(f"global_pool='{global_pool}' and drop_rate={drop_rate} make no head: {error}") from None
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He's initialisation of the convolutions (fan out); all else stays as it is made."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                weight = torch.empty_like(module.weight)
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
                set_weight(module, weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def programs_json(self) -> list[dict[str, str]]:
        """The stages' programs as data; ``Network(programs=...)`` builds the same network from them."""
        return [program.to_json() for program in self.programs]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups: the stem, the stages (``coarse``) or their layers T with what comes behind each, the head."""
        blocks: list[tuple[str, tuple[int, ...] | None]] = []
        for i, program in enumerate(() if coarse else self.programs[: len(self.stages)]):
            depth = 0
            for name, _ in self.get_submodule(f"stages.{i}.steps.body").named_children():
                depth += name.startswith(f"{program.start.main}_")
                blocks += [(rf"^stages\.{i}\.steps\.body\.{name}\.", (i, depth))]
        return {"stem": r"^stem", "blocks": [*blocks, (r"^stages\.(\d+)", None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The coefficients, which decay would pull off the algorithm, and weight norm's scales, like other norms'."""
        return {n for n, _ in self.named_parameters() if ".coefficients." in n or n.endswith(".weight.original0")}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for module in self.modules():
            if isinstance(module, Unrolled):
                module.set_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        streams = [x for _ in range(self.streams)]
        for stage in self.stages:
            streams = stage(streams)
        return self.norm(_merge(streams, self.shown[len(self.stages) - 1]))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:  # a real annotation, not a string: fx copies it into the code it writes
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

        Of a projected network's inner stages it is the iterate that the next layer reads. With ``stop_early`` the final
        features are those of the last stage that ran, and the last norm acts behind the last stage only.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"output_fmt='{output_fmt}' is unknown; features are NCHW")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        streams = [x for _ in range(self.streams)]
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            streams = stage(streams)
            x = _merge(streams, self.shown[i])
            final = self.norm(x) if i == len(self.stages) - 1 else x
            if i in take:
                intermediates.append(final if norm else x)
        return intermediates if intermediates_only else (final, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages behind the last of ``indices``; timm's contract."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm or last + 1 < len(self.programs):
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take


def _check_sizes(blocks: Any, widths: Any, stem_width: int | None, **counts: int) -> None:
    for name, sizes in (("blocks", blocks), ("widths", widths)):
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise ModelError(f"{name}={sizes!r} must be a list of whole numbers, one for each stage")
    if len(blocks) != len(widths):
        raise ModelError(f"blocks={list(blocks)} and widths={list(widths)} must have one entry for each stage")
    if any(type(width) is not int or width < 1 for width in [*widths, 1 if stem_width is None else stem_width]):
        raise ModelError(f"widths={list(widths)} and stem_width={stem_width} must be whole numbers of at least 1")
    for name, count in counts.items():
        least = 0 if name == "num_classes" else 1
        if type(count) is not int or count < least:
            raise ModelError(f"{name}={count!r} must be a whole number of at least {least}")


def _family(layer: str) -> type[Family]:
    if layer not in FAMILIES:
        raise ModelError(f"layer='{layer}' is unknown; it is one of {', '.join(FAMILIES)}")
    return FAMILIES[layer]


def _act_layer(name: str) -> type[nn.Module]:
    try:
        act = get_act_layer(name)
    except (KeyError, AssertionError):
        act = None
    if not isinstance(act, type):
        raise ModelError(f"act_layer='{name}' is unknown; for instance 'relu', 'silu' or 'gelu'")
    return act


def _stem(kind: str, family: Family, in_chans: int, chs: int) -> nn.Sequential:
    if kind not in ("small", "imagenet"):
        raise ModelError(f"stem='{kind}' is unknown; it is 'small' or 'imagenet'")
    layers: dict[str, nn.Module] = {"conv": family.conv(in_chans, chs, *((3, 1) if kind == "small" else (7, 2)))}
    if not family.final_norm or (kind == "imagenet" and not family.same_start):
        layers.update(norm=family.norm(chs), act=family.act())
    if kind == "imagenet":
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    stem = nn.Sequential()
    for name, layer in layers.items():
        stem.add_module(name, layer)
    return stem
