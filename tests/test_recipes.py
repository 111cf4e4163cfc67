"""Every recipe and preset: composed, built, and run for a step on made-up images of the right shape."""

import json
import math
from pathlib import Path

import pytest
from helpers import go, only_run, prepare, some
from omegaconf import OmegaConf
from torch import nn

import optnet
from optnet.app import compose as command
from optnet.app import models
from optnet.app.config import Train
from optnet.training import trainers
from optnet.training.optimizers import optimizer

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
PRESETS = sorted(file.stem for file in (CONF / "debug").glob("*.yaml"))
FILES = sorted(CONF.glob("*/*.yaml"))
ROWS = ["cifar_resnet_n9", "cifar_hbnet_n9", "cifar_resnet_n18", "cifar_hbnet_n18", "cifar_densenet_L40"]
ROWS += ["cifar_agdnet_L40", "cifar_densenet_L52", "cifar_agdnet_L52", "cifar_dmrnet", "cifar_admmnet"]
ROWS += ["cifar_resnet56", "cifar_hbnet56", "cifar_resnet110", "cifar_hbnet110", "cifar_resnet164"]
ROWS += ["imagenet_resnet34", "imagenet_hbnet34", "imagenet_densenet121", "imagenet_agdnet121"]
SHAPES = {"cifar": (32, 10), "cifar10": (32, 10), "imagenet": (224, 1000), "mnist": (28, 10), "digits": (8, 10)}
"""Height and width, and the classes, of each recipe's images."""


def composed(*overrides):
    command.register("train", Train, [])
    return command.compose("train", Train, overrides)


def tiny(name, tmp_path):
    size, classes = SHAPES[name.split("_")[0]]
    images = [f"data.size={size}", f"data.classes={classes}", "data.images=10"]
    return [
        "data=synthetic",
        "data.augment=none",
        *images,
        f"runs={tmp_path}/runs",
        "device=cpu",
        "progress=false",
        "monitor=none",
    ]


def test_every_row_of_the_tables_has_a_recipe():
    assert set(ROWS) <= set(EXPERIMENTS)
    quick = {f"cifar_{family}_quick" for family in ("resnet", "hbnet", "densenet", "agdnet", "dmrnet", "admmnet")}
    assert quick <= set(EXPERIMENTS)
    for name in ROWS:
        text = (CONF / "experiment" / f"{name}.yaml").read_text()
        header = text.partition("defaults:")[0]
        assert "# published" in header and "# ours " in header and f"experiment={name}" in header
        assert "# Known: " in header and "# Guessed: " in header


QUICK = [*(name for name in EXPERIMENTS if name.endswith("_quick")), "cifar_agdnet_L40", "imagenet_hbnet34"]


@pytest.mark.parametrize("name", some(EXPERIMENTS, *QUICK))
@pytest.mark.sampled(3)
def test_every_experiment_runs_a_step(name, tmp_path):
    augment = {"mnist": "shift", "imagenet": "zoom_flip", "digits": "none"}.get(name.split("_")[0], "crop_flip")
    assert composed(f"experiment={name}").data.augment == augment
    recipe = composed(f"experiment={name}", "data.augment=none")
    config = composed(f"experiment={name}", *tiny(name, tmp_path), "epochs=1")
    for key in ("model", "algorithm", "optim", "trainer", "lr", "batch_size"):
        assert getattr(config, key) == getattr(recipe, key)
    parts = prepare(config)
    learnable = [key for key, _ in parts.model.named_parameters() if ".coefficients." in key]
    assert bool(learnable) == (not any(family in name for family in ("resnet", "densenet", "dmrnet")))
    loss, _ = trainers.build(config.recipe, parts.model, 10).step(
        *next(parts.loader("train", 4, training=True).batches())
    )
    assert math.isfinite(loss) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("cifar")])
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.sampled(4)
def test_the_columns_of_the_table(name, data):
    """With and without +: all images are trained on, and without + dense layers drop a fifth."""
    dense = "_L" in name
    for given, augment, rate in (((), "crop_flip", 0), (("data.augment=none",), "none", 0.2)):
        config = composed(f"experiment={name}", f"data={data}", *given)
        assert (config.data.name, config.data.augment, config.data.validation) == (data, augment, 0)
        assert (config.model.proj_drop_rate or 0) == (rate if dense else 0)
        assert config.model.proj_drop_place == ("convolutions" if dense else None)


