"""What counts as data below a folder, what splits are, what is refused, and classes with unusual names."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import call, class_folder, config, go, only_run, prepare
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optnet import DataError
from optnet.data import SPLITS, DataOptions, load
from optnet.data.folders import NO_DATA
from optnet.training import checkpoint


def names(root):
    data = load("folder", str(root))
    return sorted(name for split in SPLITS for name in getattr(data, split).names)


def one(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(file)


def add_hidden(root):
    for place in (".ipynb_checkpoints", "cat/.ipynb_checkpoints", "cat/deep/.git/objects", "cat/deeper/.x"):
        one(root / place / "a.png")
    one(root / "cat" / ".a.png")


def add_systems(root):
    for name in NO_DATA:
        one(root / name / "a.png")
        one(root / "cat" / "b" / name / "a.png")


def link_to_parent(root):
    (root / "cat" / "up").symlink_to("..")


def link_to_root_by_its_whole_name(root):
    (root / "dog" / "all").symlink_to(root.absolute())


def link_far_up(root):
    (root / "cat" / "top").symlink_to("/")


def link_to_itself(root):
    (root / "cat" / "self").symlink_to("self")
    (root / "cat" / "here").symlink_to(".")
    (root / "here").symlink_to(".")
    (root / "up").symlink_to("..")


def cycle_outside(root):
    (root.parent / "a").mkdir()
    (root.parent / "b").mkdir()
    (root.parent / "a" / "b").symlink_to("../b")
    (root.parent / "b" / "a").symlink_to("../a")
    (root / "cat" / "a").symlink_to(root.parent / "a")


def many_links_to_each_other(root):
    """By every way through the links it would be more than 10^12."""
    for i in range(15):
        (root / "cat" / f"d{i}").mkdir()
        for j in range(15):
            if i != j:
                (root / "cat" / f"d{i}" / f"to{j}").symlink_to(f"../d{j}")


def same_class_twice(root):
    (root / "cat" / "again").mkdir()
    for file in list((root / "cat").glob("*.jpg")):
        (root / "cat" / "again" / file.name).symlink_to(f"../{file.name}")
    (root / "cat" / "0copy.jpg").symlink_to("3.jpg")
    (root / "cat" / "0all").symlink_to("again")


def link_to_class_by_another_name(root):
    (root.parent / "elsewhere").mkdir()
    (root / "cat").rename(root.parent / "elsewhere" / "cat")
    (root / "cat").symlink_to("../elsewhere/cat")
    (root.parent / "elsewhere" / "cat" / "up").symlink_to("..")


def pipes_and_texts(root):
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "dog" / "png").mkdir()


@pytest.mark.parametrize("change", [
    add_hidden, add_systems, link_to_parent, link_to_root_by_its_whole_name, link_far_up, link_to_itself,
    cycle_outside, many_links_to_each_other, same_class_twice, link_to_class_by_another_name, pipes_and_texts,
])  # fmt: skip
def test_what_adds_no_image(tmp_path, change):
    class_folder(tmp_path / "root", count=10)
    before = names(tmp_path / "root")
    change(tmp_path / "root")
    assert names(tmp_path / "root") == before and len(before) == 20


def test_images_at_any_depth_and_behind_links_count(tmp_path):
    class_folder(tmp_path / "root", count=10)
    one(tmp_path / "pool" / "x" / "1.png")
    one(tmp_path / "single.png")
    (tmp_path / "root" / "cat" / "pool").symlink_to(tmp_path / "pool")
    (tmp_path / "root" / "dog" / "single.png").symlink_to(tmp_path / "single.png")
    one(tmp_path / "root" / "dog" / "a.png" / "b.PNG")  # a folder that is called like an image
    found = names(tmp_path / "root")
    assert len(found) == 23
    assert {"cat/pool/x/1.png", "dog/single.png", "dog/a.png/b.PNG"} <= set(found)


@pytest.mark.parametrize("link, target", [
    ("cat/more", "../dog"), ("cat/one.jpg", "../dog/3.jpg"), ("cow", "cat"), ("dog/x", "../cat"),
])  # fmt: skip
def test_an_image_of_two_classes_is_refused(tmp_path, link, target):
    class_folder(tmp_path, count=10)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=r"is the same file as one in .*an image has one class and one split"):
        load("folder", str(tmp_path))


@pytest.mark.parametrize("link, target", [("test", "train"), ("test/cat", "../train/cat"), ("test", "val")])
def test_an_image_of_two_splits_is_refused(tmp_path, link, target):
    for part in ("train", "val"):
        class_folder(tmp_path / part, count=5)
    if "/" in link:
        class_folder(tmp_path / "test", classes=["dog"], count=5)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match="is the same file as one in"):
        load("folder", str(tmp_path))


@pytest.mark.parametrize("images, said", [
    ("pets/cat pets/dog", "has one class, pets, which has the folders cat, dog; .* give data.root={root}/pets"),
    ("a/b/cat a/b/dog", "has one class, a, which has the folders b; .* give data.root={root}/a"),
    ("pets/train/cat pets/train/dog pets/test/cat", "has the splits test, train; give data.root={root}/pets"),
    ("pets/Train/cat pets/VAL/cat other", "has the splits Train, VAL; give data.root={root}/pets"),
    ("train/pets/cat train/pets/dog", "one class, pets, .* move these into {root}/train"),
    ("train/cat train/dog test/pets/cat test/pets/dog", "{root}/test has one class, pets, "),
    ("cat", "has one class, cat; there must be two at least"),
    ("cat cat/black cat/white", "has one class, cat; there must be two at least"),
    ("train/cat test/cat", "has one class, cat; there must be two at least"),
    (".", "has images, but they must be in class folders"),
    ("train", "train has images, but they must be in class folders"),
    ("cat Cat", "classes Cat and cat in {root} are the same but for case"),
    ("dog STRASSE straße", "classes STRASSE and straße in {root} are the same but for case"),
    ("train/cat train/CAT train/dog", "classes CAT and cat in {root}/train are the same but for case"),
    ("train/cat train/dog test/cat test/Dog", "have different classes: Dog, dog"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_root_that_means_something_else_is_refused(tmp_path, images, said, kind):
    for place in images.split():
        for i in range(10):
            one(tmp_path / place / f"{i}.png")
    with pytest.raises(DataError, match=said.format(root=tmp_path)) as error:
        load(kind, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("empty", ["cow", "a b", "train"])
@pytest.mark.parametrize("content", [None, "notes.txt", ".hidden.png", ".x/a.png", "deep/deeper/a.text"])
def test_class_folders_without_an_image_are_named(tmp_path, empty, content):
    place = tmp_path / "train"
    class_folder(place, count=10)
    (place / empty).mkdir()
    if content:
        (place / empty / content).parent.mkdir(parents=True, exist_ok=True)
        (place / empty / content).touch()
    with pytest.raises(DataError, match=f"class folders without an image: {empty}; remove them"):
        load("folder", str(tmp_path))


@pytest.mark.parametrize("root", ["none", "file", "link", "cat", "loop"])
def test_a_root_that_is_none_is_refused(tmp_path, root):
    (tmp_path / "file").touch()
    (tmp_path / "cat").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError) as error:
        load("folder", str(tmp_path / root))
    assert "\n" not in str(error.value) and "data.root" in str(error.value)


NASTY = [
    b"caf\xe9", b"a\nb", b"a\tb\x1b[31m", b"[bold]", b"$$x", b"$\\frac", b"_^{}", b"a,b;\"c\"'", b"-x", b" ", b"=1+1",
    b"{oc.env}", b"${oc.env:HOME}", b"a|b", b"<b>", b"%s%d", b"null", b"x" * 255, "日本 é ẞ".encode(),
    "\u202egnp".encode(), b"con", b"\\", b"#", b"0",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_classes_of_any_name_go_through_the_whole_way(tmp_path, monkeypatch, capsys):
    """Training, the records, evaluation, TensorBoard and figures; each name is shown as text and can be told apart."""
    for name in NASTY:
        place = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(place)
        for i in range(4):
            one(Path(os.fsdecode(place)) / f"{i}.png")
    settings = DataOptions(name="folder", root=str(tmp_path / "images"), size=16, validation=0.4)
    made = config(tmp_path, epochs=1, batch_size=32, data=settings)
    made.monitor.figures = "end"
    go(prepare(made))
    folder = only_run(tmp_path)
    classes = checkpoint.load(folder / "checkpoints" / "best.pt").classes
    assert len(set(classes)) == len(NASTY) and all(name.isprintable() for name in classes)
    assert {"caf\\udce9", "a\\nb", "$$x", "[bold]", "日本 é ẞ", "x" * 255} <= set(classes)
    assert list(json.loads((folder / "data.json").read_text())["train"]["classes"]) == classes
    out = tmp_path / "e.json"
    best = f"checkpoint={folder}/checkpoints/best.pt"
    assert call(monkeypatch, "evaluate", best, "device=cpu", f"output={out}") == 0
    (entry,) = json.loads(out.read_text())
    assert list(entry["per_class"]) == classes and (tmp_path / entry["confusion"]).stat().st_size > 1000
    said = capsys.readouterr()
    assert "\x1b[31m" not in said.out + said.err and "could not be drawn" not in said.out + said.err
    assert "could not be drawn" not in (folder / "console.log").read_text()
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert "predictions" in events.Tags()["images"]


def test_two_folders_that_are_shown_alike_are_refused(tmp_path):
    for name in (b"a\nb", b"a\\nb", b"c"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), name))
        (tmp_path / os.fsdecode(name) / "0.png").touch()
    with pytest.raises(DataError, match="are the same but for case and control characters") as error:
        load("folder", str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_validation_folder_is_the_validation_split(tmp_path):
    for part, count in {"train": 6, "val": 3, "test": 2}.items():
        class_folder(tmp_path / part, count=count)
        (tmp_path / part / ".thumbnails").mkdir()  # no class
    data = load("folder", str(tmp_path), size=16)
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 6, 4]
    shutil.rmtree(tmp_path / "test")
    data = load("folder", str(tmp_path), size=16)  # as ImageNet lies
    assert [len(data.train), len(data.validation), len(data.test)] == [11, 1, 6]


@pytest.mark.parametrize("names", ["train valid test", "train validation test", "Train Val Test", "TRAIN Valid TEST"])
def test_what_splits_may_be_called(tmp_path, names):
    for name, count in zip(names.split(), (6, 3, 2), strict=True):
        class_folder(tmp_path / name, count=count)
    data = load("folder", str(tmp_path), size=16)
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 6, 4]
    shutil.rmtree(tmp_path / names.split()[0])
    data = load("folder", str(tmp_path), size=16, training=False)
    assert [len(data.train), len(data.validation), len(data.test)] == [0, 6, 4]
    with pytest.raises(DataError, match="too few"):
        load("folder", str(tmp_path))


@pytest.mark.parametrize("folders, said", [
    ("train/cat train/dog test/cat test/dog dev/cat extra", "splits test and train and also the folders dev, extra"),
    ("bus car train", "splits train and also the folders bus, car; .* whatever their names, into .*/train"),
    ("Test cat dog", "splits Test and also the folders cat, dog"),
    ("train/cat train/dog val/cat val/dog valid/cat valid/dog", "val and .*valid are the same split"),
    ("Train/cat train/cat", "rain and .*rain are the same split"),
    ("training/cat training/dog testing/cat testing/dog", "testing, training .* if they are splits, call them train"),
])  # fmt: skip
def test_layouts_that_mean_something_else_are_refused(tmp_path, folders, said):
    for place in folders.split():
        class_folder(tmp_path, classes=[place], count=2)
    with pytest.raises(DataError, match=said) as error:
        load("folder", str(tmp_path))
    assert "\n" not in str(error.value)


def test_classes_called_like_splits(tmp_path):
    class_folder(tmp_path / "train", classes=("bus", "test", "train"))
    assert load("folder", str(tmp_path)).classes == ("bus", "test", "train")


def test_classes_of_folders_in_folders(tmp_path):
    class_folder(tmp_path, classes=("cat/black", "cat/white", "dog", "dog/black"), count=5)
    data = load("folder", str(tmp_path))
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.validation) + len(data.test) == 20


@pytest.mark.parametrize("part", ["val", "test"])
def test_folders_of_other_classes_are_refused(tmp_path, part):
    for name in ("train", "val", "test"):
        class_folder(tmp_path / name, classes=("cat", "dog", "emu") if name == part else ("cat", "dog"), count=2)
    with pytest.raises(DataError, match=f"{part} have different classes: emu"):
        load("folder", str(tmp_path))
