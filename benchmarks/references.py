"""Ancestors that neither timm nor torchvision provides, written by hand as one would without optnet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn


def conv_norm(before: int, after: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)]


def small_stem(width: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(3, width), nn.ReLU(inplace=True))


def large_stem(width: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))


def head(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def resnet_cifar(blocks: int, widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> nn.Sequential:
    """ResNet of depth 6 blocks + 2 for 32 pixels, made of timm's BasicBlock, with projection shortcuts."""
    layers: list[nn.Module] = [small_stem(widths[0])]
    before = widths[0]
    for width in widths:
        for _ in range(blocks):
            stride = 1 if before == width else 2
            line = None if before == width else nn.Sequential(*conv_norm(before, width, 1, stride))
            layers.append(BasicBlock(before, width, stride, line))
            before = width
    return nn.Sequential(*layers, head(before, classes))


def plain_cnn(steps: Sequence[int], widths: Sequence[int], classes: int = 1000) -> nn.Sequential:
    """A chain of conv-BN-ReLU layers after the ImageNet stem."""
    layers: list[nn.Module] = [large_stem(widths[0])]
    before = widths[0]
    for stage, (count, width) in enumerate(zip(steps, widths, strict=True)):
        for k in range(count):
            layers += [*conv_norm(before, width, 3, 2 if stage and not k else 1), nn.ReLU(inplace=True)]
            before = width
    return nn.Sequential(*layers, head(before, classes))


def branch(before: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm(before, width, 3, stride), nn.ReLU(inplace=True), *conv_norm(width, width))


class TwoStream(nn.Module):
    """DMRNet: x, y = ReLU((x + y) / 2 + F(x)), ReLU((x + y) / 2 + G(y)), merged at the end. Zhao et al. 2018."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], stem: nn.Module, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.left, self.right, self.lines = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        before = widths[0]
        for count, width in zip(blocks, widths, strict=True):
            for _ in range(count):
                stride = 1 if before == width else 2
                if before != width:
                    lines = [nn.Sequential(*conv_norm(before, width, 1, stride)) for _ in range(2)]
                    self.lines[str(len(self.left))] = nn.ModuleList(lines)
                self.left.append(branch(before, width, stride))
                self.right.append(branch(before, width, stride))
                before = width
        self.head = head(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = y = self.stem(images)
        for k, (F, G) in enumerate(zip(self.left, self.right, strict=True)):
            a, b = F(x), G(y)
            if str(k) in self.lines:
                left, right = self.lines[str(k)]
                x, y = left(x), right(y)
            mean = (x + y).mul_(0.5)
            if k == len(self.left) - 1:
                return self.head(a.add_(b).add_(mean).relu_())
            x, y = a.add_(mean).relu_(), b.add_(mean).relu_()
        raise AssertionError("no blocks")


class OneShape(nn.Module):
    """A stem, layers of one shape and a head. It compares momentumnet's layers with ours."""

    def __init__(self, middle: nn.Module, width: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = small_stem(width)
        self.middle = middle
        self.head = head(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.stem(images))))
