"""Class-incremental networks: outputs for new classes are added to a trained network."""

from __future__ import annotations

import copy

from torch import nn

from ..runtime import InputError
from .inspection import run_on_black_images, undisturbed
from .network import Network


def extend(network: Network, num_classes: int) -> Network:
    """Copy a network and give the copy's classifier more outputs.

    The first C outputs keep their weights, so that their logits do not change. The new outputs are initialised as torch
    initialises a linear layer of `num_classes` outputs, from the global generator. The classifier is the layer
    that `models.classifier` finds.

    Args:
        network: a network of C classes, which is not changed.
        num_classes: number of classes of the copy, above C.
    Returns:
        The copy: images [B, 3, H, W] to logits [B, num_classes]. It has the network's name, preprocessing,
        `trained_on`, modes and device. Its `classes` still name the first C alone, if they are known; the
        caller adds the names of the new classes.
    Raises:
        InputError: num_classes is not above C; or the classifier is not a linear layer of C outputs whose output is
            the logits.
    """
    old_classes = network.num_classes
    if num_classes <= old_classes:
        raise InputError(
            f"num_classes={num_classes}, but {network.name} has {old_classes} already; give a larger number"
        )
    network = copy.deepcopy(network)
    refused = f"{network.name} cannot be extended: "
    images, name = run_on_black_images(network, network.name, None)
    if name is None:
        raise InputError(f"{refused}no linear layer computes its logits")
    old = network.get_submodule(name)
    if not isinstance(old, nn.Linear) or old.out_features != old_classes:
        raise InputError(
            f"{refused}its classifier {name!r} is {old}; its last layer must be a linear layer of {old_classes} outputs"
        )
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None).to(old.weight)
    with undisturbed(network):
        for new_values, old_values in ((new.weight, old.weight), (new.bias, old.bias)):
            if old_values is not None:
                new_values[:old_classes] = old_values
                new_values.requires_grad_(old_values.requires_grad)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
        network.num_classes = num_classes
        try:
            logits, features, *_ = network(images)
            fits = logits.shape[1] == num_classes
        except Exception:  # a user's module may rely on its number of classes elsewhere too
            fits = False
        if not fits:
            raise InputError(
                f"{refused}with {num_classes} outputs of its classifier {name!r} it does not return {num_classes} "
                "logits; its last layer must compute the logits"
            )
        network.features_dim = features.shape[1]  # the features may be the logits themselves
    new.train(old.training)
    return network
