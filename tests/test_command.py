"""The command line: what works, and what is refused with one line, status 2 and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import MINE, ROOT, call, class_folder, metrics, weights
from timm.models import register_model
from torch import nn

from optnet.app import main
from optnet.app import train as application
from optnet.training.loop import Observer

TINY = ("model.blocks=[1,1]", "model.widths=[4,8]", "epochs=1", "device=cpu", "monitor=none", "limit_batches=2")

BAD = [
    "epochs=abc", "epochs=0", "epochs=", "epochs", "batch_size=1.5", "batch_size=0", "lr=-1", "lr=nan",
    "seed=-1", "nonsense=3", "model=nonsense", "model.nonsense=1", "model.layer=nonsense",
    "model.blocks=[0,1,1]", "model.blocks=3", "model.blocks=[1,1]", "model.act_layer=nonsense",
    "model.reading=nonsense", "model.coefficients=nonsense", "+model.kwargs.nonsense=1",
    "model=resnet18 model.reading=map", "algorithm=nonsense", "algorithm.beta=0.5",
    "algorithm=heavy_ball algorithm.beta=x", "algorithm=heavy_ball algorithm.gamma=1",
    "algorithm=mine.py:nonsense", "algorithm=none.py:mine", "algorithm=mine.py:branches",
    "algorithm=no.such.module", "algorithm=euler_momentum",
    "data=nonsense", "data=mnist", "data=cifar10", "data.augment=nonsense",
    "data.validation=-0.1", "data=folder data.root=empty", "data=folder data.root=none", "optim=nonsense",
    "optim.name=nonsense", "optim.momentum=2", "schedule=nonsense", "schedule.name=nonsense",
    "schedule.warmup=2", "device=nonsense", "device=cuda:99", "resume=none", "resume=empty",
    "experiment=nonsense", "=3", "-m seed=0,1 epochs=0", "-m epochs=1,0",
    "--nonsense", "--cfg job epochs=abc", "epochs=???", "schedule.milestones=[3,-1]", "model=vgg11",
    "optim.name=adahessian", "trainer=nonsense", "trainer.name=nonsense",
    "trainer.nonsense=1", "model.widths=[0,8,8]", "runs=mine.py", "name=/abs", "name=../x",
    "lr=0.1 schedule.min_lr=0.2",
]  # fmt: skip


@pytest.mark.parametrize("request_", BAD)
@pytest.mark.sampled(16)
def test_wrong_requests(request_, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTNET_DATA", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.rglob("*"))
    assert call(monkeypatch, "train", *request_.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out, err
    last = request_.split()[-1]
    value = last.partition("=")[2]
    assert (
        not value
        or value.strip("[]").split(",")[-1] in err.replace(" ", "")
        or last.split("=")[0].split(".")[-1] in err
    )
    assert {f for f in tmp_path.rglob("*") if "__pycache__" not in str(f)} == before


@pytest.mark.parametrize(
    "request_",
    ["", "checkpoint=none.pt", "checkpoint=garbage.pt", "model=nonsense", "model=hbnet_small checkpoint=garbage.pt",
     "model=hbnet_small split=nonsense", "model=hbnet_small batch_size=0", "model=hbnet_small data=nonsense"],
)  # fmt: skip
@pytest.mark.sampled(3)
def test_wrong_evaluations(request_, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.pt").write_text("garbage")
    assert call(monkeypatch, "evaluate", *request_.split()) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["garbage.pt"]


def test_own_algorithms_by_file_path_and_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text(MINE)
    assert call(monkeypatch, "train", "algorithm=sub/mine.py:mine", "algorithm.pull=0.1", *TINY) == 0
    assert call(monkeypatch, "train", f"algorithm={tmp_path}/sub/mine.py:mine", *TINY) == 0
    sweep = ("-m", "algorithm=sub/mine.py:mine,heavy_ball", "seed=0,1")
    assert call(monkeypatch, "train", *sweep, *TINY) == 0
    assert len(list(tmp_path.glob("runs/mine.py.mine-hbnet_small-digits/*/summary.json"))) == 4
    assert len(list(tmp_path.glob("runs/heavy_ball-hbnet_small-digits/*/summary.json"))) == 2
    configs = [file.read_text() for file in tmp_path.glob("runs/mine.py.mine-*/*/config.yaml")]
    assert sum("pull: 0.1\n" in text for text in configs) == 1


LOGGED = (
    """
