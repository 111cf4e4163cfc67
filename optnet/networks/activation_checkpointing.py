"""Activation checkpointing: the backward pass recomputes a layer's activations instead of keeping them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from optnet.networks.statistics import keepers

MEMORY = ("keep", "checkpoint")


def recomputed(layer: nn.Module, *arguments: Any) -> Any:
    """``layer(*arguments)``; only the arguments are kept for the backward pass. Chen et al. 2016.

    Export, tracing and ``torch.fx.symbolic_trace`` see a plain call of the layer. TorchScript and torch.func do not
    support checkpointing: call ``set_grad_checkpointing(False)`` first.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return layer(*arguments)
    if torch.compiler.is_compiling():  # the compiler recomputes by itself and updates statistics once
        return checkpoint(layer, *arguments, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsKept(layer)

    return checkpoint(layer, *arguments, use_reentrant=False, context_fn=contexts)


class _StatisticsKept:
    """Keeps running statistics unchanged during recomputation; otherwise a norm would count every batch twice.

    It is entered once per backward pass through the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.states: list[list[tuple[Tensor, Tensor]]] = []

    def __enter__(self) -> None:
        buffers = [buffer for norm in keepers(self.layer) if norm.training for buffer in norm.buffers(recurse=False)]
        self.states.append([(buffer, buffer.clone()) for buffer in buffers])

    def __exit__(self, *error: object) -> None:
        for buffer, kept in self.states.pop():
            buffer.data.copy_(kept)  # the backward pass does not read it: it is no change that autograd has to know


def called(node: fx.Node) -> tuple[str, tuple[Any, ...]]:
    """The name and arguments of the layer that a graph node calls, checkpointed or not; "" for all other nodes."""
    if node.op == "call_module":
        return str(node.target), node.args
    if node.target is recomputed:
        layer: Any = node.args[0]
        return str(layer.target), node.args[1:]
    return "", ()


def set_recomputing(body: fx.GraphModule, enable: bool) -> None:
    """Turns checkpointing on or off for every layer of a graph that has parameters."""
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
