"""Data sets that need no files: scikit-learn's digits, and synthetic images of any size."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from optnet.data.examples import Examples, Source
from optnet.errors import DataError

PEAK = 13
"""Bytes that a synthetic value takes while it is made: three times float32, and uint8."""
DIGITS = tuple(map(str, range(10)))


def digits() -> Source:
    """The 1,797 digits of 8x8 pixels that come with scikit-learn. In a fixed order, every fifth one is a test image."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    everything = Examples(images, torch.from_numpy(found.target).long())
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
    test, train = everything.select(order[::5]), everything.select([i for k, i in enumerate(order) if k % 5])
    return Source(DIGITS, (0.305,), (0.376,), train, test)


def synthetic(size: int, classes: int, images: int) -> Source:
    """Colour images of ``size`` x ``size`` pixels. Each class is one pattern of 4x4 random colours; noise is added.

    Use it to try a recipe without its data. The images are the same in every run. A fifth of them is the test split.

    Raises:
        DataError: they need more than half of this machine's memory.
    """
    needed, there = PEAK * images * 3 * size**2, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there / 2:
        raise DataError(
            f"data.images={images} of data.size={size} need {needed / 2**30:,.1f} GiB of memory while they are made, "
            f"more than half of the {there / 2**30:,.1f} GiB here; give fewer or smaller ones"
        )
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    patterns = torch.rand(classes, 3, 4, 4, generator=generator)[labels]
    noisy = F.interpolate(patterns, size=(size, size), mode="bilinear")
    noisy += 0.1 * torch.randn(noisy.shape, generator=generator)
    test, train = Examples((255 * noisy.clamp(0, 1)).byte(), labels).split(0.2, "test", seed=0)
    return Source(tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3, train, test, exact=False)
