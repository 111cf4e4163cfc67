"""The command line: what works, and what is refused with one line, status 2 and nothing left behind."""

import subprocess
import sys

import pytest
from helpers import MINE, ROOT, call, class_folder

TINY = ("model.blocks=[1,1]", "model.widths=[4,8]", "epochs=1", "device=cpu")

BAD = [
    "epochs=abc", "epochs=0", "epochs=", "epochs", "batch_size=1.5", "batch_size=0", "lr=-1", "lr=nan",
    "seed=-1", "nonsense=3", "model=nonsense", "model.nonsense=1", "model.layer=nonsense",
    "model.blocks=[0,1,1]", "model.blocks=3", "model.blocks=[1,1]", "model.act_layer=nonsense",
    "model.reading=nonsense", "model.coefficients=nonsense", "+model.kwargs.nonsense=1",
    "model=resnet18 model.reading=map", "algorithm=nonsense", "algorithm.beta=0.5",
    "algorithm=heavy_ball algorithm.beta=x", "algorithm=heavy_ball algorithm.gamma=1",
    "algorithm=mine.py:nonsense", "algorithm=none.py:mine", "algorithm=mine.py:branches",
    "algorithm=no.such.module", "data=nonsense", "data=mnist", "data=cifar10", "data.augment=nonsense",
    "data.validation=0", "data=folder data.root=empty", "data=folder data.root=none", "optim=nonsense",
    "optim.name=nonsense", "optim.momentum=2", "schedule=nonsense", "schedule.name=nonsense",
    "schedule.warmup=2", "device=nonsense", "device=cuda:99", "resume=none", "resume=empty",
    "experiment=nonsense", "=3", "-m seed=0,1 epochs=0", "-m epochs=1,0",
    "--nonsense", "--cfg job epochs=abc", "epochs=???", "schedule.milestones=[3,-1]", "model=vgg11",
    "optim.name=adahessian", "trainer=nonsense", "trainer.name=nonsense",
    "trainer.nonsense=1", "model.widths=[0,8,8]", "runs=mine.py", "name=/abs", "name=../x",
    "lr=0.1 schedule.min_lr=0.2",
]  # fmt: skip


@pytest.mark.parametrize("request_", BAD)
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
    assert call(monkeypatch, "train", "-m", "algorithm=sub/mine.py:mine,heavy_ball", "seed=0,1", *TINY) == 0
    assert len(list(tmp_path.glob("runs/mine.py.mine-hbnet_small-digits/*/summary.json"))) == 4
    assert len(list(tmp_path.glob("runs/heavy_ball-hbnet_small-digits/*/summary.json"))) == 2
    configs = [file.read_text() for file in tmp_path.glob("runs/mine.py.mine-*/*/config.yaml")]
    assert sum("pull: 0.1\n" in text for text in configs) == 1


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
    assert "Groups" in (ROOT / "conf" / "train.yaml").read_text() and script("train.py", "--help").returncode == 0


def test_the_readmes_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    example, *library = (block.split("```")[0] for block in blocks)
    (tmp_path / "my_file.py").write_text(example)
    assert len(example.splitlines()) <= 12
    assert call(monkeypatch, "train", "algorithm=my_file.py:averaged", *TINY) == 0
    exec("".join(library), {})
