"""Batches: from tensors in memory, or from files. Knows no data set by name."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from optnet.data.workers import FORK, started
from optnet.errors import DataError, reason

Batch = tuple[Tensor, Tensor]


def seed_of(*numbers: int) -> int:
    """One seed made of several numbers, so that a batch can be reproduced without the batches before it."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    return seed


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*numbers))


class Loader(ABC):
    """Batches of one split: ``(images, labels)``, float32 (batch, c, h, w), normalised, and int64 (batch,).

    With ``shuffle``, the order and augmentation of batch b in epoch e depend only on (seed, e, b), so ``start`` skips
    batches exactly. In training, a last batch that gives a process a single image is left out, because batch norm
    cannot use it.

    Attributes:
        unreadable: the error messages of images that were left out.
    """

    def __init__(self, images: int, batch_size: int, device: torch.device, shuffle: bool, seed: int) -> None:
        self.count = images
        self.batch_size, self.device, self.shuffle, self.seed = batch_size, device, shuffle, seed
        self.rank, self.world = 0, 1
        self.unreadable: set[str] = set()

    def __len__(self) -> int:
        rest = self.count % self.batch_size
        lone = self.shuffle and self.batch_size >= 2 * self.world and 0 < rest < 2 * self.world
        return max(1, -(-self.count // self.batch_size) - lone)

    def resized(self, batch_size: int) -> Self:
        """A loader of the same images (not copied) with another batch size."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def shared(self, rank: int, world: int) -> Self:
        """A loader of one process's share: of each batch the images ``rank``, ``rank + world``, ...

        The shares of all processes together are the batch. An empty share is left out.
        """
        other = copy.copy(self)
        other.rank, other.world = rank, world
        return other

    @property
    def share(self) -> slice:
        return slice(self.rank, None, self.world)

    def order(self, epoch: int) -> Tensor:
        """The indices of the images in the order of an epoch."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=_generator(self.seed, epoch))

    @abstractmethod
    def batches(self, epoch: int = 0, start: int = 0) -> Generator[Batch]: ...


def pad_crop(
    images: Tensor, padding: int, generator: torch.Generator, of: int | None = None, share: slice = slice(None)
) -> Tensor:
    """Zero-pads by ``padding`` pixels and crops each image (n, c, h, w) back to its size at a random position.

    The images are the ``share`` of a batch of ``of`` images. Positions are drawn for the whole batch, so that they do
    not depend on the number of processes.
    """
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    places = (torch.randint(2 * padding + 1, (of or n, 1), generator=generator)[share] for _ in range(2))
    top, left = (place.squeeze(1).to(images.device) for place in places)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (n, c, top, left, height, width)
    return windows[torch.arange(n, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator, of: int | None = None, share: slice = slice(None)) -> Tensor:
    """Mirrors each image (n, c, h, w) with probability 1/2; the images are the ``share`` of a batch of ``of``."""
    mirrored = (torch.rand(of or len(images), generator=generator)[share] < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class TensorLoader(Loader):
    """A loader whose images live on the device and are augmented there.

    Args:
        images: uint8 (n, c, h, w) in 0..255, or float32 in 0..1.
        padding: pad by this many pixels and crop at random.
        mirror: mirror at random.
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
        super().__init__(len(labels), batch_size, device, shuffle, seed)
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.padding = padding
        self.mirror = mirror

    def batches(self, epoch: int = 0, start: int = 0) -> Generator[Batch]:
        order = self.order(epoch)
        for b in range(start, len(self)):
            whole = order[b * self.batch_size : (b + 1) * self.batch_size]
            index = whole[self.share].to(self.device)
            if not len(index):
                continue
            images = self.images[index]
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            generator = _generator(self.seed, epoch, b)
            if self.padding:
                images = pad_crop(images, self.padding, generator, len(whole), self.share)
            if self.mirror:
                images = flip(images, generator, len(whole), self.share)
            yield (images - self.mean) / self.std, self.labels[index]


def unreadable(messages: Sequence[str], count: int = 0, least: int = 1) -> str:
    """What to say where so few images could be read; ``messages`` say what was wrong with the rest."""
    if not count:
        return f"{messages[0]}; none of the other images can be read either: check the files"
    return f"{messages[0]}; {count} can be read, and training takes {least} at least: check the files"


class _Seeded(Dataset[Any]):
    """Images whose random transform depends only on (seed, epoch, index). An unreadable one yields a ``DataError``."""

    def __init__(self, dataset: Dataset[Any], transform: Callable[[Any], Tensor], seed: int, epoch: int) -> None:
        self.dataset, self.transform, self.seed, self.epoch = dataset, transform, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        try:
            image, label = self.dataset[index]
        except DataError as error:
            return DataError(str(error))  # without its traceback, whose frames would keep the loader's processes alive
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, self.epoch, index))  # does not touch accelerators
            return self.transform(image), label


def _collate(samples: list[Any]) -> tuple[Batch | None, list[str]]:
    """The batch of the readable images, or None if there are none, and the error messages of the rest."""
    read = [sample for sample in samples if not isinstance(sample, DataError)]
    return default_collate(read) if read else None, [str(s) for s in samples if isinstance(s, DataError)]


class FileLoader(Loader):
    """A loader of files, which worker processes read and transform in advance.

    Args:
        dataset: its items are (image, label); an item raises ``DataError`` if its image cannot be read.
        skip: leave such images out and note the error messages in ``unreadable``. A batch that becomes empty is left
            out too, but not in training, where an epoch keeps its number of steps; see ``least``.
        least: the images of a batch in training, at least. Where fewer are left, the readable images of the other
            processes' shares are added, or else those of the batches that follow. So the processes need not agree:
            each has a batch in every step, unless all images together are too few for any of them.

    Raises:
        DataError: from ``batches``: an image cannot be read; or with ``skip`` fewer than ``least``, or in scoring by
            one process none.
    """

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
        skip: bool = False,
        least: int = 1,
    ) -> None:
        super().__init__(len(dataset), batch_size, device, shuffle, seed)  # type: ignore[arg-type]
        self.dataset, self.transform, self.workers, self.skip, self.least = dataset, transform, workers, skip, least
        self.known: set[int] = set()  # the numbers of images that could not be read when a batch was filled up

    def batches(self, epoch: int = 0, start: int = 0) -> Generator[Batch]:
        whole = [batch.tolist() for batch in self.order(epoch).split(self.batch_size)]
        shares = [batch[self.share] for batch in whole[: len(self)]]
        samples = _Seeded(self.dataset, self.transform, self.seed, epoch)
        loader = DataLoader(
            samples, num_workers=self.workers, batch_sampler=[share for share in shares[start:] if share],
            pin_memory=self.device.type == "cuda", generator=_generator(self.seed, epoch), collate_fn=_collate,
            multiprocessing_context=FORK if self.workers else None,
        )  # fmt: skip
        loaded = started(loader)
        read = False
        wrong: list[str] = []
        for number, (batch, wrong) in enumerate(self._received(loaded), start):
            self.unreadable.update(wrong)
            if wrong and not self.skip:
                raise DataError(wrong[0])
            if wrong and self.shuffle:
                batch = self._filled_up(batch, samples, set(shares[number]), whole[number:] + whole[:number])
            if batch is not None:
                read = True
                images, labels = batch
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        if wrong and not read and self.world == 1:
            raise DataError(unreadable(wrong))

    def _filled_up(self, batch: Batch | None, samples: _Seeded, own: set[int], others: list[list[int]]) -> Batch:
        """A batch of ``least`` images or more: ``batch``, which has what can be read of ``own``, and whole ``others``.

        Raises:
            DataError: there are fewer that can be read.
        """
        parts = [] if batch is None else [batch]
        for indices in others:
            if (count := sum(len(labels) for _, labels in parts)) >= self.least:
                break
            found = [(i, samples[i]) for i in indices if i not in own and i not in self.known]
            self.known.update(i for i, sample in found if isinstance(sample, DataError))
            added, wrong = _collate([sample for _, sample in found])
            self.unreadable.update(wrong)
            parts += [] if added is None else [added]
        else:
            count = sum(len(labels) for _, labels in parts)
        if count < self.least:
            raise DataError(unreadable(sorted(self.unreadable), count, self.least))
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    def _received(self, loaded: Iterator[Any]) -> Iterator[Any]:
        """What the worker processes send.

        Raises:
            DataError: one of them is gone.
        """
        while True:
            try:
                one = next(loaded)
            except StopIteration:
                return
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                raise DataError(
                    f"a process that reads images is gone ({reason(error)}); it may have had too little memory: try "
                    f"fewer than data.workers={self.workers}"
                ) from None
            yield one
