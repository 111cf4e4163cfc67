"""evaluate.py: one or several models are composed, checked, scored on one data set, and written to evaluation.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from optnet.app.compose import keys, run
from optnet.app.config import Evaluate
from optnet.app.exits import command
from optnet.app.subjects import Subject, of_checkpoint, of_name
from optnet.app.sweep import Result
from optnet.app.terminal import console, table
from optnet.errors import ConfigError, printable, reason
from optnet.training import distributed
from optnet.training.environment import find_device, versions
from optnet.training.folder import check_place, new_folder, replacing, shortened, write_json
from optnet.training.interruption import Stopped
from optnet.training.measuring import multiply_adds, throughput
from optnet.training.scoring import Score, evaluate

COLUMNS = {
    "top-1 %": "{top1:.2f}", "top-5 %": "{top5:.2f}", "loss": "{loss:.6f}", "correct": "{correct:,}", "of": "{count:,}",
    "calibration error": "{calibration_error:.4f}", "parameters": "{parameters:,}",
    "multiply-adds": "{multiply_adds:,}", "images/s": "{images_per_second:,.0f}",
}  # fmt: skip


@dataclass
class Request:
    """All that an evaluation is made of, checked and built before anything is written."""

    config: Evaluate
    device: torch.device
    subjects: list[Subject]


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates as the command line says, by default that of this process; exits with a status if it fails."""
    if arguments is not None:
        sys.argv[1:] = arguments
    with command(), distributed.processes():
        run("evaluate", Evaluate, requests, score)


def requests(asked: Sequence[tuple[Evaluate, Sequence[str]]]) -> list[Request]:
    """Checks all evaluations of a sweep, or the one; see ``prepare``."""
    return [prepare(config, overrides) for config, overrides in asked]


def prepare(config: Evaluate, overrides: Sequence[str] = ()) -> Request:
    """Checks a request by building its parts; writes nothing.

    Args:
        overrides: as the command line gives them.

    Raises:
        RequestError: the request is wrong.
    """
    files, names = _listed("checkpoint", config.checkpoint), _listed("model", config.model)
    if not files and not names:
        raise ConfigError("give checkpoint=FILE or model=NAME to evaluate, or several: model=[hbnet34,resnet34]")
    if files and len(names) not in (0, 1, len(files)):
        raise ConfigError(f"model={config.model} must be one name, or one for each of the {len(files)} checkpoints")
    if config.output is not None:
        output = Path(config.output).absolute()
        if output.exists() and not output.is_file():
            raise ConfigError(f"output={config.output} must be a file, like evaluation.json")
        check_place("output", config.output, output.parent)
        _earlier(output)
    device = distributed.device(find_device(config.device))
    stated = keys(overrides)
    if files:
        models: list[str | None] = [*names] if len(names) == len(files) else [names[0] if names else None] * len(files)
        subjects = [of_checkpoint(config, file, name, stated) for file, name in zip(files, models, strict=True)]
    else:
        subjects = [of_name(config, name, stated) for name in names]
    if config.output is None:
        file = _output(config, subjects)
        check_place("output", str(file.parent.parent if _is_new(file) else file), file.parent)
        _earlier(file)
    for subject in subjects:
        subject.try_forward()
    return Request(config, device, subjects)


def _listed(key: str, given: Any) -> list[str]:
    values = [] if given is None else given if isinstance(given, list) else [given]
    for value in values:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key}={value} must be a name, like {'hbnet34' if key == 'model' else 'best.pt'}")
    return values


def score(request: Request, label: str = "") -> Result:
    """Scores each model, adds the entries to evaluation.json, prints a table. A sweep optimises the last top-1.

    Args:
        label: the job of a sweep; the name of a folder that is made for the evaluation ends with it.
    """
    for subject in request.subjects if distributed.is_primary() else ():
        if subject.said:
            print(printable(f"{subject.name}: {subject.said}"), flush=True)
    scores = [_score(subject, request) for subject in request.subjects]
    if distributed.is_primary():
        entries = [
            _entry(subject, request, scored) | {"unreadable": unreadable}
            for subject, (scored, unreadable) in zip(request.subjects, scores, strict=True)
        ]
        try:
            file, drawings = _write(request, entries, label)
        except OSError as error:
            _show(request, entries)
            raise Stopped(f"error: the scores cannot be written: {reason(error)}", said=False) from None
        _show(request, entries)
        print(f"written to {printable(str(file))}")
        for subject, (scored, _), drawing in zip(request.subjects, scores, drawings, strict=True):
            _draw(scored, subject, drawing)
    top1 = scores[-1][0].top1
    return Result(top1, {f"{request.config.split} top-1 %": top1})


