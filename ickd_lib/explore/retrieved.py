"""Retrieved regions and boxes: the precision of retrieval for each class, and pictures of queries and their samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ickd_lib.explore.samples import SampleSet
from ickd_lib.memory import InContext


def class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean of some values over the samples of each class.

    Args:
        values: one value for each sample, shape [N].
        labels: class of each sample, shape [N].
        classes: number C of classes.
    Returns:
        float64, shape [C]; NaN for a class without samples.
    """
    sums = torch.zeros(classes, dtype=torch.float64, device=values.device).index_add_(0, labels, values.double())
    return sums / torch.bincount(labels, minlength=classes)


def close_queries(positives: InContext, negatives: InContext, labels: Tensor, count: int) -> list[int]:
    """Choose queries of different classes whose nearest positive and nearest negative are about equally similar.

    Args:
        positives, negatives: in-context samples of B queries, the nearest first.
        labels: class of each query, shape [B].
        count: largest number of queries.
    Returns:
        Positions of the queries, those with the smallest difference first, all of different classes.
    """
    gap = (positives.similarity[:, 0] - negatives.similarity[:, 0]).abs()
    gap = gap.masked_fill(~(positives.mask[:, 0] & negatives.mask[:, 0]), torch.inf)
    chosen: list[int] = []
    for at in gap.argsort(stable=True).tolist():
        if gap[at] < torch.inf and len(chosen) < count and labels[at] not in labels[chosen]:
            chosen.append(at)
    return chosen


def illustrated(
    queries: SampleSet, at: Sequence[int], rows: SampleSet, positives: InContext, negatives: InContext
) -> tuple[Tensor, list[list[str]]]:
    """Return what `plots.retrieved` draws for Q queries: pictures, and texts with the class and the cosine.

    Args:
        queries: samples that contain the queries.
        at: positions of the Q queries.
        rows: samples that contain all in-context samples.
        positives, negatives: in-context samples of the queries, [Q, k] each.
    Returns:
        Pictures, uint8, shape [Q, 1 + k, 3, h, w], and their texts; the text of a masked sample is empty.
    """
    names = queries.task.outputs(queries.images.classes)
    pictures, texts = [], []
    for i, position in enumerate(at):
        shown = [queries.thumbnails(torch.tensor([position]))]
        words = [names[int(queries.labels[position])]]
        for found in (positives, negatives):
            mask = found.mask[i]
            place = rows.positions(torch.where(mask, found.index[i], rows.keys[0]))
            shown.append(rows.thumbnails(place))
            words += [
                f"{names[int(rows.labels[j])]}\n{cosine:.3f}" if valid else ""
                for j, cosine, valid in zip(place.tolist(), found.similarity[i].tolist(), mask.tolist(), strict=True)
            ]
        pictures.append(torch.cat(shown))
        texts.append(words)
    return torch.stack(pictures), texts


def notable(errors: dict[str, Tensor], reference: str = "teacher") -> dict[str, int]:
    """Choose images by the errors that several networks make on them.

    Args:
        errors: for each network the number or share of errors on each image, shape [N].
        reference: the network with which all others, the students, are compared.
    Returns:
        Positions of up to three different images: the one with the median of the students' mean errors; the one on
        which the students are worse than the reference by the largest difference; and the one on which the students
        differ most.
    """
    students = torch.stack([values.double() for name, values in errors.items() if name != reference])
    mean = students.mean(0)
    ranks = {
        "typical image": (mean - mean.median()).abs(),
        "largest lead of the teacher": errors[reference].double() - mean,
        "students differ most": students.min(0).values - students.max(0).values,
    }
    chosen: dict[str, int] = {}
    for name, values in ranks.items():
        free = [at for at in values.argsort(stable=True).tolist() if at not in chosen.values()]
        if free:
            chosen[name] = free[0]
    return chosen
