"""The wheel, installed where there is no checkout: it is built, and its command trains, evaluates and lists."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from helpers import MINE, ROOT

pytestmark = pytest.mark.slow
TINY = ("model.blocks=[1,1]", "model.widths=[4,8]", "epochs=1", "device=cpu")


def run(*command, folder, **variables):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**inherited, "OMP_NUM_THREADS": "1", **variables}, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command optnet of a fresh environment, which sees this one's packages but no checkout."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # a build leaves its files in the checkout
    source.mkdir()
    for part in ("optnet", "conf"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", place, source)
    run(sys.executable, "-m", "pip", *build, folder=place)
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=False)
    (packages,) = (place / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a line of a .pth runs no other .pth
    python = place / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, folder=place)
    where = run(python, "-c", "import optnet; print(optnet.__file__)", folder=place)
    assert where.startswith(str(packages))
    return place / "venv" / "bin" / "optnet"


def test_it_works_in_an_empty_folder(command, tmp_path):
    for request in (["train", "--help"], ["evaluate", "--help"], ["--help"]):
        assert "train" in run(command, *request, folder=tmp_path)
    listed = run(command, "list", folder=tmp_path, COLUMNS="200")
    assert "heavy_ball" in listed and "mlp" in listed
    run(command, "train", "epochs=1", "device=cpu", folder=tmp_path)
    (best,) = tmp_path.glob("runs/hbnet_small-digits/*/checkpoints/best.pt")
    assert "hbnet" in run(command, "evaluate", f"checkpoint={best}", "device=cpu", folder=tmp_path)
    assert (best.parent.parent / "evaluation.json").exists()
    run(
        command,
        "train",
        "trainer=bcd",
        "model=mlp",
        "epochs=1",
        "device=cpu",
        "distributed.processes=1",
        folder=tmp_path,
    )
    run(command, "train", "-m", "seed=0,1", *TINY, folder=tmp_path)
    assert len(list(tmp_path.glob("runs/*/*/summary.json"))) == 4


def test_a_users_algorithm_and_conf(command, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    run(command, "train", "algorithm=mine.py:mine", "algorithm.pull=0.2", *TINY, folder=tmp_path)
    assert "return" in run(command, "show", "mine.py:mine", folder=tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "x.yaml").write_text("# @package _global_\nlr: 0.05\nname: x\n")
    run(command, "train", "experiment=x", *TINY, folder=tmp_path)
    (config,) = tmp_path.glob("runs/x/*/config.yaml")
    assert "lr: 0.05" in config.read_text()
    assert len(list(tmp_path.glob("runs/mine.py.mine-hbnet_small-digits/*/summary.json"))) == 1
