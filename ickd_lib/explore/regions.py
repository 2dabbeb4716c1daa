"""Regions of the logit space: their classes, the separation of these classes, and the samples nearby."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import metrics, runtime
from ickd_lib.runtime import InputError


@dataclass(frozen=True)
class Region:
    """Numbers of one network about a set of samples, the members of a region of its logit space.

    Args:
        counts: number of members of each of the C classes, shape [C].
        accuracy: fraction of the members that the network classifies correctly.
        purity: fraction of the members that belong to the most frequent class among them.
        cohesion: mean cosine of the members to their mean direction; 1 where all logits have the same direction.
        within, margin, negative_margin: as in `metrics.separation`, averaged over the members; distances are to the
            means of all samples of each class. The margins are NaN where all samples are of one class.
        separation: `metrics.separation` of the members alone. None where it is undefined: with fewer than two classes
            of two members each, or where every member lies exactly on its class's mean.
        nearest: positions of the samples outside the region that are nearest to the members' mean direction, nearest
            first, shape [k].
        cosine: cosine of each of these to the mean direction, shape [k].
    """

    counts: Tensor
    accuracy: float
    purity: float
    cohesion: float
    within: float
    margin: float
    negative_margin: float
    separation: dict[str, float] | None
    nearest: Tensor
    cosine: Tensor

    def __repr__(self) -> str:
        members = int(self.counts.sum())
        return f"Region({members:,} members, accuracy {self.accuracy:.3f}, margin {self.margin:.3f})"


def region(
    logits: Tensor,
    labels: Tensor,
    members: Tensor,
    *,
    neighbours: int = 16,
    samples: int = 1000,
    margins: tuple[Tensor, Tensor] | None = None,
) -> Region:
    """Describe a region of one network's logit space by its M members.

    A sample is near the region when its logits have a high cosine to the members' mean direction, which is the mean of
    their unit-length logits. This needs one inner product for each of the N samples; the distances to the nearest
    member would need N × M. If a region has several separate parts, its mean direction lies between them.

    Args:
        logits: the network's logits, shape [N, C].
        labels: class of each sample, shape [N].
        members: positions of the members, each once, shape [M] with M at least 1.
        neighbours: number of samples outside the region to return.
        samples: largest number of members on which the silhouette is computed. Where a random choice of them would be
            of a single class, `separation` is computed on a choice that keeps the members of the other classes.
        margins: the result of `metrics.margins` for all samples, [N] each, where it has been computed before.
    Returns:
        A Region with tensors on the CPU.
    Raises:
        InputError: the shapes disagree, or `members` is empty, has duplicates, or has a position out of range.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"logits and labels must have shapes [N, C] and [N], not {list(logits.shape)} and {list(labels.shape)}"
        )
    logits, labels, members = logits.detach().float().cpu(), labels.cpu(), members.cpu().long()
    if members.ndim != 1 or not len(members):
        raise InputError(
            f"a region needs one or more members, as positions of shape [M], not of shape {list(members.shape)}"
        )
    if members.min() < 0 or members.max() >= len(logits):
        raise InputError(
            f"members must be positions from 0 to {len(logits) - 1}, not from {members.min()} to {members.max()}"
        )
    inside = torch.zeros(len(logits), dtype=torch.bool)
    inside[members] = True
    if int(inside.sum()) < len(members):
        raise InputError(
            f"only {int(inside.sum())} of the {len(members)} members are different samples; pass each once"
        )

    unit = F.normalize(logits, dim=1)
    own, classes = unit[members], labels[members]
    mean = own.double().mean(0)
    cosine = (unit @ F.normalize(mean, dim=0).float()).masked_fill(inside, -torch.inf)
    nearest = cosine.topk(max(0, min(neighbours, len(logits) - len(members))))
    counts = torch.bincount(classes, minlength=logits.shape[1])
    to_own, margin = (values[members] for values in margins or metrics.margins(unit, labels))
    several = bool(margin.isfinite().all())
    return Region(
        counts=counts,
        accuracy=metrics.accuracy(logits[members], classes),
        purity=int(counts.max()) / len(members),
        cohesion=mean.norm().item(),
        within=to_own.mean().item(),
        margin=margin.mean().item() if several else math.nan,
        negative_margin=(margin < 0).double().mean().item() if several else math.nan,
        separation=_separation(own, classes, samples),
        nearest=nearest.indices,
        cosine=nearest.values,
    )


def _separation(unit: Tensor, labels: Tensor, samples: int) -> dict[str, float] | None:
    if int((torch.bincount(labels) >= 2).sum()) < 2:
        return None
    found = metrics.separation(unit, labels, samples=samples)
    if np.isnan(found["silhouette"]):  # its random sample is of one class, because the others are rare
        most = labels == labels.mode().values
        few, many = (~most).nonzero().squeeze(1), most.nonzero().squeeze(1)
        shuffled = many[torch.randperm(len(many), generator=runtime.generator("region"))]
        kept = torch.cat([few, shuffled])[:samples]
        found = metrics.separation(unit[kept], labels[kept], samples=samples)
    return found if all(np.isfinite(value) for value in found.values()) else None
