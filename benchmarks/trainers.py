"""Training with and without backpropagation on one net, data and start: benchmarks/trainers.py [--tasks 'mnist*']

Every run (task, method, seed) is an entry of results/trainers.json; one that is there is not run again without --again.
Several processes may measure into one file. The test split is scored after each epoch to draw the curves; no choice is
made by it within a run. One thread: seconds are the processor's, of limits and curves too, so that other jobs on the
machine do not count; the wall clock's whole is kept beside them.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import datasets

import optnet
from optnet import lifted
from optnet.lifted.losses import LOSSES
from optnet.training.optimizers import OptimOptions, optimizer
from optnet.training.schedules import ScheduleOptions, schedule


@dataclass(frozen=True)
class Task:
    """A net, its images (samples, pixels) and targets, and how it is scored.

    Attributes:
        score: what of (network, images, targets), and its unit.
        limit: seconds of training at most.
    """

    hidden: tuple[int, ...]
    act: str
    data: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]
    score: Callable[[nn.Module, Tensor, Tensor], float]
    unit: str
    limit: float


class Gradient:
    """Backpropagation of the lifted methods' own loss, with any optimizer of torch; in full batches for L-BFGS."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any = None) -> None:
        self.model, self.optimizer, self.scheduler, self.loss = model, optimizer, scheduler, LOSSES["squared"]
        self.evaluations = self.updates = 0

    def step(self, images: Tensor, labels: Tensor) -> None:
        def closure() -> Tensor:
            self.evaluations += 1
            self.optimizer.zero_grad()
            outputs = self.model(images)
            loss = self.loss(outputs, self.loss.targets(labels, outputs)).mean()
            loss.backward()
            return loss

        self.optimizer.step(closure)  # type: ignore[arg-type]
        self.updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)


Builder = Callable[[nn.Module, int], Any]


@dataclass(frozen=True)
class Method:
    """How a trainer is built from (model, steps); the batch (0: all images) and the epochs at most.

    Attributes:
        raw: pixels in [0, 1] instead of normalised ones. ``std``: of normal weights at the start, biases 0.1, as in the
            published code; else the net's own start, the same for all.
    """

    build: Builder
    batch: int = 100
    epochs: int = 10
    raw: bool = False
    std: float | None = None


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All 60,000 training images and the 10,000 test images, in [0, 1]."""
    root = os.environ.get("OPTNET_DATA", "data")
    parts = [datasets.MNIST(root, train=train) for train in (True, False)]
    train, test = ((part.data.flatten(1).float() / 255, part.targets) for part in parts)
    return (*train, *test)


def usps() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first 5,000 training images and the 2,291 others, in [0, 1], each its own target."""
    made = datasets.USPS(Path(os.environ.get("OPTNET_DATA", "data")) / "USPS", train=True)
    images = torch.from_numpy(made.data).flatten(1).float() / 255
    return images[:5000], images[:5000], images[5000:], images[5000:]


