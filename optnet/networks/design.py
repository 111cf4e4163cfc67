"""Turns an algorithm into the programs of a network's stages, and chooses their layers. No torch, no modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from optnet.errors import ModelError
from optnet.language.declaration import Algorithm
from optnet.language.folding import fold
from optnet.language.lookup import find_algorithm
from optnet.language.program import Apply, Program
from optnet.language.tracing import record, trace

COEFFICIENT_INITS = ("ancestor", "algorithm")
TRANSITIONS = ("restart", "project")


@dataclass(frozen=True)
class StageProgram:
    """The algorithm of one stage.

    Attributes:
        start: the program with the initial coefficients.
        textbook: the program with the algorithm's own coefficients.
        moved: by the name of a constant, ``start`` with this constant larger by 1; only where constants are learned.
    """

    start: Program
    textbook: Program
    moved: Mapping[str, Program] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {"start": self.start.to_json(), "textbook": self.textbook.to_json()}
        moved = {name: program.to_json() for name, program in self.moved.items()}
        return {**made, "moved": moved} if moved else made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        moved = data.get("moved", {}) if isinstance(data, Mapping) else None
        if not isinstance(moved, Mapping) or set(data) - {"moved"} != {"start", "textbook"}:
            raise ModelError("programs= takes the list that Network.programs_json() gives")
        return cls(
            Program.from_json(data["start"]), Program.from_json(data["textbook"]),
            {name: Program.from_json(text) for name, text in moved.items()},
        )  # fmt: skip


def suitable_layer(algorithm: Algorithm) -> str:
    """The layer family that an algorithm declares.

    The default is the basic block if the algorithm has a P (a ReLU after each iteration, as in ResNet), else the
    pre-activation block.
    """
    return algorithm.network.layer or ("basic" if "P" in algorithm.operators else "preact_basic")


def design(
    algorithm: str | Callable[..., Any] | Algorithm,
    blocks: Sequence[int],
    *,
    with_P: bool,
    layer: str,
    reading: str | None = None,
    coefficient_init: str = "ancestor",
    transition: str = "restart",
    constants: Mapping[str, Any] | None = None,
    learn_constants: bool = False,
) -> list[StageProgram]:
    """The programs of a network's stages; ``blocks`` gives the number of iterations of each.

    ``transition='restart'`` restarts the algorithm in each stage from the result of the previous one, without memory of
    earlier iterates (O'Donoghue and Candes 2015). ``'project'`` is one run over all stages, cut at their borders: every
    iterate that a later iteration reads goes to the next stage through its own projection.
    ``coefficient_init='ancestor'`` starts at the ancestor's constants, if the algorithm declares them.

    Args:
        with_P: whether the layers supply an optional P (an activation after each iteration).
        layer: the layers' family, which chooses the reading: ``map`` for plain layers, else ``residual``.
        learn_constants: whether the programs with moved constants are needed; see ``StageProgram``.

    Raises:
        ModelError: an option is unknown, the ancestor's program differs in more than its weights, or constants are to
            be learned and there are none, or the weights are not affine in them.
        AlgorithmError: see ``optnet.trace``.
    """
    method = find_algorithm(algorithm)
    if method.network.unsuited is not None:
        raise ModelError(f"{method.name} cannot be a classifier: {method.network.unsuited}")
    if not blocks or any(type(steps) is not int or steps < 1 for steps in blocks):
        raise ModelError(f"blocks={list(blocks)} must be whole numbers of at least 1, the iterations of each stage")
    constants = method.read_constants(constants or {})
    required = [name for name, needed in method.operators.items() if needed]
    operators = [*required, "P"] if with_P and "P" in method.operators and "P" not in required else required
    reading = reading or method.network.reading or ("map" if layer == "plain" else "residual")
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
        moved = moved_programs(method, start, used, options) if learn_constants else {}
        cut = {name: program.cut(borders, run) for name, program in moved.items()}
        for j, (own, book) in enumerate(zip(start.cut(borders, run), textbook.cut(borders, run), strict=True)):
            programs.append(StageProgram(own, book, {name: stages[j] for name, stages in cut.items()}))
    return programs


def moved_programs(
    method: Algorithm, start: Program, constants: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Program]:
    """The program with each of its constants larger by 1, alone.

    Raises:
        ModelError: the algorithm has no constant that is a fraction, or the weights are not affine in the constants.
    """

    def weights(**changed: float) -> tuple[Program, list[float]]:
        program = trace(method, steps=start.iterations, constants={**constants, **changed}, **options)
        return program, [weight for row in program.combines for weight in row.weights]

    values = {name: constants.get(name, default) for name, default in method.constants.items()}
    values = {name: value for name, value in values.items() if type(value) is float}
    if not values:
        raise ModelError(
            f"coefficients=constants: {method.name} has no constant to learn; take consistent or learnable"
        )
    own = weights()[1]
    moved = {name: weights(**{name: value + 1}) for name, value in values.items()}
    tried = [{name: value + 0.5} for name, value in values.items()] + [{n: v + 0.25 for n, v in values.items()}]
    for some in tried:
        program, found = weights(**some)
        for name, value in some.items():
            share = value - values[name]
            found = [f - share * (m - o) for f, m, o in zip(found, moved[name][1], own, strict=False)]
        off = max((abs(f - o) for f, o in zip(found, own, strict=False)), default=0.0)
        if off > 1e-9 or not program.same_structure(start):
            raise ModelError(
                f"coefficients=constants: the weights of {method.name} are not affine in {', '.join(some)}, or its "
                f"terms depend on it; take consistent or learnable"
            )
    return {name: program for name, (program, _) in moved.items()}


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
