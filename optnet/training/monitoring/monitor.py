"""The monitor: it watches a run and writes to TensorBoard. It changes no weight, buffer or random state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optnet.data import DataSet
from optnet.errors import DataError, RequestError, reason
from optnet.networks.modes import mode
from optnet.networks.unrolled import coefficient_names
from optnet.options import choice, number, option
from optnet.training.loop import Observer, Progress, Trainer
from optnet.training.monitoring import board, conditioning, depth

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OPERATIONAL = ("name", "device", "resume", "runs", "progress", "monitor")
"""The settings that are no hyperparameters."""
OPEN = ("algorithm", "trainer", "model.kwargs")
"""The tables among the settings whose keys differ from run to run."""
MOMENTS = ("none", "epoch", "end")


@dataclass
class MonitorOptions:
    """What TensorBoard shows beyond the scalars of an epoch, and how often. An interval of 0 is never."""

    every: int = number(100, 0, help="steps between two looks at gradient norms and at the movement by depth")
    conditioning: int = number(2000, 0, help="steps between two looks at g'g, g'Hg and the most negative curvature")
    lanczos: int = number(5, 1, 100, help="products with the Hessian for that curvature")
    images: int = number(16, 2, 1024, help="of the training split, on which movement and conditioning are measured")
    histograms: str = choice("none", *MOMENTS, help="of weights and gradients: never, after each epoch, at the end")
    figures: str = choice("end", *MOMENTS, help="heat maps of the coefficients, and predictions: when to draw them")
    graph: bool = option(True, help="the model's graph")


class Monitor(Observer):
    """Gradient norms, movement by depth, conditioning, histograms, figures, graph, hyperparameters.

    What is looked at every so many steps is written at its step, else at its epoch.

    Args:
        options: what is looked at, and how often.
        events: TensorBoard's writer.
        memory: the peak memory so far, in bytes.
        skip: leave out images that cannot be read.
        lr: the learning rate of a trainer that names none itself.
        settings: the run's, as plain containers, for the table of hyperparameters.

    Attributes:
        seconds: spent here on steps and epochs so far; what a run's beginning and end take is not counted.
    """

    def __init__(
        self,
        options: MonitorOptions,
        events: SummaryWriter,
        data: DataSet,
        device: torch.device,
        memory: Callable[[], int],
        *,
        skip: bool = False,
        lr: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.events, self.data, self.device, self.memory = options, events, data, device, memory
        self.skip, self.lr, self.settings = skip, lr, settings or {}
        self.conditions = options.conditioning > 0
        self.seconds = 0.0

    @cached_property
    def probe(self) -> tuple[Tensor, Tensor]:
        """The images of the training split, with their labels, on which movement and conditioning are measured."""
        return self._some("train")

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor]:
        """The images of the validation split, else of the training split, whose predictions are drawn; their labels."""
        return self._some("validation" if len(self.data.validation) else "train")

    def _some(self, split: str) -> tuple[Tensor, Tensor]:
        """A few images drawn from a whole split, the same ones in every run, unaugmented."""
        few = replace(self.data, **{split: getattr(self.data, split).limited(self.options.images)})
        try:
            return next(few.loader(split, self.options.images, device=self.device, skip=self.skip).batches())
        except DataError:
            if not self.skip:
                raise
        whole = self.data.loader(split, self.options.images, device=self.device, skip=True)
        return next(whole.batches())  # none of the few can be read, but some of the others

    def on_start(self, progress: Progress, trainer: Trainer) -> None:
        if progress.updates:
            return
        self.events.add_custom_scalars(board.layout(trainer.model))
        if self.options.graph and (why := board.add_graph(self.events, trainer.model, self.probe[0][:1])):
            self.events.add_text("graph", f"TensorBoard cannot show this model's graph: {why}")

    def on_step(self, progress: Progress, trainer: Trainer) -> None:
        options = self.options
        if options.every and progress.updates % options.every == 0:
            with self._timed():
                found = gradient_norms(_trained(trainer), getattr(trainer, "gradient_norms", None))
                for tag, value in found.items():
                    self.events.add_scalar(tag, value, progress.updates)
                for stage, norms in depth.movements(trainer.model, self.probe[0]).items():
                    for k, norm in enumerate(norms, 1):
                        self.events.add_scalar(f"movement/{stage}/{k:03d}", norm, progress.updates)
        if self.conditions and progress.updates % options.conditioning == 0:
            with self._timed():
                for tag, measured in self._conditioning(trainer).items():
                    self.events.add_scalar(tag, measured, progress.updates)

    def on_epoch(self, progress: Progress, trainer: Trainer) -> None:
        with self._timed():
            self.events.add_scalar("memory/peak_bytes", self.memory(), progress.epoch)
            self._pictures("epoch", trainer.model, progress.epoch)
        self.events.add_scalar("time/monitor_seconds", self.seconds, progress.epoch)

    def on_end(self, summary: dict[str, Any], trainer: Trainer) -> None:
        self._pictures("end", trainer.model, summary["epochs"])
        table = {key: value for key, value in self.settings.items() if key not in OPERATIONAL}
        table = board.hyperparameters(table, OPEN)
        results = {f"result/{key}": summary[key] for key in ("final", "best", "parameters", "train_seconds")}
        results = {tag: value for tag, value in results.items() if value is not None}  # no best without validation
        board.add_hyperparameters(self.events, table, results, summary["epochs"])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def _conditioning(self, trainer: Trainer) -> dict[str, float]:
        """Empty, from then on, for a model that cannot be differentiated twice; TensorBoard's text says why."""
        try:
            loss, point = conditioning.training_loss(_trained(trainer), *self.probe)
            found = conditioning.measure(loss, point, self.options.lanczos)
        except (RuntimeError, ValueError) as error:
            self.conditions = False
            self.events.add_text("conditioning", f"cannot be measured here: {reason(error)}")
            return {}
        eps = trainer.scalars().get("optim/lr", self.lr)
        return {
            "conditioning/gg": found.gg, "conditioning/gHg": found.gHg,
            "conditioning/predicted_change": found.change(eps), "conditioning/most_negative_curvature": found.curvature,
        }  # fmt: skip

    def _pictures(self, when: str, model: nn.Module, epoch: int) -> None:
        """The histograms and figures that are asked for then. A run goes on without those that cannot be drawn."""
        for asked, draw in ((self.options.histograms, self._histograms), (self.options.figures, self._figures)):
            if asked != when:
                continue
            try:
                draw(model, epoch)
            except (OSError, RequestError):
                raise
            except Exception as error:  # matplotlib and TensorBoard raise what they like
                self.events.add_text("figures", f"cannot be drawn: {reason(error)}", epoch)

    def _histograms(self, model: nn.Module, epoch: int) -> None:
        for name, parameter in model.named_parameters():
            self.events.add_histogram(f"weights/{name}", parameter.detach(), epoch)
            if parameter.grad is not None:
                self.events.add_histogram(f"gradients/{name}", parameter.grad, epoch)

    @torch.no_grad()
    def _figures(self, model: nn.Module, epoch: int) -> None:
        from optnet.training.monitoring import figures  # matplotlib takes a while

        for stage, figure in figures.heat_maps(model).items():
            self.events.add_figure(f"coefficients/{stage}", figure, epoch)
        images, labels = self.shown
        with mode(model, training=False):
            logits = model(images)
        drawn = figures.predictions(images, labels, logits, self.data.classes, self.data.mean, self.data.std)
        self.events.add_figure("predictions", drawn, epoch)


