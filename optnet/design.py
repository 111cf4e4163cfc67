"""From an algorithm to the programs of a network's stages, and to the layers that suit it. No torch, no modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from optnet.algorithms import find_algorithm
from optnet.errors import ModelError
from optnet.program import Apply, Program
from optnet.tracing import Algorithm, record, trace

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
    """The family of layers that an algorithm declares; else the basic block if it has a projection P (a ReLU after each
    step, as in ResNet), else the pre-activation block."""
    declared: str | None = algorithm.network.get("layer")
    return declared or ("basic" if "P" in algorithm.operators else "preact_basic")


def design(
    algorithm: str | Callable[..., Any] | Algorithm,
    blocks: Sequence[int],
    *,
    with_P: bool,
    layer: str,
    reading: str | None = None,
    coefficient_init: str = "ancestor",
    transition: str = "restart",
    algorithm_kwargs: Mapping[str, Any] | None = None,
) -> list[StageProgram]:
    """The programs of a network's stages, each of so many steps as ``blocks`` says.

    ``transition='restart'`` runs the algorithm anew in each stage, from what the stage before returned: a restarted
    method (O'Donoghue and Candes 2015), whose memory begins again. ``'project'`` is one run over all stages, cut at
    their borders: every iterate that a later step reads is carried on, through a projection of its own.
    ``coefficient_init='ancestor'`` starts at the constants that the algorithm declares as its ancestor's, if it does.

    Args:
        with_P: whether the layers have a place for a P (an activation after each step).
        layer: the layers' family, which chooses the reading: ``map`` for plain layers, else ``residual``.

    Raises:
        ModelError: an unknown option, or an ancestor whose program differs in more than its weights.
        AlgorithmError: see ``optnet.trace``.
    """
    method = find_algorithm(algorithm)
    if "unsuited" in method.network:
        raise ModelError(f"{method.name} makes no classifier: {method.network['unsuited']}")
    if coefficient_init not in COEFFICIENT_INITS:
        raise ModelError(f"coefficient_init='{coefficient_init}' is unknown; it is 'ancestor' or 'algorithm'")
    if transition not in TRANSITIONS:
        raise ModelError(f"transition='{transition}' is unknown; it is 'restart' or 'project'")
    if not blocks or any(type(steps) is not int or steps < 1 for steps in blocks):
        raise ModelError(f"blocks={list(blocks)} must be whole numbers of at least 1, steps of the algorithm a stage")
    method.check_constants(algorithm_kwargs or {})
    required = [name for name, needed in method.operators.items() if needed]
    operators = [*required, "P"] if with_P and "P" in method.operators and "P" not in required else required
    reading = reading or method.network.get("reading") or ("map" if layer == "plain" else "residual")
    runs = [list(blocks)] if transition == "project" else [[steps] for steps in blocks]
    programs: list[StageProgram] = []
    for i, run in enumerate(runs):
        constants = {**method.network.get("constants", {})}
        if i == len(runs) - 1:
            constants.update(method.network.get("last", {}))
        constants.update(algorithm_kwargs or {})
        options: dict[str, Any] = {"operators": operators, "reading": reading}
        textbook = start = trace(method, steps=sum(run), **options, **constants)
        if coefficient_init == "ancestor" and method.ancestor is not None:
            ancestral = {**constants, **method.ancestor, **(algorithm_kwargs or {})}
            start = trace(method, steps=sum(run), **options, **ancestral)
            if not start.same_structure(textbook):
                raise ModelError(
                    f"{method.name}: its ancestor {method.ancestor} has other steps than the algorithm; "
                    f"use coefficient_init=algorithm"
                )
        borders = _borders(method, run, options, constants)
        programs += map(StageProgram, start.cut(borders, run), textbook.cut(borders, run))
    return programs


def _borders(
    method: Algorithm, run: Sequence[int], options: Mapping[str, Any], constants: Mapping[str, Any]
) -> list[int]:
    """Where a run of ``sum(run)`` steps is cut: so many of the program's steps lie in front of each border.

    A border lies behind the calls of the iterations in front of it, at the last of the places with the fewest live
    values: heavy ball's is then x_{k+1} and x_k, not T(x_k), x_k and x_{k-1}. A call behind the algorithm's loop counts
    with the iterations in front of it: of T(x_n) at the end every stage but the last gets one call more.
    """
    if len(run) == 1:
        return []
    program = record(method, steps=sum(run), **options, **constants).fold()
    borders, done = [], 0
    for steps in run[:-1]:
        done += steps
        written = record(method, steps=done, **options, **constants)
        calls = sum(step.operator == program.main for step in written.applies)
        borders.append(min(_places(program, calls), key=lambda place: len(program.live(place))))
    return borders


def _places(program: Program, calls: int) -> Iterable[int]:
    """The places behind the main operator's first ``calls`` calls (as written) and before the next, the last first."""
    main = [(i, s.index) for i, s in enumerate(program.steps) if isinstance(s, Apply) and s.operator == program.main]
    first = max((i + 1 for i, index in main if index < calls), default=0)
    last = min((i for i, index in main if index >= calls), default=len(program.steps))
    return reversed(range(first, last + 1))
