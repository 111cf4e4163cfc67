"""Runs of the lifted trainers: the same folder, records, resuming and refusals as backpropagation's."""

import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import FILES, call, files, go, prepare
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import optnet
from optnet.app import compose
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate, Model, Train
from optnet.data import load
from optnet.training import checkpoint, trainers
from optnet.training.interruption import Interrupted, Stopped

SETTINGS = [  # (trainer, options, hidden layers, activation, epochs, validation top-1 that is surely reached)
    ("lpom", {}, [40], "relu", 8, 75),
    ("penalty", {}, [40], "relu", 8, 60),
    ("mac", {}, [40], "sigmoid", 8, 75),
    ("bcd", {}, [40], "relu", 30, 70),
    ("admm", {"loss": "cross_entropy"}, [40], "relu", 30, 60),
    ("lpom", {"w_step": "pinv", "loss": "cross_entropy", "order": "jacobi", "sweeps": 3}, [40], "softplus", 8, 70),
    ("lpom", {"w_step": "apg", "loss": "hinge"}, [40], "tanh", 8, 75),
    ("mac", {"full_batch": False, "damping": 1.0, "loss": "cross_entropy"}, [30, 20], "tanh", 8, 75),
    ("bcd", {"loss": "hinge", "full_batch": False}, [40], "leaky_relu", 8, 55),
]
CONF = Path(__file__).parent.parent / "conf"
NAMES = ["-".join([name, *map(str, options.values())]) for name, options, *_ in SETTINGS]
CLOCK = ("time_images_per_second", "time_train_seconds")
settings = pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)


def config(tmp_path, setting, **more):
    name, options, hidden, act, epochs, _ = setting
    given = trainers.TRAINERS[name].options(**options)
    model = Model("mlp", hidden=hidden, act_layer=act)
    paths = {"runs": str(tmp_path / "runs"), "device": "cpu", "progress": False}
    return Train(**{**paths, "epochs": epochs, "model": model, "trainer": given, **more})


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs").glob("*/*")
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "setting", [*SETTINGS[:5], *(pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS[5:])], ids=NAMES
)
@pytest.mark.sampled(2)
def test_a_lifted_trainer_learns_and_leaves_the_same_folder(tmp_path, setting):
    _, _, hidden, _, epochs, top1 = setting
    go(prepare(config(tmp_path, setting)))
    folder = only_run(tmp_path)
    assert files(folder) == FILES
    lines, summary = metrics(folder), json.loads((folder / "summary.json").read_text())
    assert len(lines) == epochs and summary["best"] == max(line["validation_top1"] for line in lines) > top1
    layers = range(1, len(hidden) + 2)
    lifted = [layer for layer in layers if setting[0] != "mac" or layer <= len(hidden)]
    tags = {"objective", "mu", "forward_loss", "train/loss", "train/top1", "validation/loss"}
    tags |= {f"gap/layer{k}" for k in lifted} | {f"norm/layer{k}" for k in layers}
    events = EventAccumulator(str(folder)).Reload()
    assert tags <= set(events.Tags()["scalars"])
    for tag in tags:
        assert [point.step for point in events.Scalars(tag)] == list(range(1, epochs + 1))
    assert all(line["gap_layer1"] >= 0 for line in lines)
    trained = trainers.build(config(tmp_path, setting).recipe, optnet.MLP(hidden, img_size=8, act_layer=setting[3]), 10)
    assert ("optim/lr" in events.Tags()["scalars"]) == (getattr(trained.options, "w_step", "") == "optimizer")
    assert ("data.augment do not count" in (folder / "console.log").read_text()) == trained.full_batch
    assess.score(assess.prepare(Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt"), device="cpu")))
    (entry,) = json.loads((folder / "evaluation.json").read_text())
    assert entry["correct"] == summary["correct"]


@pytest.mark.parametrize("setting", SETTINGS[:5:2], ids=NAMES[:5:2])
@pytest.mark.sampled(1)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, setting):
    options = {"epochs": 4}
    go(prepare(config(tmp_path / "whole", setting, **options)))
    parts = prepare(config(tmp_path / "cut", setting, **options))

    def interrupt(*args):
        if list((tmp_path / "cut").glob("runs/*/*/metrics.jsonl")):  # in the second epoch's validation
            os.kill(os.getpid(), signal.SIGTERM)

    hook = parts.model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted) as stopped:
        go(parts)
    hook.remove()
    assert stopped.value.signal == signal.SIGTERM
    whole, cut = only_run(tmp_path / "whole"), only_run(tmp_path / "cut")
    time.sleep(1.1)  # TensorBoard orders the event files of one process by the second
    go(prepare(Train(resume=str(cut)), ["resume=..."]))
    for name in ("last.pt", "best.pt"):
        one, two = (checkpoint.load(folder / "checkpoints" / name).state_dict for folder in (whole, cut))
        assert all(torch.equal(one[key], two[key]) for key in one)
    for a, b in zip(metrics(whole), metrics(cut), strict=True):
        assert {k: v for k, v in a.items() if k not in CLOCK} == {k: v for k, v in b.items() if k not in CLOCK}


