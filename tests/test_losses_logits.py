"""The losses between logits equal plain loops."""

import math
import statistics

import pytest
import torch
from test_losses import as_tuple, check_gradients, draw, kl, softmax, unit

from ickd_lib import losses

B, C = 6, 5
LABELS = torch.tensor([0, 1, 2, 3, 4, 1])
# Each loss between logits, and whether it is 0 for a student whose logits equal the teacher's.
LOSSES = {
    "kd": (losses.kd, True),
    "kd standardised": (lambda s, t: losses.kd(s, t, standardised=True), True),
    "ckd": (losses.ckd, False),
    "dkd": (lambda s, t: losses.dkd(s, t, LABELS[: len(s)]), True),
    "dkd standardised": (lambda s, t: losses.dkd(s, t, LABELS[: len(s)], standardised=True), True),
    "dist": (losses.dist, True),
    "mlkd": (losses.mlkd, True),
    "mlkd standardised": (lambda s, t: losses.mlkd(s, t, standardised=True), True),
}


@pytest.fixture
def student():
    return (3 * draw(B, C, seed=1)).detach().requires_grad_()


@pytest.fixture
def teacher():
    return (3 * draw(B, C, seed=2)).detach().requires_grad_()


def standard(z):
    return [(v - statistics.mean(z)) / (statistics.stdev(z) + 1e-7) for v in z]


def probabilities(logits, temperature, standardised=False):
    return [softmax(standard(z) if standardised else z, temperature) for z in logits.tolist()]


