"""Batches: from tensors in memory, or from files. Knows no data set by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]


def _generator(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers, so that a batch can be made again without those before it."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def _count(images: int, batch_size: int, training: bool) -> int:
    """How many batches; training leaves out a last batch of a single picture, which batch norm cannot take."""
    lone = training and batch_size > 1 and images % batch_size == 1
    return max(1, -(-images // batch_size) - lone)


def pad_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Zero-pads by ``padding`` pixels and crops each image (n, c, h, w) back to its size at a place of its own."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = (torch.randint(2 * padding + 1, (n, 1), generator=generator) for _ in range(2))
    rows = (top + torch.arange(height))[:, None, :, None].to(images.device)
    columns = (left + torch.arange(width))[:, None, None, :].to(images.device)
    index = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[index, channel, rows, columns]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image (n, c, h, w) with probability 1/2."""
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class TensorLoader:
    """Batches of images held in memory, on the device, augmented there.

    Yields ``(images, labels)``: float32 (batch, c, h, w), normalised, and int64 (batch,). With ``shuffle`` the order
    and the augmentation of batch b in epoch e depend on (seed, e, b) alone; ``start`` skips batches exactly.

    Args:
        images: uint8 (n, c, h, w) in 0..255, or float32 in 0..1.
        padding, mirror: the augmentation: pad-and-crop by so many pixels, and random mirroring.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        shuffle: bool = False,
        padding: int = 0,
        mirror: bool = False,
        seed: int = 0,
    ) -> None:
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.shuffle = shuffle
        self.padding = padding
        self.mirror = mirror
        self.seed = seed

    def __len__(self) -> int:
        return _count(len(self.labels), self.batch_size, self.shuffle)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        order = torch.arange(len(self.labels))
        if self.shuffle:
            order = torch.randperm(len(order), generator=_generator(self.seed, epoch))
        for b in range(start, len(self)):
            index = order[b * self.batch_size : (b + 1) * self.batch_size].to(self.labels.device)
            images = self.images[index]
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            generator = _generator(self.seed, epoch, b)
            if self.padding:
                images = pad_crop(images, self.padding, generator)
            if self.mirror:
                images = flip(images, generator)
            yield (images - self.mean) / self.std, self.labels[index]


class _Seeded(Dataset[Any]):
    """Pictures whose random transform depends on (seed, epoch, index) alone."""

    def __init__(self, dataset: Dataset[Any], transform: Callable[[Any], Tensor], seed: int, epoch: int) -> None:
        self.dataset, self.transform, self.seed, self.epoch = dataset, transform, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_generator(self.seed, self.epoch, index).initial_seed())
            return self.transform(image), label


class FileLoader:
    """Batches of pictures read and transformed by worker processes; same contract as ``TensorLoader``."""

    def __init__(
        self,
        dataset: Dataset[Any],
        transform: Callable[[Any], Tensor],
        batch_size: int,
        *,
        device: torch.device,
        shuffle: bool = False,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        self.dataset, self.transform, self.batch_size = dataset, transform, batch_size
        self.device, self.shuffle, self.workers, self.seed = device, shuffle, workers, seed

    def __len__(self) -> int:
        return _count(len(self.dataset), self.batch_size, self.shuffle)  # type: ignore[arg-type]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        n = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(n, generator=_generator(self.seed, epoch)) if self.shuffle else torch.arange(n)
        chosen = order[start * self.batch_size : len(self) * self.batch_size].tolist()
        loader = DataLoader(
            _Seeded(self.dataset, self.transform, self.seed, epoch), self.batch_size, num_workers=self.workers,
            sampler=chosen, pin_memory=self.device.type == "cuda", generator=_generator(self.seed, epoch),
        )  # fmt: skip
        for images, labels in loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


Loader = TensorLoader | FileLoader
