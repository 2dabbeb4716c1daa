"""What the machine can do at best, what a step cannot do without, and where the rest of its time goes."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ickd_lib import models

KINDS = {  # of operation, by what its name holds; the first that fits
    "convolution": ("conv", "cudnn", "gemm", "xmma", "cutlass", "implicit"),
    "batch normalisation": ("batch_norm", "bn_", "batchnorm"),
    "optimiser": ("sgd", "multi_tensor"),
    "activations and additions": ("clamp_min", "relu", "threshold", "add", "elementwise", "vectorized"),
}


def name(device: torch.device) -> str:
    """Of the processor that does the work, as it calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def fastest(work: Callable[[], object], device: torch.device, rounds: int = 8) -> float:
    """The least seconds that `work` took."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def rates(device: torch.device, precision: str) -> dict[str, float]:
    """Operations a second of a large matrix product, bytes a second of a large copy."""
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
    """Operations and bytes that one image costs at least.

    Operations: of convolutions and matrix products, forward, and backward where it is trained. Bytes: the output of
    each of these written once and read once; in training both again, and its gradient written and read.
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
    """Seconds that an image costs at least on this machine: the longer of its operations and its bytes."""
    each = 2 if precision == "bf16" else 4
    operations, moved = work(student.train(), size, training=True, bytes_each=each)
    if teacher is not None:
        more, also = work(teacher, size, training=False, bytes_each=each)
        operations, moved = operations + more, moved + also
    return max(operations / rate["operations_per_second"], moved / rate["bytes_per_second"])


def shares(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The share of the time of all operations that each kind takes, largest first."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        run()
    spent: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "everything else")
        spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: round(t / total, 3) for kind, t in sorted(spent.items(), key=lambda item: -item[1])}
