"""The algorithm as data: a short straight-line list of Apply and Combine steps. Knows neither torch nor tracing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import Any

from optnet.errors import ProgramError


@dataclass(frozen=True, slots=True)
class Apply:
    """``value = operator_index(argument)``: one call of an operator, one layer of the network."""

    value: str
    operator: str
    index: int
    argument: str

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


Step = Apply | Combine


@dataclass(frozen=True)
class Program:
    """A straight-line program: what is left of an algorithm once its loop has run on symbols.

    Attributes:
        name: the algorithm's name.
        starts: the starting points, in the order in which the program takes them.
        steps: ``Apply`` and ``Combine`` steps in the order of the algorithm's text.
        results: the values that the algorithm returns.
        several: whether the algorithm returned a tuple (even one of a single iterate).
        readings: per operator, ``map`` (T is the layer) or ``residual`` (T = id + F, F the layer).
        constants: the algorithm's constants, ``steps`` among them.

    Raises:
        ProgramError: a value is read before it is set, set twice, or a weight is not finite.
    """

    name: str
    starts: tuple[str, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]
    several: bool = False
    readings: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: set[str] = set()
        calls = [(step.operator, step.index) for step in self.steps if isinstance(step, Apply)]
        if len(set(calls)) < len(calls) or not all(name.isidentifier() and index >= 0 for name, index in calls):
            raise ProgramError(f"{self.name}: every call needs an operator's name and a number of its own")
        for value in self.starts:
            _define(value, known)
        for step in self.steps:
            for read in step.reads:
                if read not in known:
                    raise ProgramError(f"{self.name}: {step.value} reads {read}, which is not set before it")
            if isinstance(step, Combine):
                if not step.terms or len(step.terms) != len(step.weights) or len(set(step.terms)) != len(step.terms):
                    raise ProgramError(f"{self.name}: {step.value} needs one weight for each of its different terms")
                if not all(math.isfinite(weight) for weight in step.weights):
                    raise ProgramError(f"{self.name}: a weight of {step.value} is not finite: {step.weights}")
            _define(step.value, known)
        if not self.results or not set(self.results) <= known:
            raise ProgramError(f"{self.name}: the results {self.results} are not values of the program")

    @property
    def applies(self) -> Iterator[Apply]:
        return (step for step in self.steps if isinstance(step, Apply))

    @property
    def combines(self) -> Iterator[Combine]:
        return (step for step in self.steps if isinstance(step, Combine))

    @property
    def main(self) -> str:
        """The operator that the algorithm declares first: the layer T, the gradient step."""
        return next(iter([*self.readings, *self.operators]), "")

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators' names, in the order of their first call."""
        return tuple(dict.fromkeys(step.operator for step in self.applies))

    def readers(self) -> dict[str, list[Step]]:
        """For every value the steps that read it."""
        readers: dict[str, list[Step]] = {value: [] for value in self.starts}
        for step in self.steps:
            readers[step.value] = []
            for read in step.reads:
                readers[read].append(step)
        return readers

    def same_structure(self, other: Program) -> bool:
        """Whether the two programs differ in nothing but their weights."""
        return (
            self.starts == other.starts
            and self.results == other.results
            and [(step.value, step.reads) for step in self.steps] == [(step.value, step.reads) for step in other.steps]
        )

    def weights(self) -> dict[tuple[str, str], float]:
        """The coefficient table: ``{(row, term): weight}``."""
        return {(row.value, term): w for row in self.combines for term, w in zip(row.terms, row.weights, strict=True)}

    def without(self, start: str) -> Program:
        """The program in which ``start`` enters no sum: for a starting point of another shape than its successors.

        Raises:
            ProgramError: a sum needs it with a non-zero weight.
        """
        steps: list[Step] = []
        for step in self.steps:
            if isinstance(step, Combine) and start in step.terms:
                kept = {t: w for t, w in zip(step.terms, step.weights, strict=True) if t != start}
                weight = step.weights[step.terms.index(start)]
                if weight or not kept:
                    raise ProgramError(
                        f"{self.name}: {step.value} adds {weight:g} {start}, and {start} has another shape: "
                        f"give it a projection (shortcut) or a weight of 0"
                    )
                step = Combine(step.value, tuple(kept), tuple(kept.values()))
            steps.append(step)
        return replace(self, steps=tuple(steps)).fold()

    def live(self, place: int) -> tuple[str, ...]:
        """The values set in front of step number ``place`` that this or a later step reads, or that are results."""
        later = {read for step in self.steps[place:] for read in step.reads} | set(self.results)
        return tuple(value for value in (*self.starts, *(s.value for s in self.steps[:place])) if value in later)

    def cut(self, borders: Sequence[int], parts: Sequence[int]) -> list[Program]:
        """The program in pieces of so many iterations (``parts``), cut in front of the steps numbered ``borders``: what
        is live at a border is the one piece's results and the next one's starting points, under the same names."""
        edges = [0, *borders, len(self.steps)]
        pieces, starts = [], self.starts
        for begin, end, steps in zip(edges[:-1], edges[1:], parts, strict=True):
            inner = end < len(self.steps)
            results = self.live(end) if inner else self.results
            pieces.append(replace(
                self, starts=starts, steps=self.steps[begin:end], results=results, several=self.several or inner,
                constants={**self.constants, "steps": steps},
            ))  # fmt: skip
            starts = results
        return pieces

    def fold(self) -> Program:
        """The same program with no sum that another one can take in (the rules: ``_Folding``)."""
        return _Folding(self).program()

    def renamed(self) -> Program:
        """The same program with its values numbered: calls ``T0, T1, ...``, sums ``x1, x2, ...``."""
        taken = set(self.starts)
        stem = self.starts[0] if len(self.starts) == 1 else "v"
        while any(name.startswith(stem) for name in self.operators):
            stem += "_"
        names = {start: start for start in self.starts}
        calls: dict[str, int] = {}
        steps: list[Step] = []
        rows = 0
        for step in self.steps:
            if isinstance(step, Apply):
                index = calls[step.operator] = calls.get(step.operator, -1) + 1
                names[step.value] = _fresh(f"{step.operator}{index}", taken)
                steps.append(Apply(names[step.value], step.operator, index, names[step.argument]))
            else:
                rows += 1
                names[step.value] = _fresh(f"{stem}{rows}", taken)
                steps.append(Combine(names[step.value], tuple(names[t] for t in step.terms), step.weights))
        return replace(self, steps=tuple(steps), results=tuple(names[value] for value in self.results))

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back."""
        steps: list[dict[str, Any]] = []
        for step in self.steps:
            if isinstance(step, Apply):
                steps.append({"value": step.value, "call": [step.operator, step.index], "argument": step.argument})
            else:
                steps.append({"value": step.value, "terms": list(step.terms), "weights": list(step.weights)})
        return json.dumps({
            "name": self.name, "starts": self.starts, "steps": steps, "results": self.results,
            "several": self.several, "readings": dict(self.readings), "constants": dict(self.constants),
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that ``to_json`` wrote.

        Raises:
            ProgramError: the text is not such JSON, or what it describes is not a program.
        """
        try:
            data = json.loads(text)
            steps: list[Step] = []
            for step in data["steps"]:
                if "call" in step:
                    operator, index = step["call"]
                    steps.append(Apply(str(step["value"]), str(operator), int(index), str(step["argument"])))
                else:
                    weights = tuple(float(weight) for weight in step["weights"])
                    steps.append(Combine(str(step["value"]), tuple(map(str, step["terms"])), weights))
            return cls(
                str(data["name"]), tuple(map(str, data["starts"])), tuple(steps), tuple(map(str, data["results"])),
                bool(data["several"]), dict(data["readings"]), dict(data["constants"]),
            )  # fmt: skip
        except ProgramError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ProgramError(f"this is not the JSON of a program ({type(error).__name__}: {error})") from None

    def __str__(self) -> str:
        readers = self.readers()
        calls = {
            step.value: f"{step.operator}_{step.index}({step.argument})"
            for step in self.steps
            if isinstance(step, Apply)
        }
        inlined = {value for value in calls if len(readers[value]) == 1 and isinstance(readers[value][0], Combine)}
        inlined -= set(self.results)
        lines = []
        for step in self.steps:
            if isinstance(step, Apply):
                if step.value not in inlined:
                    lines.append(f"{step.value} = {calls[step.value]}")
                continue
            terms = list(zip(step.terms, step.weights, strict=True))
            first = [term for term in terms if term[0] in calls][::-1]
            rest = [term for term in terms if term[0] not in calls][::-1]  # operators first, then the newest first
            body = ""
            for term, weight in first + rest:
                name = calls[term] if term in inlined else term
                sign = "-" if weight < 0 else "+"
                size = "" if abs(weight) == 1 else f"{abs(weight):.6g} "
                body += f" {sign} {size}{name}" if body else f"{'-' if weight < 0 else ''}{size}{name}"
            lines.append(f"{step.value} = {body}")
        settings = ", ".join(f"{key}={value}" for key, value in self.constants.items())
        reading = ", ".join(f"{name} as {how}" for name, how in self.readings.items())
        title = f"{self.name}({', '.join(self.starts)}; {settings}) with {reading}"
        return "\n".join([title, *(f"  {line}" for line in lines), f"  return {', '.join(self.results)}"])


