"""What TensorBoard gets once a run: the layout of its curves, the graph, the hyperparameters. Measures nothing."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from optnet.errors import reason
from optnet.networks.unrolled import coefficients, unrolled_in

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIRST = ("lr", "seed", "model.name", "algorithm.name", "data.name", "batch_size", "epochs", "optim.name")
"""The first columns of TensorBoard's table of hyperparameters."""


def layout(model: nn.Module) -> dict[str, dict[str, list[Any]]]:
    """The custom scalars: curves that belong together, one chart a stage."""
    stages = list(unrolled_in(model))
    charts: dict[str, dict[str, list[Any]]] = {
        "training": {
            "loss": ["Multiline", ["(train|validation)/loss"]],
            "top-1": ["Multiline", ["(train|validation)/top1"]],
        },
        "gradients": {"norm by part": ["Multiline", ["gradient_norm/.*"]]},
        "conditioning": {"g'g, g'Hg": ["Multiline", ["conditioning/(gg|gHg)"]]},
    }
    with_coefficients = dict.fromkeys(entry.stage for entry in coefficients(model))
    for kind, names in {"coefficients": with_coefficients, "movement": stages}.items():
        if names:
            charts[kind] = {stage: ["Multiline", [f"{kind}/{stage}/.*"]] for stage in names}
    return charts


def add_graph(events: SummaryWriter, model: nn.Module, images: Tensor) -> str | None:
    """Writes the graph of a copy of the model, in evaluation mode; returns why not, if that cannot be done."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            events.add_graph(copy.deepcopy(model).eval(), images)
    except Exception as error:
        return f"{type(error).__name__}: {reason(error)}"
    return None


def hyperparameters(config: Mapping[str, Any], whole: Collection[str] = ()) -> dict[str, int | float | str | bool]:
    """A configuration as one flat table: ``model.widths`` -> "[16, 32]".

    Values that are no numbers, truth values or text are written as JSON, and so is everything below the keys in
    ``whole``: tables whose keys differ from run to run, which TensorBoard cannot compare.
    """
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in whole:
            below = [name.partition(".")[2] for name in whole if name.startswith(f"{key}.")]
            flat.update({f"{key}.{name}": entry for name, entry in hyperparameters(value, below).items()})
        else:
            flat[key] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return flat


def add_hyperparameters(
    events: SummaryWriter, table: dict[str, int | float | str | bool], metrics: dict[str, float], step: int
) -> None:
    """Writes the table and the run's results into the run's own folder, where they are this run, not another one."""
    first = {key: table[key] for key in FIRST if key in table}  # TensorBoard shows the columns in their order
    events.add_hparams({**first, **table}, metrics, run_name=".", global_step=step)
