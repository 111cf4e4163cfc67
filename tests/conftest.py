"""Fixtures of several files. Each process of the tests computes in one thread: they run in parallel, one to a core."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported; the programs that tests start inherit it

import shutil
from pathlib import Path

import pytest
import torch
from helpers import config, go, only_run, prepare

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test that is marked ``sampled(n)``, all cases but n are slow."""
    cases = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            cases.setdefault((item.path, item.originalname), []).append(item)
    for alike in cases.values():
        (count,) = alike[0].get_closest_marker("sampled").args
        count = min(count, len(alike))
        kept = {len(alike) * (2 * i + 1) // (2 * count) for i in range(count)}
        for i, item in enumerate(alike):
            if i not in kept:
                item.add_marker("slow")


@pytest.fixture
def double():
    """A fixed seed, and float64 as the default type."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, with momentum and an average in its trainer's state."""
    place = tmp_path_factory.mktemp("trained")
    made = config(place, epochs=2, limit_batches=5)
    made.trainer.average = "ema"
    go(prepare(made))
    return only_run(place)


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
