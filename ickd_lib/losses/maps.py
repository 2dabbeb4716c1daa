"""Losses between feature maps of teacher and student, which may differ in channels, in size and in their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import unit_length


def sp(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Compute the loss of similarity-preserving KD, |G^S - G^T|² / B² (Tung & Mori 2019).

    G is A Aᵀ with its rows scaled to unit length, where A [B, ...] holds the flattened maps of the batch.

    Args:
        student_maps, teacher_maps: shapes [B, ...]; the dimensions after the first may differ.
    Returns:
        A scalar.
    """
    student, teacher = student_maps.flatten(1), teacher_maps.detach().flatten(1)
    return F.mse_loss(unit_length(student @ student.T), unit_length(teacher @ teacher.T))


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Compute the loss of attention transfer, the mean of (a^S - a^T)² summed over the stages of the networks.

    The attention a of a feature map is the mean over the channels of its square, flattened and scaled to unit length
    (Zagoruyko & Komodakis 2017, eq. 2 with squared differences, as in the authors' code). Where the sizes of two maps
    differ, the larger map is first averaged down to the size of the smaller.

    Args:
        student_maps, teacher_maps: one map of each stage, shape [B, channels, H, W], the shallowest stage first. Maps
            are paired from the shallowest stage on; the deepest maps of the longer sequence are not used.
    Returns:
        A scalar: the mean over the batch and the positions, summed over the stages.
    """
    stages = []
    for student, teacher in zip(student_maps, teacher_maps, strict=False):
        student, teacher = same_size(student, teacher.detach())
        stages.append(F.mse_loss(_attention(student), _attention(teacher)))
    return torch.stack(stages).sum()


def hint(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Compute the mean squared difference of two maps (FitNet, Romero et al. 2015, eq. 3; SimKD, Chen et al. 2022).

    Args:
        student_map, teacher_map: shapes [B, channels, H, W]; where the sizes differ, the larger map is averaged down.
    Returns:
        A scalar: the mean over all entries.
    """
    return F.mse_loss(*same_size(student_map, teacher_map.detach()))


def vid(predicted: Tensor, teacher_map: Tensor, log_scale: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Compute the loss of variational information distillation (Ahn et al. 2019, eq. 5-6).

    It is ½ ((t - μ)² / σ² + log σ²), the negative log likelihood of the teacher's map t under Gaussians whose mean μ
    is regressed from the student's map and whose variances, one for each channel, are σ² = log(1 + e^α) + ε.

    Args:
        predicted, teacher_map: μ and t, shapes [B, channels, H, W]; where the sizes differ, the larger map is
            averaged down.
        log_scale: α, shape [channels].
        epsilon: ε.
    Returns:
        A scalar: the mean over all entries.
    """
    mean, target = same_size(predicted, teacher_map.detach())
    variance = (F.softplus(log_scale) + epsilon)[:, None, None]
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


def hierarchical_context(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Compute the hierarchical context loss (HCL) of knowledge review (Chen et al. 2021, section 3.3).

    For each pair of maps it is a weighted mean of mean squared differences: of the maps themselves, with weight 1, and
    of the maps averaged to 4x4, 2x2 and 1x1 cells, with weights that halve from one size to the next, from ½ on. Sizes
    that are not smaller than the maps are left out.

    Args:
        student_maps, teacher_maps: pairs of maps of equal shapes [B, channels, H, W].
    Returns:
        A scalar: the sum over the pairs.
    """
    pairs = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        teacher = teacher.detach()
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for side in (4, 2, 1):
            if side < min(student.shape[2:]):
                weight, total = weight / 2, total + weight / 2
                mine, theirs = (F.adaptive_avg_pool2d(one, side) for one in (student, teacher))
                loss = loss + weight * F.mse_loss(mine, theirs)
        pairs.append(loss / total)
    return torch.stack(pairs).sum()


def class_activation(
    student_maps: Tensor, teacher_maps: Tensor, *, resolution: int = 2, normalised: bool = False
) -> Tensor:
    """Compute the mean squared difference of class activation maps (CAT-KD; Guo et al. 2023, eq. 4).

    Args:
        student_maps, teacher_maps: one map of each class, shapes [B, C, H, W]; the sizes may differ.
        resolution: the maps are averaged to this height and width.
        normalised: whether each averaged map is scaled to unit length.
    Returns:
        A scalar: the mean over all entries.
    """
    student, teacher = (
        F.adaptive_avg_pool2d(one, resolution).flatten(2) for one in (student_maps, teacher_maps.detach())
    )
    if normalised:
        student, teacher = unit_length(student), unit_length(teacher)
    return F.mse_loss(student, teacher)


def gaussian_wasserstein(student_map: Tensor, teacher_map: Tensor, *, epsilon: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Compute the two parts of the squared Wasserstein distance of Gaussians (WKD-F; Lv et al. 2024, section 3.2).

    The features at the positions of a map are described by a Gaussian with a diagonal covariance. The squared distance
    of two such Gaussians is |μ^S - μ^T|² + |σ^S - σ^T|², where σ is the square root of the variance plus ε.

    Args:
        student_map, teacher_map: shapes [B, channels, any height, any width]; the sizes may differ.
        epsilon: ε.
    Returns:
        |μ^S - μ^T|² and |σ^S - σ^T|², scalars: sums over the channels and means over the batch.
    """
    (mean, deviation), (target_mean, target_deviation) = (
        _moments(one, epsilon) for one in (student_map, teacher_map.detach())
    )
    return (mean - target_mean).square().sum(1).mean(), (deviation - target_deviation).square().sum(1).mean()


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average two maps [B, channels, H, W] down to the smaller height and the smaller width of both."""
    height, width = (min(one.shape[axis], other.shape[axis]) for axis in (2, 3))
    first, second = (
        x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width)) for x in (one, other)
    )
    return first, second


def _attention(maps: Tensor) -> Tensor:
    """Compute the attention of maps [B, channels, H, W] as [B, H · W]."""
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)


def _moments(maps: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the positions of maps [B, channels, H, W], [B, channels] each."""
    variance, mean = torch.var_mean(maps, (2, 3), correction=min(1, maps[0, 0].numel() - 1))  # one position varies by 0
    return mean, (variance + epsilon).sqrt()
