"""Judges an algorithm before training, from its traced program: rates, stability, worst cases. No torch, no data."""

from optnet.analysis.diagnosis import (
    Diagnosis,
    amplification,
    canonical_table,
    diagnose,
    distances,
    growth,
    nearest,
    sum_rule,
)
from optnet.analysis.quadratics import (
    constants_for,
    error_polynomial,
    errors,
    quadratic_metric,
    theorem_margin,
    worst_error,
)
from optnet.analysis.recurrence import (
    LOOKED,
    Recurrence,
    convergence_factor,
    largest_radius,
    recurrence,
    tuned_recurrence,
)
from optnet.analysis.scalars import run_on_scalars
from optnet.analysis.worst_case import worst_case
from optnet.language.theorems import INITIAL, METRICS

__all__ = [
    "INITIAL",
    "LOOKED",
    "METRICS",
    "Diagnosis",
    "Recurrence",
    "amplification",
    "canonical_table",
    "constants_for",
    "convergence_factor",
    "diagnose",
    "error_polynomial",
    "distances",
    "errors",
    "growth",
    "largest_radius",
    "nearest",
    "quadratic_metric",
    "recurrence",
    "run_on_scalars",
    "sum_rule",
    "theorem_margin",
    "tuned_recurrence",
    "worst_case",
    "worst_error",
]
