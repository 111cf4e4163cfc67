"""Which coefficients make a valid method, and the nearest of them: a projection. Judges no speed.

With T = id every call has the value of its argument, and a residual call F is 0. What is left of a sum are its weights
on earlier iterates, its memory. Two conditions make a method valid:

consistent: where all iterates are equal, every sum keeps the multiple of them that the algorithm's text gives it (1 for
an iterate, 0 for a dual). Then every argument of T is a fixed point if the start is one.

stable: no disturbance grows from iteration to iteration. If each iteration has one sum with a memory, with the weights
m_1 (on the newest iterate), m_2, ..., then the companion matrix of z^n = m_1 z^{n-1} + m_2 z^{n-2} + ... has no
eigenvalue outside the unit circle. For a consistent sum, sum_i |m_{i+1} + m_{i+2} + ...| <= 1 is sufficient: the
differences of successive iterates do not grow. With two successive ones it is necessary too: |m_2| <= 1. If
iterations have several sums with a memory, all of them must be averages of earlier iterates, or the program
zero-stable, as in ``diagnose``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from optnet.analysis.diagnosis import amplification, amplification_limit, canonical_table
from optnet.analysis.scalars import Array, is_residual, multiples
from optnet.errors import RequestError
from optnet.language.program import Apply, Combine, Program

CONSISTENT = 1e-6
"""The largest inconsistency of a consistent method: learned coefficients are often single-precision numbers."""
ROUNDING = 1e-9
"""Rounding errors of the other conditions."""
TRIVIAL = 1e-12
"""The largest difference of weights that counts as none."""


def inconsistency(program: Program) -> float:
    """The largest |sum - 1| of the weights of starts and calls in an argument of the main operator, or in the result.

    0 for a consistent method: every point is a fixed point of T if all starts are that fixed point.

    Raises:
        RequestError: the program has too many calls; see ``canonical_table``.
    """
    return float(np.abs(canonical_table(program).sum(1) - 1).max())


@dataclass(frozen=True)
class Stability:
    """Whether a program is stable, and what says so.

    Attributes:
        root: the largest eigenvalue, in absolute value, of the companion matrix of a sum; None if iterations have
            several sums.
        amplified: the largest factor by which a disturbance reaches a result, with T = id.
    """

    stable: bool
    root: float | None
    amplified: float

    @property
    def why(self) -> str:
        if self.root is None:
            return f"with T = id a disturbance grows {self.amplified:.3g} times in all"
        return f"with T = id the largest root of a sum's memory is {self.root:.4f}"


def stability(program: Program, textbook: Program | None = None) -> Stability:
    """Tells whether a program is stable, as the head of this file defines it. ``textbook``: see ``nearest_valid``."""
    return _stability(program, _Targets(program, textbook or program))


def _stability(program: Program, targets: _Targets) -> Stability:
    memory, amplified = _Memory(program, targets), amplification(program)
    weights = [memory.weights(row) for row in memory.carried]
    if memory.alone:
        root = max(map(_root, weights), default=1.0)
        return Stability(all(map(_is_steady, weights)), root, amplified)
    stable = all(map(_is_average, weights)) or amplified <= amplification_limit(program)
    return Stability(stable, None, amplified)


def nearest_consistent(learned: Program, textbook: Program | None = None) -> Program:
    """The projection of learned coefficients onto those of a consistent method; see ``nearest_valid``."""
    targets = _Targets(learned, textbook or learned)
    return learned.with_weights(
        {(row.value, term): weight for row in learned.combines
         for term, weight in zip(row.terms, targets.consistent(row), strict=True)}
    )  # fmt: skip


def nearest_valid(learned: Program, textbook: Program | None = None) -> Program:
    """The projection of learned coefficients onto those of a valid method with the same terms.

    It is the program with the least sum of squared differences of its weights among the consistent ones if that one is
    stable. Otherwise its unstable sums are replaced by the nearest that are consistent and meet the sufficient
    condition for stability: sum_i |m_{i+1} + ...| <= 1 for one sum in an iteration, averages for several. Of several
    sums, one that the textbook does not make an average (a dual) gets the textbook's memory.

    Args:
        textbook: the algorithm's own program; by default the learned one's. It says which multiple of an iterate a sum
            is; if it is not consistent itself, every sum is an iterate.

    Raises:
        RequestError: a sum cannot be made consistent.
    """
    textbook = textbook or learned
    targets = _Targets(learned, textbook)
    found = nearest_consistent(learned, textbook)
    for replaced in (False, True):  # at last all sums get the textbook's memory
        if _stability(found, targets).stable:
            return found
        found = nearest_consistent(_stabilised(found, learned, textbook, targets, textbooks=replaced), textbook)
    return found


def _stabilised(found: Program, learned: Program, textbook: Program, targets: _Targets, *, textbooks: bool) -> Program:
    """The consistent program with its unstable sums replaced; with ``textbooks`` all get the textbook's memory."""
    memory, own = _Memory(found, targets), textbook.weights()
    wanted, weights = learned.weights(), found.weights()
    for row in found.combines:
        if row.value not in memory.carried:
            continue
        lags = memory.matrix(row)
        now, n = np.array(row.weights), targets.sizes(row)
        value = np.array([wanted[row.value, term] for term in row.terms])
        book = np.array([own.get((row.value, term), 0.0) for term in row.terms])
        if textbooks or (not memory.alone and not _is_average(lags @ book)):
            now = value + np.linalg.pinv(lags) @ (lags @ (book - value))
        elif memory.alone and not _is_steady(lags @ now):
            now = _projected(value, n, targets.of[row.value], _tails(len(lags)) @ lags, absolute=True)
        elif not memory.alone and not _is_average(lags @ now):
            now = _projected(value, n, targets.of[row.value], lags, absolute=False)
        weights |= {(row.value, term): float(weight) for term, weight in zip(row.terms, now, strict=True)}
    return found.with_weights(weights)


