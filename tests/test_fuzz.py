"""Overrides that nobody thought of: train.py and evaluate.py end with 0, or with one line and 2 and nothing left."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optnet.app import evaluate, train
from optnet.app.config import Evaluate, Train
from optnet.app.sweep import Result
from optnet.data import DataOptions
from optnet.options import describe, example

DRAWS = int(os.environ.get("OPTNET_DRAWS", "300"))
NETWORK = ("data.download", "pretrained", "model.kwargs")
"""Keys that would fetch something."""
KEYS = {
    "train": [option.name for option in describe(Train()) if not option.name.startswith(NETWORK)],
    "evaluate": [option.name for option in describe(Evaluate(data=DataOptions())) if option.name not in NETWORK],
}
GROUPS = ("model", "algorithm", "data", "optim", "schedule", "trainer", "init", "monitor", "experiment", "debug")
WORDS = (
    "null", "true", "false", "none", "auto", "cpu", "meta", "cuda:7", "hbnet_small", "mlp", "resnet10t", "heavy_ball",
    "admm", "nesterov_dense", "digits", "synthetic", "folder", "imagenet", "sgd", "adamw", "lion", "cosine", "lsuv",
    "backprop", "lpom", "everything", "standard", "one_batch", "mnist_quick", "x.py:f", "optnet.trace", "os.system",
    ".", "..", "/", "~", "-", "+", "*", "?", "a/b", "???", "nan", "inf", "-inf", "1e400", "1e-400", "0x10", "1_0",
)  # fmt: skip
NASTY = (
    "[/]", "[red]", "%s", "{}", "$HOME", "${x}", "${seed}", "${oc.env:HOME}", "${oc.env:NOPE}", "${name}", "${.}",
    "${now:%Y}", "\x1b[31m", "a\nb", "a\0b", "../..", "x" * 300, "\udcff", "$$x", "a b", "'", '"', "=", ",", "a=b",
    "a,b", "[", "]", "{", "}", "[1,2", "{a:1}", "{a:[1]}", "[[1],[2]]", "\\", "\\'", "é", "日本", "\u202e", "\ud83d",
    "a:b", "choice(1,2)", "range(3)", "interval(0,1)", "glob(*)", "sort(3,1)", "shuffle(1)", "tag(a,1)", "str(1)",
    "!!python/object:os.system", "&a [*a]", "@x", "|", "<<: 1",
)  # fmt: skip
numbers = st.one_of(st.integers(-3, 40), st.sampled_from([10**30, -(10**30)]), st.floats(-2, 2).map(lambda f: f"{f:g}"))
plain = st.one_of(st.sampled_from(WORDS), st.sampled_from(NASTY), numbers.map(str), st.text(max_size=8))
values = st.one_of(
    plain, plain.map(lambda text: f"'{text}'"), st.lists(plain, max_size=3).map(lambda v: f"[{','.join(v)}]"),
    st.dictionaries(plain, plain, max_size=2).map(lambda v: "{" + ",".join(f"{k}:{x}" for k, x in v.items()) + "}"),
)  # fmt: skip


CONFIGS = {"train": Train(), "evaluate": Evaluate(data=DataOptions())}


def right(program, key):
    """Values of the key that are right, or of the right type."""
    default = next(option for option in describe(CONFIGS[program]) if option.name == key)
    ranges = [word.strip() for word in default.range.split(",") if word.strip().replace("_", "").isalnum()]
    return st.sampled_from([default.default, str(example(CONFIGS[program], key)), *ranges, "1", "2", "0.5", "true"])


def assigned(program, key):
    """A key with a value that is right more often than not."""
    of_key = st.one_of(right(program, key), right(program, key), numbers.map(str), values)
    return st.tuples(st.sampled_from(("", "", "", "", "", "+", "++", "~")), of_key).map(lambda p: f"{p[0]}{key}={p[1]}")


def chosen(group):
    return st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), values).map(lambda option: f"{group}={option}")


def overrides(program):
    """Three in four are a known key or a known group."""
    odd = st.one_of(
        st.tuples(st.sampled_from(["foo", "data.foo", "a.b.c", "model@x", "", "optim.kwargs.x"]), values).map("=".join),
        st.sampled_from(["-m", "--cfg=job", "--help", "--info", "--nonsense", "-h", "--package=x", "--resolve"]),
        plain, st.tuples(st.text(max_size=6), plain).map("=".join),
    )  # fmt: skip
    one = st.integers(0, 15).flatmap(
        lambda kind: odd if kind == 0 else st.sampled_from(GROUPS).flatmap(chosen) if kind < 5
        else st.sampled_from(KEYS[program]).flatmap(lambda key: assigned(program, key))
    )  # fmt: skip
    return st.lists(one, min_size=1, max_size=4)


def request(program, arguments):
    """The status, stdout and stderr of a request that is checked and not carried out, and what it left."""
    out, err, place = io.StringIO(), io.StringIO(), Path(tempfile.mkdtemp())
    before, argv = os.getcwd(), sys.argv
    (place / "a").mkdir()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.delenv("OPTNET_DATA", raising=False)
            patch.setattr(train, "start", lambda request, label="": Result(0.0, {}))
            patch.setattr(evaluate, "score", lambda request, label="": Result(0.0, {}))
            patch.setattr(sys, "argv", [f"{program}.py"])
            try:
                {"train": train, "evaluate": evaluate}[program].main(arguments)
                status = 0
            except SystemExit as ended:
                status = ended.code
        left = sorted(str(file.relative_to(place)) for file in place.rglob("*"))
    finally:
        os.chdir(before)
        sys.argv = argv
        shutil.rmtree(place, ignore_errors=True)
    return status, out.getvalue(), err.getvalue(), left


def check(program, arguments):
    status, out, err, left = request(program, arguments)
    assert status in (0, 2), (arguments, status, err)
    assert "Traceback" not in out + err, (arguments, err)
    if status == 2:
        assert err.startswith("error: ") and err.count("\n") == 1, (arguments, err)
        assert err.rstrip("\n").isprintable() and left == ["a"] and not out, (arguments, err, left, out)


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_some_overrides(program):
    @settings(max_examples=10, derandomize=True, **COMMON)
    @given(overrides(program))
    def draw(arguments):
        check(program, arguments)

    draw()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_overrides(program):
    @settings(max_examples=DRAWS, print_blob=True, **COMMON)
    @given(overrides(program))
    def draw(arguments):
        check(program, arguments)

    draw()
