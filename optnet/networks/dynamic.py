"""The rule ``dynamic``: the weights of a sum follow from features, for each sample. Knows no layer and no network."""

import torch
from torch import Tensor, fx, nn

from optnet.language.program import Combine, Program

EPS = 1e-6
"""Added to the square of the features' norm before its root."""


def pooled(x: Tensor, channel_dim: int = 1) -> Tensor:
    """The mean over all positions, (batch, channels). x is (batch, channels, ...), or (batch, ..., channels) for -1."""
    if channel_dim == -1:
        return x.reshape(x.shape[0], -1, x.shape[-1]).mean(1)
    return x.reshape(x.shape[0], x.shape[1], -1).mean(2)


@fx.wrap  # torch.fx.symbolic_trace does not look inside: it knows no number of dimensions
def spread(w: Tensor, x: Tensor) -> list[Tensor]:
    """Weights (batch, terms), each as (batch, 1, ...), so that they multiply x of shape (batch, ...)."""
    parts: list[Tensor] = []
    for part in w.unbind(1):
        parts.append(part.reshape([-1] + [1] * (x.dim() - 1)))
    return parts


class Dynamic(nn.Module):
    """The weights of one sum: ``w_0 + b + A z``, z = pooled x over its norm; (batch, 1, ...) for each term.

    b and A are vectors that start at 0. b is the part that all samples share: z = 0 gives ``w_0 + b``. As |z| = 1, a
    step of the optimizer moves A z as much as b, whatever the width. So are the weights of dynamic hyper-connections
    (Zhu et al. 2024), but for their scale and their bound by tanh.
    """

    start: Tensor

    def __init__(self, row: Combine, channels: int, channel_dim: int = 1) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        start = torch.tensor(row.weights, device="cpu", dtype=torch.float64)
        self.register_buffer("start", start, persistent=False)
        self.static = nn.Parameter(torch.zeros_like(start))
        self.eps = EPS  # TorchScript reads no constant of a file
        self.slopes = nn.Parameter(start.new_zeros(len(start) * channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        z = pooled(x, self.channel_dim).type_as(self.slopes)
        z = z * (z.square().sum(1, keepdim=True) + self.eps).rsqrt()
        w = self.start + self.static + z @ self.slopes.reshape(self.start.shape[0], -1).t()
        return spread(w, x)

    @torch.jit.ignore
    def shared(self) -> Tensor:
        """The part that all samples share, (terms,)."""
        return self.start + self.static


def dynamic(
    program: Program, channels: int, start_channels: int, channel_dim: int = 1
) -> dict[str, tuple[str, Dynamic]]:
    """For each sum the value whose features decide, and the module that is called on it.

    It is the value that was computed last, of the iterates in the sum, or else of its calls' arguments.

    Args:
        channels: of all values but the starting points that are no terms of sums, which have ``start_channels``.
    """
    values = [*program.starts, *(one.value for one in program.instructions)]
    order = {value: i for i, value in enumerate(values)}
    arguments = {call.value: call.argument for call in program.applies}
    carried = {term for row in program.combines for term in row.terms} | set(program.results)
    made: dict[str, tuple[str, Dynamic]] = {}
    for row in program.combines:
        iterates = [term for term in row.terms if term in program.iterates]
        source = max(iterates or [arguments[term] for term in row.terms], key=order.__getitem__)
        raw = source in program.starts and source not in carried
        made[row.value] = source, Dynamic(row, start_channels if raw else channels, channel_dim)
    return made
