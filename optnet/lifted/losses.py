"""The losses of lifted training, each with its exact proximal step. Knows no network and no method."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optnet.errors import DataError


class Loss(ABC):
    """A loss l(x, y) of the last activations x and the targets y, both (batch, outputs); convex in x."""

    name: str
    smoothness: float | None
    """The Lipschitz constant of dl/dx; None if l is not differentiable everywhere."""
    quadratic = False
    """Whether the Hessian of l is the identity everywhere."""

    def targets(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """One-hot targets from labels (batch,), for the network's ``outputs`` (batch, outputs).

        Floating-point labels are targets already and are returned unchanged, in the outputs' dtype.

        Raises:
            DataError: the number of labels or targets differs from the number of images, or a label is out of range.
        """
        count, width = outputs.shape
        given = tuple(labels.shape)
        if labels.is_floating_point():
            if given != (count, width):
                raise DataError(f"targets of shape {given} do not fit {count} images and {width} outputs")
            return labels.to(outputs.dtype)
        if given != (count,):
            raise DataError(f"labels of shape {given} do not fit {count} images; give one for each")
        if labels.dtype == torch.bool or labels.is_complex():
            raise DataError(f"labels must be whole numbers, not {labels.dtype}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= width:
            bad = low if low < 0 else high
            raise DataError(f"label {bad} is out of range; the network's outputs are 0..{width - 1}")
        return torch.nn.functional.one_hot(labels.long(), width).to(outputs.dtype)

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """l, one value per sample: (batch,)."""

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """dl/dx, or a subgradient where l is not differentiable: (batch, outputs)."""

    @abstractmethod
    def curvature(self, x: Tensor, d: Tensor) -> Tensor:
        """H d, where H is the Hessian of l at x. ``d`` has shape (batch, outputs) or (batch, outputs, columns)."""

    @abstractmethod
    def prox(self, a: Tensor, y: Tensor, c: float) -> Tensor:
        """argmin_x l(x, y) + c/2 |x - a|^2."""


class Squared(Loss):
    """l = 1/2 |x - y|^2."""

    name, smoothness, quadratic = "squared", 1.0, True

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(1) / 2

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return x - y

    def curvature(self, x: Tensor, d: Tensor) -> Tensor:
        return d

    def prox(self, a: Tensor, y: Tensor, c: float) -> Tensor:
        """(y + c a) / (1 + c)."""
        return (y + c * a) / (1 + c)


class CrossEntropy(Loss):
    """l = log sum_j e^(x_j) - <x, y>, the softmax cross-entropy of logits x, in nats."""

    name, smoothness = "cross_entropy", 0.5

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return x.logsumexp(1) - (x * y).sum(1)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return x.softmax(1) - y

    def curvature(self, x: Tensor, d: Tensor) -> Tensor:
        """(diag p - p p^T) d."""
        p = x.softmax(1)
        p = p if d.ndim == 2 else p[:, :, None]
        scaled = p * d
        return scaled - p * scaled.sum(1, keepdim=True)

    def prox(self, a: Tensor, y: Tensor, c: float) -> Tensor:
        """Newton's method with step halving; Sherman-Morrison inverts diag p + c I - p p^T."""

        def value(x: Tensor) -> Tensor:
            return self(x, y) + c / 2 * (x - a).square().sum(1)

        x, current = a, value(a)
        for _ in range(50):
            p = x.softmax(1)
            g, inverse = p - y + c * (x - a), 1 / (p + c)
            pg, pp = (p * inverse * g).sum(1, keepdim=True), (p * p * inverse).sum(1, keepdim=True)
            d = -(inverse * g + p * inverse * (pg / (1 - pp)))
            size = torch.ones_like(current)
            for _ in range(20):
                trial = x + size[:, None] * d
                after = value(trial)
                worse = ~(after <= current)
                if not worse.any():
                    break
                size = torch.where(worse, size / 2, size)
            better = (after < current)[:, None]
            x, current = torch.where(better, trial, x), torch.minimum(after, current)
            if not better.any():
                break
        return x


class Hinge(Loss):
    """l = sum_j max(0, 1 - s_j x_j), s_j = 2 y_j - 1: the one-against-the-rest hinge loss."""

    name, smoothness = "hinge", None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(1 - (2 * y - 1) * x).sum(1)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        s = 2 * y - 1
        return torch.where(s * x < 1, -s, torch.zeros_like(x))

    def curvature(self, x: Tensor, d: Tensor) -> Tensor:
        return torch.zeros_like(d)

    def prox(self, a: Tensor, y: Tensor, c: float) -> Tensor:
        """s min(max(1, s a), s a + 1/c)."""
        s = 2 * y - 1
        return s * torch.minimum((s * a).clamp(min=1), s * a + 1 / c)


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (Squared(), CrossEntropy(), Hinge())}
