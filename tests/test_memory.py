"""What is kept for the backward pass: memory=checkpoint changes no number, and no activation twice."""

import copy

import pytest
import torch
from test_network import LAYERED, SMALL, pictures
from torch import nn

from optnet import OperatorError, create_model, find_algorithm, unroll
from optnet.emitting import LayerFactory


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
        model(pictures().double()).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("family", LAYERED)
def test_checkpointing_trains_the_same_network(family):
    kept, again = (trained(memory, family).state_dict() for memory in ("keep", "checkpoint"))
    assert list(kept) == list(again)
    for name in kept:
        assert torch.equal(kept[name], again[name]), name


@pytest.mark.parametrize("family", LAYERED)
def test_checkpointing_holds_less(family):
    options = {**SMALL, "blocks": (6, 6), **LAYERED[family]}
    x = pictures(16)
    keep, again = (create_model(**options, memory=memory) for memory in ("keep", "checkpoint"))
    for model in (keep, again):
        model(x)
    assert held(again, x) < 0.7 * held(keep, x)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_checkpointing_is_switched_copied_and_compiled():
    model = create_model(**{**SMALL, **LAYERED["basic"]})
    x = pictures()
    wanted = model.eval()(x)
    model.set_grad_checkpointing()
    assert "recomputed" in model.stages[0].steps.body.code
    torch._dynamo.reset()
    for changed in (model, copy.deepcopy(model), torch.compile(model, backend="aot_eager")):
        assert torch.allclose(changed(x), wanted, atol=1e-6)
        changed(x).sum().backward()
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), wanted, atol=1e-6)
    model.set_grad_checkpointing(False)
    assert "recomputed" not in model.stages[0].steps.body.code
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("coefficients", ["learnable", "fixed"])
def test_a_layer_whose_output_is_its_input_is_refused(coefficients):
    class View(nn.Module):
        def forward(self, xs, weights=None):
            return xs[0]

    factory = LayerFactory(lambda call: View(), weighted=True)
    network = unroll(find_algorithm("hb"), steps=2, operators={"T": factory}, coefficients=coefficients)
    with pytest.raises(OperatorError, match="view"):
        network(torch.randn(2, 3))
