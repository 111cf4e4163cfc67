"""What several tests use: algorithms, layers, networks, data, runs, and the command line. No test is in here."""

import bz2
import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXtBlock
from torch import nn

import optnet
from optnet import Algorithm, Iterate, Operator, create_model, find_algorithm, identity, list_algorithms
from optnet.app import evaluate as assess
from optnet.app import train as application
from optnet.app.config import Model, Train
from optnet.app.train import prepare
from optnet.errors import RequestError
from optnet.language.declaration import as_algorithm
from optnet.lifted import ADMM, BCD, LPOM, MAC, ADMMOptions, BCDOptions, LPOMOptions, MACOptions
from optnet.lifted.losses import LOSSES
from optnet.networks.design import is_split, suitable_layer
from optnet.networks.initialisation import linear_maps
from optnet.networks.layers import FAMILIES, PIXEL_NORMS
from optnet.networks.objectives import ACTIVATIONS, activation
from optnet.options import check
from optnet.training import checkpoint, run
from optnet.training.monitoring.monitor import MonitorOptions


def crossed(*lists, without=lambda *values: False, strength=None):
    """The full product of lists, for ``pytest.mark.parametrize``: a covering part by default, the rest under ``slow``.

    The covering part of three lists or more has every pair of their values; of two lists, whose pairs are the product,
    it has every value, spread evenly over the other list's. ``strength`` 1: every value, of three lists or more too.
    ``without``: combinations that are in neither part.
    """
    lists = [list(values) for values in lists]
    rows = [row for row in itertools.product(*(range(len(values)) for values in lists))
            if not without(*(values[i] for values, i in zip(lists, row, strict=True)))]  # fmt: skip
    chosen = covering(rows, strength or (2 if sum(len(values) > 1 for values in lists) > 2 else 1))
    cases = []
    for row in rows:
        case = [values[i] for values, i in zip(lists, row, strict=True)]
        marks = () if row in chosen else pytest.mark.slow
        cases.append(pytest.param(*case, id="-".join(map(label, case)), marks=marks))
    return cases


def covering(rows: list[tuple[int, ...]], strength: int) -> set[tuple[int, ...]]:
    """Some of the rows: every ``strength`` entries, with their places, that occur in any occur in one of them.

    Greedy, and the same in every process: the row with most that is missing; of equals the one whose entries have been
    chosen least; of equals the first.
    """
    parts = {row: set(itertools.combinations(enumerate(row), strength)) for row in rows}
    missing, used, chosen = set().union(*parts.values()), Counter(), set()
    while missing:
        row = max(rows, key=lambda row: (len(parts[row] & missing), -sum(used[entry] for entry in enumerate(row))))
        missing -= parts[row]
        used.update(enumerate(row))
        chosen.add(row)
    return chosen


def label(value) -> str:
    """Of a parameter, in the test's name."""
    if isinstance(value, tuple):
        return ",".join(map(label, value))
    return str(getattr(value, "name", getattr(value, "__name__", value)))


def some(values, *quick):
    """``values``, those that are not ``quick`` under ``slow``: cases of one kind, which differ in size or in name."""
    assert all(value in values for value in quick)
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]


def relaxed_splitting(G: Operator, P: Operator, x: Iterate, steps: int, *, relax: float = 0.7) -> Iterate:
    """x_{k+1} = (1 - relax) x_k + relax P(G(x_k)): two operators and a relaxed update."""
    for _ in range(steps):
        x = (1 - relax) * x + relax * P(G(x))
    return x


def three_step_mean(T: Operator, x: Iterate, steps: int, *, a: float = 0.5, b: float = -0.2, c: float = 0.1) -> Iterate:
    """x_{k+1} = T(x_k) + a x_k + b x_{k-1} + c x_{k-2}; returns the mean of all iterates."""
    xs = [x, x, x]
    for _ in range(steps):
        xs.append(T(xs[-1]) + a * xs[-1] + b * xs[-2] + c * xs[-3])
    return sum(xs[2:]) / (steps + 1)


def restarted(T: Operator, x: Iterate, steps: int, *, beta: float = 0.6, P: Operator = identity) -> Iterate:
    """Heavy ball that forgets its momentum every third step."""
    previous = x
    for k in range(steps):
        previous = x if k % 3 == 0 else previous
        x, previous = P(T(x) + beta * (x - previous)), x
    return x