def _trained(trainer: Trainer) -> nn.Module:
    """The network whose weights are updated: the model itself, unless that is their average."""
    network: nn.Module = getattr(trainer, "network", trainer.model)
    return network


def gradient_norms(model: nn.Module, norms: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """||g|| of the last step, whole and by part (stem, each stage, head, coefficients), on the device.

    Empty if the model has no gradients, as when it is trained without backpropagation.

    Args:
        norms: of each parameter's gradient, for those that have one, if they are not as the gradients are now.
    """
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not grads:
        return {}
    parts: dict[str, list[Tensor]] = {}
    place = _parts(model)
    for name, norm in zip(grads, norms or torch._foreach_norm(list(grads.values())), strict=True):
        parts.setdefault(place[name], []).append(norm)
    squares = {part: torch.stack(found).square().sum() for part, found in parts.items()}
    squares["all"] = torch.stack(list(squares.values())).sum()
    return {f"gradient_norm/{part}": square.sqrt() for part, square in squares.items()}


def _parts(model: nn.Module) -> dict[str, str]:
    """For every parameter the part of the model that it belongs to: a child, or a numbered child of a list of them."""
    place: dict[str, str] = {name: name for name, _ in model.named_parameters(recurse=False)}
    for name, child in model.named_children():
        below = dict(child.named_children())
        numbered = list(below) == [str(i) for i in range(len(below))] and len(below) > 0
        for entry, _ in child.named_parameters(prefix=name):
            place[entry] = name
        for i, part in below.items() if numbered else ():
            place |= {entry: f"{name}.{i}" for entry, _ in part.named_parameters(prefix=f"{name}.{i}")}
    return place | dict.fromkeys(coefficient_names(model), "coefficients")
