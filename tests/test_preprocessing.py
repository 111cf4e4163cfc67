"""Preprocessing: timm's to the pixel, and it travels with the weights."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import call, class_folder, config, crossed, go, only_run, prepare, some, write_usps
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import transforms

import optnet
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate, Train
from optnet.data import DataOptions, Preprocessing, load
from optnet.data.preprocessing import CROP_MODES, INTERPOLATIONS
from optnet.errors import DataError
from optnet.training import checkpoint

CPU = torch.device("cpu")
OWN = {
    "size": 16, "crop": 0.8, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]
}  # fmt: skip
TRAINED = Preprocessing((16, 16), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 0.8, "bicubic")


def picture(mode="RGB", width=50, height=37):
    noise = torch.rand(height, width, 4, generator=torch.Generator().manual_seed(0)) * 255
    return Image.fromarray(noise.byte().numpy(), "RGBA").convert("RGB").convert(mode)


@pytest.mark.parametrize(
    ("size", "crop", "interpolation", "crop_mode"),
    crossed([(24, 24), (20, 31), (7, 7)], [1.0, 0.875, 0.7, 0.9], INTERPOLATIONS, CROP_MODES),
)
def test_it_is_timms_to_the_pixel(size, crop, interpolation, crop_mode):
    """0.7 and 0.9: where a side divided by the crop is no whole number, it is rounded down."""
    ours = Preprocessing(size, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), crop, interpolation, crop_mode)
    theirs = create_transform(
        ours.shape, mean=ours.mean, std=ours.std, crop_pct=crop, interpolation=interpolation, crop_mode=crop_mode
    )
    given = picture()
    assert torch.equal(ours.transform()(given), theirs(given))
    model = timm.create_model("hbnet_small")
    ours.describe(model, ["a", "b"])
    assert Preprocessing.of(model) == ours
    assert torch.equal(create_transform(**resolve_data_config({}, model=model))(given), theirs(given))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_any_mode_has_the_right_channels(mode, channels):
    """Grey for one channel, by Pillow's weights of red, green and blue."""
    made = Preprocessing((8, 8), (0.0,) * channels, (1.0,) * channels).transform()
    assert isinstance(made, transforms.Compose)
    given = Image.new("RGB", (9, 9), (255,) * 3 if mode == "1" else (255, 0, 0)).convert(mode)
    found = made(given)
    wanted = torch.tensor(given.convert("RGB" if channels == 3 else "L").getpixel((4, 4))).view(-1, 1, 1) / 255
    assert found.shape == (channels, 8, 8) and torch.allclose(found, wanted.expand(channels, 8, 8), atol=0.01)


