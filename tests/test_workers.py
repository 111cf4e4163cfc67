"""The processes that read images: one that hangs while it starts is noticed and replaced."""

import multiprocessing
import os
import time

import pytest
import torch
from helpers import class_folder

from optnet import DataError
from optnet.data import load, workers


class Hung(workers._Here):
    """As a process that was forked while another thread held the lock: it never comes to say that it runs."""

    flag, times = "", 1

    def __call__(self, number):
        if number == 1 and len(os.listdir(self.flag)) < self.times:
            open(os.path.join(self.flag, str(os.getpid())), "w").close()
            time.sleep(1000)
        super().__call__(number)


def batches(folder, count):
    if not folder.exists():
        class_folder(folder, count=12)
    data = load("folder", str(folder), size=16)
    loader = data.loader("train", 4, device=torch.device("cpu"), training=True, workers=count)
    return [images for images, _ in loader.batches()]


@pytest.mark.parametrize("times", [1, 2])
def test_a_process_that_hangs_at_its_start_is_replaced(tmp_path, monkeypatch, times):
    flags = tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(Hung, "flag", str(flags))
    monkeypatch.setattr(Hung, "times", times)
    monkeypatch.setattr(workers, "_Here", Hung)
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    found, expected = batches(tmp_path / "images", 2), batches(tmp_path / "images", 0)
    assert len(list(flags.iterdir())) == times
    assert len(found) == len(expected) > 1
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not multiprocessing.active_children()


def test_if_none_ever_starts_one_line_says_so(tmp_path, monkeypatch):
    flags = tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setattr(Hung, "flag", str(flags))
    monkeypatch.setattr(Hung, "times", 100)
    monkeypatch.setattr(workers, "_Here", Hung)
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    with pytest.raises(DataError, match=r"try data\.workers=0") as error:
        batches(tmp_path / "images", 2)
    assert "\n" not in str(error.value) and not multiprocessing.active_children()
