"""Merges sums into the sums that use them, so that every remaining sum has its own coefficients. Does not trace."""

from __future__ import annotations

import math
from dataclasses import replace

from optnet.errors import ProgramError
from optnet.language.expressions import Expression
from optnet.language.program import Apply, Combine, Instruction, Program


def fold(program: Program) -> Program:
    """The same program with as few sums as possible; ``_Folding`` has the rules."""
    return _Folding(program).program()


def without(program: Program, start: str, *, at_any_weight: bool = False) -> Program:
    """The program without ``start`` in its sums, for a starting point whose shape differs from its successors'.

    Args:
        at_any_weight: whether it is left out even if its weight is not 0, as in a program that is only compared with.

    Raises:
        ProgramError: a sum needs it with a non-zero weight, or has no other term.
    """
    instructions: list[Instruction] = []
    for one in program.instructions:
        if isinstance(one, Combine) and start in one.terms:
            kept = {t: w for t, w in zip(one.terms, one.weights, strict=True) if t != start}
            weight = one.weights[one.terms.index(start)]
            if (weight and not at_any_weight) or not kept:
                raise ProgramError(
                    f"{program.name}: {one.value} adds {weight:g} {start}, which has another shape; "
                    f"give it a projection (shortcut) or a weight of 0"
                )
            one = Combine(one.value, tuple(kept), tuple(kept.values()))
        instructions.append(one)
    return fold(replace(program, instructions=tuple(instructions)))


def one_call_per_point(program: Program) -> Program:
    """The same method with one call of each operator at each point: later calls there read the first one's value.

    A network may give every use of T(x_j) a layer of its own (DenseNet); an operator of mathematics has one value.
    """
    first: dict[tuple[str, str], str] = {}
    same: dict[str, str] = {}
    instructions: list[Instruction] = []
    for one in program.instructions:
        if isinstance(one, Apply):
            argument = same.get(one.argument, one.argument)
            known = first.setdefault((one.operator, argument), one.value)
            same[one.value] = known
            if known == one.value:
                instructions.append(replace(one, argument=argument))
        else:
            weights: dict[str, float] = {}
            for term, weight in zip(one.terms, one.weights, strict=True):
                name = same.get(term, term)
                weights[name] = weights.get(name, 0.0) + weight
            instructions.append(Combine(one.value, tuple(weights), tuple(weights.values())))
    results = tuple(same.get(value, value) for value in program.results)
    return replace(program, instructions=tuple(instructions), results=results)


class _Folding:
    """Merges sums into the sums that use them.

    A sum stays if it is an operator's argument, if it is returned, or if two or more different values use it. It is
    merged if it has one user or one term, if all its weights are 0, or if every user gives it weight 0: its own
    coefficients would then be redundant. A sum of one term with weight exactly 1 is replaced by that term. Instructions
    that the results do not need are dropped. Terms whose weight happens to be 0 stay, because a network may learn them.
    A cancellation below 1e-14 counts as 0.
    """

    def __init__(self, program: Program) -> None:
        self.source = program
        self.order = {instruction.value: i for i, instruction in enumerate(program.instructions)}
        self.order.update({start: i - len(program.starts) for i, start in enumerate(program.starts)})
        self.results = list(program.results)
        self.argument: dict[str, str] = {}
        self.rows: dict[str, dict[str, float]] = {}
        needed = self._needed()
        self.instructions = [instruction for instruction in program.instructions if instruction.value in needed]
        for instruction in self.instructions:
            if isinstance(instruction, Apply):
                self.argument[instruction.value] = instruction.argument
            else:
                self.rows[instruction.value] = dict(zip(instruction.terms, instruction.weights, strict=True))
        self.pinned_by: dict[str, list[str]] = {}  # the calls that take a value as their argument
        self.users: dict[str, set[str]] = {}  # the sums that have a value as a term
        for call, argument in self.argument.items():
            self.pinned_by.setdefault(argument, []).append(call)
        for row, terms in self.rows.items():
            for term in terms:
                self.users.setdefault(term, set()).add(row)

    def _needed(self) -> set[str]:
        needed = set(self.source.results)
        for instruction in reversed(self.source.instructions):
            if instruction.value in needed:
                needed.update(instruction.reads)
        return needed

    def program(self) -> Program:
        waiting = sorted(self.rows, key=self.order.__getitem__)  # last first: a long sum folds in linear time
        queued = set(waiting)
        while waiting:
            row = waiting.pop()
            queued.discard(row)
            for touched in self._visit(row) if row in self.rows else ():
                if touched in self.rows and touched not in queued:
                    waiting.append(touched)
                    queued.add(touched)
        instructions: list[Instruction] = []
        for instruction in self.instructions:
            if isinstance(instruction, Apply):
                instructions.append(replace(instruction, argument=self.argument[instruction.value]))
            elif instruction.value in self.rows:
                terms = dict(sorted(self.rows[instruction.value].items(), key=lambda item: self.order[item[0]]))
                instructions.append(Combine(instruction.value, tuple(terms), tuple(terms.values())))
        return replace(self.source, instructions=tuple(instructions), results=tuple(self.results))

    def _visit(self, row: str) -> set[str]:
        """Merges ``row`` into its users if the rules say so; returns the rows that have to be visited again."""
        terms, users = self.rows[row], self.users.get(row, set())
        pinned = bool(self.pinned_by.get(row)) or row in self.results
        worthless = len(terms) == 1 or not any(terms.values())  # its coefficients would be redundant
        if pinned:
            goes = bool(users) and worthless
        else:
            goes = worthless or len(users) <= 1 or not any(self.rows[user][row] for user in users)
        if len(terms) == 1 and float(next(iter(terms.values()))) == 1.0:
            self._rename(row, next(iter(terms)))
            pinned = False
        elif not goes:
            return set()
        for user in list(users):
            scale = self.rows[user].pop(row)
            for term, weight in terms.items():
                self._add(user, term, scale * weight)
        if pinned:  # it stays, because a call or the result reads it
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
        if not math.isfinite(new):
            raise ProgramError(f"{self.source.name}: a weight is too large for a floating-point number")
        if abs(new) < 1e-14 * max(abs(old), abs(weight)) or not new:
            new = new.zero() if isinstance(new, Expression) else 0.0
        self.rows[row][term] = new
        self.users.setdefault(term, set()).add(row)
