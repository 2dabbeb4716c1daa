"""Each loss equals a plain per-sample loop in double precision, and its gradient reaches the student alone.

This file tests the losses of labels and of in-context samples. It also holds helpers that other tests of losses use.
"""

import math

import pytest
import torch

from ickd_lib import losses

B, C, K = 7, 5, 4


def draw(*shape, seed=0):
    """Draw standard normal numbers in double precision, which require a gradient."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return 3 * torch.randn(*shape, generator=g, dtype=torch.float64)

    mask = torch.rand(B, K, generator=g) < 0.7
    mask[0], mask[1] = False, True  # the first query has no valid sample, the second has all of them
    return {
        "student": normal(B, C).requires_grad_(),
        "teacher": normal(B, C).requires_grad_(),
        "labels": torch.randint(C, (B,), generator=g),
        "similarity": torch.rand(B, K, generator=g, dtype=torch.float64),
        "logits": normal(B, K, C).requires_grad_(),
        "mask": mask,
    }


def softmax(values, temperature=1.0):
    exponents = [math.exp((v - max(values)) / temperature) for v in values]
    return [e / sum(exponents) for e in exponents]


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def unit(values):
    return [v / math.hypot(*values) for v in values]


def huber(x, y):
    return 0.5 * (x - y) ** 2 if abs(x - y) < 1 else abs(x - y) - 0.5


def check_gradients(loss, student, teacher):
    """Check that the gradient equals the numerical one and reaches the student alone.

    Loss and gradient also have to stay finite where samples coincide and in a batch of one or two samples.
    """

    def total(s):
        return torch.stack(as_tuple(loss(s, teacher))).sum()

    assert torch.autograd.gradcheck(total, student)
    total(student).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    for repeats in (1, 2, len(student)):
        same = student.detach().clone()
        same[:repeats] = same[0]
        for samples in (same.requires_grad_(), student[:repeats]):
            value = total(samples)
            assert value.isfinite() and torch.autograd.grad(value, samples)[0].isfinite().all()


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def rows(case):
    for i in range(B):
        valid = [j for j in range(K) if case["mask"][i, j]]
        yield (
            case["student"][i].tolist(),
            case["teacher"][i].tolist(),
            [case["logits"][i, j].tolist() for j in valid],
            [case["similarity"][i, j].item() for j in valid],
        )


def naive_weights(similarity, temperature):
    return softmax(similarity, temperature) if temperature else [1 / len(similarity)] * len(similarity)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(case, temperature):
    expected = [temperature**2 * kl(softmax(t, temperature), softmax(s, temperature)) for s, t, _, _ in rows(case)]
    got = losses.kd(case["student"], case["teacher"], temperature=temperature)
    assert got.item() == pytest.approx(sum(expected) / B, rel=1e-12)
    got.backward()
    assert case["teacher"].grad is None and case["logits"].grad is None
    assert case["student"].grad.abs().sum() > 0


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_label_smoothing(case, alpha):
    expected = 0.0
    for (s, _, _, _), y in zip(rows(case), case["labels"].tolist(), strict=True):
        p = softmax(s)
        target = [alpha / C + (1 - alpha) * (c == y) for c in range(C)]
        expected -= sum(t * math.log(q) for t, q in zip(target, p, strict=True)) / B
    assert losses.label_smoothing(case["student"], case["labels"], alpha=alpha).item() == pytest.approx(expected)
    if alpha == 0:
        assert losses.cross_entropy(case["student"], case["labels"]).item() == pytest.approx(expected)


def test_mixed_targets_give_the_mixed_losses(case):
    share, first, second = 0.3, case["labels"], case["labels"].flip(0)
    one, other = (torch.nn.functional.one_hot(y, C).double() for y in (first, second))
    for loss in (losses.cross_entropy, losses.label_smoothing):
        mixed = loss(case["student"], share * one + (1 - share) * other)
        expected = share * loss(case["student"], first) + (1 - share) * loss(case["student"], second)
        assert mixed.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("aggregation", [None, 0.05, 1.0])
def test_aggregation_weights(case, aggregation):
    got = losses.aggregation_weights(case["similarity"], case["mask"], temperature=aggregation)
    for i, (_, _, _, similarity) in enumerate(rows(case)):
        if similarity:
            assert got[i][case["mask"][i]].tolist() == pytest.approx(naive_weights(similarity, aggregation))
        assert (got[i][~case["mask"][i]] == 0).all()


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("aggregation", [None, 0.1])
def test_picd(case, average, aggregation):
    temperature, expected = 4.0, 0.0
    for student, _, logits, similarity in rows(case):
        if not logits:
            continue
        w = naive_weights(similarity, aggregation)
        if average == "logits":
            target = softmax([sum(a * z[c] for a, z in zip(w, logits, strict=True)) for c in range(C)], temperature)
        else:
            each = [softmax(z, temperature) for z in logits]
            target = [sum(a * p[c] for a, p in zip(w, each, strict=True)) for c in range(C)]
        expected += temperature**2 * kl(target, softmax(student, temperature)) / B
    weights = losses.aggregation_weights(case["similarity"], case["mask"], temperature=aggregation)
    got = losses.picd(case["student"], case["logits"], weights, temperature=temperature, average=average)
    assert got.item() == pytest.approx(expected, rel=1e-10)
    got.backward()
    assert case["teacher"].grad is None and case["logits"].grad is None
    assert case["student"].grad[1].abs().sum() > 0 and (case["student"].grad[0] == 0).all()


@pytest.mark.parametrize(("temperature", "correct"), [(20.0, 0.99), (1.0, 0.3)])
def test_tfkd(case, temperature, correct):
    student, labels, expected = case["student"].tolist(), case["labels"].tolist(), 0.0
    for z, y in zip(student, labels, strict=True):
        virtual = softmax([correct if c == y else (1 - correct) / (C - 1) for c in range(C)], temperature)
        expected += kl(virtual, softmax(z, 1.0)) / (B * C)
    got = losses.tfkd(case["student"], case["labels"], temperature=temperature, correct=correct)
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_one_neighbour_that_is_the_sample_itself_makes_picd_kd(case):
    weights = torch.ones(B, 1, dtype=torch.float64)
    for average in ("logits", "probabilities"):
        got = losses.picd(case["student"], case["teacher"][:, None].detach(), weights, average=average)
        assert got.item() == pytest.approx(losses.kd(case["student"], case["teacher"]).item())


@pytest.mark.parametrize("form", ["infonce", "hinge"])
def test_nicd(case, form):
    kappa, margin, expected = 0.1, 0.2, 0.0
    for student, teacher, logits, _ in rows(case):
        c0, cj = cosine(student, teacher), [cosine(student, z) for z in logits]
        if form == "infonce":
            expected += math.log(sum(math.exp((c - c0) / kappa) for c in [c0, *cj])) / B
        elif cj:
            expected += sum(max(0.0, c - c0 + margin) for c in cj) / len(cj) / B
    got = losses.nicd(
        case["student"],
        case["teacher"],
        case["logits"],
        case["mask"],
        kappa=kappa,
        form=form,
        margin=margin,
    )
    assert got.item() == pytest.approx(expected, rel=1e-10)
    got.backward()
    assert case["teacher"].grad is None and case["logits"].grad is None
    assert case["student"].grad[1].abs().sum() > 0 and case["student"].grad.isfinite().all()


@pytest.mark.parametrize("form", ["infonce", "hinge"])
def test_nicd_of_negatives_that_have_unit_length_is_the_same(case, form):
    unit_length = torch.nn.functional.normalize(case["logits"].detach(), dim=-1).requires_grad_()
    given = case["student"], case["teacher"]
    expected = losses.nicd(*given, case["logits"], case["mask"], form=form)
    got = losses.nicd(*given, unit_length, case["mask"], form=form, normalised=True)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    slopes = [torch.autograd.grad(loss, case["student"])[0] for loss in (expected, got)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)
    losses.nicd(*given, unit_length, case["mask"], form=form, normalised=True).backward()
    assert unit_length.grad is None and case["teacher"].grad is None


def test_nicd_falls_as_the_student_turns_from_its_negatives(case):
    student = case["student"].detach().clone().requires_grad_()
    seen = []
    for _ in range(50):
        loss = losses.nicd(student, case["teacher"], case["logits"], case["mask"])
        seen.append(loss.item())
        (slope,) = torch.autograd.grad(loss, student)
        student = (student - 2 * slope).detach().requires_grad_()
    assert seen[-1] < 0.5 * seen[0]


def test_aggregated_probabilities_come_back_from_their_logits(case):
    weights = losses.aggregation_weights(case["similarity"][1:], case["mask"][1:] | True, temperature=0.1)
    mean, target = losses.aggregate(case["logits"][1:], weights, temperature=4.0, average="probabilities")
    assert torch.allclose((mean / 4).log_softmax(-1), target)
    assert torch.allclose(target.exp(), (weights[..., None] * (case["logits"][1:] / 4).softmax(-1)).sum(1))


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_losses_of_many_pixels_with_few_classes_are_those_of_fewer_pixels(name):
    student, teacher = draw(1024, 3), draw(1024, 3, seed=1)
    labels = [torch.arange(1024) % 3] if name == "dkd" else []

    def value(rows):
        loss = getattr(losses, name)(student[rows], teacher[rows], *(one[rows] for one in labels))
        return torch.stack([loss] if name == "kd" else [*loss]).sum()

    whole = value(slice(None))
    parts = torch.stack([value(slice(start, start + 256)) for start in range(0, 1024, 256)]).mean()
    torch.testing.assert_close(whole, parts)
    ours, theirs = (torch.autograd.grad(one, student)[0] for one in (whole, parts))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["ckd", "nicd"])
def test_logits_of_zeros_have_no_exploding_gradient(name):
    student, teacher = torch.zeros(4, 10, requires_grad=True), torch.randn(4, 10)
    others = (teacher, torch.randn(4, 3, 10), torch.ones(4, 3, dtype=torch.bool)) if name == "nicd" else (teacher,)
    getattr(losses, name)(student, *others).backward()
    assert student.grad.abs().max() < 100
