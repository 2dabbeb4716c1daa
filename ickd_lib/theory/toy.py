"""Data with a known Bayes posterior, and teachers with three different kinds of errors."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def mixture(
    points: int, *, classes: int = 3, radius: float = 1.5, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points in the plane with a known Bayes posterior from a mixture of Gaussians.

    The Gaussians have unit variance and equal probability, and their centres lie on a circle.

    Args:
        points: number of points n.
        classes: number of Gaussians C.
        radius: radius of the circle; the smaller it is, the more the Gaussians overlap.
        generator: a CPU generator.
    Returns:
        x [n, 2]; the labels [n], which follow the posterior; and the log posterior log p(y | x) [n, C]. x and the log
        posterior are float64.
    """
    angle = 2 * math.pi * torch.arange(classes, dtype=torch.float64) / classes
    centres = radius * torch.stack([angle.cos(), angle.sin()], 1)
    labels = torch.randint(classes, (points,), generator=generator)
    x = centres[labels] + torch.randn(points, 2, generator=generator, dtype=torch.float64)
    return x, labels, (-0.5 * torch.cdist(x, centres).square()).log_softmax(1)


def gaussian_similarity(x: Tensor, *, width: float) -> Tensor:
    """Compute exp(−‖x_i − x_j‖² / 2 width²) for all pairs of points.

    It is an inner product of features of unit length, like the cosine similarity of a memory bank.

    Args:
        x: points, [n, d].
        width: the distance at which the similarity is e^(-1/2), in the unit of x.
    Returns:
        [n, n].
    """
    return (-0.5 * torch.cdist(x, x).square() / width**2).exp()


def correlated_errors(
    x: Tensor, channels: int, *, correlation: float, length: float, generator: torch.Generator
) -> Tensor:
    """Draw errors of unit variance that are correlated between neighbouring points.

    The errors are √ρ · field(x) + √(1−ρ) · independent noise. The field is a smooth Gaussian field with covariance
    exp(−‖x − x'‖² / 2 length²), drawn from its random Fourier features (Rahimi and Recht 2007). Hence the errors of
    points that are much closer than `length` have correlation ρ.

    Args:
        x: points, [n, d].
        channels: number of independent errors of each point, C.
        correlation: ρ, from 0 (independent errors) to 1.
        length: correlation length of the field, in the unit of x.
        generator: a generator on the device of x.
    Returns:
        [n, C].
    """
    waves = 256
    normal = partial(torch.randn, generator=generator, dtype=x.dtype, device=x.device)
    phase = x @ normal(x.shape[1], waves) / length
    field = torch.cat([phase.cos(), phase.sin()], 1) @ normal(2 * waves, channels) / math.sqrt(waves)
    return math.sqrt(correlation) * field + math.sqrt(1 - correlation) * normal(len(x), channels)


class ToyTeacher(NamedTuple):
    """A teacher's outputs for all points, in one or several draws of its errors, and the properties of these errors.

    Attributes:
        values: the outputs of which the error is measured, logits or probabilities, [n, C·draws].
        truth: what `values` would be without an error, [n, C].
        variance: σ² of the errors, one number or one for each point, [n].
        correlation: ρ between the errors of neighbours.
        logits: the teacher's logits, [n, C·draws].
        errs_by_label: whether its errors depend on the labels of the points.
    """

    values: Tensor
    truth: Tensor
    variance: float | Tensor
    correlation: float
    logits: Tensor
    errs_by_label: bool


def toy_teachers(
    x: Tensor,
    labels: Tensor,
    log_posterior: Tensor,
    *,
    draws: int,
    sigma: float,
    correlation: float,
    length: float,
    memory: float,
    generator: torch.Generator,
) -> dict[str, ToyTeacher]:
    """Make three teachers for the points of `mixture`.

    The logits of "independent errors" and "correlated errors" are the log posterior plus errors of standard deviation
    σ. The probabilities of "memorised labels" are a weighted mean of the posterior and the one-hot training label.

    Args:
        x, labels, log_posterior: from `mixture`, [n, 2], [n] and [n, C].
        draws: number of draws of the errors for the first two teachers; the third has one.
        sigma: σ, on the logits.
        correlation: ρ of the teacher with correlated errors.
        length: correlation length of its errors, in the unit of x.
        memory: weight of the one-hot label in the third teacher's probabilities, from 0 to 1.
        generator: a generator on the device of x.
    Returns:
        The three teachers by name.
    """
    classes, posterior, teachers = log_posterior.shape[1], log_posterior.exp(), {}
    for name, shared in {"independent errors": 0.0, "correlated errors": correlation}.items():
        errors = correlated_errors(x, classes * draws, correlation=shared, length=length, generator=generator)
        noisy = log_posterior.repeat(1, draws) + sigma * errors
        teachers[name] = ToyTeacher(noisy, log_posterior, sigma**2, shared, noisy, errs_by_label=False)
    memorised = (1 - memory) * posterior + memory * F.one_hot(labels, classes)
    variance = memory**2 * (posterior * (1 - posterior)).mean(1)
    teachers["memorised labels"] = ToyTeacher(memorised, posterior, variance, 0.0, memorised.log(), errs_by_label=True)
    return teachers
