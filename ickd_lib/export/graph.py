"""The graph that is exported: a network with one input and one output."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_lib.models import Network


class Graph(nn.Module):
    """A network whose only output is its logits or its probabilities.

    Args:
        network: a network for classification or segmentation.
        preprocess: whether the input is uint8 and the output probabilities.
    """

    def __init__(self, network: Network, preprocess: bool) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess

    def forward(self, images: Tensor) -> Tensor:
        """Compute the output.

        Args:
            images: shape [B, 3, H, W]; with `preprocess` uint8, otherwise float in [0, 1].
        Returns:
            With `preprocess` probabilities, otherwise logits: shape [B, C]; for segmentation [B, C, H, W], at every
            pixel of the image.
        """
        if self.preprocess:
            images = images.to(torch.float32) / 255
        logits = self.network(images).logits
        if logits.ndim == 4:
            logits = F.interpolate(logits, images.shape[2:], mode="bilinear")
        return logits.softmax(1) if self.preprocess else logits


def traced(network: Network, size: tuple[int, int], preprocess: bool) -> torch.export.ExportedProgram:
    """Trace a copy of a network in evaluation mode by torch.export, for batches of any size of images of `size` (H, W).

    The network is traced on the CPU; it is not changed.
    """
    graph = Graph(copy.deepcopy(network).cpu(), preprocess).eval().requires_grad_(False)
    images = torch.zeros(2, 3, *size, dtype=torch.uint8 if preprocess else torch.float32)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
