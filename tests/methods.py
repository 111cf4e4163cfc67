"""The lists that drive the tests: every algorithm of the library, and three that only the tests know."""

import torch
from torch import nn

from optnet import Algorithm, Iterate, Operator, find_algorithm, identity, list_algorithms
from optnet.language.declaration import as_algorithm


def relaxed_splitting(G: Operator, P: Operator, x: Iterate, steps: int, *, relax: float = 0.7) -> Iterate:
    """x_{k+1} = (1 - relax) x_k + relax P(G(x_k)): two operators and a relaxed update."""
    for _ in range(steps):
        x = (1 - relax) * x + relax * P(G(x))
    return x


def three_step_mean(T: Operator, x: Iterate, steps: int, *, a: float = 0.5, b: float = -0.2, c: float = 0.1) -> Iterate:
    """x_{k+1} = T(x_k) + a x_k + b x_{k-1} + c x_{k-2}; returns the mean of all iterates."""
    xs = [x, x, x]
    for _ in range(steps):
        xs.append(T(xs[-1]) + a * xs[-1] + b * xs[-2] + c * xs[-3])
    return sum(xs[2:]) / (steps + 1)


def restarted(T: Operator, x: Iterate, steps: int, *, beta: float = 0.6, P: Operator = identity) -> Iterate:
    """Heavy ball that forgets its momentum every third step."""
    previous = x
    for k in range(steps):
        previous = x if k % 3 == 0 else previous
        x, previous = P(T(x) + beta * (x - previous)), x
    return x


def projected_first(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(T(x_k)) from P(x_0): an operator other than the first on the starting point."""
    x = P(x)
    for _ in range(steps):
        x = P(T(x))
    return x


def second_first(T: Operator, S: Operator, x: Iterate, steps: int) -> tuple[Iterate, ...]:
    """x_{k+1} = (T(x_k) + y) / 2, y = S(x_0) called once and first; returns a start and one result twice."""
    start = x
    y = S(x)
    x = y
    for _ in range(steps):
        x = 0.5 * T(x) + 0.5 * y
    return start, x, x


def twice(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """x_{k+1} = P(T(P(T(x_k)))): two calls a step."""
    for _ in range(steps):
        x = P(T(P(T(x))))
    return x


def every_second(T: Operator, x: Iterate, steps: int, *, P: Operator = identity) -> Iterate:
    """T in every second step alone: some stage of one step has no layer."""
    for k in range(steps):
        x = P(T(x)) if k % 2 == 0 else P(0.5 * x)
    return x


OWN = [
    as_algorithm(function)
    for function in (relaxed_splitting, three_step_mean, restarted, projected_first, second_first)
]
METHODS: list[Algorithm] = [*map(find_algorithm, list_algorithms()), *OWN]
FEATURES = 6


def names(method: Algorithm) -> str:
    return method.name


def layer(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A norm-free layer on FEATURES features: ``identity``, or a contraction behind a ReLU or a tanh."""
    if kind == "identity":
        return nn.Identity()
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(FEATURES, FEATURES, dtype=dtype)
    with torch.no_grad():
        weight = torch.randn(FEATURES, FEATURES, generator=generator, dtype=dtype)
        linear.weight.copy_(0.9 * weight / torch.linalg.matrix_norm(weight, 2))
        linear.bias.copy_(torch.randn(FEATURES, generator=generator, dtype=dtype))
    return nn.Sequential(linear, {"relu": nn.ReLU(), "tanh": nn.Tanh()}[kind])


def starts(method: Algorithm, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, FEATURES, generator=generator, dtype=torch.float64) for _ in method.starts]


def required(method: Algorithm) -> list[str]:
    return [name for name, needed in method.operators.items() if needed]
