"""Optimizers: timm's by name, with their options and their groups of parameters. Knows no trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from optnet.errors import ConfigError, foreign, unknown
from optnet.networks.unrolled import coefficient_names
from optnet.options import number, option


@dataclass
class OptimOptions:
    """The optimizer. Coefficients and all other 1-d parameters are not decayed."""

    name: str = option("sgd", help="the optimizer, by timm's name")
    momentum: float = number(0.9, 0, 1, help="the momentum, of those optimizers that have one")
    weight_decay: float = number(5e-4, 0, 1, help="the weight decay of weights with two dimensions or more")
    coefficient_lr: float | None = number(
        None, above=0, example=0.01, help="the coefficients' own learning rate, scheduled like the others'; null: lr"
    )
    kwargs: dict[str, Any] = option(factory=dict, help="the optimizer's own options, like {betas: [0.9, 0.99]}")


def optimizer(options: OptimOptions, network: nn.Module, lr: float) -> Optimizer:
    """timm's optimizer for a network. Norms, biases, coefficients and the model's own exceptions are not decayed.

    Raises:
        ConfigError: there is no such optimizer, or it does not take an option that is set.
    """

    def groups(of: nn.Module) -> list[dict[str, Any]]:
        kept: Any = getattr(of, "no_weight_decay", set)()
        made = param_groups_weight_decay(of, options.weight_decay, no_weight_decay_list=kept)
        return _own_rate(of, made, float(options.coefficient_lr or lr))

    if options.coefficient_lr is not None and "layer_decay" in options.kwargs:
        raise ConfigError(
            f"optim.coefficient_lr={options.coefficient_lr} does not go with "
            f"layer_decay={options.kwargs['layer_decay']} in optim.kwargs; give one of them"
        )
    if options.name.rpartition("lookahead_")[2] not in (known := list_optimizers()):
        raise ConfigError(unknown("optim.name", options.name, known))
    given = f" with optim.kwargs={options.kwargs}" if options.kwargs else ""
    with foreign(f"optim.name={options.name}{given}", ConfigError):
        made: Optimizer = create_optimizer_v2(
            network, opt=options.name, lr=lr, weight_decay=options.weight_decay, momentum=options.momentum,
            param_group_fn=None if options.coefficient_lr is None else groups, **options.kwargs,
        )  # fmt: skip
    return made


def _own_rate(network: nn.Module, groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    """Takes the coefficients out of their group, into one with a learning rate of its own and no decay."""
    named = dict(network.named_parameters())
    own = {id(named[entry]) for entry in coefficient_names(network)}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    mine = [parameter for parameter in named.values() if id(parameter) in own and parameter.requires_grad]
    return [*groups, {"params": mine, "lr": lr, "weight_decay": 0.0}] if mine else groups
