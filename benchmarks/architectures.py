"""Compares networks with ancestors: python benchmarks/architectures.py [--rows 'HB*'] [--threads 1 2] [--compiled]

Both sides run alternately in one process. Rows that are already in the JSON file are measured again only with --again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paired
import references
import timm
import torch
import torchvision
from momentumnet import MomentumNet
from rich.console import Console
from rich.table import Table
from torch import nn

import optnet
from optnet.networks import rules

Builder = Callable[[], nn.Module]
CIFAR, LARGE = (16, 32, 64), (64, 128, 256, 512)


@dataclass(frozen=True)
class Row:
    """One comparison: two builders, the images' shape (batch, channels, height, width), and each ratio's aim."""

    ours: Builder
    theirs: Builder
    shape: tuple[int, int, int, int]
    aims: dict[str, float] = field(default_factory=dict)
    depth: int | None = None


def ours(name: str, **options: Any) -> Builder:
    return lambda: timm.create_model(name, **options)


def resnet(blocks: int) -> Builder:
    return lambda: references.resnet_cifar(blocks)


def densenet121() -> nn.Module:
    return torchvision.models.densenet121()


def two_stream(stem: str, blocks: tuple[int, ...], widths: tuple[int, ...], classes: int) -> Builder:
    make = references.large_stem if stem == "imagenet" else references.small_stem
    return lambda: references.TwoStream(blocks, widths, make(widths[0]), classes)


def momentum(memory: str, steps: int = 12, width: int = 16) -> Builder:
    def build() -> nn.Module:
        body = optnet.unroll(
            optnet.find_algorithm("heavy_ball"), steps=steps, reading="residual", step=0.1, beta=0.9, memory=memory,
            operators={"T": lambda call: references.branch(width, width)}, coefficients="fixed",
        )  # fmt: skip
        return references.OneShape(body, width)

    return build


def momentumnet(use_backprop: bool, steps: int = 12, width: int = 16) -> Builder:
    def build() -> nn.Module:
        layers = [references.branch(width, width) for _ in range(steps)]
        return references.OneShape(MomentumNet(layers, gamma=0.9, use_backprop=use_backprop), width)

    return build


SMALL, MIDDLE = (32, 3, 32, 32), (8, 3, 96, 96)
FIXED = {"train": 1.03, "saved_bytes": 1.04}
LEARNABLE = {"train": 1.12, "saved_bytes": 1.04}
NO_SKIPS = {"constants": {"skips": False}}
CHECKPOINT = {"memory": "checkpoint"}
ONE = {"constants": {"history": 1}}
RULES = [name for name in rules.NAMES if name not in ("simplex", "doubly_stochastic")]
"""Those that a heavy ball may have; its momentum has a negative weight."""
ROWS: dict[str, Row] = {
    "HB-20 fixed": Row(ours("hbnet20_cifar", coefficients="fixed"), resnet(3), SMALL, FIXED),
    "HB-20 learnable": Row(ours("hbnet20_cifar"), resnet(3), SMALL, LEARNABLE, 20),
    "HB-18 fixed": Row(ours("hbnet18", coefficients="fixed"), ours("resnet18"), MIDDLE, FIXED),
    "HB-18 learnable": Row(ours("hbnet18"), ours("resnet18"), MIDDLE, LEARNABLE),
    "AGD-121 fixed": Row(ours("agdnet121", coefficients="fixed"), densenet121, MIDDLE),
    "AGD-121 alpha": Row(ours("agdnet121", **NO_SKIPS), densenet121, MIDDLE, {"train": 1.10, "saved_bytes": 1.06}),
    "AGD-121 alpha, batch 16": Row(
        ours("agdnet121", **NO_SKIPS), densenet121, (16, 3, 96, 96), {"train": 1.10, "saved_bytes": 1.06}
    ),
    "AGD-121 alpha, beta": Row(ours("agdnet121"), densenet121, MIDDLE, {"train": 1.20, "saved_bytes": 1.15}),
    "AGD-121 checkpoint": Row(ours("agdnet121", **NO_SKIPS, **CHECKPOINT), densenet121, MIDDLE, {"held_bytes": 0.5}),
    "ADMM-20 fixed": Row(
        ours("admmnet20_cifar", coefficients="fixed"), two_stream("small", (3, 3, 3), CIFAR, 10), SMALL, {"train": 1.08}
    ),
    "ADMM-20 learnable": Row(
        ours("admmnet20_cifar"), two_stream("small", (3, 3, 3), CIFAR, 10), SMALL, {"train": 1.08}
    ),
    "ADMM-34 learnable": Row(
        ours("admmnet34"), two_stream("imagenet", (3, 4, 6, 3), LARGE, 1000), (4, 3, 96, 96), {"train": 1.08}
    ),
    "ADMM-20 history 1": Row(
        ours("admmnet20_cifar", **ONE), two_stream("small", (3, 3, 3), CIFAR, 10), SMALL, {"train": 1.08}
    ),
    "ADMM-34 history 1": Row(
        ours("admmnet34", **ONE), two_stream("imagenet", (3, 4, 6, 3), LARGE, 1000), (4, 3, 96, 96), {"train": 1.08}
    ),
    "ADMM-56 history 1": Row(ours("admmnet56_cifar", **ONE), two_stream("small", (9, 9, 9), CIFAR, 10), SMALL),
    "ADMM-56 learnable": Row(ours("admmnet56_cifar"), two_stream("small", (9, 9, 9), CIFAR, 10), SMALL),
    **{f"HB-20 {rule}": Row(ours("hbnet20_cifar", coefficients=rule), resnet(3), SMALL) for rule in RULES},
    **{f"HB-18 {rule}": Row(ours("hbnet18", coefficients=rule), ours("resnet18"), MIDDLE) for rule in RULES},
    **{
        f"{name} {layer}": Row(
            ours(f"{short}vit_tiny_patch16_224", layer=layer),
            ours("vit_tiny_patch16_224"),
            (16, 3, 224, 224),
            {"train": 1.02 if short == "gd" else 1.06, "saved_bytes": 1.05},
        )
        for short, name in {"gd": "GD-ViT", "hb": "HB-ViT", "agd": "AGD-ViT"}.items()
        for layer in ("vit_half", "vit")
    },
    "GD-34": Row(ours("gdnet34"), lambda: references.plain_cnn((6, 8, 12, 6), LARGE), MIDDLE),
    "Momentum ResNet": Row(momentum("keep"), momentumnet(True), SMALL),
    "Momentum ResNet checkpoint, invertible": Row(momentum("checkpoint"), momentumnet(False), SMALL),
    "HB-56 learnable": Row(ours("hbnet56_cifar"), resnet(9), SMALL, depth=56),
    "HB-110 learnable": Row(ours("hbnet110_cifar"), resnet(18), (16, 3, 32, 32), depth=110),
    "HB-20 checkpoint": Row(ours("hbnet20_cifar", **CHECKPOINT), resnet(3), SMALL, depth=20),
    "HB-56 checkpoint": Row(ours("hbnet56_cifar", **CHECKPOINT), resnet(9), SMALL, depth=56),
    "HB-110 checkpoint": Row(ours("hbnet110_cifar", **CHECKPOINT), resnet(18), (16, 3, 32, 32), depth=110),
}


def measure(row: Row, device: torch.device, threads: list[int], pairs: int, compiled: bool) -> dict[str, Any]:
    """The sizes of both sides, and for each number of threads the times of a training step and of inference."""
    torch.manual_seed(0)
    images, labels = torch.randn(row.shape, device=device), torch.randint(10, row.shape[:1], device=device)
    models = [builder().to(device) for builder in (row.ours, row.theirs)]
    if device.type != "cpu":
        images = images.to(memory_format=torch.channels_last)
        models = [model.to(memory_format=torch.channels_last) for model in models]
    result: dict[str, Any] = {"shape": row.shape}
    if not compiled:
        for side, model in zip(("ours", "theirs"), models, strict=True):
            result[side] = paired.sizes(model, images)
    else:
        models = [torch.compile(model) for model in models]
    for count in threads if device.type == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(count)
        steps = [paired.step(model.train(), images, labels) for model in models]
        result[f"train/{count}"] = paired.alternate(steps[0], steps[1], pairs, device).to_json()
        runs = [paired.inference(model.eval(), images) for model in models]
        result[f"inference/{count}"] = paired.alternate(runs[0], runs[1], pairs, device).to_json()
    return result


def show(results: dict[str, Any], console: Console) -> None:
    machines = sorted(
        {f"{row['device']}, torch {row['torch']}, malloc {row['malloc']}" for row in results["rows"].values()}
    )
    table = Table(title=f"ours / theirs, {' and '.join(machines)}; ! = over the aim, ~ = noisy")
    threads = sorted({key.split("/")[1] for row in results["rows"].values() for key in row if "/" in key}, key=int)
    timed = [f"{what}/{count}" for what in ("train", "inference") for count in threads]
    sized = ["saved_bytes", "held_bytes", "parameters", "multiply_adds"]
    table.add_column("row")
    for column in [*(f"{name.replace('/', ', ')} thr" for name in timed), *sized]:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in results["rows"].items():
        aims = ROWS[name.removesuffix(" compiled")].aims if not name.endswith(" compiled") else {}
        cells = [name]
        for key in timed:
            times = row.get(key)
            over = times and times["ratio"] > aims.get(key.split("/")[0], float("inf"))
            cells.append(f"{times['ratio']:.3f}{'!' * bool(over)}{'~' * times['noisy']}" if times else "")
        for key in sized:
            ratio = row["ours"][key] / row["theirs"][key] if "ours" in row else None
            over = ratio and ratio > aims.get(key, float("inf"))
            cells.append(f"{ratio:.3f}{'!' * bool(over)}" if ratio else "")
        table.add_row(*cells)
    console.print(table)


def draw(results: dict[str, Any], file: Path) -> None:
    """Plots the ratios of all rows (left), and the milliseconds and MiB of a training step against depth (right)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(17, 6), width_ratios=(2, 1, 1), layout="constrained")
    rows = results["rows"]
    threads = sorted({key.split("/")[1] for row in rows.values() for key in row if "/" in key}, key=int)
    for i, count in enumerate(threads):
        at = [j + 0.4 * i - 0.2 for j in range(len(rows))]
        ratios = [row.get(f"train/{count}", {}).get("ratio", 0) for row in rows.values()]
        axes[0].barh(at, ratios, 0.38, label=f"training step, {count} thread{'s' * (count != '1')}")
    axes[0].axvline(1, color="black", linewidth=0.8)
    axes[0].set(yticks=range(len(rows)), yticklabels=list(rows), xlabel="time, ours / theirs")
    axes[0].invert_yaxis()
    axes[0].legend()
    for kind, memory in (("learnable", "keep"), ("checkpoint", "checkpoint")):
        found = [(ROWS[n].depth, rows[n]) for n in rows if n.startswith("HB-") and n.endswith(kind) and ROWS[n].depth]
        depths = [depth for depth, _ in found]
        images = [row["shape"][0] for _, row in found]
        for axis, value in (
            (axes[1], lambda side, row: 1e3 * row[f"train/{threads[0]}"][side]),
            (axes[2], lambda side, row: row[side]["held_bytes"] / 2**20),
        ):
            for side in ("ours", "theirs")[: 2 if memory == "keep" else 1]:
                label = f"HB-Net, memory={memory}" if side == "ours" else "ResNet"
                values = [value(side, row) / n for (_, row), n in zip(found, images, strict=True)]
                axis.plot(depths, values, "o-" if side == "ours" else "s--", label=label)
    axes[1].set(xlabel="depth", ylabel=f"milliseconds per image and training step, {threads[0]} thread(s)")
    axes[2].set(xlabel="depth", ylabel="MiB held for backward, per image")
    for axis in axes[1:]:
        axis.legend()
        axis.set_ylim(bottom=0)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=["*"], help="patterns of rows, like 'HB*'")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--compiled", action="store_true", help="compile both sides with torch.compile")
    parser.add_argument("--again", action="store_true", help="measure rows again that are already in the JSON file")
    parser.add_argument(
        "--default-malloc", action="store_true", help="let malloc return freed memory to the system, its default"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent.parent / "results")
    options = parser.parse_args()
    console = Console()
    if options.pairs < 2 or not options.threads or min(options.threads) < 1:
        parser.error("--pairs must be at least 2 and --threads at least 1")
    chosen = [name for name in ROWS if any(fnmatch.fnmatch(name, pattern) for pattern in options.rows)]
    if not chosen:
        parser.error(f"no row is called {' or '.join(options.rows)}; there are {', '.join(ROWS)}")
    device = torch.device(options.device)
    file = options.results / f"architectures-{device.type}.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    processor = platform.processor() or platform.machine()
    processor = f"{processor}, {os.cpu_count()} cores" if device.type == "cpu" else torch.cuda.get_device_name(device)
    environment = {"device": processor, "torch": str(torch.__version__), "python": platform.python_version()}
    environment["malloc"] = "default" if options.default_malloc or not paired.keep_freed_memory() else "keeps"
    options.results.mkdir(exist_ok=True)
    for name in chosen:
        key = f"{name} compiled" if options.compiled else name
        if key in results["rows"] and not options.again:
            continue
        console.print(f"{key} ...")
        measured = measure(ROWS[name], device, options.threads, options.pairs, options.compiled)
        results["rows"][key] = {**environment, **measured}
        order = [name for row in ROWS for name in (row, f"{row} compiled")]
        results["rows"] = {name: results["rows"][name] for name in order if name in results["rows"]}
        file.write_text(json.dumps(results, indent=1) + "\n")
    show(results, console)
    draw(results, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
