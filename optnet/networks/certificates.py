"""Certificates of whatever has coefficients: a model's stages, a program, an algorithm. Computes nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from optnet.analysis.certificate import Certificate
from optnet.analysis.certificate import certify as certify_program
from optnet.errors import ModelError
from optnet.language.declaration import Algorithm
from optnet.language.program import Program
from optnet.language.tracing import trace
from optnet.networks.substitution import learned_programs


def certify(
    subject: nn.Module | Program | str | Callable[..., Any] | Algorithm,
    *,
    steps: int = 5,
    kappa: float = 10.0,
    worst_cases: bool = True,
) -> dict[str, Certificate]:
    """What coefficients are worth as optimization methods; see ``optnet.analysis.certify``.

    Args:
        subject: a model, each of whose unrolled stages is certified with the coefficients that it has now; a program;
            or whatever ``optnet.trace`` takes.
        steps: the number of iterations of an algorithm.
        kappa: L / mu of the strongly convex functions.
        worst_cases: whether to compute them, which needs the extra ``proof``.

    Returns:
        A certificate by the name of the stage, or of the algorithm.

    Raises:
        ModelError: the model has no unrolled algorithm. RequestError: a stage cannot be certified.
    """
    options: dict[str, Any] = {"kappa": kappa, "worst_cases": worst_cases}
    if isinstance(subject, nn.Module):
        stages = learned_programs(subject)
        if not stages:
            raise ModelError("the model has no unrolled algorithm, so there is no method to certify")
        return {stage: certify_program(one.program, one.textbook, **options) for stage, one in stages.items()}
    program = subject if isinstance(subject, Program) else trace(subject, steps=steps)
    return {program.name: certify_program(program, **options)}
