"""Segmentation: the predicted class of each pixel, the share of errors, and the results of each class."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import DenseImages
from ickd_lib.models import Network
from ickd_lib.models.inspection import evaluating


def predicted_masks(network: Network, images: DenseImages, *, precision: str = "auto") -> list[Tensor]:
    """Return the predicted class of each pixel of images without augmentation, from a network in evaluation mode.

    Args:
        network: a network for segmentation on the device of the images.
        images: N images, of any sizes.
        precision: "auto", "fp32" or "bf16".
    Returns:
        N tensors uint8, shape [h, w], on the CPU.
    """
    device, found = images.index.device, []
    chosen = runtime.precision(precision, device, int(images.sizes.min()))
    with evaluating(network), torch.no_grad():
        for at in range(len(images)):
            pixels = images.batch(torch.tensor([at])).images[0][None]
            with runtime.autocast(device, chosen):
                logits = network(pixels).logits.float()
            enlarged = F.interpolate(logits, pixels.shape[2:], mode="bilinear")
            found.append(enlarged[0].argmax(0).to(torch.uint8).cpu())
    return found


def wrong_shares(predicted: Sequence[Tensor], images: DenseImages) -> Tensor:
    """Return the share of wrong pixels of each image, among those that are not ignored, shape [N].

    Args:
        predicted: the predicted class of each pixel of the N images.
        images: images with class masks.
    """
    shares = []
    for at, found in enumerate(predicted):
        masks = images.batch(torch.tensor([at])).masks
        assert masks is not None
        truth = masks[0].to(found.device)
        valid = truth != images.ignored
        shares.append((found != truth)[valid].double().mean() if bool(valid.any()) else torch.zeros(()).double())
    return torch.stack(shares)


def iou_by_class(summaries: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, list[float]]:
    """Collect the intersection over union of each class from the metrics of several seeds.

    Args:
        summaries: for each seed the metrics of a network, which contain `iou_NAME` of each class that occurs.
        classes: names of the C classes.
    Returns:
        For each class that occurs with every seed, one fraction per seed.
    """
    every = list(summaries)
    keys = {name: f"iou_{name}" for name in classes}
    return {name: [one[key] for one in every] for name, key in keys.items() if all(key in one for one in every)}


def class_gaps(
    ours: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], *, name: str, baseline: str
) -> str:
    """State in one sentence for which class a method gains most over a baseline, and for which it gains least.

    Args:
        ours, other: results of `iou_by_class`.
        name, baseline: names of the two methods.
    """
    gaps = {one: 100 * (statistics.fmean(ours[one]) - statistics.fmean(other[one])) for one in ours if one in other}
    if max(map(abs, gaps.values())) < 0.05:
        return f"The IoU of no class differs between `{name}` and `{baseline}` by 0.1 points or more."
    most, least = max(gaps, key=gaps.__getitem__), min(gaps, key=gaps.__getitem__)
    shown = [f"{gaps[one]:+.1f}".replace("-", "−") for one in (most, least)]
    return (
        f"Compared with `{baseline}`, the mean IoU of `{name}` changes by {shown[0]} points for class **{most}**, the "
        f"largest gain or smallest loss, and by {shown[1]} points for class **{least}**, the smallest gain or largest "
        "loss."
    )
