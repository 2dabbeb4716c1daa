"""Training with several processes: samples of the whole batch, losses of a part of it, and averaged gradients.

Every process evaluates the networks on its part of a batch. Where a method compares samples with each other, the
samples of the whole batch are gathered, and each process computes the same loss. Gradients are averaged over the
processes: so gathering multiplies the gradient of the own part by the number of processes, and the loss of a part
counts with its share of the batch times that number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ickd_lib import runtime
from ickd_lib.runtime import InputError
from ickd_lib.runtime.distributed import gather, gather_objects, lengths, rank, shares, total, world
from ickd_lib.tasks import Pixels, Samples


def check_parts(images: int, steps: int, batch_size: int) -> None:
    """Raise InputError if the batches of an epoch cannot be divided among the processes, with two images for each.

    Args:
        images: number of images of an epoch.
        steps: number of its batches.
        batch_size: size of all batches but the last.
    """
    if batch_size % world():
        raise InputError(
            f"batch_size={batch_size} is not divisible by the {world()} processes; choose a multiple of {world()}"
        )
    last = images - (steps - 1) * batch_size
    if world() > 1 and min(batch_size if steps > 1 else last, last) < 2 * world():
        raise InputError(
            f"the last batch of {images} images has {last} and the others have {batch_size}, but each of the {world()} "
            "processes needs 2; choose another batch_size or fewer processes"
        )


def check_equal(training: Sequence[tuple[str, tuple[int, int]]]) -> None:
    """Raise InputError if the processes have different settings, or do not read the same run folders.

    Args:
        training: fingerprint of the settings, and epoch and step, of each student.
    """
    first, *others = gather_objects((torch.__version__, runtime.code(), *training))
    for process, other in enumerate(others, 1):
        for what, one, reference in zip(("version of torch", "source of ickd_lib"), other, first, strict=False):
            if one != reference:
                raise InputError(
                    f"process {process} has another {what} ({one}) than process 0 ({reference}); install the same"
                )
        if [settings for settings, _ in other[2:]] != [settings for settings, _ in first[2:]]:
            raise InputError(
                f"process {process} has other settings or data than process 0; give all the same arguments"
            )
        if other != first:
            raise InputError(
                f"process {process} does not find the run folders of process 0; give a folder that all machines share"
            )


def gathered(samples: Samples, images: int) -> Samples:
    """Return the samples of the whole batch, given those of this process's part; with one process, they are the same.

    The gradient reaches the process's own samples. `boxes` stays that of the own images.

    Args:
        samples: the samples of the own part.
        images: number of images in the whole batch.
    """
    if world() == 1:
        return samples
    each_image, each_sample = shares(images), lengths(samples.labels)
    images_before, samples_before = sum(each_image[: rank()]), sum(each_sample[: rank()])
    found: dict[str, Any] = {"image": gather(samples.image + images_before, each_sample)}
    for field in fields(Samples):
        value = getattr(samples, field.name)
        if field.name in ("logits", "features", "labels", "key", "soft") and value is not None:
            found[field.name] = gather(value, each_sample)
        elif field.name == "unpooled" and value is not None:
            found[field.name] = gather(value, each_image)
        elif field.name in ("maps", "preactivations"):
            found[field.name] = tuple(gather(one, each_image) for one in value)
        elif isinstance(value, Pixels):
            region = torch.where(value.region >= 0, value.region + samples_before, -1)
            parts = (value.logits, value.features, value.labels, region)
            found[field.name] = Pixels(*(gather(one, each_image) for one in parts))
    return replace(samples, **found)


def whole_loss(part: Tensor, weight: Tensor) -> Tensor:
    """Return a loss of the whole batch, given that of this process's part; its gradient is that of the own part.

    Args:
        part: the loss of the own part, a mean.
        weight: number of things over which it is a mean, a scalar on the device.
    """
    if world() == 1:
        return part
    own = part * (weight / total(weight).clamp(min=1))
    scaled = own * world()
    return scaled + (total(own) - scaled).detach()


class AveragedGradients(DistributedDataParallel):
    """Calls a function that computes losses; their gradients to the weights are then averaged over the processes.

    Buffers, such as batch-norm statistics, are those of each process; `same_buffers` makes them equal.

    Args:
        parts: the modules with the weights: networks and methods.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        with warnings.catch_warnings():  # newer versions of torch rename broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            # A loss need not reach all weights: a method may train some of them only in one of its phases.
            super().__init__(_Function(parts), broadcast_buffers=False, find_unused_parameters=True)


class _Function(nn.Module):
    """A module whose forward pass is a given function of no arguments."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        return compute()


@torch.no_grad()
def same_buffers(network: nn.Module) -> None:
    """Give the network of every process the buffers of process 0, such as the batch-norm statistics."""
    if world() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
