"""Networks and data for the tests of the lifted methods: small, random, in float64."""

import torch

import optnet
from optnet.lifted import (
    ADMM,
    BCD,
    LPOM,
    MAC,
    ADMMOptions,
    BCDOptions,
    LPOMOptions,
    MACOptions,
)  # fmt: skip
from optnet.lifted.losses import LOSSES
from optnet.networks.objectives import ACTIVATIONS, activation

MONOTONE = [name for name in ACTIVATIONS if activation(name).monotone]
SMOOTH = [name for name in LOSSES if name != "hinge"]
FIXED = [
    (LPOM, LPOMOptions(w_step="apg")), (LPOM, LPOMOptions(order="jacobi")), (BCD, BCDOptions()), (MAC, MACOptions()),
    (ADMM, ADMMOptions(warm=0)), (LPOM, LPOMOptions(damped=False, w_step="pinv")),
]  # fmt: skip


def net(act="relu", hidden=(7, 5), outputs=4, inputs=6):
    return optnet.MLP(hidden, act_layer=act, num_classes=outputs, in_chans=1, img_size=(1, inputs))


def problem(count=12, outputs=4, inputs=6):
    return torch.randn(count, 1, 1, inputs), torch.randint(outputs, (count,))


def lifted(trainer, images, labels):
    """The blocks at the start of a sweep."""
    with torch.no_grad():
        return trainer.start(trainer.forward(images, labels))