@settings
def test_a_trainer_goes_on_from_the_middle_of_an_epoch(setting):
    made = config(Path(), setting)
    data = load("digits", "")

    def fresh():
        torch.manual_seed(0)
        return trainers.build(made.recipe, optnet.MLP(setting[2], act_layer=setting[3], img_size=8), 20)

    whole, cut = fresh(), fresh()
    size = len(data.train) if whole.full_batch else 64
    batches = list(data.loader("train", size, device=torch.device("cpu")).batches())[:4] * 2
    outcomes = [whole.step(*batch) for batch in batches]
    for batch in batches[:3]:
        cut.step(*batch)
    saved = io.BytesIO()
    torch.save({"trainer": cut.state_dict(), "model": cut.model.state_dict()}, saved)
    saved.seek(0)
    content, other = torch.load(saved, weights_only=True), fresh()
    other.model.load_state_dict(content["model"])
    other.load_state_dict(content["trainer"])
    for batch, outcome in zip(batches[3:], outcomes[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(other.step(*batch), outcome, strict=True))
    assert other.scalars() == whole.scalars()
    for a, b in zip(other.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


REFUSED = {
    "trainer=lpom": "model=mlp",
    "trainer=bcd model=resnet18": "model=mlp",
    "trainer=lpom model=mlp model.act_layer=gelu": "decreases",
    "trainer=mac model=mlp trainer.loss=hinge": "hinge",
    "trainer=penalty model=mlp model.act_layer=tanh": "relu",
    "trainer=lpom model=mlp trainer.mu=-1": "trainer.mu",
    "trainer=mac model=mlp trainer.mu=10 trainer.mu_max=5": "trainer.mu_max",
    "trainer=admm model=mlp trainer.full_batch=false": "trainer=bcd",
    "trainer=lpom model=mlp trainer.w_step=nonsense": "trainer.w_step",
    "trainer=admm model=mlp trainer.nonsense=1": "nonsense",
    "trainer=admm model=mlp trainer.beta=abc": "abc",
    "model=mlp model.hidden=[0]": "hidden",
    "model=mlp model.act_layer=nonsense": "act_layer",
}


@pytest.mark.parametrize("request_", REFUSED)
@pytest.mark.sampled(4)
def test_bad_requests_on_the_command_line(request_, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", *request_.split()) == 2
    out, err = capsys.readouterr()
    assert REFUSED[request_] in err and err.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", trainers.TRAINERS)
@pytest.mark.sampled(3)
def test_each_trainer_has_a_file_and_composes_to_its_defaults(name):
    assert {file.stem for file in CONF.glob("trainer/*.yaml")} == set(trainers.TRAINERS)
    compose.register("train", Train, [])
    made = compose.compose("train", Train, [f"trainer={name}"]).trainer
    assert made == trainers.TRAINERS[name].options() and made.name == name


@pytest.mark.parametrize("name", trainers.TRAINERS)
@pytest.mark.sampled(2)
def test_the_command_line_trains_with_each(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["model=mlp", "model.hidden=[12,8]", "epochs=1", "device=cpu", f"trainer={name}"]
    assert call(monkeypatch, "train", *options) == 0
    (summary,) = tmp_path.glob("runs/mlp-digits/*/summary.json")
    assert json.loads(summary.read_text())["parameters"] == 65 * 12 + 13 * 8 + 9 * 10


def test_a_diverging_step_size_stops_with_one_line(tmp_path, capsys):
    with pytest.raises(Stopped):
        go(prepare(config(tmp_path, SETTINGS[0], lr=1e4)))
    assert "not finite" in capsys.readouterr().out.strip().splitlines()[-1]
