"""A network that has learnt some classes, made ready for more."""

from __future__ import annotations

import copy

from torch import nn

from ..runtime import InputError
from .network import Network
from .wrapped import evaluating, last_classifier, runnable_images


def extend(network: Network, num_classes: int) -> Network:
    """A copy of a network whose last linear layer has more outputs.

    The outputs there were keep their weights, so that their logits are what they were; the new ones are
    initialised as torch initialises a linear layer of `num_classes` outputs, from its global generator. The layer
    is found by running the copy on two black images, in eval mode and without gradients.

    Args:
        network: of C classes. It stays as it is; name, preprocessing, `trained_on`, mode and device are the copy's too.
        num_classes: above C.
    Returns:
        The copy: images [B, 3, H, W] to logits [B, num_classes]. Its `classes` are those of the first C, where they
        are known: the caller adds the rest.
    Raises:
        InputError: num_classes is not above C, or the layer that runs last is not a linear one that gives the logits.
    """
    known = network.num_classes
    if num_classes <= known:
        raise InputError(f"num_classes={num_classes}, but {network.name} has {known} already; give a larger number")
    network = copy.deepcopy(network)
    refused = f"{network.name} cannot be extended: "
    with evaluating(network):
        images = runnable_images(network, network.name, None)
        name = last_classifier(network, images, network.name)
        old = network.get_submodule(name)
        if not isinstance(old, nn.Linear) or old.out_features != known:
            raise InputError(
                f"{refused}its last layer {name!r} is {old}, not a linear one of {known} outputs; put one there"
            )
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None).to(old.weight)
        for mine, theirs in ((new.weight, old.weight), (new.bias, old.bias)):
            if theirs is not None:
                mine[:known] = theirs
                mine.requires_grad_(theirs.requires_grad)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
        network.num_classes = num_classes
        try:
            logits, features, _ = network(images)
            fits = logits.shape[1] == num_classes
        except Exception:  # a stranger's module may count its classes elsewhere too
            fits = False
        if not fits:
            raise InputError(
                f"{refused}more outputs of its last layer {name!r} make no more logits; let its output be the logits"
            )
        network.features_dim = features.shape[1]  # which may be the logits
    new.train(old.training)
    return network
