"""CRD and SEED, held to the values and gradients of the official codes.

`official_contrastive.json` holds what `official_losses.json` has no case of: several steps of CRD in both directions
with their memories, and SEED. Its numbers are from a transcription of the official arithmetic.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from test_methods import context

from ickd_lib import losses, methods
from ickd_lib.memory import MemoryBank

MORE = json.loads((Path(__file__).parent / "official_contrastive.json").read_text())


def crd(i, h):
    """One direction: the anchors are the student's; all samples have the same negatives."""
    negative = i.student @ i.negatives.T
    log_normaliser = torch.tensor(h["normaliser"], dtype=torch.float64).log()
    return losses.crd(
        (i.student * i.positives).sum(1),
        negative,
        torch.ones_like(negative, dtype=torch.bool),
        rows=h["rows"],
        log_normaliser=log_normaliser,
        temperature=h["temperature"],
    )


def seed(i, h):
    return losses.seed(i.student, i.teacher, i.queue, torch.ones(len(i.queue), dtype=torch.bool), **h)


CHECKS = {"crd": crd}


@pytest.mark.parametrize(("case", "check"), official.cases(CHECKS))
def test_loss_agrees_with_the_official_code(case, check):
    assert official.error(case, check) < official.TOLERANCE


@pytest.mark.parametrize("case", MORE["seed"]["cases"])
def test_seed_agrees_with_the_official_code(case):
    assert official.error(case, seed) < official.TOLERANCE


def normal(number, *shape, scale=1.0):
    return torch.from_numpy(scale * np.random.RandomState(number).standard_normal(shape))


def agrees(found, numbers):
    """Whether norm and first entries of a tensor are the official ones."""
    values = found.detach().flatten()
    first = torch.tensor(numbers["first"], dtype=torch.float64)
    near = (values[: len(first)] - first).abs().max() < official.TOLERANCE * numbers["norm"]
    return bool(near) and values.norm().item() == pytest.approx(numbers["norm"], rel=official.TOLERANCE)


@pytest.mark.parametrize("case", MORE["crd"]["cases"])
def test_the_steps_of_crd_agree_with_the_official_code(case):
    """Losses, gradients, normalisers and memories of both directions, over three steps."""
    method = methods.create("crd", ce=0, dim=8, temperature=case["temperature"])
    method.setup(5, 7, 3, 12)
    method.double()
    for number, name in enumerate(("student", "teacher")):
        embedding = getattr(method, f"{name}_embedding")
        embedding.weight.data.copy_(normal(7100 + number, *embedding.weight.shape, scale=0.5))
        embedding.bias.data.copy_(normal(7110 + number, 8, scale=0.5))
        getattr(method, f"{name}_memory").copy_(normal(7120 + number, 12, 8, scale=0.3))
    labels = torch.arange(12) % 3
    bank = MemoryBank(torch.zeros(12, 1), torch.zeros(12, 3), labels, torch.arange(12), tuple("abc"))
    for step, (rows, official_step) in enumerate(zip(MORE["crd"]["rows"], case["steps"], strict=True)):
        key = torch.tensor(rows)
        given = context(method)
        samples = [
            replace(side, features=normal(number + step, 6, dim).requires_grad_(), labels=labels[key], key=key)
            for side, number, dim in ((given.student, 3000, 5), (given.teacher, 4000, 7))
        ]
        term = method(replace(given, student=samples[0], teacher=samples[1], bank=bank))["crd"] / 0.8
        assert term.item() == pytest.approx(official_step["value"], rel=official.TOLERANCE)
        weights = method.student_embedding.weight, method.teacher_embedding.weight
        gradients = torch.autograd.grad(term, (samples[0].features, *weights))
        for gradient, name in zip(gradients, ("student", "student_embedding", "teacher_embedding"), strict=True):
            assert agrees(gradient, official_step[name]), name
        for name in ("student_memory", "teacher_memory"):
            assert agrees(getattr(method, name), official_step[name]), name