WRONG = {
    "size": [(0, 8), (8,), (8.0, 8), (True, 8), (8, -1), (8, 2**20)],
    "mean": [(), (0.5, 0.5), (float("nan"),), ("x",), (True,)],
    "std": [(), (0.0,), (-1.0,), (float("inf"),)],
    "crop": [0, 1.5, float("nan"), "x", None],
    "interpolation": ["linear", "", 3, None],
    "crop_mode": ["centre", None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_out_of_range_is_refused(key, value):
    right = {"size": (8, 8), "mean": (0.5,), "std": (0.5,)}
    Preprocessing(**right)
    with pytest.raises(DataError, match=key) as error:
        Preprocessing(**{**right, key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", some(["resnet18.a1_in1k", "resnetv2_50.a1h_in1k", "densenet121.ra_in1k"], "resnet18.a1_in1k")
)
def test_a_converted_model_has_the_same(name):
    model = timm.create_model(name, num_classes=3)
    ours = optnet.convert.from_timm(model)
    back = optnet.convert.to_timm(ours)
    for other in (ours, back):
        assert Preprocessing.of(other) == Preprocessing.of(model)
        assert other.default_cfg is other.pretrained_cfg
    assert ours.pretrained_cfg["classifier"] == "head.fc" and ours.pretrained_cfg["first_conv"] == "stem.conv"
    assert back.pretrained_cfg == model.pretrained_cfg
    assert not hasattr(optnet.convert.from_timm(torchvision.models.resnet18()), "pretrained_cfg")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on pictures of its own preprocessing; the pictures are in ``data``."""
    place = tmp_path_factory.mktemp("trained")
    class_folder(place / "data", size=40)
    data = DataOptions(name="folder", root=str(place / "data"), augment="crop_flip", **OWN)
    go(prepare(config(place, data=data, epochs=1, batch_size=8)))
    return only_run(place), place / "data"


def test_a_rebuilt_model_says_what_it_was_trained_with(trained):
    folder, _ = trained
    saved = checkpoint.load(folder / "checkpoints" / "best.pt")
    assert saved.preprocessing == asdict(TRAINED) and saved.classes == ["cat", "dog"]
    model = checkpoint.rebuild(saved)
    assert Preprocessing.of(model) == TRAINED
    cfg = model.pretrained_cfg
    assert cfg is model.default_cfg and cfg["input_size"] == (3, 16, 16) and cfg["mean"] == TRAINED.mean
    assert (cfg["num_classes"], cfg["label_names"]) == (2, ("cat", "dog"))
    assert not cfg.get("hf_hub_id") and not cfg.get("url")


def test_the_model_says_it_from_the_start_and_when_it_goes_on(trained):
    folder, root = trained
    fresh = prepare(config(folder / "x", data=DataOptions(name="folder", root=str(root), **OWN)))
    on = prepare(Train(resume=str(folder), epochs=2), ["resume=x", "epochs=2"])
    for job in (fresh, on):
        assert Preprocessing.of(job.model) == TRAINED == job.data.preprocessing


def first_batch(subject, asked):
    return next(subject.loader(asked, CPU).batches())[0]


@pytest.mark.parametrize("data", [None, "folder"])
def test_it_is_evaluated_as_it_was_trained(trained, data, tmp_path):
    """The options of the data set, 64 pixels by default, do not count unless the command line states them."""
    folder, root = trained
    asked = Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt"), device="cpu")
    asked.data = data and DataOptions(name=data, root=str(root))
    (subject,) = assess.prepare(asked).subjects
    with Image.open(root / subject.data.test.names[0]) as opened:
        wanted = TRAINED.transform()(opened)
    assert torch.equal(first_batch(subject, asked)[0], wanted)
    assert bool(subject.said) == (data == "folder")


STATED = {
    "data.size=24": {"size": (24, 24)}, "data.crop=1.0": {"crop": 1.0},
    'data.interpolation="nearest"': {"interpolation": "nearest"}, "data.mean=[0,0,0]": {"mean": (0, 0, 0)},
    "data.std=[1,1,1]": {"std": (1, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("stated", STATED)
def test_what_is_stated_wins(trained, stated):
    folder, root = trained
    key, _, value = stated.partition("=")
    asked = Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt"), device="cpu")
    asked.data = DataOptions(name="folder", root=str(root), **{key.removeprefix("data."): json.loads(value)})
    (subject,) = assess.prepare(asked, ["data=folder", f"++{stated}"]).subjects
    used = TRAINED.changed(**STATED[stated])
    assert subject.data.preprocessing == used != TRAINED
    assert subject.said == f"images of {used}, by {key}; it was trained with {TRAINED}"
    assert first_batch(subject, asked).shape[1:] == used.shape


def test_it_is_said_before_the_scoring_and_kept_with_the_scores(trained, tmp_path, monkeypatch, capsys):
    folder, root = trained
    best = folder / "checkpoints" / "best.pt"
    base = [f"checkpoint={best}", "data=folder", f"data.root={root}", "data.workers=0", "device=cpu"]
    for number, stated in enumerate((["data.size=24"], [])):
        output = tmp_path / f"{number}.json"
        assert call(monkeypatch, "evaluate", *base, *stated, f"output={output}") == 0
        (entry,) = json.loads(output.read_text())
        used = TRAINED.changed(size=(24, 24)) if stated else TRAINED
        assert entry["preprocessing"] == json.loads(json.dumps(asdict(used)))
        first = capsys.readouterr().out.splitlines()[0]
        why = (
            f"by data.size; it was trained with {TRAINED}" if stated else "as it was trained; folder's own are 3x64x64"
        )
        assert first.startswith(f"{best}: images of {used}, {why}")


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    """The best checkpoint of a run on the digits."""
    place = tmp_path_factory.mktemp("digits")
    go(prepare(config(place, epochs=1, limit_batches=1)))
    return str(only_run(place) / "checkpoints" / "best.pt")


def test_images_in_memory_are_brought_to_the_size_too(on_digits, tmp_path):
    pixels = np.tile(np.arange(16, dtype=np.uint8) * 16, (10, 16, 1))
    write_usps(tmp_path, pixels, np.arange(10))
    asked = Evaluate(checkpoint=on_digits, device="cpu")
    asked.data = DataOptions(name="usps", root=str(tmp_path), verify=False)
    (subject,) = assess.prepare(asked).subjects
    digits = load("digits", "").preprocessing
    assert subject.data.preprocessing == digits and subject.data.shape == (1, 8, 8)
    wanted = digits.transform()(Image.fromarray(pixels[0], "L"))
    assert torch.allclose(first_batch(subject, asked)[0], wanted, atol=0.02) and "1x8x8" in subject.said
    asked.data = DataOptions(name="synthetic")
    with pytest.raises(DataError, match=r"the images of synthetic have 3 channel\(s\), and 1 are needed"):
        assess.prepare(asked)


def test_a_network_for_grey_images_takes_pictures(on_digits, tmp_path):
    class_folder(tmp_path / "data", classes=list("0123456789"), count=6)
    asked = Evaluate(checkpoint=on_digits, device="cpu")
    asked.data = DataOptions(name="folder", root=str(tmp_path / "data"))
    (subject,) = assess.prepare(asked).subjects
    assert first_batch(subject, asked).shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_as_many_numbers_as_channels(key):
    with pytest.raises(DataError, match="mean"):
        load("digits", "", **{key: [0.5, 0.5, 0.5]})
    assert getattr(load("digits", "", **{key: [0.25]}), key) == (0.25,)
