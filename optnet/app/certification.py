"""optnet certify: what a model's coefficients are worth as optimization methods. Computes nothing itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import timm
from rich.console import Console
from torch import nn

from optnet.analysis.certificate import OWN, Certificate, certify
from optnet.app import pictures, subjects, terminal
from optnet.app.config import Evaluate
from optnet.data import SPLITS
from optnet.errors import CheckpointError, ConfigError, DataError, ModelError, RequestError, printable
from optnet.language.lookup import find_algorithm
from optnet.language.tracing import trace
from optnet.networks.design import SPLIT
from optnet.networks.substitution import Learned, learned_programs, with_coefficients
from optnet.networks.trunk import Trunk
from optnet.networks.zoo import list_models
from optnet.options import one_of
from optnet.training.environment import find_device
from optnet.training.folder import as_json
from optnet.training.scoring import Score, evaluate
from optnet.training.trained import load
from optnet.training.weights import best_of

SHOWN = 12
"""The projected program is printed if it has at most so many iterations."""


@dataclass
class _Asked:
    """What is certified.

    Attributes:
        stages: what each stage has learned, by its name; of an algorithm the one program.
        picture: where the drawing goes if nobody says otherwise.
        subject: the model with its data; None where there are no accuracies.
    """

    name: str
    stages: Mapping[str, Learned]
    picture: Path
    subject: subjects.Subject | None = None


@dataclass
class _Found:
    """What there is to say: a certificate or the reason for none by the stage, and the accuracies."""

    certificates: dict[str, Certificate]
    refused: dict[str, str]
    scores: dict[str, Score]
    notes: list[str]


def run(console: Console, options: argparse.Namespace) -> None:
    """Prints the certificate of every stage and the accuracies, and draws them.

    Raises:
        RequestError: the request is wrong; nothing is written.
    """
    one_of("--split", options.split, SPLITS, ConfigError)
    asked = _find(options)
    picture = Path(options.output).expanduser() if options.output else asked.picture
    pictures.check("-o", picture)
    found = _judge(asked, options)
    from optnet.analysis.figures import certificate_figure  # matplotlib takes a while

    pictures.save("-o", picture, certificate_figure(found.certificates))
    if options.json:
        print(as_json(_content(asked, found, options.split, picture), indent=1), end="")
        return
    for stage, one in found.certificates.items():
        _show(console, stage, one, asked.stages[stage])
    for stage, why in found.refused.items():
        console.print(printable(f"{stage}: {why}"))
    if asked.subject is not None and found.scores:
        rows = [[name, f"{one.top1:.2f}", f"{one.top5:.2f}", f"{one.loss:.6f}"] for name, one in found.scores.items()]
        title = printable(f"{asked.subject.data.name}, {options.split}, with the coefficients")
        console.print(terminal.table(title, ("", "top-1 %", "top-5 %", "loss"), rows))
    for note in [*found.notes, f"drawn in {picture}"]:
        console.print(printable(note))


def _find(options: argparse.Namespace) -> _Asked:
    """The subject of the command line: a file or a run's folder, a model of ours, or an algorithm."""
    name, file = options.subject, Path(options.subject).expanduser()
    here = Path(f"certificate-{file.stem.replace(':', '-')}.png")
    if name in list_models():
        return _Asked(name, learned_programs(timm.create_model(name)), here)
    if file.exists() or file.suffix in (".pt", ".pth", ".safetensors"):
        subject = None if options.no_accuracy else _subject(str(file), options.split)
        model = load(file) if subject is None else subject.model
        stages = _with_stages(name, model)
        folder = best_of(file).resolve().parent
        return _Asked(
            name, stages, (folder.parent if folder.name == "checkpoints" else folder) / "certificate.png", subject
        )
    if timm.is_model(name):
        return _Asked(name, _with_stages(name, None), here)
    if "/" in name and ":" not in name:
        raise CheckpointError(f"{name}: there is no such file or folder")
    program = trace(find_algorithm(name), steps=options.steps)
    return _Asked(
        program.name,
        {program.name: Learned(program, program, {})},
        here.with_stem(f"certificate-{program.name}"),
    )


def _with_stages(name: str, model: nn.Module | None) -> dict[str, Learned]:
    found = {} if model is None else learned_programs(model)
    if not found:
        raise ModelError(f"{name} has no unrolled algorithm, so there is no method to certify")
    return found


def _subject(file: str, split: str) -> subjects.Subject:
    """The checkpoint's model with the data that it was trained on."""
    try:
        return subjects.of_checkpoint(Evaluate(split=split), file, None)
    except DataError as error:
        raise DataError(f"{error} (or leave the accuracies out: --no-accuracy)") from None


def _judge(asked: _Asked, options: argparse.Namespace) -> _Found:
    found = _Found({}, {}, {}, [])
    for stage, one in asked.stages.items():
        try:
            found.certificates[stage] = certify(one.program, one.textbook, kappa=options.kappa)
        except RequestError as error:
            found.refused[stage] = str(error)
    if not found.certificates:
        raise ModelError("; ".join(dict.fromkeys(found.refused.values())))
    if asked.subject is None:
        return found
    device = find_device("auto")
    loader = asked.subject.loader(Evaluate(split=options.split), device)
    for name in OWN:
        try:
            model = asked.subject.model if name == "learned" else _variant(asked, found, name)
        except ModelError as error:
            found.notes.append(f"no accuracy with the {name} coefficients: {error}")
            continue
        found.scores[name] = evaluate(model.to(device), loader, len(asked.subject.data.classes))
        model.cpu()
    return found


