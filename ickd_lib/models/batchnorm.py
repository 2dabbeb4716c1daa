"""Batch normalisation over the images of all processes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ickd_lib.runtime import world

M = TypeVar("M", bound=nn.Module)


def synchronised(module: M) -> M:
    """Return the module with its batch normalisation over the images of all processes; weights and names stay.

    With one process, the module stays as it is.

    On a GPU this is `torch.nn.SyncBatchNorm`. That does not run on a CPU, where the layers are replaced here.
    """
    if world() == 1:
        return module
    if any(parameter.is_cuda for parameter in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for part in module.modules():
        if type(part) in _SYNCHRONISED:
            part.__class__ = _SYNCHRONISED[type(part)]
    return module


class _Synchronised(_BatchNorm):
    """A layer of batch normalisation whose statistics, in training, are those of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        values = input.float() if input.dtype in (torch.half, torch.bfloat16) else input
        count = _Sum.apply(values.new_tensor(input.numel() / input.shape[1]))
        mean = _Sum.apply(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the samples of all processes."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes."""


_SYNCHRONISED: dict[type, type] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
}


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        found = tensor.clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        found = gradient.clone()
        dist.all_reduce(found)
        return found
