"""What takes minutes: pytest -m slow. Accuracies on real data; the seeds are 0 to 4, or 0."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
from helpers import real

from optnet.networks.token_zoo import TOKEN_MODELS
from optnet.networks.zoo import MODELS as ZOO

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
MODELS = ["gdnet_small", "hbnet_small", "agdnet_small", "admmnet_small"]


def train(folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(file.read_text()) for file in folder.glob("runs/*/*/summary.json")]


def test_digits_over_five_seeds(tmp_path):
    scores = [run["final"] for run in train(tmp_path, "-m", "seed=0,1,2,3,4", "device=cpu")]
    print(f"digits, hbnet_small, seeds 0-4: {sorted(scores)}")
    assert len(scores) == 5 and sum(scores) / 5 >= 98


@real
@pytest.mark.parametrize("model", MODELS)
def test_mnist(tmp_path, model):
    (run,) = train(tmp_path, "experiment=mnist_quick", f"model={model}", "device=cpu")
    print(f"MNIST, {model}: {run['final']} in {run['train_seconds']:.0f} s")
    assert run["final"] >= 99
    if model == "hbnet_small":
        assert run["train_seconds"] < 600


@real
@pytest.mark.parametrize("model", MODELS)
def test_an_epoch_of_cifar10(tmp_path, model):
    (run,) = train(tmp_path, "data=cifar10", "data.verify=false", "epochs=1", f"model={model}", "batch_size=128")
    print(f"CIFAR-10, one epoch, {model}: {run['final']} in {run['train_seconds']:.0f} s")
    assert run["final"] > 30


PLUGIN = """
import os
import pytest
import optnet

parametrize = pytest.mark.parametrize

class Mark:
    def __getattr__(self, name):
        return named if name == "parametrize" else getattr(original, name)

original = pytest.mark

def named(names, values, *more, **options):
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if "model_name" in split:
        place, options = split.index("model_name"), {}
        each = [list(getattr(value, "values", value)) for value in values] if len(split) > 1 else [[""]]
        kept = [value for value in each if {} in value] or each[:1]  # others' arguments are not ours
        values = [(*value[:place], name, *value[place + 1:]) for value in kept for name in os.environ["MODELS"].split()]
        values = values if len(split) > 1 else [value[0] for value in values]
    return parametrize(names, values, *more, **options)

pytest.mark = Mark()
"""
NOT_OURS = (
    "inference", "pretrained",  # need the hub
    "output_stride",  # an option that our models lack
    "after_prune",  # holds for models without a norm behind the last stage
    "catavgmax",  # a wrong pooling is a ModelError, where timm's models have a bare assertion
    "space2depth", "odd_size", "efficientnet", "swin", "relpos",  # other architectures' layers
)  # fmt: skip
LEAST = {
    "backward", "backward_fx", "default_cfgs", "features_only_grad_checkpointing_backward", "forward",
    "forward_features", "forward_fx", "forward_fx_torchscript", "forward_intermediates",
    "forward_intermediates_features", "forward_torchscript", "forward_torchscript_with_features_fx",
    "head_hidden_size", "prune_intermediate_layers_contract", "reset_classifier_keeps_pool",
}  # fmt: skip
LEAST_ON_TOKENS = {
    "backward", "backward_fx", "default_cfgs_non_std", "features_only_feature_cls_class", "forward", "forward_features",
    "forward_fx", "forward_fx_torchscript", "forward_intermediates", "forward_intermediates_features",
    "forward_torchscript", "prune_intermediate_layers_contract", "prune_intermediate_layers_params_used",
}  # fmt: skip
KINDS = {"resnet18": (ZOO, ("vit",), LEAST), "vit_tiny_patch16_224": (TOKEN_MODELS, (), LEAST_ON_TOKENS)}
"""A model of timm, ours that pass all tests that it passes, words in other tests' names, and some of those tests."""


@pytest.mark.parametrize("like", KINDS)
def test_timms_own_model_tests(like, tmp_path):
    """The tests in the source archive of the timm that is installed."""
    version = timm.__version__
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "timm", f"timm=={version}"]
    subprocess.run(download, cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / f"timm-{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "any_model.py").write_text(PLUGIN)
    results = tmp_path / "results.xml"
    ours, others, least = KINDS[like]
    command = [sys.executable, "-m", "pytest", "-p", "any_model", "tests/test_models.py", "-q", "-W", "ignore"]
    subprocess.run(
        [*command, "-k", f"not ({' or '.join(NOT_OURS + others)})", f"--junitxml={results}"],
        capture_output=True,
        cwd=tmp_path / f"timm-{version}",
        env={**os.environ, "PYTHONPATH": str(tmp_path), "MODELS": " ".join([like, *ours])},
    )
    passed = {name: set() for name in [like, *ours]}
    failed = {name: set() for name in passed}
    for case in ElementTree.parse(results).iter("testcase"):
        test, _, given = case.get("name").partition("[")
        for model in passed.keys() & set(re.split(r"[-\]]", given)):
            (failed if len(case) else passed)[model].add(test.removeprefix("test_").removeprefix("model_"))
    expected = passed[like] - failed[like]
    assert expected >= least
    assert {name: missing for name in ours if (missing := expected & failed[name] | expected - passed[name])} == {}