from pathlib import Path
with open(Path(__file__).with_suffix(".log"), "a") as log:
    log.write("run\\n")
"""
    + MINE
)


@pytest.mark.parametrize("arguments", [["seed=0"], ["-m", "seed=0,1"]], ids=" ".join)
@pytest.mark.sampled(1)
def test_the_users_file_runs_once_in_a_run_and_in_a_sweep(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(LOGGED)
    assert call(monkeypatch, "train", *arguments, "algorithm=mine.py:mine", *TINY) == 0
    assert (tmp_path / "mine.log").read_text() == "run\n"
    assert len(list(tmp_path.glob("runs/*/*/summary.json"))) == len(arguments)


def test_a_sweep_prepares_each_job_once_and_trains_it_as_alone(tmp_path, monkeypatch):
    """The data is loaded once for equal settings; the numbers are those of a run of its own, bit for bit."""
    prepared, loaded = [], []
    prepare, load_as = application.prepare, application.load_as
    monkeypatch.setattr(application, "prepare", lambda *given: prepared.append(given) or prepare(*given))
    monkeypatch.setattr(application, "load_as", lambda *given: loaded.append(given) or load_as(*given))
    common = (*TINY, "init=lsuv", "trainer.mixup=0.3", "model.drop_rate=0.2", "progress=false")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "-m", "lr=0.05,0.02", *common, "runs=sweep") == 0
    assert len(prepared) == 2 and len(loaded) == 1
    for lr in ("0.05", "0.02"):
        assert call(monkeypatch, "train", f"lr={lr}", *common, f"runs=alone{lr}") == 0
    swept = {f"{torch.load(file, weights_only=True)['config']['lr']}": file.parent.parent
             for file in tmp_path.glob("sweep/*/*/checkpoints/last.pt")}  # fmt: skip
    for lr, folder in swept.items():
        (alone,) = tmp_path.glob(f"alone{lr}/*/*")
        one, two = weights(folder), weights(alone)
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert metrics(folder)[0]["train_loss"] == metrics(alone)[0]["train_loss"]
    assert len(swept) == 2


def test_a_wrong_job_of_a_sweep_is_refused_before_the_first_one_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for wrong in ("model=hbnet_small,vgg11", "lr=0.1,-1", "trainer=backprop,lpom", "seed=0,1 data.root=x data=mnist"):
        assert call(monkeypatch, "train", "-m", *wrong.split(), "device=cpu", "epochs=1") == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and not out
        assert not list(tmp_path.iterdir())


class Asserts(nn.Module):
    """Somebody's model, whose assertion has no message. (pytest gives a message to those that are written as such.)"""

    def forward(self, x):
        raise AssertionError


@register_model
def bare_assert(pretrained=False, **kwargs):
    return Asserts()


@register_model
def bare_assert_at_once(pretrained=False, **kwargs):
    raise AssertionError


@pytest.mark.parametrize("program", ["train", "evaluate"])
@pytest.mark.parametrize("model", ["bare_assert", "bare_assert_at_once"])
def test_a_bare_assert_in_a_model_is_one_line(program, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, program, f"model={model}", "device=cpu") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out
    assert "AssertionError" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("what", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), ("lr=1e30", 1)])
