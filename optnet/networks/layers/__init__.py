"""The layer families that serve as an algorithm's operators, by their names in ``layer=``."""

from optnet.networks.layers.convnext import ConvNeXt
from optnet.networks.layers.dense import Dense, DenseBC
from optnet.networks.layers.family import Family
from optnet.networks.layers.norms import NORMS, PIXEL_NORMS, PLACES
from optnet.networks.layers.plain import Plain
from optnet.networks.layers.residual import Basic, Bottleneck, PreActBasic, PreActBottleneck
from optnet.networks.layers.style import DROP_PLACES, Style
from optnet.networks.layers.tokens import TokenFamily, Vit, VitHalf, VitParallel, VitSandwich

__all__ = [
    "DROP_PLACES", "FAMILIES", "NORMS", "PIXEL_NORMS", "PLACES", "TOKEN_FAMILIES", "Family", "Style", "TokenFamily",
]  # fmt: skip

FAMILIES: dict[str, type[Family]] = {
    "plain": Plain,
    "basic": Basic,
    "bottleneck": Bottleneck,
    "preact_basic": PreActBasic,
    "preact_bottleneck": PreActBottleneck,
    "dense": Dense,
    "dense_bc": DenseBC,
    "convnext": ConvNeXt,
}
"""Of networks on images."""
TOKEN_FAMILIES: dict[str, type[TokenFamily]] = {
    "vit": Vit,
    "vit_half": VitHalf,
    "vit_parallel": VitParallel,
    "vit_sandwich": VitSandwich,
}
"""Of networks on tokens."""
