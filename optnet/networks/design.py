"""From an algorithm to the programs of a network's stages, and to the layers that suit it. No torch, no modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """The algorithm of one stage: the program its coefficients start from, and the algorithm's own weights."""

    start: Program
    textbook: Program

    def to_json(self) -> dict[str, str]:
        return {"start": self.start.to_json(), "textbook": self.textbook.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Self:
        if not isinstance(data, Mapping) or set(data) != {"start", "textbook"}:
            raise ModelError("programs= takes the list that Network.programs_json() gives")
        return cls(Program.from_json(data["start"]), Program.from_json(data["textbook"]))


def suitable_layer(algorithm: Algorithm) -> str:
    """The layer family that an algorithm declares.

    By default the basic block if it has a projection P (a ReLU after each iteration, as in ResNet), else the
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
) -> list[StageProgram]:
    """The programs of a network's stages, each of so many iterations as ``blocks`` says.

    ``transition='restart'`` runs the algorithm anew in each stage, from what the stage before returned: a restarted
    method (O'Donoghue and Candes 2015), whose memory begins again. ``'project'`` is one run over all stages, cut at
    their borders: every iterate that a later iteration reads is carried on through a projection of its own.
    ``coefficient_init='ancestor'`` starts at the constants that the algorithm declares as its ancestor's, if it does.

    Args:
        with_P: whether the layers have a place for a P (an activation after each iteration).
        layer: the layers' family, which chooses the reading: ``map`` for plain layers, else ``residual``.

    Raises:
        ModelError: an unknown option, or an ancestor whose program differs in more than its weights.
        AlgorithmError: see ``optnet.trace``.
    """
    method = find_algorithm(algorithm)
    if method.network.unsuited is not None:
        raise ModelError(f"{method.name} makes no classifier: {method.network.unsuited}")
    if not blocks or any(type(steps) is not int or steps < 1 for steps in blocks):
        raise ModelError(
            f"blocks={list(blocks)} must be whole numbers of at least 1, iterations of the algorithm a stage"
        )
    method.check_constants(constants or {})
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
        if coefficient_init == "ancestor" and method.ancestor is not None:
            ancestral = {**given, **method.ancestor, **(constants or {})}
            start = trace(method, steps=sum(run), constants=ancestral, **options)
            if not start.same_structure(textbook):
                raise ModelError(
                    f"{method.name}: its ancestor {method.ancestor} has another program than the algorithm; "
                    f"use coefficient_init=algorithm"
                )
        borders = _borders(method, run, options, given)
        programs += map(StageProgram, start.cut(borders, run), textbook.cut(borders, run))
    return programs


def _borders(
    method: Algorithm, run: Sequence[int], options: Mapping[str, Any], constants: Mapping[str, Any]
) -> list[int]:
    """Where a run of ``sum(run)`` iterations is cut: before which of the program's instructions.

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