def projected_first(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(T(x_k)) from P(x_0): an operator other than the first on the starting point."""
    x = P(x)
    for _ in range(steps):
        x = P(T(x))
    return x


def second_first(T: Operator, S: Operator, x: Iterate, steps: int) -> tuple[Iterate, ...]:
    """x_{k+1} = (T(x_k) + y) / 2, y = S(x_0) called once and first; returns a start and one result twice."""
    start = x
    y = S(x)
    x = y
    for _ in range(steps):
        x = 0.5 * T(x) + 0.5 * y
    return start, x, x


def twice(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(T(P(T(x_k)))): two calls a step."""
    for _ in range(steps):
        x = P(T(P(T(x))))
    return x


def every_second(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """T in every second step alone: some stage of one step has no layer."""
    for k in range(steps):
        x = P(T(x)) if k % 2 == 0 else P(0.5 * x)
    return x


OWN = [
    as_algorithm(function)
    for function in (relaxed_splitting, three_step_mean, restarted, projected_first, second_first)
]
METHODS: list[Algorithm] = [*map(find_algorithm, list_algorithms()), *OWN]
FEATURES = 6


def names(method: Algorithm) -> str:
    return method.name


def layer(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A norm-free layer on FEATURES features: ``identity``, or a contraction behind a ReLU or a tanh."""
    if kind == "identity":
        return nn.Identity()
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(FEATURES, FEATURES, dtype=dtype)
    with torch.no_grad():
        weight = torch.randn(FEATURES, FEATURES, generator=generator, dtype=dtype)
        linear.weight.copy_(0.9 * weight / torch.linalg.matrix_norm(weight, 2))
        linear.bias.copy_(torch.randn(FEATURES, generator=generator, dtype=dtype))
    return nn.Sequential(linear, {"relu": nn.ReLU(), "tanh": nn.Tanh()}[kind])


def starts(method: Algorithm, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, FEATURES, generator=generator, dtype=torch.float64) for _ in method.starts]


def required(method: Algorithm) -> list[str]:
    return [name for name, needed in method.operators.items() if needed]


ROOT = Path(__file__).parent.parent


MINE = """
from optnet import Iterate, Operator, identity

def mine(T: Operator, x: Iterate, steps: int, *, pull: float = 0.3, P: Operator = identity):
    start = x
    for _ in range(steps):
        x = P((1 - pull) * T(x) + pull * start)
    return x

def branches(T: Operator, x: Iterate, steps: int):
    return T(x) if x else x
"""


def call(monkeypatch, program, *arguments):
    """Runs train.py's or evaluate.py's main in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments])
    main = {"train": application.main, "evaluate": assess.main}[program]
    try:
        main()
    except SystemExit as stopped:
        return stopped.code
    return 0


real = pytest.mark.skipif("OPTNET_DATA" not in os.environ, reason="OPTNET_DATA names no folder of data sets")


def class_folder(root, classes=("cat", "dog"), count=12, size=20):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            generator = torch.Generator().manual_seed(100 * label + i)
            noise = (torch.rand(size, size, 3, generator=generator) * 100 + 100 * label).byte().numpy()
            Image.fromarray(noise).save(root / name / f"{i}.jpg")


def idx(file, array):
    """MNIST's format: type 8 (bytes), dimensions, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_usps(root, images, labels):
    (root / "USPS").mkdir()
    for name in ("usps.bz2", "usps.t.bz2"):
        rows = zip(labels, images.reshape(len(images), -1) / 255 * 2 - 1 + 1e-4, strict=True)
        lines = [f"{label + 1} " + " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(row)) for label, row in rows]
        (root / "USPS" / name).write_bytes(bz2.compress("\n".join(lines).encode()))


TINY = {"blocks": [1, 2], "widths": [4, 8]}


CLOCK = ("time_images_per_second", "time_train_seconds")


def config(tmp_path, **options):
    """Of a small run, without figures and graph unless its monitor is given."""
    options = {"model": Model(**TINY), "monitor": MonitorOptions(figures="none", graph=False), **options}
    made = Train(**{"runs": str(tmp_path / "runs"), "epochs": 3, "device": "cpu", "progress": False, **options})
    made.data.augment = "shift"
    check(made)
    return made


def go(job):
    """Trains a job; its lines are printed."""
    return run.train(job, application.say)


def train(*args, **options):
    return go(prepare(config(*args, **options)))


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs").glob("*/*")
    return folder


def resume(folder, **keys):
    return prepare(Train(resume=str(folder), **keys), ["resume=x", *(f"{key}=x" for key in keys)])


def content_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(folder, *words, error=RequestError, **keys):
    """The run is refused in one line with these words, and its folder stays as it is."""
    before = content_of(folder)
    with pytest.raises(error) as raised:
        go(resume(folder, **keys))
    said = str(raised.value)
    assert "\n" not in said and all(word in said for word in words), said
    assert content_of(folder) == before
    return said


FILES = {
    "config.yaml", "data.json", "record.jsonl", "metrics.jsonl", "summary.json", "checkpoints", "console.log",
}  # fmt: skip
"""What a finished run's folder has, besides TensorBoard's files."""


def files(folder):
    return {file.name for file in folder.iterdir() if "tfevents" not in file.name}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, name="last"):
    return checkpoint.load(folder / "checkpoints" / f"{name}.pt").state_dict


CLASSIFIERS = [name for name in list_algorithms() if find_algorithm(name).network.unsuited is None]
SPLIT = [name for name in CLASSIFIERS if is_split(find_algorithm(name))]
"""Those with attention and an MLP as operators, which only transformers have."""
EVERY = [name for name in CLASSIFIERS if name not in SPLIT]
"""Those that make an image network."""


LAYERED = {
    "plain": {"algorithm": "gradient_descent"},
    "basic": {"algorithm": "heavy_ball", "layer": "basic"},
    "bottleneck": {"algorithm": "heavy_ball", "layer": "bottleneck"},
    "preact_basic": {"algorithm": "nesterov", "layer": "preact_basic"},
    "preact_bottleneck": {"algorithm": "heavy_ball", "layer": "preact_bottleneck"},
    "dense": {"algorithm": "nesterov_dense"},
    "dense with skips": {"algorithm": "nesterov_dense", "constants": {"skips": True}},
    "dense_bc": {"algorithm": "nesterov_dense", "layer": "dense_bc", "constants": {"skips": True}},
    "two streams": {"algorithm": "merge_and_run"},
    "dual": {"algorithm": "admm"},
    "projected memory": {"algorithm": "heavy_ball", "transition": "project", "coefficient_init": "algorithm"},
    "projected dual": {"algorithm": "admm", "transition": "project", "layer": "preact_basic"},
    "convnext": {"algorithm": "heavy_ball", "layer": "convnext"},
}


def takes_norm(family, norm):
    """Whether the layers of an entry of LAYERED take a norm."""
    options = LAYERED[family]
    layer = options.get("layer") or suitable_layer(find_algorithm(options["algorithm"]))
    return norm in FAMILIES[layer].norms


SMALL = {"blocks": (2, 3), "widths": (4, 8), "in_chans": 1}


def settle(model, seed=0):
    """Random norm statistics, affine maps and layer scales: fresh ones make many an equality vacuous.

    So do the small weights that a ConvNeXt starts from: they get variance 1 / inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    others = (GlobalResponseNorm, *itertools.chain(*PIXEL_NORMS.values()))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
        for layer in linear_maps(module) if isinstance(module, ConvNeXtBlock) else ():
            nn.init.normal_(layer.weight, 0, layer.weight[0].numel() ** -0.5, generator=generator)
        for name, value in module.named_parameters(recurse=False):
            if name == "gamma" or (isinstance(module, others) and name == "weight"):
                value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif isinstance(module, others):
                value.data.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return model.eval()


def build(**options):
    torch.manual_seed(0)
    return settle(create_model(**{**SMALL, **options}))


def random_images(n=4, channels=1, size=12):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def weights_of_sums(model):
    """(name, weight) of every learnable coefficient of a sum of several terms; per channel all of a term's together."""
    for name, parameter in model.named_parameters():
        if ".coefficients." in name:
            program = model.get_submodule(name.partition(".body.")[0]).program
            terms = len(next(row for row in program.combines if row.value == name.rpartition(".")[2]).terms)
            for weight in parameter.view(terms, -1) if terms > 1 else ():
                yield name, weight


MONOTONE = [name for name in ACTIVATIONS if activation(name).monotone]
SMOOTH = [name for name in LOSSES if name != "hinge"]
FIXED = [
    (LPOM, LPOMOptions(w_step="apg")), (LPOM, LPOMOptions(order="jacobi")), (BCD, BCDOptions()), (MAC, MACOptions()),
    (ADMM, ADMMOptions(warm=0)), (LPOM, LPOMOptions(damped=False, w_step="pinv")),
]  # fmt: skip


def net(act="relu", hidden=(7, 5), outputs=4, inputs=6):
    return optnet.MLP(hidden, act_layer=act, num_classes=outputs, in_chans=1, img_size=(1, inputs))


def problem(count=12, outputs=4, inputs=6):
    return torch.randn(count, 1, 1, inputs), torch.randint(outputs, (count,))


def lifted(trainer, images, labels):
    """The blocks at the start of a sweep."""
    with torch.no_grad():
        return trainer.start(trainer.forward(images, labels))