class _Targets:
    """Which multiple of an iterate every value is in a consistent program: ``of``."""

    def __init__(self, learned: Program, textbook: Program) -> None:
        known: dict[str, float] = {}
        if inconsistency(textbook) <= ROUNDING:
            known = multiples(textbook)
        self.name = learned.name
        self.of = dict.fromkeys(learned.starts, 1.0)
        for one in learned.instructions:
            if isinstance(one, Combine):
                self.of[one.value] = known.get(one.value, 1.0)
            else:
                self.of[one.value] = 0.0 if is_residual(learned, one) else self.of[one.argument]

    def sizes(self, row: Combine) -> Array:
        return np.array([self.of[term] for term in row.terms])

    def consistent(self, row: Combine) -> list[float]:
        """The nearest weights of a consistent sum: w + n (s - n'w) / n'n."""
        weights, n, target = np.array(row.weights), self.sizes(row), self.of[row.value]
        off = target - float(n @ weights)
        if abs(off) <= TRIVIAL:
            return list(row.weights)
        if not n.any():
            raise RequestError(
                f"{self.name}: {row.value} cannot be made consistent, because none of its terms is an iterate"
            )
        return list(map(float, weights + n * off / (n @ n)))


class _Memory:
    """What is left of a program's sums with T = id: each state as a sum of earlier states.

    States are the starts, the sums, and the calls that are themselves the argument of a call or a result. A value with
    one term that is neither, like y_{k+1} = T(x_k) in OGM, is that term.

    Attributes:
        carried: the memory of the states that a later one reads, or the result. A result that reads another state of
            its own iteration is left out: it is an output, which no iteration builds on.
        alone: whether an iteration has at most one of them.
    """

    def __init__(self, program: Program, targets: _Targets) -> None:
        self.size = targets.of
        read = _read(program)
        self.known: dict[str, dict[str, float]] = {start: {start: 1.0} for start in program.starts}
        memory: dict[str, dict[str, float]] = {}
        iteration: dict[str, int] = {}
        now = 0
        for one in program.instructions:
            if isinstance(one, Apply):
                now = one.iteration
                terms = [] if is_residual(program, one) else [(one.argument, 1.0)]
            else:
                terms = list(zip(one.terms, one.weights, strict=True))
            total: dict[str, float] = {}
            for term, weight in terms:
                for state, factor in self.known[term].items():
                    total[state] = total.get(state, 0.0) + weight * factor
            total = {state: weight for state, weight in total.items() if abs(weight) > TRIVIAL}
            several = len([term for term, _ in terms if self.known[term]]) > 1
            if one.value in read or several:
                memory[one.value], iteration[one.value] = total, now
                total = {one.value: 1.0}
            self.known[one.value] = total
        used = {state for total in memory.values() for state in total}
        returned = {state for result in program.results for state in self.known[result]}
        outputs = {
            state for state, total in memory.items()
            if state not in used and any(iteration.get(term) == iteration[state] for term in total)
        }  # fmt: skip
        self.carried = {state: total for state, total in memory.items() if state in (used | returned) - outputs}
        shared = Counter(iteration[state] for state in self.carried)
        self.alone = max(shared.values(), default=0) <= 1 and all(self.size[state] for state in self.carried)
        self.order = [*program.starts, *self.carried]

    def before(self, row: str) -> list[str]:
        """The iterates before a sum, the newest first."""
        return self.order[: self.order.index(row)][::-1]

    def weights(self, row: str) -> Array:
        """The memory of a state that is an iterate, in units of the iterate; those of a dual stay as they are."""
        states = self.before(row)
        return np.array([self.carried[row].get(state, 0.0) * self._unit(state, row) for state in states])

    def matrix(self, row: Combine) -> Array:
        """``weights`` as a linear map of the sum's weights, (iterates, terms)."""
        return np.array(
            [[self.known[term].get(state, 0.0) * self._unit(state, row.value) for term in row.terms]
             for state in self.before(row.value)]
        )  # fmt: skip

    def _unit(self, state: str, row: str) -> float:
        return self.size[state] / self.size[row] if self.size[row] else 1.0


