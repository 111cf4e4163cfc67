"""How far each step of an unrolled algorithm moves its iterate. Sees networks through their unrolled stages alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from optnet.networks.activation_checkpointing import called
from optnet.networks.modes import mode
from optnet.networks.unrolled import Unrolled, unrolled_in


@torch.no_grad()
def movements(model: nn.Module, images: Tensor) -> dict[str, list[float]]:
    """||x_{k+1} - x_k|| for every step k of every stage, in evaluation mode, as the mean over the images.

    The iterates x_k are what the algorithm's main operator is applied to, in order, and what the stage returns; of
    an algorithm that applies it to two starting points they are two sequences, and a number is the mean of both.
    Iterates of other shapes than the last one (a starting point without a projection) are left out.

    Returns:
        by the name of the unrolled module, a norm for each step.
    """
    entered: dict[str, tuple[Any, ...]] = {}
    unrolled = unrolled_in(model)

    def note(name: str) -> Any:
        return lambda module, inputs: entered.__setitem__(name, inputs)

    handles = [module.register_forward_pre_hook(note(name)) for name, module in unrolled.items()]
    try:
        with mode(model, training=False):
            model(images)
            return {name: _moved(module, entered[name]) for name, module in unrolled.items() if name in entered}
    finally:
        for handle in handles:
            handle.remove()


def _moved(module: Unrolled, starts: tuple[Any, ...]) -> list[float]:
    recorder = _Recorder(module)
    results = recorder.run(*starts)
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    program = module.program
    called_on = {call.argument for call in program.calls(program.main)}
    streams = max(1, len(called_on & set(program.starts)))
    norms = []
    for stream in range(streams):
        own = results if streams == 1 else results[min(stream, len(results) - 1) :][:1]
        sequence = _distinct([*recorder.iterates[stream::streams], *own])
        sequence = [x for x in sequence if x.shape == own[-1].shape]
        norms.append([float((b - a).flatten(1).norm(dim=1).mean()) for a, b in pairwise(sequence)])
    return [sum(steps) / streams for steps in zip(*norms, strict=False)]


def _distinct(values: list[Tensor]) -> list[Tensor]:
    """Without those that stand there already: an iterate may be an argument and a result."""
    return list({id(value): value for value in values}.values())


class _Recorder(fx.Interpreter):
    """Runs a stage node by node and keeps what its main operator is applied to."""

    def __init__(self, module: Unrolled) -> None:
        super().__init__(module.body)
        self.extra_traceback = False
        self.layers = set(module.served_by(module.program.main))
        self.shortcuts = set(module.shortcuts.values())
        self.iterates: list[Tensor] = []
        self.projected: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        target, arguments = called(n)
        if target in self.layers:
            applied = arguments[0] if isinstance(arguments[0], (list, tuple)) else [arguments[0]]
            self.iterates += [self.projected.get(node, self.env[node]) for node in applied if isinstance(node, fx.Node)]
        result = super().run_node(n)
        if target in self.shortcuts and isinstance(arguments[0], fx.Node):
            self.projected[arguments[0]] = result
        return result
