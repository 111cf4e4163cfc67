"""init_from= and freeze=: which weights a run starts from, and which parameters and statistics stay as they are."""

import copy
import os
import signal

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from helpers import ROOT, call, class_folder, config, go, metrics, only_run, prepare
from safetensors.torch import save_file
from torch import nn

import optnet
from optnet.app.config import Model, Train
from optnet.data import Preprocessing
from optnet.errors import CheckpointError, ConfigError, RequestError
from optnet.networks.statistics import hold, is_held, recompute, synchronise
from optnet.networks.unrolled import coefficient_names
from optnet.training import checkpoint, distributed, transfer
from optnet.training.interruption import Interrupted
from optnet.training.loop import Observer
from optnet.training.run import Run

HEAD = {"head.fc.weight", "head.fc.bias"}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The folder of a run on the digits."""
    place = tmp_path_factory.mktemp("before")
    go(prepare(config(place, epochs=1)))
    return only_run(place)


def state(folder, name="last"):
    return checkpoint.load(folder / "checkpoints" / f"{name}.pt").state_dict


def same(one, other, names=None):
    return all(torch.equal(one[name], other[name]) for name in (names or one))


@pytest.mark.parametrize("given", ["folder", "best.pt", "weights alone"])
@pytest.mark.sampled(1)
def test_a_run_starts_from_a_run(before, tmp_path, given):
    file = before / "checkpoints" / "best.pt"
    if given == "weights alone":
        torch.save({"state_dict": nn.DataParallel(optnet.load(file)).state_dict()}, tmp_path / "x.pth")
        file = tmp_path / "x.pth"
    job = prepare(config(tmp_path, init_from=str(before if given == "folder" else file)))
    assert same(job.model.state_dict(), state(before, "best"))
    total = len(state(before))
    assert f"{total} of the model's {total} tensors are loaded" in job.note and ";" not in job.note
    assert not same(prepare(config(tmp_path)).model.state_dict(), state(before, "best"))


def test_the_run_says_it_and_its_preprocessing_is_kept(tmp_path, capsys):
    """Pictures of other classes: the head is new, and the images are as the weights know them."""
    class_folder(tmp_path / "one", size=24)
    class_folder(tmp_path / "two", classes=("ant", "bee", "cow"), size=24)
    first = config(tmp_path / "a", epochs=1, batch_size=8)
    first.data.name, first.data.root, first.data.size, first.data.mean = "folder", str(tmp_path / "one"), 12, [0.3] * 3
    go(prepare(first))
    source = only_run(tmp_path / "a")
    trained = Preprocessing(**checkpoint.load(source / "checkpoints" / "best.pt").preprocessing)
    made = config(tmp_path / "b", epochs=1, batch_size=8, init_from=str(source), freeze="all_but_head")
    made.data.name, made.data.root = "folder", str(tmp_path / "two")
    capsys.readouterr()
    go(prepare(made))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "init_from" in line]
    assert "new, since its head has 2 outputs and not 3: head.fc.weight, head.fc.bias" in line
    assert "images of 3x12x12" in line and "parameters are trained, by freeze=all_but_head" in line
    folder = only_run(tmp_path / "b")
    now = checkpoint.load(folder / "checkpoints" / "last.pt")
    assert Preprocessing(**now.preprocessing) == trained and now.classes == ["ant", "bee", "cow"]
    assert same(state(source, "best"), now.state_dict, now.state_dict.keys() - HEAD)
    assert same(optnet.load(folder).state_dict(), state(folder, "best"))
    made.data.size = 16
    assert prepare(made, ["data.size=16"]).data.preprocessing == trained.changed(size=(16, 16))
    assert Preprocessing.of(prepare(Train(resume=str(folder), epochs=2), ["resume=x", "epochs=2"]).model) == trained


FROZEN = {
    "all_but_head": lambda model: {n for n, _ in model.named_parameters()} - HEAD,
    "all_but_coefficients": lambda model: {n for n, _ in model.named_parameters()} - coefficient_names(model),
    "stages.0": lambda model: {n for n, _ in model.named_parameters() if n.startswith("stages.0.")},
    "stages.*": lambda model: {n for n, _ in model.named_parameters() if n.startswith("stages.")},
    "*.bias": lambda model: {n for n, _ in model.named_parameters() if n.endswith(".bias")},
    "stem.conv.weight": lambda model: {"stem.conv.weight"},
}  # fmt: skip
TRAINED = [
    ("sgd", "none", {}), ("adamw", "ema", {}), ("lamb", "polyak", {"clip": 1.0, "clip_mode": "agc"}),
    ("adamw", "none", {"compile": False, "channels_last": True, "accumulate": 2, "clip": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize("pattern", FROZEN)
@pytest.mark.sampled(2)
def test_what_is_frozen_does_not_change(before, tmp_path, pattern, request):
    """Not by weight decay, momentum, averaging or recalibration; everything else does."""
    optim, average, more = TRAINED[list(FROZEN).index(pattern) % len(TRAINED)]
    made = config(tmp_path, epochs=1, init_from=str(before), freeze=pattern, limit_batches=6, lr=0.05)
    made.optim.name, made.optim.weight_decay, made.trainer.average = optim, 0.3, average
    made.optim.coefficient_lr = 0.01
    vars(made.trainer).update(more)
    job = prepare(made)
    wanted = FROZEN[pattern](job.model)
    model = job.model
    held = {name for name, module in model.named_modules() if is_held(module)}
    go(job)
    one, two = state(before, "best"), state(only_run(tmp_path))
    assert wanted and same(one, two, wanted)
    parameters = {name for name, _ in model.named_parameters()}
    changed = {name for name in parameters if not torch.equal(one[name], two[name])}
    assert changed == parameters - wanted
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            own = {f"{name}.weight", f"{name}.bias"}
            buffers = {f"{name}.running_mean", f"{name}.running_var", f"{name}.num_batches_tracked"}
            assert same(one, two, buffers) == (own <= wanted) == (name in held)


def test_a_resumed_run_keeps_it(before, tmp_path):
    options = {"init_from": str(before), "freeze": ["all_but_head"], "limit_batches": 5}
    go(prepare(config(tmp_path / "short", epochs=2, **options)))
    folder = only_run(tmp_path / "short")
    job = prepare(Train(resume=str(folder), epochs=3), ["resume=x", "epochs=3"])
    assert {n for n, p in job.model.named_parameters() if p.requires_grad} == HEAD
    go(job)
    assert same(state(before, "best"), state(folder), state(before).keys() - HEAD)
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="a resumed run keeps its config"):
        prepare(Train(resume=str(folder), freeze="stem"), ["resume=x", "freeze=stem"])
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("- all_but_head", "- stem"))
    with pytest.raises(ConfigError, match="freeze cannot change within a run"):
        prepare(Train(resume=str(folder), epochs=4), ["resume=x", "epochs=4"])


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(before, tmp_path, monkeypatch):
    """Interrupted in the midst of an epoch."""
    options = {"init_from": str(before), "freeze": "stages.*", "limit_batches": 6, "epochs": 2}
    go(prepare(config(tmp_path / "whole", **options)))

    class Stop(Observer):
        def on_step(self, progress, trainer):
            if progress.updates == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    watch = Run._watch
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_watch", lambda run: (watch(run), run.observers.append(Stop())))
        with pytest.raises(Interrupted):
            go(prepare(config(tmp_path / "cut", **options)))
    cut = only_run(tmp_path / "cut")
    go(prepare(Train(resume=str(cut)), ["resume=x"]))
    assert same(state(cut), state(only_run(tmp_path / "whole")))


# statistics


def test_a_held_norm_keeps_its_statistics_through_everything():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    hold(model[0])
    for one in (model, copy.deepcopy(model), synchronise(copy.deepcopy(model))):
        fresh = {name: value.clone() for name, value in one[0].state_dict().items()}
        assert is_held(one[0]) and not is_held(one[1])
        one.train()
        assert (one[0].training, one[1].training) == (False, True)
        if one[1].__class__ is nn.BatchNorm2d:
            recompute(one, [torch.randn(8, 2, 3, 3)] * 2)
            assert one[1].num_batches_tracked == 2
        assert same(fresh, one[0].state_dict())


def test_the_mean_of_three_processes_leaves_it(monkeypatch):
    """(x + x + x) / 3 is not x in floating point."""
    model = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(64))
    for norm in model:
        norm.running_mean.copy_(torch.rand(64))
    hold(model[0])
    kept = model[0].running_mean.clone()
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: tensor.mul_(3.3))
    other = model[1].running_mean.clone()
    distributed.share_buffers(model, "reduce")
    assert torch.equal(model[0].running_mean, kept) and not torch.equal(model[1].running_mean, other)


# what does not fit


def source_of(model, classes=()):
    return transfer.Source("init_from=x", model.state_dict(), None, classes)


def test_other_channels_and_another_head():
    """The first convolution is timm's: the sum over the colours."""
    trained = timm.create_model("resnet18", num_classes=7)
    model = timm.create_model("resnet18", num_classes=3, in_chans=1)
    said = transfer.start(model, source_of(trained), ("a", "b", "c"))
    assert torch.allclose(model.conv1.weight, trained.conv1.weight.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(model.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)
    assert "conv1.weight is adapted to 1 input channel(s)" in said
    assert "its head has 7 outputs and not 3: fc.weight, fc.bias" in said


def test_an_ancestors_weights_start_our_network():
    trained = torchvision.models.resnet18(num_classes=7).eval()
    model = timm.create_model("hbnet18", num_classes=7).eval()
    said = transfer.start(model, source_of(trained))
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model(images), trained(images), atol=1e-4) and "new" not in said
    assert "its head is that of other classes: a, b" in transfer.start(
        timm.create_model("test_resnet", num_classes=2),
        source_of(timm.create_model("test_resnet", num_classes=2), ("a", "b")), ("a", "c"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("resnet34", "resnet18", "not used: layer1.2.conv1.weight"),
        ("resnet18", "resnet34", "new, since it lacks them: layer1.2.conv1.weight"),
    ],
)
def test_what_is_missing_and_what_is_not_used_is_said(one, two, said):
    assert said in transfer.start(timm.create_model(two), source_of(timm.create_model(one)))


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("test_vit", "test_resnet", "none of its weights is the model's"),
        (
            "resnet18",
            "resnet50",
            "its weights do not fit the model: layer1.0.conv1.weight is a real tensor",
        ),
        ("resnet34", "hbnet18", "no counterpart"),
    ],
)
@pytest.mark.sampled(1)
def test_what_does_not_fit_is_refused_and_changes_nothing(one, two, said):
    model = timm.create_model(two)
    kept = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=said) as error:
        transfer.start(model, source_of(timm.create_model(one)))
    assert str(error.value).isprintable() and same(kept, model.state_dict())


