"""The rule ``dynamic``: weights that follow from each image's own features."""

import copy

import numpy as np
import pytest
import torch
from helpers import LAYERED, build, go, metrics, only_run, prepare, random_images, some, train, weights

import optnet
from optnet import ModelError, OperatorError
from optnet.app.config import Model, Train
from optnet.data import DataOptions
from optnet.networks.dynamic import EPS, Dynamic, pooled
from optnet.networks.unrolled import coefficient_names, unrolled_in
from optnet.training.monitoring import figures
from optnet.training.monitoring.monitor import MonitorOptions
from optnet.training.schedules import ScheduleOptions


def learned(model, scale=0.3):
    """The model with random coefficients."""
    generator = torch.Generator().manual_seed(2)
    for name in sorted(coefficient_names(model)):
        parameter = model.get_parameter(name)
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("family", LAYERED)
def test_each_image_has_the_network_of_its_own_weights(family):
    """For one image, the network is the one whose free weights are those that its features give."""
    model = learned(build(**LAYERED[family], coefficients="dynamic").double())
    free = build(**LAYERED[family]).double()
    rest = {key: value for key, value in model.state_dict().items() if key not in coefficient_names(model)}
    assert set(free.load_state_dict(rest, strict=False).missing_keys) == coefficient_names(free)
    assert bool(coefficient_names(model)) == (family != "plain")
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Dynamic):
            module.register_forward_hook(lambda _, __, parts, name=name: found.__setitem__(name, parts))
    images = random_images(3).double()
    logits = model(images)
    assert all(part.shape == (3, 1, 1, 1) for parts in found.values() for part in parts)
    for i, image in enumerate(images):
        for name, parts in found.items():
            free.get_parameter(name).data = torch.stack([part[i].flatten()[0] for part in parts]).detach()
        torch.testing.assert_close(free(image[None])[0], logits[i], rtol=1e-10, atol=1e-10)
    if found:
        assert any((parts[0][0] - parts[0][1]).abs() > 1e-3 for parts in found.values())


def test_it_is_this_equation():
    """Heavy ball on tanh layers, written out: w = w_0 + b + A z, z = the mean over positions / its root mean square."""
    layers = [torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.Tanh()).double() for _ in range(4)]
    network = learned(optnet.unroll(
        "heavy_ball", steps=4, operators={"T": lambda call: layers[call.index]}, reading="residual", beta=0.5,
        coefficients="dynamic", channels=4, dtype=torch.float64,
    ))  # fmt: skip
    sums = [module for module in network.modules() if isinstance(module, Dynamic)]
    start = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def written_out():
        previous = x = start
        for k, (layer, row) in enumerate(zip(layers, sums, strict=True)):
            z = torch.stack([image.reshape(4, 25).sum(1) / 25 for image in x])
            z = torch.stack([features / ((features**2).sum() / 4 + EPS).sqrt() for features in z])
            A = row.slopes.reshape(-1, 4)
            terms = (previous, x, layer(x)) if k else (x, layer(x))
            w = torch.tensor([-0.5, 1.5, 1.0] if k else [1.0, 1.0]) + row.static
            new = [sum(w_j * term[i] for w_j, term in zip(w + A @ z[i], terms, strict=True)) for i in range(3)]
            previous, x = x, torch.stack(new)
        return x

    ours, theirs = network(start), written_out()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    wanted = [start, *network.parameters()]
    seed = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad(ours, wanted, seed), torch.autograd.grad(theirs, wanted, seed), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", some(LAYERED, "dense_bc"))
def test_exported_it_takes_any_batch(family, tmp_path):
    model = learned(build(**LAYERED[family], coefficients="dynamic"))
    example, images = random_images(2), random_images(5)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        wanted = model(images)
        exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(exported.module()(images), wanted, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for made in (torch.fx.symbolic_trace(model), compiled):
            torch.testing.assert_close(made(images), wanted)
        scripted = torch.jit.script(copy.deepcopy(model))
        torch.testing.assert_close(scripted(images), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYERED)
def test_onnx_runtime_agrees(family, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model = learned(build(**LAYERED[family], coefficients="dynamic"))
    images = random_images(3)
    torch.onnx.export(model, (random_images(2),), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=({0: "batch"},))
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(found, model(images).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    options = {
        "model": Model(blocks=[1, 1], widths=[4, 4], coefficients="dynamic"), "data": DataOptions(limit=200),
        "schedule": ScheduleOptions(name="constant"), "monitor": MonitorOptions(every=0, figures="none", graph=False),
    }  # fmt: skip
    train(tmp_path / "whole", epochs=2, **options)
    train(tmp_path / "parts", epochs=1, **options)
    whole, parts = only_run(tmp_path / "whole"), only_run(tmp_path / "parts")
    go(prepare(Train(resume=str(parts), epochs=2), ["resume=x", "epochs=2"]))
    one, other = weights(whole), weights(parts)
    assert len(metrics(parts)) == 2 and any("slopes" in name for name in one)
    for name, value in one.items():
        assert "slopes" not in name or value.abs().sum() > 0
        torch.testing.assert_close(other[name], value, rtol=0, atol=0, msg=name)


def test_what_is_shown_is_what_all_images_share():
    model = learned(build(**LAYERED["basic"], coefficients="dynamic"))
    shown = {(e.stage, e.step, e.term): e.value for e in optnet.coefficients(model)}
    for stage, module in unrolled_in(model).items():
        assert module.per_sample
        for row in module.program.combines:
            own = module.body.get_submodule(module.rows[row.value])
            black = own(torch.zeros(1, 4 if stage.startswith("stages.0") else 8, 3, 3))
            assert [shown[stage, row.value, term] for term in row.terms] == pytest.approx(
                [part.item() for part in black], rel=1e-5
            )
    for figure in figures.heat_maps(model).values():
        assert figure.axes[0].get_title().endswith("learned, shared by all images")
    assert not any(module.per_sample for module in unrolled_in(build(**LAYERED["basic"])).values())


def test_tokens_are_pooled_over_their_places():
    tokens = torch.randn(2, 7, 3)
    torch.testing.assert_close(pooled(tokens.mT), tokens.mean(1))


REFUSED = {
    "per channel": (lambda: optnet.create_model("heavy_ball", coefficients="dynamic", per_channel=True), ModelError),
    "unroll per channel": (
        lambda: optnet.unroll(
            "admm", steps=2, operators={"T": torch.nn.Tanh()}, coefficients="dynamic", per_channel=True, channels=3
        ),
        OperatorError,
    ),
    "no channels": (
        lambda: optnet.unroll("heavy_ball", steps=2, operators={"T": torch.nn.Tanh()}, coefficients="dynamic"),
        OperatorError,
    ),
    "to timm": (lambda: optnet.convert.to_timm(optnet.create_model("heavy_ball", coefficients="dynamic")), ModelError),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_do_is_one_line(what):
    request, kind = REFUSED[what]
    with pytest.raises(kind, match="dynamic") as error:
        request()
    assert "\n" not in str(error.value)
