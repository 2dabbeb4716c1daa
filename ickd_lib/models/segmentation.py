"""Networks for segmentation: their logits and features are maps, at the network's output stride."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime import InputError, choose, notice
from ..runtime.arguments import refuse_probabilities
from .backbone import Backbone
from .inspection import require_precision, run_on_black_images, undisturbed
from .network import Network, Output, initialise_classifier, initialise_convolutions
from .wrapped import Wrapped

WIDEST = 256  # the largest number of features of an FCN


class FCN(Network):
    """A network of the zoo with a light fully convolutional head: a 3x3 convolution and a 1x1 convolution.

    The logits [B, C, h, w] and features [B, D, h, w] have stride 4. If the backbone's last map has a larger stride, its
    maps of stride 4 and more are projected to D channels, enlarged to the size of the first one and added. D is the
    number of channels of the last map, at most 256.

    Source: Long et al. 2015, arXiv 1411.4038; the sum of the maps is that of Kirillov et al. 2019, arXiv 1901.02446.

    Args:
        network: a new network of the zoo, which becomes the backbone. The maps of the FCN are those of its stages.
        num_classes: C.
    Attributes:
        stride: the image's side divided by the side of the logits.
    """

    task = "segmentation"
    classifier_name = "classifier"

    def __init__(self, network: Network, num_classes: int) -> None:
        backbone = Backbone(network, halved=True)
        width = min(backbone.channels[-1], WIDEST)
        super().__init__(num_classes, features_dim=width)
        self.backbone = backbone
        self.stages = tuple(f"backbone.{stage}" for stage in backbone.stages)
        self.stride = backbone.strides[0]
        several = len(backbone.channels) > 1
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.channels if several)
        inputs = width if several else backbone.channels[0]
        self.mix = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Conv2d(width, num_classes, 1)
        initialise_convolutions(self.lateral)
        initialise_convolutions(self.mix)
        initialise_classifier(self.classifier)

    def forward_normalised(self, x: Tensor) -> Output:
        maps = self.backbone(x)
        if self.lateral:
            maps = [project(one) for project, one in zip(self.lateral, maps, strict=True)]
        total, size = maps[0], maps[0].shape[2:]
        for one in maps[1:]:
            total = total + F.interpolate(one, size, mode="bilinear")
        features = self.mix(total)
        return Output(self.classifier(features), features)


class WrappedSegmenter(Wrapped):
    """The network that `wrap_segmentation` returns.

    Attributes:
        logits_layer: name of the layer, in the wrapped module, whose output is the logits.
        stride: the side of the image, after resizing to `size` if that is given, divided by the side of the logits.
    """

    task = "segmentation"

    def __init__(self, *given: Any, logits_layer: str, stride: int) -> None:
        super().__init__(*given)
        self.logits_layer = logits_layer
        self.stride = stride

    def forward_normalised(self, x: Tensor) -> Output:
        return _run(self.module, self.layer, self.before, self.logits_layer, self._resized(x))[0]

    def _facts(self) -> list[Any]:
        return [*super()._facts(), self.logits_layer]


def wrap_segmentation(
    module: nn.Module,
    *,
    logits: str | None = None,
    features: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    size: int | tuple[int, int] | None = None,
    name: str | None = None,
    maps: Sequence[str] = (),
) -> Network:
    """Make a Network of any module for semantic segmentation; see `models.wrap` for what is not described here.

    The module may return a tensor [B, C, H, W], a tuple or list whose first item is that tensor, an object with
    `.logits`, or a dict with "out" or "logits". The Network's logits are those that the last layer computes, before
    they are enlarged to the size of the image. Losses and metrics enlarge them with align_corners=False; if the module
    does so with align_corners=True, a note is printed.

    Args:
        module: takes normalised images [B, 3, H, W].
        logits: name, in `module.named_modules()`, of the layer whose output [B, C, h, w] is the logits. With None it is
            the convolution that runs last, which is checked against what the module returns.
        features: name of the layer whose output [B, D, h, w] is the features. With None they are the input of the
            convolution that runs last.
        num_classes: C, compared with the number of channels of the logits; None accepts any number.
        mean, std, size, name, maps: as in `models.wrap`.
    Returns:
        A Network: images [B, 3, H, W] in [0, 1] to logits [B, C, h, w], features [B, D, h, w] and, if requested, maps.
    Raises:
        InputError: a name is not that of a layer, or the layer does not run; the module cannot be evaluated on images
            of `size` (with None, of 32x32 or 224x224) or returns another shape; the output of the last convolution is
            not the logits, and `logits` is None; logits and features differ in size; C is not `num_classes`;
            the logits are probabilities.
    """
    name = name or type(module).__name__
    require_precision(module, name)
    layers = [layer for layer, _ in module.named_modules() if layer]
    maps = [maps] if isinstance(maps, str) else maps
    maps = [part if part in layers else choose(part, layers, what=f"layer of {name}") for part in maps]
    logits, features = (
        part if part in (None, *layers) else choose(str(part), layers, what=f"layer of {name}")
        for part in (logits, features)
    )
    pixels = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])

    images, last = run_on_black_images(module, name, pixels)
    if last is None:
        raise InputError(f"{name} has no convolution that could compute its logits; name a layer in logits=…")
    layer, logits_layer = features or last, logits or last
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    with undisturbed(module):
        output, returned = _run(module, layer, features is None, logits_layer, noise)
        found = _as_logits(returned, name)
        _check(output, found, name, named=logits is not None, layer=logits_layer)
        refuse_probabilities(f"the outputs of layer {logits_layer!r} of {name}", output.logits)
        if num_classes not in (None, found.shape[1]):
            raise InputError(f"{name} has {found.shape[1]} classes, not num_classes={num_classes}")
        network = WrappedSegmenter(
            *(module, layer, features is None, pixels, found.shape[1], output.features.shape[1], maps),
            logits_layer=logits_layer,
            stride=round(images.shape[2] / output.logits.shape[2]),
        )
        network.name = name
        if maps:
            network._forward_with_maps(images)  # raises the error of a layer without a map now, not in training

    network.training = module.training
    network.set_normalisation(mean, std)
    network.mean, network.std = network.mean.to(images), network.std.to(images)
    return network


def _run(module: nn.Module, layer: str, before: bool, logits_layer: str, x: Tensor) -> tuple[Output, Any]:
    """Run the module once; return the logits and features that its layers computed, and what it returned."""
    collected: dict[str, Any] = {}
    source, result = module.get_submodule(layer), module.get_submodule(logits_layer)
    handles = [result.register_forward_hook(lambda _, __, output: collected.update(logits=output))]
    if before:
        handles.append(source.register_forward_pre_hook(lambda _, inputs: collected.update(features=inputs[0])))
    else:  # the next layer may work in place
        handles.append(source.register_forward_hook(lambda _, __, output: collected.update(features=output.clone())))
    try:
        returned = module(x)
    finally:
        for handle in handles:
            handle.remove()
    for part, name in (("logits", logits_layer), ("features", layer)):
        if part not in collected:
            raise InputError(f"layer {name!r} does not run in a forward pass; name another in {part}=…")
    return Output(collected["logits"], collected["features"]), returned


def _as_logits(value: Any, name: str) -> Tensor:
    """Find the logits [B, C, H, W] in the value that a module returned."""
    if isinstance(value, Mapping):
        value = value.get("out", value.get("logits", value))
    elif hasattr(value, "logits"):
        value = value.logits
    elif isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, Tensor) and value.ndim == 4:
        return value
    given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"{name} returned {given}; expected logits [B, C, H, W], alone, first, as .logits or as 'out'")


def _check(output: Output, returned: Tensor, name: str, *, named: bool, layer: str) -> None:
    """Check that the output of the layer of the logits, enlarged, is what the module returned, and that the features
    have the same size as the logits. Of a layer that the user named, only the number of channels is checked.
    """
    logits, features = output.logits, output.features
    for part, value in (("logits", logits), ("features", features)):
        if not isinstance(value, Tensor) or value.ndim != 4:
            given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the {part} of {name} are {given}; they must be maps: name another layer in {part}=…")
    fits = logits.shape[1] == returned.shape[1]
    if fits:
        usual, corners = (
            torch.allclose(
                F.interpolate(logits, returned.shape[2:], mode="bilinear", align_corners=aligned),
                returned,
                rtol=1e-3,
                atol=1e-3,
            )
            for aligned in (False, True)
        )
        fits = named or usual or corners
        if corners and not usual:
            notice(
                f"{name} enlarges its logits with align_corners=True, but here they are enlarged with "
                "align_corners=False, so metrics can differ from those of its own outputs; change it in the module"
            )
    if not fits:
        raise InputError(
            f"layer {layer!r} of {name} does not compute the logits that {name} returns; name the layer that does in "
            "logits=…"
        )
    if features.shape[2:] != logits.shape[2:]:
        raise InputError(
            f"the features of {name} are {list(features.shape[2:])} and its logits {list(logits.shape[2:])} in size; "
            "name layers of one size in features=… and logits=…"
        )
