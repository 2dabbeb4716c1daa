"""What every network is: images in [0, 1] go in, logits and features come out, its preprocessing inside."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import runtime
from ..runtime import InputError


class Output(NamedTuple):
    """What every network returns.

    Attributes:
        logits: [B, C], before the softmax.
        features: [B, D], the pooled input of the classifier, not normalised.
        maps: [B, C_i, H_i, W_i] of each of the network's stages, shallow to deep, where they were asked for.
    """

    logits: Tensor
    features: Tensor
    maps: tuple[Tensor, ...] = ()


class Network(nn.Module):
    """A classifier that normalises its images itself, so that a student and a teacher with different
    preprocessing look at the same batch.

    A subclass writes `predict`, and names its `stages` where its maps are to be had. `mean` and `std`, both
    [1, 3, 1, 1], follow the network from device to device but are no part of its state_dict, whose names are those of
    the published checkpoints.

    Args:
        num_classes: C.
        features_dim: D.
    Attributes:
        stages: names of the submodules, shallow to deep, whose outputs [B, C_i, H_i, W_i] are the maps; what runs
            on such an output must not change it in place.
        classes: names of the classes that the logits stand for, in order; empty where unknown.
        trained_on: what is known of its training (data, number of labels, weights file), for the records.
    """

    stages: tuple[str, ...] = ()
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
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)

    @property
    def identity(self) -> str:
        """A fingerprint of what its outputs depend on and mean: weights, preprocessing, classes, layers looked at."""
        where = [getattr(self, name, None) for name in ("layer", "before", "size")]  # of a wrapped network's features
        said = [self.name, list(self.classes), list(self.stages), where]
        return runtime.fingerprint(*said, self.state_dict(), self.mean, self.std)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise images as (images - mean) / std from now on, each three numbers, one a channel."""
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(f"mean={mean}, std={std}; give three numbers each, with std above 0")
        self.mean.copy_(torch.as_tensor(mean).view(1, 3, 1, 1))
        self.std.copy_(torch.as_tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor, *, maps: bool = False) -> Output:
        """Logits [B, C] and features [B, D] of float images [B, 3, H, W] in [0, 1].

        With `maps`, the outputs of `stages` too, which carry gradient like the rest; InputError where the network
        has none.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                f"{self.name} was given {images.dtype} images of shape {list(images.shape)}; "
                "it takes floats in [0, 1] of shape [B, 3, H, W]"
            )
        x = (images - self.mean) / self.std
        return self._predict_with_maps(x) if maps else self.predict(x)

    def predict(self, x: Tensor) -> Output:
        """Logits [B, C] and features [B, D] of normalised images [B, 3, H, W]."""
        raise TypeError(f"{type(self).__name__} must define predict(x) -> Output")

    def _predict_with_maps(self, x: Tensor) -> Output:
        """`predict`, with the outputs of `stages`.

        The hooks live as long as the pass: nothing is kept between passes, and a copy of the network has its own.
        """
        if not self.stages:
            raise InputError(
                f"{self.name} names no stages whose outputs could be its maps; name them in its class, "
                "stages = ('layer1', …), or in models.wrap(module, maps=('layer1', …))"
            )
        seen: dict[str, Tensor] = {}

        def keep(stage: str, part: nn.Module, inputs: Any, output: Any) -> None:
            seen[stage] = self._map(stage, output)

        with contextlib.ExitStack() as hooks:
            for stage in self.stages:
                try:
                    part = self.get_submodule(stage)
                except AttributeError:
                    raise InputError(
                        f"{self.name} has no layer {stage!r}; name in stages what named_modules() lists"
                    ) from None
                hooks.callback(part.register_forward_hook(partial(keep, stage)).remove)
            output = self.predict(x)
        for stage in self.stages:
            if stage not in seen:
                raise InputError(f"layer {stage!r} of {self.name} took no part in the forward pass; name another")
        return output._replace(maps=tuple(seen[stage] for stage in self.stages))

    def _map(self, stage: str, value: Any) -> Tensor:
        """[B, C, H, W] of what a stage gives."""
        if isinstance(value, Tensor) and value.ndim == 4:
            return value
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"layer {stage!r} of {self.name} gives {given}; maps must be [B, C, H, W]: name another")


def initialise_convolutions(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out (He et al. 2015, arXiv 1502.01852) and zero biases, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_classifier(linear: nn.Linear) -> None:
    """Normal weights of standard deviation 0.01 and a zero bias, in place (VGG's and MobileNet's)."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
