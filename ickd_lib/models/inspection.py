"""What an evaluation on black images shows of a network: an image size that it accepts, and its classifier."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..runtime import InputError
from .network import Network, Output

SIZES = (32, 32), (224, 224)  # image sizes (H, W) that are tried where none is given


def classifier(network: nn.Module, *, size: tuple[int, int] | None = None) -> tuple[str, nn.Module]:
    """Find the layer that computes the logits: the linear layer or convolution that runs last.

    The network is evaluated on two black images, on its own device, in eval mode and without gradients. Its modes, its
    batch-norm statistics and the random state stay as they are. A network whose class states the layer's name, in
    `classifier_name`, is not evaluated.

    Args:
        network: a Network, or any module that takes images [B, 3, H, W].
        size: (H, W) of the images; with None, 32x32 is tried first and 224x224 second.
    Returns:
        The layer's name in `network.named_modules()`, and the layer. ("", nn.Identity()) if no linear layer or
        convolution runs; the identity has no parameters, so that all parameters of the network belong to its embedding.
    Raises:
        InputError: the network cannot be evaluated on such images.
    """
    if isinstance(network, Network) and network.classifier_name:
        return network.classifier_name, network.get_submodule(network.classifier_name)
    _, name = run_on_black_images(network, getattr(network, "name", type(network).__name__), size)
    return ("", nn.Identity()) if name is None else (name, network.get_submodule(name))


def map_shapes(network: Network, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return (channels, height, width) of the network's maps, shallow to deep, for images of `size` (H, W).

    The network's modes, its batch-norm statistics and the random state stay as they are.

    Raises:
        InputError: the network names no stages.
    """
    return [(one.shape[1], one.shape[2], one.shape[3]) for one in _with_maps(network, size).maps]


def unpooled_size(network: Network, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the map that a network averages to its features, as `map_shapes` does for maps."""
    unpooled = _with_maps(network, size).unpooled
    assert unpooled is not None
    return unpooled.shape[2], unpooled.shape[3]


def _with_maps(network: Network, size: tuple[int, int]) -> Output:
    """Evaluate a network on two black images, with its maps."""
    like = _example(network)
    with undisturbed(network):
        return network(torch.zeros(2, 3, *size, device=like.device, dtype=like.dtype), maps=True)


def run_on_black_images(module: nn.Module, name: str, size: tuple[int, int] | None) -> tuple[Tensor, str | None]:
    """Evaluate a module on two black images.

    Args:
        module: takes images [B, 3, H, W].
        name: the module's name in error messages.
        size: (H, W) of the images, or None to try `SIZES`.
    Returns:
        The images [2, 3, H, W], which have the module's device and dtype; and the name of the linear layer or
        convolution that ran last, None if none ran.
    Raises:
        InputError: the module raises an error for every size.
    """
    like = _example(module)
    layers = [(layer, part) for layer, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    ran: list[str] = []
    problems = []
    with undisturbed(module), contextlib.ExitStack() as hooks:
        for layer, part in layers:
            handle = part.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
            hooks.callback(handle.remove)
        for height, width in SIZES if size is None else (size,):
            images = torch.zeros(2, 3, height, width, device=like.device, dtype=like.dtype)
            ran.clear()
            try:
                module(images)
                return images, ran[-1] if ran else None
            except Exception as error:  # a user's module may raise anything
                problems.append(f"{height}x{width} gives {type(error).__name__}: {first_line(error)}")
    advice = "pass the size it takes as size=…"
    if "size()[0]" in problems[-1]:
        advice = "it takes one number of images only; export it with dynamic_shapes for the first dimension"
    raise InputError(f"{name} cannot run on black images ({'; '.join(problems)}); {advice}")


def require_precision(module: nn.Module, name: str) -> None:
    """Raise InputError if a module has weights in float16 or bfloat16, because images are float32."""
    if (kind := _example(module).dtype) in (torch.float16, torch.bfloat16):
        raise InputError(f"{name} has weights in {str(kind).removeprefix('torch.')}; give module.float()")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode without gradients; at the end each submodule returns to its earlier mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Do as `evaluating`, and restore the random state of the CPU and of the module's GPU at the end too."""
    device = _example(module).device
    with evaluating(module), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _example(module: nn.Module) -> Tensor:
    """Return a tensor with the module's device and dtype: one of its own, or an empty one if it has none."""
    return next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or "" if it has none."""
    return (str(error).strip().splitlines() or [""])[0]
