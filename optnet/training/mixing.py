"""Mixup and CutMix: images mixed in pairs, and their labels with them. No other augmentation is in here."""

from __future__ import annotations

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from optnet.data.loading import seed_of


class Mixing:
    """x~ = l x_i + (1 - l) x_j, y~ = l y_i + (1 - l) y_j (mixup, Zhang et al. 2018), or a box of x_j in x_i (CutMix,
    Yun et al. 2019), by timm. What is mixed depends on (seed, step) alone.

    Args:
        mixup, cutmix: alpha of the Beta(alpha, alpha) that l is drawn from; 0 leaves that one out.
        probability: of mixing a batch at all.
        smoothing: of the labels, as in ``F.cross_entropy``.
    """

    def __init__(
        self, classes: int, *, mixup: float, cutmix: float, probability: float, smoothing: float, seed: int
    ) -> None:
        self.mix = Mixup(mixup, cutmix, prob=probability, label_smoothing=smoothing, num_classes=classes)
        self.seed = seed

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixed images (batch, c, h, w), and their labels as probabilities (batch, classes)."""
        state = np.random.get_state()
        np.random.seed(seed_of(self.seed, step) % 2**32)
        try:
            if len(images) % 2 == 0:
                return self.mix(images.clone(), labels)
            # timm pairs the first with the last, the second with the one before: a second copy of an odd batch's last
            # image is the first one's partner
            mixed, target = self.mix(torch.cat([images, images[-1:]]), torch.cat([labels, labels[-1:]]))
            return mixed[:-1], target[:-1]
        finally:
            np.random.set_state(state)
