"""The modules that hold the learned weights of sums under a rule, and the plans for them. Knows no rule and no layer.

A block holds the weights w of one sum, or of several that belong together, in the form

    w = c + s (v - c),  v = w_0 + B u

with the weights w_0 of the program, a learned vector u that starts at 0, a basis B of the directions in which the
weights may move, and a centre c. Where v is allowed, s is 1. So every block starts at the program's own weights.
Elsewhere, v is reflected at the border, on the line through the centre, as often as it takes. So it still has a
gradient; with a projection onto the border it would have none, and u could not come back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from optnet.language.program import Combine

Array = np.ndarray
SLACK = 1e-12
"""Rounding that is allowed where weights are compared."""


class Planned(Protocol):
    """A block before it has tensors: the sums, in the order in which their weights follow each other, and its freedom.

    Its block returns a list with the weights of each sum, (terms,) or (terms * channels,), and is made in float64.
    """

    @property
    def rows(self) -> tuple[Combine, ...]: ...

    @property
    def directions(self) -> int: ...

    def block(self, channels: int) -> nn.Module: ...


@dataclass(frozen=True)
class Plan:
    """A block before it has tensors.

    Attributes:
        rows: the sums, in the order in which their weights follow each other.
        basis: B, (weights, directions).
        centre: c, by default the program's weights.
        nonnegative: for each weight, whether it must be at least 0.
        sums: the rows of a matrix E; sum |E w| must be at most 1.
    """

    rows: tuple[Combine, ...]
    basis: Array
    centre: Array | None = None
    nonnegative: Sequence[bool] = ()
    sums: Array | None = None

    @property
    def start(self) -> Array:
        return np.concatenate([row.weights for row in self.rows])

    @property
    def directions(self) -> int:
        return self.basis.shape[1]

    def block(self, channels: int) -> nn.Module:
        return Block(self, channels)


class Block(nn.Module):
    """The weights of one plan; ``forward`` returns those of each sum, (terms,) or (terms * channels,).

    ``weights``, the learned u, is one vector; with ``channels`` it has that many values for each direction.
    """

    start: Tensor
    centre: Tensor
    basis: Tensor
    towards: Tensor
    sums: Tensor
    within: Tensor

    def __init__(self, plan: Plan, channels: int) -> None:
        super().__init__()

        def constant(name: str, values: Array) -> None:
            self.register_buffer(name, torch.tensor(values, device="cpu", dtype=torch.float64), persistent=False)

        centre = plan.start if plan.centre is None else plan.centre
        nonnegative = np.array([*plan.nonnegative] or [False] * len(plan.start))
        constant("start", plan.start[:, None])
        constant("centre", centre[:, None])
        constant("basis", plan.basis[:, :, None])
        constant("towards", np.where(nonnegative, 1 / np.where(centre > 0, centre, 1.0), 0.0)[:, None])
        sums = np.zeros((0, len(plan.start))) if plan.sums is None else plan.sums
        constant("sums", sums[:, :, None])
        bounded = nonnegative | (sums != 0).any(0)
        moved_with = np.abs(plan.basis) @ (np.abs(plan.basis).T @ bounded) > 0  # the others are free
        constant("within", (bounded | moved_with).astype(float)[:, None])
        self.bounded = bool(nonnegative.any())
        self.summed = len(sums) > 0
        self.sizes = [len(row.terms) for row in plan.rows]
        self.directions = plan.directions
        self.weights = nn.Parameter(torch.zeros(self.directions * (channels or 1), device="cpu", dtype=torch.float64))

    def forward(self) -> list[Tensor]:
        u = self.weights.reshape(1, self.directions, -1)
        w = self.start + (self.basis * u).sum(1)
        if self.bounded:
            share = (self.centre - w) * self.towards  # (c - v) / c
            w = self._reflected(w, share.amax(0, keepdim=True), -share.amin(0, keepdim=True))
        if self.summed:
            gauge = (self.sums * w.unsqueeze(0)).sum(1).abs().sum(0, keepdim=True)
            w = self._reflected(w, gauge, gauge)
        parts: list[Tensor] = []
        for part in w.split(self.sizes):
            parts.append(part.flatten())
        return parts

    def _reflected(self, v: Tensor, gauge: Tensor, opposite: Tensor) -> Tensor:
        """The border is at v / gauge, seen from the centre, and at -v / opposite on the other side."""
        ahead, behind = 1 / gauge.clamp(min=0.5), 1 / opposite.clamp(min=1e-4)
        whole = ahead + behind
        place = 1 + behind  # of v, from the border behind
        place = place - 2 * whole * (place / (2 * whole)).floor()
        s = torch.where(gauge <= 1, torch.ones_like(gauge), whole - (place - whole).abs() - behind)
        return self.centre + (v - self.centre) * (1 + self.within * (s - 1))

    @torch.jit.ignore
    def constants(self) -> dict[str, Tensor]:
        """None of the algorithm's constants is learned here."""
        return {}


class Table(nn.Module):
    """The weights of the sums that a rule lets learn; ``forward`` returns them in the order of ``rows``.

    It is made in float64 on the CPU. Plans that leave no freedom are not in it.
    """

    def __init__(self, plans: Iterable[Planned], channels: int) -> None:
        super().__init__()
        made = [plan for plan in plans if plan.directions]
        self.blocks = nn.ModuleList(plan.block(channels) for plan in made)
        self.rows = [row.value for plan in made for row in plan.rows]

    def forward(self) -> list[Tensor]:
        weights: list[Tensor] = []
        for block in self.blocks:
            weights += block()
        return weights

    @torch.jit.ignore
    def weights(self) -> dict[str, Tensor]:
        """The weights of each sum now."""
        return dict(zip(self.rows, self(), strict=True))

    @torch.jit.ignore
    def constants(self) -> dict[str, Tensor]:
        """The learned constants of the algorithm now, (1,) or (channels,)."""
        blocks: Any = self.blocks
        return {name: value for block in blocks for name, value in block.constants().items()}
