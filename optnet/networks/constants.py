"""The rules under which an algorithm's own constants are learned: its weights follow from them. Knows no layer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add, getitem, mul

import numpy as np
import torch
from torch import Tensor, fx, nn

from optnet.errors import ModelError
from optnet.language.expressions import OPERATIONS, Expression, Tape
from optnet.language.program import Combine, Program
from optnet.networks.formulas import INSTEAD, tape_of
from optnet.networks.tables import SLACK

NEAR = 1 / 64
"""How far a constant is moved to see what follows it, as a part of its value."""


@dataclass(frozen=True)
class Formulas:
    """A block of weights that follow from constants, before it has tensors.

    Attributes:
        rows: the sums.
        tape, weights: their weights one after the other, expressions on the tape or numbers.
        learned: the constants that have an effect -> whether they are learned as factors.
    """

    rows: tuple[Combine, ...]
    tape: Tape
    weights: tuple[float, ...]
    learned: Mapping[str, bool]

    @property
    def directions(self) -> int:
        return len(self.learned)

    def block(self, channels: int) -> nn.Module:
        return FormulaBlock(self, channels)

    def graph(self) -> fx.Graph:
        """(constants, channels) -> the weights of all sums, (terms, channels), of the learned constants' changes."""
        graph = fx.Graph()
        changes = graph.call_method("unbind", (graph.placeholder("changes"),))
        change = {name: graph.call_function(getitem, (changes, i)) for i, name in enumerate(self.learned)}
        nodes: list[fx.Node | float] = []
        for name, value in self.tape.constants.items():
            if name not in self.learned:
                nodes.append(value)
            elif self.learned[name]:
                nodes.append(graph.call_function(mul, (graph.call_method("exp", (change[name],)), value)))
            else:
                nodes.append(graph.call_function(add, (change[name], value)))
        for operation, *operands in self.tape.steps:
            a, b = (nodes[one] if type(one) is int else one for one in operands)
            known = not isinstance(a, fx.Node) and not isinstance(b, fx.Node)
            nodes.append(OPERATIONS[operation](a, b) if known else graph.call_function(OPERATIONS[operation], (a, b)))
        like, entries = next(iter(change.values())), []
        for weight in self.weights:
            node = nodes[weight.place] if isinstance(weight, Expression) else weight
            entries.append(node if isinstance(node, fx.Node) else graph.call_function(torch.full_like, (like, node)))
        graph.output(graph.call_function(torch.stack, (entries,)))
        return graph


class FormulaBlock(nn.Module):
    """The weights that follow from constants; ``weights`` are the changes of these, which start at 0."""

    def __init__(self, plan: Formulas, channels: int) -> None:
        super().__init__()
        self.starts = [plan.tape.constants[name] for name in plan.learned]
        self.names, self.factors = [*plan.learned], [*plan.learned.values()]
        self.sizes = [len(row.terms) for row in plan.rows]
        self.formulas = fx.GraphModule(nn.Module(), plan.graph(), class_name="Formulas")
        self.weights = nn.Parameter(torch.zeros(len(self.names) * (channels or 1), device="cpu", dtype=torch.float64))

    def forward(self) -> list[Tensor]:
        w = self.formulas(self.weights.reshape(len(self.names), -1))
        parts: list[Tensor] = []
        for part in w.split(self.sizes):
            parts.append(part.flatten())
        return parts

    @torch.jit.ignore
    def constants(self) -> dict[str, Tensor]:
        """The constants now, (1,) or (channels,)."""
        changes = self.weights.reshape(len(self.names), -1)
        known = zip(self.names, self.factors, self.starts, changes, strict=True)
        return {name: start * change.exp() if factor else start + change for name, factor, start, change in known}


def constants(program: Program) -> Iterator[Formulas]:
    """The algorithm's own constants are what is learned. Sums that follow from different ones have a block each.

    A constant that the weights are affine in is c = c_0 + u. Any other is c = c_0 exp(u), which keeps its sign: it may
    be under a root, or in a denominator.

    Args:
        program: one whose weights are expressions of the constants.

    Raises:
        ModelError: a constant is 0, and the weights are not affine in it.
    """
    blocks: list[tuple[set[str], list[Combine]]] = []
    for row in program.combines:
        names, rows = set(tape_of(row.weights)[0].constants), [row]
        for block in [block for block in blocks if block[0] & names]:
            blocks.remove(block)
            names |= block[0]
            rows = block[1] + rows
        blocks.append((names, rows))
    for _, rows in blocks:
        yield _planned(program.name, tuple(rows))


def _planned(name: str, rows: tuple[Combine, ...]) -> Formulas:
    tape, weights = tape_of(weight for row in rows for weight in row.weights)
    start = np.array([float(weight) for weight in weights])

    def change(key: str, times: int) -> np.ndarray:
        values = tape.evaluate({key: tape.constants[key] + times * NEAR * (abs(tape.constants[key]) or 1.0)})
        return np.array([values[one.place] if isinstance(one, Expression) else one for one in weights]) - start

    learned: dict[str, bool] = {}
    for key in tape.constants:
        once, twice = change(key, 1), change(key, 2)
        if np.abs(once).max() > SLACK:
            learned[key] = bool(np.abs(twice - 2 * once).max() > 1e-9 * np.abs(twice).max())
            if learned[key] and not tape.constants[key]:
                raise ModelError(
                    f"coefficients=constants: the weights of {name} are not affine in {key}, whose value 0 gives no "
                    f"scale to learn it on; give it another value, or {INSTEAD}"
                )
    return Formulas(rows, tape, tuple(weights), learned)
