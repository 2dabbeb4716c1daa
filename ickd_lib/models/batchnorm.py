"""Batch normalisation over the images of all processes."""

from __future__ import annotations

import functools
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

    On a GPU this is `torch.nn.SyncBatchNorm`. That does not run on a CPU, where the layers get another forward pass.
    """
    if world() == 1:
        return module
    if any(parameter.is_cuda for parameter in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.forward = functools.partial(_forward, part)  # type: ignore[method-assign]
    return module


def _forward(layer: _BatchNorm, input: Tensor) -> Tensor:
    """Return the output of a layer of batch normalisation, in training with the statistics of all processes."""
    if world() == 1 or not layer.training:
        return type(layer).forward(layer, input)
    axes = [0, *range(2, input.ndim)]
    shape = [1, -1, *[1] * (input.ndim - 2)]
    values = input.float() if input.dtype in (torch.half, torch.bfloat16) else input
    count = _Sum.apply(values.new_tensor(input.numel() / input.shape[1]))
    mean = _Sum.apply(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / count
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
            layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), share)
    normalised = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
    return normalised.to(input.dtype)


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
