"""From a checked configuration to the parts of a run: device, data, model, optimizer, schedule. Trains nothing."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

import optnet.data
from optnet.app.config import Data, Init, Model, Optim, Schedule
from optnet.data import DataSet, Loader
from optnet.errors import AlgorithmError, ConfigError, ModelError, RequestError
from optnet.networks import initialisation
from optnet.networks.unrolled import coefficient_names


def device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the accelerator if there is one."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        made = torch.device(name)
        torch.empty(0, device=made)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={name} cannot be used here ({reason}); try device=auto or device=cpu") from None
    return made


def data(config: Data, seed: int, training: bool = True) -> DataSet:
    return optnet.data.load(
        config.name, config.root, validation=config.validation, seed=seed, size=config.size, crop=config.crop,
        classes=config.classes, images=config.images, limit=config.limit, verify=config.verify,
        download=config.download, training=training,
    )  # fmt: skip


def model(
    config: Model, algorithm: dict[str, Any], classes: int, shape: tuple[int, int, int], *, sized: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a configuration and the arguments it was made with.

    A model that timm says to be made for one size of images is told the size of these, ``shape[1:]``; if not
    ``sized``, it keeps its own.

    Raises:
        ModelError: there is no such model, or it does not take an option that is set.
        ConfigError: the algorithm cannot be found or traced.
    """
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name}*")[:3]
        hint = f"did you mean {', '.join(near)}?" if near else "see optnet.list_models() and timm.list_models()"
        raise ModelError(f"unknown model '{config.name}': {hint}")
    kwargs = {key: value for key, value in vars(config).items() if value is not None and key not in ("name", "kwargs")}
    kwargs.update(config.kwargs, num_classes=classes, in_chans=shape[0])
    if sized and timm.get_pretrained_cfg_value(config.name, "fixed_input_size"):
        kwargs.setdefault("img_size", shape[1:])
    constants = {key: value for key, value in algorithm.items() if key != "name" and value is not None}
    if algorithm.get("name"):
        kwargs = {"layer": None, "reading": None, **kwargs, "algorithm": algorithm["name"]}
    if constants:
        kwargs["constants"] = constants
    try:
        return timm.create_model(config.name, **kwargs), kwargs
    except AlgorithmError as error:
        raise ConfigError(f"algorithm={algorithm.get('name') or config.name}: {error}") from None
    except RequestError:
        raise
    except TypeError as error:
        raise ModelError(f"model={config.name} does not take an option that is set: {error}") from None
    except RuntimeError as error:
        raise ModelError(f"model={config.name}: {str(error).splitlines()[0]}") from None


def initialise(config: Init, network: nn.Module, loader: Loader, labels: Tensor) -> None:
    """Starts the weights; what starts from data gets the loader's first batch.

    Raises:
        ConfigError: the scheme does not go with the model.
    """
    needed = initialisation.needs_data(network, config.name)
    images = next(iter(loader.batches()))[0] if needed else None
    initialisation.initialise(
        network, config.name, images=images, labels=labels, gain=config.gain, bias=config.bias,
        output_bias=config.output_bias,
    )  # fmt: skip


def optimizer(config: Optim, network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer of a name; norms, biases, coefficients (all 1-d) and the model's own exceptions are not decayed.

    Raises:
        ConfigError: there is no such optimizer, or it does not take an option that is set.
    """

    def groups(of: nn.Module) -> list[dict[str, Any]]:
        kept: Any = getattr(of, "no_weight_decay", set)()
        made = param_groups_weight_decay(of, config.weight_decay, no_weight_decay_list=kept)
        return _own_rate(of, made, float(config.coefficient_lr or lr))

    if config.coefficient_lr is not None and "layer_decay" in config.kwargs:
        raise ConfigError(
            f"optim.coefficient_lr={config.coefficient_lr} does not go with layer_decay={config.kwargs['layer_decay']} "
            "in optim.kwargs; give one of them"
        )
    try:
        return create_optimizer_v2(
            network, opt=config.name, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum,
            param_group_fn=None if config.coefficient_lr is None else groups, **config.kwargs,
        )  # fmt: skip
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"optim.name={config.name} is unknown ({error}); for instance sgd, adamw or lamb") from None
    except Exception as error:  # what an optimizer says of arguments, or of a package, that it does not have
        reason = str(error).splitlines()[0]
        raise ConfigError(f"optim.name={config.name} with kwargs={config.kwargs} cannot be had: {reason}") from None


def _own_rate(network: nn.Module, groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    """Takes the coefficients out of their group, into one with a learning rate of its own and no decay."""
    named = dict(network.named_parameters())
    own = {id(named[entry]) for entry in coefficient_names(network)}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    mine = [parameter for parameter in named.values() if id(parameter) in own and parameter.requires_grad]
    return [*groups, {"params": mine, "lr": lr, "weight_decay": 0.0}] if mine else groups


def schedule(config: Schedule, made: torch.optim.Optimizer, updates: int) -> Any:
    """timm's schedule of a name over so many updates, stepped once an update."""
    warmup = round(config.warmup * updates)
    left = max(1, updates - warmup)
    scheduler, _ = create_scheduler_v2(
        made, sched=config.name, num_epochs=max(1, left // config.cycles), min_lr=config.min_lr, warmup_lr=0.0,
        decay_milestones=[round(part * updates) for part in config.milestones],
        decay_epochs=max(1, round(config.decay * (updates if config.name == "step" else left))),
        decay_rate=config.power if config.name == "poly" else config.factor, cycle_limit=config.cycles,
        cycle_decay=1.0,
        warmup_epochs=warmup, warmup_prefix=config.name in ("cosine", "tanh", "poly", "wsd", "rsqrt"),
        step_on_epochs=False, updates_per_epoch=1,
    )  # fmt: skip
    return scheduler
