"""The losses between features equal plain loops."""

import math

import pytest
import torch
from test_losses import check_gradients, cosine, draw, huber, unit

from ickd_lib import losses

B = 6
RELATIONS = {"distance": losses.rkd_distance, "angle": losses.rkd_angle, "sp": losses.sp, "pkt": losses.pkt}


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


def test_sp():
    student, teacher = draw(B, 2, 3, 3, seed=1), draw(B, 4, 2, 2, seed=2)

    def similarities(maps):
        flat = [m.flatten().tolist() for m in maps]
        return [unit([sum(x * y for x, y in zip(a, b, strict=True)) for b in flat]) for a in flat]

    s, t = similarities(student), similarities(teacher)
    expected = sum((s[i][j] - t[i][j]) ** 2 for i in range(B) for j in range(B)) / B**2
    assert losses.sp(student, teacher).item() == pytest.approx(expected)


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


class TestAttentionTransfer:
    @pytest.fixture
    def student(self):
        return [draw(B, 2, 4, 4, seed=1), draw(B, 3, 4, 4, seed=2), draw(B, 5, 1, 2, seed=3)]

    @pytest.fixture
    def teacher(self):
        return [draw(B, 4, 2, 2, seed=4), draw(B, 3, 2, 4, seed=5)]

    def test_loop(self, student, teacher):
        def attention(maps, height, width):
            high, wide = len(maps[0]) // height, len(maps[0][0]) // width
            cells = [(y, x) for y in range(high) for x in range(wide)]
            pooled = [
                [sum(m[r * high + y][c * wide + x] for y, x in cells) / len(cells) for m in maps]
                for r in range(height)
                for c in range(width)
            ]
            return unit([sum(v * v for v in position) / len(maps) for position in pooled])

        expected = 0.0
        for s, t, height, width in ((student[1], teacher[0], 2, 2), (student[2], teacher[1], 1, 2)):
            for a, b in zip(s.tolist(), t.tolist(), strict=True):
                pairs = zip(attention(a, height, width), attention(b, height, width), strict=True)
                expected += sum((x - y) ** 2 for x, y in pairs) / (B * height * width)
        assert losses.attention_transfer(student, teacher).item() == pytest.approx(expected)

    def test_gradients_reach_the_paired_student_stages_alone(self, student, teacher):
        losses.attention_transfer(student, teacher).backward()
        assert [stage.grad is None for stage in (*student, *teacher)] == [True, False, False, True, True]
        assert losses.attention_transfer(teacher, [-2 * stage for stage in teacher]).item() == pytest.approx(0)

    def test_a_map_without_any_activation_is_finite(self, student, teacher):
        dead = [torch.zeros_like(stage, requires_grad=True) for stage in student]
        losses.attention_transfer(dead, teacher).backward()
        assert dead[-1].grad.isfinite().all()
