"""Images that cannot be read and are skipped, in one and in several processes; and batches of one image."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from helpers import ROOT, class_folder, config, go, metrics, only_run, prepare

from optnet import ConfigError, DataError
from optnet.app.config import Model
from optnet.data import DataOptions, load
from optnet.training import trainers
from optnet.training.scoring import evaluate

CPU = torch.device("cpu")


def spoil(root, names):
    for name in names:
        (root / name).write_bytes(b"not an image")


def folder(root, count=12):
    """Splits of their own, so that the test can choose which images of which share are unreadable."""
    for part in ("train", "val", "test"):
        class_folder(root / part, count=count, size=16)
    return load("folder", str(root), size=16)


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("readable", [3, 2, 1])
@pytest.mark.sampled(4)
def test_a_share_without_an_image_takes_those_of_the_others(tmp_path, least, workers, readable):
    """Every process has a batch of ``least`` images in every step, with no word between them."""
    data = folder(tmp_path)
    loader = data.loader(
        "train", 8, device=CPU, training=True, workers=workers, skip=True, least=least, augment="crop_flip"
    )
    order = loader.order(0).tolist()
    left = [order[8 * b : 8 * b + 8 : 2][:readable] for b in range(3)]  # of the first process in each step
    kept = {i for some in left for i in some}
    spoil(tmp_path / "train", [name for i, name in enumerate(data.train.names) if i not in kept])
    batches = [list(loader.shared(rank, 2).batches(0)) for rank in range(2)]
    assert [len(steps) for steps in batches] == [3, 3]
    for (images, labels), (others, other_labels), some in zip(*batches, left, strict=True):
        if readable >= least:  # the second process has those of the first one
            assert torch.equal(images, others) and torch.equal(labels, other_labels)
            assert labels.tolist() == data.train.labels[some].tolist()
        assert len(labels) >= least and len(other_labels) >= least
    again = list(loader.shared(1, 2).batches(0, 1))
    assert len(again) == 2 and all(torch.equal(a, b) for (a, _), (b, _) in zip(again, batches[1][1:], strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "left, least, said", [(0, 1, "none of the other"), (0, 2, "none of the other"), (1, 2, "1 can be")]
)
def test_too_few_images_for_all_end_every_process_alike(tmp_path, world, left, least, said):
    data = folder(tmp_path, count=6)
    spoil(tmp_path / "train", data.train.names[left:])
    for rank in range(world):
        loader = data.loader("train", 6, device=CPU, training=True, skip=True, least=least).shared(rank, world)
        with pytest.raises(DataError, match=said):
            list(loader.batches(0))


def test_a_batch_of_which_one_image_is_left_is_merged_with_the_next(tmp_path):
    data = folder(tmp_path)
    loader = data.loader("train", 6, device=CPU, training=True, skip=True, least=2)
    order = loader.order(0).tolist()
    spoil(tmp_path / "train", [data.train.names[i] for i in order[1:6]])
    assert [len(labels) for _, labels in loader.batches(0)] == [7, 6, 6, 6]
    alone = data.loader("train", 6, device=CPU, training=True, skip=True)
    assert [len(labels) for _, labels in alone.batches(0)] == [1, 6, 6, 6]


def test_a_share_without_an_image_counts_nothing_in_scoring(tmp_path):
    data = folder(tmp_path)
    spoil(tmp_path / "test", data.test.names[1::2])
    share = data.loader("test", 8, device=CPU, skip=True).shared(1, 2)
    assert list(share.batches()) == [] and len(share.unreadable) == 12
    model = timm.create_model("resnet10t", num_classes=2)
    assert evaluate(model, data.loader("test", 8, device=CPU, skip=True), 2).count == 12
    with pytest.raises(DataError, match="none of the other images can be read"):
        evaluate(model, share, 2)  # here it is all there is


CRASH = """
import sys, torch
from optnet.data import load
data = load("folder", sys.argv[1], size=16)
loader = data.loader("train", 4, device=torch.device("cpu"), workers=2)
batches = loader.batches()
next(batches)
raise RuntimeError("out of memory")
"""


@pytest.mark.slow
def test_a_crash_does_not_wait_for_processes_that_read_images(tmp_path):
    """They get no SIGTERM, with which Python would end them when it exits."""
    folder(tmp_path)
    command = [sys.executable, "-c", CRASH, str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: out of memory\n")


def run(tmp_path, **options):
    made = config(
        tmp_path, epochs=2, batch_size=options.pop("batch_size", 4),
        data=DataOptions(name="folder", root=str(tmp_path / "images"), unreadable="skip", size=options.pop("size", 16)),
        model=Model(options.pop("model", "resnet10t")), **options,
    )  # fmt: skip
    return made


def test_a_run_whose_batches_are_left_with_one_image(tmp_path):
    """Batch norm has one value per channel there: this ended in torch's error in the midst of the run."""
    data = folder(tmp_path / "images", count=8)
    spoil(tmp_path / "images" / "train", data.train.names[1::5] + data.train.names[2::5] + data.train.names[3::5])
    made = run(tmp_path, size=32)
    made.monitor.every = made.monitor.conditioning = 1
    made.monitor.images = 2
    go(prepare(made))
    assert len(metrics(only_run(tmp_path))) == 2


def test_the_monitors_images_may_be_unreadable(tmp_path):
    data = folder(tmp_path / "images", count=8)
    for split in ("train", "validation"):
        place = tmp_path / "images" / {"train": "train", "validation": "val"}[split]
        spoil(place, getattr(data, split).limited(3).names)
    made = run(tmp_path, size=16)
    made.monitor.images, made.monitor.every, made.monitor.figures = 3, 1, "end"
    go(prepare(made))
    assert len(metrics(only_run(tmp_path))) == 2


@pytest.mark.parametrize("model, size, least", [
    ("resnet10t", 32, 2), ("resnet10t", 64, 1), ("hbnet_small", 16, 1), ("hbnet34", 32, 2), ("resnet18", 33, 1),
    ("mobilenetv3_small_050", 32, 2), ("mobilenetv3_small_050", 64, 1), ("vit_tiny_patch16_224", 224, 1), ("mlp", 8, 1),
])  # fmt: skip
def test_one_image_is_refused_where_torch_refuses_it(model, size, least):
    shape = (3, size, size)
    made = timm.create_model(
        model, num_classes=2, **({"in_chans": 3, "img_size": (size, size)} if model == "mlp" else {})
    )
    assert trainers.least_images(made, shape) == least
    made.train()
    if least == 2:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            made(torch.zeros(1, *shape))
    else:
        made(torch.zeros(1, *shape))


def test_nothing_is_left_of_the_trial():
    model = timm.create_model("resnet10t", num_classes=2)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    trainers.least_images(model, (3, 64, 64))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_batches_of_one_image(tmp_path):
    class_folder(tmp_path / "images", count=12, size=16)
    with pytest.raises(
        ConfigError, match=r"batch_size=1 is too small for model=resnet10t .* give batch_size=2"
    ) as error:
        prepare(run(tmp_path, size=32, batch_size=1))
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()
    prepare(run(tmp_path, size=64, batch_size=1))
    go(prepare(config(tmp_path / "digits", batch_size=1, limit_batches=3, epochs=1)))
    assert len(metrics(only_run(tmp_path / "digits"))) == 1
