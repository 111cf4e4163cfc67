"""Options: each is declared once, with a default and a sentence; --help and the configuration read it there."""

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from helpers import ROOT, call
from omegaconf import OmegaConf

from optnet.app import compose
from optnet.app.config import Evaluate, Train
from optnet.data import DataOptions
from optnet.networks.options import NetworkOptions, TokenOptions
from optnet.options import describe
from optnet.training.trainers import TRAINERS

CONF = ROOT / "conf"
RECIPES = ("experiment", "debug", "cluster")
"""Groups whose files are whole recipes: they keep their values when a default changes."""
FILES = [file for file in sorted(CONF.rglob("*.yaml")) if file.parent.name not in RECIPES]
TREES = {"train": Train(), "evaluate": Evaluate(data=DataOptions())}
TREES |= {f"trainer={name}": Train(trainer=kind.options()) for name, kind in TRAINERS.items()}


@pytest.mark.parametrize("tree", TREES)
def test_every_option_has_a_sentence(tree):
    described = list(describe(TREES[tree]))
    assert len(described) > 15
    for option in described:
        assert len(option.help) > 3 and "\n" not in option.help, option.name


def test_network_options_are_declared_in_one_place():
    """A choice that several kinds of networks have is shown with the words of all."""
    keys = {key.name: key for key in fields(Train().model)}
    for kind in (TokenOptions, NetworkOptions):
        for key in fields(kind):
            shown, own = dict(keys[key.name].metadata), dict(key.metadata)
            assert keys[key.name].default is None
            assert set(own.pop("options", ())) <= set(shown.pop("options", ()))
            assert shown == own or (kind is TokenOptions and key.name in {one.name for one in fields(NetworkOptions)})


def default(config, path):
    """The declared default of a dotted key."""
    for name in path[:-1]:
        config = getattr(config, name)
    declared = type(config).__dataclass_fields__[path[-1]]
    return declared.default_factory() if declared.default is MISSING else declared.default


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_no_file_repeats_a_default(file):
    given = OmegaConf.to_container(OmegaConf.load(file))
    given = {key: value for key, value in given.items() if key not in ("defaults", "hydra", "name")}
    group = file.parent.name if file.parent != CONF else ""
    config = Train(trainer=TRAINERS[file.stem].options()) if group == "trainer" else Train()
    config = Evaluate() if file.stem == "evaluate" else config
    for path, value in leaves({group: given} if group else given):
        assert value != default(config, path), f"{'.'.join(path)}={value} is the declared default"


@pytest.mark.parametrize("request_", ["train", "evaluate", *(f"train trainer={name}" for name in TRAINERS)])
@pytest.mark.sampled(3)
def test_help_shows_every_key_and_every_group(request_, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    program, *arguments = request_.split()
    assert call(monkeypatch, program, *arguments, "--help") == 0
    out, err = capsys.readouterr()
    assert not err and out.count(f"python {program}.py ") >= 3
    schema = Train if program == "train" else Evaluate
    config, groups = compose.compose(program, schema, arguments), compose.options_of_groups()
    flat = " ".join(out.split())
    for option in describe(config):
        assert f"{option.name}={option.default}" in out
        assert option.help in flat and option.range in flat, option.name
    for group, options in groups.items():
        assert group in out and all(option in out for option in options[:10])
    if program == "train":
        files = {place.name for place in CONF.iterdir() if place.is_dir()}
        assert (
            set(groups) == files | {"model"} and "hbnet_small" in groups["model"] and "default" in groups["algorithm"]
        )


def test_help_tells_what_the_other_options_are_now(monkeypatch, capsys):
    assert call(monkeypatch, "train", "data=cifar10", "epochs=7", "--help") == 0
    out = capsys.readouterr().out
    assert "epochs=7" in out and "data.augment=crop_flip" in out
    assert call(monkeypatch, "train", "epochs=x", "--help") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_options_class_stands_beside_its_user():
    """The tree of the configuration is composed: no file of the application declares an option of another wing."""
    for key in fields(Train):
        value = getattr(Train(), key.name)
        if is_dataclass(value) and key.name != "model":
            assert not type(value).__module__.startswith("optnet.app"), key.name


def test_the_data_folder_is_the_environments(monkeypatch):
    monkeypatch.setenv("OPTNET_DATA", "/somewhere")
    assert DataOptions().root == "/somewhere"
    monkeypatch.delenv("OPTNET_DATA")
    assert Path(DataOptions().root) == Path("data")
