"""The networks of the talk (Z. Lin, 2019) to the letter: (16), (18) and (20) written out, with random weights."""

import pytest
import timm
import torch
from helpers import call, some
from torch import nn

import optnet
from optnet.training.checkpoint import load, rebuild

FEATURES = 5
STEPS = range(1, 13)


class Layer(nn.Module):
    """T(x) = tanh(W x + b), in float64."""

    def __init__(self, call):
        super().__init__()
        generator = torch.Generator().manual_seed(call.index)
        self.W, self.b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 5), (5,)))

    def forward(self, x):
        return torch.tanh(x @ self.W.T / 3 + self.b)


def made(algorithm, steps, **constants):
    """The unrolled algorithm with random coefficients, as floats by row and term, and the layer of each call."""
    reading = "map" if algorithm == "nesterov_dense" else "residual"
    unrolled = optnet.unroll(
        algorithm, steps=steps, operators={"T": lambda call: Layer(call)}, reading=reading,
        dtype=torch.float64, constants=constants,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(steps)
    weights = {}
    for row in unrolled.program.combines:
        parameter = unrolled.body.get_parameter(unrolled.rows[row.value])
        parameter.data = torch.randn(len(row.terms), generator=generator, dtype=torch.float64) / len(row.terms)
        weights[row.value] = dict(zip(row.terms, parameter, strict=True))
    return unrolled, weights


def starts(count):
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(3, FEATURES, generator=generator, dtype=torch.float64) for _ in range(count)]


def calls(unrolled):
    """By the value of a call: its layer and its argument."""
    layer = unrolled.body.get_submodule
    return {call.value: (layer(unrolled.layers[call.value]), call.argument) for call in unrolled.program.applies}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_hb_net_is_16(steps):
    unrolled, weights = made("heavy_ball", steps)
    T, (x,) = calls(unrolled), starts(1)
    values, order = {"x": x}, ["x"]
    for row, terms in weights.items():  # x_{k+1} = T(x_k) + beta_1 x_k + beta_2 x_{k-1}
        newest, before = order[-1], order[-2:-1]
        assert [T[term][1] for term in terms if term in T] == [newest]
        assert {term for term in terms if term not in T} == {newest, *before}
        values[row] = sum(
            weight * (T[term][0](values[T[term][1]]) if term in T else values[term]) for term, weight in terms.items()
        )
        order.append(row)
    assert len(order) == steps + 1
    close(unrolled(x), values[order[-1]])


@pytest.mark.parametrize("steps", STEPS)
def test_agd_net_is_18(steps):
    unrolled, weights = made("nesterov_dense", steps)
    T, (x,) = calls(unrolled), starts(1)
    values, order = {"x": x}, ["x"]
    for row, terms in weights.items():  # x_{k+1} = sum_{j<=k} alpha_j T(x_j) + sum_{j<=k} beta_j x_j
        assert sorted(T[term][1] for term in terms if term in T) == sorted(order)
        assert sorted(term for term in terms if term not in T) == sorted(order)
        values[row] = sum(
            weight * (T[term][0](values[T[term][1]]) if term in T else values[term]) for term, weight in terms.items()
        )
        order.append(row)
    assert len(order) == steps + 1
    assert len({id(layer) for layer, _ in T.values()}) == steps * (steps + 1) // 2  # T has two indices
    close(unrolled(x), values[order[-1]])