@pytest.mark.sampled(1)
def test_exit_statuses_of_runs_that_end_early(what, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if isinstance(what, str):
        assert call(monkeypatch, "train", what, *TINY) == status
        assert "stopped: the loss is not finite" in capsys.readouterr().out
        return

    class Kill(Observer):
        def on_step(self, progress, trainer):
            os.kill(os.getpid(), what)

    monkeypatch.setattr("optnet.training.trainers.observers", lambda *given: [Kill()])
    assert call(monkeypatch, "train", *TINY) == status
    assert "interrupted and saved" in capsys.readouterr().out
    assert list(tmp_path.glob("runs/*/*/checkpoints/last.pt"))


def test_a_users_own_conf(tmp_path, monkeypatch, capsys):
    """Beside the working directory's other files; what is ours keeps its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "x.yaml").write_text("# @package _global_\nepochs: 1\nname: mine\n")
    (tmp_path / "conf" / "train.yaml").write_text("nonsense: 1\n")
    assert call(monkeypatch, "train", "experiment=x", *TINY[:2], "device=cpu") == 0
    assert len(list(tmp_path.glob("runs/mine/*/summary.json"))) == 1
    capsys.readouterr()
    assert call(monkeypatch, "train", "--help") == 0 and " x" in capsys.readouterr().out.partition("init")[0]


def test_one_command_for_all(tmp_path, monkeypatch, capsys):
    """optnet train, evaluate and list; the same functions as the scripts and python -m optnet."""
    monkeypatch.chdir(tmp_path)
    assert main.main(["train", *TINY, "progress=false"]) == 0
    (best,) = tmp_path.glob("runs/*/*/checkpoints/best.pt")
    assert main.main(["evaluate", f"checkpoint={best}", "device=cpu"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main.main(["train", "epochs=0"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main.main(["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and all(name in out for name in ("train", "evaluate", "list", "show", "signal"))
    with pytest.raises(SystemExit) as stopped:
        main.main([])
    assert stopped.value.code == 2


def test_class_folder_and_timm_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    class_folder(tmp_path / "images", count=20)
    data = ("data=folder", "data.root=images", "data.size=32", "data.workers=0", "batch_size=8")
    assert call(monkeypatch, "train", *data, "epochs=2", "device=cpu", "model=resnet10t") == 0
    (folder,) = tmp_path.glob("runs/resnet10t-folder/*")
    assert "2 classes" in capsys.readouterr().out
    assert call(monkeypatch, "evaluate", f"checkpoint={folder}/checkpoints/best.pt", "device=cpu") == 0


@pytest.mark.slow
def test_the_scripts_themselves(tmp_path):
    """As a user calls them: the default job on the digits, then its evaluation; and one line for a wrong request."""

    def script(name, *arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / name), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    assert script("train.py", "epochs=0").returncode == 2 and not list(tmp_path.iterdir())
    done = script("train.py", "device=cpu")
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("test top-1 ") and float(line.split()[2]) >= 97
    (best,) = tmp_path.glob("runs/*/*/checkpoints/best.pt")
    done = script("evaluate.py", f"checkpoint={best}", "device=cpu")
    assert done.returncode == 0 and line.split("(")[1].split()[0] in done.stdout
    assert script("train.py", "--help").returncode == 0


def test_the_readmes_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    example, *library = (block.split("```")[0] for block in blocks)
    (tmp_path / "my_file.py").write_text(example)
    assert len(example.splitlines()) <= 12
    assert call(monkeypatch, "train", "algorithm=my_file.py:averaged", *TINY) == 0
    exec("".join(library), {})


def jobs(folder):
    (file,) = folder.glob("runs/sweeps/*/jobs.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_sweep_goes_on_after_a_failed_job_and_says_what_became_of_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "-m", "lr=1e12,0.05", *TINY) == 1
    first, second = jobs(tmp_path)
    assert (first["status"], second["status"]) == ("failed", "done") and "not finite" in first["reason"]
    names = sorted(folder.name.split("_", 2)[2] for folder in tmp_path.glob("runs/hbnet_small-digits/*"))
    assert names == ["0_lr-1000000000000.0_seed-0", "1_lr-0.05_seed-0"]
    out = capsys.readouterr().out
    assert "job 1: lr=0.05" in out and "2 jobs" in out and "failed" in out
    assert second["found"]["validation top-1 %"] == metrics(Path(second["found"]["run"]))[0]["validation_top1"]


@pytest.mark.filterwarnings("ignore")  # those of Optuna when it is imported
def test_a_search_optimises_the_validation_accuracy_over_an_interval(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.chdir(tmp_path)
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=maximize")
    assert call(monkeypatch, "train", "-m", "lr=interval(0.01,0.1)", *search, *TINY) == 0
    found = jobs(tmp_path)
    assert len(found) == 2 and all(0.01 <= float(job["overrides"][0].partition("=")[2]) <= 0.1 for job in found)
    (result,) = tmp_path.glob("runs/sweeps/*/optimization_results.yaml")
    best = max(job["found"]["validation top-1 %"] for job in found)
    assert float(result.read_text().partition("best_value:")[2]) == pytest.approx(best)
