"""The zoo's networks without their classifiers, as the first part of networks for segmentation and detection."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .inspection import classifier, undisturbed
from .network import Network

STRIDE = 4  # stride of the first map that is used
# Side of the image on which strides and channels are measured; it is large enough for the strides of all networks.
PROBE = 64


class Backbone(nn.Module):
    """A network of the zoo without its classifier: normalised images [B, 3, H, W] to maps [B, C_i, H_i, W_i].

    The last map is the one whose mean is the network's features (`Network.pooled`). The others are the outputs of the
    earlier stages with at least a stride of 4. Without `halved`, ResNets and wide ResNets for CIFAR have no such other
    maps, because only their last map has that stride.

    Args:
        network: a new network of the zoo, which becomes a part of the backbone.
        halved: whether the first convolution is given stride 2 if it and the first stage keep the size of the image.
            The strides of all maps are then twice as large, and a pass takes about a quarter of the time.
    Attributes:
        stages: names, in the backbone, of all stages of the network.
        channels: C_i of each map.
        strides: the side of the image divided by the side of each map.
    """

    def __init__(self, network: Network, *, halved: bool = False) -> None:
        super().__init__()
        self.body = network
        self.stages = tuple(f"body.{stage}" for stage in network.stages)
        name, _ = classifier(network)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())

        image = torch.zeros(1, 3, PROBE, PROBE)
        with undisturbed(network):
            sides = [one.shape[2] for one in network(image, maps=True).maps]
            stem = getattr(network, "conv1", None)
            if halved and sides[0] == PROBE and isinstance(stem, nn.Conv2d):
                stem.stride = (2, 2)
                sides = [one.shape[2] for one in network(image, maps=True).maps]
            earlier = zip(network.stages[:-1], sides[:-1], strict=True)
            self.earlier = [stage for stage, side in earlier if PROBE // side >= STRIDE]
            maps = self(image)
        self.channels = [one.shape[1] for one in maps]
        self.strides = [PROBE // one.shape[2] for one in maps]

    def forward(self, x: Tensor) -> list[Tensor]:
        found: dict[str, Tensor] = {}

        def collect(name: str, part: nn.Module, inputs: Any, output: Tensor) -> None:
            found[name] = output

        names = [*self.earlier, self.body.pooled]
        with contextlib.ExitStack() as hooks:
            for name in names:
                hooks.callback(self.body.get_submodule(name).register_forward_hook(partial(collect, name)).remove)
            self.body.forward_normalised(x)
        return [found[name] for name in names]