def errors(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * float((model(images).argmax(1) != labels).double().mean())


def reconstruction(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    return float((model(images) - targets).square().sum(1).double().mean())


TASKS = {
    "mnist-300": Task((300,), "relu", mnist, errors, "test error, %", 60),
    "mnist-300-100": Task((300, 100), "relu", mnist, errors, "test error, %", 60),
    "usps-autoencoder": Task((101,) * 5, "sigmoid", usps, reconstruction, "squared error of a new image", 60),
}


def sgd(lr: float) -> Builder:
    """With momentum 0.9 and a constant lr."""
    return lambda model, steps: Gradient(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))


def lbfgs(model: nn.Module, steps: int) -> Gradient:
    """torch's, strong Wolfe, history 50; ten iterations a call."""
    options: dict[str, Any] = {"tolerance_grad": 0, "tolerance_change": 0, "max_eval": 1000, "history_size": 50}
    made = torch.optim.LBFGS(model.parameters(), max_iter=10, line_search_fn="strong_wolfe", **options)
    return Gradient(model, made)


def by_gradients(kind: Callable[[nn.Module, torch.optim.Optimizer, Any], Any], lr: float = 0.1) -> Builder:
    """With the optimizer and schedule of train.py's optim=sgd schedule=cosine, and no decay."""

    def build(model: nn.Module, steps: int) -> Any:
        made = optimizer(OptimOptions("sgd", 0.9, 0.0), model, lr)
        return kind(model, made, schedule(ScheduleOptions("cosine"), made, steps))

    return build


def simple(kind: Callable[[nn.Module, Any], Any], options: Any) -> Builder:
    return lambda model, steps: kind(model, options)


MANY = 10_000
RAW = {"raw": True, "epochs": MANY, "batch": 0}
MNIST = {
    "SGD": Method(by_gradients(Gradient)),
    "LPOM": Method(by_gradients(lambda model, *made: lifted.LPOM(model, lifted.LPOMOptions(), *made))),
    "LPOM pinv": Method(simple(lifted.LPOM, lifted.LPOMOptions(w_step="pinv"))),
    "Penalty": Method(simple(lifted.Penalty, lifted.PenaltyOptions(mu=1.0)), 1000, MANY),
    "Penalty hinge": Method(simple(lifted.Penalty, lifted.PenaltyOptions(mu=1.0, loss="hinge")), 1000, MANY),
    "BCD": Method(simple(lifted.BCD, lifted.BCDOptions()), **RAW, std=0.01),
    "BCD hinge": Method(simple(lifted.BCD, lifted.BCDOptions(loss="hinge")), **RAW),
    "ADMM": Method(simple(lifted.ADMM, lifted.ADMMOptions(start="gaussian")), **RAW),
    "ADMM hinge": Method(simple(lifted.ADMM, lifted.ADMMOptions(start="gaussian", loss="hinge")), **RAW),
    "MAC": Method(simple(lifted.MAC, lifted.MACOptions(cg=5)), 0, MANY),
    "L-BFGS": Method(lbfgs, 0, MANY),
}
USPS = {
    "SGD": Method(sgd(0.02), 20, MANY),
    "L-BFGS": Method(lbfgs, 0, MANY),
    "MAC, mu x 10 after a gain < 5 %": Method(simple(lifted.MAC, lifted.MACOptions(cg=5)), 0, MANY),
    "MAC, mu x 1.5 after each sweep": Method(
        simple(lifted.MAC, lifted.MACOptions(cg=5, growth=1.5, stall=1.0)), 0, MANY
    ),
}
METHODS = {"mnist-300": MNIST, "mnist-300-100": MNIST, "usps-autoencoder": USPS}


def prepared(task: Task, method: Method, seed: int) -> tuple[nn.Module, list[Tensor]]:
    x, y, new_x, new_y = task.data()
    if task.score is errors and not method.raw:
        x, new_x = ((part - 0.1307) / 0.3081 for part in (x, new_x))
    torch.manual_seed(seed)
    outputs = y.shape[1] if y.is_floating_point() else 10
    model = optnet.MLP(task.hidden, act_layer=task.act, num_classes=outputs, img_size=(1, x.shape[1]))
    if method.std is not None:
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, 0.1)
            else:
                nn.init.normal_(parameter, 0, method.std)
    return model, [x, y, new_x, new_y]


