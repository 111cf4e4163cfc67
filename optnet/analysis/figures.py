"""Draws certificates: a worst-case function with the method's path, and its runs as an optimizer. Computes no bound."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from optnet.analysis.certificate import Certificate, library_method, trials
from optnet.analysis.interpolation import interpolant
from optnet.analysis.scalars import Array
from optnet.analysis.trials import Trial, curve
from optnet.analysis.worst_case import Samples
from optnet.errors import drawable

GRADIENTS = 60
"""The number of gradients in a run."""
BESIDE = ("gradient_descent", "nesterov")
"""The library's methods whose runs are drawn."""


def certificate_figure(certificates: Mapping[str, Certificate]) -> Figure:
    """A row for each certificate: a worst-case function of its projected method, and its runs on ``trials()``."""
    columns = 1 + len(trials())
    figure = Figure(figsize=(4.2 * columns, 3.4 * len(certificates)))
    panels = figure.subplots(len(certificates), columns, squeeze=False)
    edge = 0.45 / len(certificates) / 3.4
    figure.subplots_adjust(left=0.05, right=0.99, bottom=edge, top=1 - edge / 2, wspace=0.22, hspace=0.4)
    for (name, one), (first, *others) in zip(certificates.items(), panels, strict=True):
        _draw_worst_case(first, name, one)
        for axes, trial in zip(others, trials(), strict=True):
            _draw_runs(axes, one, trial)
    return figure


def _draw_runs(axes: Any, one: Certificate, trial: Trial) -> None:
    programs = {**one.programs, **{name: library_method(name, GRADIENTS, inf) for name in BESIDE}}
    for name, program in programs.items():
        gaps = np.maximum(curve(program, trial, GRADIENTS), 1e-16)
        axes.semilogy(gaps, "--" if name in BESIDE else "-", label=name, linewidth=1.2)
    axes.set_title(drawable(trial.name), fontsize=9)
    axes.set_xlabel(f"gradients (restarted after {one.gradients})", fontsize=8)
    axes.set_ylabel("f - f*", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


def _draw_worst_case(axes: Any, name: str, one: Certificate) -> None:
    worst = one.row("projected").convex
    axes.tick_params(labelsize=7)
    if one.attained is None or worst is None:
        axes.set_title(drawable(name), fontsize=9)
        axes.text(0.5, 0.5, "no worst case", ha="center", transform=axes.transAxes)
        return
    dimensions = one.attained.points.shape[1]
    plane, whole = _plane(one.attained)
    axes.set_title(drawable(f"{name}: worst f - f* = {worst:.4g}"), fontsize=9)
    at = one.attained.points @ plane
    if not whole:
        at = at[[0, 1, -1]]
    if plane.shape[1] == 1:
        _draw_line(axes, one.attained, plane, at)
    else:
        _draw_contours(axes, one.attained, plane, at)
    section = "" if whole else f": the plane of x*, x_0 and x_N, of {dimensions} dimensions"
    axes.set_xlabel(f"a worst convex f for the projected method{section}", fontsize=8)


def _plane(samples: Samples) -> tuple[Array, bool]:
    """An orthonormal basis (dimensions, 1 or 2) of what is drawn, and whether that is the whole space."""
    dimensions = samples.points.shape[1]
    if dimensions <= 2:
        return np.eye(dimensions), True
    return np.linalg.qr(samples.points[[1, -1]].T)[0], False


def _draw_line(axes: Any, samples: Samples, plane: Array, at: Array) -> None:
    low, high = at.min(), at.max()
    x = np.linspace(low - 0.2 * (high - low), high + 0.2 * (high - low), 200)
    axes.plot(x, interpolant(samples, x[:, None] @ plane.T)[0], color="0.3", linewidth=1)
    heights = interpolant(samples, at @ plane.T)[0]
    axes.plot(at[1:, 0], heights[1:], "o-", markersize=3, linewidth=0.8)
    _name(axes, np.column_stack([at[:, 0], heights]))


def _draw_contours(axes: Any, samples: Samples, plane: Array, at: Array) -> None:
    low, high = at.min(0), at.max(0)
    pad = 0.2 * (high - low).max()
    x, y = (np.linspace(low[i] - pad, high[i] + pad, 41) for i in (0, 1))
    grid = np.stack(np.meshgrid(x, y), -1)
    heights = interpolant(samples, grid.reshape(-1, 2) @ plane.T, iterations=300)[0].reshape(grid.shape[:2])
    axes.contour(x, y, heights, 12, linewidths=0.6)
    axes.plot(*at[1:].T, "o-", markersize=3, linewidth=0.8)
    _name(axes, at)


def _name(axes: Any, at: Array) -> None:
    """Marks x*, which comes first, x_0, which comes next, and x_N, the last."""
    axes.plot(*at[0], "*", color="black", markersize=8)
    for text, place in (("x*", at[0]), ("x_0", at[1]), ("x_N", at[-1])):
        axes.annotate(text, place, xytext=(4, 5), textcoords="offset points", fontsize=8)
