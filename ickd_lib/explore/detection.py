"""Detection: the proposals of a training step, and detections compared with the annotated boxes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import DenseImages, Objects
from ickd_lib.models import Detections, Detector
from ickd_lib.tasks import Detection, Samples

PASS = 16  # number of images that are evaluated in one pass


class Found(NamedTuple):
    """The detections in one image, and the objects that were missed.

    boxes, labels, scores: as in `models.Detections`.
    correct: whether each detection is matched to an object of its class, bool, shape [n].
    missed: boxes of the objects that no detection is matched to, shape [m, 4].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    correct: Tensor
    missed: Tensor

    @property
    def errors(self) -> int:
        """Number of wrong detections and of missed objects."""
        return int((~self.correct).sum()) + len(self.missed)


def compared(found: Detections, objects: Objects, *, score: float = 0.5, iou: float = 0.5) -> Found:
    """Match the detections in an image to its objects, the best detection first.

    Each detection is matched to that object of its class with the largest intersection over union to which none is
    matched yet. Objects in `crowd` are left out, and so are the other detections that overlap one of their class by
    `iou`. For a group such as a crowd of COCO, the overlap is the share of the detection's area inside it, and for a
    difficult object the intersection over union.

    Args:
        found: the detections, the best first.
        objects: the objects of the image.
        score: detections with a lower score are left out.
        iou: smallest intersection over union of a detection and an object that are matched.
    """
    from torchvision.ops import box_area, box_iou

    chosen = found.scores >= score
    boxes, scores, labels = (
        found.boxes[chosen].float().cpu(),
        found.scores[chosen].float().cpu(),
        found.labels[chosen].cpu(),
    )
    truth, crowd = objects.boxes.cpu(), objects.crowd.cpu()
    overlap, areas = box_iou(boxes, truth), box_area(boxes)[:, None].clamp(min=1e-9)
    shared = overlap * (areas + box_area(truth)) / (1 + overlap)  # the area of the intersection
    overlap = torch.where(objects.groups.cpu(), shared / areas, overlap) * (labels[:, None] == objects.labels.cpu())
    free, correct, kept = ~crowd, torch.zeros(len(boxes), dtype=torch.bool), torch.ones(len(boxes), dtype=torch.bool)
    for i, row in enumerate(overlap):
        candidates = row * free
        if len(row) and candidates.max() >= iou:
            correct[i], free[int(candidates.argmax())] = True, False
        elif len(row) and bool((row[crowd] >= iou).any()):
            kept[i] = False
    return Found(boxes[kept], labels[kept], scores[kept], correct[kept], truth[free])


def detected(network: Detector, images: DenseImages, *, score: float = 0.5, precision: str = "auto") -> list[Found]:
    """Detect objects in images without augmentation and compare them with the annotated ones.

    Args:
        network: a detector on the device of the images.
        images: N images.
        score: detections with a lower score are left out.
        precision: "auto", "fp32" or "bf16".
    """
    device, every = images.index.device, []
    with runtime.autocast(device, runtime.precision(precision, device, int(images.sizes.min()))):
        for rows in torch.arange(len(images)).split(PASS):
            batch = images.batch(rows)
            found = network.detect(batch.images)
            every += [compared(one, own, score=score) for one, own in zip(found, batch.objects, strict=True)]
    return every


def error_counts(found: Sequence[Found]) -> Tensor:
    """Return the number of wrong detections and missed objects of each image, shape [N]."""
    return torch.tensor([one.errors for one in found])


def training_proposals(network: Detector, images: DenseImages, rows: Tensor, *, seed: int = 0) -> Samples:
    """Return proposals on which the box head would be trained in a step, for images without augmentation.

    The network is not changed, but its batch normalisation uses the statistics of these images, as in training.

    Args:
        network: a detector on the device of the images.
        images: images with objects.
        rows: positions of the B images, shape [B].
        seed: seed of the random choice among the proposals.
    Returns:
        The samples, and their `boxes`.
    """
    twin = copy.deepcopy(network).train()
    with torch.no_grad(), runtime.seeded(seed):
        samples, _ = Detection().samples(twin, images.batch(rows))
    return samples.detach()


def notable_proposal(samples: Samples, objects: Sequence[Objects]) -> tuple[int, int]:
    """Choose the proposal on an object that overlaps its object least, and so differs most from the annotated box.

    Args:
        samples: the proposals of B images.
        objects: the objects of each image.
    Returns:
        Position of the image in the batch, and of the proposal among those of the image.
    """
    from torchvision.ops import box_iou

    best, found = torch.inf, (0, 0)
    for image, (boxes, own) in enumerate(zip(samples.boxes, objects, strict=True)):
        key = samples.key[samples.image == image]
        for position in (key >= 0).nonzero().squeeze(1).tolist():
            target = own.boxes[own.key == key[position]].to(boxes)
            overlap = float(box_iou(boxes[position : position + 1], target).max())
            if overlap < best:
                best, found = overlap, (image, position)
    return found
