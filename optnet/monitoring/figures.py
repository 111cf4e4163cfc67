"""Figures of a network: its coefficients beside the textbook's, its answers. Draws; measures and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from optnet.program import Program
from optnet.unroll import Coefficient, Unrolled, coefficients


def heat_maps(model: nn.Module) -> dict[str, Figure]:
    """For each unrolled stage the matrix h[k, j] of its coefficients: learned, and beside it the algorithm's own.

    A row is a sum of the program; the columns are the layers' values T(x_j), then the iterates x_j. Grey is a term that
    the sum does not have.
    """
    table: dict[str, list[Coefficient]] = {}
    for entry in coefficients(model):
        table.setdefault(entry.stage, []).append(entry)
    return {
        stage: _heat_map(stage, entries, cast(Unrolled, model.get_submodule(stage)).program)
        for stage, entries in table.items()
    }


def _heat_map(stage: str, entries: list[Coefficient], program: Program) -> Figure:
    calls = {step.value: f"{step.operator}({step.argument})" for step in program.applies}
    rows = list(dict.fromkeys(entry.step for entry in entries))
    terms = list(dict.fromkeys(calls.get(entry.term, entry.term) for entry in entries))
    columns = [term for term in terms if "(" in term] + [term for term in terms if "(" not in term]
    learned = np.full((len(rows), len(columns)), np.nan)
    textbook = learned.copy()
    for entry in entries:
        place = rows.index(entry.step), columns.index(calls.get(entry.term, entry.term))
        learned[place] = entry.value
        textbook[place] = np.nan if entry.textbook is None else entry.textbook
    limit = max(1e-3, *(abs(value) for value in [*learned.flat, *textbook.flat] if math.isfinite(value)))
    width, height = min(0.3 * max(len(columns), 6), 9), min(0.25 * max(len(rows), 4), 9)
    figure = Figure(figsize=(2 * width + 2, height + 1.5))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, matrix in zip(panels, ("learned", "textbook"), (learned, textbook), strict=True):
        axes.set_facecolor("0.85")
        shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_title(f"{stage}, {title}", fontsize=9)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        if matrix.size <= 60:
            for (i, j), value in np.ndenumerate(matrix):
                if np.isfinite(value):
                    colour = "white" if abs(value) > 0.6 * limit else "black"
                    axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(shown, ax=panels)
    return figure


def predictions(
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> Figure:
    """A grid of normalised images (n, channels, height, width), each with the class that the network answers.

    Right answers are green; wrong ones red, with the right class behind them.
    """
    pixels = images.detach().float().cpu().permute(0, 2, 3, 1).numpy() * np.asarray(std) + np.asarray(mean)
    likelihood, answers = logits.detach().float().cpu().softmax(1).max(1)
    side = math.ceil(math.sqrt(len(pixels)))
    figure = Figure(figsize=(1.6 * side, 1.8 * side))
    grid: Any = figure.subplots(math.ceil(len(pixels) / side), side, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, label, answer, p in zip(
        grid.flat, pixels, labels.tolist(), answers.tolist(), likelihood.tolist(), strict=False
    ):
        axes.imshow(image.clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        wrong = f"\nnot {classes[label]}" if answer != label else ""
        axes.set_title(f"{classes[answer]} {p:.0%}{wrong}", fontsize=7, color="red" if wrong else "green")
    return figure
