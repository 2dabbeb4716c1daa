"""Limits on the gradients of loss terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
    found = dict(terms)
    others = [one for name, one in terms.items() if name not in limits and one.requires_grad]
    named = [name for name in limits if name in terms and terms[name].requires_grad]
    if not named or not others:
        return found
    student = context.student
    logits = (student.pixels or student.whole or student).logits if context.logits is None else context.logits
    rest, *slopes = (
        torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)[0]
        for loss in (torch.stack(others).sum(), *(terms[name] for name in named))
    )
    for name, slope in zip(named, slopes, strict=True):
        if slope is None or rest is None:
            continue
        norms = [(context.scale * one).square().sum() for one in (slope, rest)]
        own, most = total(torch.stack(norms)).sqrt()
        factor = (limits[name] * most / own.clamp(min=1e-30)).clamp(max=1)
        found[name] = terms[name].detach() + factor * (terms[name] - terms[name].detach())
    return found
