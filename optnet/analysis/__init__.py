"""Judges an algorithm from its traced program, or learned coefficients: rates, stability, worst cases. No torch."""

from optnet.analysis.certificate import Certificate, certify
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
from optnet.analysis.validity import Stability, inconsistency, nearest_valid, stability
from optnet.analysis.worst_case import Samples, WorstCase, worst_case, worst_case_of
from optnet.language.theorems import INITIAL, METRICS

__all__ = [
    "INITIAL",
    "LOOKED",
    "METRICS",
    "Certificate",
    "Diagnosis",
    "Recurrence",
    "Samples",
    "Stability",
    "WorstCase",
    "amplification",
    "canonical_table",
    "certify",
    "constants_for",
    "convergence_factor",
    "diagnose",
    "error_polynomial",
    "distances",
    "errors",
    "growth",
    "inconsistency",
    "largest_radius",
    "nearest",
    "nearest_valid",
    "quadratic_metric",
    "recurrence",
    "run_on_scalars",
    "stability",
    "sum_rule",
    "theorem_margin",
    "tuned_recurrence",
    "worst_case",
    "worst_case_of",
    "worst_error",
]
