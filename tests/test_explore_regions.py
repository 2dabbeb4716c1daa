"""Regions of the logit space: their numbers equal a loop, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_explore_maps import drawn

from ickd_lib import explore, metrics
from ickd_lib.runtime import InputError


def test_region_equals_a_loop():
    logits, labels = drawn()
    members = torch.randperm(120, generator=torch.Generator().manual_seed(1))[:30]
    found = explore.region(logits, labels, members, neighbours=7)
    unit = [row / row.norm() for row in logits.double()]
    mean = sum(unit[m] for m in members.tolist()) / 30
    outside = [n for n in range(120) if n not in members.tolist()]
    cosine = {n: float(unit[n] @ mean / mean.norm()) for n in outside}
    nearest = sorted(outside, key=cosine.__getitem__, reverse=True)[:7]
    assert found.nearest.tolist() == nearest
    assert found.cosine.tolist() == pytest.approx([cosine[n] for n in nearest], abs=1e-6)
    counts = [sum(int(labels[m]) == c for m in members.tolist()) for c in range(5)]
    assert found.counts.tolist() == counts and found.purity == max(counts) / 30
    right = [int(logits[m].argmax()) == int(labels[m]) for m in members.tolist()]
    assert found.accuracy == pytest.approx(sum(right) / 30)
    assert found.cohesion == pytest.approx(float(sum(unit[m] @ mean for m in members.tolist()) / 30 / mean.norm()))
    means = [sum(u for u, y in zip(unit, labels, strict=True) if y == c) / int((labels == c).sum()) for c in range(5)]
    own = [float((unit[m] - means[labels[m]]).norm()) for m in members.tolist()]
    other = [min(float((unit[m] - means[c]).norm()) for c in range(5) if c != labels[m]) for m in members.tolist()]
    margin = [there - here for here, there in zip(own, other, strict=True)]
    assert (found.within, found.margin) == pytest.approx((sum(own) / 30, sum(margin) / 30), abs=1e-6)
    assert found.negative_margin == pytest.approx(sum(m < 0 for m in margin) / 30)
    assert found.separation == pytest.approx(metrics.separation(logits[members], labels[members]), rel=1e-5)


def test_separation_is_none_where_it_is_not_defined():
    logits, labels = drawn()
    own = (labels == 2).nonzero().squeeze(1)
    assert explore.region(logits, labels, own).separation is None
    assert explore.region(logits, labels, torch.cat([own, torch.tensor([0])])).separation is None
    assert explore.region(logits, labels, torch.tensor([0])).separation is None
    assert explore.region(torch.eye(5)[labels], labels, torch.arange(120)).separation is None  # within is 0


def test_the_silhouette_keeps_members_of_rare_classes():
    logits, _ = drawn(2000)
    labels = torch.zeros(2000, dtype=torch.long)
    labels[[5, 900, 1500]] = 1
    found = explore.region(logits, labels, torch.arange(2000), samples=50)
    assert found.separation is not None and all(np.isfinite(v) for v in found.separation.values())


def test_a_region_of_all_samples_has_no_neighbours():
    logits, labels = drawn()
    assert len(explore.region(logits, labels, torch.arange(120)).nearest) == 0
    assert len(explore.region(logits, labels, torch.arange(118)).nearest) == 2


@pytest.mark.parametrize(
    ("members", "reason"), [([], "one or more"), ([3, 3], "each once"), ([120], "0 to 119"), ([-1], "0 to")]
)
def test_members_that_form_no_region_are_refused(members, reason):
    logits, labels = drawn()
    with pytest.raises(InputError, match=reason):
        explore.region(logits, labels, torch.tensor(members, dtype=torch.long))
    with pytest.raises(InputError, match=r"\[N, C\]"):
        explore.region(logits, labels[:-1], torch.tensor([0]))
