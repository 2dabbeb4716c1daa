"""The interface of every network: images in [0, 1] to logits and features, with its preprocessing inside."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import runtime
from ..runtime import InputError


class Output(NamedTuple):
    """The output of a network.

    Attributes:
        logits: [B, C], before the softmax; of a network for segmentation [B, C, h, w], with one position for about
            stride × stride pixels.
        features: [B, D], the pooled input of the classifier, not normalised; of a network for segmentation its input,
            [B, D, h, w].
        maps: the outputs [B, C_i, H_i, W_i] of the network's stages, shallow to deep; empty unless requested.
        preactivations: the same maps before their activation function; empty unless maps are requested.
        unpooled: the map [B, D, H, W] whose mean over the positions is `features`; None unless maps are requested.
    """

    logits: Tensor
    features: Tensor
    maps: tuple[Tensor, ...] = ()
    preactivations: tuple[Tensor, ...] = ()
    unpooled: Tensor | None = None


class Network(nn.Module):
    """A network that normalises its images itself: a classifier, or what a subclass makes of it.

    A student and a teacher with different preprocessing can therefore be evaluated on the same batch. A subclass
    defines `forward_normalised`, and lists its `stages` if it has feature maps. `mean` and `std`, both [1, 3, 1, 1],
    move between devices with the network but are not in its state_dict, whose names are those of the published
    checkpoints.

    Args:
        num_classes: C.
        features_dim: D.
    Attributes:
        task: "classification", "segmentation" or "detection": the task that the outputs are for.
        classifier_name: name of the layer that computes the logits, if the class states it; otherwise
            `models.classifier` finds it.
        stages: names of the submodules, shallow to deep, whose outputs [B, C_i, H_i, W_i] are the maps. The next
            layer must not change such an output in place. Most methods compare these maps. They are the inputs of the
            next stage: the values after the ReLU, except in networks whose stages begin with batch norm and ReLU or
            have no ReLU at their end.
        activations: names of the ReLUs, one for each stage, whose inputs are the maps before activation. `reviewkd`
            uses those of the teacher. Empty if no ReLU follows the maps; the pre-activations are then the maps.
        pooled: name of the submodule whose output [B, D, H, W] is averaged to the features; empty if the features are
            not the mean of a map.
        added: what a method has added to a network that `models.create` made, as run folders record it; see `Reused`.
        classes: names of the classes, in the order of the logits; empty if unknown.
        trained_on: what is known of its training (data, number of labels, weights file), for the run folders.
    Raises:
        InputError: num_classes is below 1.
    """

    task = "classification"
    classifier_name = ""
    stages: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    pooled = ""
    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, features_dim: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes={num_classes}; a classifier needs at least 1")
        self.name = type(self).__name__
        self.num_classes = num_classes
        self.features_dim = features_dim
        self.classes: tuple[str, ...] = ()
        self.trained_on: dict[str, Any] = {}
        self.added: dict[str, Any] = {}
        self._stored_identity: tuple[str, Any] | None = None  # the identity and the state it belongs to; see `frozen`
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)

    @property
    def identity(self) -> str:
        """A fingerprint of all that the outputs and their meaning depend on.

        It covers the weights, the preprocessing, the classes and the layers that features and maps are taken from. It
        is computed from all weights at each access; only the copy that `frozen` returns stores it.
        """
        if self._stored_identity and self._stored_identity[1] == self._state():
            return self._stored_identity[0]
        return runtime.fingerprint(*self._facts(), self.state_dict(), self.mean, self.std)

    def _facts(self) -> list[Any]:
        """Return the part of the identity that is not a tensor."""
        wrapped = [getattr(self, attribute, None) for attribute in ("layer", "before", "size")]
        return [self.name, list(self.classes), list(self.stages), wrapped]

    def _state(self) -> list[Any]:
        """Return a value that differs after any in-place change of a tensor, any replaced tensor and any new fact."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return [self._facts(), [(tensor.data_ptr(), tensor._version) for tensor in tensors]]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._stored_identity = None  # a conversion to a lower precision and back may return to the old addresses
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy or a pickle, without the stored identity, because a copy has new tensors."""
        return {**self.__dict__, "_stored_identity": None}

    def __repr__(self) -> str:
        """Return one line, and a second one if `trained_on` is not empty; see `describe` for the layers."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        text = f"{self.name}: {self.num_classes} classes, {self.features_dim} features, {parameters:,} parameters"
        facts = ", ".join(f"{key} {value}" for key, value in self.trained_on.items())
        return f"{text}\n  trained on: {facts}" if facts else text

    def describe(self) -> str:
        """Return the tree of all layers, as torch prints it."""
        return super().__repr__()

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise images as (images - mean) / std from now on.

        Args:
            mean: [3], one number for each channel.
            std: [3], one number above 0 for each channel.
        Raises:
            InputError: mean or std does not have three numbers, a number of std is not above 0, or the numbers are
                those of images in [0, 255].
        """
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(f"mean={mean}, std={std}; give three numbers each, with std above 0")
        if max(map(abs, (*mean, *std))) > 10:  # such as a mean of 123.675 and a std of 58.395
            raise InputError(
                f"mean={mean}, std={std}; these seem to be those of images in [0, 255], but images are in [0, 1] here; "
                "divide mean and std by 255"
            )
        self.mean.copy_(torch.as_tensor(mean).view(1, 3, 1, 1))
        self.std.copy_(torch.as_tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor, *, maps: bool = False) -> Output:
        """Compute logits and features.

        Args:
            images: floats in [0, 1], shape [B, 3, H, W].
            maps: also return the outputs of `stages`, their pre-activations and the unpooled features, with gradient.
        Returns:
            Logits [B, C], features [B, D] and, if requested, maps [B, C_i, H_i, W_i].
        Raises:
            InputError: the images have another shape or type; or maps are requested and `stages` is empty or names
                a layer that does not compute a map.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                f"{self.name} was given {images.dtype} images of shape {list(images.shape)}; "
                "it takes floats in [0, 1] of shape [B, 3, H, W]"
            )
        x = (images - self.mean) / self.std
        return self._forward_with_maps(x) if maps else self.forward_normalised(x)

    def forward_normalised(self, x: Tensor) -> Output:
        """Compute logits [B, C] and features [B, D] of normalised images [B, 3, H, W]; subclasses define it."""
        raise TypeError(f"{type(self).__name__} must define forward_normalised(x) -> Output")

    def _forward_with_maps(self, x: Tensor) -> Output:
        """Run `forward_normalised` and collect the outputs of `stages`, their pre-activations and the unpooled map.

        The hooks are removed after the pass, so that a network keeps no tensors and a copy of it collects its own maps.
        """
        if not self.stages:
            raise InputError(
                f"{self.name} names no stages whose outputs could be its maps; name them in its class, "
                "stages = ('layer1', …), or in models.wrap(module, maps=('layer1', …))"
            )
        after: dict[str, Tensor] = {}
        before: dict[str, Tensor] = {}

        def collect_output(layer: str, part: nn.Module, inputs: Any, output: Any) -> None:
            after[layer] = self._as_map(layer, output)

        def collect_input(layer: str, part: nn.Module, inputs: Any) -> None:
            before[layer] = self._as_map(layer, inputs[0])

        with contextlib.ExitStack() as hooks:
            for layer in {*self.stages, self.pooled} - {""}:
                hooks.callback(self._layer(layer).register_forward_hook(partial(collect_output, layer)).remove)
            for layer in self.activations:
                hooks.callback(self._layer(layer).register_forward_pre_hook(partial(collect_input, layer)).remove)
            output = self.forward_normalised(x)
        idle = [layer for layer in (*self.stages, self.pooled) if layer and layer not in after]
        idle += [layer for layer in self.activations if layer not in before]
        if idle:
            raise InputError(f"layer {idle[0]!r} of {self.name} does not run in a forward pass; name another")
        maps = tuple(after[layer] for layer in self.stages)
        preactivations = tuple(before[layer] for layer in self.activations) or maps
        unpooled = after[self.pooled] if self.pooled else output.features[:, :, None, None]
        return output._replace(maps=maps, preactivations=preactivations, unpooled=unpooled)

    def _layer(self, name: str) -> nn.Module:
        """Return the submodule of a name in `stages`, `activations` or `pooled`."""
        try:
            return self.get_submodule(name)
        except AttributeError:
            raise InputError(
                f"{self.name} has no layer {name!r}; stages must name layers that named_modules() lists"
            ) from None

    def _as_map(self, stage: str, value: Any) -> Tensor:
        """Check that the output of a stage is a map [B, C, H, W], and return it."""
        if isinstance(value, Tensor) and value.ndim == 4:
            return value
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"layer {stage!r} of {self.name} returns {given}; maps must be [B, C, H, W]: name another")