def _variant(asked: _Asked, found: _Found, name: str) -> nn.Module:
    """The model with projected or textbook coefficients; nothing else of it changes."""
    assert asked.subject is not None
    if not isinstance(asked.subject.model, Trunk):
        raise ModelError("the model is no network of optnet's")
    weights = {stage: one.own if name == "textbook" else one.program.weights() for stage, one in asked.stages.items()}
    if name == "projected":
        weights |= {stage: one.programs[name].weights() for stage, one in found.certificates.items()}
    return with_coefficients(asked.subject.model, weights)


def _show(console: Console, stage: str, one: Certificate, learned: Learned) -> None:
    off = f"no: an iterate is {one.inconsistency:.3g} times a fixed point away from it"
    near = f"distance {one.distance:.4g}, largest change {one.largest_change:.4g}"
    steady = f"{'yes' if one.stability.stable else 'no'}: {one.stability.why}"
    rows = [("consistent", "yes" if one.consistent else off), ("stable", steady), ("nearest valid method", near)]
    textbook = f"{one.nearest[0]}, distance {one.nearest[1]:.3g}" if one.nearest[0] else "none has as many gradients"
    rows.append(("nearest textbook method", textbook))
    if learned.spread:
        rows.append(("per channel", f"means over the channels, whose standard deviation is up to {learned.spread:.3g}"))
    if learned.per_sample:
        rows.append(("per image", "the part of the coefficients that all images share is judged"))
    if learned.per_block > 1:
        blocks = f"{one.iterations / learned.per_block:g} whole steps, the blocks"
        halves = "attention and the MLP take turns and are taken as one T"
        rows.append(("half-steps", f"{one.iterations} half-steps are {blocks}: {halves}"))
    elif set(SPLIT) <= set(one.programs["learned"].operators):
        rows.append(("whole steps", "an iteration is a block: a half-step of A, attention, and one of M, the MLP"))
    rows += [("note", note) for note in one.notes]
    if one.solver:
        rows.append(("solver", f"{one.solver}, by PEPit"))
    title = f"{stage}: {one.name}, {one.iterations} iterations, {one.gradients} gradients"
    console.print(terminal.entries(title, rows))
    trials = list(one.rows[0].measured)
    columns = ["", *(f"gap, {trial}" for trial in trials)]
    table = [[row.name, *(_number(row.measured.get(trial)) for trial in trials)] for row in one.rows]
    if one.solver:
        columns[1:1] = ["worst gap, convex f", f"worst distance, kappa = {one.kappa:g}"]
        for cells, row in zip(table, one.rows, strict=True):
            cells[1:1] = [_number(row.convex), _number(row.strongly_convex)]
    console.print(terminal.table("", columns, [cells for cells in table if any(cells[1:])]))
    if one.iterations <= SHOWN:
        console.print("the nearest valid method:")
        for line in str(one.programs["projected"]).splitlines()[1:]:
            console.print(printable(line))


def _number(value: float | None) -> str:
    return "" if value is None else "no bound" if value == inf else f"{value:.5g}"


def _content(asked: _Asked, found: _Found, split: str, picture: Path) -> dict[str, Any]:
    """The JSON: what is printed, and the coefficients. An infinite bound is null."""
    stages = []
    for stage, one in found.certificates.items():
        tables = {name: program.weights() for name, program in one.programs.items()}
        stages.append({
            "stage": stage, "algorithm": one.name, "iterations": one.iterations, "gradients": one.gradients,
            "kappa": one.kappa, "consistent": one.consistent, "inconsistency": one.inconsistency,
            "stable": one.stability.stable, "root": one.stability.root, "amplification": one.stability.amplified,
            "distance": one.distance, "largest_change": one.largest_change,
            "nearest": {"algorithm": one.nearest[0] or None, "distance": one.nearest[1] if one.nearest[0] else None},
            "spread": asked.stages[stage].spread, "per_sample": asked.stages[stage].per_sample,
            "iterations_per_block": asked.stages[stage].per_block,
            "solver": one.solver or None, "notes": one.notes,
            "methods": [
                {"method": row.name, **{name: _bound(getattr(row, name)) for name in ("convex", "strongly_convex")},
                 "measured": {trial: _bound(value) for trial, value in row.measured.items()}}
                for row in one.rows
            ],
            "coefficients": [
                {"step": step, "term": term, **{name: table.get((step, term)) for name, table in tables.items()}}
                for step, term in tables["learned"]
            ],
        })  # fmt: skip
    scores = {name: {"top1": one.top1, "top5": one.top5, "loss": one.loss} for name, one in found.scores.items()}
    return {
        "subject": asked.name, "stages": stages, "refused": found.refused, "notes": found.notes, "split": split,
        "accuracy": scores, "picture": str(picture),
    }  # fmt: skip


def _bound(value: float | None) -> float | str | None:
    """A number; ``unbounded`` where there is none, null where it was not computed."""
    return "unbounded" if value == inf else value
