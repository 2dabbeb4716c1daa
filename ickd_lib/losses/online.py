"""Students that teach each other: what they say together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ensemble(logits: Sequence[Tensor], labels: Tensor, *, how: str = "minimum") -> Tensor:
    """The students' joint logits, Guo et al. 2020 (KDCL).

    Args:
        logits: of each student, shape [B, C].
        labels: shape [B].
        how: "minimum" (KDCL-MinLogit): with each student's logit of the label made 0, the smallest of each other
            class, so that none is surer of the label than all together. "mean": the mean of the logits.
    Returns:
        Shape [B, C], without gradient.
    """
    every = torch.stack([each.detach() for each in logits])
    if how == "mean":
        return every.mean(0)
    return (every - every.gather(2, labels.expand(len(every), -1)[..., None])).amin(0)