@torch.inference_mode(False)  # the tensors of inference mode do not count their changes
@torch.no_grad()  # otherwise the parameters of a copied TorchScript program are results of the copy, and no leaves
def frozen(network: Network, device: torch.device) -> Network:
    """Copy a network for evaluation only, such as a teacher, with an identity that is computed once.

    The copy returns its stored `identity` as long as no tensor and none of the facts in it change. After a change in
    place, training, loaded weights or a conversion it computes its identity from the weights again, as does a copy of
    the copy. Two rare changes are not detected: writes through `tensor.data`, and the conversion of a single layer to
    another precision and back.

    Args:
        network: any Network, which is not changed.
        device: device of the copy.
    Returns:
        The copy, in channels-last memory format, in eval mode, its parameters without gradient.
    """
    identity = network.identity
    twin = copy.deepcopy(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin.eval().requires_grad_(False)
    twin._stored_identity = identity, twin._state()
    return twin


def require_network(given: object) -> None:
    """Raise InputError if something is a module, or anything else, that is no `Network`."""
    if not isinstance(given, Network):
        raise InputError(
            f"{type(given).__name__} is no network of this library; make one of a module with models.wrap(module, …)"
        )


def initialise_convolutions(network: nn.Module) -> None:
    """Draw normal convolution weights of variance 2 / fan-out and set the biases to zero, in place.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_classifier(linear: nn.Linear | nn.Conv2d) -> None:
    """Draw normal weights of standard deviation 0.01 and set the bias to zero, in place, as VGG and MobileNetV2 do."""
    assert linear.bias is not None
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
