"""Data sets, splits, augmentation. MNIST, USPS and CIFAR-10 are real, and found by OPTNET_DATA."""

import os
import pickle
import time
from contextlib import closing

import numpy as np
import pytest
import scipy.io
import torch
from helpers import class_folder, idx, real, write_usps
from PIL import Image
from torchvision import transforms

from optnet import DataError
from optnet.data import load
from optnet.data.images import extensions
from optnet.data.loading import FileLoader, TensorLoader, flip, pad_crop

CPU = torch.device("cpu")


def pixels(loader, **kwargs):
    return torch.cat([images for images, _ in loader.batches(**kwargs)])


def test_digits_splits():
    first, second = load("digits", "", seed=0), load("digits", "", seed=1)
    assert [len(first.train), len(first.validation), len(first.test)] == [1293, 144, 360]
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    everything = torch.cat([first.train.images, first.validation.images, first.test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797
    assert everything.mean() == pytest.approx(first.mean[0], abs=1e-3)
    assert everything.std() == pytest.approx(first.std[0], abs=1e-3)


def test_batches_depend_on_seed_epoch_and_number_alone():
    data = load("digits", "")
    options = {"device": CPU, "training": True, "augment": "crop_flip"}
    one, two = (data.loader("train", 50, seed=3, **options) for _ in range(2))
    assert torch.equal(pixels(one, epoch=4), pixels(two, epoch=4))
    assert torch.equal(pixels(one, epoch=4)[500:], pixels(two, epoch=4, start=10))
    assert not torch.equal(pixels(one, epoch=4), pixels(two, epoch=5))
    assert not torch.equal(pixels(one, epoch=4), pixels(data.loader("train", 50, seed=4, **options), epoch=4))
    labels = torch.cat([labels for _, labels in one.batches()])
    assert torch.equal(labels.bincount(), data.train.labels.bincount())


def test_pad_crop_and_flip_move_every_image_on_its_own():
    images = torch.arange(2000 * 25).view(2000, 1, 5, 5).float() + 1
    cropped = pad_crop(images, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    counts = torch.zeros(3, 3)
    for i in range(3):
        for j in range(3):
            counts[i, j] = (cropped == padded[:, :, i : i + 5, j : j + 5]).flatten(1).all(1).sum()
    assert counts.sum() == 2000 and (counts > 2000 / 9 * 0.7).all()
    mirrored = (flip(images, torch.Generator().manual_seed(0)) == images.flip(3)).flatten(1).all(1).sum()
    assert 900 < mirrored < 1100


def test_eight_bit_images_are_normalised():
    images = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    loader = TensorLoader(images, torch.zeros(3).long(), 2, mean=(0.5,), std=(0.25,), device=CPU)
    assert len(loader) == 2 and (pixels(loader) == 2).all()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_class_folder(tmp_path, split, workers):
    for part in ("train", "test") if split else (".",):
        class_folder(tmp_path / part)
    data = load("folder", str(tmp_path), size=16)
    assert data.classes == ("cat", "dog") and data.shape == (3, 16, 16)
    assert len(data.train) + len(data.validation) + len(data.test) == (48 if split else 24)
    loader = data.loader("train", 4, device=CPU, training=True, augment="crop_flip", workers=workers, seed=1)
    assert torch.equal(pixels(loader, epoch=2)[4:], pixels(loader, epoch=2, start=1))
    for images, labels in data.loader("test", 8, device=CPU).batches():
        assert torch.equal((images.mean((1, 2, 3)) > 0).long(), labels)  # dogs are brighter


def write_fashion_mnist(root, images, labels):
    for part in ("train", "t10k"):
        idx(root / "FashionMNIST" / "raw" / f"{part}-images-idx3-ubyte", images[:, 0])
        idx(root / "FashionMNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)


def write_svhn(root, images, labels):
    (root / "SVHN").mkdir()
    for part in ("train", "test"):
        content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
        scipy.io.savemat(root / "SVHN" / f"{part}_32x32.mat", content)


def write_cifar(root, images, labels, folder, files, key, meta):
    place = root / folder
    place.mkdir()
    for name in files:
        (place / name).write_bytes(pickle.dumps({"data": images.reshape(len(images), -1), key: labels.tolist()}))
    names = [f"class {i}" for i in range(max(labels) + 1)]
    (place / meta[0]).write_bytes(pickle.dumps({meta[1]: names}))


def write_cifar10(root, images, labels):
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    write_cifar(root, images, labels, "cifar-10-batches-py", files, "labels", ("batches.meta", "label_names"))


def write_cifar100(root, images, labels):
    meta = ("meta", "fine_label_names")
    write_cifar(root, images, labels, "cifar-100-python", ["train", "test"], "fine_labels", meta)


@pytest.mark.parametrize("name, write, shape, classes", [
    ("fashion_mnist", write_fashion_mnist, (1, 28, 28), 10), ("usps", write_usps, (1, 16, 16), 10),
    ("svhn", write_svhn, (3, 32, 32), 10), ("cifar10", write_cifar10, (3, 32, 32), 10),
    ("cifar100", write_cifar100, (3, 32, 32), 100),
])  # fmt: skip
def test_torchvisions_layouts(tmp_path, name, write, shape, classes):
    labels = np.arange(classes, dtype=np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (classes, *shape), dtype=np.uint8)
    write(tmp_path, images, labels)
    data = load(name, str(tmp_path), verify=False)
    assert data.shape == shape and len(data.classes) == classes and len(data.mean) == len(data.std) == shape[0]
    assert torch.equal(data.test.images, torch.from_numpy(images))
    assert torch.equal(data.test.labels, torch.from_numpy(labels).long())
    whole = 5 * classes if name == "cifar10" else classes
    assert len(data.train) + len(data.validation) == whole and len(data.validation) == whole // 10
    if name in ("svhn", "cifar10", "cifar100"):
        with pytest.raises(DataError, match=r"data\.verify=false"):
            load(name, str(tmp_path))
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(DataError, match=r"cannot be read from"):
        load(name, str(tmp_path), verify=False)


@pytest.mark.parametrize("classes, size, images", [(10, 32, 100), (100, 16, 150), (1000, 64, 40)])
def test_synthetic_images(classes, size, images):
    one, two = (load("synthetic", "", classes=classes, size=size, images=images, seed=seed) for seed in (0, 1))
    assert one.shape == (3, size, size) and len(one.classes) == classes
    assert len(one.train) + len(one.validation) + len(one.test) == images
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.validation.images, two.validation.images)
    images = one.train.images.flatten(1).float()
    distances = torch.cdist(images, images).fill_diagonal_(float("inf"))
    if classes == 10:  # the nearest other image is one of the same class
        assert torch.equal(one.train.labels[distances.argmin(1)], one.train.labels)


@pytest.mark.parametrize("options", [
    {"images": 10**12}, {"images": 10**9, "size": 64}, {"images": 10**6, "size": 4096}, {"images": 10**15, "size": 4},
    {"images": 10**30, "classes": 100_000},
])  # fmt: skip
def test_synthetic_images_that_do_not_fit_into_memory_are_refused(options):
    with pytest.raises(DataError, match="GiB of memory while they are made, more than half") as error:
        load("synthetic", "", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, files", [
    ("mnist", ["MNIST/raw/train-images-idx3-ubyte"]), ("fashion_mnist", ["FashionMNIST/raw/t10k-labels-idx1-ubyte"]),
    ("usps", ["USPS/usps.bz2", "usps.bz2"]), ("svhn", ["SVHN/train_32x32.mat"]),
    ("cifar10", ["cifar-10-batches-py/data_batch_1"]), ("cifar100", ["cifar-100-python/train"]),
])  # fmt: skip
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
def test_published_files_that_are_pipes_or_devices_are_refused_at_once(tmp_path, name, files, verify, make):
    for number, file in enumerate(files):
        place = tmp_path / str(number) / file
        place.parent.mkdir(parents=True)
        for other in ("usps.t.bz2", "test_32x32.mat", "test", "meta", "train-labels-idx1-ubyte"):
            (place.parent / other).touch()
        make(place)
        with pytest.raises(DataError, match="is not a regular file"):
            load(name, str(tmp_path / str(number)), verify=verify)


class Runs:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("name, folder, files", [
    ("cifar10", "cifar-10-batches-py", ["data_batch_1", "test_batch", "batches.meta"]),
    ("cifar100", "cifar-100-python", ["train", "test", "meta"]),
])  # fmt: skip
def test_nothing_that_is_pickled_in_a_published_file_is_run(tmp_path, name, folder, files):
    labels = np.arange(100 if name == "cifar100" else 10, dtype=np.uint8)
    images = np.zeros((len(labels), 3, 32, 32), dtype=np.uint8)
    {"cifar10": write_cifar10, "cifar100": write_cifar100}[name](tmp_path, images, labels)
    for file in files:
        good = (tmp_path / folder / file).read_bytes()
        (tmp_path / folder / file).write_bytes(pickle.dumps({"data": Runs(tmp_path / "ran"), "labels": []}))
        with pytest.raises(DataError, match=r"it has a (_?io|builtins)\.open"):
            load(name, str(tmp_path), verify=False)
        with pytest.raises(DataError, match=r"data\.verify=false"):
            load(name, str(tmp_path))
        assert not (tmp_path / "ran").exists()
        (tmp_path / folder / file).write_bytes(good)
    assert len(load(name, str(tmp_path), verify=False).test) == len(labels)


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", "usps", "svhn", "cifar10", "cifar100", "imagenet", "folder"]
)
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_made_where_data_is_missing(tmp_path, name, there):
    root = tmp_path if there else tmp_path / "a" / "b"
    with pytest.raises(DataError):
        load(name, str(root))
    assert not list(tmp_path.iterdir())


def test_a_limited_data_set():
    one, two = (load("digits", "", limit=200, seed=seed) for seed in (0, 1))
    assert [len(one.train), len(one.validation), len(one.test)] == [200, 144, 200]
    assert torch.equal(one.test.images, two.test.images) and len(one.test.labels.unique()) == 10


def test_what_is_printed_at_the_start():
    assert str(load("digits", "")) == (
        "digits: 1,293 train, 144 validation, 360 test images of 1x8x8, 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    )
    assert str(load("synthetic", "", classes=50)).endswith("50 classes (0, 1, 2, ..., 49)")


WRITTEN = "jpg JPEG jfif png apng gif webp bmp dib tif tiff ppm pgm pnm jp2 tga ico pcx sgi dds avif qoi"


def test_every_format_that_pillow_opens(tmp_path):
    """As many images are read as there are files; what is no image by its name is none."""
    (tmp_path / "cat").mkdir()
    grey = Image.fromarray(np.full((16, 16), 200, dtype=np.uint8))
    written = [kind for kind in WRITTEN.split() if f".{kind.lower()}" in extensions()]
    assert len(written) >= 15
    for kind in written:
        (grey if kind == "pgm" else grey.convert("RGB")).save(tmp_path / "cat" / f"image.{kind}")
    (tmp_path / "dog").mkdir()
    grey.save(tmp_path / "dog" / "other.png")
    for name in ("notes.txt", "labels.json", "._image.jpg", "page.eps", "film.mpg", "table.h5"):
        (tmp_path / "cat" / name).write_text("no image")
    data = load("folder", str(tmp_path), size=16)
    parts = data.train, data.validation, data.test
    assert sum(map(len, parts)) == len(written) + 1
    for split in ("train", "validation", "test"):
        seen = pixels(data.loader(split, 4, device=CPU)) * torch.tensor(data.std).view(3, 1, 1)
        assert torch.allclose(seen + torch.tensor(data.mean).view(3, 1, 1), torch.tensor(200 / 255), atol=0.03)


def test_bad_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    class_folder(tmp_path / "two" / "train")
    class_folder(tmp_path / "two" / "test", classes=("cat", "cow"))
    requests = [("nonsense", ""), ("mnist", str(tmp_path)), ("cifar10", str(tmp_path))]
    requests += [("folder", str(tmp_path / name)) for name in ("none", "empty", "hollow", "two")]
    for name, root in requests:
        with pytest.raises(DataError) as error:
            load(name, root)
        assert "\n" not in str(error.value)


@real
def test_imagenets_images():
    data = load("imagenet", os.path.join(os.environ["OPTNET_DATA"], "imagenet-sample", "val"), size=224, crop=0.875)
    assert len(data.classes) == 1000 and data.classes[1] == "n01443537" and data.shape == (3, 224, 224)
    images, _ = next(data.loader("test", 4, device=CPU).batches())
    assert images.shape == (4, 3, 224, 224) and images.mean().abs() < 1.5
    options = {"device": CPU, "training": True, "augment": "zoom_flip"}
    one, two = (next(data.loader("train", 2, seed=seed, **options).batches())[0] for seed in (0, 1))
    assert one.shape == (2, 3, 224, 224) and not torch.equal(one, two)
    with pytest.raises(DataError, match="files"):
        load("digits", "").loader("train", 2, **options)


@real
@pytest.mark.parametrize("name, shape, counts, third", [
    ("mnist", (1, 28, 28), [54000, 6000, 10000], "3"),
    ("usps", (1, 16, 16), [6562, 729, 2007], "3"),
    ("cifar10", (3, 32, 32), [45000, 5000, 10000], "cat"),
])  # fmt: skip
@pytest.mark.sampled(1)
def test_published_sets_as_they_are(name, shape, counts, third):
    data = load(name, os.environ["OPTNET_DATA"], verify=False)
    assert [len(data.train), len(data.validation), len(data.test)] == counts
    assert data.shape == shape and data.classes[3] == third
    images = torch.cat([data.train.images, data.validation.images]).float() / 255
    assert images.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=2e-3)
    assert images.transpose(0, 1).flatten(1).std(1).tolist() == pytest.approx(data.std, abs=2e-3)


@real
def test_a_wrong_checksum_is_refused():
    with pytest.raises(DataError, match=r"data\.verify=false"):
        load("cifar10", os.environ["OPTNET_DATA"])


class OneByOne(torch.utils.data.Dataset):
    """CIFAR-10's images one by one, as torchvision's data set gives them out."""

    def __init__(self, images, labels):
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index].squeeze()), int(self.labels[index])


