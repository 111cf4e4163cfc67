"""One evaluation from its configuration to evaluation.json: of a checkpoint, or of a model by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from optnet.data import DataSet
from optnet.errors import CheckpointError, ConfigError, ModelError
from optnet.training import checkpoint, distributed, setup
from optnet.training.config import Data, Evaluate, Model
from optnet.training.logbook import new_folder, write_json
from optnet.training.scoring import evaluate


@dataclass
class Parts:
    """All that an evaluation is made of, checked and built before anything is written."""

    config: Evaluate
    device: torch.device
    data: DataSet
    model: nn.Module
    subject: dict[str, str]


def prepare(config: Evaluate, overrides: Sequence[str] = ()) -> Parts:
    """Checks a request by building its parts; writes nothing.

    Raises:
        RequestError: the request is wrong.
    """
    if (config.checkpoint is None) == (config.model is None):
        raise ConfigError("give either checkpoint=FILE or model=NAME to evaluate")
    if config.output is not None:
        output = Path(config.output).absolute()
        if output.is_dir() or not next(path for path in output.parents if path.exists()).is_dir():
            raise ConfigError(f"output={config.output} must be a file in a folder, like evaluation.json")
        _earlier(output)
    device = distributed.device(setup.device(config.device))
    if config.checkpoint is not None:
        content = checkpoint.load(config.checkpoint)
        model = checkpoint.rebuild(content)
        try:
            data_config = config.data or Data(**content["config"]["data"])
            seed = int(content["config"]["seed"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{config.checkpoint} does not say which data it was trained on ({error})") from None
        data = setup.data(data_config, seed)
        if len(content["classes"]) != len(data.classes):
            raise ModelError(
                f"{config.checkpoint} has {len(content['classes'])} classes, but {data.name} has {len(data.classes)}"
            )
        subject = {"checkpoint": str(config.checkpoint)}
    else:
        data = setup.data(config.data or Data(), config.seed)
        torch.manual_seed(config.seed)
        kwargs = {"pretrained": True} if config.pretrained else {}
        model, _ = setup.model(Model(str(config.model), kwargs=kwargs), {}, len(data.classes), data.shape)
        subject = {"model": str(config.model)}
    return Parts(config, device, data, model.to(device), subject)


def run(parts: Parts) -> float:
    """Scores the model, prints a table and adds an entry to evaluation.json. Returns the top-1 accuracy in per cent."""
    config, data = parts.config, parts.data
    loader = data.loader(config.split, config.batch_size, device=parts.device)
    share = loader.shared(distributed.rank(), distributed.size())
    score = evaluate(parts.model, share, len(data.classes))
    if not distributed.is_primary():
        return score.top1
    figures = {key: value for key, value in asdict(score).items() if key != "confusion"}
    entry = {**figures, "per_class": dict(zip(data.classes, score.per_class, strict=True)), **parts.subject}
    entry.update(dataset=data.name, split=config.split)
    file = _output(parts)
    write_json(file, [*_earlier(file), entry])
    table = Table(title=f"{next(iter(parts.subject.values()))} on {data.name}, {config.split}")
    for column in ("top-1 %", "top-5 %", "loss", "correct", "of"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{score.top1:.2f}", f"{score.top5:.2f}", f"{score.loss:.6f}", f"{score.correct:,}", f"{score.count:,}"
    )
    Console().print(table)
    print(f"written to {file}")
    return score.top1


def _output(parts: Parts) -> Path:
    """evaluation.json: as given, else in the folder of the checkpoint's run, else in a run folder of its own."""
    if parts.config.output is not None:
        file = Path(parts.config.output)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file
    if parts.config.checkpoint is not None:
        folder = Path(parts.config.checkpoint).resolve().parent
        return (folder.parent if folder.name == "checkpoints" else folder) / "evaluation.json"
    return new_folder("runs", f"evaluation-{parts.config.model}-{parts.data.name}") / "evaluation.json"


def _earlier(file: Path) -> list[Any]:
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text())
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        raise ConfigError(f"{file} exists and is not a list of evaluations; give another output=FILE")
    return entries
