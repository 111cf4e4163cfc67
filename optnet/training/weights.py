"""Files of weights, whoever wrote them: how they are read, and which of their entries are a model's. Unpickles nothing.

The layouts are those of torchvision's references, timm, Lightning, DistributedDataParallel, ``torch.compile``,
safetensors, plain state dicts and optnet's own checkpoints.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optnet.errors import CheckpointError, RequestError, printable, reason
from optnet.networks.ancestors import ANCESTORS, parameter_pairs
from optnet.networks.convert import checkpoint_filter
from optnet.networks.network import Network
from optnet.networks.tokens import TokenNetwork
from optnet.networks.transformers import their_names
from optnet.training.schema import form

State = dict[str, Tensor]

ENTRIES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model", "model_state_dict", "net", "network",
    "weights", "params",
)  # fmt: skip
"""Where a state dict is in a checkpoint. Averaged weights come before plain ones, as in timm."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The names that modules around a model add to those of its parameters: DistributedDataParallel and torch's averages of
weights, ``torch.compile``, FullyShardedDataParallel, torch's activation checkpointing."""
DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""The first names of torchvision's DenseNet, which are no names of modules today: ``norm.1`` is ``norm1``."""
_PLAIN: list[Any] = [
    argparse.Namespace, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]  # fmt: skip
"""What checkpoints hold besides tensors and plain containers: command lines, paths, scores. Attributes alone, nothing
that runs."""
_DEEPEST = 4


class Damaged(CheckpointError):
    """A checkpoint is missing, or its file is not as it was written."""


def best_of(path: str | PathLike[str]) -> Path:
    """The file itself; of a run's folder its best checkpoint."""
    path = Path(path)
    return path / "checkpoints" / "best.pt" if path.is_dir() else path


def is_ours(content: Any) -> bool:
    """Whether what is in a file was written by optnet, of any version."""
    return isinstance(content, dict) and type(content.get("format")) is int


def read(path: str | Path) -> Any:
    """The content of a file of weights (safetensors, or torch's), on the CPU, whoever wrote it.

    Torch writes a checksum (CRC-32) for each tensor and for the rest, but does not compare it when it loads them.

    Raises:
        Damaged: it is missing, truncated, changed since it was written, or would need unpickling.
    """
    path = Path(path)
    shown = printable(str(path))
    if not path.is_file():
        raise Damaged(f"there is no checkpoint {shown}; a run keeps its own in RUN_FOLDER/checkpoints/best.pt")
    try:
        if _is_safetensors(path):
            return load_file(path)
        if found := _archive(path):
            raise Damaged(f"{shown} is {found}; {_ADVICE}")
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            warnings.simplefilter("ignore")  # torch wonders about foreign pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
        if is_ours(content):
            _compare_checksums(path)
        return content
    except CheckpointError:
        raise
    except Exception as error:  # foreign bytes make the unpickler stumble in any way
        if pickled := re.search(r"GLOBAL ([^\s]+)", str(error)):
            found = f"a pickled {printable(pickled[1][:100])}, and unpickling it would run its code"
            raise Damaged(f"{shown} holds {found}; {_ADVICE}") from None
        raise Damaged(f"{shown} is truncated or not a checkpoint ({reason(error, 120)})") from None


_ADVICE = "save the weights alone, with torch.save(model.state_dict(), FILE)"


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of a header, and the header, which is JSON."""
    with open(path, "rb") as opened:
        first = opened.read(9)
    return len(first) == 9 and first[8:] == b"{" and int.from_bytes(first[:8], "little") < path.stat().st_size


def _archive(path: Path) -> str:
    """What a zip archive holds in the place of weights that can be read; empty if it may be torch's own."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript archive, which holds a program"
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
        return "an archive of torch.export, which holds a program"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy's arrays"
    return ""


def _compare_checksums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise Damaged(f"{path} was changed since it was written: the checksum of {damaged} differs")


def state_dict(content: Any, where: str) -> State:
    """The state dict in what a file holds, with its names as they are there.

    Raises:
        CheckpointError: there is none; the message says what there is.
    """
    if (found := _state_dict(content, _DEEPEST)) is not None:
        return found
    if isinstance(content, Mapping):
        names = ", ".join(printable(str(name)[:40]) for name in list(content)[:8]) or "nothing"
        more = ", ..." if len(content) > 8 else ""
        what = f"a table with {names}{more}"
    else:
        what = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{printable(where)} holds {what}, and no state dict: a table of tensors by the names of a model's parameters; "
        f"{_ADVICE}"
    )


