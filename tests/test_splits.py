"""Splits of images in files: added images move no other, and a run knows whether its data has changed."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import call, class_folder, config, go, only_run, prepare, write_usps
from PIL import Image

from optnet import CheckpointError, ConfigError, DataError
from optnet.app.config import Train
from optnet.data import SPLITS, DataOptions, DataRecord, load
from optnet.data.record import record
from optnet.training import checkpoint


def add(root, *names):
    """Images of one colour, whose names are ``class/name``."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200, 10, 10)).save(root / name)


def members(root, **options):
    data = load("folder", str(root), size=16, **options)
    return {split: set(getattr(data, split).names) for split in SPLITS}


@pytest.mark.parametrize("split", ["", "train", "train test"])
@pytest.mark.parametrize("limit", [None, 12])
def test_added_images_move_no_other(tmp_path, split, limit):
    for part in split.split() or ["."]:
        class_folder(tmp_path / part, count=20)
    for file in (tmp_path / "test").rglob("*.jpg"):
        file.rename(file.with_name(f"test_{file.name}"))
    parts = [members(tmp_path, seed=3, limit=limit)]
    first = tmp_path / (split.split() or ["."])[0]
    for names in (["cat/new.png", "dog/.0.jpg"], ["cat/00.png", "dog/z.png"], ["dog/a b/ä.png", "cat/0.png"]):
        add(first, *names)
        parts.append(members(tmp_path, seed=3, limit=limit))
    assert all(part["train"] and part["validation"] and part["test"] for part in parts)
    for (one, two), (this, that) in itertools.product(itertools.pairwise(parts), itertools.permutations(SPLITS, 2)):
        assert not one[this] & two[that]
        if limit is None:
            assert one[this] <= two[this]
        else:
            assert len(one[this] - two[this]) <= 2  # each image that is added displaces one at most
    if split == "train test":
        return
    (first / "cat" / "0.jpg").unlink()
    after = members(tmp_path, seed=3, limit=limit)
    assert not any(parts[-1][this] & after[that] for this, that in itertools.permutations(SPLITS, 2))


def test_a_hash_of_names_splits_as_drawing_lots_does(tmp_path):
    """A fifth for the test, a tenth of the rest for validation; each seed has its own, and the same test split."""
    names = [f"{kind}/{i:04}.png" for kind in ("cat", "dog") for i in range(2000)]
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
    for name in names:
        (tmp_path / name).touch()
    one, two = (members(tmp_path, seed=seed) for seed in (0, 1))
    assert len(one["test"]) == pytest.approx(800, abs=76)  # three standard deviations
    assert len(one["validation"]) == pytest.approx(320, abs=51)
    assert one["test"] == two["test"] and one["validation"] != two["validation"]
    assert len(one["validation"] & two["validation"]) == pytest.approx(32, abs=17)
    cats = {split: {name[4:] for name in one[split] if name.startswith("cat")} for split in SPLITS}
    dogs = {split: {name[4:] for name in one[split] if name.startswith("dog")} for split in SPLITS}
    assert len(cats["test"] & dogs["test"]) == pytest.approx(80, abs=27)  # classes are drawn independently
    assert one["train"] | one["validation"] | one["test"] == set(names)


def test_a_split_without_an_image_is_refused(tmp_path):
    add(tmp_path, "cat/0.png", "dog/0.png", "dog/1.png")
    with pytest.raises(DataError, match=r"too few images to split: .* none is in the \w+ split; add some") as error:
        load("folder", str(tmp_path))
    assert "\n" not in str(error.value)


