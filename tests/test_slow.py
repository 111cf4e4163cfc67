"""What takes minutes: pytest -m slow. Accuracies on real data; the seeds are 0 to 4, or 0."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
from helpers import real

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
import fnmatch
import timm
import optnet
from optnet.networks.zoo import MODELS

def ours(filter="", module="", pretrained=False, exclude_filters="", name_matches_cfg=False, include_tags=None):
    listed = lambda words: [w for w in ([words] if isinstance(words, str) else list(words)) if w]
    names = [] if pretrained else sorted(MODELS)  # an mlp has no feature maps, which these tests ask for
    for pattern in listed(filter):
        names = fnmatch.filter(names, pattern)
    return [name for name in names if not any(fnmatch.fnmatch(name, p) for p in listed(exclude_filters))]

timm.list_models = ours
"""


def test_timms_own_model_tests(tmp_path):
    """The tests in the source archive of the timm that is installed, with our models in the place of timm's."""
    version = timm.__version__
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "timm", f"timm=={version}"]
    subprocess.run(download, cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / f"timm-{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "only_optnet.py").write_text(PLUGIN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "only_optnet", "tests/test_models.py", "-q", "-W", "ignore"]
    names = " or ".join(ZOO)
    done = subprocess.run(
        [*command, "-k", names], cwd=tmp_path / f"timm-{version}", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) == 11 * len(ZOO)
