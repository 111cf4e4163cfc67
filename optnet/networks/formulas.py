"""The weights of a program as functions of its algorithm's constants, for constants that are learned. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from optnet.errors import AlgorithmError, ModelError, RequestError, reason
from optnet.language.declaration import Algorithm
from optnet.language.expressions import Expression, Tape
from optnet.language.folding import fold
from optnet.language.program import Apply, Instruction, Program
from optnet.language.tracing import record, traced

INSTEAD = "take consistent or learnable"


def with_formulas(
    method: Algorithm,
    start: Program,
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    per_iteration: bool,
) -> Program:
    """``start`` with weights that are expressions of the algorithm's constants.

    These are the constants that are fractions, without those that decide which terms a sum has. That the expressions
    hold is tried: with a constant a little larger and smaller, they give the weights of that program.

    Args:
        options: the operators and the reading of the program.
        per_iteration: whether each iteration has its own constants. What the algorithm's text does after the last call
            of an iteration and before the first one of the next belongs to the former.

    Raises:
        ModelError: the algorithm has no constant that is a fraction, or how the weights follow from one is not known.
    """
    refusal = f"coefficients=constants: {method.name}"
    values = {name: constants.get(name, default) for name, default in method.constants.items()}
    values = {name: float(value) for name, value in values.items() if _is_fraction(value, method.constants[name])}
    if not values:
        raise ModelError(f"{refusal} has no constant to learn; {INSTEAD}")

    def program(given: Mapping[str, float]) -> Program:
        return traced(method, start.iterations, constants={**constants, **given}, **options)

    def neighbours(name: str) -> Iterator[tuple[float, Program]]:
        for near in (values[name] + 0.01 + 0.03 * abs(values[name]), values[name] - 0.007 - 0.02 * abs(values[name])):
            with suppress(AlgorithmError):  # outside of what the algorithm allows
                yield near, program({name: near})

    tape = Tape(values)
    near_by = {name: [*neighbours(name)] for name in values}
    try:
        learned = {
            name: number for name, number in tape.inputs().items()
            if program({name: number}).same_structure(start)
            and all(other.same_structure(start) for _, other in near_by[name])
        }  # fmt: skip
        found = program(learned)
    except AlgorithmError as error:
        raise ModelError(f"coefficients=constants: {reason(error)}; {INSTEAD}") from None
    if not learned or not found.same_structure(start):
        raise ModelError(f"{refusal}: which terms its sums have depends on {', '.join(values)}; {INSTEAD}")
    for name in learned:
        for near, other in near_by[name]:
            if not _agree(found, other, tape.evaluate({name: near})):
                raise ModelError(
                    f"{refusal}: its weights follow from {name} in a way that is not seen; use + - * / ** alone, like "
                    f"{name} ** 0.5 for a root, or {INSTEAD}"
                )
    if per_iteration:
        given = {**constants, **learned}
        recorded = record(method, start.iterations, constants=given, **options)
        found = fold(_own(recorded, tape)).renamed()
    return start.with_weights(found.weights())


def _own(program: Program, tape: Tape) -> Program:
    """The program, with constants of its own in each iteration."""
    own = Tape({f"{name} of iteration {k}": c for k in range(program.iterations) for name, c in tape.constants.items()})
    places = [{i: k * len(tape.constants) + i for i in range(len(tape.constants))} for k in range(program.iterations)]
    instructions: list[Instruction] = []
    k = 0
    for one in program.instructions:
        if isinstance(one, Apply):
            k = one.iteration
        else:
            one = replace(one, weights=tuple(tape.copy(one.weights, own, places[k])))
        instructions.append(one)
    return replace(program, instructions=tuple(instructions))


def _is_fraction(value: Any, default: Any) -> bool:
    return type(value) is float or (type(value) is int and type(default) is float)


def _agree(found: Program, other: Program, values: list[float]) -> bool:
    """Whether the expressions of ``found`` are the weights of ``other``, where the tape has these values."""
    wanted = other.weights()
    for place, weight in found.weights().items():
        value = values[weight.place] if isinstance(weight, Expression) else weight
        if abs(value - wanted[place]) > 1e-9 * max(1.0, abs(wanted[place])):
            return False
    return True


def tape_of(weights: Iterable[float]) -> tuple[Tape, list[float]]:
    """The tape of some weights, without what they do not need, and the weights on it."""
    weights = list(weights)
    tape = next((weight.tape for weight in weights if isinstance(weight, Expression)), Tape({}))
    return tape.cut(weights)


def formulas_to_json(program: Program) -> dict[str, Any]:
    """The tape, and for each weight of the program its place on it, or None if it is a number."""
    tape, weights = tape_of(program.weights().values())
    places = [weight.place if isinstance(weight, Expression) else None for weight in weights]
    return {"constants": tape.constants, "steps": [list(step) for step in tape.steps], "places": places}


def formulas_from_json(start: Program, data: Any) -> Program:
    """The program that ``formulas_to_json`` wrote; its numbers are those of ``start``.

    Raises:
        ModelError: the data is none that it wrote for this program.
    """
    try:
        tape = Tape(data["constants"], data["steps"])
        known = len(tape.evaluate())
        weights = start.weights()
        for (where, weight), place in zip(weights.items(), data["places"], strict=True):
            if place is not None:
                if not 0 <= place < known:
                    raise ModelError(f"a weight has no place {place}")
                weights[where] = Expression(weight, tape, place)
        return start.with_weights(weights)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RequestError) as error:
        raise ModelError(f"these are no formulas of {start.name}: {reason(error)}") from None
