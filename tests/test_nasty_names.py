"""Every text that a person gives, as a list of nasty ones: taken as it is, or refused in one line with nothing left."""

import json

import pytest
from helpers import class_folder, crossed
from test_fuzz import request

NAMES = {
    "markup": "[/]", "colour": "[red]", "format": "%s", "braces": "{}", "variable": "$HOME", "interpolation": "${x}",
    "environment": "${oc.env:HOME}", "escape": "\x1b[31m", "newline": "a\nb", "tab": "a\tb", "NUL": "a\0b",
    "above": "../..", "long": "x" * 300, "deep": "x/" * 2500, "not UTF-8": "\udcff", "formula": "$$x",
    "spaces": " a b ",
    "quote": "it's", "quotes": '"x"', "equals": "a=b", "comma": "a,b", "backslash": "a\\b", "hash": "#x", "bar": "a|b",
    "arabic": "\u202eabc", "kanji": "日本", "tilde": "~x", "dot": ".", "colon": "a:b", "dash": "-x", "star": "*",
}  # fmt: skip
KEYS = [
    ("train", "name"), ("train", "runs"), ("train", "data.root", "data=folder"), ("train", "data.root"),
    ("train", "model"), ("train", "model.name"), ("train", "algorithm"), ("train", "resume"), ("train", "device"),
    ("train", "model.act_layer"), ("train", "optim.name"), ("train", "data.name"), ("train", "init.name"),
    ("train", "optim"), ("train", "experiment"), ("train", "init_from"), ("train", "model.kwargs.norm_layer"),
    ("evaluate", "checkpoint"), ("evaluate", "model"), ("evaluate", "output", "model=hbnet_small"),
    ("evaluate", "data.root", "model=hbnet_small", "data=folder"), ("evaluate", "device", "model=hbnet_small"),
]  # fmt: skip


def quoted(text):
    r"""As Hydra reads it literally: in quotes, with a backslash before a quote and before those that end the text."""
    return "'" + text.replace("\\'", "\\\\'").replace("'", "\\'") + "'"


def label(key):
    return " ".join(key)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("key", "name"), crossed(KEYS, NAMES))
@pytest.mark.sampled(8)
def test_a_nasty_text_is_taken_or_refused_in_one_line(key, name):
    """In quotes and without them, in turn."""
    program, option, *first = key
    in_quotes = (KEYS.index(key) + list(NAMES).index(name)) % 2
    text = quoted(NAMES[name]) if in_quotes else NAMES[name]
    status, out, err, left = request(program, [*first, f"{option}={text}"])
    assert status in (0, 2), (status, err)
    if status == 2:
        assert err.startswith("error: ") and err.count("\n") == 1 and err.rstrip("\n").isprintable(), err
        assert len(err) < 1500 and left == ["a"] and not out, (len(err), left)


TAKEN = ["colour", "format", "braces", "formula", "quote", "quotes", "equals", "comma", "kanji", "hash"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAKEN)
def test_a_run_and_its_evaluation_with_a_nasty_name_everywhere(name, tmp_path, monkeypatch):
    """The run, its folder's parent, its data and its classes have the name; training, figures and scores go through."""
    from helpers import call

    monkeypatch.chdir(tmp_path)
    text = NAMES[name]
    class_folder(tmp_path / f"images {text}", classes=(f"one {text}", f"two {text}"), count=60, size=8)
    data = (
        "data=folder",
        f"data.root={quoted(f'images {text}')}",
        "data.size=8",
        "data.validation=0.3",
        "batch_size=16",
        "device=cpu",
    )
    small = ("model.blocks=[1,1]", "model.widths=[4,8]", "epochs=1")
    assert call(monkeypatch, "train", *data, *small, f"name={quoted(text)}", f"runs={quoted(f'runs {text}')}") == 0
    (summary,) = tmp_path.glob("runs*/*/*/summary.json")
    best = summary.parent / "checkpoints" / "best.pt"
    assert call(monkeypatch, "evaluate", f"checkpoint={quoted(str(best))}", "device=cpu") == 0
    (entry,) = json.loads((summary.parent / "evaluation.json").read_text())
    assert list(entry["per_class"]) == [f"one {text}", f"two {text}"]
