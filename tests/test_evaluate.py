"""evaluate.py: what it measures, whose weights it reads, and timm's preprocessing to the pixel."""

import argparse
import json
import os

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import call, class_folder, config, go, only_run, prepare, real, write_usps
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader, resolve_data_config

from optnet import CheckpointError, ConfigError, DataError
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate, Train
from optnet.data import DataOptions, load
from optnet.training import checkpoint
from optnet.training.scoring import evaluate

CPU = torch.device("cpu")


def entries(tmp_path, **options):
    file = tmp_path / "evaluation.json"
    assess.score(assess.prepare(Evaluate(device="cpu", output=str(file), **options)))
    return json.loads(file.read_text())


def test_the_score_is_what_its_definitions_say():
    data = load("digits", "")
    torch.manual_seed(0)
    model = timm.create_model("hbnet_small", num_classes=10, in_chans=1)
    score = evaluate(model, data.loader("test", 100, device=CPU), 10)
    images, labels = next(data.loader("test", 1000, device=CPU).batches())
    with torch.no_grad():
        logits = model.eval()(images)
    confidence, answers = logits.softmax(1).max(1)
    right = answers == labels
    assert (score.count, score.correct) == (360, int(right.sum()))
    assert score.loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), abs=1e-6)
    assert score.top5 == pytest.approx(100 * float((logits.topk(5).indices == labels[:, None]).any(1).float().mean()))
    for label in range(10):
        assert score.per_class[label] == pytest.approx(100 * float(right[labels == label].float().mean()))
        for answer in range(10):
            assert score.confusion[label, answer] == ((labels == label) & (answers == answer)).sum()
    gaps = 0.0
    for low in range(15):  # (b - 1, b] / 15, as in Guo et al. 2017
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        gaps += float(abs(confidence[inside].double().sum() - right[inside].sum()))
    assert score.calibration_error == pytest.approx(gaps / 360, abs=1e-6)


def test_several_models_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        call(monkeypatch, "evaluate", "model=[hbnet_small,gdnet_small]", "device=cpu", "output=out/evaluation.json")
        == 0
    )
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [entry["model"] for entry in found] == ["hbnet_small", "gdnet_small"]
    keys = (
        "top1 top5 loss count correct per_class calibration_error confusion images_per_second parameters "
        "multiply_adds dataset split device versions unreadable"
    )
    for entry in found:
        assert set(keys.split()) <= set(entry) and len(entry["per_class"]) == 10 and entry["images_per_second"] > 0
        with Image.open(tmp_path / "out" / entry["confusion"]) as drawn:
            assert drawn.format == "PNG" and min(drawn.size) > 100
    assert found[0]["parameters"] == sum(p.numel() for p in timm.create_model("hbnet_small", in_chans=1).parameters())
    out = capsys.readouterr().out
    assert "gdnet_small" in out and "multiply-adds" in out
    assert call(monkeypatch, "evaluate", "model=hbnet_small", "device=cpu", "output=out/evaluation.json") == 0
    assert len(json.loads((tmp_path / "out" / "evaluation.json").read_text())) == 3


def test_a_class_without_an_image_is_null(tmp_path):
    """In JSON that others than Python read too, which know no NaN; what was written before is kept."""
    data = DataOptions(name="digits", limit=3)
    entries(tmp_path, model="hbnet_small", data=data)
    entries(tmp_path, model="hbnet_small", data=data)
    found = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    shown = set(load("digits", "", limit=3).test.labels.tolist())
    for entry in found:
        assert [accuracy is not None for accuracy in entry["per_class"].values()] == [i in shown for i in range(10)]
    assert len(found) == 2 and len(shown) <= 3


@pytest.mark.parametrize(
    "kind", ["state.pth", "timm.pth.tar", "ema.pth.tar", "arguments.pth.tar", "weights.safetensors"]
)
@pytest.mark.sampled(2)
def test_weights_of_timm_and_of_anybody(tmp_path, kind):
    torch.manual_seed(5)
    model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    state, file = model.state_dict(), tmp_path / kind
    if kind == "weights.safetensors":
        save_file(state, file)
    else:
        zeros = {key: torch.zeros_like(value) for key, value in state.items()}
        wrapped = {"state_dict": state, "arch": "resnet10t", "epoch": 3}
        contents = {
            "state.pth": state, "timm.pth.tar": wrapped, "ema.pth.tar": {"state_dict": zeros, "state_dict_ema": state},
            "arguments.pth.tar": {**wrapped, "args": argparse.Namespace(lr=0.1)},
        }  # fmt: skip
        torch.save(contents[kind], file)
    name = None if kind in ("timm.pth.tar", "arguments.pth.tar") else "resnet10t"
    (entry,) = entries(tmp_path, checkpoint=str(file), model=name)
    score = evaluate(model, load("digits", "").loader("test", 256, device=CPU), 10)
    assert entry["correct"] == score.correct and entry["loss"] == pytest.approx(score.loss, abs=1e-6)
    with pytest.raises(CheckpointError, match="do not fit"):
        entries(tmp_path, checkpoint=str(file), model="resnet18")
    if name:
        with pytest.raises(CheckpointError, match="model=NAME"):
            entries(tmp_path, checkpoint=str(file))