def per_image(images, labels, batch_size, padding, **options):
    """The usual way: each image is padded, cropped, mirrored and normalised on its own."""
    steps = [
        transforms.RandomCrop(images.shape[-1], padding=padding), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize((0.5,), (0.25,)),
    ]  # fmt: skip
    return FileLoader(
        OneByOne(images, labels), transforms.Compose(steps), batch_size, device=CPU, shuffle=True, **options
    )


def test_images_on_the_device_are_augmented_as_one_by_one():
    """Every image's place and mirror image are equally likely, and independent of other images', both ways."""
    images = (torch.arange(16).view(1, 1, 4, 4) * 10 + 1).byte().repeat(600, 1, 1, 1)
    labels = torch.zeros(600, dtype=torch.long)
    options = {"mean": (0.5,), "std": (0.25,), "device": CPU, "shuffle": True, "padding": 1, "mirror": True}
    ways = TensorLoader(images, labels, 100, **options), per_image(images, labels, 100, 1)
    seen = []
    for loader in ways:
        images = torch.cat([pixels(loader, epoch=epoch) for epoch in range(3)]).flatten(1)
        kinds, which = images.unique(dim=0, return_inverse=True)
        assert len(kinds) == 18  # 3 x 3 places, mirrored or not
        counts = which.bincount().double()
        assert float(((counts - 100) ** 2 / 100).sum()) < 40.8  # chi-squared of 17 degrees, 0.1 %
        pairs = torch.bincount(which[0::2] * 18 + which[1::2], minlength=324).double()
        assert float(((pairs - 900 / 324) ** 2 / (900 / 324)).sum()) < 406  # of 323 degrees, 0.1 %
        seen.append(kinds)
    torch.testing.assert_close(seen[0], seen[1])


@real
def test_cifar10_on_the_device_is_ten_times_as_fast_as_one_by_one():
    """Crop and mirror, batches of 128, no workers on either side; the two are timed in turn."""
    data = load("cifar10", os.environ["OPTNET_DATA"], verify=False)
    fast = data.loader("train", 128, device=CPU, training=True, augment="crop_flip")
    slow = per_image(data.train.images, data.train.labels, 128, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(loader, batches):
        began = time.perf_counter()
        with closing(loader.batches()) as made:
            for _ in range(batches):
                next(made)
        return (time.perf_counter() - began) / batches

    try:
        ratios = sorted(seconds(slow, 5) / seconds(fast, 50) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    print(f"per-image / on the device: {ratios}")
    assert ratios[2] >= 10
