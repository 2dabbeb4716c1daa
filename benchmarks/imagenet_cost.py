"""Counts what the two pairs of ImageNet cost for one image of 224 pixels: operations, traffic and memory.

    python benchmarks/imagenet_cost.py

Nothing is timed: the counts are those of the real networks. docs/scale.md derives hours from them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import machine
import torch
from imagenet import PAIRS
from torch import Tensor, nn

from ickd_lib import models
from ickd_lib.runs.findings import markdown_table

SIZE = (224, 224)
CLASSES = 1000


def saved_bytes(network: models.Network, count: int = 2) -> float:
    """Return the bytes for one image that a pass in bf16 keeps for the backward pass, without the weights.

    Args:
        network: the network, in training mode.
        count: number of images of the pass that is counted.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Copies of the weights in bf16 and the statistics of batch norm do not grow with the number of images.
        if storage.data_ptr() not in weights and tensor.ndim and tensor.shape[0] == count:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.rand(count, 3, *SIZE)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images).logits
        total = sum(kept.values())
        del logits
    return total / count


def backward(network: models.Network) -> float:
    """Return the operations of a backward pass for one image: twice those of the forward pass.

    The first convolution is counted once, because the images need no gradient. FlopCounterMode counts the same for
    networks without depthwise convolutions; these it counts as if they mixed all channels.
    """
    forward, _ = machine.work(network, SIZE, training=False, bytes_each=2)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    positions = SIZE[0] * SIZE[1] // (first.stride[0] * first.stride[1])
    return 2 * forward - 2 * first.weight.numel() * positions


def counted(name: str, training: bool) -> list[str]:
    """Return the row of a network: its parameters, and what it costs for one image.

    Args:
        name: the network's name.
        training: whether the backward pass is counted, as for a student.
    """
    network = models.create(name, CLASSES).train(training)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    forward, moved = machine.work(network, SIZE, training=False, bytes_each=2)
    row = [f"{name}", f"{parameters / 1e6:.2f}", f"{forward / 1e9:.2f}"]
    if not training:
        return [*row, "", f"{moved / 1e6:.0f}", ""]
    return [*row, f"{backward(network) / 1e9:.2f}", f"{3 * moved / 1e6:.0f}", f"{saved_bytes(network) / 1e6:.0f}"]


def main() -> None:
    head = ["network", "parameters, M", "forward, GFLOP", "backward, GFLOP", "traffic, MB", "kept for backward, MB"]
    rows = []
    for teacher, student in PAIRS.values():
        rows += [counted(teacher, training=False), counted(student, training=True)]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
