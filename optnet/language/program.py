"""``Program``: an algorithm as data, a straight-line list of instructions. No torch, no tracing."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from keyword import iskeyword
from typing import Any

from optnet.errors import ProgramError, reason

FORMAT = 2
"""The version of the JSON that ``Program.to_json`` writes."""
MOST_INSTRUCTIONS, MOST_TERMS = 100_000, 1_000_000
"""The largest program: its number of instructions, and the number of terms of all its sums together."""


@dataclass(frozen=True, slots=True)
class Apply:
    """``value = operator_index(argument)``: one call of an operator, one layer of the network.

    Attributes:
        index: the number of the call, counted from 0 for each operator.
        iteration: the iteration of the algorithm that the call belongs to, counted from 0. A call outside the loop
            counts with the first iteration.
    """

    value: str
    operator: str
    index: int
    argument: str
    iteration: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.argument,)


@dataclass(frozen=True, slots=True)
class Combine:
    """``value = sum_i weights[i] * terms[i]``: one row of coefficients."""

    value: str
    terms: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return self.terms


Instruction = Apply | Combine


@dataclass(frozen=True)
class Program:
    """The operations of an algorithm in their order, recorded by running it on symbols.

    Attributes:
        name: the algorithm's name.
        starts: the starting points, in the order in which the program takes them.
        instructions: ``Apply`` and ``Combine``, in the order of the algorithm's text.
        results: the values that the algorithm returns.
        main: the operator that the algorithm declares first: the layer T, the gradient step.
        iterations: the number of iterations of the algorithm in this program.
        several: whether the algorithm returned a tuple (even one of a single iterate).
        readings: per operator, ``map`` (T is the layer) or ``residual`` (T = id + F, and F is the layer).
        constants: the constants that were given to the algorithm.

    Raises:
        ProgramError: a value is read before it is set, set twice, or a weight is not finite.
    """

    name: str
    starts: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    results: tuple[str, ...]
    main: str
    iterations: int
    several: bool = False
    readings: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: set[str] = set()
        calls = [(call.operator, call.index) for call in self.applies]
        if len(set(calls)) < len(calls) or not all(name.isidentifier() and index >= 0 for name, index in calls):
            raise ProgramError(f"{self.name}: every call needs an operator's name and its own number")
        for value in self.starts:
            _define(value, known)
        for instruction in self.instructions:
            for read in instruction.reads:
                if read not in known:
                    raise ProgramError(f"{self.name}: {instruction.value} reads {read}, which is not set before it")
            if isinstance(instruction, Combine):
                terms, weights = instruction.terms, instruction.weights
                if not terms or len(terms) != len(weights) or len(set(terms)) != len(terms):
                    raise ProgramError(f"{self.name}: {instruction.value} needs one weight for each different term")
                if not all(math.isfinite(weight) for weight in weights):
                    raise ProgramError(f"{self.name}: a weight of {instruction.value} is not finite: {weights}")
            _define(instruction.value, known)
        if not self.results or not set(self.results) <= known:
            raise ProgramError(f"{self.name}: not all of its results {self.results} are values of the program")

    def limited(self) -> Program:
        """This program; a ``ProgramError`` if it is larger than ``MOST_INSTRUCTIONS`` and ``MOST_TERMS`` allow."""
        terms = sum(len(one.terms) for one in self.combines)
        if max(len(self.instructions), self.iterations) > MOST_INSTRUCTIONS or terms > MOST_TERMS:
            raise ProgramError(
                f"{self.name}: {len(self.instructions):,} instructions, {terms:,} terms and {self.iterations:,} "
                f"iterations are too many; at most {MOST_INSTRUCTIONS:,}, {MOST_TERMS:,} and {MOST_INSTRUCTIONS:,} are "
                "allowed: take fewer steps"
            )
        return self

    @property
    def applies(self) -> Iterator[Apply]:
        return (instruction for instruction in self.instructions if isinstance(instruction, Apply))

    @property
    def combines(self) -> Iterator[Combine]:
        return (instruction for instruction in self.instructions if isinstance(instruction, Combine))

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators' names, in the order of their first call."""
        return tuple(dict.fromkeys(call.operator for call in self.applies))

    def calls(self, operator: str) -> list[Apply]:
        """The calls of one operator, in their order."""
        return [call for call in self.applies if call.operator == operator]

    @cached_property
    def iterates(self) -> frozenset[str]:
        """The starting points, the sums, and the values of calls that another call or the result reads."""
        read = {call.argument for call in self.applies}.union(self.results)
        made = {one.value for one in self.instructions if isinstance(one, Combine) or one.value in read}
        return frozenset(made.union(self.starts))

    @cached_property
    def labels(self) -> dict[str, str]:
        """A name for each call, by the call's value: ``T_0``, ``T_1``, ... No other name in the program equals it."""
        taken = {*self.operators, *self.starts, *(instruction.value for instruction in self.instructions)}
        return {call.value: unique(f"{call.operator}_{call.index}", taken) for call in self.applies}

    def readers(self) -> dict[str, list[Instruction]]:
        """The instructions that read each value."""
        readers: dict[str, list[Instruction]] = {value: [] for value in self.starts}
        for instruction in self.instructions:
            readers[instruction.value] = []
            for read in instruction.reads:
                readers[read].append(instruction)
        return readers

    def same_structure(self, other: Program) -> bool:
        """Whether the two programs differ in nothing but their weights."""
        return (
            self.starts == other.starts
            and self.results == other.results
            and [(one.value, one.reads) for one in self.instructions]
            == [(one.value, one.reads) for one in other.instructions]
        )

    def weights(self) -> dict[tuple[str, str], float]:
        """The coefficient table: ``{(row, term): weight}``."""
        return {(row.value, term): w for row in self.combines for term, w in zip(row.terms, row.weights, strict=True)}

    def with_weights(self, weights: Mapping[tuple[str, str], float]) -> Program:
        """The same program with other weights, for example learned ones: ``{(row, term): weight}``."""
        instructions = tuple(
            replace(one, weights=tuple(weights[one.value, term] for term in one.terms))
            if isinstance(one, Combine) else one
            for one in self.instructions
        )  # fmt: skip
        return replace(self, instructions=instructions)

    def live(self, position: int) -> tuple[str, ...]:
        """The values set before instruction number ``position`` that it or a later one reads, or that are returned."""
        later = {read for one in self.instructions[position:] for read in one.reads} | set(self.results)
        values = (*self.starts, *(one.value for one in self.instructions[:position]))
        return tuple(value for value in values if value in later)

    def until(self, value: str) -> Program:
        """The program that returns this value alone, without the instructions that it does not need."""
        needed, kept = {value}, []
        for one in reversed(self.instructions):
            if one.value in needed:
                needed.update(one.reads)
                kept.append(one)
        held = max((one.iteration for one in kept if isinstance(one, Apply)), default=-1) + 1
        return replace(self, instructions=tuple(kept[::-1]), results=(value,), iterations=held)

    def cut(self, borders: Sequence[int], iterations: Sequence[int]) -> list[Program]:
        """Cuts the program into pieces, before the instructions numbered ``borders``.

        The values that are live at a border are the results of one piece and the starting points of the next.

        Args:
            iterations: the number of iterations in each piece.
        """
        edges = [0, *borders, len(self.instructions)]
        pieces, starts = [], self.starts
        for begin, end, held in zip(edges[:-1], edges[1:], iterations, strict=True):
            inner = end < len(self.instructions)
            results = self.live(end) if inner else self.results
            pieces.append(replace(
                self, starts=starts, instructions=self.instructions[begin:end], results=results,
                several=self.several or inner, iterations=held,
            ))  # fmt: skip
            starts = results
        return pieces

    def renamed(self) -> Program:
        """The same program with its values numbered: calls ``T0, T1, ...``, sums ``x1, x2, ...``."""
        taken = {*self.starts, *self.operators}
        stem = self.starts[0] if len(self.starts) == 1 else "v"
        while any(name.startswith(stem) for name in self.operators):
            stem += "_"
        names = {start: start for start in self.starts}
        calls: dict[str, int] = {}
        instructions: list[Instruction] = []
        rows = 0
        for one in self.instructions:
            if isinstance(one, Apply):
                index = calls[one.operator] = calls.get(one.operator, -1) + 1
                names[one.value] = unique(f"{one.operator}{index}", taken)
                instructions.append(replace(one, value=names[one.value], index=index, argument=names[one.argument]))
            else:
                rows += 1
                names[one.value] = unique(f"{stem}{rows}", taken)
                instructions.append(Combine(names[one.value], tuple(names[t] for t in one.terms), one.weights))
        results = tuple(names[value] for value in self.results)
        return replace(self, instructions=tuple(instructions), results=results)

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back."""
        instructions: list[dict[str, Any]] = []
        for one in self.instructions:
            if isinstance(one, Apply):
                call = [one.operator, one.index, one.iteration]
                instructions.append({"value": one.value, "call": call, "argument": one.argument})
            else:
                instructions.append({"value": one.value, "terms": list(one.terms), "weights": list(one.weights)})
        return json.dumps({
            "format": FORMAT, "name": self.name, "main": self.main, "iterations": self.iterations,
            "starts": self.starts, "instructions": instructions, "results": self.results, "several": self.several,
            "readings": dict(self.readings), "constants": dict(self.constants),
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that ``to_json`` wrote.

        Raises:
            ProgramError: the text is not such JSON, was written by another version, or describes no program.
        """
        try:
            data = json.loads(text)
            if data.get("format") != FORMAT:
                raise ProgramError(
                    f"this is the JSON of a program in format {data.get('format', 1)}; this optnet reads {FORMAT}: "
                    "trace the algorithm again"
                )
            instructions: list[Instruction] = []
            if len(data["instructions"]) > MOST_INSTRUCTIONS:
                raise ProgramError(f"the program has more than {MOST_INSTRUCTIONS:,} instructions; take fewer steps")
            for one in data["instructions"]:
                if "call" in one:
                    operator, index, iteration = one["call"]
                    call = Apply(str(one["value"]), str(operator), int(index), str(one["argument"]), int(iteration))
                    instructions.append(call)
                else:
                    weights = tuple(float(weight) for weight in one["weights"])
                    instructions.append(Combine(str(one["value"]), tuple(map(str, one["terms"])), weights))
            return cls(
                str(data["name"]), tuple(map(str, data["starts"])), tuple(instructions),
                tuple(map(str, data["results"])), str(data["main"]), int(data["iterations"]), bool(data["several"]),
                dict(data["readings"]), dict(data["constants"]),
            ).limited()  # fmt: skip
        except ProgramError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            raise ProgramError(f"this is not the JSON of a program ({type(error).__name__}: {reason(error)})") from None

    def __str__(self) -> str:
        readers = self.readers()
        calls = {call.value: f"{self.labels[call.value]}({call.argument})" for call in self.applies}
        inlined = {value for value in calls if len(readers[value]) == 1 and isinstance(readers[value][0], Combine)}
        inlined -= set(self.results)
        lines = []
        for one in self.instructions:
            if isinstance(one, Apply):
                if one.value not in inlined:
                    lines.append(f"{one.value} = {calls[one.value]}")
                continue
            terms = list(zip(one.terms, one.weights, strict=True))
            first = [term for term in terms if term[0] in calls][::-1]
            rest = [term for term in terms if term[0] not in calls][::-1]  # operators first, then the newest first
            body = ""
            for term, weight in first + rest:
                name = calls[term] if term in inlined else term
                sign = "-" if weight < 0 else "+"
                size = "" if abs(weight) == 1 else f"{abs(weight):.6g} "
                body += f" {sign} {size}{name}" if body else f"{'-' if weight < 0 else ''}{size}{name}"
            lines.append(f"{one.value} = {body}")
        settings = ", ".join(f"{key}={value}" for key, value in {"steps": self.iterations, **self.constants}.items())
        reading = ", ".join(f"{name} as {how}" for name, how in self.readings.items())
        title = f"{self.name}({', '.join(self.starts)}; {settings}) with {reading}"
        return "\n".join([title, *(f"  {line}" for line in lines), f"  return {', '.join(self.results)}"])


def _define(value: str, known: set[str]) -> None:
    if not value.isidentifier() or iskeyword(value):
        raise ProgramError(f"'{value}' is not a valid name for a value")
    if value in known:
        raise ProgramError(f"{value} is set twice")
    known.add(value)


def unique(name: str, taken: set[str], reserved: Collection[str] = ()) -> str:
    """The name, with underscores appended until it is neither taken nor reserved. Adds it to ``taken``."""
    while name in taken or name in reserved:
        name += "_"
    taken.add(name)
    return name
