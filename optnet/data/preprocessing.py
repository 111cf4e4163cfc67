"""What is done to an image before a network sees it in evaluation. Reads no files and makes no batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from optnet.data.images import as_rgb
from optnet.errors import DataError
from optnet.options import check, choice, number

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of an image with so many channels."""
_OF_THE_WEIGHTS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load")
"""The entries of timm's ``pretrained_cfg`` that say where published weights are."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, division by 255, ``(image - mean) / std``: what timm's evaluation does.

    Attributes:
        size: height and width of the result, in pixels.
        mean, std: of each channel, in 0..1; there are as many as the result has channels.
        crop: the side of the centre crop, as a fraction of the short side.
        interpolation: of the resizing, one of ``INTERPOLATIONS``.
        crop_mode: ``center``: the short side is resized; ``squash``: both sides; ``border``: the long side, and the
            rest is filled.

    Raises:
        DataError: a value is out of range.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = number(1.0, high=1, above=0)
    interpolation: str = choice("bilinear", *INTERPOLATIONS)
    crop_mode: str = choice("center", *CROP_MODES)

    def __post_init__(self) -> None:
        check(self, error=DataError)
        if len(self.size) != 2 or not all(type(side) is int and 1 <= side <= 2**16 for side in self.size):
            raise DataError(f"size={_shown(self.size)} must be a height and a width in pixels, like [64, 64]")
        for name, values, low in (("mean", self.mean, -math.inf), ("std", self.std, 0.0)):
            if not values or not all(_finite(value) and value > low for value in values):
                more = " greater than 0" if low == 0 else ""
                raise DataError(f"{name}={_shown(values)} must be one number{more} for each channel, like [0.5]")
        if len(self.mean) != len(self.std):
            raise DataError(f"mean={_shown(self.mean)} and std={_shown(self.std)} must have as many numbers")

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        mode = "" if self.crop_mode == "center" else f" {self.crop_mode}"
        size = "x".join(map(str, self.shape))
        return f"{size}, crop {self.crop:g}{mode}, {self.interpolation}, mean {mean}, std {std}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the result."""
        return len(self.mean), *self.size

    def transform(self, shaping: Sequence[Any] | None = None, colouring: Sequence[Any] = ()) -> transforms.Compose:
        """From a Pillow image to a float32 tensor (channels, height, width).

        Args:
            shaping: what comes in the place of resizing and cropping.
            colouring: what is done to the tensor in 0..1, before it is normalised.

        Raises:
            DataError: no mode of Pillow has so many channels.
        """
        steps = self.shaping() if shaping is None else list(shaping)
        normalise = transforms.Normalize(self.mean, self.std)
        return transforms.Compose([InMode(self._mode()), *steps, transforms.ToTensor(), *colouring, normalise])

    def shaping(self) -> list[Any]:
        """Resizing and cropping alone, as timm does it."""
        made = create_transform(
            self.shape, interpolation=self.interpolation, crop_pct=self.crop, crop_mode=self.crop_mode,
            mean=self.mean, std=self.std,
        )  # fmt: skip
        return list(made.transforms[:-2])

    def shaped(self, images: Tensor) -> Tensor:
        """Images in memory, uint8 (n, channels, height, width) or float32 in 0..1, in the right size as uint8.

        They stay as they are if nothing has to be done.
        """
        if tuple(images.shape[2:]) == self.size and self.crop == 1:
            return images
        images = images if images.dtype == torch.uint8 else (255 * images).round().byte()
        shape = transforms.Compose(self.shaping())
        return torch.stack([pil_to_tensor(shape(to_pil_image(image, self._mode()))) for image in images])

    def _mode(self) -> str:
        if (channels := len(self.mean)) not in MODES:
            raise DataError(f"pictures have 1 channel or 3, not {channels}")
        return MODES[channels]

    def cfg(self) -> dict[str, Any]:
        """The same in the words of timm's ``pretrained_cfg``."""
        return {
            "input_size": self.shape, "test_input_size": None, "crop_pct": self.crop, "test_crop_pct": None,
            "crop_mode": self.crop_mode, "interpolation": self.interpolation, "mean": self.mean, "std": self.std,
        }  # fmt: skip

    def describe(self, model: nn.Module, classes: Sequence[str]) -> None:
        """Lets a model say in its ``pretrained_cfg``, as timm's models do, what images and classes it has.

        Where published weights of its architecture are is left out: the model has others.
        """
        before: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        kept = {key: value for key, value in before.items() if key not in _OF_THE_WEIGHTS}
        said: Any = {**kept, **self.cfg(), "num_classes": len(classes), "label_names": tuple(classes)}
        model.pretrained_cfg = model.default_cfg = said

    @classmethod
    def of(cls, model: nn.Module, test: bool = True) -> Preprocessing:
        """That of a model, as its ``pretrained_cfg`` says it; what that does not say is timm's default.

        Args:
            test: take the size and crop that are said to score best, where they are others than those of the training.

        Raises:
            DataError: timm has no such preprocessing.
        """
        found = resolve_data_config({}, model=model, use_test_size=test)
        _, height, width = found["input_size"]
        return cls(
            (height, width), tuple(found["mean"]), tuple(found["std"]), float(found["crop_pct"]),
            found["interpolation"], found["crop_mode"],
        )  # fmt: skip

    def changed(self, **given: Any) -> Preprocessing:
        """The same with other values. Raises: DataError: there are too many or too few channels."""
        made = replace(self, **given)
        if len(made.mean) != len(self.mean):
            raise DataError(f"mean={_shown(made.mean)} must have {len(self.mean)} numbers, one for each channel")
        return made


class InMode:
    """A picture, upright, in a mode of Pillow; see ``images.as_rgb``. Raises: DataError: its mode has no rule."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __call__(self, picture: Image.Image) -> Image.Image:
        if not isinstance(picture, Image.Image):
            raise DataError(f"a picture must be an image of Pillow, not {type(picture).__name__}")
        if picture.mode != "RGB" or picture.format is not None or picture.info:  # not what ``read_image`` returns
            try:
                picture = as_rgb(picture)
            except ValueError as error:
                raise DataError(f"the picture cannot be used: {error}") from None
        return picture if picture.mode == self.mode else picture.convert(self.mode)

    def __repr__(self) -> str:
        return f"InMode({self.mode})"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(values: Any) -> str:
    return str(list(values))[:80]
