"""Norms with running statistics: each says so itself, and all that has to do with them asks it."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, EvoNorm2dB0, freeze_batch_norm_2d
from torch import nn
from torch.multiprocessing import start_processes
from torch.optim.swa_utils import update_bn

import optnet
from optnet.networks.layers.norms import NORMS, BatchNorm2d, MeanOnlyBatchNorm2d
from optnet.networks.statistics import keepers, recompute, running_statistics, synchronise, synchronised
from optnet.training import distributed
from optnet.training.averaging import average


class Median(nn.Module):
    """Somebody's norm: it subtracts a running median."""

    def __init__(self, chs, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_median", torch.zeros(chs))

    def forward(self, x):
        median = self.running_median
        if self.training:
            median = x.detach().transpose(0, 1).flatten(1).median(1).values
            self.running_median.lerp_(median, self.momentum)
        return x - median.reshape(-1, 1, 1)


class Named(Median):
    """The same, with a buffer of its own name."""

    running_statistics = ("middle",)

    def __init__(self, chs):
        super().__init__(chs)
        del self.running_median
        self.register_buffer("middle", torch.zeros(chs))
        self.register_buffer("other", torch.ones(chs))

    running_median = property(lambda self: self.middle)


KEEP = {
    "batch": BatchNorm2d, "mean": MeanOnlyBatchNorm2d, "torch's batch": nn.BatchNorm2d, "timm's batch": BatchNormAct2d,
    "instance": lambda chs: nn.InstanceNorm2d(chs, track_running_stats=True), "evo": EvoNorm2dB0, "median": Median,
    "named": Named, "cumulative": lambda chs: nn.BatchNorm2d(chs, momentum=None), "synchronised mean":
    lambda chs: MeanOnlyBatchNorm2d(chs).synchronised(),
}  # fmt: skip
KEEP_NONE = {
    "group": NORMS["group"], "instance": nn.InstanceNorm2d, "no statistics":
    lambda chs: nn.BatchNorm2d(chs, track_running_stats=False), "layer": lambda chs: nn.GroupNorm(1, chs),
}  # fmt: skip


def batches(count=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 4, 5, 5, generator=generator) * (k + 1) + k for k in range(count)]


def built(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4), nn.ReLU())


@pytest.mark.parametrize("norm", KEEP)
def test_which_modules_keep_statistics(norm):
    model = built(KEEP[norm])
    assert keepers(model) == [model[1]]
    names = set(running_statistics(model[1]))
    assert names == ({"middle"} if norm == "named" else {name for name in model[1]._buffers if "running" in name})


@pytest.mark.parametrize("norm", KEEP_NONE)
def test_which_keep_none(norm):
    model = built(KEEP_NONE[norm])
    assert keepers(model) == []
    before = copy.deepcopy(model.state_dict())
    recompute(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", KEEP)
def test_recomputed_statistics_are_the_means_over_the_batches(norm):
    model = built(KEEP[norm]).eval()
    for batch in batches(2):  # there are other statistics before
        model.train()(batch + 7)
    model.eval()
    single = []
    for batch in batches():
        one = copy.deepcopy(model)
        one[1].momentum = 1.0
        one.train()(batch)
        single.append(running_statistics(one[1]))
    momentum = model[1].momentum
    recompute(model, batches())
    for name, value in running_statistics(model[1]).items():
        expected = torch.stack([statistics[name] for statistics in single]).mean(0)
        torch.testing.assert_close(value, expected)
        assert value.abs().max() > 0.1
    assert model[1].momentum == momentum and not model.training and not model[1].training
    assert not model[1]._forward_pre_hooks


@pytest.mark.parametrize("norm", ["batch", "mean", "torch's batch", "timm's batch", "cumulative"])
@pytest.mark.parametrize("calls", [1, 3])
def test_torchs_recomputation_gives_the_same(norm, calls):
    class Again(nn.Sequential):
        def forward(self, x):
            for _ in range(calls):  # a tied operator: the norm serves several calls
                x = super().forward(x)
            return x

    model = Again(*built(KEEP[norm]))
    if norm == "mean":  # torch knows its own norms alone
        reference = copy.deepcopy(model)
        reference[1] = nn.BatchNorm2d(4)
        reference[1].bias = model[1].bias
        inputs = []
        model[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0].mean((0, 2, 3))))
        recompute(model, batches())
        torch.testing.assert_close(model[1].running_mean, torch.stack(inputs).mean(0))
        return
    reference = copy.deepcopy(model)
    update_bn(batches(), reference)
    recompute(model, batches())
    for name, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("kind", ["ema", "polyak"])
def test_averages_of_networks_with_every_norm(norm, kind):
    options = {"blocks": (1, 2), "widths": (4, 8), "in_chans": 1, "num_classes": 3}
    model = optnet.create_model("heavy_ball", norm=norm, **options)
    averaged = average(model, kind, 0.9, 0).module
    before = [value.clone() for norm_ in keepers(averaged) for value in running_statistics(norm_).values()]
    recompute(averaged, torch.randn(4, 16, 1, 8, 8).unbind())
    after = [value for norm_ in keepers(averaged) for value in running_statistics(norm_).values()]
    assert bool(after) == (norm in ("batch", "mean", "weight_mean"))
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("norm", KEEP)
def test_recomputed_activations_take_in_a_batch_once(norm):
    from optnet.networks.activation_checkpointing import recomputed

    x = batches(1)[0].requires_grad_()
    plain, checkpointed = built(KEEP[norm]).train(), built(KEEP[norm]).train()
    plain(x).square().mean().backward()
    expected, x.grad = x.grad, None
    recomputed(checkpointed, x).square().mean().backward()
    torch.testing.assert_close(x.grad, expected)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(checkpointed.state_dict()[name], value)


def test_frozen_norms_stay_as_they_are():
    model = freeze_batch_norm_2d(built(nn.BatchNorm2d))
    before = copy.deepcopy(model.state_dict())
    recompute(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_which_norms_are_synchronised():
    model = nn.Sequential(*(KEEP[norm](4) for norm in ("batch", "torch's batch", "mean", "median")))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    mean = model[2].bias
    model = synchronise(model)
    assert synchronised(model) == [*model[:3]] and model[2].bias is mean
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def together(rank, place):
    """What one of two processes does."""
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(7, 4, 3, 3, generator=generator), torch.randn(7, 4, 3, 3, generator=generator)
    alone, together = MeanOnlyBatchNorm2d(4), MeanOnlyBatchNorm2d(4).synchronised()
    whole, mine = images.clone().requires_grad_(), images[rank::2].clone().requires_grad_()
    out, part = alone(whole), together(mine)
    torch.testing.assert_close(part, out[rank::2])
    (out * weights).sum().backward()
    (part * weights[rank::2]).sum().backward()
    torch.testing.assert_close(mine.grad, whole.grad[rank::2])
    torch.testing.assert_close(together.running_mean, alone.running_mean)
    for how, expected in {"reduce": 0.5, "synchronise": 0.5, "broadcast": 0.0, "none": float(rank)}.items():
        norms = nn.Sequential(Median(3), MeanOnlyBatchNorm2d(3), nn.BatchNorm2d(3))
        for buffer in norms.buffers():
            buffer.fill_(rank)
        distributed.share_buffers(norms, how)
        for name, buffer in norms.named_buffers():
            if "running" in name:
                assert torch.equal(buffer, torch.full((3,), expected)), (how, name)
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    start_processes(together, (tmp_path / "store",), nprocs=2, start_method="fork")
