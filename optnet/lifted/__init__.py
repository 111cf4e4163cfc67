"""Training without backpropagation: the lifted problem, the loop that all methods share, and one file per method."""

from optnet.lifted.admm import ADMM, ADMMOptions
from optnet.lifted.bcd import BCD, BCDOptions
from optnet.lifted.lpom import LPOM, LPOMOptions
from optnet.lifted.mac import MAC, MACOptions
from optnet.lifted.penalty import Penalty, PenaltyOptions
from optnet.lifted.trainer import Blocks, Lifted

__all__ = [
    "ADMM",
    "BCD",
    "LPOM",
    "MAC",
    "ADMMOptions",
    "BCDOptions",
    "Blocks",
    "LPOMOptions",
    "Lifted",
    "MACOptions",
    "Penalty",
    "PenaltyOptions",
]