def _write(request: Request, entries: Sequence[dict[str, Any]], label: str) -> tuple[Path, list[Path]]:
    """Adds the entries to evaluation.json. Returns it, and the files that their confusion matrices are drawn in.

    Raises:
        OSError: it cannot be written.
    """
    file = _output(request.config, request.subjects)
    if _is_new(file):
        file = new_folder(file.parent.parent, label) / file.name
    file.parent.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(file)
    numbers = range(len(earlier), len(earlier) + len(entries))
    drawings = [file.with_name(f"{file.stem}_confusion_{number}.png") for number in numbers]
    added = [entry | {"confusion": drawing.name} for entry, drawing in zip(entries, drawings, strict=True)]
    write_json(file, [*earlier, *added])
    return file, drawings


def _draw(scored: Score, subject: Subject, file: Path) -> None:
    """Draws the confusion matrix. Where that fails, it says why: the scores are shown and written already."""
    from optnet.training.monitoring.figures import confusion_matrix  # matplotlib takes a while

    try:
        figure = confusion_matrix(scored.confusion, subject.data.classes)
        with replacing(file) as partial:
            figure.savefig(partial, dpi=150, bbox_inches="tight", format="png")
    except Exception as error:
        print(f"{printable(str(file))} could not be drawn: {reason(error)}", file=sys.stderr)


def _score(subject: Subject, request: Request) -> tuple[Score, list[str]]:
    """The score on all images, each process taking its share of them, and which could not be read."""
    share = subject.loader(request.config, request.device).shared(distributed.rank(), distributed.size())
    found = evaluate(subject.model.to(request.device), share, len(subject.data.classes))
    subject.model.cpu()
    return found, sorted(distributed.all_gather_union(share.unreadable))


def _entry(subject: Subject, request: Request, score: Score) -> dict[str, Any]:
    """One model in evaluation.json, with what it costs."""
    model = subject.model.to(request.device).eval()
    images = next(subject.loader(request.config, request.device).batches())[0]
    return {
        subject.kind: subject.name, "dataset": subject.data.name, "split": request.config.split,
        "preprocessing": asdict(subject.data.preprocessing), "top1": score.top1,
        "top5": score.top5, "loss": score.loss, "count": score.count, "correct": score.correct,
        "calibration_error": score.calibration_error,
        "per_class": dict(zip(subject.data.classes, score.per_class, strict=True)),
        "parameters": sum(p.numel() for p in model.parameters()), "multiply_adds": multiply_adds(model, images[:1]),
        "images_per_second": throughput(model, images), "device": str(request.device), "data_changed": subject.changed,
        "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip


def _show(request: Request, entries: list[dict[str, Any]]) -> None:
    rows = [
        [subject.name, *(text.format(**entry) for text in COLUMNS.values())]
        for subject, entry in zip(request.subjects, entries, strict=True)
    ]
    console().print(table(f"{entries[0]['dataset']}, {request.config.split}", ["", *COLUMNS], rows))
    for subject, entry in zip(request.subjects, entries, strict=True):
        if subject.changed:
            print(printable(f"{subject.name}: its data has changed since it was trained: {subject.changed}"))
        for line in entry["unreadable"]:
            print(printable(f"{subject.name}: left out: {line}"))


def _output(config: Evaluate, subjects: Sequence[Subject]) -> Path:
    """evaluation.json: as given, else in the folder of the one checkpoint's run, else in a new run folder ``*``."""
    first = subjects[0]
    if config.output is not None:
        return Path(config.output)
    if first.kind == "checkpoint" and len(subjects) == 1:
        folder = Path(first.name).resolve().parent
        return (folder.parent if folder.name == "checkpoints" else folder) / "evaluation.json"
    names = shortened("-".join(Path(subject.name).stem for subject in subjects), 80)
    return Path("runs") / f"evaluation-{names}-{first.data.name}" / NEW / "evaluation.json"


NEW = "*"
"""Stands for the name of a folder that is made when there is something to write."""


def _is_new(file: Path) -> bool:
    return file.parent.name == NEW


def _earlier(file: Path) -> list[Any]:
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text()) if file.is_file() else None
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise ConfigError(f"{file} exists and is not a list of evaluations; give another output=FILE")
    return entries
