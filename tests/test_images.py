"""One image in a file: every mode in every format, every orientation; what is refused."""

import os
import socket
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from optnet import DataError
from optnet.data import load
from optnet.data.images import RULES, as_rgb, read_image

SIZE = (48, 32)


def uniform(mode, value):
    return Image.new(mode, SIZE, value)


COLOURS = {
    "1": (255, (255, 255, 255)),
    "L": (200, (200, 200, 200)),
    "LA": ((200, 7), (200, 200, 200)),
    "P": (1, (0, 200, 100)),
    "PA": ((1, 7), (0, 200, 100)),
    "RGB": ((10, 100, 200), (10, 100, 200)),
    "RGBA": ((10, 100, 200, 7), (10, 100, 200)),
    "RGBX": ((10, 100, 200, 7), (10, 100, 200)),
    "CMYK": ((245, 155, 55, 0), (10, 100, 200)),
    "YCbCr": ((76, 85, 255), (254, 0, 0)),
    "LAB": ((138, 209, 198), (253, 2, 2)),  # L* = 54.1, a* = 81, b* = 70: nearly red, which has 54.3, 80.8, 69.9 (D50)
    "I;16": (200 * 256 + 255, (200, 200, 200)),
    "I;16B": (200 * 256 + 255, (200, 200, 200)),
    "I;16L": (200 * 256 + 255, (200, 200, 200)),
    "F": (0.5, (128, 128, 128)),
}
"""A value of each mode that files have, and the same in 8-bit RGB. Only the high bits of 16 count."""
WRITTEN = {
    "png": "1 L LA P RGB RGBA I;16 I;16B",
    "tiff": "1 L LA P PA RGB RGBA RGBX CMYK YCbCr LAB I;16 I;16B I;16L F",
    "jpg": "1 L RGB RGBX CMYK YCbCr",
    "webp": "1 L LA P PA RGB RGBA RGBX YCbCr",
    "gif": "1 L P RGB",
    "jp2": "L LA RGB RGBA YCbCr I;16",
    "pgm": "1 L RGB I;16 F",
    "bmp": "1 L P RGB",
}
"""The modes that are written to each format as they are, or as others of the same colours."""


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind, modes in WRITTEN.items() for mode in modes.split()])
def test_every_mode_in_every_format(tmp_path, kind, mode):
    value, wanted = COLOURS[mode]
    image = uniform(mode, value)
    if mode in ("P", "PA"):
        image.putpalette([9, 9, 9, 0, 200, 100])
    image.save(tmp_path / f"a.{kind}", **({"quality": 100} if kind in ("jpg", "webp") else {}))
    read = np.asarray(read_image(str(tmp_path / f"a.{kind}"))).astype(int)
    assert read.shape == (32, 48, 3)
    off = np.abs(read - np.array(wanted)).max()
    assert off <= (3 if kind in ("jpg", "webp") or mode in ("YCbCr", "LAB", "CMYK") else 0)


@pytest.mark.parametrize("mode", RULES)
def test_images_that_come_from_no_file(mode):
    values = COLOURS | {"HSV": ((0, 255, 255), (255, 0, 0)), "La": ((100, 128), (199, 199, 199))}
    values |= {"RGBa": ((5, 50, 100, 128), (9, 99, 199))}
    if mode == "I":
        with pytest.raises(ValueError, match="range"):
            as_rgb(uniform(mode, 200))
        return
    value, wanted = values[mode]
    image = uniform(mode, value)
    if mode in ("P", "PA"):
        image.putpalette([9, 9, 9, 0, 200, 100])
    found = as_rgb(image)
    assert found.mode == "RGB" and np.abs(np.array(found.getpixel((3, 3))) - np.array(wanted)).max() <= 3


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_of_grey_are_scaled(tmp_path, kind):
    values = np.linspace(0, 2**16 - 1, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    read = np.asarray(read_image(str(tmp_path / f"a.{kind}")))
    assert read.shape == (16, 16, 3) and (read == (values >> 8)[..., None]).all()


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_palettes_with_transparency(tmp_path, kind):
    """Without Pillow's warning, which is an error here, and in the palette's colours."""
    drawn = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 4, mode="P")
    drawn.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    drawn.save(tmp_path / f"a.{kind}", transparency=bytes([0, 128, 255, 255]) if kind == "png" else 1)
    read = np.asarray(read_image(str(tmp_path / f"a.{kind}")))
    assert read[0, :4].tolist() == [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]]


