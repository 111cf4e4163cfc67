"""What training images in files go through: crops, flips and changes of colour. Reads no files, makes no batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms

from optnet.data.preprocessing import Preprocessing
from optnet.errors import DataError

AUGMENTATIONS = ("none", "shift", "crop_flip", "zoom_flip")
"""The augmentations of training images. ``none``: no augmentation. ``shift``: pad by 1 pixel and crop at random.
``crop_flip``: pad by 4 pixels, crop at random, flip at random; images in files get a random resized crop of at least
0.35 of the area and a flip instead. ``zoom_flip``, only for images in files: the same with at least 0.08 of the area,
as is usual for ImageNet (Szegedy et al. 2015)."""
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Of the covariance of ImageNet's red, green and blue in 0..1, a column each (fb.resnet.torch, imagenet.lua)."""


@dataclass(frozen=True)
class Lighting:
    """``image + V (lambda * alpha)``, alpha ~ N(0, std^2) anew for each image (3, height, width) in 0..1.

    V and lambda are the eigenvectors and eigenvalues of the colours. Krizhevsky, Sutskever, Hinton 2012, section 4.1.
    """

    std: float

    def __call__(self, image: Tensor) -> Tensor:
        alpha = torch.randn(3) * self.std
        return image + (torch.tensor(EIGENVECTORS) @ (torch.tensor(EIGENVALUES) * alpha))[:, None, None]


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images.

    Attributes:
        name: one of ``AUGMENTATIONS``; with ``none`` the colours stay, too.
        color_jitter: brightness, contrast and saturation, in random order, are multiplied by factors from
            U(1 - color_jitter, 1 + color_jitter), as timm does it (Howard 2013). Values are kept in 0..255.
        lighting: the deviation of ``Lighting``.
    """

    name: str = "none"
    color_jitter: float = 0.0
    lighting: float = 0.0

    @property
    def colours(self) -> dict[str, float]:
        """The changes of colour that are made, by the names of their options."""
        asked = {"color_jitter": self.color_jitter, "lighting": self.lighting}
        return {} if self.name == "none" else {name: value for name, value in asked.items() if value}

    def transform(self, own: Preprocessing) -> Callable[[Any], Tensor]:
        """From a Pillow image to a normalised tensor (channels, height, width).

        Raises:
            DataError: lighting needs three channels.
        """
        if self.name == "none":
            return own.transform()
        if self.colours and len(own.mean) != 3:
            key = next(iter(self.colours))
            raise DataError(f"data.{key}={self.colours[key]:g} is for colour images; give data.{key}=0")
        jitter = [transforms.ColorJitter(*[self.color_jitter] * 3)] if self.color_jitter else []
        lighting = [Lighting(self.lighting)] if self.lighting else []
        return own.transform([*self._shaping(own), *jitter], lighting)

    def _shaping(self, own: Preprocessing) -> list[Any]:
        if self.name == "shift":
            return [*own.shaping(), transforms.RandomCrop(own.size, padding=1)]
        area = 0.35 if self.name == "crop_flip" else 0.08
        mode = transforms.InterpolationMode(own.interpolation)
        crop = transforms.RandomResizedCrop(own.size, scale=(area, 1.0), interpolation=mode)
        return [crop, transforms.RandomHorizontalFlip()]
