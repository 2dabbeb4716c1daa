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
    "dist": (losses.dist, False),  # but for the constant in the denominator
    "nkd": (lambda s, t: losses.nkd(s, t, LABELS[: len(s)]), False),
    "ttm": (losses.ttm, False),
    "wttm": (lambda s, t: losses.ttm(s, t, weighted=True), False),
    "lwf": (losses.lwf, False),
    "mlkd": (lambda s, t: losses.mlkd(s, t, s.flip(1), t.flip(1)), True),
    "mlkd standardised": (lambda s, t: losses.mlkd(s, t, s.flip(1), t.flip(1), standardised=True), True),
    "skd_gram": (losses.skd_gram, True),
    "wkd_l": (lambda s, t: losses.wkd_l(s, t, LABELS[: len(s)], 1 - torch.eye(C).double()), False),
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
    assert [x.item() for x in losses.dist(4 * mixed.log(), teacher)] == pytest.approx([0, 0], abs=1e-4)


def test_dist_of_confident_networks_is_shrunk_by_the_constant_in_the_denominator():
    sure = torch.tensor([[40.0, 0.0, 1.0], [40.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    got = losses.dist(sure, sure.flip(1), temperature=1.0)
    for term, dim in zip(got, (1, 0), strict=True):
        p, q = sure.softmax(1).detach(), sure.flip(1).softmax(1).detach()
        expected = []
        for one, other in zip(p.unbind(1 - dim), q.unbind(1 - dim), strict=True):
            one, other = one - one.mean(), other - other.mean()
            expected.append(1 - (one @ other) / (one.norm() * other.norm() + 1e-8))
        assert term.item() == pytest.approx(statistics.mean(x.item() for x in expected), rel=1e-9)
    assert got[1].item() == pytest.approx(1, abs=1e-6)  # the columns are constant to within e^-39
    assert torch.autograd.grad(sum(got), sure)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_nkd(student, teacher, temperature):
    expected = [0.0, 0.0]
    s, t = (probabilities(z, 1.0) for z in (student, teacher))
    soft_s, soft_t = (probabilities(z, temperature) for z in (student, teacher))
    for i, y in enumerate(LABELS.tolist()):
        expected[0] -= t[i][y] * math.log(s[i][y]) / B
        for c in set(range(C)) - {y}:
            p, q = (soft[i][c] / (1 - soft[i][y]) for soft in (soft_s, soft_t))
            expected[1] -= temperature**2 * q * math.log(p) / B
    got = losses.nkd(student, teacher, LABELS, temperature=temperature)
    assert [x.item() for x in got] == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_ttm(student, teacher, weighted):
    expected = 0.0
    for p, q in zip(probabilities(student, 1.0), probabilities(teacher, 1.0), strict=True):
        powers = [v**0.3 for v in q]
        expected += kl([v / sum(powers) for v in powers], p) * (sum(powers) if weighted else 1) / B
    assert losses.ttm(student, teacher, exponent=0.3, weighted=weighted).item() == pytest.approx(expected)


def test_lwf(student, teacher):
    expected = 0.0
    for p, q in zip(probabilities(student, 2.0), probabilities(teacher, 2.0), strict=True):
        raised = [v + 1e-5 / C for v in p]
        expected -= sum(v * math.log(u / sum(raised)) for u, v in zip(raised, q, strict=True)) / B
    assert losses.lwf(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("standardised", [False, True])
def test_mlkd(student, teacher, standardised):
    strong = [(3 * draw(B, C, seed=seed)).detach() for seed in (3, 4)]
    samples, classes = shares(teacher)
    expected = [0.0, 0.0, 0.0]
    for temperature in (1.5, 3.0, 5.0, 2.0, 6.0):

        def instance(one, other, temperature=temperature):
            s, t = (probabilities(z, temperature, standardised) for z in (one, other))
            return sum(temperature**2 * kl(t[i], s[i]) / B for i in range(B))

        again = (student, teacher) if temperature in (2.0, 6.0) else strong
        expected[0] += samples * instance(student, teacher) + instance(*again)
        s, t = (probabilities(z, temperature) for z in (student, teacher))
        for i in range(B):
            for j in range(B):
                difference = sum(p * q - u * v for p, q, u, v in zip(s[i], s[j], t[i], t[j], strict=True))
                expected[1] += samples * difference**2 / B
        for c in range(C):
            for d in range(C):
                difference = sum(p[c] * p[d] - q[c] * q[d] for p, q in zip(s, t, strict=True))
                expected[2] += classes * difference**2 / C
    got = losses.mlkd(student, teacher, *strong, temperature=1.5, standardised=standardised)
    assert [x.item() for x in got] == pytest.approx(expected)


def shares(teacher):
    rows = probabilities(teacher, 1.0)
    sure, of_class = [max(row) for row in rows], [sum(column) for column in zip(*rows, strict=True)]
    return [statistics.mean(v <= statistics.median(values) for v in values) for values in (sure, of_class)]


def test_uncertain(teacher):
    assert [x.item() for x in losses.uncertain(teacher)] == shares(teacher) == [0.5, 0.6]
    assert [x.item() for x in losses.uncertain(torch.zeros(4, 3))] == [1, 1]


def test_skd_gram(student, teacher):
    s, t = ([unit(z) for z in logits.tolist()] for logits in (student, teacher))
    gram = [[sum(a * b for a, b in zip(z[i], z[j], strict=True)) for i in range(B) for j in range(B)] for z in (s, t)]
    difference = [(a - b) / C for a, b in zip(*gram, strict=True)]
    rows = [difference[i * B : (i + 1) * B] for i in range(B)]
    columns = list(zip(*rows, strict=True))
    spread = [[statistics.covariance(a, b) + 0.2 * (a == b) for b in columns] for a in columns]
    inverse = torch.tensor(spread, dtype=torch.float64).inverse().tolist()
    expected = 0.0
    for row in rows:
        expected += math.sqrt(sum(row[i] * inverse[i][j] * row[j] for i in range(B) for j in range(B))) / B
    assert losses.skd_gram(student, teacher, tikhonov=0.2).item() == pytest.approx(expected)


def test_skd_gram_of_one_sample_is_0_with_a_finite_gradient(student, teacher):
    loss = losses.skd_gram(student[:1], teacher[:1])
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_wkd_l(student, teacher):
    prototypes, sharpness = [unit(z) for z in draw(C, 3, seed=5).tolist()], 2.0
    cost = [
        [1 - math.exp(-sharpness * (1 - sum(a * b for a, b in zip(p, q, strict=True)))) for q in prototypes]
        for p in prototypes
    ]
    given = losses.prototype_cost(draw(C, 3, seed=5), sharpness=sharpness)
    assert given.tolist() == [pytest.approx(row, abs=1e-9) for row in cost]
    expected = 0.0
    for i, y in enumerate(LABELS.tolist()):
        others = [c for c in range(C) if c != y]
        s, t = (softmax([logits[i, c].item() for c in others], 2.0) for logits in (student, teacher))
        paid = [[max(cost[c][d], 0) + 1e-8 for d in others] for c in others]
        kernel = [[math.exp(-v / 0.1) for v in row] for row in paid]
        n = C - 1
        u = [1 / n] * n
        for _ in range(7):
            v = [t[d] / (sum(kernel[c][d] * u[c] for c in range(n)) + 1e-8) for d in range(n)]
            u = [s[c] / (sum(kernel[c][d] * v[d] for d in range(n)) + 1e-8) for c in range(n)]
        expected += sum(u[c] * kernel[c][d] * v[d] * paid[c][d] for c in range(n) for d in range(n)) / B
    target, got = losses.wkd_l(student, teacher, LABELS, given, temperature=2.0, regularisation=0.1, iterations=7)
    assert got.item() == pytest.approx(expected)
    assert target.item() == pytest.approx(losses.nkd(student, teacher, LABELS)[0].item())


def test_transport_costs_nothing_between_equal_predictions(teacher):
    student = teacher.detach().clone().requires_grad_()
    _, distance = losses.wkd_l(student, teacher, LABELS, 1 - torch.eye(C).double(), iterations=100)
    assert distance.item() == pytest.approx(0, abs=1e-5)
