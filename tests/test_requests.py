"""Wrong requests, by the tree of the configuration: every key with a wrong type, out of range, or missing as a path."""

import math
from collections import defaultdict
from dataclasses import fields, is_dataclass

import pytest
from helpers import call

from optnet.app.config import Evaluate, Train
from optnet.data import DataOptions
from optnet.options import example
from optnet.training.trainers import TRAINERS

OWN = {
    "name": "name=../x", "device": "device=nonsense", "resume": "resume=nonsense", "runs": "runs=notes.txt",
    "batch_milestones": "batch_milestones=[0.5,3]", "schedule.milestones": "schedule.milestones=[0.5,3]",
    "model.name": "model.name=nonsense", "model.blocks": "model.blocks=[0,1,1]", "model.widths": "model.widths=[0,8,8]",
    "model.hidden": "model=mlp model.hidden=[0]", "model.act_layer": "model.act_layer=nonsense",
    "data.root": "data=folder data.root=nonsense", "optim.name": "optim.name=nonsense",
    "optim.kwargs": "optim.kwargs={nonsense:1}", "model.kwargs": "+model.kwargs.nonsense=nonsense",
    "trainer.name": "trainer.name=nonsense", "checkpoint": "checkpoint=nonsense.pt", "model": "model=nonsense",
    "model.kernel_sizes": "model.layer=convnext model.kernel_sizes=[0,3,3]",
    "output": "output=notes.txt/a.json", "init_from": "init_from=nonsense", "freeze": "freeze=nonsense",
    "data.mean": "data.mean=[0.5,0.5,7]", "data.std": "data.std=[0]",
}  # fmt: skip
"""What is out of range, or missing, of keys whose range is not written in the schema."""
UNBOUNDED = {"algorithm"}
"""Groups whose keys differ from option to option; see test_command.py."""


def leaves(config, prefix=""):
    """(dotted key, field) of every value in a tree of dataclasses."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def tree():
    """(program, options that come first, tree, dotted key, field) of every key of both programs."""
    evaluation = Evaluate(data=DataOptions())
    for key, field in leaves(Train()):
        yield "train", (), Train(), key, field
    for name, kind in TRAINERS.items():
        if name != "backprop":
            for key, field in leaves(kind.options(), "trainer."):
                yield "train", (f"trainer={name}",), Train(trainer=kind.options()), key, field
    for key, field in leaves(evaluation):
        first = ("data=digits",) if key.startswith("data.") else ()
        yield "evaluate", (*first, *([] if key == "model" else ["model=hbnet_small"])), evaluation, key, field


def wrong_type(field):
    kind = str(field.type)
    if "bool" in kind:
        return "maybe"
    if "list" in kind or ("str" not in kind and ("int" in kind or "float" in kind)):
        return "nonsense"
    return "3" if kind.startswith("dict") or kind == "Any" else "[1,2]"


def out_of_range(field):
    """A value beyond each end of a key's range, or none of its choices."""
    limits = field.metadata
    if "options" in limits:
        return ["nonsense"]
    if "low" not in limits:
        return []
    low = [limits["low"] - 1] if limits["above"] is None else [limits["above"]]
    return [value for value in (*low, limits["high"] + 1) if math.isfinite(value)] or ["inf"]


TREE = list(tree())
CASES = [
    pytest.param(
        program, (*first, f"{key}={wrong_type(field)}"), config, key, id=f"{program}-{' '.join(first)}-{key}-type"
    )
    for program, first, config, key, field in TREE
    if key not in UNBOUNDED
]
CASES += [
    pytest.param(
        program, (*first, f"{key}={value}"), config, key, id=f"{program}-{' '.join(first)}-{key}-range-{value}"
    )
    for program, first, config, key, field in TREE
    for value in out_of_range(field)
]
CASES += [
    pytest.param(program, (*first, *OWN[key].split()), None, key, id=f"{program}-{key}-own")
    for program, first, config, key, field in TREE
    if key in OWN
]


def one_a_key(cases):
    """One wrong value of every key by default, a type, a range or another in turn; the others under ``slow``."""
    keys = defaultdict(list)
    for case in cases:
        program, request_, _, key = case.values
        keys[program, request_[:-1], key].append(case)
    quick = {choice[i % len(choice)].id for i, choice in enumerate(keys.values())}
    return [pytest.param(*c.values, id=c.id, marks=() if c.id in quick else pytest.mark.slow) for c in cases]


@pytest.mark.parametrize(("program", "request_", "config", "key"), one_a_key(CASES))
@pytest.mark.sampled(60)
def test_wrong_values_of_every_key(program, request_, config, key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTNET_DATA", raising=False)
    (tmp_path / "notes.txt").write_text("mine")
    assert call(monkeypatch, program, *request_) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out, err
    bad = request_[-1].partition("=")[2]
    plain = err.replace(" ", "").replace("'", "")
    assert bad.strip("[]{}").split(",")[-1].split(":")[0] in plain, f"the bad value {bad} is not in: {err}"
    if config is not None and not (key == "name" or key.endswith(".name")):
        assert str(example(config, key)) in err or "one of" in err, f"no valid value in: {err}"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_every_key_has_a_wrong_value():
    for _, _, _, key, field in TREE:
        free = "bool" in str(field.type) or key in UNBOUNDED
        assert free or key in OWN or out_of_range(field), f"{key}: nothing says which values are wrong"
