"""Transformers through the programs: runs on the digits, resumed, loaded, scored and certified."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from helpers import call, config, crossed, go, metrics, only_run, prepare, real
from safetensors.torch import save_file

import optnet
from optnet.app.config import Model
from optnet.app.main import main
from optnet.networks.layers import TOKEN_FAMILIES
from optnet.networks.rules import NAMES
from optnet.training.optimizers import OptimOptions

SMALL = {"patch_size": 2, "depth": 1, "embed_dim": 16, "num_heads": 2}
OWN = """
from optnet import Iterate, Operator

def kicked(A: Operator, M: Operator, x: Iterate, steps: int, *, beta: float = 0.5) -> Iterate:
    \"\"\"x'_k = A(x_k) + beta (x_k - x_{k-1}),  x_{k+1} = M(x'_k),  x_{-1} = x_0\"\"\"
    old = x
    for _ in range(steps):
        kick = A(x) + beta * (x - old)
        old, x = x, M(kick)
    return x
"""


def run_config(tmp_path, algorithm=None, **options):
    model = Model("hbvit_cifar", kwargs={**SMALL, **options.pop("kwargs", {})}, **options)
    shared = {"epochs": 2, "limit_batches": 10, "lr": 0.002, "optim": OptimOptions("adamw")}
    return config(tmp_path, model=model, algorithm={"name": algorithm} if algorithm else {}, **shared)


@pytest.mark.parametrize("family", TOKEN_FAMILIES)
def test_a_run_is_loaded(family, tmp_path):
    go(prepare(run_config(tmp_path / "whole", layer=family)))
    whole = only_run(tmp_path / "whole")
    settings = json.loads((whole / "record.jsonl").read_text().splitlines()[0])["effective"]["model"]
    assert settings["layer"] == family and settings["kwargs"]["embed_dim"] == 16
    model = optnet.load(whole)
    assert isinstance(model, optnet.TokenNetwork) and model.layer == family
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), optnet.load(whole / "checkpoints" / "best.pt")(x))


@pytest.mark.parametrize("rule, family", crossed(NAMES, TOKEN_FAMILIES))
@pytest.mark.sampled(3)
def test_every_rule_trains(rule, family, tmp_path):
    algorithm = "hyper_connections" if rule in ("simplex", "doubly_stochastic") else None
    go(prepare(run_config(tmp_path, algorithm, layer=family, coefficients=rule)))
    first, second = metrics(only_run(tmp_path))
    assert second["train_loss"] < first["train_loss"]


def test_an_own_method_with_two_operators(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    kwargs = [f"model.kwargs.{key}={value}" for key, value in SMALL.items()]
    quick = ["epochs=1", "limit_batches=4", "monitor=none", "optim=adamw", "lr=0.002", "device=cpu"]
    assert call(monkeypatch, "train", "model=hbvit_cifar", "algorithm=mine.py:kicked", *kwargs, *quick) == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    (tmp_path / "mine.py").unlink()
    assert call(monkeypatch, "evaluate", f"checkpoint={folder}") == 0
    model = optnet.load(folder)
    assert model.programs[0].start.operators == ("A", "M")
    (certificate,) = optnet.certify(model, worst_cases=False).values()
    assert certificate.name == "kicked" and "M is taken as the identity." in certificate.notes


def test_certify_speaks_of_half_steps(tmp_path, capsys):
    go(prepare(run_config(tmp_path)))
    assert main(["certify", str(only_run(tmp_path))]) in (0, None)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 half-steps are 1 whole steps, the blocks" in said


REFUSED = {
    "model.norm=group": "norm",
    "model.layer=basic": "layer=basic is unknown",
    "model.blocks=[2]": "blocks",
    "model.kwargs.patch_size=16": "patch_size=16 is larger than the images, 8x8",
    "model.velocity_norm=true": "velocity",
}


@pytest.mark.parametrize("given, said", REFUSED.items())
def test_refusals_are_one_line(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "model=hbvit_cifar", given) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


@real
def test_frozen_weights_and_free_coefficients_are_tuned(tmp_path, monkeypatch):
    """On pictures of ImageNet, from a file of timm's weights: the training loss falls, and nothing else moves."""
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=8)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    pictures = sorted((Path(os.environ["OPTNET_DATA"]) / "imagenet-sample" / "val").glob("*/*"))[:8]
    for split in ("train", "val"):
        for picture in pictures:
            place = tmp_path / "pictures" / split / picture.parent.name
            place.mkdir(parents=True)
            shutil.copy(picture, place)
    monkeypatch.chdir(tmp_path)
    data = [
        "data=folder",
        "data.root=pictures",
        "data.size=64",
        "data.augment=none",
        "data.validation=0",
        "data.workers=0",
    ]
    given = [
        "model=hbvit_tiny_patch16_224",
        "model.kwargs.depth=2",
        "model.per_channel=true",
        "monitor=none",
        "device=cpu",
    ]
    given += ["init_from=timm.safetensors", "freeze=all_but_coefficients", "optim=adamw", "lr=0.02", "epochs=12"]
    assert call(monkeypatch, "train", *given, *data, "batch_size=8") == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    losses = [line["train_loss"] for line in metrics(folder)]
    assert losses[-1] < 0.9 * losses[0]
    tuned, before = optnet.load(folder), optnet.convert.from_timm(theirs, per_channel=True).state_dict()
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("coefficients" in name for name in moved)
