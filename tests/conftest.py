"""Fixtures of several files."""

import pytest
import torch


@pytest.fixture
def double():
    """A fixed seed, and float64 as the default type."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