def _read(program: Program) -> set[str]:
    """The values that a call of the main operator reads, or that are returned.

    Other operators are the identity here, and a multiple of a value stands for it.
    """
    stands_for: dict[str, str] = {}
    read: set[str] = set()
    for one in program.instructions:
        if isinstance(one, Apply) and one.operator == program.main:
            read.add(stands_for.get(one.argument, one.argument))
        elif len(one.reads) == 1:
            stands_for[one.value] = stands_for.get(one.reads[0], one.reads[0])
    return read | {stands_for.get(result, result) for result in program.results}


def _root(memory: Array) -> float:
    return float(np.abs(np.roots([1.0, *-memory])).max(initial=0.0))


def _tails(length: int) -> Array:
    """The matrix of m -> (m_2 + m_3 + ..., m_3 + ..., ...)."""
    return np.triu(np.ones((length, length)), 1)[: max(length - 1, 0)]


def _is_steady(memory: Array) -> bool:
    if abs(memory.sum() - 1) <= ROUNDING and np.abs(_tails(len(memory)) @ memory).sum() <= 1 + ROUNDING:
        return True
    return _root(memory) <= 1 + ROUNDING


def _is_average(memory: Array) -> bool:
    return bool((memory >= -ROUNDING).all()) and abs(memory.sum() - 1) <= ROUNDING


def _projected(value: Array, n: Array, target: float, rows: Array, *, absolute: bool) -> Array:
    """The nearest w with n'w = target and sum |rows w| <= 1, or with ``absolute`` false rows w >= 0."""
    from scipy.optimize import minimize

    size, extra = len(value), len(rows) if absolute else 0
    pad = np.zeros((1, extra))
    bounds = np.hstack([rows, np.zeros((len(rows), extra))])
    if absolute:  # t >= |rows w|, sum t <= 1
        eye = np.eye(extra)
        bounds = np.vstack(
            [np.hstack([-rows, eye]), np.hstack([rows, eye]), np.hstack([np.zeros(size), -np.ones(extra)])]
        )
    offsets = np.zeros(len(bounds))
    if absolute:
        offsets[-1] = 1.0
    normal = np.hstack([n[None], pad])
    start = np.concatenate([value + n * (target - n @ value) / (n @ n), np.zeros(extra)])
    done = minimize(
        lambda w: float(((w[:size] - value) ** 2).sum()) / 2,
        start,
        jac=lambda w: np.concatenate([w[:size] - value, np.zeros(extra)]),
        method="SLSQP",
        constraints=[
            {"type": "eq", "fun": lambda w: normal @ w - target, "jac": lambda w: normal},
            {"type": "ineq", "fun": lambda w: bounds @ w + offsets, "jac": lambda w: bounds},
        ],
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    w = done.x[:size]
    return np.asarray(w + n * (target - n @ w) / (n @ n))
