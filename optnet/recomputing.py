"""Layers that are computed again in the backward pass, so that their activations need not be kept. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

MEMORY = ("keep", "checkpoint")


def recomputed(layer: nn.Module, *arguments: Any) -> Any:
    """``layer(*arguments)``, of which only the arguments are kept for the backward pass. Chen et al. 2016."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return layer(*arguments)
    if torch.compiler.is_compiling():  # the compiler computes again what it needs, and updates statistics once
        return checkpoint(layer, *arguments, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(layer)

    return checkpoint(layer, *arguments, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Running statistics stay as the first pass left them: without this a norm would count every batch twice."""
    norms: list[Any] = [
        m for m in layer.modules() if m.training and getattr(m, "num_batches_tracked", None) is not None
    ]
    states = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in states:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def set_recomputing(body: fx.GraphModule, enable: bool) -> None:
    """Makes every layer of a graph that has parameters be computed again, or be called as it was."""
    for node in list(body.graph.nodes):
        new: fx.Node | None = None
        with body.graph.inserting_before(node):
            if enable and node.op == "call_module" and list(body.get_submodule(node.target).parameters()):
                layer = body.graph.get_attr(node.target)
                new = body.graph.call_function(recomputed, (layer, *node.args))
            elif not enable and node.target is recomputed:
                new = body.graph.call_module(node.args[0].target, node.args[1:])
        if new is not None:
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            body.graph.erase_node(node)
    body.graph.eliminate_dead_code()
    body.recompile()
