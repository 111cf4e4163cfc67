"""A network's learned coefficients as programs, and the same network with others. Trains nothing, judges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from optnet.analysis.scalars import multiples
from optnet.errors import ModelError
from optnet.language.program import Combine, Program, unique
from optnet.networks.design import StageProgram
from optnet.networks.trunk import Trunk
from optnet.networks.unrolled import coefficient_names, coefficients, unrolled_in

Weights = Mapping[tuple[str, str], float]
"""Coefficients: (sum, term) -> weight."""


@dataclass(frozen=True)
class Learned:
    """What an unrolled stage has learned.

    Attributes:
        program: its program with the coefficients that it has now; of per-channel ones the mean. Its starting points
            are 1; where an earlier stage hands over a dual, which is 0 at a fixed point, there is one start, of which
            the program makes them.
        textbook: the same with the algorithm's own coefficients.
        own: the algorithm's own coefficients of the terms that the stage has; 0 where the algorithm lacks the term.
        spread: the largest standard deviation of a coefficient over its channels; 0 if it has one value.
        per_sample: whether these are only the parts of the coefficients that all samples share (``dynamic``).
        per_block: the iterations that are one block of the network: 2 if attention and the MLP take turns.
    """

    program: Program
    textbook: Program
    own: Weights
    spread: float = 0.0
    per_sample: bool = False
    per_block: int = 1


def learned_programs(model: nn.Module) -> dict[str, Learned]:
    """What every unrolled algorithm of a model has learned, by the name of its module."""
    values: dict[str, dict[tuple[str, str], float]] = {}
    own: dict[str, dict[tuple[str, str], float]] = {}
    for one in coefficients(model):
        values.setdefault(one.stage, {})[one.step, one.term] = one.value
        own.setdefault(one.stage, {})[one.step, one.term] = one.textbook or 0.0
    stages = model.programs if isinstance(model, Trunk) else []
    textbooks = {stage_name(i): program.textbook for i, program in enumerate(stages)}
    found = {}
    before: dict[str, float] = {}
    for stage, module in unrolled_in(model).items():
        spread = 0.0
        for row, weights in module.learned().items():
            terms = next(len(one.terms) for one in module.program.combines if one.value == row)
            spread = max(spread, float(weights.detach().reshape(terms, -1).std(1, unbiased=False).max()))
        textbook = textbooks.get(stage, module.textbook)  # with the terms of a start of another shape, too
        sizes = {start: before.get(start, 1.0) for start in textbook.starts}
        handed = multiples(textbook, sizes)
        before = {result: handed[result] for result in textbook.results}  # the next stage starts from them
        program = module.program.with_weights(values.get(stage, {}))
        found[stage] = Learned(
            _from_one(program, sizes),
            _from_one(textbook, sizes),
            own.get(stage, {}),
            spread,
            module.per_sample,
            model.per_block if isinstance(model, Trunk) else 1,
        )
    return found


def stage_name(number: int) -> str:
    """The name of the unrolled algorithm of a network's stage."""
    return f"stages.{number}.unrolled"


def _from_one(program: Program, sizes: Mapping[str, float]) -> Program:
    """The program from one point, of which its own starting points are multiples; unchanged if all are that point."""
    if all(sizes[start] == 1 for start in program.starts):
        return program
    taken = {*program.operators, *program.starts, *(one.value for one in program.instructions)}
    point = unique(program.starts[0], taken)
    made = (Combine(start, (point,), (sizes[start],)) for start in program.starts)
    return replace(program, starts=(point,), instructions=(*made, *program.instructions))


def with_coefficients(model: Trunk, weights: Mapping[str, Weights]) -> Trunk:
    """A network with the layers of ``model`` and other coefficients, which are fixed.

    Args:
        weights: those of each stage, by its name in ``learned_programs``; all of the stage's terms must be there.

    Raises:
        ModelError: a coefficient that was fixed at 0 is not 0 now: its layer does not exist.
    """
    stages = []
    unrolled = unrolled_in(model)
    for i, stage in enumerate(model.programs):
        own, given = unrolled[stage_name(i)].program, weights[stage_name(i)]
        stages.append(StageProgram(own.with_weights({key: given[key] for key in own.weights()}), stage.textbook))
    made = model.with_programs(stages, coefficients="fixed", per_channel=False)
    names = coefficient_names(model)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    missing = made.load_state_dict(kept, strict=False).missing_keys
    if missing:
        raise ModelError(f"the network has no layer {missing[0]}, because its coefficient was fixed at 0")
    return made.train(model.training)