def tiff(values, bits, kind, photometric=1, order="<"):
    """An uncompressed grey TIFF; ``kind`` is 1 for natural numbers, 2 with a sign, 3 for floating point."""
    packed = pack_twelve(values) if bits == 12 else values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 134),
            (277, 3, 1), (278, 4, height), (279, 4, len(packed)), (339, 3, kind)]  # fmt: skip
    body = struct.pack(f"{order}H", len(tags))
    for tag, size, value in tags:
        entry = ("HH", value, 0) if size == 3 else ("I", value)
        body += struct.pack(f"{order}HHI{entry[0]}", tag, size, 1, *entry[1:])
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return (head + body + bytes(4)).ljust(134, b"\0") + packed


def pack_twelve(values):
    flat = values.reshape(-1, 2).astype(int)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in flat)


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
GREY = {
    "12 bits": ((RAMP * 4095).astype(np.uint16), 12, 1, lambda v: v >> 4),
    "16 bits": ((RAMP * 65535).astype(np.uint16), 16, 1, lambda v: v >> 8),
    "floats": (RAMP.astype(np.float32), 32, 3, lambda v: np.rint(v * 255)),
    "dark floats": ((RAMP / 4).astype(np.float32), 32, 3, lambda v: np.rint(v * 255)),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("case", GREY)
def test_grey_tiffs(tmp_path, case, photometric, order):
    """Photometric 0 means that 0 is white."""
    values, bits, kind, levels = GREY[case]
    (tmp_path / "a.tif").write_bytes(tiff(values, bits, kind, photometric, order))
    try:
        with Image.open(tmp_path / "a.tif"):
            pass
    except OSError:
        with pytest.raises(DataError, match="cannot be read"):
            read_image(str(tmp_path / "a.tif"))
        return
    wanted = levels(values).astype(np.uint8)
    read = np.asarray(read_image(str(tmp_path / "a.tif")))
    assert (read == (wanted if photometric else 255 - wanted)[..., None]).all()


@pytest.mark.parametrize("values, bits, kind, said", [
    (RAMP.astype(np.float32) * 255, 32, 3, r"numbers in 0 \.\. 255, which must lie in 0 \.\. 1"),
    (RAMP.astype(np.float32) - 0.5, 32, 3, r"numbers in -0\.5\d* \.\. 0\.5"),
    (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), 32, 3, "must lie in 0"),
    (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), 32, 3, "must lie in 0"),
    ((RAMP * 1000).astype(np.uint32), 32, 1, "range TIFF does not say"),
    ((RAMP * 2**31).astype(np.uint32), 32, 1, "range TIFF does not say"),
    ((RAMP * 1000).astype(np.int32), 32, 2, "range TIFF does not say"),
    ((RAMP * 1000).astype(np.int16), 16, 2, "range TIFF does not say"),
])  # fmt: skip
def test_values_without_a_known_range_are_refused(tmp_path, values, bits, kind, said):
    (tmp_path / "a.tif").write_bytes(tiff(values, bits, kind))
    with pytest.raises(DataError, match=said) as error:
        read_image(str(tmp_path / "a.tif"))
    assert "\n" not in str(error.value)


def drawing():
    """Four quadrants of different colours, 48 wide and 32 high."""
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24] = (220, 30, 30), (30, 220, 30), (30, 30, 220)
    return image


STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],  # its first row is the right side, its first column the top
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],  # its first row is the left side, its first column the bottom
}
"""How the upright image is stored with each orientation (EXIF 2.32, tag 274)."""
CARRIERS = ["jpg", "png", "webp", "tiff", "tif", "mpo", "avif"]


OPTIONS = {"png": {}, "tiff": {}, "tif": {"compression": "tiff_lzw"}}


