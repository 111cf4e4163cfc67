"""Turns an algorithm into the programs of a network's stages, and chooses their layers. No torch, no modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from optnet.errors import ModelError
from optnet.language.declaration import Algorithm
from optnet.language.folding import fold
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.language.program import Apply, Program
from optnet.language.tracing import record, trace
from optnet.networks.formulas import formulas_from_json, formulas_to_json, with_formulas

COEFFICIENT_INITS = ("ancestor", "algorithm")
TRANSITIONS = ("restart", "project")
SPLIT = ("A", "M")
"""The names of attention and an MLP, as an algorithm's operators."""


@dataclass(frozen=True)
class StageProgram:
    """The algorithm of one stage.

    Attributes:
        start: the program with the initial coefficients.
        textbook: the program with the algorithm's own coefficients.
        formulas: ``start`` with weights that are expressions of the algorithm's constants, where these are learned.
    """

    start: Program
    textbook: Program
    formulas: Program | None = None

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {"start": self.start.to_json(), "textbook": self.textbook.to_json()}
        return made if self.formulas is None else {**made, "formulas": formulas_to_json(self.formulas)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        if not isinstance(data, Mapping) or {"start", "textbook"} != set(data) - {"formulas"}:
            raise ModelError("programs= takes the list that Network.programs_json() gives")
        start, formulas = Program.from_json(data["start"]), data.get("formulas")
        return cls(
            start, Program.from_json(data["textbook"]),
            None if formulas is None else formulas_from_json(start, formulas),
        )  # fmt: skip


def suitable_layer(algorithm: Algorithm) -> str:
    """The layer family that an algorithm declares.

    The default is the basic block if the algorithm has a P on its iterates (a ReLU after each iteration, as in ResNet),
    else the pre-activation block.
    """
    activated = "P" in algorithm.operators and not algorithm.network.velocity
    return algorithm.network.layer or ("basic" if activated else "preact_basic")


def is_split(algorithm: Algorithm) -> bool:
    """Whether it has attention A and an MLP M as operators, which only layers on tokens supply."""
    return all(algorithm.operators.get(name, False) for name in SPLIT)


def design(
    algorithm: str | Callable[..., Any] | Algorithm,
    blocks: Sequence[int],
    *,
    with_P: bool,
    layer: str,
    reading: str | Mapping[str, str] | None = None,
    coefficient_init: str = "ancestor",
    transition: str = "restart",
    constants: Mapping[str, Any] | None = None,
    per_iteration: bool | None = None,
    velocity_norm: bool = False,
    tokens: bool = False,
) -> list[StageProgram]:
    """The programs of a network's stages; ``blocks`` gives the number of iterations of each.

    ``transition='restart'`` restarts the algorithm in each stage from the result of the previous one, without memory of
    earlier iterates (O'Donoghue and Candes 2015). ``'project'`` is one run over all stages, cut at their borders: every
    iterate that a later iteration reads goes to the next stage through its own projection.
    ``coefficient_init='ancestor'`` starts at the ancestor's constants, if the algorithm declares them.

    Args:
        with_P: whether the layers supply an optional P on the iterates (an activation after each iteration).
        layer: the layers' family, which chooses the reading: ``map`` for plain layers, else ``residual``.
        per_iteration: whether each iteration learns its own constants, or None if none are learned.
        velocity_norm: whether the layers supply an optional P on the velocity (a norm of it).
        tokens: whether the layers supply attention A and an MLP M, which are read alike.

    Raises:
        ModelError: an option is unknown, the layers do not supply an operator, the ancestor's program differs in more
            than its weights, or constants are to be learned and cannot be; see ``with_formulas``.
        AlgorithmError: see ``optnet.trace``.
    """
    method = find_algorithm(algorithm)
    if method.network.unsuited is not None:
        raise ModelError(f"{method.name} cannot be a classifier: {method.network.unsuited}")
    if not blocks or any(type(steps) is not int or steps < 1 for steps in blocks):
        raise ModelError(f"blocks={list(blocks)} must be whole numbers of at least 1, the iterations of each stage")
    constants = method.read_constants(constants or {})
    required = [name for name, needed in method.operators.items() if needed]
    if is_split(method) and not tokens:
        raise ModelError(
            f"{method.name} has attention A and an MLP M as operators; layer={layer} has neither, take a transformer"
        )
    if velocity_norm and not method.network.velocity:
        having = ", ".join(name for name in list_algorithms() if find_algorithm(name).network.velocity)
        raise ModelError(f"velocity_norm=true does not go with {method.name}, which has no velocity; take {having}")
    if method.network.velocity:
        with_P = velocity_norm
    operators = [*required, "P"] if with_P and "P" in method.operators and "P" not in required else required
    reading = reading or method.network.reading or ("map" if layer == "plain" else "residual")
    if isinstance(reading, str):
        reading = {name: reading for name in required if name == required[0] or (tokens and name in SPLIT)}
    runs = [list(blocks)] if transition == "project" else [[steps] for steps in blocks]
    programs: list[StageProgram] = []
    for i, run in enumerate(runs):
        given = {**method.network.constants}
        if i == len(runs) - 1:
            given.update(method.network.last)
        given.update(constants or {})
        options: dict[str, Any] = {"operators": operators, "reading": reading}
        textbook = start = trace(method, steps=sum(run), constants=given, **options)
        used = given
        if coefficient_init == "ancestor" and method.ancestor is not None:
            used = {**given, **method.ancestor, **(constants or {})}
            start = trace(method, steps=sum(run), constants=used, **options)
            if not start.same_structure(textbook):
                raise ModelError(
                    f"{method.name}: its ancestor {method.ancestor} has a different program; "
                    f"use coefficient_init=algorithm"
                )
        borders = _borders(method, run, options, given)
        stages = [start.cut(borders, run), textbook.cut(borders, run)]
        if per_iteration is not None:
            learned = with_formulas(method, start, used, options, per_iteration=per_iteration)
            stages.append(learned.cut(borders, run))
        programs += [StageProgram(*those) for those in zip(*stages, strict=True)]
    return programs


def _borders(
    method: Algorithm, run: Sequence[int], options: Mapping[str, Any], constants: Mapping[str, Any]
) -> list[int]:
    """The numbers of the instructions before which a run of ``sum(run)`` iterations is cut.

    A border comes after the calls of the iterations before it, at the last position that has the fewest live values.
    For heavy ball these are x_{k+1} and x_k, rather than T(x_k), x_k and x_{k-1}.
    """
    if len(run) == 1:
        return []
    program = fold(record(method, sum(run), constants=constants, **options))
    borders, done = [], 0
    for iterations in run[:-1]:
        done += iterations
        borders.append(min(_positions(program, done), key=lambda position: len(program.live(position))))
    return borders


def _positions(program: Program, iterations: int) -> list[int]:
    """The positions between the main operator's last call of the first ``iterations`` and its next one; last first."""
    main = [
        (i, one.iteration)
        for i, one in enumerate(program.instructions)
        if isinstance(one, Apply) and one.operator == program.main
    ]
    first = max((i + 1 for i, iteration in main if iteration < iterations), default=0)
    last = min((i for i, iteration in main if iteration >= iterations), default=len(program.instructions))
    return [*reversed(range(first, last + 1))]