def _define(value: str, known: set[str]) -> None:
    if not value.isidentifier() or iskeyword(value):
        raise ProgramError(f"'{value}' is not a name for a value")
    if value in known:
        raise ProgramError(f"{value} is set twice")
    known.add(value)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


class _Folding:
    """Takes sums into the sums that use them, until every one left is a value of its own.

    A sum stays if it is an operator's argument, is returned, or is used by two or more different values. It is taken in
    if it has one user, one term, only zero weights, or is used only with weight zero: it would own dead coefficients. A
    single term of weight exactly 1 is an alias. A step that the results do not need is dropped. Terms whose weight
    happens to be 0 stay: they are what relaxation makes learnable. A cancellation below 1e-14 counts as 0.
    """

    def __init__(self, program: Program) -> None:
        self.source = program
        self.order = {step.value: i for i, step in enumerate(program.steps)}
        self.order.update({start: i - len(program.starts) for i, start in enumerate(program.starts)})
        self.results = list(program.results)
        self.argument: dict[str, str] = {}
        self.rows: dict[str, dict[str, float]] = {}
        needed = self._needed()
        self.steps = [step for step in program.steps if step.value in needed]
        for step in self.steps:
            if isinstance(step, Apply):
                self.argument[step.value] = step.argument
            else:
                self.rows[step.value] = dict(zip(step.terms, step.weights, strict=True))
        self.pinned_by: dict[str, list[str]] = {}  # the calls that take a value as their argument
        self.users: dict[str, set[str]] = {}  # the sums that have a value as a term
        for call, argument in self.argument.items():
            self.pinned_by.setdefault(argument, []).append(call)
        for row, terms in self.rows.items():
            for term in terms:
                self.users.setdefault(term, set()).add(row)

    def _needed(self) -> set[str]:
        needed = set(self.source.results)
        for step in reversed(self.source.steps):
            if step.value in needed:
                needed.update(step.reads)
        return needed

    def program(self) -> Program:
        waiting = sorted(self.rows, key=self.order.__getitem__)  # the last first: a long sum folds in linear time
        queued = set(waiting)
        while waiting:
            row = waiting.pop()
            queued.discard(row)
            for touched in self._visit(row) if row in self.rows else ():
                if touched in self.rows and touched not in queued:
                    waiting.append(touched)
                    queued.add(touched)
        steps: list[Step] = []
        for step in self.steps:
            if isinstance(step, Apply):
                steps.append(replace(step, argument=self.argument[step.value]))
            elif step.value in self.rows:
                terms = dict(sorted(self.rows[step.value].items(), key=lambda item: self.order[item[0]]))
                steps.append(Combine(step.value, tuple(terms), tuple(terms.values())))
        return replace(self.source, steps=tuple(steps), results=tuple(self.results))

    def _visit(self, row: str) -> set[str]:
        """Takes ``row`` into its users if the rules say so; returns the rows that may now be taken in themselves."""
        terms, users = self.rows[row], self.users.get(row, set())
        pinned = bool(self.pinned_by.get(row)) or row in self.results
        worthless = len(terms) == 1 or not any(terms.values())  # its coefficients would do what others do already
        if pinned:
            goes = bool(users) and worthless
        else:
            goes = worthless or len(users) <= 1 or not any(self.rows[user][row] for user in users)
        if len(terms) == 1 and next(iter(terms.values())) == 1.0:
            self._rename(row, next(iter(terms)))
            pinned = False
        elif not goes:
            return set()
        for user in list(users):
            scale = self.rows[user].pop(row)
            for term, weight in terms.items():
                self._add(user, term, scale * weight)
        if pinned:  # it stays for the call or the result
            self.users[row] = set()
            return set(users)
        for term in terms:
            self.users[term].discard(row)
        del self.rows[row]
        return set(users) | set(terms)

    def _rename(self, row: str, alias: str) -> None:
        for call in self.pinned_by.pop(row, []):
            self.argument[call] = alias
            self.pinned_by.setdefault(alias, []).append(call)
        self.results = [alias if value == row else value for value in self.results]

    def _add(self, row: str, term: str, weight: float) -> None:
        old = self.rows[row].get(term, 0.0)
        new = old + weight
        if abs(new) < 1e-14 * max(abs(old), abs(weight)) or new == 0:
            new = 0.0
        self.rows[row][term] = new
        self.users.setdefault(term, set()).add(row)
