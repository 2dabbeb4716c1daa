"""A copy of a teacher for its passes in bf16, which launches fewer operations."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import runtime
from .network import Network, Output

TOLERANCE = 1e-3  # largest difference in fp32 of the copy's outputs, relative to the largest output


@torch.inference_mode(False)
@torch.no_grad()
def folded(network: Network, size: tuple[int, int]) -> Network | None:
    """Copy a classifier for evaluation in bf16, with batch normalisation folded into the convolutions before it.

    The weights of convolutions and linear layers are in bf16. Under autocast, those of a frozen network would be
    converted in every pass.

    Args:
        network: a network in evaluation mode, which is not changed.
        size: (H, W) of the images.
    Returns:
        The copy; None if its outputs for random images would be others than those of the network, as where a module
        uses its layers in another way than by calling them in turn.
    """
    device, tf32 = network.mean.device, torch.backends.cudnn.allow_tf32
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator).to(device)
    twin = copy.deepcopy(network)
    torch.backends.cudnn.allow_tf32 = False  # the rounding of TF32 is larger than the tolerance
    try:
        for convolution, norm in _pairs(twin, images):
            fused = fuse_conv_bn_eval(twin.get_submodule(convolution), twin.get_submodule(norm))  # type: ignore[arg-type,type-var]
            twin.set_submodule(convolution, fused)
            twin.set_submodule(norm, nn.Identity())
        given = {"maps": True} if network.stages else {}
        pairs = zip(_tensors(twin(images, **given)), _tensors(network(images, **given)), strict=True)
        if not all(a.shape == b.shape and (a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in pairs):
            return None
        for part in twin.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.to(torch.bfloat16)
        with runtime.autocast(device, "bf16"):
            twin(images)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # a module reads what is no longer there
        return None
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _tensors(output: Output) -> list[Tensor]:
    """Return all tensors of an output: logits, features, and the maps if there are some."""
    every = [part for value in output for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in every if isinstance(part, Tensor) and part.numel()]


def _pairs(network: Network, images: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the batch normalisations that take their outputs; each runs once."""
    made: dict[str, list[Tensor]] = {}
    taken: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as hooks:
        for name, part in network.named_modules():
            if type(part) is nn.Conv2d:
                hook = part.register_forward_hook(
                    lambda _, given, out, name=name: made.setdefault(name, []).append(out)
                )
                hooks.callback(hook.remove)
            elif type(part) is nn.BatchNorm2d and part.track_running_stats:
                hook = part.register_forward_pre_hook(
                    lambda _, given, name=name: taken.setdefault(name, []).append(given[0])
                )
                hooks.callback(hook.remove)
        network(images)
    once = {id(outs[0]): name for name, outs in made.items() if len(outs) == 1}
    return [(once[id(given[0])], name) for name, given in taken.items() if len(given) == 1 and id(given[0]) in once]
