"""Runs an algorithm on symbols and records its Program. No torch, no layers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from optnet.errors import AlgorithmError, OperatorError, ProgramError, reason
from optnet.language.declaration import Algorithm, python_name
from optnet.language.folding import fold
from optnet.language.lookup import find_algorithm
from optnet.language.program import Apply, Program
from optnet.language.symbols import Iterate, NotFinite, OperatorSymbol, Recorder

READINGS = ("map", "residual")
SEARCHED = 64
"""Number of further steps that are tried where some steps do not reach every operator."""
PROBED, LONGEST = 40, 10
"""Number of short runs whose calls are counted, and the longest period that is looked for in their numbers of calls."""


def trace(
    algorithm: str | Callable[..., Any] | Algorithm,
    /,
    *,
    steps: int,
    operators: Iterable[str] | None = None,
    reading: str | Mapping[str, str] = "map",
    constants: Mapping[str, Any] | None = None,
    **more: Any,
) -> Program:
    """Runs the algorithm on symbols and returns its program.

    Args:
        algorithm: a name, ``my_file.py:my_method``, a dotted path, a function with the annotations ``Operator`` and
            ``Iterate``, or an ``Algorithm``.
        steps: the number of iterations, at least 1.
        operators: the operators to trace; those with a default are traced only if they are named here.
        reading: ``map`` (T is the layer) or ``residual`` (T(v) = v + F(v), F is the layer). A string is for the first
            operator; a mapping gives a reading for each name.
        constants: the algorithm's constants. Those whose names this function does not use itself may also be given as
            keywords.

    Raises:
        AlgorithmError: the algorithm, a constant or the number of steps is wrong.
        TraceError: an iterate was used for something that is not a weighted sum.
        OperatorError: an operator is missing, unknown or given twice.
    """
    method = find_algorithm(algorithm)
    given = all_constants(method, constants, more, {} if reading == "map" else {"reading": reading})
    program = traced(method, steps, operators, reading, given)
    missed = [name for name in program.readings if name not in program.operators]
    if missed:
        raise AlgorithmError(_why_missed(method, steps, operators, reading, given, missed))
    return program


def traced(
    method: Algorithm,
    steps: int,
    operators: Iterable[str] | None = None,
    reading: str | Mapping[str, str] = "map",
    constants: Mapping[str, Any] | None = None,
) -> Program:
    """As ``trace``, but the program may leave operators out."""
    try:
        return fold(record(method, steps, operators, reading, constants)).renamed().limited()
    except ProgramError as error:
        raise AlgorithmError(f"{error} ({_settings(method, steps, constants or {})})") from None


def _why_missed(
    method: Algorithm,
    steps: int,
    operators: Iterable[str] | None,
    reading: str | Mapping[str, str],
    constants: Mapping[str, Any],
    missed: list[str],
) -> str:
    """Says how many steps reach every operator, or that no number of steps does."""
    for more in range(steps + 1, steps + SEARCHED + 1):
        try:
            reached = traced(method, more, operators, reading, constants).operators
        except AlgorithmError:
            break
        if all(name in reached for name in missed):
            return (
                f"{method.name}: its result after steps={steps} does not depend on its operator {', '.join(missed)}; "
                f"take at least steps={more}"
            )
    return f"{method.name}: its result does not depend on its operator {missed[0]}; call {missed[0]}(x)"


def _settings(method: Algorithm, steps: int, constants: Mapping[str, Any]) -> str:
    """The number of steps and the constants, which are probably to blame."""
    settings = {"steps": steps, **(constants or method.constants)}
    return "with " + ", ".join(f"{name}={value}" for name, value in settings.items())


def all_constants(
    method: Algorithm,
    constants: Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merges the constants of ``constants=`` with those given as keywords.

    Args:
        options: what was given to the caller's own options.

    Raises:
        AlgorithmError: one of them is given twice, does not exist, has a wrong value, or is taken for an option.
    """
    if constants is not None and not isinstance(constants, Mapping):
        raise AlgorithmError(f"{method.name}: constants={constants!r} must be a mapping like {{'beta': 0.9}}")
    given = dict(constants or {})
    for name in keywords:
        if name in given:
            raise AlgorithmError(f"{method.name}: the constant '{name}' is given twice, in constants= and as a keyword")
    given.update(keywords)
    for name, value in (options or {}).items():
        if name in method.constants and name not in given and _may_be(method, name, value):
            raise AlgorithmError(
                f"{method.name} has a constant '{name}', and {name}={value!r} is the option of that name; give the "
                f"constant too: constants={{'{name}': {method.constants[name]!r}}}"
            )
    return method.read_constants(given)


def _may_be(method: Algorithm, constant: str, value: Any) -> bool:
    """Whether the constant may have the value: a word only where its default is one."""
    default = method.constants[constant]
    if default is not None and isinstance(value, str) != isinstance(default, str):
        return False
    try:
        method.read_constants({constant: value})
    except AlgorithmError:
        return False
    return True


def record(
    method: Algorithm,
    steps: int,
    operators: Iterable[str] | None = None,
    reading: str | Mapping[str, str] = "map",
    constants: Mapping[str, Any] | None = None,
) -> Program:
    """The program as the function is written: one instruction for each operation, nothing merged or dropped."""
    given = dict(constants or {})
    names = _operator_names(method, operators)
    readings = _readings(method, names, reading)
    program = _run(method, steps, names, readings, given)
    ends = _ends(method, steps, names, readings, given, sum(1 for _ in program.applies))
    instructions = []
    calls = 0
    for one in program.instructions:
        if isinstance(one, Apply):
            one = replace(one, iteration=min(bisect_right(ends, calls), steps - 1))
            calls += 1
        instructions.append(one)
    return replace(program, instructions=tuple(instructions))