@pytest.mark.parametrize("average", ["none", "ema"])
@pytest.mark.sampled(1)
def test_a_checkpoint_scores_as_training_logged(tmp_path, average):
    made = config(tmp_path, epochs=2)
    made.trainer.average, made.trainer.average_decay, made.data.validation = average, 0.9, 0.2
    go(prepare(made))
    folder = only_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    last, best = (str(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    found = entries(tmp_path, checkpoint=[last, best], split="validation", batch_size=77)
    assert found[0]["top1"] == lines[-1]["validation_top1"]
    assert found[0]["loss"] == pytest.approx(lines[-1]["validation_loss"], abs=1e-6)
    assert found[1]["top1"] == summary["best"]
    assert entries(tmp_path / "folder", checkpoint=str(folder), split="validation")[0]["checkpoint"] == best
    found = entries(tmp_path / "test", checkpoint=best)
    assert (found[0]["correct"], found[0]["count"]) == (summary["correct"], summary["count"])


def test_a_folder_of_test_images_alone_and_unreadable_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    class_folder(tmp_path / "set" / "val", count=6, size=40)
    (tmp_path / "set" / "val" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    options = ["model=resnet10t", "data=folder", "data.root=set", "data.workers=0", "device=cpu", "batch_size=4"]
    assert call(monkeypatch, "evaluate", *options) == 2
    err = capsys.readouterr().err
    assert "broken.jpg cannot be read" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert call(monkeypatch, "evaluate", *options, "data.unreadable=skip") == 0
    assert "left out" in capsys.readouterr().out
    (file,) = tmp_path.glob("runs/*/*/evaluation.json")
    (entry,) = json.loads(file.read_text())
    assert entry["count"] == 12 and "broken.jpg" in entry["unreadable"][0]
    assert call(monkeypatch, "evaluate", *options, "split=train") == 2
    assert "no images" in capsys.readouterr().err
    with pytest.raises(DataError):
        load("folder", str(tmp_path / "set"))


def test_a_batch_of_unreadable_images_alone_is_left_out_and_a_checkpoint_says_how_its_data_is_read(tmp_path, capsys):
    for split in ("train", "val", "test"):
        class_folder(tmp_path / "set" / split, count=8, size=16)
    for split, place in (("train", "cat"), ("test", "cat"), ("val", "dog")):
        for file in (tmp_path / "set" / split / place).iterdir():
            file.write_bytes(b"\xff\xd8\xff not an image")
    data = DataOptions(name="folder", root=str(tmp_path / "set"), size=8, workers=0, unreadable="skip")
    made = config(tmp_path, epochs=2, batch_size=2, data=data)
    made.data.augment = "none"
    go(prepare(made))
    folder = only_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["count"], summary["unreadable"]) == (16, 8, 24)
    (entry,) = entries(tmp_path, checkpoint=str(folder / "checkpoints" / "best.pt"), batch_size=2)
    assert (entry["correct"], entry["count"], len(entry["unreadable"])) == (summary["correct"], 8, 8)


def test_an_epoch_with_unreadable_batches_goes_on_exactly_and_one_without_an_image_is_refused(tmp_path):
    class_folder(tmp_path / "train", count=8, size=16)
    files = sorted((tmp_path / "train").rglob("*.jpg"))
    for file in files[3:11]:
        file.write_bytes(b"\xff\xd8\xff not an image")
    for workers in (0, 2):
        data = load("folder", str(tmp_path), size=8, validation=0.2)
        loader = data.loader("train", 2, device=CPU, training=True, augment="crop_flip", workers=workers, skip=True)
        for epoch in range(3):
            whole = list(loader.batches(epoch))
            assert len(whole) == len(loader)
            for start in range(len(whole)):
                for (one, a), (two, b) in zip(whole[start:], loader.batches(epoch, start), strict=True):
                    assert torch.equal(one, two) and torch.equal(a, b)
    for file in files:
        file.write_bytes(b"not an image")
    for training in (True, False):
        loader = data.loader("train", 2, device=CPU, training=training, skip=True)
        with pytest.raises(DataError, match="none of the other images can be read"):
            list(loader.batches())


@real
@pytest.mark.parametrize("name", ["hbnet34", "resnet34", "resnet50.a1_in1k", "agdnet121"])
@pytest.mark.sampled(2)
def test_imagenets_preprocessing_is_timms_to_the_pixel(name):
    root = os.path.join(os.environ["OPTNET_DATA"], "imagenet-sample")
    asked = Evaluate(model=name, data=DataOptions(name="imagenet", root=root), batch_size=8, device="cpu")
    (subject,) = assess.prepare(asked).subjects
    ours, labels = next(subject.loader(asked, CPU).batches())
    resolved = resolve_data_config({}, model=timm.create_model(name), use_test_size=True)
    theirs = create_loader(
        create_dataset("torch/image_folder", root=root, split="val"), resolved["input_size"], 8, use_prefetcher=False,
        interpolation=resolved["interpolation"], mean=resolved["mean"], std=resolved["std"],
        crop_pct=resolved["crop_pct"], crop_mode=resolved["crop_mode"], num_workers=0, device=CPU,
    )  # fmt: skip
    images, targets = next(iter(theirs))
    assert torch.equal(ours, images) and torch.equal(labels, targets)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "vit_tiny_patch16_224", "resnet10t"])
