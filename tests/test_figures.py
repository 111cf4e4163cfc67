"""Figures of a network: what they show, read back from the axes and from the drawn file."""

import io
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import timm
import torch
from torch import nn

import optnet
from optnet import Iterate, Operator
from optnet.errors import printable
from optnet.networks import signal
from optnet.training.monitoring import figures

SMALL = ["gdnet_small", "resnet_small", "hbnet_small", "agdnet_small", "admmnet_small"]


@pytest.mark.parametrize("name", SMALL)
def test_the_heat_map_is_the_coefficient_table(name):
    model = timm.create_model(name)
    drawn = figures.heat_maps(model)
    table = optnet.coefficients(model)
    assert set(drawn) == {entry.stage for entry in table}
    for stage, figure in drawn.items():
        entries = [entry for entry in table if entry.stage == stage]
        learned, textbook = (np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes[:2])
        for matrix, values in (
            (learned, [entry.value for entry in entries]),
            (textbook, [entry.textbook for entry in entries if entry.textbook is not None]),
        ):
            assert sorted(matrix[np.isfinite(matrix)]) == pytest.approx(sorted(values))
        assert learned.shape[0] == len({entry.step for entry in entries})


def test_the_columns_of_a_heat_map_are_layers_then_other_operators_then_iterates():
    def method(T: Operator, P: Operator, x: Iterate, steps: int):
        for _ in range(steps):
            x = 0.5 * P(T(x)) + 0.3 * T(x) + 0.2 * x
        return x

    identity = nn.Identity()
    model = nn.Sequential(optnet.unroll(method, steps=3, operators={"T": identity, "P": identity}))
    axes = figures.heat_maps(model)["0"].axes[0]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert [column[0] for column in columns] == ["T"] * 3 + ["P"] * 3 + ["x"] * 3
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [2.5, 5.5]


def test_predictions_are_drawn():
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
    labels = torch.tensor([0, 1, 0])
    figure = figures.predictions(torch.zeros(3, 1, 4, 4), labels, logits, ("cat", "dog"), (0.5,), (0.25,))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["cat 98%", "dog 98%", "dog 98%\nnot cat", ""]


NAMES = [
    "$$x",
    "$x",
    "a$b$c",
    r"$\frac{$",
    r"a\$b",
    "^_{}",
    "[red]",
    "[/]",
    "{x}",
    "%s",
    " ",
    "<b>&amp;",
    "é",
    "\x1b[31m",
    "a\nb",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled(4)
def test_class_names_are_drawn_as_text(name):
    logits, labels = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0])
    counts = torch.tensor([[3, 1], [0, 2]])
    drawn = {
        "predictions": figures.predictions(torch.zeros(2, 1, 4, 4), labels, logits, (name, "dog"), (0.5,), (0.25,)),
        "confusion": figures.confusion_matrix(counts, (name, "dog")),
        "signal": signal.figure({name: [signal.Point("T", 1.0, 1.0)] * 2}, name),
    }
    for kind, figure in drawn.items():
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure.savefig(file, format="svg")
        file.seek(0)
        texts = [" ".join(element.itertext()) for element in ElementTree.parse(file).iter() if "text" in element.tag]
        assert any(printable(name).strip() in text for text in texts), kind
