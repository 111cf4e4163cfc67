"""Running statistics: which modules keep them, and how they are recomputed and synchronised. Knows no class of norm.

A module says itself that it keeps running statistics, as torch's norms do: in buffers called ``running_...``. If its
buffers have other names, its attribute ``running_statistics`` lists them. In training mode it takes in every batch. If
it has an attribute ``momentum``, it does so by ``running = (1 - momentum) * running + momentum * batch``. If it can
take the statistics of all processes' images, its method ``synchronised()`` returns a norm that does, with the same
tensors and a true attribute ``synchronises``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from optnet.networks.modes import mode


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running statistics that a module itself keeps, by the names of its buffers; empty if it keeps none."""
    own = module._buffers
    names = getattr(module, "running_statistics", None) or [name for name in own if name[:8] == "running_"]
    return {name: buffer for name in names if (buffer := own.get(name)) is not None}


def keepers(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that keep running statistics."""
    return [module for module in model.modules() if running_statistics(module)]


def hold(norm: Any) -> None:
    """Lets a module keep its running statistics for good: it stays in evaluation mode, whatever mode its model gets."""
    norm.eval()
    norm.train = MethodType(_stay, norm)  # a copy of the module binds it to the copy


def _stay(norm: nn.Module, mode: bool = True) -> nn.Module:
    return norm


def is_held(module: nn.Module) -> bool:
    """Whether ``hold`` was called on it."""
    return "train" in vars(module)


@torch.no_grad()
def recompute(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces running statistics by their means over ``batches``, each (batch, channels, height, width).

    As ``torch.optim.swa_utils.update_bn``, for all norms that have a ``momentum``. The others take in the batches in
    their own way, from the statistics that they have.
    """
    norms = [norm for norm in keepers(model) if not is_held(norm)]
    if norms:
        with mode(model, training=True), _averaging(norms):
            for batch in batches:
                model(batch)


@contextmanager
def _averaging(norms: list[nn.Module]) -> Iterator[None]:
    """In here, a norm's momentum in its k-th call is 1/k, so that its statistics are the means over the calls."""
    able: list[Any] = [norm for norm in norms if hasattr(norm, "momentum")]
    kept = [norm.momentum for norm in able]
    calls = dict.fromkeys(able, 0)

    def count(norm: Any, *_: Any) -> None:
        calls[norm] += 1
        norm.momentum = 1.0 / calls[norm]

    hooks = [norm.register_forward_pre_hook(count) for norm in able]
    for norm in able:
        if isinstance(counted := getattr(norm, "num_batches_tracked", None), Tensor):
            counted.zero_()
    try:
        yield
    finally:
        for norm, momentum, hook in zip(able, kept, hooks, strict=True):
            hook.remove()
            norm.momentum = momentum


def synchronised(model: nn.Module) -> list[nn.Module]:
    """The norms of a model that wait for the other processes in every call in training mode."""
    return [
        module for module in model.modules()
        if isinstance(module, nn.SyncBatchNorm) or getattr(module, "synchronises", False)
    ]  # fmt: skip


def synchronise(model: nn.Module) -> nn.Module:
    """The model with norms that take the statistics of all processes' images.

    A norm with a method ``synchronised()`` is replaced by what that returns, torch's batch norms by
    ``nn.SyncBatchNorm``. Other norms stay as they are.
    """
    held = [name for name, module in model.named_modules() if is_held(module)]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _synchronised(child))
    made = convert_sync_batchnorm(_synchronised(model))
    for name in held:
        hold(made.get_submodule(name))
    return made


def _synchronised(module: Any) -> nn.Module:
    return module.synchronised() if hasattr(module, "synchronised") else module