def _state_dict(content: Any, depth: int) -> State | None:
    if not isinstance(content, Mapping) or not depth:
        return None
    for entry in ENTRIES:
        if (found := _state_dict(content.get(entry), depth - 1)) is not None:
            return found
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    return tensors if tensors and all(isinstance(name, str) for name in tensors) else None


def named_as(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """The tensors of a state dict by the names that they have in a model; what it does not have keeps its name.

    The count of torch's averages, the names of wrappers, a prefix that all of the model's parameters have (Lightning:
    ``model.``, ``net.``), and what is outside this prefix are taken away. torchvision's first names of DenseNet become
    today's. An ancestor's (a ResNet's, a DenseNet's, a vision transformer's) become those of the optnet network that
    it is the ancestor of; the positions of a vision transformer are resized to the model's images.

    Raises:
        ModelError: the model is an optnet network, and the state dict is that of an ancestor which it cannot equal.
    """
    vocabularies: list[Collection[str]] = [model.state_dict().keys()]
    if isinstance(model, Network):
        vocabularies += [parameter_pairs(ancestor, model).keys() for ancestor in ANCESTORS]
    elif isinstance(model, TokenNetwork):
        vocabularies.append(their_names(model))
    best, most = dict(state), 0
    for words in vocabularies:
        cleaned = {_cleaned(name, words): value for name, value in state.items()}
        prefix, count = _prefix(cleaned, words)
        if count > most:
            best, most = _inside(cleaned, prefix, words), count
            if words is not vocabularies[0]:
                best = checkpoint_filter(best, model)
    return best


def _inside(state: Mapping[str, Tensor], prefix: str, words: Collection[str]) -> State:
    made = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in made.items() if name != "n_averaged" or name in words}


def _cleaned(name: str, words: Collection[str]) -> str:
    if name in words:
        return name
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return name if name in words else DENSE.sub(r"\1\2", name)


def _prefix(names: Collection[str], words: Collection[str]) -> tuple[str, int]:
    """The prefix with which most of the names are words, and how many. Of equals an average's, then the shortest."""
    counts: Counter[str] = Counter()
    for name in names:
        for place in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if name[place:] in words:
                counts[name[:place]] += 1
    best = max(counts, key=lambda prefix: (counts[prefix], "ema" in prefix, -len(prefix)), default="")
    return best, counts[best]


def differences(state: Mapping[str, Tensor], model: nn.Module) -> tuple[list[str], list[str], dict[str, str]]:
    """The names of the model that ``state`` lacks, those that the model lacks, and why others do not fit, by name."""
    wanted = model.state_dict()
    counter = "num_batches_tracked"  # torch has had it since 0.4.1
    counters = {f"{name}.{counter}" for name, module in model.named_modules() if hasattr(module, counter)}
    missing = [name for name in wanted if name not in state and name not in counters]
    more = [name for name in state if name not in wanted]
    unlike = {
        name: f"{printable(name)} is {form(state[name])}, not {form(own)}"
        for name, own in wanted.items()
        if name in state and form(state[name]) != form(own)
    }
    return missing, more, unlike


def put(model: nn.Module, content: Any, where: str) -> None:
    """Gives a model all of its weights from what a file holds.

    Raises:
        CheckpointError: they are not there, or do not fit the model.
    """
    try:
        state = named_as(state_dict(content, where), model)
        missing, more, unlike = differences(state, model)
        wrong = [*unlike.values()]
        wrong += [f"{printable(some(names))} {which}" for names, which in _lacks(missing, more)]
        if wrong:
            raise CheckpointError(f"the weights of {printable(where)} do not fit the model: {'; '.join(wrong[:3])}")
        take(model, state)
    except CheckpointError:
        raise
    except RequestError as error:
        raise CheckpointError(f"the weights of {printable(where)} do not fit the model: {error}") from None


def _lacks(missing: list[str], more: list[str]) -> Iterator[tuple[list[str], str]]:
    if missing:
        yield missing, "missing"
    if more:
        yield more, "unknown to the model"


def some(names: Collection[str], most: int = 3) -> str:
    """The first of several names, and how many more there are."""
    first = ", ".join(list(names)[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def take(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies tensors that were found to fit into a model.

    Raises:
        CheckpointError: torch cannot copy one (it is on the meta device, for instance).
    """
    own = model.state_dict()
    try:
        model.load_state_dict({**own, **{name: value for name, value in state.items() if name in own}})
    except Exception as error:  # a foreign file may hold any kind of tensor
        raise CheckpointError(f"its weights cannot be taken: {joined(error)}") from None


def joined(error: Exception) -> str:
    """All lines of an error in one: torch names the weights that do not fit in those behind the first."""
    return reason(ValueError(" ".join(str(error).split()) or type(error).__name__), 200)