@pytest.mark.parametrize("name", ["cifar_resnet56", "cifar_hbnet56", "cifar_resnet110", "cifar_hbnet110"])
@pytest.mark.sampled(2)
def test_original_resnets_train_64000_steps(name):
    """He et al. 2016: batches of 128, divided by 10 after 32,000 and 48,000; of 110 layers 400 steps of warm-up."""
    config = composed(f"experiment={name}")
    assert -(-50_000 // config.batch_size) * config.epochs >= config.max_steps == 64_000
    assert [part * config.max_steps for part in config.schedule.milestones] == [32_000, 48_000]
    assert config.schedule.warmup * config.max_steps == (400 if "110" in name else 0)
    group = optimizer(config.optim, nn.Conv2d(3, 3, 3, bias=False), config.lr).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("imagenet")])
@pytest.mark.sampled(1)
def test_imagenet_has_the_colours_of_fb_resnet_torch(name):
    data = composed(f"experiment={name}").data
    assert (data.color_jitter, data.lighting, data.interpolation, data.validation) == (0.4, 0.1, "bicubic", 0)


def test_depths():
    """6 n + 2 layers, 9 n + 2 or 3 m + 4, whose weights are convolutions or the classifier; no shortcut is counted."""
    for name, depth in {"hbnet83_cifar": 83, "hbnet164_cifar": 164}.items():
        model = optnet.networks.zoo.MODELS[name]
        assert 3 * sum(model.blocks) + 2 == depth
    for name, depth in {"hbnet56_cifar": 56, "hbnet110_cifar": 110, "dmrnet56_cifar": 56}.items():
        assert 2 * sum(optnet.networks.zoo.MODELS[name].blocks) + 2 == depth
    for name, depth in {"agdnet40_cifar": 40, "agdnet52_cifar": 52}.items():
        assert sum(optnet.networks.zoo.MODELS[name].blocks) + 4 == depth


MILLIONS = {
    "cifar_resnet56": 0.85, "cifar_resnet110": 1.7, "cifar_resnet164": 1.7, "cifar_densenet_L40": 1.0,
    "cifar_dmrnet": 1.7, "imagenet_resnet34": 21.8, "imagenet_densenet121": 8.0,
}  # fmt: skip
"""Parameters as the original papers count them, in millions."""


@pytest.mark.parametrize("name", MILLIONS)
@pytest.mark.sampled(2)
def test_networks_have_the_published_size(name):
    config, classes = composed(f"experiment={name}"), SHAPES[name.split("_")[0]][1]
    config.model.kwargs["device"] = "meta"
    model, _ = models.build(config.model, config.algorithm, classes, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], rel=0.02)


@pytest.mark.parametrize("name", some(PRESETS, *(name for name in PRESETS if name != "overfit")))
@pytest.mark.sampled(1)
def test_debug_presets(name, tmp_path):
    config = composed(f"debug={name}", f"runs={tmp_path}/runs", "device=cpu", "progress=false")
    go(prepare(config))
    folder = only_run(tmp_path)
    summary = OmegaConf.load(folder / "summary.json")
    last = OmegaConf.create((folder / "metrics.jsonl").read_text().splitlines()[-1])
    if name == "one_batch":
        assert summary.count == 8 and last.epoch == 1
    elif name == "overfit":
        assert last.train_top1 == 100
    elif name == "profiler":
        assert (folder / "profile.json").exists()


def test_every_group_has_files():
    groups = {"algorithm", "cluster", "data", "debug", "experiment", "init", "monitor", "optim", "schedule", "trainer"}
    assert {file.parent.name for file in FILES} == groups == {place.name for place in CONF.iterdir() if place.is_dir()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
@pytest.mark.sampled(24)
def test_every_file_of_every_group_composes(file):
    """Each of its values is the run's; those below ``hydra`` are the launcher's. What it is it says or is called."""
    group = file.parent.name
    run_config = OmegaConf.to_container(OmegaConf.structured(composed(f"{group}={file.stem}")))
    given = OmegaConf.load(file)
    for key in ("defaults", "hydra"):
        given.pop(key, None)
    text = file.read_text()
    if text.startswith("# @package _global_"):  # what it refers to
        given = OmegaConf.merge({"data": run_config["data"]}, given)
    given = OmegaConf.to_container(given, resolve=True)
    assert text.startswith("#") or "name" in given
    assert given.get("name") in (None, file.stem)
    there = run_config if text.startswith("# @package _global_") else run_config[group]
    assert leaves(given).items() <= leaves(there).items()
    assert given or group in ("experiment", "cluster") or file.stem == "standard"


def leaves(tree, path=()):
    """Every value that is no table: its keys -> what it is, as text."""
    if not isinstance(tree, dict):
        return {path: json.dumps(float(tree) if isinstance(tree, int) else tree)}
    return {found: value for key in tree for found, value in leaves(tree[key], (*path, key)).items()}
