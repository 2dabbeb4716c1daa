"""The peak rates of a machine, the least work of a training step, and the division of its time among operations."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ickd_lib import models

# Kinds of operation, with parts of the names of their operators and kernels. An operation belongs to the first kind
# that matches, because the names of cuDNN's kernels for batch normalisation also contain "cudnn", and the names of many
# kernels contain "elementwise".
KINDS = {
    "batch normalisation": ("batch_norm", "bn_", "batchnorm"),
    "convolution": ("conv", "cudnn", "gemm", "addmm", "xmma", "cutlass", "implicit"),
    "optimiser": ("sgd", "multi_tensor"),
    "activations and additions": ("clamp_min", "relu", "threshold", "add", "elementwise", "vectorized"),
}


def name(device: torch.device) -> str:
    """Return the model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call of `work`, until the device has finished everything that the call launched."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(work: Callable[[], object], device: torch.device, rounds: int = 8) -> float:
    """Return the shortest of several measurements of `work`, in seconds."""
    return min(seconds(work, device) for _ in range(rounds))


def rates(device: torch.device, precision: str) -> dict[str, float]:
    """Measure the operations per second of a large matrix product and the bytes per second of a large copy.

    Args:
        device: the device to measure.
        precision: precision of the matrix product, "fp32" or "bf16".
    """
    side = 8192 if device.type == "cuda" else 2048
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=kind)
    source = torch.randn(64_000_000, device=device)
    target = torch.empty_like(source)
    return {
        "operations_per_second": 2 * side**3 / fastest(lambda: a @ b, device),
        "bytes_per_second": 2 * source.nbytes / fastest(lambda: target.copy_(source), device),
    }


def work(network: models.Network, size: tuple[int, int], *, training: bool, bytes_each: int) -> tuple[float, float]:
    """Count the operations and bytes that a network needs at least for one image.

    The operations are those of convolutions and matrix products in the forward pass, and in training also in the
    backward pass. The bytes are those of the outputs of these layers, each of which is written once and read once. In
    training, each is written and read once more, and so is its gradient.

    Args:
        network: the network to count for.
        size: height and width of an image in pixels.
        training: whether to count the backward pass.
        bytes_each: bytes of one number, 4 in fp32 and 2 in bf16.
    Returns:
        Operations and bytes for one image.
    """
    outputs = 0

    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal outputs
        outputs += output.numel()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    images = torch.rand(2, 3, *size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = network(images).logits
        if training:
            logits.sum().backward()
    for hook in hooks:
        hook.remove()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2, (6 if training else 2) * outputs * bytes_each / 2


def floor(
    student: models.Network,
    teacher: models.Network | None,
    size: tuple[int, int],
    rate: dict[str, float],
    precision: str,
) -> float:
    """Return the least time in seconds that one image can take on this machine.

    It is the larger of two times at the peak rates: that of the image's operations and that of its bytes (see `work`).

    Args:
        student: the network that is trained.
        teacher: the network whose forward pass is part of the step; None with a full teacher cache.
        size: height and width of an image in pixels.
        rate: the result of `rates`.
        precision: "fp32" or "bf16".
    """
    each = 2 if precision == "bf16" else 4
    operations, moved = work(student.train(), size, training=True, bytes_each=each)
    if teacher is not None:
        teacher_operations, teacher_moved = work(teacher, size, training=False, bytes_each=each)
        operations, moved = operations + teacher_operations, moved + teacher_moved
    return max(operations / rate["operations_per_second"], moved / rate["bytes_per_second"])


def shares(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Profile `run` and return the share of each kind of operation in the time of all operations, largest first.

    On a CPU this is the time of the operators, on a GPU the time of the kernels.
    """
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        run()
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        # The time of an operator on the CPU includes the kernels that it launched, and that of an annotation all
        # kernels inside it. Only the kernels themselves are summed, so that each is counted once.
        if cuda and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        name = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "everything else")
        spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: round(t / total, 3) for kind, t in sorted(spent.items(), key=lambda item: -item[1])}
