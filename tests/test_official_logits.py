"""Losses between logits, held to the values and gradients of the official codes."""

import official
import pytest

from ickd_lib import losses

CHECKS = {
    "kd": lambda i, h: losses.kd(i.student, i.teacher, temperature=h["temperature"]),
    "ckd": lambda i, h: losses.ckd(i.student, i.teacher, temperature=h["temperature"]),
}


@pytest.mark.parametrize(("case", "check"), official.cases(CHECKS))
def test_loss_agrees_with_the_official_code(case, check):
    assert official.error(case, check) < official.TOLERANCE
