"""A network's learned coefficients as programs, and the same network with others. Trains nothing, judges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from optnet.errors import ModelError
from optnet.language.program import Program
from optnet.networks.design import StageProgram
from optnet.networks.network import Network
from optnet.networks.unrolled import coefficient_names, coefficients, unrolled_in


@dataclass(frozen=True)
class Learned:
    """What an unrolled stage has learned.

    Attributes:
        program: its program with the coefficients that it has now; of per-channel ones the mean.
        textbook: the program with the algorithm's own coefficients.
        substituted: the stage's program with the textbook's coefficients in the place of its own; 0 where the
            textbook lacks the term.
        spread: the largest standard deviation of a coefficient over its channels; 0 if it has one value.
    """

    program: Program
    textbook: Program
    substituted: Program
    spread: float


def learned_programs(model: nn.Module) -> dict[str, Learned]:
    """What every unrolled algorithm of a model has learned, by the name of its module."""
    values: dict[str, dict[tuple[str, str], float]] = {}
    textbook: dict[str, dict[tuple[str, str], float]] = {}
    for one in coefficients(model):
        values.setdefault(one.stage, {})[one.step, one.term] = one.value
        textbook.setdefault(one.stage, {})[one.step, one.term] = one.textbook or 0.0
    found = {}
    for stage, module in unrolled_in(model).items():
        spread = 0.0
        for row, weights in module.learned().items():
            terms = next(len(one.terms) for one in module.program.combines if one.value == row)
            channels = weights.detach().reshape(terms, -1)
            spread = max(spread, float(channels.std(1, unbiased=False).max()))
        found[stage] = Learned(
            module.program.with_weights(values.get(stage, {})), module.textbook,
            module.program.with_weights(textbook.get(stage, {})), spread,
        )  # fmt: skip
    if isinstance(model, Network):  # the whole textbook: of a start of another shape, a stage's own lacks the terms
        own = {f"stages.{i}.unrolled": program.textbook for i, program in enumerate(model.programs)}
        found = {stage: replace(one, textbook=own.get(stage, one.textbook)) for stage, one in found.items()}
    return found


def with_coefficients(model: Network, programs: Mapping[str, Program]) -> Network:
    """A network with the layers of ``model`` and other coefficients, which are fixed.

    Args:
        programs: for each stage, by its name in ``learned_programs``, its program with those coefficients.

    Raises:
        ModelError: a coefficient that was fixed at 0 is not 0 now: its layer does not exist.
    """
    stages = [StageProgram(programs[f"stages.{i}.unrolled"], stage.textbook) for i, stage in enumerate(model.programs)]
    first = next(model.parameters())
    made = Network(
        stages, model.widths, layer=model.layer, num_classes=model.num_classes, in_chans=model.in_chans,
        options=replace(model.options, coefficients="fixed", per_channel=False),
        global_pool=model.head.global_pool.pool_type, device=first.device, dtype=first.dtype,
    )  # fmt: skip
    names = coefficient_names(model)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    missing = made.load_state_dict(kept, strict=False).missing_keys
    if missing:
        raise ModelError(f"the network has no layer {missing[0]}, because its coefficient was fixed at 0")
    return made.train(model.training)
