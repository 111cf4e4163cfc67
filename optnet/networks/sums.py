"""The weighted sum of tensors, with a backward pass of its own. Knows no program and no layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weighted_sum(terms: list[Tensor], weights: list[Tensor]) -> Tensor:
    """w_1 x_1 + w_2 x_2 + ..., a new tensor.

    A chain of multiply-adds. In eager mode its backward pass takes the derivative for a weight that is one number as an
    inner product <g, x>, which reads both tensors once. Autograd's own makes the product g x first and then sums it.
    Compilers, exports and scripts see the chain itself.

    Args:
        terms: x, tensors of one shape.
        weights: w, one for each term, of its dtype; numbers, or shapes that broadcast to the terms'.
    """
    if torch.jit.is_scripting():
        return chain(terms, weights)
    elif _plain(terms + weights):
        return _WeightedSum.apply(len(terms), *terms, *weights)
    else:
        return chain(terms, weights)


def chain(terms: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The sum as multiply-adds."""
    total = terms[0] * weights[0]
    for i in range(1, len(terms)):
        total = total.addcmul_(terms[i], weights[i])
    return total


@torch.jit.unused
def _plain(tensors: list[Tensor]) -> bool:
    """Whether autograd records this, and nothing else does."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.overrides.has_torch_function(tensors)
        and any(tensor.requires_grad for tensor in tensors)
    )


class _WeightedSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *given: Tensor) -> Tensor:
        return chain(list(given[:count]), list(given[count:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.count = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        terms, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        needs = ctx.needs_input_grad[1:]
        by_term = [g * w if need else None for w, need in zip(weights, needs[: ctx.count], strict=True)]
        by_weight = [
            _inner(g, x, w) if need else None
            for x, w, need in zip(terms, weights, needs[ctx.count :], strict=True)
        ]  # fmt: skip
        return None, *by_term, *by_weight

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        terms, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        changes = zip((*weights, *terms), tangents, strict=True)
        products = [factor * tangent for factor, tangent in changes if tangent is not None]
        return torch.stack(torch.broadcast_tensors(*products)).sum(0)


def _inner(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The derivative for a weight of x, of the weight's shape."""
    if weight.ndim == 0 and g.dtype == x.dtype and x.dtype in (torch.float32, torch.float64):
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            g, x = g.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
        return torch.dot(g.reshape(-1), x.reshape(-1))
    return (g * x).sum_to_size(weight.shape)
