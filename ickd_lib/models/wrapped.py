"""Anyone's own module behind the face of a Network: its logits, and the features of a named layer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime import InputError, choose
from .network import Network, Output

CLASSIFIERS = (nn.Linear, nn.Conv2d)


class Wrapped(Network):
    """What `wrap` returns.

    Attributes:
        module: the wrapped module; its parameters are the network's, their names prefixed by `module.`.
        layer: name of the layer that the features are taken from.
        before: whether they are that layer's input, not its output.
        size: (H, W) that images are resized to, or None.
        stages: names of the layers whose outputs are the maps, prefixed by `module.`; copies are given, since a
            stranger's next layer may work in place.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        before: bool,
        size: tuple[int, int] | None,
        num_classes: int,
        features_dim: int,
        maps: Sequence[str] = (),
    ) -> None:
        super().__init__(num_classes, features_dim)
        self.module = module
        self.layer = layer
        self.before = before
        self.size = size
        self.stages = tuple(f"module.{part}" for part in maps)

    def predict(self, x: Tensor) -> Output:
        if self.size is not None and x.shape[2:] != self.size:
            # Interpolation weights sum to one, so resizing after normalising equals resizing before.
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return _observe(self.module, self.layer, self.before, x)

    def _map(self, stage: str, value: Any) -> Tensor:
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        return super()._map(stage, value).clone()


def wrap(
    module: nn.Module,
    *,
    features: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    size: int | tuple[int, int] | None = None,
    name: str | None = None,
    maps: Sequence[str] = (),
) -> Network:
    """Make a Network of any image classifier, so that it can teach or be taught here.

    The module itself is used, not a copy. It is run on two black images, in eval mode and without gradients,
    to find C and D; its modes, batch-norm statistics and the random state stay as they are. It may return a
    tensor [B, C], a tuple or list that begins with it, an object with `.logits` or a dict with "logits".

    Args:
        module: takes normalised images [B, 3, H, W].
        features: name of the submodule whose output is the features, as in `module.named_modules()`: [B, D] is
            taken as it is, a map [B, D, H, W] is averaged over space (a linear layer's has its channels last),
            tokens [B, T, D] over all T, a class token among them. None takes the input of the linear layer (or
            convolution, where a network ends in one) that runs last; for a vision transformer that is its
            class token.
        num_classes: C, checked against the module when given.
        mean: [3], subtracted from images in [0, 1].
        std: [3], by which they are then divided.
        size: side, or (H, W), in pixels to which images are resized (bilinear, antialiased); None leaves them.
        name: what errors and records call the network; the module's class by default.
        maps: names of submodules, shallow to deep, whose outputs [B, C_i, H_i, W_i] are its maps, in this order.
    Returns:
        A Network: images [B, 3, H, W] in [0, 1] to logits [B, C] and features [B, D], and to maps where asked.
    Raises:
        InputError: no layer has that name or it takes no part in the forward pass; a layer of `maps` gives no map
            but tokens [B, T, D], say; the module cannot run on images of `size` (32 and 224 are tried when that is
            None); C is not `num_classes`.
    """
    name = name or type(module).__name__
    layers = [layer for layer, _ in module.named_modules() if layer]
    if features is not None and features not in layers:
        features = choose(features, layers, what=f"layer of {name}")
    maps = [maps] if isinstance(maps, str) else maps
    maps = [part if part in layers else choose(part, layers, what=f"layer of {name}") for part in maps]
    pixels = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])

    with evaluating(module):
        images = runnable_images(module, name, pixels)
        layer = features if features is not None else last_classifier(module, images, name)
        logits, found, _ = _observe(module, layer, features is None, images)
        if num_classes not in (None, logits.shape[1]):
            raise InputError(f"{name} has {logits.shape[1]} classes, not num_classes={num_classes}")
        network = Wrapped(module, layer, features is None, pixels, logits.shape[1], found.shape[1], maps)
        network.name = name
        if maps:
            network._predict_with_maps(images)  # so that a layer without a map is an error now

    network.training = module.training
    network.set_normalisation(mean, std)
    network.mean, network.std = network.mean.to(images), network.std.to(images)
    return network


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each submodule is in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def runnable_images(module: nn.Module, name: str, size: tuple[int, int] | None) -> Tensor:
    """Two black images that the module can run on, of its device and precision."""
    like = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
    sizes = [size] if size is not None else [(32, 32), (224, 224)]
    problems = []
    for height, width in sizes:
        images = torch.zeros(2, 3, height, width, device=like.device, dtype=like.dtype)
        try:
            module(images)
            return images
        except Exception as error:  # whatever a stranger's module raises
            problems.append(f"{height}x{width} gives {type(error).__name__}: {_first_line(error)}")
    raise InputError(f"{name} cannot run on black images ({'; '.join(problems)}); give the size it takes, size=…")


def last_classifier(module: nn.Module, images: Tensor, name: str) -> str:
    """Name of the linear layer or convolution that runs last."""
    ran: list[str] = []
    with contextlib.ExitStack() as hooks:
        for layer, part in module.named_modules():
            if isinstance(part, CLASSIFIERS):
                handle = part.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
                hooks.callback(handle.remove)
        module(images)
    if not ran:
        raise InputError(f"{name} has no linear layer whose input could be its features; give features=…")
    return ran[-1]


def _observe(module: nn.Module, layer: str, before: bool, images: Tensor) -> Output:
    """One forward pass, with the pooled input or output of `layer`.

    The hook lives as long as the pass: nothing is kept between passes, and a copy of the module has its own.
    """
    seen: list[Tensor] = []
    part = module.get_submodule(layer)
    if before:
        handle = part.register_forward_pre_hook(lambda _, inputs: seen.append(_pool(inputs, layer, part)))
    else:
        handle = part.register_forward_hook(lambda _, __, output: seen.append(_pool(output, layer, part)))
    try:
        logits = _logits(module(images))
    finally:
        handle.remove()
    if not seen:
        raise InputError(f"layer {layer!r} took no part in the forward pass; name another in features=…")
    return Output(logits, seen[-1])


def _pool(value: Any, layer: str, part: nn.Module) -> Tensor:
    """[B, D] of a layer's [B, D], [B, D, H, W] (a linear layer's [B, H, W, D]) or [B, T, D]."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.mean((1, 2) if isinstance(part, nn.Linear) else (2, 3))
    if isinstance(value, Tensor) and value.ndim == 3:
        return value.mean(1)
    if isinstance(value, Tensor) and value.ndim == 2:
        return value.clone()  # the next layer may work in place
    given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"layer {layer!r} gives {given}; features must be [B, D], [B, D, H, W] or [B, T, D]")


def _logits(value: Any) -> Tensor:
    """[B, C] of whatever a module returns."""
    if isinstance(value, Mapping):
        value = value.get("logits", value)
    elif hasattr(value, "logits"):
        value = value.logits
    elif isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, Tensor) and value.ndim == 2:
        return value
    given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"the wrapped module returned {given}; expected logits [B, C], alone, first or as .logits")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
