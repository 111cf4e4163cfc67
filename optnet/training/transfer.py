"""A training that starts from given weights: where they are, which are taken, and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from optnet.data import Preprocessing
from optnet.errors import CheckpointError, ConfigError, ModelError, RequestError, did_you_mean, printable, reason
from optnet.networks.statistics import hold, keepers
from optnet.networks.unrolled import coefficient_names
from optnet.training import checkpoint, weights
from optnet.training.environment import silent
from optnet.training.weights import State, some

ALL_BUT_HEAD, ALL_BUT_COEFFICIENTS = "all_but_head", "all_but_coefficients"


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        where: the file, folder or tag, as it was given.
        preprocessing: that of their training; None if nothing says it.
        classes: the names of the outputs; empty if nothing says them.
    """

    where: str
    state: State
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()


def find(given: str) -> Source:
    """The weights in a file (see ``weights``), those of the best checkpoint in a run's folder, or timm's of a tag.

    timm reads a tag's file from its cache (``HF_HOME``, ``TORCH_HOME``) and fetches it if it is not there.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    shown = f"init_from={printable(given)}"
    if Path(given).exists():
        path = weights.best_of(given)
        content = weights.read(path)
        if not weights.is_ours(content):
            return Source(shown, weights.state_dict(content, str(path)))
        saved = checkpoint.parse(content, path)
        return Source(shown, saved.state_dict, Preprocessing(**saved.preprocessing), tuple(saved.classes))
    if not (timm.is_model(given) and given in _tags(given)):
        near = did_you_mean(given, _tags(given) or timm.list_pretrained())
        raise CheckpointError(f"{shown}: there is no such file or folder, and timm has no weights of that name{near}")
    try:
        with silent():
            model = timm.create_model(given, pretrained=True)
    except RequestError:
        raise
    except Exception as error:  # the hub, the network and timm raise what they like
        why = reason(error, 200)
        raise CheckpointError(f"{shown}: timm's weights of that name are not here and cannot be had: {why}") from None
    return Source(shown, model.state_dict(), Preprocessing.of(model, test=False))


def _tags(given: str) -> list[str]:
    """timm's names of weights for an architecture; the architecture alone stands for its first ones."""
    architecture = given.partition(".")[0]
    if not timm.is_model(architecture):
        return []
    found: list[str] = timm.list_pretrained(f"{architecture}.*") + timm.list_pretrained(architecture)
    return [*found, architecture] if found else []


def start(model: nn.Module, source: Source, classes: Sequence[str] = ()) -> str:
    """Gives a model the weights of ``source``. A head of another size, and what the source lacks, stay new.

    The first convolution is adapted to the model's input channels as timm does it.

    Args:
        classes: the names of the model's outputs.

    Returns:
        What was loaded, what is new and what was not used, in one line.

    Raises:
        CheckpointError: the weights do not fit the model; it is unchanged.
    """
    try:
        state = weights.named_as(source.state, model)
    except ModelError as error:
        raise CheckpointError(f"{source.where}: {error}") from None
    said = []
    state, adapted = _adapted(state, model)
    if adapted:
        said.append(f"{printable(adapted)} is adapted to {model.state_dict()[adapted].shape[1]} input channel(s)")
    missing, more, unlike = weights.differences(state, model)
    of_head = head_names(model)
    resized = [name for name in unlike if name in of_head]
    if wrong := [why for name, why in unlike.items() if name not in of_head]:
        raise CheckpointError(f"{source.where}: its weights do not fit the model: {'; '.join(wrong[:3])}")
    taken = {name: value for name, value in state.items() if name not in (*more, *resized)}
    if not any(name in taken for name, _ in model.named_parameters()):
        raise CheckpointError(
            f"{source.where}: none of its weights is the model's; it has {printable(some([*source.state]))}, and the "
            f"model {some([*model.state_dict()])}"
        )
    weights.take(model, taken)
    if resized:
        sizes = f"{len(state[resized[0]])} outputs and not {len(model.state_dict()[resized[0]])}"
        said.append(f"new, since its head has {sizes}: {printable(some(resized))}")
    elif source.classes and classes and source.classes != tuple(classes):
        said.append(f"its head is that of other classes: {printable(some(source.classes))}")
    if missing:
        said.append(f"new, since it lacks them: {some(missing)}")
    if more:
        said.append(f"not used: {printable(some(more))}")
    count = f"{len(taken)} of the model's {len(model.state_dict())} tensors are loaded"
    return f"{source.where}: {'; '.join([count, *said])}"


