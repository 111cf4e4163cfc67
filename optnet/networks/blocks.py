"""The blocks of timm's vision transformers: how their weights and ours are named. Converts no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from optnet.networks.layers.tokens import ATTENTION, MLP
from optnet.networks.layers.transformer import ATTENTIONS, Composition, Parallel, Sum
from optnet.networks.tokens import TokenNetwork
from optnet.networks.unrolled import unrolled_in

BOTH = "A M"
"""What ``Parallel`` is: attention and the MLP of a block; halves of it are called by the operators' names."""


@dataclass(frozen=True)
class Joined:
    """One of timm's tensors is several of ours, one after the other along a dimension."""

    ours: tuple[str, ...]
    dim: int = 0


def block_names(network: TokenNetwork) -> dict[str, Joined]:
    """The weights of timm's blocks, by name, and which of ours they are.

    The k-th attention and the k-th MLP of ours are those of the k-th block of timm's. Steps that no block of timm's
    has are left out.
    """
    found: dict[str, Joined] = {}
    for block, kind, name, layer in _layers(network):
        theirs = f"blocks.{block}"
        if kind == BOTH:
            found |= _parallel_names(layer, name, theirs, network.parts.fuse_out_proj)
        elif isinstance(layer, Sum):
            group = "attns" if kind == ATTENTION else "ffns"
            for i, branch in enumerate(layer.branches):
                found |= _half_names(branch, f"{name}.branches.{i}", f"{theirs}.{group}.{i}", kind, "")
        else:
            found |= _half_names(layer, name, theirs, kind, "1" if kind == ATTENTION else "2")
    return found


def block_count(network: TokenNetwork) -> int | None:
    """The number of timm's blocks that the network's steps are; None if some step is of no block."""
    counts = Counter(kind for _, kind, _, _ in _layers(network))
    blocks = counts[ATTENTION] + counts[BOTH]
    return blocks if blocks and blocks == counts[MLP] + counts[BOTH] else None


def _layers(network: TokenNetwork) -> Iterator[tuple[int, str, str, Any]]:
    """The steps in the order of their calls: the number of the block, what it is of the block, its name, the module."""
    counts: Counter[str] = Counter()
    for stage, unrolled in unrolled_in(network).items():
        for operator in dict.fromkeys((unrolled.program.main, ATTENTION, MLP)):
            for served, layer in unrolled.served_by(operator).items():
                for name, step in _steps(f"{stage}.body.{served}", layer):
                    kind = _kind(step)
                    yield counts[kind], kind, name, step
                    counts[kind] += 1


def _steps(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The half-steps of a whole block, attention and then the MLP; of a half, itself; of three steps, none."""
    if not isinstance(layer, Composition):
        yield name, layer
    elif len(layer.steps) == 1:
        yield f"{name}.steps.0", layer.steps[0]
        yield f"{name}.last", layer.last


def _kind(step: Any) -> str:
    if isinstance(step, Parallel):
        return BOTH
    half = step.branches[0] if isinstance(step, Sum) else step
    return ATTENTION if isinstance(half.inner, tuple(ATTENTIONS.values())) else MLP


def _half_names(half: nn.Module, ours: str, theirs: str, kind: str, number: str) -> dict[str, Joined]:
    """The names of one attention or MLP; ``number`` is that of its norm and its layer scale in timm's block."""
    inner, last = ("attn", "proj") if kind == ATTENTION else ("mlp", "fc2")
    modules = {
        "norm": f"norm{number}", "post_norm": f"norm{number}", "inner": inner, "last": f"{inner}.{last}",
        "ls": f"ls{number}",
    }  # fmt: skip
    return {
        f"{theirs}.{their_module}.{rest}": Joined((f"{ours}.{module}.{rest}",))
        for module, their_module in modules.items()
        for rest in half.get_submodule(module).state_dict()
    }


def _parallel_names(layer: Parallel, ours: str, theirs: str, fused: bool) -> dict[str, Joined]:
    """The names of attention and an MLP at one point, in timm's ``(Diff)ParallelScalingBlock``.

    The first maps of both are rows of one, the MLP's before those of attention. The biases are too, if queries, keys
    and values have one. The last maps are columns of one if ``fused``, those of attention before the MLP's.
    """
    own = layer.state_dict()
    modules = {"norm": "in_norm", "ls": "ls"}
    modules |= {f"attn.{name}": name for name in ("q_norm", "k_norm", "sub_norm") if hasattr(layer.attn, name)}
    if not fused:
        modules |= {"proj": "attn_out_proj", "fc2": "mlp_out_proj"}
    pairs: dict[str, tuple[str, ...]] = {
        f"{module}.{rest}": (f"{name}.{rest}",)
        for name, module in modules.items()
        for rest in layer.get_submodule(name).state_dict()
    }
    pairs |= {name: (f"attn.{name}",) for name, _ in layer.attn.named_parameters(recurse=False)}
    pairs["in_proj.weight"] = ("mlp.fc1.weight", "attn.qkv.weight")
    if "attn.qkv.bias" in own:
        pairs["in_proj.bias"] = ("mlp.fc1.bias", "attn.qkv.bias")
    else:
        pairs["mlp_bias"] = ("mlp.fc1.bias",)
    if fused:
        pairs["out_proj.weight"] = ("proj.weight", "fc2.weight")
        pairs["out_proj.bias"] = ("proj.bias",)
    return {
        f"{theirs}.{name}": Joined(tuple(f"{ours}.{one}" for one in those), 1 if name == "out_proj.weight" else 0)
        for name, those in pairs.items()
        if all(one in own for one in those)
    }