@pytest.mark.parametrize("how", ["minimum", "mean"])
def test_ensemble(how, student, teacher):
    students = [student, teacher, (2 * draw(B, C, seed=3)).detach().requires_grad_()]
    got, expected = losses.ensemble(students, LABELS, how=how), []
    for i, y in enumerate(LABELS.tolist()):
        rows = [z[i].tolist() for z in students]
        if how == "mean":
            expected += [statistics.mean(row[c] for row in rows) for c in range(C)]
        else:
            expected += [min(row[c] - row[y] for row in rows) for c in range(C)]
    assert got.flatten().tolist() == pytest.approx(expected) and got.shape == (B, C) and not got.requires_grad
    if how == "minimum":  # no student gives the label a higher probability
        p_label = [z.softmax(1).gather(1, LABELS[:, None]) for z in (got, *students)]
        assert all((p_label[0] >= other).all() for other in p_label[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, student, teacher):
    loss, _ = LOSSES[name]
    check_gradients(lambda s, t: loss(s, t[: len(s)]), student, teacher)


@pytest.mark.parametrize("name", [name for name, (_, none_left) in LOSSES.items() if none_left])
def test_the_loss_is_0_for_the_teachers_own_logits(name, teacher):
    student = teacher.detach().clone().requires_grad_()
    for term in as_tuple(LOSSES[name][0](student, teacher)):
        assert term.item() == pytest.approx(0, abs=1e-12)
        assert torch.autograd.grad(term, student, retain_graph=True)[0].abs().max() < 1e-10


def test_standardise(student):
    got = losses.standardise(student)
    for row, z in zip(got.tolist(), student.tolist(), strict=True):
        assert row == pytest.approx(standard(z))


def test_standardised_kd_is_invariant_to_scale_and_shift_of_either_networks_logits(student, teacher):
    expected = sum(
        16 * kl(t, s) / B for s, t in zip(probabilities(student, 4, True), probabilities(teacher, 4, True), strict=True)
    )
    shift = draw(B, 1, seed=3)
    for s, t in ((student, teacher), (7 * student + shift, teacher), (student, 0.2 * teacher - shift)):
        assert losses.kd(s, t, standardised=True).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_ckd(student, teacher, temperature):
    s, t = [unit(z) for z in student.tolist()], [unit(z) for z in teacher.tolist()]
    expected = 0.0
    for i in range(B):
        scores = [sum(a * b for a, b in zip(t[i], s[j], strict=True)) for j in range(B)]
        expected -= math.log(softmax(scores, temperature)[i]) / B
    assert losses.ckd(student, teacher, temperature=temperature).item() == pytest.approx(expected)
    scaled = losses.ckd(student * draw(B, 1).exp(), 3 * teacher, temperature=temperature)
    assert scaled.item() == pytest.approx(expected)


@pytest.mark.parametrize("standardised", [False, True])
def test_dkd(student, teacher, standardised):
    temperature, expected = 2.0, [0.0, 0.0]
    s, t = (probabilities(z, temperature, standardised) for z in (student, teacher))
    for p, q, y in zip(s, t, LABELS.tolist(), strict=True):
        expected[0] += temperature**2 * kl([q[y], 1 - q[y]], [p[y], 1 - p[y]]) / B
        rest_p, rest_q = ([v / (1 - r[y]) for c, v in enumerate(r) if c != y] for r in (p, q))
        expected[1] += temperature**2 * kl(rest_q, rest_p) / B
    got = losses.dkd(student, teacher, LABELS, temperature=temperature, standardised=standardised)
    assert [x.item() for x in got] == pytest.approx(expected)


def test_kd_is_the_weighted_sum_of_the_terms_of_dkd(student, teacher):
    for i in range(B):
        s, t, y = student[i : i + 1], teacher[i : i + 1], LABELS[i : i + 1]
        tckd, nckd = losses.dkd(s, t, y)
        rest = 1 - (t / 4).softmax(1)[0, y.item()]
        assert losses.kd(s, t).item() == pytest.approx((tckd + rest * nckd).item())


def test_dkd_of_a_certain_teacher_and_student_is_finite():
    sure = torch.tensor([[1000.0, 0.0, 3.0]], requires_grad=True)
    terms = losses.dkd(sure, -sure, torch.tensor([0]), temperature=1.0)
    torch.stack(terms).sum().backward()
    assert all(term.isfinite() for term in terms) and sure.grad.isfinite().all()


def test_dist(student, teacher):
    temperature = 4.0
    s, t = (probabilities(z, temperature) for z in (student, teacher))
    by_class = list(zip(*s, strict=True)), list(zip(*t, strict=True))
    inter = statistics.mean(1 - statistics.correlation(p, q) for p, q in zip(s, t, strict=True))
    intra = statistics.mean(1 - statistics.correlation(p, q) for p, q in zip(*by_class, strict=True))
    got = [x.item() for x in losses.dist(student, teacher, temperature=temperature)]
    assert got == pytest.approx([temperature**2 * inter, temperature**2 * intra])


def test_dist_is_invariant_to_an_affine_change_of_the_probabilities(teacher):
    mixed = 0.3 * (teacher / 4).softmax(1) + 0.7 / C  # sums to 1
    assert [x.item() for x in losses.dist(4 * mixed.log(), teacher)] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("standardised", [False, True])
def test_mlkd(student, teacher, standardised):
    temperatures, expected = (1.0, 4.0), [0.0, 0.0, 0.0]
    for temperature in temperatures:
        s, t = (probabilities(z, temperature, standardised) for z in (student, teacher))
        expected[0] += sum(temperature**2 * kl(t[i], s[i]) / B for i in range(B))
        s, t = (probabilities(z, temperature, False) for z in (student, teacher))
        for i in range(B):
            for j in range(B):
                expected[1] += sum(p * q - u * v for p, q, u, v in zip(s[i], s[j], t[i], t[j], strict=True)) ** 2 / B
        for c in range(C):
            for d in range(C):
                expected[2] += sum(p[c] * p[d] - q[c] * q[d] for p, q in zip(s, t, strict=True)) ** 2 / C
    got = losses.mlkd(student, teacher, temperatures=temperatures, standardised=standardised)
    assert [x.item() for x in got] == pytest.approx([e / len(temperatures) for e in expected])
