"""The losses of REFILLED and its semi-hard tuples equal plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_losses import check_gradients, draw, kl, softmax, unit
from work import Work

from ickd_lib import losses, models
from ickd_lib.losses import refilled

B = 12


@pytest.fixture
def labels():
    return torch.randint(3, (B,), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def student():
    return draw(B, 3, seed=1)


@pytest.fixture
def teacher():
    return draw(B, 5, seed=2)


def naive_tuples(d, labels, margin):
    """Yield (anchor, positive, negatives) of every ordered pair of one label."""
    for a in range(B):
        for p in range(B):
            if a != p and labels[a] == labels[p]:
                negatives = [n for n in range(B) if labels[n] != labels[a] and d[a][p] < d[a][n] < d[a][p] + margin]
                yield a, p, negatives


def naive_distances(features):
    points = [unit(f) for f in features.tolist()]
    return [[math.dist(a, b) for b in points] for a in points]


@pytest.mark.parametrize("margin", [0.05, 0.2, 1.0])
def test_semi_hard(labels, student, margin):
    d = naive_distances(student)
    anchors, positives, negatives = losses.semi_hard(torch.tensor(d, dtype=torch.float64), labels, margin=margin)
    got = [
        (a, p, n.nonzero().flatten().tolist())
        for a, p, n in zip(anchors.tolist(), positives.tolist(), negatives, strict=True)
    ]
    assert got == list(naive_tuples(d, labels.tolist(), margin))


@pytest.mark.parametrize("temperature", [4.0, 0.5])
def test_refilled_embedding(labels, student, teacher, temperature):
    s, t, each = naive_distances(student), naive_distances(teacher), []
    for a, p, negatives in naive_tuples(s, labels.tolist(), 0.2):
        if negatives:
            p_student, p_teacher = (softmax([-d[a][n] for n in (p, *negatives)], temperature) for d in (s, t))
            each.append(temperature**2 * kl(p_teacher, p_student))
    assert 0 < len(each) < sum(1 for _ in naive_tuples(s, labels.tolist(), 0.2))  # some tuples have no negative
    got = losses.refilled_embedding(student, teacher, labels, temperature=temperature)
    assert got.item() == pytest.approx(sum(each) / len(each))
    scaled = losses.refilled_embedding(3 * student, teacher * draw(B, 1).exp(), labels, temperature=temperature)
    assert scaled.item() == pytest.approx(got.item())


def test_refilled_embedding_gradients(labels, student, teacher):
    check_gradients(lambda s, t: losses.refilled_embedding(s, t[: len(s)], labels[: len(s)]), student, teacher)


def test_the_loss_is_0_where_the_students_distances_equal_the_teachers(labels, teacher):
    turn = torch.linalg.qr(draw(8, 5, seed=3).detach())[0].T
    student = (2 * teacher @ turn).detach().requires_grad_()
    loss = losses.refilled_embedding(student, teacher, labels)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and student.grad.abs().max() < 1e-8


@pytest.mark.parametrize("labels", [torch.arange(B), torch.zeros(B, dtype=torch.long)])
@pytest.mark.parametrize("merged", [True, False])
def test_a_batch_without_tuples_gives_a_zero_that_can_be_trained_on(labels, student, teacher, merged):
    loss = losses.refilled_embedding(student, teacher, labels, merged=merged)
    loss.backward()
    assert loss.item() == 0 and (student.grad == 0).all()


class TestLocal:
    C = 6

    @pytest.fixture
    def logits(self):
        return draw(B, self.C, seed=5)

    @pytest.fixture
    def centres(self):
        return torch.nn.functional.normalize(draw(self.C, 5, seed=6), dim=1).detach().requires_grad_()

    def test_loop(self, labels, logits, teacher, centres):
        present, expected = sorted(set(labels.tolist())), 0.0
        assert len(present) < self.C
        for z, f in zip(logits.tolist(), teacher.tolist(), strict=True):
            scores = [sum(x * y for x, y in zip(f, centres[c].tolist(), strict=True)) for c in present]
            expected += 4 * kl(softmax(scores, 2), softmax([z[c] for c in present], 2)) / B
        got = losses.refilled_local(logits, teacher, centres, labels)
        assert got.item() == pytest.approx(expected)
        got.backward()
        absent = [c for c in range(self.C) if c not in present]
        assert centres.grad is None and (logits.grad[:, absent] == 0).all()

    def test_gradients(self, labels, logits, teacher, centres):
        def loss(s, t):
            return losses.refilled_local(s, t[: len(s)], centres, labels[: len(s)])

        check_gradients(loss, logits, teacher)

    def test_the_loss_is_0_for_the_teachers_own_logits(self, labels, teacher, centres):
        logits = (teacher @ centres.T).detach()
        assert losses.refilled_local(logits, teacher, centres, labels).item() == pytest.approx(0, abs=1e-12)


def test_matching_costs_little_beside_a_training_step():
    """At batch size 128, operators of relationship matching read and write less than 5% of the elements of a step.

    The step is one of WRN-16-2. Measured in seconds: 1% with 100 classes and 2% with 10.
    """
    network = models.create("wrn_16_2", 100).to(memory_format=torch.channels_last)
    images, other = torch.rand(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.rand(128, 128)
    labels = torch.randint(100, (128,), generator=torch.Generator().manual_seed(0))
    with Work() as step:
        output = network(images)
        F.cross_entropy(output.logits, labels).backward()
    features = output.features.detach().requires_grad_()
    with Work() as match:
        losses.refilled_embedding(features, other, labels).backward()
    assert 0 < match.elements < 0.05 * step.elements


@pytest.mark.parametrize("merged", [True, False])
def test_a_fixed_number_of_tuples_gives_the_same_loss_and_gradient(monkeypatch, merged):
    generator = torch.Generator().manual_seed(5)
    teacher = torch.randn(12, 7, generator=generator, dtype=torch.double)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 3, 4, 4, 0])
    found = []
    given = refilled.semi_hard
    for static in (False, True):
        monkeypatch.setattr(refilled, "semi_hard", lambda *a, static=static, **k: given(*a, **{**k, "static": static}))
        generator.manual_seed(6)
        student = torch.randn(12, 5, generator=generator, dtype=torch.double, requires_grad=True)
        loss = refilled.refilled_embedding(student, teacher, labels, margin=0.5, merged=merged)
        loss.backward()
        found.append((loss.detach(), student.grad))
    assert found[0][0] > 0 and torch.allclose(found[0][0], found[1][0], rtol=1e-12)
    assert found[0][1].abs().max() > 0 and torch.allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-14)
