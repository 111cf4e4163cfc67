"""What a run says of itself: the command, the commit, the settings as they came to be, the user's algorithm."""

import json
import subprocess

import pytest
from helpers import MINE, call, config, go, only_run

from optnet.app import provenance
from optnet.app.train import prepare

TINY = ("model.blocks=[1,1]", "model.widths=[4,8]", "epochs=1", "limit_batches=2", "device=cpu", "monitor=none")


def commit(folder, *arguments):
    own = ("-c", "user.name=me", "-c", "user.email=me@here")
    subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True)


def records(folder, skip=0):
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()[skip:]]


def test_the_commit_and_whether_the_tree_is_clean(tmp_path, monkeypatch):
    assert provenance.git(tmp_path) is None
    commit(tmp_path, "init", "-q")
    assert provenance.git(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("a")
    commit(tmp_path, "add", "a")
    commit(tmp_path, "commit", "-qm", "first")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert provenance.git(tmp_path) == {"commit": head, "clean": True}
    (tmp_path / "a").write_text("b")
    assert provenance.git(tmp_path) == {"commit": head, "clean": False}
    monkeypatch.setenv("PATH", "")
    assert provenance.git(tmp_path) is None


def test_the_record_of_a_run(tmp_path, monkeypatch):
    """A run, and the same one resumed: the command, what the code chose, the algorithm's text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    given = ("algorithm=mine.py:mine", "algorithm.pull=0.1", "lr=0.05", *TINY)
    assert call(monkeypatch, "train", *given) == 0
    (folder,) = tmp_path.glob("runs/*/*")
    (record,) = records(folder)
    assert record["overrides"] == list(given) and record["folder"] == str(tmp_path) and record["git"] is None
    assert record["command"].startswith("train.py algorithm=mine.py:mine ") and record["steps"] == 2
    effective = record["effective"]
    assert (effective["device"], effective["optim"]["coefficient_lr"]) == ("cpu", 0.05)
    model = effective["model"]
    assert (model["layer"], model["reading"], model["blocks"], model["widths"]) == ("basic", "residual", [1, 1], [4, 8])
    assert model["coefficients"] == "learnable" and model["stem_width"] == 4
    assert effective["algorithm"] == {"name": "mine.py:mine", "pull": 0.1}
    assert effective["data"]["classes"] == 10 and effective["data"]["shape"] == [1, 8, 8]
    assert effective["data"]["train"] == 1293 and effective["distributed"]["processes"] == 1
    assert (folder / "checkpoints" / "mine.py").read_text() == MINE
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["lr"] == 0.05 and summary["overrides"] == list(given)
    assert call(monkeypatch, "train", f"resume={folder}", "epochs=2") == 0
    first, second = records(folder)
    assert first == record and second["overrides"] == [f"resume={folder}", "epochs=2"]
    assert second["effective"]["epochs"] == 2 and second["effective"]["algorithm"]["pull"] == 0.1


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}'])
@pytest.mark.sampled(1)
def test_a_torn_record_does_not_touch_the_next_one(content, tmp_path):
    go(prepare(config(tmp_path, epochs=1, limit_batches=2)))
    folder = only_run(tmp_path)
    (folder / "record.jsonl").write_text(content)
    go(prepare(config(tmp_path, resume=str(folder), epochs=2), ["epochs=2"]))
    assert records(folder, skip=bool(content))[0]["overrides"] == ["epochs=2"]


def test_a_record_is_not_written_through_a_link(tmp_path):
    go(prepare(config(tmp_path, epochs=1, limit_batches=2)))
    folder, other = only_run(tmp_path), tmp_path / "other"
    (folder / "record.jsonl").unlink()
    (folder / "record.jsonl").symlink_to(other)
    other.write_text("mine")
    go(prepare(config(tmp_path, resume=str(folder), epochs=2), ["epochs=2"]))
    assert other.read_text() == "mine" and len(records(folder)) == 1


def test_our_own_algorithms_are_not_copied():
    assert provenance.sources("heavy_ball") == {} and provenance.sources(None) == {}
