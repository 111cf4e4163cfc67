"""One stage of a network: the unrolled algorithm at one width, and its streams. Knows no stem and no head."""

from typing import Any

import torch
from torch import Tensor, nn

from optnet.networks.design import StageProgram
from optnet.networks.layers import Family
from optnet.networks.unrolled import unroll


class Stage(nn.Module):
    """The iterations of the algorithm at one width: a transition, then the unrolled algorithm.

    Takes and returns a list of tensors (batch, channels, height, width), or (batch, tokens, channels), one for each
    stream. The results are the streams if the next stage (for the last stage: the first) has as many starting points.
    Otherwise they are concatenated into one stream.
    """

    def __init__(self, program: StageProgram, family: Family, next_streams: int, **options: Any) -> None:
        super().__init__()
        start = program.start
        self.streams = len(start.starts)
        self.channel_dim = family.channel_dim
        self.out_streams = len(start.results) if len(start.results) in (1, next_streams) else 1
        self.out_chs = family.out_chs(start.results.count(start.starts[0]), len(start.results) // self.out_streams)
        self.transitions = nn.ModuleList(family.transition() for _ in range(self.streams))
        as_they_come = all(isinstance(one, nn.Identity) for one in self.transitions) and not family.reshapes
        equal = start.starts if family.first and as_they_come else ()
        shortcuts = {name: family.shortcut() for name in start.starts}
        self.unrolled = unroll(
            start, textbook=program.textbook, operators=family.layers(start), channels=family.chs, packed=True,
            equal=equal, start_channels=family.start_chs, channel_dim=family.channel_dim, formulas=program.formulas,
            shortcuts={name: layer for name, layer in shortcuts.items() if layer is not None or not family.same_start},
            **options,
        )  # fmt: skip
        for i in set(range(self.streams)) - self.unrolled.reads():
            self.transitions[i] = nn.Identity()

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        starts: list[Tensor] = []
        for i, transition in enumerate(self.transitions):
            starts.append(transition(streams[i]))
        results: list[Tensor] = self.unrolled(starts)
        return [torch.cat(results, self.channel_dim)] if len(results) > self.out_streams else results


def merge(streams: list[Tensor], shown: int) -> Tensor:
    """The stream of number ``shown``, or the mean of all streams if it is -1."""
    if shown >= 0:
        return streams[shown]
    total = streams[0]
    for stream in streams[1:]:
        total = total + stream
    return total if len(streams) == 1 else total / len(streams)
