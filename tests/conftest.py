"""Fixtures of several files. Each process of the tests computes in one thread: they run in parallel, one to a core."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported; the programs that tests start inherit it

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def double():
    """A fixed seed, and float64 as the default type."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
