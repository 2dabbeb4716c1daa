"""Training with several processes: which process this is, its share of the work, and what all processes exchange.

With one process, which is the usual case, every function here returns its input and nothing is exchanged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ickd_lib.runtime.devices import device as find_device
from ickd_lib.runtime.errors import InputError

T = TypeVar("T")
TIMEOUT = 600  # seconds after which a process stops waiting for the others; ICKD_TIMEOUT sets another number


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 on. Process 0 writes all files and prints."""
    return dist.get_rank() if world() > 1 else 0


def share(count: int) -> slice:
    """Return which of `count` things this process works on. The shares are consecutive and differ in size by 1 at most.

    The order of the shares is that of the processes, so that `gather` of what was computed for them is in order.
    """
    each, more = divmod(count, world())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and yield the device of this one; alone, only yield the device.

    Processes on GPUs exchange tensors by NCCL, processes on CPUs by gloo.

    Args:
        device: "auto", "cpu" or "cuda": with the latter, each process of a machine has a GPU of its own.
    Raises:
        InputError: there are more processes on this machine than GPUs, or one process has a GPU by its number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield find_device(device)
        return
    chosen = find_device(device)
    if chosen.type == "cuda":
        if chosen.index is not None and device not in ("auto", "cuda"):
            raise InputError(f"device={device} names one GPU, but each process needs its own; give cuda")
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local} of this machine has no GPU, as there are {torch.cuda.device_count()}")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    seconds = timedelta(seconds=float(os.environ.get("ICKD_TIMEOUT", TIMEOUT)))
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=seconds)
    try:
        yield chosen
    finally:
        _HOST.clear()
        dist.destroy_process_group()


_HOST: list[Any] = []  # the group that exchanges objects and numbers on the host; a GPU is never waited for


def _host() -> Any:
    """Return the gloo group of all processes, which is created at the first call."""
    if not _HOST:
        _HOST.append(dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo"))
    return _HOST[0]


def broadcast(value: T) -> T:
    """Return the value that process 0 gives; the values of the other processes are not used."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_host())
    return values[0]


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in the order of their numbers."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_host())
    return values


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Return, for each flag, whether it is set in some process."""
    if world() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.int8)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_host())
    return tuple(bool(flag) for flag in found)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, concatenated along the first axis in the order of their numbers.

    The tensors may differ in their length, but not in their other sizes. The result has no gradient.
    """
    return tensor if world() == 1 else torch.cat(_parts(tensor.detach()))


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Return what `gather` returns, with a gradient to this process's own tensor.

    A loss of the result is the same in all processes. Its gradient to the own tensor is multiplied by the number of
    processes, because the gradients of the weights are averaged over the processes afterwards.
    """
    return tensor if world() == 1 or not tensor.requires_grad else _Gather.apply(tensor)


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, which may differ in their length."""
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(size) for _ in range(world())]
    dist.all_gather(sizes, size)
    counts = torch.cat(sizes).tolist()
    most = max(counts)
    sent = tensor.new_zeros(most, *tensor.shape[1:])
    sent[: len(tensor)] = tensor
    sent = sent.to(torch.uint8) if tensor.dtype == torch.bool else sent
    parts = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(parts, sent)
    return [part[:count].to(tensor.dtype) for part, count in zip(parts, counts, strict=True)]


class _Gather(torch.autograd.Function):
    """`gather`, whose backward pass keeps the gradient of the process's own tensor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = _parts(tensor)
        ctx.first = sum(len(part) for part in parts[: rank()])
        ctx.count = len(tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient[ctx.first : ctx.first + ctx.count] * world()
