"""Metrics of segmentation, computed from the number of pixels with each label and each predicted class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ickd_lib.runtime import InputError


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels with each label and each predicted class. The counts of several batches can be added.

    Args:
        predicted: predicted class of each pixel, int64, of any shape.
        labels: class of each pixel, int64, of the same shape; -1 where a pixel is ignored.
        num_classes: number C of classes.
    Returns:
        Number of pixels, int64, shape [C, C], on the device of the labels: rows are labels, columns are predictions.
    Raises:
        InputError: the shapes differ, or a value is out of its range.
    """
    if predicted.shape != labels.shape:
        raise InputError(
            f"predictions have shape {list(predicted.shape)} and labels {list(labels.shape)}; give one shape"
        )
    predicted, labels = predicted.long(), labels.long()  # the positions below can be too large for small integer types
    for what, values, least in (("predictions", predicted, 0), ("labels", labels, -1)):
        low, high = (int(x) for x in values.aminmax()) if values.numel() else (0, 0)
        if low < least or high >= num_classes:
            raise InputError(f"{what} are from {low} to {high}; expected {least} to {num_classes - 1}")
    cells = num_classes**2
    position = torch.where(labels < 0, cells, labels * num_classes + predicted)  # the last one is for ignored pixels
    counts = torch.bincount(position.flatten(), minlength=cells + 1)
    return counts[:-1].view(num_classes, num_classes)


def segmentation(confusion: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Compute the intersection over union (IoU) of each class and its mean, and pixel accuracies.

    The IoU of a class is the number of pixels that have this class and are predicted as it, divided by the number of
    pixels that have it or are predicted as it. Classes that occur neither in the labels nor in the predictions are left
    out of the mean, as in mmsegmentation; a class that is only predicted counts as 0. Implementations that add a small
    number to each union (CIRKD's, for example) count absent classes as 0, too. The results are the same if each class
    occurs, as in the validation images of Cityscapes and Pascal VOC.

    Args:
        confusion: the result of `confusion` for all images, shape [C, C].
        classes: names of the C classes.
    Returns:
        miou: mean of the classes' IoU.
        pixel_accuracy: share of pixels whose class is predicted correctly.
        mean_accuracy: the same for the pixels of each class, averaged over the classes that occur in the labels.
        iou_NAME: IoU of the class NAME, for each class that occurs in the labels or in the predictions.
    Raises:
        InputError: the number of names is not C, or no pixel was counted.
    """
    if confusion.shape != (len(classes), len(classes)):
        raise InputError(
            f"the confusion matrix has shape {list(confusion.shape)}, but there are {len(classes)} classes"
        )
    counts = confusion.double().cpu()
    if not counts.any():
        raise InputError("the confusion matrix is 0 everywhere; count at least one pixel that is not ignored")
    correct, labelled = counts.diagonal(), counts.sum(1)
    union = labelled + counts.sum(0) - correct
    iou = correct / union  # NaN for absent classes
    return {
        "miou": iou[union > 0].mean().item(),
        "pixel_accuracy": (correct.sum() / counts.sum()).item(),
        "mean_accuracy": (correct / labelled)[labelled > 0].mean().item(),
        **{f"iou_{name}": value for name, value in zip(classes, iou.tolist(), strict=True) if value == value},
    }
