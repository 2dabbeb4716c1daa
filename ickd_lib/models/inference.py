"""A network's view of many images at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ickd_lib import runtime
from ickd_lib.models.network import Network, Output

if TYPE_CHECKING:
    from ickd_lib.data import Images


@torch.inference_mode()
def predict(network: Network, images: Images, *, batch_size: int = 512, precision: str = "auto") -> Output:
    """Logits and features of every image, without augmentation, in evaluation mode.

    Args:
        network: it comes back in the mode in which it was.
        images: N images on the network's device.
        precision: "auto", "fp32" or "bf16".
    Returns:
        Output of float32 tensors, [N, C] and [N, D], on that device.
    """
    where, training = images.labels.device, network.training
    chosen = runtime.precision(precision, where, min(images.size))
    network.eval()
    try:
        parts = []
        for start in range(0, len(images), batch_size):
            with runtime.autocast(where, chosen):
                output = network(images.pixels(slice(start, start + batch_size)))
            parts.append((output.logits.float(), output.features.float()))
    finally:
        network.train(training)
    logits, features = zip(*parts, strict=True)
    return Output(torch.cat(logits), torch.cat(features))
