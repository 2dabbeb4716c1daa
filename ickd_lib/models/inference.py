"""The evaluation of a network on a whole split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ickd_lib import runtime
from ickd_lib.data import loader
from ickd_lib.models.inspection import evaluating
from ickd_lib.models.network import Network, Output, require_network
from ickd_lib.runtime.distributed import gather, share, shares, wait_for_all

if TYPE_CHECKING:
    from ickd_lib.data import Images


def images_of_a_pass(device: torch.device) -> int:
    """Return how many images to evaluate at once when no gradients are computed: 64 on a CPU, 512 elsewhere.

    On a CPU, larger activations make the system allocate new memory pages in every layer: with 512 images at once the
    time per image was 1.5 to 2 times as long.
    """
    return 64 if device.type == "cpu" else 512


@torch.inference_mode()
def predict(network: Network, images: Images, *, batch_size: int = 0, precision: str = "auto") -> Output:
    """Compute the logits and features of all images, without augmentation, in eval mode.

    Several processes each evaluate a part of the images, and all return the outputs for all of them.

    Args:
        network: a network of C classes and D features; each of its submodules returns to its earlier mode.
        images: N images on the network's device.
        batch_size: number of images that are evaluated at once; 0 uses `images_of_a_pass`.
        precision: "auto", "fp32" or "bf16".
    Returns:
        Logits [N, C] and features [N, D] in float32, on that device.
    Raises:
        InputError: the precision is unknown.
    """
    require_network(network)
    device = images.labels.device
    chosen = runtime.precision(precision, device, min(images.size))
    own, step, counts = share(len(images)), batch_size or images_of_a_pass(device), shares(len(images))
    slices = [slice(start, min(start + step, own.stop)) for start in range(own.start, own.stop, step)]
    logits = [torch.empty(0, network.num_classes, device=device)]
    features = [torch.empty(0, network.features_dim, device=device)]
    with evaluating(network), loader.watched():
        for pixels in loader.pixels(images, slices):
            runtime.between_blocks()
            with runtime.autocast(device, chosen):
                output = network(pixels)
            logits.append(output.logits.float())
            features.append(output.features.float())
    wait_for_all()  # a process that read its data later than the others is still at work
    return Output(gather(torch.cat(logits), counts), gather(torch.cat(features), counts))