def _adapted(state: State, model: nn.Module) -> tuple[State, str]:
    """The weights with a first convolution for the model's input channels, and its name if it was adapted."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    name, own = f"{cfg.get('first_conv')}.weight", model.state_dict()
    if name not in state or name not in own or state[name].dim() != 4 or not state[name].is_floating_point():
        return state, ""
    given, wanted = state[name].shape, own[name].shape
    if given[1] == wanted[1] or (given[0], *given[2:]) != (wanted[0], *wanted[2:]):
        return state, ""
    try:
        made: Tensor = adapt_input_conv(wanted[1], state[name], base_chans=given[1])
    except NotImplementedError:
        return state, ""
    return {**state, name: made}, name


def head_names(model: nn.Module) -> set[str]:
    """The names of the classifier's parameters: those of timm's ``get_classifier``, empty if there is none."""
    found: Any = getattr(model, "get_classifier", lambda: None)()
    heads = [head for head in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(head, nn.Module)]
    own = {id(parameter) for head in heads for parameter in head.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def freeze(model: nn.Module, patterns: Sequence[str]) -> str:
    """Freezes parameters. Norms whose parameters are all frozen keep their running statistics too.

    Args:
        patterns: ``all_but_head``, ``all_but_coefficients``, or names of modules or parameters, in which ``*``, ``?``
            and ``[...]`` stand for others.

    Returns:
        How many parameters are left, in one line.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    names = {name: parameter for name, parameter in model.named_parameters()}
    frozen: set[str] = set()
    held: set[nn.Module] = set()
    for pattern in patterns:
        if pattern in (ALL_BUT_HEAD, ALL_BUT_COEFFICIENTS):
            kept = head_names(model) if pattern == ALL_BUT_HEAD else coefficient_names(model)
            if not kept:
                what = "classifier" if pattern == ALL_BUT_HEAD else "learnable coefficients"
                raise ConfigError(f"freeze={pattern}: the model has no {what}")
            frozen |= names.keys() - kept
            held |= {norm for norm in keepers(model) if not any(True for _ in norm.parameters(recurse=False))}
            continue
        modules = {name: module for name, module in model.named_modules() if name and fnmatchcase(name, pattern)}
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not modules and not matched:
            known = [*(name for name, _ in model.named_modules() if name), *names]
            raise ConfigError(
                f"freeze={printable(pattern)} matches no module and no parameter of the model"
                f"{did_you_mean(pattern, known) or f'; it has {some([n for n, _ in model.named_children()], 8)}'}"
            )
        inside = {id(parameter) for module in modules.values() for parameter in module.parameters()}
        frozen |= matched | {name for name, parameter in names.items() if id(parameter) in inside}
        held |= {norm for module in modules.values() for norm in keepers(module)}
    for name in frozen:
        names[name].requires_grad_(False)
    left = [parameter for parameter in names.values() if parameter.requires_grad]
    if not left:
        raise ConfigError(f"freeze={printable(', '.join(patterns))} leaves nothing to train")
    for norm in keepers(model):
        own = list(norm.parameters(recurse=False))
        if norm in held or (own and not any(parameter.requires_grad for parameter in own)):
            hold(norm)
    count, total = (sum(parameter.numel() for parameter in some_) for some_ in (left, names.values()))
    return f"{count:,} of {total:,} parameters are trained, by freeze={printable(', '.join(patterns))}"