SETTINGS = {"name": "folder", "size": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 20 images a class, stopped after one of its epochs, and its images."""
    place = tmp_path_factory.mktemp("trained")
    class_folder(place / "images", count=20)
    made = config(place, epochs=1, batch_size=8, data=DataOptions(root=str(place / "images"), **SETTINGS))
    go(prepare(made))
    return place


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained / "images", tmp_path / "images")
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path


def resumed(place, **keys):
    keys = {"epochs": 2, **keys}
    asked = Train(resume=str(only_run(place)), **keys)
    asked.data.root = str(place / "images")
    return prepare(asked, ["resume=x", "data.root=x", *(f"{key}=x" for key in keys)])


def some(place, split, count=1):
    """Names of images of one split."""
    return sorted(members(place / "images")[split])[:count]


def new_name(place, split):
    """A name that an image of this split would have."""
    for i in range(1000, 2000):
        if f"cat/{i}.png" in members_of_one(place, f"cat/{i}.png")[split]:
            return f"cat/{i}.png"
    raise AssertionError


def members_of_one(place, name):
    add(place / "images", name)
    found = members(place / "images")
    (place / "images" / name).unlink()
    return found


def test_the_record_in_the_run_folder_and_the_checkpoints(trained):
    folder = only_run(trained)
    found, said = members(trained / "images"), json.loads((folder / "data.json").read_text())
    assert said["name"] == "folder"
    for split in SPLITS:
        cats = sum(name.startswith("cat/") for name in found[split])
        assert said[split]["images"] == len(found[split]) and said[split]["classes"]["cat"] == cats
    for name in ("last", "best"):
        stored = DataRecord.from_dict(checkpoint.load(folder / "checkpoints" / f"{name}.pt").data)
        assert [getattr(stored, split).count for split in SPLITS] == [len(found[split]) for split in SPLITS]
        assert all(len(getattr(stored, split).digests) == len(found[split]) for split in SPLITS)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("how", ["added", "removed", "renamed"])
def test_a_run_whose_data_has_changed_is_refused_and_says_how(copy, split, how):
    images, before = copy / "images", len(members(copy / "images")[split])
    (old,), new = some(copy, split), new_name(copy, split)
    if how != "removed":
        add(images, new)
    if how != "added":
        (images / old).unlink()
    after = before + {"added": 1, "removed": -1, "renamed": 0}[how]
    with pytest.raises(ConfigError) as error:
        resumed(copy)
    parts = ([f"1 new ({new})"] if how != "removed" else []) + (["1 gone"] if how != "added" else [])
    counted = f"{after} images" + (f", not {before}" if after != before else "")
    assert f"{split} has {counted}: {', '.join(parts)}; put them back" in str(error.value)
    assert "edited_config=true" in str(error.value) and "\n" not in str(error.value)
    job = resumed(copy, edited_config=True)
    assert f"going on with other images: {split} has {counted}" in job.note


def test_unchanged_data_in_another_place_goes_on_without_a_word(copy):
    assert resumed(copy).note == ""


def test_images_that_a_run_was_trained_on_stay_known(copy):
    """They move from train to test by hand, the run goes on, and evaluation still says so."""
    class_folder(copy / "images" / "train", count=1)  # the layout with folders of the splits
    for kind in ("cat", "dog"):
        shutil.rmtree(copy / "images" / "train" / kind)
        (copy / "images" / kind).rename(copy / "images" / "train" / kind)
    found = some(copy, "train", 3)
    held = [name for name in sorted(members(copy / "images")["train"]) if name not in found][:2]
    add(copy / "images" / "test", "cat/new.png", "dog/new.png")
    for name in (*found, *held):
        (copy / "images" / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / "images" / "train" / name).rename(copy / "images" / "test" / name)
    with pytest.raises(ConfigError, match=r"5 of them trained on"):
        resumed(copy)
    job = resumed(copy, edited_config=True)
    assert len(job.data.record.before) >= 5
    go(job)
    again = resumed(copy, epochs=3)
    assert again.note == "" and torch.equal(again.data.record.before, job.data.record.before)


def evaluated(monkeypatch, capsys, place, *arguments):
    file = place / "evaluation.json"
    file.unlink(missing_ok=True)
    capsys.readouterr()
    best = f"checkpoint={only_run(place)}/checkpoints/best.pt"
    assert call(monkeypatch, "evaluate", best, "device=cpu", f"output={file}", *arguments) == 0
    return capsys.readouterr().out, json.loads(file.read_text())[0]


def test_evaluation_says_how_its_data_has_changed(copy, monkeypatch, capsys):
    root = f"data.root={copy}/images"
    given = ("data=folder", "data.size=16", root)
    said, entry = evaluated(monkeypatch, capsys, copy, *given)
    assert "changed" not in said and entry["data_changed"] == ""
    new, count = new_name(copy, "test"), len(members(copy / "images")["test"])
    add(copy / "images", new)
    said, entry = evaluated(monkeypatch, capsys, copy, *given)
    wanted = f"test has {count + 1} images, not {count}: 1 new ({new})"
    assert entry["data_changed"] == wanted and "its data has changed since it was trained" in said
    assert evaluated(monkeypatch, capsys, copy, *given, "split=train")[1]["data_changed"] == ""
    trained_on = len(members(copy / "images")["train"])
    found = evaluated(monkeypatch, capsys, copy, *given, "data.validation=0.5", "split=validation")[1]["data_changed"]
    assert "of them trained on" in found and int(found.split(" of them")[0].split(", ")[-1]) < trained_on


def test_images_in_memory_that_have_changed(tmp_path, monkeypatch, capsys):
    go(prepare(config(tmp_path, epochs=1, limit_batches=2)))
    best = f"checkpoint={only_run(tmp_path)}/checkpoints/best.pt"
    found = {}
    for given in ("", "data=digits", "data=digits data.limit=50", "data=digits data.validation=0.2 split=validation"):
        file = tmp_path / "evaluation.json"
        file.unlink(missing_ok=True)
        assert call(monkeypatch, "evaluate", best, "device=cpu", f"output={file}", *given.split()) == 0
        found[given] = json.loads(file.read_text())[0]["data_changed"]
    assert list(found.values()) == ["", "", "test has 50 images, not 360", "validation has 287 images, not 144"]
    data = load("digits", "")
    other = load("digits", "", seed=1)
    assert (
        other.changes(data.record)
        == "train has 1,293 images, and other ones; validation has 144 images, and other ones"
    )


def usps(place, seed):
    drawn = np.random.default_rng(seed)
    labels = np.arange(40, dtype=np.uint8) % 10
    shutil.rmtree(place / "USPS", ignore_errors=True)
    write_usps(place, drawn.integers(0, 256, (40, 1, 16, 16), dtype=np.uint8), labels)


def test_published_files_that_have_changed(tmp_path):
    """Of the same number and form, and with verify=false: the pixels tell."""
    usps(tmp_path, 0)
    settings = DataOptions(name="usps", root=str(tmp_path), verify=False)
    go(prepare(config(tmp_path, epochs=1, batch_size=8, data=settings)))
    asked = Train(resume=str(only_run(tmp_path)), epochs=2)
    assert prepare(asked, ["resume=x", "epochs=x"]).note == ""
    usps(tmp_path, 1)
    with pytest.raises(
        ConfigError, match="train has 36 images, and other ones; validation has 4 images, and other ones"
    ):
        prepare(asked, ["resume=x", "epochs=x"])


def test_synthetic_images_are_the_same_for_the_record_on_every_machine():
    """Their last bits may differ with the processor; the record has their number, form and labels."""
    one, other = load("synthetic", ""), load("synthetic", "")
    other.train.images.add_(1)
    again = record("synthetic", 10, [other.train, other.validation, other.test], exact=False)
    assert not one.changes(again) and one.changes(load("synthetic", "", images=900).record)


@pytest.mark.parametrize("spoil, said", [
    (lambda data: data["train"].update(digests=torch.zeros(3)), "digests"),
    (lambda data: data["train"].update(digests=torch.zeros(3, 2, dtype=torch.long)), "digests"),
    (lambda data: data.update(before=torch.zeros(2, dtype=torch.complex64)), "digests"),
    (lambda data: data["test"].update(count=-1), "data.test.count"),
    (lambda data: data["test"].update(count="many"), "data.test.count"),
    (lambda data: data["validation"].update(per_class=[0.5]), "data.validation.per_class"),
    (lambda data: data.pop("validation"), "it has no data.validation"),
    (lambda data: data.update(name=3), "data.name"),
    (lambda data: data.update(extra=3), "unknown entry extra"),
])  # fmt: skip
def test_a_record_is_checked(copy, spoil, said):
    for file in (only_run(copy) / "checkpoints").glob("*.pt"):
        content = torch.load(file, weights_only=True)
        spoil(content["data"])
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=said) as error:
        resumed(copy)
    assert "\n" not in str(error.value)
