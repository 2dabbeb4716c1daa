"""Methods that compare feature maps, held to the values and gradients of the official codes."""

import official
import pytest
import torch
from torch import nn

from ickd_lib import losses, methods
from ickd_lib.methods import Context
from ickd_lib.tasks import Samples


def samples(maps, unpooled=None):
    none = torch.empty(len(maps[0]), 0)
    places = torch.arange(len(maps[0]))
    return Samples(none, none, places, places, places, tuple(maps), unpooled=unpooled)


def loss(method, student, teacher, **given):
    """The sum of the terms that a method computes from maps, without cross-entropy and after all warm-ups."""
    context = Context(None, student, torch.tensor(0.0), teacher, epoch=100, epochs=240, **given)
    return torch.stack(list(method(context).values())).sum()


def at(i, h):
    assert h["p"] == 2
    return loss(methods.create("at(ce=0, at=1)"), samples(i.student), samples(i.teacher))


def sp(i, h):
    return loss(methods.create("sp(ce=0, sp=1)"), samples(i.student), samples(i.teacher))


def fitnet(i, h):
    method = methods.create("fitnet(ce=0, fitnet=1, stage=1)")
    method.regressor = nn.Identity()
    return loss(method, samples(i.student), samples(i.teacher))


def vid(i, h):
    method = methods.create(f"vid(ce=0, vid=1, epsilon={h['eps']})")
    method.regressors, method.log_scales = [nn.Identity()], [i.log_scale]
    return loss(method, samples(i.student), samples(i.teacher))


def catkd(i, h):
    method = methods.create(f"catkd(ce=0, catkd=1, resolution={h['resolution']}, normalised={h['normalised']})")
    student, teacher = (samples(maps, maps[0]) for maps in (i.student, i.teacher))
    return loss(method, student, teacher, classifiers=(nn.Identity(), nn.Identity()))


CHECKS = {
    "at": at,
    "sp": sp,
    "fitnet": fitnet,
    "vid": vid,
    "reviewkd": lambda i, h: losses.hierarchical_context(i.student, i.teacher),
    "catkd": catkd,
}


@pytest.mark.parametrize(("case", "check"), official.cases(CHECKS))
def test_loss_agrees_with_the_official_code(case, check):
    assert official.error(case, check) < official.TOLERANCE
