"""Limits on the gradients of loss terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.context import Context
from ickd_lib.runtime.distributed import total


def limited(terms: Mapping[str, Tensor], limits: Mapping[str, float], context: Context) -> dict[str, Tensor]:
    """Scale the gradients of some terms so that the norm of each is at most a multiple of that of the other terms.

    Args:
        terms: all terms of the loss.
        limits: the largest ratio of the norms for each term that has a limit. The other terms are those without one,
            together.
        context: the norms are those of the gradients at its student's logits, over all processes. Terms that do not
            depend on these logits do not count; if there is no other term, nothing is changed.
    Returns:
        The terms, with their values unchanged.
    """
    found, others = dict(terms), [one for name, one in terms.items() if name not in limits]
    if not (others and limits):
        return found
    logits = context.student.shared_logits if context.logits is None else context.logits
    rest = torch.stack(others).sum()
    for name in (name for name in terms if name in limits):
        found[name] = losses.limited(
            terms[name], rest, logits, ratio=limits[name], total=lambda squares: total(context.scale**2 * squares)
        )
    return found
