"""Targets from several students that train together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ickd_lib.losses._shared import require


def ensemble(logits: Sequence[Tensor], labels: Tensor, *, how: str = "minimum") -> Tensor:
    """Combine the logits of several students into one target (KDCL, Guo et al. 2020).

    Args:
        logits: one tensor of shape [B, C] for each student.
        labels: class of each sample, shape [B].
        how: "mean" averages the logits. "minimum" (KDCL-MinLogit) subtracts from each student's logits its logit of the
            label and then takes the minimum over the students for each class, so that the target's probability of the
            label is at least as high as that of any student.
    Returns:
        Shape [B, C], detached.
    Raises:
        ValueError: `how` is neither of the two.
    """
    require("how", how, ("mean", "minimum"))
    stacked = torch.stack([each.detach() for each in logits])
    if how == "mean":
        return stacked.mean(0)
    return (stacked - stacked.gather(2, labels.expand(len(stacked), -1)[..., None])).amin(0)
