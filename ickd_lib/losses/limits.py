"""Limits on the gradients of loss terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def limited(
    term: Tensor,
    others: Tensor,
    logits: Tensor,
    *,
    ratio: float = 1.0,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scale the gradient of a loss term so that its norm is at most a multiple of that of the other terms.

    Both norms are those of the gradients at the student's logits of a batch. An adversarial loss is weighted in the
    same way by Esser et al. 2021, arXiv 2012.09841.

    Args:
        term: the weighted term, a scalar.
        others: the sum of all other terms, a scalar.
        logits: the student's logits from which both were computed, of any shape.
        ratio: the largest ratio of the norms.
        total: a function that adds the two squared norms, shape [2], over several processes; None for one process.
    Returns:
        The term, with its value unchanged. If one of the two does not depend on the logits, it is returned as it is.
    """
    if not (term.requires_grad and others.requires_grad):
        return term
    slopes = [torch.autograd.grad(one, logits, retain_graph=True, allow_unused=True)[0] for one in (term, others)]
    if slopes[0] is None or slopes[1] is None:
        return term
    squares = torch.stack([slope.square().sum() for slope in slopes])
    own, rest = (squares if total is None else total(squares)).sqrt()
    factor = (ratio * rest / own.clamp(min=1e-30)).clamp(max=1)
    return term.detach() + factor * (term - term.detach())