def stored(place, kind, orientation, image=None):
    turned = Image.fromarray(np.ascontiguousarray(STORED[orientation](drawing() if image is None else image)))
    exif = Image.Exif()
    exif[274] = orientation
    file = place / f"a{orientation}.{kind}"
    turned.save(file, exif=exif, **OPTIONS.get(kind, {"quality": 95}))
    return file


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_in_every_format_that_has_one(tmp_path, kind, orientation):
    if kind == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("Pillow has no AVIF here")
    read = np.asarray(read_image(str(stored(tmp_path, kind, orientation)))).astype(int)
    assert read.shape == (32, 48, 3)
    for row, column in ((4, 6), (4, 42), (28, 6), (28, 42)):
        assert np.abs(read[row, column] - drawing()[row, column]).max() < 30


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "F", "L", "LA", "CMYK", "1"])
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_every_mode_is_turned(tmp_path, mode, orientation):
    """A bright upper half stays one."""
    upright = np.zeros((32, 48), dtype=np.uint8)
    upright[:16] = 255
    turned = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    if mode.startswith("I;16"):
        wide = np.asarray(turned).astype(">u2" if mode == "I;16B" else "<u2") * 257
        turned = Image.frombytes(mode, turned.size, wide.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    else:
        turned = turned.convert("RGB" if mode == "CMYK" else mode).convert(mode)
        turned = turned.point(lambda v: v * (1 / 255) + 0) if mode == "F" else turned
    exif = Image.Exif()
    exif[274] = orientation
    turned.save(tmp_path / "a.tiff", exif=exif)
    read = np.asarray(read_image(str(tmp_path / "a.tiff")))
    assert (read == upright[..., None]).all()


@pytest.mark.parametrize("value", [0, 9, 65535, "six", (6, 6)])
def test_an_orientation_that_is_none_changes_nothing(tmp_path, value):
    exif = Image.Exif()
    exif[274] = value
    try:
        Image.fromarray(drawing()).save(tmp_path / "a.png", exif=exif)
    except (struct.error, UserWarning):
        pytest.skip("Pillow cannot write it")
    assert (np.asarray(read_image(str(tmp_path / "a.png"))) == drawing()).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_damaged_metadata_do_not_hide_an_image(tmp_path, exif):
    Image.fromarray(drawing()).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    data = exif.removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    assert (np.asarray(read_image(str(tmp_path / "a.png"))) == drawing()).all()


def test_a_data_set_has_its_images_upright(tmp_path):
    for label in ("cat", "dog"):
        for part in ("train", "val", "test"):
            (tmp_path / part / label).mkdir(parents=True)
            for orientation in STORED:
                stored(tmp_path / part / label, "png", orientation, drawing()[:, 8:40])
    data = load("folder", str(tmp_path), size=32)
    images = torch.cat([images for images, _ in data.loader("test", 8, device=torch.device("cpu")).batches()])
    upright = transforms.ToTensor()(np.ascontiguousarray(drawing()[:, 8:40]))
    wanted = transforms.Normalize(data.mean, data.std)(upright)
    assert len(images) == 16 and all(torch.allclose(image, wanted, atol=1e-6) for image in images)


def pipe(file):
    os.mkfifo(file)


def listening(file):
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(file))
    made.close()


def device(file):
    file.symlink_to("/dev/zero")


def folder(file):
    file.mkdir()


def dangling(file):
    file.symlink_to(file.parent / "nothing")


def loop(file):
    file.symlink_to(file)


def empty(file):
    file.touch()


def postscript(file):
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def bomb(file):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))


@pytest.mark.parametrize("make", [pipe, listening, device, folder, dangling, loop, empty, postscript, bomb])
@pytest.mark.parametrize("name", ["a.png", "a\nb.jpg", os.fsdecode(b"caf\xe9.jpg")])
def test_what_is_no_image_is_refused_at_once_in_one_line(tmp_path, make, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    raised = []

    def read():
        try:
            read_image(name)
        except DataError as error:
            raised.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    (said,) = raised
    assert said.isprintable() and "cannot be read as an image" in said


def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns of more, and refuses twice as many
    Image.new("1", (30, 50)).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert read_image(str(tmp_path / "a.png")).size == (30, 50)
    assert not seen
