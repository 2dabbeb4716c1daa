"""Losses between features, held to the values and gradients of the official codes."""

import official
import pytest

from ickd_lib import losses


def rkd(i, h):
    distance = losses.rkd_distance(i.student, i.teacher)
    return h["distance"] * distance + h["angle"] * losses.rkd_angle(i.student, i.teacher)


CHECKS = {"rkd": rkd, "pkt": lambda i, h: losses.pkt(i.student, i.teacher)}


@pytest.mark.parametrize(("case", "check"), official.cases(CHECKS))
def test_loss_agrees_with_the_official_code(case, check):
    assert official.error(case, check) < official.TOLERANCE
