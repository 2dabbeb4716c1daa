"""A network's view of many images at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ickd_lib import runtime
from ickd_lib.models.network import Network, Output

if TYPE_CHECKING:
    from ickd_lib.data import Images


def images_of_a_pass(where: torch.device) -> int:
    """How many images go through a network at once when nothing is learned.

    On a CPU the activations of more are memory that the system hands out anew, page by page, for every layer: a pass
    of 512 took 1.5 to 2 times as long an image.
    """
    return 64 if where.type == "cpu" else 512


@torch.inference_mode()
def predict(network: Network, images: Images, *, batch_size: int = 0, precision: str = "auto") -> Output:
    """Logits and features of every image, without augmentation, in evaluation mode.

    Args:
        network: it comes back in the mode in which it was.
        images: N images on the network's device.
        batch_size: images of a pass; 0: what suits the device.
        precision: "auto", "fp32" or "bf16".
    Returns:
        Output of float32 tensors, [N, C] and [N, D], on that device.
    """
    where, training = images.labels.device, network.training
    chosen = runtime.precision(precision, where, min(images.size))
    network.eval()
    try:
        parts, step = [], batch_size or images_of_a_pass(where)
        for start in range(0, len(images), step):
            with runtime.autocast(where, chosen):
                output = network(images.pixels(slice(start, start + step)))
            parts.append((output.logits.float(), output.features.float()))
    finally:
        network.train(training)
    logits, features = zip(*parts, strict=True)
    return Output(torch.cat(logits), torch.cat(features))
