"""One image in a file as upright 8-bit RGB: a rule for each mode, or a reason why not. Knows no data set."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from optnet.errors import DataError, printable, reason

UNREAD = ("EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow knows, but decodes by another program or not at all."""
SIXTEEN_BITS = ("PNG", "PPM", "TIFF", "JPEG2000", None)
"""Formats whose 16-bit grey values have the range 0..65535; None: an image that was not read from a file."""


def read_image(path: str) -> Image.Image:
    """The image in a file as upright 8-bit RGB. See ``as_rgb``. Of several frames the first one.

    Raises:
        DataError: the file is not a regular one, is damaged, or its values have no known range.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait, to open a device may do anything
            raise ValueError("it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about images that are large or whose metadata are damaged
            # not by its name: then Pillow maps some TIFFs into memory, and turns those wrongly
            with open(path, "rb") as file, Image.open(file, formats=formats()) as opened:
                return as_rgb(opened)
    except UnidentifiedImageError:
        raise DataError(f"{printable(str(path))} cannot be read as an image (its format is unknown)") from None
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(f"{printable(str(path))} cannot be read as an image ({reason(error)})") from None


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in UNREAD)


@cache
def extensions() -> frozenset[str]:
    """The lower-case extensions of these formats, like ``.jpg``."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in formats())


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of Pillow as 8-bit RGB, turned and mirrored as its EXIF orientation says.

    By its mode:

    - 1, L: grey. LA, La, RGBA, RGBa, RGBX: the last channel is left out; transparent pixels keep the colour that is
      stored for them. P, PA: the palette's colours. YCbCr, HSV: as Pillow converts them.
    - CMYK: R = 255 (1 - C) (1 - K), and so on. LAB: CIE L*a*b* (D50) to sRGB. Colour profiles are not applied.
    - I;16 and I of PNG, PPM, TIFF and JPEG 2000 (16 bits of grey): the 8 high bits. TIFF may have 12 bits.
    - F: 255 times the values, which must lie in 0..1.
    - All others are refused: other integers (32 bits, or with a sign), whose range no file says.

    Raises:
        ValueError: there is no rule for such an image.
    """
    kind, tags = image.format, getattr(image, "tag_v2", {})
    upright = _upright(image)
    upright.info = {}  # like a transparent colour, of which Pillow warns
    mode = "I;16" if upright.mode.startswith("I;16") else upright.mode
    if mode not in RULES:
        raise ValueError(f"there is no rule for images of mode {mode}")
    return RULES[mode](upright, kind, tags)


def _upright(image: Image.Image) -> Image.Image:
    """A copy that is turned as it is to be seen; as it is stored if its metadata are damaged."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image.copy()


def _converted(*modes: str) -> Callable[..., Image.Image]:
    """By Pillow's own conversions, one after the other."""

    def convert(image: Image.Image, kind: str | None, tags: Any) -> Image.Image:
        for mode in modes:
            image = image.convert(mode)
        return image

    return convert


def _from_lab(image: Image.Image, kind: str | None, tags: Any) -> Image.Image:
    made = ImageCms.applyTransform(image, _lab_to_srgb())
    assert made is not None
    return made


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")


def _from_integers(image: Image.Image, kind: str | None, tags: Any) -> Image.Image:
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if kind not in SIXTEEN_BITS or (image.mode == "I" and kind not in ("PNG", "PPM")) or bits not in (12, 16):
        what = "integers with a sign or of 32 bits" if image.mode == "I" else "integers of 16 bits"
        raise ValueError(f"it has {what}, whose range {kind or 'it'} does not say; save it with 8 bits, or as PNG")
    high = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return _grey(255 - high if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else high)


def _from_floats(image: Image.Image, kind: str | None, tags: Any) -> Image.Image:
    values = np.rint(np.asarray(image, dtype=np.float32) * 255)
    if not ((values >= 0) & (values <= 255)).all():  # nan neither
        low, high = (values.min() / 255, values.max() / 255)
        raise ValueError(f"its values are numbers in {low:.4g} .. {high:.4g}, which must lie in 0 .. 1; scale them")
    levels = values.astype(np.uint8)
    return _grey(255 - levels if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else levels)


def _grey(levels: np.ndarray[Any, Any]) -> Image.Image:
    return Image.fromarray(levels).convert("RGB")


BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF, and the value of the second with which small values are bright. Pillow heeds that for 8 bits alone."""
RULES: dict[str, Callable[..., Image.Image]] = {
    **dict.fromkeys(("1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"), _converted("RGB")),
    **dict.fromkeys(("P", "PA", "RGBa"), _converted("RGBA", "RGB")),
    "La": _converted("LA", "RGB"),
    "LAB": _from_lab,
    **dict.fromkeys(("I", "I;16"), _from_integers),
    "F": _from_floats,
}
"""(image, its file's format, its TIFF tags) -> 8-bit RGB, by Pillow's mode."""
