"""Checks on one GPU: correctness, speed, and the accuracy of the families on CIFAR-10 at equal settings.

    python benchmarks/gpu.py check                # logits and gradients against the CPU; bfloat16; torch.compile
    python benchmarks/gpu.py speed                # images per second and bytes of a training step, and the ancestor's
    python benchmarks/gpu.py cifar --root DATA    # short runs of every family, several at a time

Every figure is written to results/gpu.json as soon as it is known. A second call skips existing figures. Use
``--device cpu`` to try the script. Accuracies are on 5,000 held-out training images after the last epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import timm
import torch
import torch.nn.functional as F

import optnet

ROOT = Path(__file__).resolve().parent.parent
SMALL = [name for name in optnet.list_models() if name.endswith("_small")]
SPEED = {  # our model -> the model to compare it with
    "hbnet20_cifar": ("hbnet20_cifar", {"coefficients": "fixed"}),
    "hbnet50": ("resnet50", {}),
    "agdnet121": ("densenet121", {}),
    "admmnet34": ("admmnet34", {"coefficients": "fixed"}),
}
FAMILIES = {  # networks of 20 to 40 layers with the same recipe
    "GD-Net-20": ["model=gdnet20_cifar"],
    "ResNet-20": ["model=hbnet20_cifar", "model.coefficients=fixed"],
    "HB-Net-20": ["model=hbnet20_cifar"],
    "AGD-Net-40": ["model=agdnet40_cifar"],
    "ADMM-Net-20": ["model=admmnet20_cifar"],
}


class Results:
    """results/gpu.json: entries by key, each written to the file immediately."""

    def __init__(self, file: Path, device: str) -> None:
        self.file, self.lock = file, Lock()
        self.content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self.machine = {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": str(torch.__version__),
            "timm": timm.__version__, "optnet": optnet.__version__,
        }  # fmt: skip

    def has(self, section: str, key: str) -> bool:
        return key in self.content.get(section, {})

    def add(self, section: str, key: str, entry: dict[str, Any]) -> None:
        with self.lock:
            self.content.setdefault(section, {})[key] = entry | self.machine
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.content, indent=1) + "\n")
        print(f"{section} {key}: {entry}", flush=True)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double().cpu() - other.double().cpu()).norm() / other.double().cpu().norm())


def check(results: Results, device: str) -> None:
    """Relative differences: the device to the CPU, in float64; bfloat16 and torch.compile to float32 on the device."""
    for name in SMALL:
        if results.has("check", name):
            continue
        torch.manual_seed(0)
        model = timm.create_model(name).double().train()
        images, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8) % 10
        found, gradients = [], []
        for place in ("cpu", device):
            here = timm.create_model(name).double().train()
            here.load_state_dict(model.state_dict())
            here.to(place)
            logits = here(images.to(place))
            F.cross_entropy(logits, labels.to(place)).backward()
            found.append(logits.detach())
            gradients.append(torch.cat([p.grad.flatten() for p in here.parameters() if p.grad is not None]))
        entry = {"logits": relative(found[1], found[0]), "gradients": relative(gradients[1], gradients[0])}
        single = here.float().eval()
        with torch.no_grad():
            plain = single(images.float().to(device))
            entry["compiled"] = relative(torch.compile(single)(images.float().to(device)), plain)
            with torch.autocast(device, torch.bfloat16):
                entry["bfloat16"] = relative(single(images.float().to(device)), plain)
        results.add("check", name, entry)


def speed(results: Results, device: str, seconds: float = 3.0) -> None:
    """Times a training step (forward, backward, SGD) in bfloat16 autocast, channels last, eager and compiled."""
    for name, (ancestor, options) in SPEED.items():
        for compiled in (False, True):
            for which, model_name, kwargs in (("ours", name, {}), ("beside", ancestor, options)):
                key = f"{name} {which}{' compiled' if compiled else ''}"
                if results.has("speed", key):
                    continue
                size = timm.get_pretrained_cfg_value(model_name, "input_size")[-1]
                batch = (512 if size == 32 else 128) if device == "cuda" else 4
                model = timm.create_model(model_name, **kwargs).to(device, memory_format=torch.channels_last).train()
                forward = torch.compile(model) if compiled else model
                images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
                labels = torch.randint(10, (batch,), device=device)
                optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
                times: list[float] = []
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                until = time.perf_counter() + seconds
                while len(times) < 8 or time.perf_counter() < until:
                    began = time.perf_counter()
                    with torch.autocast(device, torch.bfloat16):
                        loss = F.cross_entropy(forward(images).float(), labels)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if device == "cuda":
                        torch.cuda.synchronize()
                    times.append(time.perf_counter() - began)
                kept = sorted(times[3:])
                results.add("speed", key, {
                    "model": model_name, "options": kwargs, "batch": batch, "n": len(kept),
                    "images_per_second": batch / kept[len(kept) // 2],
                    "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
                })  # fmt: skip
                del model, forward, optimizer
                torch._dynamo.reset()


def cifar(
    results: Results, device: str, root: str, seeds: list[int], epochs: int, at_once: int, minutes: float
) -> None:
    """Trains all families with one recipe and equal seeds. Runs that cannot start in time wait for a later call."""
    deadline = time.monotonic() + 60 * minutes
    jobs = [(family, seed) for seed in seeds for family in FAMILIES]

    def run(job: tuple[str, int]) -> None:
        family, seed = job
        key = f"{family} seed {seed}"
        if results.has("cifar10", key) or time.monotonic() > deadline:
            return
        recipe = [
            "data=cifar10", "data.verify=false", f"data.root={root}", "data.augment=crop_flip", f"epochs={epochs}",
            "batch_size=512", "lr=0.4", "trainer.precision=bfloat16", "trainer.channels_last=true", "monitor=none",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*FAMILIES[family], *recipe, f"seed={seed}", f"device={device}", f"runs={folder}/runs"]
            command = [sys.executable, str(ROOT / "train.py"), *arguments]
            path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
            if done.returncode:
                print(f"{key} failed: {done.stderr[-500:]}", flush=True)
                return
            (run,) = Path(folder).glob("runs/*/*")
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            summary = json.loads((run / "summary.json").read_text())
        results.add("cifar10", key, {
            "held_out_top1": last["validation_top1"], "train_loss": last["train_loss"], "epochs": epochs,
            "parameters": summary["parameters"], "train_seconds": summary["train_seconds"], "runs_at_once": at_once,
            "recipe": recipe[3:],
        })  # fmt: skip

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "speed", "cifar"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu.json")
    parser.add_argument("--root", default=os.environ.get("OPTNET_DATA", "data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    results = Results(options.out, options.device)
    if options.what == "check":
        check(results, options.device)
    elif options.what == "speed":
        speed(results, options.device)
    else:
        cifar(
            results, options.device, options.root, options.seeds, options.epochs, options.at_once, options.minutes
        )  # fmt: skip


if __name__ == "__main__":
    main()
