"""Several processes that train one network: their options and their collectives. Knows no run.

Every process holds the whole network and takes its share of each batch. With one process, each function does nothing.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import filterfalse
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from optnet.errors import ConfigError, RequestError
from optnet.networks.statistics import is_held, keepers, running_statistics
from optnet.options import choice, number

BATCH_NORMS = ("reduce", "broadcast", "none", "synchronise")
"""Each process has its own batch-norm statistics in training. Before scoring they are averaged (reduce), or the first
process's are taken (broadcast), or they stay (none). Or they are always those of the whole batch (synchronise).
All norms with running statistics count; see ``networks.statistics``."""


@dataclass
class DistributedOptions:
    """How many processes train one network, and what they do with their batch-norm statistics."""

    processes: int = number(
        1, 1, 1024, help="processes that this command starts on this machine; torchrun starts them on one or many"
    )
    batch_norm: str = choice(
        "reduce", *BATCH_NORMS,
        help="statistics before scoring: the mean of all processes, the first's, or each its own; synchronise: always "
        "those of the whole batch, on GPUs",
    )  # fmt: skip


Result = TypeVar("Result")


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_primary() -> bool:
    return rank() == 0


def launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched_first() -> bool:
    """Whether this process reports for all, before they are connected."""
    return os.environ.get("RANK", "0") == "0"


def device(chosen: torch.device) -> torch.device:
    """The device of this process: of the accelerators on its machine the one of its number there."""
    if launched() and chosen.type == "cuda" and chosen.index is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"there are {torch.cuda.device_count()} GPUs here, too few for process {local}; or device=cpu"
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return chosen


@contextmanager
def processes() -> Iterator[None]:
    """Connects the processes, with NCCL for tensors on GPUs and gloo for the rest; disconnects them after success.

    After an error no process waits for the others: torchrun ends them.
    """
    if not launched():
        yield
        return
    _end_with_the_launcher()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.destroy_process_group()


def _end_with_the_launcher() -> None:
    """If torchrun is killed, this process gets SIGTERM: it saves and ends, and does not hold its folder any longer.

    On Linux alone, where a process can ask for that (prctl, PR_SET_PDEATHSIG).
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))


def primary_first(work: Callable[[], Result]) -> Result:
    """``work()`` in the first process of each machine and then in the others, so that one alone fetches files."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if size() > 1 and not first:
        dist.barrier()
    try:
        return work()
    finally:
        if size() > 1 and first:
            dist.barrier()


def broadcast_object(value: Any) -> Any:
    """The first process's ``value``, in every process."""
    if size() > 1:
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


def all_reduce_max(value: int) -> int:
    """The largest of the processes' values: how they agree to stop."""
    if size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def all_gather(value: Result) -> list[Result]:
    """The values of all processes, by their numbers."""
    if size() == 1:
        return [value]
    gathered: list[Any] = [None] * size()
    dist.all_gather_object(gathered, value)
    return gathered


def all_gather_union(values: set[str]) -> set[str]:
    """The union of the values of all processes."""
    return set().union(*all_gather(values))


def together(work: Callable[[], Result]) -> Result:
    """``work()`` in every process. If it fails in one of them, each raises the error of the first that failed.

    Raises:
        RequestError: ``work`` raised it in some process.
    """
    result, error = None, ""
    try:
        result = work()
    except RequestError as failure:
        if size() == 1:
            raise
        error = str(failure)
    if first := next(filter(None, all_gather(error)), ""):
        raise RequestError(first)
    return cast(Result, result)


def all_reduce_sum(*values: Tensor) -> None:
    """Replaces each value by its sum over all processes."""
    if size() > 1:
        for value in values:
            dist.all_reduce(value)


def broadcast_model(model: nn.Module) -> None:
    """Broadcasts the first process's weights and buffers."""
    if size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def share_buffers(model: nn.Module, how: str) -> None:
    """Gives every process the same running statistics: the first's (``broadcast``) or the mean, unless ``none``.

    Norms that cannot be synchronised are averaged with ``synchronise`` too.
    """
    if size() > 1 and how != "none":
        for norm in filterfalse(is_held, keepers(model)):
            for statistic in running_statistics(norm).values():
                if how == "broadcast":
                    dist.broadcast(statistic, 0)
                elif statistic.is_floating_point():
                    dist.all_reduce(statistic)
                    statistic /= size()


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a sum failed because another process is gone. (NCCL has a class for it, gloo its name in the text.)"""
    return size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def replica(network: nn.Module) -> nn.Module:
    """The network in torch's DistributedDataParallel: its backward pass averages the gradients over the processes.

    The processes must hold the same weights: see ``broadcast_model``.
    """
    if size() == 1:
        return network
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(network, init_sync=False, **options)


def no_sync(network: nn.Module) -> AbstractContextManager[None]:
    """Backward passes in here accumulate this process's gradients; the next one outside averages over the processes."""
    found: AbstractContextManager[None] = (
        network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
    )
    return found


def share(count: int) -> float:
    """n_r R / sum_r n_r for the ``count`` = n_r images of process r of R: times its mean loss, the replica's averaged
    gradient is that of the whole batch's mean loss, however unequal the shares."""
    total = torch.tensor(float(count))
    all_reduce_sum(total)
    return count * size() / float(total)
