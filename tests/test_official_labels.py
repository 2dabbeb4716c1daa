"""Methods without a teacher or of several students, and REFILLED, held to the values of the official codes."""

from types import SimpleNamespace

import official
import pytest
import torch
import torch.nn.functional as F

from ickd_lib import methods
from ickd_lib.data import Batch
from ickd_lib.methods import Context, TargetSource
from ickd_lib.tasks import Samples


def samples(logits, labels, features=None, maps=()):
    every = torch.arange(len(labels))
    return Samples(logits, logits[:, :0] if features is None else features, labels, every, every, maps)


def whole(method, student, **given):
    """The sum of a method's terms on samples whose supervised loss is cross-entropy."""
    every = torch.arange(len(student.labels))
    batch = Batch(student.logits.new_zeros(len(every), 3, 1, 1), student.labels, every, every)
    context = Context(batch, student, F.cross_entropy(student.logits, student.labels), **given)
    return torch.stack(list(method(context).values())).sum()


def tfkd(i, h):
    settings = {name: h[name] for name in ("alpha", "temperature", "multiplier", "correct")}
    return whole(methods.create("tfkd", **settings), samples(i.student, i.labels))


def uskd(i, h):
    method = methods.create("uskd", ce=0.0, **h)
    method.weak = lambda pooled: F.linear(pooled, i.weight, i.bias)
    maps = (i.features[:, :, None, None].expand(-1, -1, 2, 3), torch.empty(0))  # their mean is the features
    return whole(method, samples(i.student, i.labels, maps=maps))


def cskd(i, h):
    method = methods.create("cskd", ce=0.0, temperature=h["temperature"])
    return whole(method, samples(i.student, i.labels), partner=samples(i.teacher, i.labels))


def pskd(i, h):
    """alpha_t = alpha · (epoch + 1) / epochs, here in the last epoch."""
    earlier = TargetSource(samples(i.teacher, i.labels))
    method = methods.create("pskd", alpha=h["alpha_t"])
    return whole(method, samples(i.student, i.labels), earlier=earlier, epoch=9, epochs=10)


def dml(i, h):
    peers = (TargetSource(samples(i.teacher, i.labels)),)
    return whole(methods.create("dml", ce=0.0), samples(i.student, i.labels), peers=peers)


def kdcl_mean(i, h):
    peers = tuple(TargetSource(samples(peer, i.labels)) for peer in i.peers)
    weights = {"ce": 1 - h["alpha"], "kd": h["alpha"], "temperature": h["temperature"]}
    return whole(methods.create("kdcl", ensemble="mean", **weights), samples(i.student, i.labels), peers=peers)


def refilled_stage1(i, h, **settings):
    tau = h["temperature"]
    weights = {"embedding": h["weight"] / tau**2, "embedding_temperature": tau, "margin": h["margin"]} | settings
    student, teacher = (samples(one.new_zeros(len(one), 4), i.labels, one) for one in (i.student, i.teacher))
    return whole(methods.create("refilled", **weights), student, teacher=teacher)


def refilled_stage1_unmerged(i, h):
    """The official mean is over twice the number of triplets."""
    return refilled_stage1(i, h, merged=False, embedding=h["weight"] / h["temperature"] ** 2 / 2)


def refilled_stage2(i, h):
    tau = h["temperature"]
    method = methods.create("refilled", ce=0.0, local=h["lambd"] / tau**2, local_temperature=tau)
    bank = SimpleNamespace(class_means=lambda: i.centres)
    teacher = samples(i.student.detach(), i.labels, i.teacher)
    return whole(method, samples(i.student, i.labels), teacher=teacher, bank=bank, phase=1)


CHECKS = {
    "cskd": cskd,
    "dml": dml,
    "kdcl_mean": kdcl_mean,
    "pskd": pskd,
    "refilled_stage1": refilled_stage1,
    "refilled_stage1_unmerged": refilled_stage1_unmerged,
    "refilled_stage2": refilled_stage2,
    "tfkd": tfkd,
    "uskd": uskd,
}


@pytest.mark.parametrize(("case", "check"), official.cases(CHECKS))
def test_the_method_agrees_with_the_official_code(case, check):
    assert official.error(case, check) < official.TOLERANCE