def test_timms_weights_of_a_tag_from_its_cache(tmp_path, monkeypatch):
    """The file is here, the network is not. The size is that of the training and not that of its best test."""
    trained = timm.create_model("resnet18", num_classes=1000)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"timm's weights of that name are not here and cannot be had") as error:
        transfer.find("resnet18.a1_in1k")
    assert str(error.value).isprintable()
    place = tmp_path / "models--timm--resnet18.a1_in1k"
    (place / "snapshots" / "a").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a")
    save_file(trained.state_dict(), place / "snapshots" / "a" / "model.safetensors")
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for name in ("resnet18.a1_in1k", "hbnet18.a1_in1k"):
        found = transfer.find(name)
        assert found.preprocessing == Preprocessing((224, 224), *imagenet, 0.95, "bicubic")
        model = timm.create_model("hbnet18", num_classes=1000)
        transfer.start(model, found)
        images = torch.randn(2, 3, 64, 64)
        assert torch.allclose(model.eval()(images), trained.eval()(images), atol=1e-4)


WRONG = [
    ("init_from=nowhere", "there is no such file or folder"),
    ("init_from=resnet18.a1_in2k", "did you mean resnet18.a1_in1k"),
    ("init_from=hbnet_small", "timm has no weights of that name"),
    ("init_from=conf", "there is no checkpoint"),
    ("init_from=README.md", "is truncated or not a checkpoint"),
    ("freeze=stages.7", "matches no module and no parameter of the model; did you mean stages."),
    ("freeze=nonsense", "matches no module and no parameter of the model"),
    ("freeze=[stem,xyz]", "freeze=xyz matches no module"),
    ("freeze=['*']", "leaves nothing to train"),
    ("freeze=all_but_coefficients model.coefficients=fixed", "has no learnable coefficients"),
    ("freeze=3", "must be all_but_head"),
    ("freeze=''", "must be all_but_head"),
    ("freeze=all_but_head trainer=mac model=mlp", "does not go with trainer=mac"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
@pytest.mark.sampled(5)
def test_a_wrong_request_is_one_line(given, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert call(monkeypatch, "train", *given.split(), f"runs={tmp_path / 'runs'}", "device=cpu") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err, err
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save(timm.create_model("test_resnet"), tmp_path / "model.pth")
    with pytest.raises(RequestError, match="holds a pickled timm"):
        prepare(config(tmp_path, init_from=str(tmp_path / "model.pth"), model=Model("test_resnet")))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("kind", ["wrapped", "pickled"])
def test_timms_own_way_to_a_file_reads_the_same(tmp_path, kind):
    """model.kwargs.checkpoint_path, of which timm itself reads fewer layouts."""
    trained, file = timm.create_model("test_resnet", num_classes=10, in_chans=1), tmp_path / "x.pth"
    names = {f"net.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": names} if kind == "wrapped" else trained, file)
    made = config(tmp_path, model=Model("test_resnet", kwargs={"checkpoint_path": str(file)}))
    if kind == "wrapped":
        assert same(trained.state_dict(), prepare(made).model.state_dict())
    else:
        with pytest.raises(CheckpointError, match="holds a pickled timm"):
            prepare(made)
