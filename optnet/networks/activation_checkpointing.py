"""Layers that are computed again in the backward pass, so that their activations need not be kept. Knows no network."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

MEMORY = ("keep", "checkpoint")


def recomputed(layer: nn.Module, *arguments: Any) -> Any:
    """``layer(*arguments)``, of which only the arguments are kept for the backward pass. Chen et al. 2016.

    Exporting, tracing and ``torch.fx.symbolic_trace`` see the layer alone. TorchScript and torch.func do not take
    it: ``set_grad_checkpointing(False)`` first.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return layer(*arguments)
    if torch.compiler.is_compiling():  # the compiler computes again what it needs, and updates statistics once
        return checkpoint(layer, *arguments, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsKept(layer)

    return checkpoint(layer, *arguments, use_reentrant=False, context_fn=contexts)


class _StatisticsKept:
    """Running statistics stay as the first pass left them: without this a norm would count every batch twice.

    It is entered once for each backward pass through the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.states: list[list[tuple[Any, float | None, Tensor]]] = []

    def __enter__(self) -> None:
        norms: list[Any] = [
            m for m in self.layer.modules() if m.training and getattr(m, "num_batches_tracked", None) is not None
        ]
        self.states.append([(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms])
        for norm in norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, momentum, count in self.states.pop():
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def called(node: fx.Node) -> tuple[str, tuple[Any, ...]]:
    """The name of the layer that a node of a graph calls, kept or recomputed, and its arguments; "" for other nodes."""
    if node.op == "call_module":
        return str(node.target), node.args
    if node.target is recomputed:
        layer: Any = node.args[0]
        return str(layer.target), node.args[1:]
    return "", ()


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
