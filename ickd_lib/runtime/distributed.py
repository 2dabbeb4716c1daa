"""Training with several processes: which process this is, its share of the work, and what all processes exchange.

With one process, which is the usual case, every function here returns its input and nothing is exchanged. All
processes must call a function that exchanges something, in the same order.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ickd_lib.runtime.devices import device as find_device
from ickd_lib.runtime.errors import InputError

T = TypeVar("T")
TIMEOUT = 600  # seconds after which a process stops waiting for the others; ICKD_TIMEOUT sets another number
PATIENCE = 12  # this times as long where the others may be at work alone, as when one reads its data from a slow disk


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 on. Process 0 writes all files and prints."""
    return dist.get_rank() if world() > 1 else 0


def shares(count: int) -> list[int]:
    """Return how many of `count` things each process works on; the numbers differ by 1 at most."""
    each, more = divmod(count, world())
    return [each + (process < more) for process in range(world())]


def share(count: int) -> slice:
    """Return which of `count` things this process works on.

    The shares are consecutive and in the order of the processes, so that `gather` of what was computed for them is in
    the order of the things.
    """
    sizes = shares(count)
    first = sum(sizes[: rank()])
    return slice(first, first + sizes[rank()])


class ProcessLost(RuntimeError):
    """Raised where another process of the training has ended, so that this one cannot go on."""


# What the messages of gloo and NCCL contain if a process has ended or does not answer.
_LOST = re.compile(r"closed by peer|connection reset|connection refused|timed out|timeout|broken pipe|nccl|gloo", re.I)


_PATIENT: list[Any] = []  # a group of all processes with the longer time limit, from host to host
_STORE: list[dist.Store] = []  # values that all processes can read, also after an error in one of them


def reports(message: str) -> bool:
    """Return whether this process is to print the message of an error, which ends it.

    Process 0 prints its error. The others print theirs only if process 0 has not printed one with the same beginning
    within 2 seconds.
    """
    if not _STORE:
        return True
    message = message[:60]
    try:
        if os.environ.get("RANK", "0") == "0":
            _STORE[0].set("error", message)
            return True
        until = time.monotonic() + 2
        while time.monotonic() < until:
            if _STORE[0].check(["error"]):
                return _STORE[0].get("error").decode() != message
            time.sleep(0.05)
    except (RuntimeError, OSError):  # process 0 has ended
        pass
    return True


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and yield the device of this one; alone, only yield the device.

    Processes on GPUs exchange tensors by NCCL, processes on CPUs by gloo.

    Args:
        device: "auto", "cpu" or "cuda". On GPUs, process i of a machine uses GPU i.
    Raises:
        ProcessLost: inside the context, another process ended or did not answer in time.
        InputError: there are fewer GPUs than processes on this machine, `device` names one GPU for all of them, or an
            environment variable of `torchrun` is not a whole number.
    """
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise InputError(
                f"the environment variable {name}={value} is not a whole number; unset it, or use torchrun"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield find_device(device)
        return
    chosen = find_device(device)
    if chosen.type == "cuda":
        if device not in ("auto", "cuda"):
            raise InputError(f"device={device} names one GPU, but each process needs its own; give cuda")
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise InputError(f"this machine has {count} GPUs, but more processes; start one process for each GPU")
        torch.cuda.set_device(local)  # so that "auto" and "cuda" are this GPU
        chosen = find_device("cuda")
    seconds = timedelta(seconds=_timeout())
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=seconds))
        _STORE[:] = [dist.PrefixStore("ickd", store)]
        # Objects and flags are exchanged between the hosts, also if the tensors of the training are on GPUs.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=seconds)
        _PATIENT[:] = [dist.new_group(timeout=PATIENCE * seconds, backend="gloo")]
        yield chosen
        gc.collect()  # models that still refer to the group would end it, and its threads, while Python exits
        _PATIENT.clear()
        dist.destroy_process_group()  # after an error, it would wait for the other processes
    except RuntimeError as error:
        if isinstance(error, ProcessLost) or not _LOST.search(str(error)):
            raise
        raise ProcessLost(
            f"another process of this training ended, or did not answer for {seconds.total_seconds():.0f} s or more "
            f"({str(error).splitlines()[0]}); the same command continues from the last checkpoint"
        ) from error


def broadcast(value: T) -> T:
    """Return the value that process 0 gives; the values of the other processes are not used.

    Like `gather_objects`, `wait_for_all` and `from_main`, it waits `PATIENCE` times as long as the other functions,
    because the processes may need very different times for what they do before.
    """
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_patient())
    return values[0]


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in the order of their numbers."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_patient())
    return values


def wait_for_all() -> None:
    """Wait until all processes have called this."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1), group=_patient())


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Return, for each flag, whether it is set in some process."""
    if world() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.int8)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found)


def _patient() -> Any:
    """Return the group with the longer time limit; None for the usual one, if a caller joined the processes itself."""
    return _PATIENT[0] if _PATIENT else None


def _timeout() -> float:
    """Return the seconds that a process waits for the others."""
    given = os.environ.get("ICKD_TIMEOUT", str(TIMEOUT))
    if not given.isdecimal() or not int(given):
        raise InputError(f"the environment variable ICKD_TIMEOUT={given} is not a number of seconds; give one above 0")
    return float(given)


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    if world() == 1:
        return tensor
    found = tensor.detach().clone()
    dist.all_reduce(found)
    return found


def from_main(function: Callable[[], T]) -> T:
    """Call a function in process 0 and return its result in all processes; its InputError is raised in all of them."""
    if world() == 1:
        return function()
    result: tuple[Any, str] = (None, "")
    if rank() == 0:
        try:
            result = function(), ""
        except (InputError, OSError) as error:
            result = None, str(error)
    value, message = broadcast(result)
    if message:
        raise InputError(message)
    return value


def lengths(tensor: Tensor) -> list[int]:
    """Return the length of the tensor of each process along the first axis."""
    if world() == 1:
        return [len(tensor)]
    own = torch.tensor([len(tensor)], device=tensor.device)
    found = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(found, own)
    return torch.cat(found).tolist()


def gather(tensor: Tensor, counts: list[int] | None = None) -> Tensor:
    """Return the tensors of all processes, concatenated along the first axis in the order of their numbers.

    If the tensor has a gradient, so does the result, to this process's own tensor. That gradient is multiplied by the
    number of processes, because the gradients of the weights are averaged over the processes afterwards; a loss of the
    result is the same in all of them.

    Args:
        tensor: this process's tensor. The tensors may differ in their length, but not in their other sizes.
        counts: the lengths of the tensors if they are known, which saves exchanging them.
    """
    if world() == 1:
        return tensor
    counts = counts or lengths(tensor)
    return _Gather.apply(tensor, counts) if tensor.requires_grad else _gathered(tensor, counts)


def _gathered(tensor: Tensor, counts: list[int]) -> Tensor:
    sent = tensor.new_zeros(max(counts), *tensor.shape[1:])
    sent[: len(tensor)] = tensor
    sent = sent.to(torch.uint8) if tensor.dtype == torch.bool else sent
    parts = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(parts, sent)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(tensor.dtype)


class _Gather(torch.autograd.Function):
    """`gather` of a tensor with gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int]) -> Tensor:
        first = sum(counts[: rank()])
        ctx.own = slice(first, first + counts[rank()])
        return _gathered(tensor, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient[ctx.own] * world(), None
