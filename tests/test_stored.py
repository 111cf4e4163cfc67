"""What a run stores is checked before it is used: checksums, entries, identity, settings; and its lock."""

import copy
import json
import math
import random
import shutil

import pytest
import torch
import yaml
from helpers import (
    crossed,
    go,
    metrics,
    only_run,
    refused,
    resume,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optnet import CheckpointError
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate, Model
from optnet.errors import RequestError
from optnet.training import checkpoint, weights

# checksums


def flipped(content, drawn):
    place = drawn.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << drawn.randrange(8)]) + content[place + 1 :]


def zeroed(content, drawn):
    place = drawn.randrange(len(content) - 64)
    return content[:place] + bytes(64) + content[place + 64 :]


@pytest.mark.parametrize("damage", [flipped, zeroed])
@pytest.mark.sampled(1)
def test_no_changed_bit_is_accepted(folder, damage):
    """Wherever it is in the file: it is refused, or it is in padding and nothing that is read has changed."""
    last = folder / "checkpoints" / "last.pt"
    whole, drawn, found = last.read_bytes(), random.Random(0), 0
    original = torch.load(last, weights_only=True)
    for _ in range(60):
        last.write_bytes(damage(whole, drawn))
        try:
            read = weights.read(last)
        except CheckpointError as error:
            found += 1
            assert "\n" not in str(error)
        else:
            assert same(read, original)
    assert found > 30


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def damage_tensor(file):
    """Flips one bit of a weight."""
    weight = next(w for w in torch.load(file, weights_only=True)["state_dict"].values() if w.numel() > 20)
    content, bits = file.read_bytes(), weight.numpy().tobytes()
    place = content.index(bits) + 5
    file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])


def test_after_a_changed_bit_the_checkpoint_before_is_taken(folder, capsys):
    damage_tensor(folder / "checkpoints" / "last.pt")
    job = resume(folder)
    assert job.resumed.progress["epoch"] == 1 and "checksum" in job.note and "previous.pt" in job.note
    damage_tensor(folder / "checkpoints" / "previous.pt")
    refused(folder, "last.pt was changed since it was written", error=CheckpointError)


def test_a_changed_bit_of_the_best_checkpoint_is_noticed_at_once(folder):
    damage_tensor(folder / "checkpoints" / "best.pt")
    refused(folder, "best.pt was changed since it was written", error=CheckpointError)
    with pytest.raises(CheckpointError, match="was changed"):
        assess.prepare(Evaluate(checkpoint=str(folder / "checkpoints" / "best.pt")))


# entries


def put(content, path, value):
    """Sets an entry below others; leaves it out if the value is ``...``."""
    *above, key = path.split(".")
    for name in above:
        content = content[int(name)] if isinstance(content, list) else content[name]
    if value is ...:
        del content[key]
    else:
        content[key] = value


WRONG = [
    *(("progress.epoch", value) for value in ("text", 1.5, None, -1, ..., True, 10**12)),
    *((f"progress.{key}", -1) for key in ("batch", "updates", "correct", "count", "best_epoch", "images", "seconds")),
    *((f"progress.{key}", "x") for key in ("batch", "updates", "loss_sum", "best", "best_loss", "seconds")),
    *((f"progress.{key}", math.nan) for key in ("loss_sum", "best", "best_loss", "seconds", "epoch_seconds")),
    ("progress", []), ("progress.batch", 10**9), ("progress.updates", 3), ("progress.surplus", 1),
    ("progress.best", 101),
    ("epoch", 3), ("epoch.images", "x"), ("epoch.batch_size", 0), ("epoch.steps", ...), ("epoch.steps", 1.5),
    ("records", 3), ("records", {}), ("records", [{"epoch": 1, "scalars": {}}]), ("records", "3"), ("records", "no"),
    ("records", '{"epoch": "x", "scalars": {}}'), ("records", '{"epoch": 1, "scalars": {"a": "x"}}'),
    ("records", '{"epoch": 1, "scalars": {}}\n{"epoch": 1}'), ("records", "[" * 100_000),
    ("records", '{"epoch": 0, "scalars": {}}'),
    ("events", []), ("events", {"x": "y"}), ("events", {"x": -1.5}),
    ("classes", 3), ("classes", "abcdefghij"), ("classes", [1, 2]), ("classes", ["a", "b"]), ("classes", []),
    ("rng", {}), ("rng", {"cpu": 3}), ("rng", {"cpu": torch.zeros(3)}), ("shares", 3), ("shares", [{"loss_sum": 1.0}]),
    ("preprocessing", 3), ("preprocessing", {}), ("preprocessing.size", (8,)), ("preprocessing.size", [8, 8]),
    ("preprocessing.size", ...), ("preprocessing.mean", ("x",)), ("preprocessing.std", (0.0,)),
    ("preprocessing.crop", 2.0), ("preprocessing.interpolation", "linear"), ("preprocessing.more", 1),
    ("config", []), ("config", {}), ("versions", {"a": 1}), ("versions", 3),
    ("run", 3), ("run", "another"), ("model", 3), ("model", {}), ("model.name", 3), ("model.kwargs", []),
    ("model.kwargs", {1: 2}), ("state_dict", 3), ("state_dict", {}), ("state_dict", {"a": 3}),
    ("trainer", 3), ("trainer", {}), ("trainer.optimizer", 3), ("trainer.optimizer", {}), ("trainer.updates", "x"),
    ("trainer.updates", 1.5), ("trainer.updates", 3), ("trainer.updates", -1), ("trainer.network", {}),
    ("trainer.scaler", 3),
    ("trainer.optimizer.param_groups", []), ("trainer.optimizer.param_groups.0.lr", "x"),
    ("trainer.optimizer.param_groups.0.params", [0]), ("trainer.optimizer.state", 3),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: str(value)[:40])
