"""The losses between features equal plain loops."""

import math

import pytest
import torch
from test_losses import check_gradients, cosine, draw, huber

from ickd_lib import losses

B = 6
RELATIONS = {"distance": losses.rkd_distance, "angle": losses.rkd_angle, "pkt": losses.pkt}


@pytest.fixture
def student():
    return draw(B, 3, seed=1)


@pytest.fixture
def teacher():
    return draw(B, 5, seed=2)


@pytest.mark.parametrize("name", RELATIONS)
def test_gradients(name, student, teacher):
    check_gradients(lambda s, t: RELATIONS[name](s, t[: len(s)]), student, teacher)


@pytest.mark.parametrize("name", RELATIONS)
def test_the_loss_is_0_for_the_teachers_features_rotated_and_scaled(name, teacher):
    turn = torch.linalg.qr(draw(8, 5, seed=3).detach())[0].T  # maps 5 to 8 dimensions and keeps lengths and angles
    student = (2 * teacher @ turn).detach().requires_grad_()
    loss = RELATIONS[name](student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and student.grad.abs().max() < 1e-8


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_rkd_is_invariant_to_a_shift_and_its_gradient_is_small_where_samples_coincide(name, student, teacher):
    shifted = RELATIONS[name](student + 5, teacher - 3)
    assert shifted.item() == pytest.approx(RELATIONS[name](student, teacher).item())
    same = student.detach().clone()
    same[1] = same[0]
    RELATIONS[name](same.requires_grad_(), teacher).backward()
    assert same.grad.abs().max() < 10


def test_rkd_distance(student, teacher):
    def relative(points):
        d = [[math.dist(a, b) for b in points] for a in points]
        return [[x / (sum(map(sum, d)) / (B * B - B)) for x in row] for row in d]

    s, t = relative(student.tolist()), relative(teacher.tolist())
    expected = sum(huber(s[i][j], t[i][j]) for i in range(B) for j in range(B)) / B**2
    assert losses.rkd_distance(student, teacher).item() == pytest.approx(expected)


def test_rkd_angle(student, teacher):
    def angle(points, i, j, k):
        if i in (j, k):
            return 0.0
        one, other = ([b - a for a, b in zip(points[i], points[n], strict=True)] for n in (j, k))
        return cosine(one, other)

    s, t, n = student.tolist(), teacher.tolist(), range(B)
    expected = sum(huber(angle(s, i, j, k), angle(t, i, j, k)) for i in n for j in n for k in n) / B**3
    assert losses.rkd_angle(student, teacher).item() == pytest.approx(expected)


def test_pkt(student, teacher):
    def affinities(points):
        each = [[(1 + cosine(a, b)) / 2 for b in points] for a in points]
        return [[x / sum(row) for x in row] for row in each]

    s, t, expected = affinities(student.tolist()), affinities(teacher.tolist()), 0.0
    for i in range(B):
        for j in range(B):
            expected += t[i][j] * math.log((t[i][j] + 1e-7) / (s[i][j] + 1e-7)) / B**2
    assert losses.pkt(student, teacher).item() == pytest.approx(expected)
    scaled = losses.pkt(student * draw(B, 1).exp(), 3 * teacher)
    assert scaled.item() == pytest.approx(expected)


def test_a_feature_row_of_zeros_has_no_huge_gradient():
    generator = torch.Generator().manual_seed(0)
    teacher, labels = torch.randn(6, 5, generator=generator), torch.arange(6) % 2
    start = torch.randn(6, 4, generator=generator).index_fill(0, torch.tensor([2]), 0)
    queue, mask = torch.eye(5)[:3], torch.ones(3, dtype=torch.bool)
    for loss in (
        lambda z: losses.pkt(z, teacher),
        lambda z: losses.refilled_embedding(z, teacher, labels),
        lambda z: losses.sp(z, teacher),
        lambda z: losses.seed(z @ torch.ones(4, 5), teacher, queue, mask),
        lambda z: losses.queue_similarity(z @ torch.ones(4, 5), teacher, queue, mask),
    ):
        features = start.clone().requires_grad_()
        loss(features).backward()
        assert features.grad.isfinite().all() and features.grad.abs().max() < 100
