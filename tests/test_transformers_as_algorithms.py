"""Published transformer blocks as settings of ours: each equals its paper's recurrence, written out on tokens."""

import pytest
import torch
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Attention, Block, ResPostBlock
from torch import nn
from torch.nn import functional

import optnet
from optnet import Iterate, Operator

WIDTH, LAYERS = 8, 3
KEPT = {"rtol": 1e-12, "atol": 1e-12}
BOTH = {"A": "residual", "M": "residual"}


def attention(call=None):
    return nn.Sequential(LayerNorm(WIDTH), Attention(WIDTH, num_heads=2, qkv_bias=True))


def mlp(call=None):
    return nn.Sequential(LayerNorm(WIDTH), Mlp(WIDTH, 4 * WIDTH))


def in_turn(call):
    """Attention and the MLP alternate."""
    return (mlp if call.index % 2 else attention)(call)


def once_a_layer(make):
    """A factory whose module serves the two calls of a layer."""
    made = {}
    return lambda call: made.setdefault(call.index // 2, make())


def settled(network, seed=0):
    """Random weights, norms too, and random coefficients around the algorithm's."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.double().named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data + 0.2 * noise if "coefficients" in name else parameter.data + 0.1 * noise
    return network.eval()


def tokens(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)


def rows(network):
    """The weights of every sum as the network has them now, by term."""
    learned = network.learned()
    return {
        row.value: dict(zip(row.terms, learned.get(row.value, row.weights), strict=True))
        for row in network.program.combines
    }


def served(network, operator):
    return [*network.served_by(operator).values()]


def same(network, x, ours, theirs):
    """Outputs and all gradients."""
    torch.testing.assert_close(ours, theirs, **KEPT)
    wanted = {"tokens": x, **dict(network.named_parameters())}
    seed = torch.randn_like(ours)
    found = torch.autograd.grad(ours, [*wanted.values()], seed, retain_graph=True)
    expected = torch.autograd.grad(theirs, [*wanted.values()], seed)
    for key, one, other in zip(wanted, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=key)


# YuriiFormer and TMMFormer


def momentum_stream(network, x, oracles, norms, constants):
    """x_in = x + mu v,  v = LN(beta v + gamma O(x_in)),  x = x + nu v, attention and MLP in turn, from v = 0.

    Zimin, Polyanskiy, Rigollet 2026 (nu = 1); Gai, Huang, Wu 2026. What follows the last call of an iteration has the
    constants of that iteration, so mu is one of the half-step before.
    """
    v = torch.zeros_like(x)
    mu = 0.0
    for oracle, norm, (beta, gamma, nu, following) in zip(oracles, norms, constants, strict=True):
        x_in = x + mu * v
        v = norm(beta * v + gamma * oracle(x_in))
        x, mu = x + nu * v, following
    return x


def of_half_steps(network, calls):
    """beta, gamma, nu, mu of every half-step; ``calls``: half-steps in an iteration."""
    found = network.constants()
    return [
        [found.get(f"{name} of iteration {k}", torch.ones(1)) for name in ("beta", "step", "nu", "lookahead")]
        for k in range(2 * LAYERS // calls) for _ in range(calls)
    ]  # fmt: skip


def norm(call=None):
    return LayerNorm(WIDTH)


STREAMS = {
    "YuriiFormer": ("nesterov_momentum", {"T": in_turn, "P": once_a_layer(norm)}, "residual"),
    "TMMFormer": ("nesterov_momentum", {"T": in_turn, "P": norm}, "residual"),
    "without a norm": ("nesterov_momentum", {"T": in_turn}, "residual"),
    "a constant a layer": ("yuriiformer", {"A": attention, "M": mlp, "P": norm}, BOTH),
    "a constant a layer, without a norm": ("yuriiformer", {"A": attention, "M": mlp}, BOTH),
}


@pytest.mark.parametrize("name", STREAMS)
def test_momentum_streams_are_settings(name):
    algorithm, operators, reading = STREAMS[name]
    halves = 1 if "T" in operators else 2
    network = settled(optnet.unroll(
        algorithm, steps=2 * LAYERS // halves, operators=operators, reading=reading,
        coefficients="iteration_constants", lookahead=0.9, beta=0.8,
    ))  # fmt: skip
    oracles = served(network, "T")
    if halves == 2:
        oracles = [one for layer in zip(served(network, "A"), served(network, "M"), strict=True) for one in layer]
    norms = [network.body.get_submodule(network.layers[call.value]) for call in network.program.calls("P")]
    assert len({*norms}) == {"YuriiFormer": LAYERS, "TMMFormer": 2 * LAYERS}.get(name, len(norms))
    x = tokens()
    norms = norms or [nn.Identity()] * len(oracles)
    theirs = momentum_stream(network, x, oracles, norms, of_half_steps(network, halves))
    same(network, x, network(x), theirs)


@pytest.mark.parametrize("normed", [True, False])
def test_named_operators_and_half_steps_are_the_same_network(normed):
    """YuriiFormer with A and M, and its method on half-steps: the same sums, so the same weights to learn."""
    P = {"P": norm} if normed else {}
    split = settled(optnet.unroll("yuriiformer", steps=LAYERS, operators={**P, "A": attention, "M": mlp}, reading=BOTH))
    whole = optnet.unroll("nesterov_momentum", steps=2 * LAYERS, operators={**P, "T": in_turn}, reading="residual")
    whole.double().eval()
    assert [row.weights for row in split.program.combines] == [row.weights for row in whole.program.combines]
    for row, other in zip(split.rows.values(), whole.rows.values(), strict=True):
        whole.body.get_parameter(other).data = split.body.get_parameter(row).data
    for call, other in zip(split.program.applies, whole.program.applies, strict=True):
        module = split.body.get_submodule(split.layers[call.value])
        whole.body.get_submodule(whole.layers[other.value]).load_state_dict(module.state_dict())
    x = tokens()
    assert torch.equal(split(x), whole(x))


# Streams and averages


def test_hyper_connections_are_a_setting():
    """H = A_r' H + B' T(A_m' H), H = two copies of x, on attention and MLP in turn. Zhu et al. 2024."""
    network = settled(
        optnet.unroll("hyper_connections", steps=2 * LAYERS, operators={"T": in_turn}, reading="residual")
    )
    x = tokens()
    weights = [torch.stack([*row.values()]) for row in rows(network).values()]
    h = torch.stack([x, x])
    for k, branch in enumerate(served(network, "T")):
        A_m, *both = weights[3 * k : 3 * k + 3]
        A_r, B = torch.stack([row[:2] for row in both]), torch.stack([row[2] for row in both])
        new = branch(torch.einsum("i,ibtc->btc", A_m, h))
        h = torch.einsum("ij,jbtc->ibtc", A_r, h) + torch.einsum("i,btc->ibtc", B, new)
    same(network, x, torch.stack(network(x, x)), h)


def test_denseformer_is_a_setting():
    """X_i = B_i(Y_{i-1}),  Y_i = sum_{j<=i} alpha_ij X_j, B a whole block. Pagliardini et al. 2024: exact as a map."""
    block = lambda call: Block(WIDTH, num_heads=2)  # noqa: E731
    network = settled(optnet.unroll("denseformer", steps=LAYERS, operators={"T": block}))
    x = tokens()
    X, Y = [x], x
    for block, alpha in zip(served(network, "T"), rows(network).values(), strict=True):
        X.append(block(Y))
        Y = sum(a * past for a, past in zip(alpha.values(), X, strict=True))
    same(network, x, network(x), Y)


# Blocks without momentum


def strang(A: Operator, M: Operator, x: Iterate, steps: int) -> Iterate:
    """x'_k = (x_k + M(x_k)) / 2,  x''_k = A(x'_k),  x_{k+1} = (x''_k + M(x''_k)) / 2"""
    for _ in range(steps):
        x = (x + M(x)) / 2
        x = A(x)
        x = (x + M(x)) / 2
    return x


def pre_norm(x, A, M, P):
    for attention, mlp in zip(A, M, strict=True):
        x = x + attention(x)
        x = x + mlp(x)
    return x


def parallel(x, A, M, P):
    for attention, mlp in zip(A, M, strict=True):
        x = x + attention(x) + mlp(x)
    return x


def macaron(x, A, M, P):
    for attention, first, second in zip(A, M[::2], M[1::2], strict=True):
        x = x + first(x) / 2
        x = x + attention(x)
        x = x + second(x) / 2
    return x


def sandwich_norm(x, A, M, P):
    for branch, norm in zip([one for pair in zip(A, M, strict=True) for one in pair], P, strict=True):
        x = x + norm(branch(x))
    return x


def post_norm(x, A, M, P):
    for branch, norm in zip([one for pair in zip(A, M, strict=True) for one in pair], P, strict=True):
        x = norm(x + branch(x))
    return x


def alternating(A: Operator, M: Operator, x: Iterate, steps: int, *, P: Operator = optnet.identity) -> Iterate:
    """x'_k = P(A(x_k)),  x_{k+1} = P(M(x'_k))"""
    for _ in range(steps):
        x = P(M(P(A(x))))
    return x


BLOCKS = {
    "pre-norm": (pre_norm, "yuriiformer", {"beta": 0.0}, {}),
    "parallel, ViT-22B": (parallel, "euler_momentum", {"beta": 0.0}, {}),
    "Macaron": (macaron, strang, {}, {}),
    "sandwich norm, CogView": (sandwich_norm, "yuriiformer", {"beta": 0.0}, {"P": norm}),
    "post-norm": (post_norm, alternating, {}, {"P": norm}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_published_blocks_are_settings(name):
    theirs, algorithm, constants, more = BLOCKS[name]
    network = settled(optnet.unroll(
        algorithm, steps=LAYERS, operators={"A": attention, "M": mlp, **more}, reading=BOTH, coefficients="fixed",
        constants=constants,
    ))  # fmt: skip
    x = tokens()
    P = [network.body.get_submodule(network.layers[call.value]) for call in network.program.calls("P")]
    same(network, x, network(x), theirs(x, served(network, "A"), served(network, "M"), P))


TIMM = (Block, ResPostBlock)


def test_timms_blocks_are_settings():
    """Bitwise: pre-norm, and Swin V2's norm at the end of a branch: a norm of the velocity, without momentum."""
    pre, post = (settled(nn.Sequential(*(kind(WIDTH, num_heads=2) for _ in range(LAYERS)))) for kind in TIMM)
    options = {"steps": LAYERS, "reading": BOTH, "coefficients": "fixed", "beta": 0.0}
    ours = optnet.unroll("yuriiformer", **options, operators={
        "A": lambda call: nn.Sequential(pre[call.index].norm1, pre[call.index].attn),
        "M": lambda call: nn.Sequential(pre[call.index].norm2, pre[call.index].mlp),
    })  # fmt: skip
    assert torch.equal(ours(tokens()), pre(tokens()))
    ours = optnet.unroll("yuriiformer", **options, operators={
        "A": lambda call: post[call.index].attn,
        "M": lambda call: post[call.index].mlp,
        "P": lambda call: getattr(post[call.index // 2], ("norm1", "norm2")[call.index % 2]),
    })  # fmt: skip
    assert torch.equal(ours(tokens()), post(tokens()))


# CRATE


class SubspaceAttention(nn.Module):
    """MSSA: attention with one matrix U for queries, keys and values. Yu et al. 2023, eq. (11)."""

    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.U = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, count, width = x.shape
        w = self.U(x).view(batch, count, self.heads, width // self.heads).transpose(1, 2)
        weights = ((w @ w.transpose(-1, -2)) * (width // self.heads) ** -0.5).softmax(-1)
        return self.out((weights @ w).transpose(1, 2).reshape(batch, count, width))


class ShrinkageStep(nn.Module):
    """relu(x + eta D'(x - D x) - eta lambda): a step of ISTA towards a sparse, nonnegative code. Yu et al. 2023."""

    def __init__(self, eta=0.1, weight=0.1):
        super().__init__()
        self.eta, self.weight = eta, weight
        self.D = nn.Parameter(torch.eye(WIDTH) + 0.1 * torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        slope = (x - functional.linear(x, self.D)) @ self.D
        return functional.relu(x + self.eta * slope - self.eta * self.weight)


def test_crate_is_ista_on_tokens():
    """Z' = Z + MSSA(LN Z),  Z = ISTA(LN Z'): the proximal gradient method, its gradient step read as id + MSSA."""
    network = settled(optnet.unroll(
        "ista", steps=LAYERS, reading={"G": "residual"}, coefficients="fixed", operators={
            "G": lambda call: nn.Sequential(norm(), SubspaceAttention()),
            "P": lambda call: nn.Sequential(norm(), ShrinkageStep()),
        },
    ))  # fmt: skip
    x = tokens()
    z = x
    for mssa, ista in zip(served(network, "G"), served(network, "P"), strict=True):
        z = ista(z + mssa(z))
    same(network, x, network(x), z)