@pytest.mark.sampled(48)
def test_an_entry_that_is_not_what_it_must_be(folder, path, value):
    file = folder / "checkpoints" / "last.pt"
    content = torch.load(file, weights_only=True)
    put(content, path, value)
    torch.save(content, file)
    refused(folder, error=RequestError)


def tensors(content, path=()):
    """The path of every tensor in a checkpoint."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, torch.Tensor):
            yield (*path, key)
        elif isinstance(value, (dict, list)):
            yield from tensors(value, (*path, key))


FORMS = {
    "complex": lambda tensor: tensor.to(torch.complex64),
    "whole": lambda tensor: tensor.to(torch.int32 if tensor.is_floating_point() else torch.float32),
    "shape": lambda tensor: torch.zeros(*tensor.shape, 2, dtype=tensor.dtype),
    "text": lambda tensor: "text",
}


@pytest.mark.parametrize("form, part", crossed(FORMS, range(4)))
@pytest.mark.sampled(2)
def test_a_tensor_that_is_not_what_it_must_be(folder, form, part):
    """Weights, averaged weights, momentum, random states: one of each kind is changed, in four parts."""
    file = folder / "checkpoints" / "last.pt"
    whole = torch.load(file, weights_only=True)
    chosen = {(*path[:2], str(path[-1]).rpartition(".")[2]): path for path in tensors(whole)}.values()
    assert len(chosen) > 10 and any("momentum_buffer" in path for path in chosen)
    for *above, key in list(chosen)[part::4]:
        content = copy.deepcopy(whole)
        table = content
        for name in above:
            table = table[name]
        table[key] = FORMS[form](table[key])
        torch.save(content, file)
        refused(folder, error=CheckpointError)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.bool])
def test_complex_and_whole_weights_are_refused(folder, kind):
    best = folder / "checkpoints" / "best.pt"
    content = torch.load(best, weights_only=True)
    name = next(name for name, weight in content["state_dict"].items() if weight.dim() == 4)
    content["state_dict"][name] = content["state_dict"][name].to(kind)
    torch.save(content, best)
    with pytest.raises(CheckpointError, match=f"{name} is a .* tensor of .*, not a real tensor"):
        assess.prepare(Evaluate(checkpoint=str(best)))


# identity


def test_a_run_its_configuration_and_its_checkpoints_have_one_identity(folder, tmp_path):
    run = yaml.safe_load((folder / "config.yaml").read_text())["run"]
    contents = [checkpoint.load(file) for file in (folder / "checkpoints").iterdir()]
    assert len(contents) == 3 and {content.run for content in contents} == {run}
    assert json.loads((folder / "summary.json").read_text())["run"] == run
    go(resume(folder, epochs=3))
    assert checkpoint.load(folder / "checkpoints" / "last.pt").run == run
    train(tmp_path / "other", epochs=1)
    assert checkpoint.load(only_run(tmp_path / "other") / "checkpoints" / "last.pt").run != run


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"model": Model(blocks=[1, 2], widths=[8, 8])}], ids=["seed", "width"]
)
@pytest.mark.sampled(2)
def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path, options, name):
    train(tmp_path / "other", epochs=1, limit_batches=5, **options)
    (other,) = (tmp_path / "other" / "runs").glob(f"*/*/checkpoints/{name}.pt")
    shutil.copy(other, folder / "checkpoints" / f"{name}.pt")
    refused(folder, "another run", f"{name}.pt", error=CheckpointError)


EDITS = {
    "lr": ("0.5", "edited_config=true"), "batch_size": ("32", "edited_config=true"), "seed": ("3", "cannot change"),
    "epochs": ("-1", "epochs"), "name": ("???", "name"), "max_steps": ("???", "max_steps"),
    "patience": ("1", "edited_config=true"), "limit_batches": ("{}", "limit_batches"), "nonsense": ("3", "nonsense"),
    "model": ("{name: resnet18}", "cannot change"), "algorithm": ("{name: nesterov}", "cannot change"),
    "data": ("{name: synthetic}", "cannot change"), "trainer": ("{name: mac}", "cannot change"),
    "optim": ("{name: adamw}", "edited_config=true"), "run": ("other", "another run"), "device": ("[cpu]", "device"),
    "monitor": ("3", "monitor"), "schedule": ("null", "schedule"),
}  # fmt: skip


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_configuration_is_refused(folder, key):
    file = folder / "config.yaml"
    value, word = EDITS[key]
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**settings, key: yaml.safe_load(value)}))
    said = refused(folder, word)
    assert "config.yaml" in said or "last.pt" in said


def test_an_edited_configuration_can_be_accepted(folder, capsys):
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("\nlr: 0.1\n", "\nlr: 0.5\n"))
    job = resume(folder, edited_config=True, epochs=3)
    assert job.recipe.lr == 0.5 and "lr=0.5, which was 0.1" in job.note
    go(job)
    assert "lr=0.5, which was 0.1" in capsys.readouterr().out
    assert resume(folder).recipe.lr == 0.5, "from now on these are the run's settings"
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**settings, "seed": 9}))
    refused(folder, "seed", "cannot change within a run", edited_config=True)


def test_epochs_that_were_given_and_not_yet_saved_are_no_edit(folder):
    """What a kill leaves between the two files."""
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("epochs: 2", "epochs: 4"))
    assert resume(folder).options.epochs == 4


# records


def points(folder):
    """(step, value) of every scalar in TensorBoard."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


