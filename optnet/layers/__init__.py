"""The layers that stand for an algorithm's operators, by the name that ``layer=`` takes."""

from optnet.layers.dense import Dense, DenseBC
from optnet.layers.family import Family, Style
from optnet.layers.norms import NORMS, PLACES
from optnet.layers.plain import Plain
from optnet.layers.residual import Basic, Bottleneck, PreActBasic, PreActBottleneck

__all__ = ["FAMILIES", "NORMS", "PLACES", "Family", "Style"]

FAMILIES: dict[str, type[Family]] = {
    "plain": Plain,
    "basic": Basic,
    "bottleneck": Bottleneck,
    "preact_basic": PreActBasic,
    "preact_bottleneck": PreActBottleneck,
    "dense": Dense,
    "dense_bc": DenseBC,
}