@pytest.mark.parametrize("history", [None, 1, 2, 5])
@pytest.mark.parametrize("steps", STEPS)
def test_admm_net_is_20(steps, history):
    unrolled, weights = made("merge_and_run", steps, history=history)
    T, (x, y) = calls(unrolled), starts(2)
    values = {"x": x, "y": y}
    xs, ys = ["x"], ["y"]
    rows = iter(weights.items())
    for _ in range(steps):
        merge, terms = next(rows)  # sum_t alpha_t x'_t + sum_t beta_t x_t, of all iterates or the newest
        newest = slice(None if history is None else -history, None)
        assert sorted(terms) == sorted(xs[newest] + ys[newest])
        values[merge] = sum(weight * values[term] for term, weight in terms.items())
        for stream in (xs, ys):  # x'_{k+1} = T(x'_k) + the sum, x_{k+1} = T(x_k) + the sum
            row, terms = next(rows)
            (call,) = (term for term in terms if term in T)
            assert T[call][1] == stream[-1] and set(terms) == {call, merge}
            terms[call].data.fill_(1.0), terms[merge].data.fill_(1.0)
            unrolled.body.get_parameter(unrolled.rows[row]).data = torch.stack([*terms.values()])
            values[row] = T[call][0](values[stream[-1]]) + values[merge]
            stream.append(row)
    for ours, theirs in zip(unrolled(x, y), (values[xs[-1]], values[ys[-1]]), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("reading", ["map", "residual"])
@pytest.mark.parametrize("steps", STEPS)
def test_admm_is_1(steps, reading):
    """The talk's (1), with a layer of its own at every call: x' and x take turns, and both read the dual's sum."""
    unrolled = optnet.unroll(
        "admm", steps=steps, operators={"T": lambda call: Layer(call)}, reading=reading, dtype=torch.float64
    )
    layers = [layer for layer, _ in calls(unrolled).values()]
    assert len(layers) == 2 * steps
    T = [layer if reading == "map" else lambda x, F=layer: x + F(x) for layer in layers]
    (start,) = starts(1)
    primes, xs = [start], [start]
    for k in range(steps):
        dual = sum((p - x for p, x in zip(primes[1:], xs[1:], strict=True)), torch.zeros_like(start))
        primes.append((T[2 * k](primes[-1]) + xs[-1] - dual) / 2)
        xs.append((T[2 * k + 1](xs[-1]) + primes[-1] + dual) / 2)
    close(unrolled(start), xs[-1])


@pytest.mark.parametrize("transition", ["restart", "project"])
def test_admm_is_1_as_a_network(transition):
    """create_model("admm"): each stage is (1) with F = the block's branch, T = id + F, and P = ReLU."""
    network = optnet.create_model("admm", blocks=[3], widths=[5], in_chans=1, transition=transition).double().eval()
    body = network.stages[0].unrolled.body
    F, P = ([body.get_submodule(f"{name}_{i}") for i in range(6)] for name in "TP")
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    start = prime = x = network.stem(images)
    u = torch.zeros_like(start)
    for k in range(3):
        prime = P[2 * k]((prime + F[2 * k]([prime]) + x - u) / 2)
        x = P[2 * k + 1]((x + F[2 * k + 1]([x]) + prime + u) / 2)
        u = u + prime - x
    close(network(images), network.head(network.norm(x)))


@pytest.mark.parametrize("coefficients", some(["learnable", "constants"], "constants"))
def test_admm_trains_by_name(coefficients, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    request = ["algorithm=admm", "algorithm.rho=0.5", f"model.coefficients={coefficients}", "model.widths=[4,4,4]"]
    assert call(monkeypatch, "train", *request, "name=a", "epochs=1", "device=cpu", "monitor=none") == 0
    (file,) = tmp_path.glob("runs/a/*/checkpoints/best.pt")
    model = rebuild(load(file))
    assert {stage.start.name for stage in model.programs} == {"admm"}
    assert all(e.value != e.textbook for e in optnet.coefficients(model) if e.textbook not in (0.0, 1.0, -1.0))


def test_every_textbook_value_is_known():
    for name in (
        "agdnet_small",
        "agdnet40_cifar",
        "agdnet100_bc_cifar",
        "admmnet_small",
        "dmrnet20_cifar",
        "hbnet_small",
    ):
        table = optnet.coefficients(timm.create_model(name))
        assert table and all(entry.textbook is not None for entry in table), name


@pytest.mark.parametrize("admm, dmr", [("admmnet20_cifar", "dmrnet20_cifar"), ("admmnet56_cifar", "dmrnet56_cifar")])
def test_admm_net_starts_as_dmrnet(admm, dmr):
    ours, theirs = timm.create_model(admm).eval(), timm.create_model(dmr).eval()
    assert not [name for name, _ in theirs.named_parameters() if "coefficients" in name]
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, nn.BatchNorm2d):  # fresh norms would hide a difference
            module.running_mean.copy_(torch.linspace(-1, 1, len(module.running_mean)))
            module.running_var.copy_(torch.linspace(0.5, 2, len(module.running_var)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_without_skips_there_is_no_iterate_in_the_sums():
    network = timm.create_model("agdnet_small", constants={"skips": False})
    programs = [stage.unrolled.program for stage in network.stages]
    calls = [{call.value for call in program.applies} for program in programs]
    assert all(
        set(row.terms) <= known for program, known in zip(programs, calls, strict=True) for row in program.combines
    )