LINES = {
    "torn": lambda content: content[:-20],
    "without its newline": lambda content: content[:-1],
    "torn in its midst": lambda content: content[:30] + content[50:],
    "empty": lambda content: b"",
    "foreign": lambda content: b"\xff\x00 no JSON",
    "a line too many": lambda content: content + content.splitlines()[-1],
}


@pytest.mark.parametrize("damage", [*LINES, "missing", "a folder"])
@pytest.mark.sampled(3)
def test_metrics_are_written_again(folder, damage):
    file = folder / "metrics.jsonl"
    content = file.read_bytes()
    if damage in LINES:
        file.write_bytes(LINES[damage](content))
    else:
        file.unlink()
    if damage == "a folder":
        file.mkdir()
        refused(folder, "metrics.jsonl")
        return
    go(resume(folder, epochs=3))
    assert file.read_bytes().startswith(content)
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]


EVENTS = {
    "torn": lambda content: content[:-10],
    "half": lambda content: content[: len(content) // 2],
    "changed": lambda content: content[:400] + b"\x00\xff" + content[402:],
    "empty": lambda content: b"",
    "foreign": lambda content: b"nonsense" * 100,
}
"""What becomes of an event file's content at the last checkpoint."""


@pytest.mark.parametrize("damage", [*EVENTS, "missing"])
@pytest.mark.sampled(2)
def test_points_are_written_again(folder, damage, capsys):
    before = points(folder)
    if damage == "missing":
        for file in folder.glob("events*"):
            file.unlink()
    else:
        ((name, size),) = checkpoint.load(folder / "checkpoints" / "last.pt").events.items()
        (folder / name).write_bytes(EVENTS[damage]((folder / name).read_bytes()[:size]))
    go(resume(folder, epochs=3))
    after = points(folder)
    for tag in ("train/loss", "train/top1", "validation/loss", "validation/top5", "optim/lr", "time/train_seconds"):
        assert sorted(after[tag])[:2] == sorted(before[tag]) and [step for step, _ in sorted(after[tag])] == [1, 2, 3]
    for tag, path in after.items():
        assert len({step for step, _ in path}) == len(path), f"{tag} has a step twice"
    assert "written again from the records" in capsys.readouterr().out
