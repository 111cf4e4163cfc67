"""Files of weights: every layout that the field writes is read, and the rest is refused in one line. Nothing is run."""

import argparse
import collections
import copy
import pathlib

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import crossed
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR
from torch.optim.swa_utils import AveragedModel
from torchvision.models.resnet import BasicBlock

from optnet.errors import CheckpointError, RequestError
from optnet.networks import convert
from optnet.training import weights

MODELS = {
    "torchvision's ResNet": lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "torchvision's DenseNet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),
    "timm's ViT": lambda: timm.create_model("test_vit", num_classes=5),
    "timm's ResNet": lambda: timm.create_model("test_resnet", num_classes=5),
    "ours": lambda: timm.create_model("hbnet_small", num_classes=5, in_chans=1),
}


def made(name, seed):
    """A model whose weights and buffers are all drawn: fresh norms are alike."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape))
    return model


def other(model):
    """The same model with other weights, which a file must not be confused with."""
    copied = copy.deepcopy(model)
    for tensor in copied.state_dict().values():
        tensor.zero_()
    return copied


# layouts: what is written to the file, from the model whose weights are wanted


def plain(model, file):
    torch.save(model.state_dict(), file)


def legacy(model, file):
    """As torch wrote files before 1.6: no zip archive."""
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False)


def parameters(model, file):
    """A dictionary of nn.Parameter, without the counters that torch 0.4 did not have."""
    state = {name: nn.Parameter(value, value.is_floating_point()) for name, value in model.state_dict().items()}
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, file)


def halves(model, file):
    torch.save({name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()}, file)


def torchvision_reference(model, file, averaged=False):
    """references/classification/train.py"""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = SequentialLR(optimizer, [LinearLR(optimizer), CosineAnnealingLR(optimizer, 3)], [1])
    args = argparse.Namespace(lr=0.1, output_dir=pathlib.Path("x"), device=torch.device("cpu"), sizes=[1, 2])
    content = {
        "model": (other(model) if averaged else model).state_dict(), "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(), "epoch": 3, "args": args,
    }  # fmt: skip
    if averaged:
        average = AveragedModel(model, torch.device("cpu"), lambda a, b, n: 0.5 * a + 0.5 * b, use_buffers=True)
        content["model_ema"] = average.state_dict()
        assert "n_averaged" in content["model_ema"]
    torch.save(content, file)


def torchvision_average(model, file):
    torchvision_reference(model, file, averaged=True)


def average_alone(model, file):
    torch.save(AveragedModel(model).state_dict(), file)


def timm_saver(model, file, averaged=False):
    """timm's own CheckpointSaver, which also writes its command line."""
    ema = None
    trained = model
    if averaged:
        ema, trained = ModelEmaV3(model), other(model)
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    trained.pretrained_cfg = {"architecture": "resnet18"}
    args = argparse.Namespace(model="resnet18", seed=1)
    saver = CheckpointSaver(trained, optimizer, args, ema, checkpoint_dir=str(file.parent), recovery_dir="")
    saver.save_checkpoint(3, np.float64(71.5))
    (file.parent / "last.pth.tar").rename(file)


def timm_average(model, file):
    timm_saver(model, file, averaged=True)


class Lightning(nn.Module):
    """As a LightningModule holds a model: among other modules."""

    def __init__(self, model, name="model"):
        super().__init__()
        setattr(self, name, model)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(5))
        self.metric = nn.BatchNorm1d(3)


