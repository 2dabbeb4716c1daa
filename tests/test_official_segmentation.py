"""The losses of segmentation, held to the values and gradients of the official code of CIRKD."""

import official
import pytest
import torch
import torch.nn.functional as F

from ickd_lib import losses


def minibatch(i, h):
    return losses.pixel_similarity(i.student[0], i.teacher[0], temperature=h["temperature"])


def memory(i, h, queue):
    """The official function softens the similarities by a second temperature T, with the factor T²."""
    labels = F.interpolate(i.labels[:, None].float(), i.student[0].shape[2:]).squeeze(1)
    valid = labels != h["ignore"]
    student, teacher = (maps[0].movedim(1, -1)[valid] for maps in (i.student, i.teacher))
    rows, second = getattr(i, queue).flatten(0, 1), h["kd_temperature"]
    mask = torch.ones(len(rows), dtype=torch.bool)
    return second**2 * losses.queue_similarity(student, teacher, rows, mask, temperature=second * h["temperature"])


CHECKS = {
    "cirkd_minibatch": minibatch,
    "cirkd_memory_pixel": lambda i, h: memory(i, h, "pixel_queue"),
    "cirkd_memory_region": lambda i, h: memory(i, h, "region_queue"),
}


@pytest.mark.parametrize(("case", "check"), official.cases(CHECKS))
def test_loss_agrees_with_the_official_code(case, check):
    assert official.error(case, check) < 1e-9
