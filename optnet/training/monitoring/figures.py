"""Figures of a network: coefficients beside the textbook's, answers, mistakes. Draws; measures and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from optnet.errors import drawable
from optnet.networks.unrolled import Coefficient, Unrolled, coefficients


def heat_maps(model: nn.Module) -> dict[str, Figure]:
    """For each unrolled stage the matrix h[k, j] of its coefficients: learned, and beside it the algorithm's own.

    A row is a sum of the program. The columns are the main operator's values T(x_j), then those of each other operator,
    then the iterates x_j, with a line between them. Grey is a term that the sum does not have. Of weights that differ
    from image to image, it is the part that all images share.
    """
    table: dict[str, list[Coefficient]] = {}
    for entry in coefficients(model):
        table.setdefault(entry.stage, []).append(entry)
    return {
        stage: _heat_map(stage, entries, cast(Unrolled, model.get_submodule(stage))) for stage, entries in table.items()
    }


def _heat_map(stage: str, entries: list[Coefficient], unrolled: Unrolled) -> Figure:
    program = unrolled.program
    what = "learned, shared by all images" if unrolled.per_sample else "learned"
    layers = [call for call in program.applies if call.value not in program.iterates]
    labels = {call.value: f"{call.operator}({call.argument})" for call in layers}
    rows = list(dict.fromkeys(entry.step for entry in entries))
    terms = list(dict.fromkeys(labels.get(entry.term, entry.term) for entry in entries))
    groups = [program.main, *(operator for operator in program.operators if operator != program.main), ""]
    group_of = {labels[call.value]: groups.index(call.operator) for call in layers}
    columns = sorted(terms, key=lambda term: group_of.get(term, len(groups) - 1))  # a stable sort
    kinds = [group_of.get(term, len(groups) - 1) for term in columns]
    learned = np.full((len(rows), len(columns)), np.nan)
    textbook = learned.copy()
    for entry in entries:
        place = rows.index(entry.step), columns.index(labels.get(entry.term, entry.term))
        learned[place] = entry.value
        textbook[place] = np.nan if entry.textbook is None else entry.textbook
    limit = max(1e-3, *(abs(value) for value in [*learned.flat, *textbook.flat] if math.isfinite(value)))
    width, height = min(0.3 * max(len(columns), 6), 9), min(0.25 * max(len(rows), 4), 9)
    figure = Figure(figsize=(2 * width + 2, height + 1.5))
    figure.subplots_adjust(left=0.5 / (2 * width + 2), bottom=0.8 / (height + 1.5), top=1 - 0.4 / (height + 1.5))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, matrix in zip(panels, (what, "textbook"), (learned, textbook), strict=True):
        axes.set_facecolor("0.85")
        shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_title(drawable(f"{stage}, {title}"), fontsize=9)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        for i in range(1, len(columns)):
            if kinds[i] != kinds[i - 1]:
                axes.axvline(i - 0.5, color="black", linewidth=0.8)
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
    classes = [drawable(name, 30) for name in classes]
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


def confusion_matrix(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Counts (classes, classes), row the label, column the answer, as parts of their row; up to 20 classes by name."""
    classes = [drawable(name, 30) for name in classes]
    parts = (matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    named = len(classes) <= 20
    side = 1 + 0.4 * len(classes) if named else 8
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    shown = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    if named:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for (i, j), count in np.ndenumerate(matrix.numpy()):
            axes.text(
                j, i, count, ha="center", va="center", fontsize=7, color="white" if parts[i, j] > 0.5 else "black"
            )
    figure.colorbar(shown, ax=axes)
    return figure
