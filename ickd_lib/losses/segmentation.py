"""Losses for segmentation, between outputs of teacher and student at the positions of maps, which are called pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ickd_lib.losses._shared import kl, masked_log_softmax, unit_length


def pixel_similarity(student_maps: Tensor, teacher_maps: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Compute KL(teacher ‖ student) of each pixel's similarities to the pixels of an image of the batch (CIRKD).

    The similarities of a pixel of image i are a softmax over its cosines with the h · w pixels of image j, divided by
    the temperature, for all B² pairs of images, i = j included (Yang et al. 2022, arXiv 2204.06986, section 3.2). There
    is no factor τ². Only the cosines of one image with the whole batch, B · (h · w)² numbers, are in memory at a time;
    the backward pass computes them again.

    Args:
        student_maps, teacher_maps: features, shapes [B, D, h, w] and [B, D', h, w].
        temperature: τ.
    Returns:
        A scalar: the mean over the pixels and the pairs of images.
    """
    student, teacher = (unit_length(one.flatten(2).mT).mT for one in (student_maps, teacher_maps.detach()))
    pairs = zip(student, teacher, strict=True)
    images = [
        checkpoint(_between, mine, student, theirs, teacher, temperature, use_reentrant=False, preserve_rng_state=False)
        for mine, theirs in pairs
    ]
    return torch.stack(images).mean()


def queue_similarity(
    student: Tensor, teacher: Tensor, queue: Tensor, mask: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Compute KL(teacher ‖ student) of the similarities of pixels to embeddings in a queue (CIRKD).

    The similarities are a softmax over the cosines with the rows of the queue, divided by the temperature (Yang et al.
    2022, arXiv 2204.06986, section 3.3). There is no factor τ².

    Args:
        student, teacher: embeddings of the pixels, shape [N, D]; they are scaled to unit length.
        queue: the teacher's embeddings of pixels or of regions, of unit length, shape [R, D].
        mask: which rows of the queue are used, bool, shape [R]; at least one if N is not 0.
        temperature: τ.
    Returns:
        A scalar: the mean over the pixels; 0 if there are none.
    """
    mine, theirs = (
        masked_log_softmax(unit_length(one) @ queue.detach().T / temperature, mask)
        for one in (student, teacher.detach())
    )
    return kl(mine, theirs, 1.0).sum() / max(1, len(student))


def channel_wise(student_maps: Tensor, teacher_maps: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Compute τ² KL(teacher ‖ student) of each channel's softmax over the positions (Shu et al. 2021, eq. 3-4).

    Args:
        student_maps, teacher_maps: logits or features, shape [B, channels, h, w].
        temperature: τ.
    Returns:
        A scalar: the mean over the batch and the channels.
    """
    student, teacher = ((one.flatten(2) / temperature).log_softmax(2) for one in (student_maps, teacher_maps.detach()))
    return kl(student, teacher, temperature).mean()


def _between(mine: Tensor, student: Tensor, theirs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the term of `pixel_similarity` for one image [D, N] and all images of the batch [B, D, N]."""
    own, target = (
        (image.T @ batch / temperature).log_softmax(2) for image, batch in ((mine, student), (theirs, teacher))
    )
    return kl(own, target, 1.0).mean()