def count_calls(method: Algorithm, steps: int, constants: Mapping[str, Any], most: int) -> int:
    """The number of calls of the main operator in ``steps`` iterations; more than ``most`` raise ``TraceError``."""
    names = _operator_names(method, None)
    return len(_run(method, steps, names, _readings(method, names, "map"), dict(constants), most).calls(names[0]))


def _run(
    method: Algorithm,
    steps: int,
    names: tuple[str, ...],
    readings: dict[str, str],
    constants: dict[str, Any],
    most_calls: int | None = None,
) -> Program:
    if type(steps) is not int or steps < 1:
        raise AlgorithmError(f"steps={steps!r} must be a whole number of at least 1")
    recorder = Recorder(readings, method.starts, most_calls)
    starts = {name: Iterate(recorder, name) for name in method.starts}
    symbols = {name: OperatorSymbol(recorder, name) for name in names}
    try:
        returned = method.function(**symbols, **starts, steps=steps, **constants)
    except NotFinite as error:
        raise NotFinite(f"{method.name}: {error} ({_settings(method, steps, constants)})") from None
    except AlgorithmError as error:
        error.args = (f"{method.name}: {error}",)
        raise
    except Exception as error:
        raise AlgorithmError(
            f"{method.name} failed while it was traced {_settings(method, steps, constants)}: {type(error).__name__}: "
            f"{reason(error)}"
        ) from error
    several = isinstance(returned, (tuple, list))
    results = tuple(returned) if several else (returned,)
    if not results or not all(isinstance(result, Iterate) and result._recorder is recorder for result in results):
        kinds = ", ".join(type(result).__name__ for result in results) or "nothing"
        raise AlgorithmError(
            f"{method.name} returns {kinds}: end it with 'return x', an iterate or a tuple of iterates"
        )
    return Program(
        method.name, method.starts, tuple(recorder.instructions), tuple(result._name for result in results),
        main=names[0], iterations=steps, several=several, readings=readings, constants=constants,
    )  # fmt: skip


def _ends(
    method: Algorithm,
    steps: int,
    names: tuple[str, ...],
    readings: dict[str, str],
    constants: dict[str, Any],
    total: int,
) -> list[int]:
    """The number of calls in the first 1, 2, ..., ``steps`` iterations, counted by running the algorithm on symbols.

    A call outside the loop counts with the first iteration. A few short runs are enough if the iterations have the
    same number of calls, or repeat or grow regularly (``_continued``); otherwise the algorithm runs once for every
    number of iterations.
    """

    def count(iterations: int) -> int:
        try:
            return sum(1 for _ in _run(method, iterations, names, readings, constants).applies)
        except AlgorithmError:  # the algorithm does not accept so few iterations
            return 0

    if steps == 1:
        return [total]
    ends = [count(iterations) for iterations in range(1, min(steps, 4))]
    each = ends[1] - ends[0] if len(ends) > 1 else total - ends[0]
    even = [ends[0] + k * each for k in range(steps)]
    if even[: len(ends)] == ends and even[-1] == total:
        return even
    ends += [count(iterations) for iterations in range(len(ends) + 1, min(steps, PROBED + 1))]
    continued = _continued(ends, steps)
    if len(ends) == PROBED and continued[-1] == total and continued[steps // 2 - 1] == count(steps // 2):
        return continued
    return [*ends, *(count(iterations) for iterations in range(len(ends) + 1, steps)), total]


def _continued(ends: list[int], length: int) -> list[int]:
    """A sequence, continued to ``length`` entries by its differences d_k = 2 d_{k-p} - d_{k-2p}.

    p is the smallest period for which this holds in the second half, or 1: calls that repeat, or grow evenly.
    """
    differences = [ends[0], *(later - earlier for earlier, later in pairwise(ends))]
    second_half = range(len(ends) // 2, len(ends))
    periods = (
        p
        for p in range(1, min(LONGEST, len(ends) // 4) + 1)
        if all(differences[k] - 2 * differences[k - p] + differences[k - 2 * p] == 0 for k in second_half)
    )
    period = next(periods, 1)
    while len(differences) < length:
        differences.append(2 * differences[-period] - differences[-2 * period] if len(differences) > 1 else 0)
    return list(accumulate(differences))


def _operator_names(method: Algorithm, operators: Iterable[str] | None) -> tuple[str, ...]:
    required = tuple(name for name, needed in method.operators.items() if needed)
    if operators is None:
        return required
    names = (operators,) if isinstance(operators, str) else tuple(operators)
    names = tuple(python_name(name) if isinstance(name, str) else name for name in names)
    for name in names:
        if name not in method.operators:
            raise OperatorError(f"{method.name} has no operator '{name}'; it has: {', '.join(method.operators)}")
        if names.count(name) > 1:
            raise OperatorError(f"{method.name}: the operator '{name}' is given twice; name it once")
    for name in required:
        if name not in names:
            raise OperatorError(f"{method.name}: its operator '{name}' is missing; give {', '.join(required)}")
    return tuple(name for name in method.operators if name in names)


def _readings(method: Algorithm, names: tuple[str, ...], reading: str | Mapping[str, str]) -> dict[str, str]:
    given = {names[0]: reading} if isinstance(reading, str) else {python_name(n): how for n, how in reading.items()}
    for name, how in given.items():
        if name not in names:
            raise OperatorError(
                f"{method.name}: a reading is given for '{name}', which is not one of {', '.join(names)}"
            )
        if how not in READINGS:
            raise OperatorError(f"{method.name}: reading '{how}' is unknown; it is 'map' or 'residual'")
    return {name: given.get(name, "map") for name in names}