@pytest.mark.sampled(1)
def test_a_model_of_a_fixed_size_gets_images_from_files_in_that_size(name, tmp_path):
    class_folder(tmp_path / "test", count=2, size=40)
    (entry,) = entries(tmp_path, model=name, data=DataOptions(name="folder", root=str(tmp_path)), batch_size=2)
    assert entry["count"] == 4


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("model=[resnet10t,vgg11]", "model=vgg11 cannot be evaluated on images of 1x8x8: "),
        ("model=vit_tiny_patch16_384", "vit_tiny_patch16_384"),
        ("model=resnet18 pretrained=true", "model=resnet18 are for 1000 classes, and digits has 10"),
        ("model=resnet18 pretrained=true data=synthetic", "model=resnet18 are for 1000 classes, and synthetic has 10"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(request_, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "evaluate", *request_.split(), "device=cpu") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out and said in err, err
    assert not list(tmp_path.iterdir())


@real
@pytest.mark.slow
def test_imagenets_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = os.path.join(os.environ["OPTNET_DATA"], "imagenet-sample")
    options = ["data=imagenet", f"data.root={root}", "data.limit=24", "data.workers=0", "batch_size=8", "device=cpu"]
    assert call(monkeypatch, "evaluate", "model=[hbnet34,resnet34]", *options) == 0
    (file,) = tmp_path.glob("runs/*/*/evaluation.json")
    found = json.loads(file.read_text())
    assert [entry["count"] for entry in found] == [24, 24] and len(found[0]["per_class"]) == 1000
    assert found[0]["multiply_adds"] == pytest.approx(found[1]["multiply_adds"], rel=0.01)


def test_the_file_is_refused_before_anything_is_measured(tmp_path):
    made = config(tmp_path, epochs=1)
    go(prepare(made))
    best = only_run(tmp_path) / "checkpoints" / checkpoint.BEST
    for options in (
        {"checkpoint": str(best), "model": "hbnet_small"},
        {"checkpoint": [str(best)] * 2, "model": ["a"] * 3},
    ):
        with pytest.raises(ValueError):
            assess.prepare(Evaluate(device="cpu", **options))


def test_other_classes_are_refused_by_name(tmp_path):
    """As many, called otherwise: a checkpoint neither goes on with them nor is scored on them."""
    images = tmp_path / "images"
    class_folder(images)
    data = DataOptions(name="folder", root=str(images), size=16)
    go(prepare(config(tmp_path, data=data, epochs=1, batch_size=8)))
    folder = only_run(tmp_path)
    file = str(folder / "checkpoints" / "best.pt")
    going_on = Train(resume=str(folder), epochs=2), ["resume=x", "epochs=2"]
    (images / "dog").rename(images / "ant")
    for where, request in {
        file: lambda: entries(tmp_path, checkpoint=file),
        f"resume={folder}": lambda: prepare(*going_on),
    }.items():
        with pytest.raises(ConfigError) as error:
            request()
        assert str(error.value) == f"{where} has other classes than the data: class 0 is cat, not ant"
    (images / "ant").rename(images / "dog")
    entries(tmp_path, checkpoint=file)
    prepare(*going_on)
    class_folder(images, classes=["emu"])
    with pytest.raises(ConfigError, match="has 2 classes, but the data has 3"):
        prepare(*going_on)


def test_a_checkpoint_is_scored_on_another_set_of_the_same_classes(tmp_path):
    go(prepare(config(tmp_path, epochs=1, limit_batches=1)))
    write_usps(tmp_path, np.zeros((10, 16, 16), dtype=np.uint8), np.arange(10))
    options = {"checkpoint": str(only_run(tmp_path) / "checkpoints" / "best.pt")}
    for name in ("usps", "digits"):
        asked = DataOptions(name=name, root=str(tmp_path), verify=False)
        assert entries(tmp_path, data=asked, **options)[-1]["dataset"] == name