def batches(x: Tensor, y: Tensor, size: int, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    if not size:
        yield x, y
        return
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
    for part in order.split(size):
        yield x[part], y[part]


def train(task: Task, method: Method, seed: int) -> dict[str, Any]:
    """One run. A row of its curve: (seconds of training; epochs, sweeps over all images, or L-BFGS's evaluations;
    score on new images, on old ones; MAC's mu). Rows closer than 3 % of the seconds are left out.
    """
    model, (x, y, new_x, new_y) = prepared(task, method, seed)
    steps = method.epochs * (-(-len(x) // method.batch) if method.batch else 1)
    trainer = method.build(model, steps)
    seconds = wall = 0.0
    curve: list[list[float]] = []

    @torch.no_grad()
    def note(passes: float) -> None:
        old = slice(None) if task.score is reconstruction else slice(10_000)
        scores = [round(task.score(model, *part), 3) for part in ((new_x, new_y), (x[old], y[old]))]
        mu = [trainer.mu] if isinstance(trainer, lifted.MAC) else []
        curve.append([round(seconds, 2), passes, *scores, *mu])

    note(0)
    for epoch in range(method.epochs):
        started = time.process_time(), time.perf_counter()
        for images, targets in batches(x, y, method.batch, epoch, seed):
            trainer.step(images, targets)
        seconds, wall = seconds + time.process_time() - started[0], wall + time.perf_counter() - started[1]
        note(getattr(trainer, "evaluations", epoch + 1) if method.batch == 0 else epoch + 1)
        if seconds > task.limit or not curve[-1][2] < float("inf"):
            break
    thin = curve[:1]
    for row in curve[1:-1]:
        if row[0] > 1.03 * thin[-1][0]:
            thin.append(row)
    return {
        "final": curve[-1][2], "passes": curve[-1][1], "seconds": round(seconds, 2), "wall_seconds": round(wall, 2),
        "limit": task.limit, "curve": [*thin, curve[-1]],
    }  # fmt: skip


def live_bytes(step: Callable[[], Any], kept: list[Tensor]) -> int:
    """Bytes of tensors alive at the peak of a step: those ``kept`` before it, and what the allocator adds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in kept}.values())


def memory(width: int, batch: int) -> dict[str, float]:
    """An LPOM step's live bytes over an SGD step's, on 784-width-width-width-10, momentum in both; the second step."""
    images, labels = torch.rand(batch, 784), torch.randint(10, (batch,))
    result: dict[str, float] = {"width": width, "batch": batch}
    for name, build in (("sgd", sgd(0.01)), ("lpom", None)):
        torch.manual_seed(0)
        model = optnet.MLP((width,) * 3, img_size=28)
        made = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        trainer = build(model, 1) if build else lifted.LPOM(model, lifted.LPOMOptions(), made)
        trainer.step(images, labels)
        moments = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
        for part in model.parameters():
            part.grad = None
        kept = [images, labels, *model.parameters(), *moments]
        result[name] = live_bytes(lambda trainer=trainer: trainer.step(images, labels), kept)
    result["ratio"] = result["lpom"] / result["sgd"]
    return result


def draw(results: dict[str, Any], name: str, file: Path) -> None:
    """The curves of a task, of each method's first seed: against seconds, and against passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis in axes:
        axis.set_prop_cycle(color=pyplot.colormaps["tab20"].colors)
    for method, runs in results["runs"].get(name, {}).items():
        run = runs[min(runs)]
        for axis, column, start in ((axes[0], 0, 0.2), (axes[1], 1, 1)):
            points = [(max(row[column], start), row[2]) for row in run["curve"][1:]]
            axis.plot(*zip(*points, strict=True), marker=".", label=method)
    if "mean image" in results:
        for axis in axes if name == "usps-autoencoder" else ():
            axis.axhline(results["mean image"], color="black", linewidth=0.8, linestyle="--", label="mean image")
    for axis, label in zip(
        axes, ("processor seconds of one thread", "epochs, sweeps, or evaluations of L-BFGS"), strict=True
    ):
        axis.set(xlabel=label, ylabel=TASKS[name].unit, yscale="log", xscale="log", title=name)
        axis.grid(True, which="both", linewidth=0.3)
    axes[1].legend(fontsize=8)
    figure.savefig(file, dpi=70)
    pyplot.close(figure)


def update(file: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Changes the results as they are in the file now, while no other process does."""
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"runs": {}}
        change(results)
        results.update(torch=torch.__version__, optnet=optnet.__version__, python=platform.python_version())
        results.update(device=f"cpu ({processor()}), 1 thread", count={"mnist": 10_000, "usps": 2_291})
        file.write_text(json.dumps(results, separators=(",", ":")).replace('},"', '},\n"') + "\n")
        return results
    finally:
        os.close(folder)


def processor() -> str:
    """The processor's name, else its kind."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="*", help="a pattern of tasks, or 'memory'")
    parser.add_argument("--methods", default="*", help="a pattern of methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=float, help="seconds of training at most, in the place of the task's")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent.parent / "results")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "trainers.json"
    results = update(file, lambda results: None)
    if fnmatch.fnmatch("memory", options.tasks) and ("memory" not in results or options.again):
        measured = memory(2048, 1000)
        print("memory", measured, flush=True)
        update(file, lambda results: results.update(memory=measured))
    for name, task in TASKS.items():
        if not fnmatch.fnmatch(name, options.tasks):
            continue
        if task.score is reconstruction:
            x, _, new_x, _ = task.data()
            mean = float((new_x - x.mean(0)).square().sum(1).mean())
            update(file, lambda results, mean=mean: results.update({"mean image": mean}))
        task = replace(task, limit=options.limit or task.limit)
        for label, method in METHODS[name].items():
            for seed in options.seeds if fnmatch.fnmatch(label, options.methods) else ():
                if str(seed) in results["runs"].get(name, {}).get(label, {}) and not options.again:
                    continue
                run = train(task, method, seed)
                print(f"{name}: {label}, seed {seed}: {run['final']:.3f}, {run['seconds']:.0f} s", flush=True)

                def keep(
                    results: dict[str, Any], name: str = name, label: str = label, seed: int = seed, run: Any = run
                ) -> None:
                    results["runs"].setdefault(name, {}).setdefault(label, {})[str(seed)] = run

                update(file, keep)
        draw(update(file, lambda results: None), name, options.results / f"trainers-{name}.png")


if __name__ == "__main__":
    main()
