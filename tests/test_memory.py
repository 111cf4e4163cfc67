"""What is kept for the backward pass: memory=checkpoint changes no number, and no activation twice."""

import copy

import pytest
import torch
from helpers import LAYERED, SMALL, random_images
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optnet import create_model, find_algorithm, unroll
from optnet.networks.emitting import LayerFactory
from optnet.training.monitoring.depth import movements


def held(model, *inputs):
    """Bytes that a forward pass leaves allocated until the backward pass, without the result's."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = model(*inputs)
    total = sum(event.self_device_memory_usage or event.self_cpu_memory_usage for event in profile.key_averages())
    return total - result.numel() * result.element_size()


def trained(memory, family):
    torch.manual_seed(0)
    model = create_model(**{**SMALL, **LAYERED[family]}, memory=memory).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(random_images().double()).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("family", LAYERED)
def test_checkpointing_trains_the_same_network(family):
    kept, again = (trained(memory, family).state_dict() for memory in ("keep", "checkpoint"))
    assert list(kept) == list(again)
    for name in kept:
        assert torch.equal(kept[name], again[name]), name


@pytest.mark.parametrize("family", LAYERED)
@pytest.mark.sampled(3)
def test_checkpointing_holds_less(family):
    options = {**SMALL, "blocks": (6, 6), **LAYERED[family]}
    x = random_images(16)
    keep, again = (create_model(**options, memory=memory) for memory in ("keep", "checkpoint"))
    for model in (keep, again):
        model(x)
    assert held(again, x) < 0.7 * held(keep, x)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_checkpointing_is_switched_copied_and_compiled():
    model = create_model(**{**SMALL, **LAYERED["basic"]})
    x = random_images()
    wanted = model.eval()(x)
    model.set_grad_checkpointing()
    assert "recomputed" in model.stages[0].unrolled.body.code
    torch._dynamo.reset()
    for changed in (model, copy.deepcopy(model), torch.compile(model, backend="aot_eager")):
        assert torch.allclose(changed(x), wanted, atol=1e-6)
        changed(x).sum().backward()
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), wanted, atol=1e-6)
    model.set_grad_checkpointing(False)
    assert "recomputed" not in model.stages[0].unrolled.body.code
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("family", LAYERED)
def test_checkpointing_takes_a_second_backward_pass_and_a_second_derivative(family):
    """And counts the batch once: the same running statistics as without it."""

    def derivatives(memory):
        torch.manual_seed(0)
        model = create_model(**{**SMALL, **LAYERED[family]}, memory=memory).double().train()
        x = random_images().double().requires_grad_()
        out = model(x).square().sum()
        (first,) = torch.autograd.grad(out, x, retain_graph=True)
        (again,) = torch.autograd.grad(out, x, create_graph=True)
        again.square().sum().backward()
        return first, again, x.grad, *model.buffers()

    for kept, recomputed in zip(derivatives("keep"), derivatives("checkpoint"), strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", LAYERED)
def test_movements_are_seen_through_checkpointing(family):
    torch.manual_seed(0)
    model = create_model(**{**SMALL, **LAYERED[family]})
    kept = movements(model, random_images())
    model.set_grad_checkpointing()
    assert movements(model, random_images()) == kept and any(kept.values())


@pytest.mark.parametrize("family", LAYERED)
@pytest.mark.sampled(4)
def test_a_fresh_network_takes_every_kind_of_tensor(family):
    """No first call is special: nothing on the meta device, fake or empty is refused, nor what torch.func wraps."""
    options = {**SMALL, **LAYERED[family]}
    model = create_model(**options, device="meta")
    assert model(torch.empty(4, 1, 12, 12, device="meta")).shape == (4, 10)
    with FakeTensorMode():
        assert create_model(**options)(torch.randn(4, 1, 12, 12)).shape == (4, 10)
    assert create_model(**options).eval()(torch.empty(0, 1, 12, 12)).shape == (0, 10)
    x = random_images()
    out, slope = torch.func.jvp(create_model(**options).eval(), (x,), (x,))
    assert out.shape == slope.shape == (4, 10) and slope.abs().sum() > 0


@pytest.mark.parametrize("coefficients", ["learnable", "fixed"])
def test_a_layer_that_does_not_say_that_its_output_is_fresh_keeps_it(coefficients):
    """Drop-out hands its input on in evaluation mode alone: a sum added up in its place would change the caller's."""

    class Drops(nn.Module):
        def forward(self, xs, weights=None):
            y = nn.functional.dropout(xs[0], 0.5, self.training)
            return y if weights is None else y * weights[0]

    factory = LayerFactory(lambda call: Drops(), weighted=True)
    network = unroll(find_algorithm("hb"), steps=2, operators={"T": factory}, coefficients=coefficients, step=0.5)
    x = torch.randn(2, 3)
    before = x.clone()
    network.train()(x)
    network.eval()(x)
    assert torch.equal(x, before)