def lightning(model, file, name="model"):
    content = {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.5.0",
        "state_dict": Lightning(model, name).state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_model_path": "a.ckpt"}},
        "optimizer_states": [torch.optim.SGD(model.parameters(), 0.1).state_dict()], "lr_schedulers": [],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip
    torch.save(content, file)


def lightning_net(model, file):
    lightning(model, file, "net")


def lightning_compiled(model, file):
    lightning(torch.compile(model), file)


def lightning_deep(model, file):
    lightning(nn.ModuleDict({"backbone": model}), file, "task")


def lightning_average(model, file):
    both = nn.ModuleDict({"model": other(model), "ema_model": AveragedModel(model)})
    torch.save({"state_dict": both.state_dict()}, file)


def data_parallel(model, file):
    torch.save({"state_dict": nn.DataParallel(model).state_dict(), "best_acc1": torch.tensor(3.0)}, file)


def compiled(model, file):
    torch.save(torch.compile(model).state_dict(), file)


def compiled_in_parallel(model, file):
    torch.save({"net": nn.DataParallel(torch.compile(model)).state_dict()}, file)


def parallel_compiled(model, file):
    torch.save(torch.compile(nn.DataParallel(model)).state_dict(), file)


def compiled_parts(model, file):
    """Every child compiled on its own."""
    whole = copy.deepcopy(model)
    for name, child in list(whole.named_children()):
        setattr(whole, name, torch.compile(child))
    torch.save(whole.state_dict(), file)


def tutorial(model, file):
    """torch's tutorial, with the scores of NumPy."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    content = {"epoch": np.int64(3), "loss": np.float32(0.1), "model_state_dict": model.state_dict()}
    schedule = MultiStepLR(optimizer, [2, 4]).state_dict()
    torch.save({**content, "optimizer_state_dict": optimizer.state_dict(), "scheduler": schedule}, file)


def safetensors(model, file):
    save_file(model.state_dict(), file)


LAYOUTS = [
    plain, legacy, parameters, halves, torchvision_reference, torchvision_average, average_alone, timm_saver,
    timm_average, lightning, lightning_net, lightning_compiled, lightning_deep, lightning_average, data_parallel,
    compiled, compiled_in_parallel, parallel_compiled, compiled_parts, tutorial, safetensors,
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), crossed(LAYOUTS, MODELS))
@pytest.mark.sampled(8)
def test_every_layout_is_read(layout, name, tmp_path):
    model, file = made(name, 1), tmp_path / "weights.file"  # no file's name says what it is
    layout(model, file)
    target = made(name, 2)
    weights.put(target, weights.read(file), str(file))
    wanted = model.state_dict()
    for key, value in target.state_dict().items():
        exact = layout is not halves
        assert torch.allclose(value, wanted[key], rtol=0, atol=0 if exact else 1e-3) or (
            layout is parameters and key.endswith("num_batches_tracked")
        )


@pytest.mark.parametrize("layout", [plain, torchvision_average, legacy, lightning, data_parallel])
def test_the_first_names_of_densenet(layout, tmp_path):
    """norm.1 and conv.1, as in the files that torchvision still serves."""
    name = "torchvision's DenseNet"
    model, file = made(name, 1), tmp_path / "weights.pth"

    class Old(nn.Module):
        """The same model under its first names."""

        def state_dict(self, *args, **kwargs):
            pairs = (("norm1", "norm.1"), ("norm2", "norm.2"), ("conv1", "conv.1"), ("conv2", "conv.2"))
            found = collections.OrderedDict()
            for key, value in super().state_dict(*args, **kwargs).items():
                for new, old in pairs:
                    key = key.replace(f".{new}.", f".{old}.") if "denselayer" in key else key
                found[key] = value
            return found

    old = Old()
    for child, module in model.named_children():
        old.add_module(child, module)
    if layout is lightning:
        torch.save({"state_dict": {f"model.{key}": value for key, value in old.state_dict().items()}}, file)
    elif layout in (plain, legacy):
        layout(old, file)
    else:
        prefixed = {f"module.{key}": value for key, value in old.state_dict().items()}
        entry = "model_ema" if layout is torchvision_average else "state_dict"
        torch.save({entry: {"n_averaged": torch.tensor(3), **prefixed}}, file)
    assert any(".norm.1." in key for key in weights.state_dict(weights.read(file), "x"))
    target = made(name, 2)
    weights.put(target, weights.read(file), str(file))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("layout", [plain, lightning, torchvision_average, data_parallel])
def test_an_ancestors_weights_are_those_of_our_network(layout, tmp_path):
    model, file = made("torchvision's ResNet", 1).eval(), tmp_path / "weights.pth"
    target = convert.from_timm(made("torchvision's ResNet", 2)).eval()
    layout(model, file)
    weights.put(target, weights.read(file), str(file))
    images = torch.rand(2, 3, 64, 64)
    wanted = model(images)
    assert (target(images) - wanted).norm() < 1e-4 * wanted.norm()


# what is refused


class Evil:
    def __reduce__(self):
        return pathlib.Path.mkdir, (pathlib.Path("ran_by_a_checkpoint"),)


def scripted(model, file):
    torch.jit.script(model).save(file)


def exported(model, file):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), str(file) + ".pt2")
    pathlib.Path(str(file) + ".pt2").rename(file)


def numpys(model, file):
    with open(file, "wb") as opened:
        np.savez(opened, a=np.zeros(3))


RESNET = "a pickled torchvision.models.resnet.ResNet"
REFUSED = {
    "a whole model": (lambda m, f: torch.save(m, f), RESNET),
    "a whole model, legacy": (lambda m, f: torch.save(m, f, _use_new_zipfile_serialization=False), RESNET),
    "a whole model in a table": (lambda m, f: torch.save({"model": m}, f), RESNET),
    "TorchScript": (scripted, "a TorchScript archive"),
    "torch.export": (exported, "an archive of torch.export"),
    "NumPy": (numpys, "an archive of NumPy's arrays"),
    "something that runs": (lambda m, f: torch.save({"state_dict": m.state_dict(), "x": Evil()}, f), "a pickled"),
    "an optimizer": (
        lambda m, f: torch.save({"optimizer": torch.optim.SGD(m.parameters(), 0.1).state_dict(), "epoch": 1}, f),
        "a table with optimizer, epoch, and no state dict",
    ),
    "a tensor": (lambda m, f: torch.save(torch.zeros(3), f), "a Tensor, and no state dict"),
    "a list": (lambda m, f: torch.save([torch.zeros(3)], f), "a list, and no state dict"),
    "nothing": (lambda m, f: torch.save({}, f), "a table with nothing, and no state dict"),
    "numbers": (lambda m, f: torch.save({1: torch.zeros(3)}, f), "a table with 1, and no state dict"),
    "junk": (lambda m, f: f.write_bytes(b"\x1b[1mjunk" * 30), "is truncated or not a checkpoint"),
    "an empty file": (lambda m, f: f.write_bytes(b""), "is truncated or not a checkpoint"),
    "truncated": (
        lambda m, f: (plain(m, f), f.write_bytes(f.read_bytes()[:5000])), "is truncated or not a checkpoint"
    ),
    "truncated safetensors": (
        lambda m, f: (safetensors(m, f), f.write_bytes(f.read_bytes()[:50_000])), "is truncated or not a checkpoint"
    ),
    "names that a terminal obeys": (
        lambda m, f: torch.save({"\x1b[2J\n": 1}, f), r"a table with \x1b[2J\n, and no state dict"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_the_rest_is_refused_with_what_was_found(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, said = REFUSED[case]
    model, file = made("torchvision's ResNet", 1), tmp_path / "a\x1b[1m.pth"
    write(model, file)
    with pytest.raises(CheckpointError) as error:
        weights.put(model, weights.read(file), str(file))
    message = str(error.value)
    assert said in message and message.isprintable() and len(message) < 600
    assert not (tmp_path / "ran_by_a_checkpoint").exists()
    if "truncated" not in said:
        assert "torch.save(model.state_dict(), FILE)" in message


def change(key, to):
    def changed(state):
        return {**state, key: to(state[key])}

    return changed


UNFIT = {
    "whole numbers": (change("conv1.weight", lambda w: w.long()), "conv1.weight is a whole-number tensor of 64x3x7x7"),
    "complex": (change("conv1.weight", lambda w: w.to(torch.complex64)), "conv1.weight is a complex tensor"),
    "truth values": (change("conv1.weight", lambda w: w > 0), "conv1.weight is a truth-value tensor"),
    "shape": (change("fc.weight", lambda w: w[:3]), "fc.weight is a real tensor of 3x512, not a real tensor of 5x512"),
    "no text": (change("fc.bias", lambda w: "text"), "fc.bias missing"),
    "real counters": (change("bn1.num_batches_tracked", lambda w: w.float()), "bn1.num_batches_tracked is a real"),
    "missing": (lambda s: {k: v for k, v in s.items() if not k.startswith("layer4.0.bn1")}, "layer4.0.bn1.weight, "
                "layer4.0.bn1.bias, layer4.0.bn1.running_mean and 1 more missing"),
    "more": (lambda s: {**s, "extra\x1b.weight": torch.zeros(1)}, r"extra\x1b.weight unknown to the model"),
    "on the meta device": (change("conv1.weight", lambda w: w.to("meta")), "cannot be taken"),
    "another network": (lambda s: timm.create_model("test_vit").state_dict(), "do not fit the model"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_named(case, tmp_path):
    alter, said = UNFIT[case]
    model, file = made("torchvision's ResNet", 1), tmp_path / "x.pth"
    torch.save(alter(model.state_dict()), file)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RequestError) as error:
        weights.put(model, weights.read(file), str(file))
    assert said in str(error.value) and str(error.value).isprintable()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
