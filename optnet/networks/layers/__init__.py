"""The layer families that serve as an algorithm's operators, by their names in ``layer=``."""

from optnet.networks.layers.convnext import ConvNeXt
from optnet.networks.layers.dense import Dense, DenseBC
from optnet.networks.layers.family import Family
from optnet.networks.layers.norms import NORMS, PIXEL_NORMS, PLACES
from optnet.networks.layers.plain import Plain
from optnet.networks.layers.residual import Basic, Bottleneck, PreActBasic, PreActBottleneck
from optnet.networks.layers.style import DROP_PLACES, Style

__all__ = ["DROP_PLACES", "FAMILIES", "NORMS", "PIXEL_NORMS", "PLACES", "Family", "Style"]

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
