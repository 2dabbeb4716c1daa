"""The variants of in-context distillation, held to loops over single samples in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import losses

B, C, K, M = 4, 5, 3, 6


@pytest.fixture
def case():
    """Logits of student and teacher, of positives and negatives, and which of these are valid."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (3 * torch.randn(*shape, generator=g, dtype=torch.float64)).requires_grad_()

    masks = torch.rand(B, K, generator=g) > 0.3, torch.rand(B, M, generator=g) > 0.3
    masks[0][0], masks[1][0] = False, False  # a sample without in-context samples
    return {
        "student": normal(B, C),
        "teacher": normal(B, C),
        "own": normal(B, C),
        "near": normal(B, K, C),
        "far": normal(B, M, C),
        "near_mask": masks[0],
        "far_mask": masks[1],
    }


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def softmax(values, temperature=1.0):
    largest = max(values)
    powers = [math.exp((v - largest) / temperature) for v in values]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def relational(case, *, positives, kappa, kappa_teacher):
    pool = {"positive_logits": case["near"], "positive_mask": case["near_mask"]} if positives else {}
    given = case["student"], case["teacher"], case["far"], case["far_mask"]
    return losses.relational_nicd(*given, **pool, kappa=kappa, kappa_teacher=kappa_teacher)


@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize("kappa_teacher", [0.03, 0.5])
def test_relational_nicd(case, positives, kappa_teacher):
    kappa, expected = 0.1, 0.0
    for i in range(B):
        student, teacher = case["student"][i].tolist(), case["teacher"][i].tolist()
        pool = [teacher]
        pool += [case["far"][i, j].tolist() for j in range(M) if case["far_mask"][i, j]]
        if positives:
            pool += [case["near"][i, j].tolist() for j in range(K) if case["near_mask"][i, j]]
        target = softmax([cosine(teacher, z) for z in pool], kappa_teacher)
        expected += kl(target, softmax([cosine(student, z) for z in pool], kappa)) / B
    got = relational(case, positives=positives, kappa=kappa, kappa_teacher=kappa_teacher)
    assert got.item() == pytest.approx(expected, rel=1e-10)
    got.backward()
    assert all(case[name].grad is None for name in ("teacher", "near", "far"))
    slope = case["student"].grad
    assert slope.isfinite().all() and slope[1].abs().sum() > 0 and (slope[0] == 0).all()
    assert torch.autograd.gradcheck(
        lambda s: relational({**case, "student": s}, positives=positives, kappa=kappa, kappa_teacher=kappa_teacher),
        case["student"].detach().requires_grad_(),
    )


def test_relational_nicd_of_a_cold_teacher_is_nicd(case):
    given = case["student"], case["teacher"], case["far"], case["far_mask"]
    got = relational(case, positives=False, kappa=0.1, kappa_teacher=1e-5)
    expected = losses.nicd(*given, kappa=0.1)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    slopes = [torch.autograd.grad(loss, case["student"])[0] for loss in (got, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


def test_relational_nicd_is_least_at_the_teachers_relations(case):
    """One-hot targets push a student that equals the teacher; soft ones do not."""
    same = case["teacher"].detach().clone().requires_grad_()
    loss = relational({**case, "student": same}, positives=True, kappa=0.1, kappa_teacher=0.1)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, same)[0].abs().max() < 1e-10
    loss = losses.nicd(same, case["teacher"], case["far"], case["far_mask"])
    assert torch.autograd.grad(loss, same)[0].abs().max() > 1e-3


def test_relational_nicd_takes_negatives_of_unit_length(case):
    unit = F.normalize(case["far"].detach(), dim=-1)
    given = case["student"], case["teacher"]
    pool = {"positive_logits": case["near"], "positive_mask": case["near_mask"]}
    expected = losses.relational_nicd(*given, case["far"], case["far_mask"], **pool)
    got = losses.relational_nicd(*given, unit, case["far_mask"], **pool, normalised=True)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_the_entropy_gate(case, strength):
    got = losses.entropy_gate(case["teacher"], strength=strength)
    for i in range(B):
        p = softmax(case["teacher"][i].tolist())
        entropy = -sum(a * math.log(a) for a in p) / math.log(C)
        assert got[i].item() == pytest.approx(1 - strength + strength * entropy)
    assert not got.requires_grad
    assert losses.entropy_gate(torch.zeros(1, C), strength=strength).item() == pytest.approx(1)
    certain = losses.entropy_gate(torch.tensor([[1e4] + 4 * [0.0]]), strength=strength)
    assert certain.item() == pytest.approx(1 - strength)


def test_picd_has_no_gradient_to_its_gate(case):
    weights = losses.aggregation_weights(torch.zeros(B, K), case["near_mask"], temperature=None)
    gate = torch.full((B,), 0.5, dtype=torch.float64, requires_grad=True)
    losses.picd(case["student"], case["near"], weights, gate=gate).backward()
    assert gate.grad is None and case["student"].grad.any() and case["near"].grad is None


def test_the_aggregates_of_logits_and_of_probabilities_have_the_same_mean(case):
    """A cosine with the aggregate, as of NICD, depends on it."""
    weights = losses.aggregation_weights(torch.zeros(B, K), case["near_mask"], temperature=None)
    given = case["near"], weights.double()
    of_logits, of_probabilities = (losses.aggregate(*given, average=a)[0] for a in ("logits", "probabilities"))
    valid = case["near_mask"].any(1)
    assert valid.any() and torch.allclose(of_logits.mean(1)[valid], of_probabilities.mean(1)[valid], atol=1e-9)
    assert not torch.allclose(of_logits[valid], of_probabilities[valid], atol=0.1)
    assert of_logits[valid].mean(1).abs().min() > 0.1


def test_picd_with_a_gate(case):
    weights = losses.aggregation_weights(torch.rand(B, K, dtype=torch.float64), case["near_mask"], temperature=0.1)
    gate, expected = losses.entropy_gate(case["teacher"]), 0.0
    for i in range(B):
        one = slice(i, i + 1)
        each = losses.picd(case["student"][one], case["near"][one], weights[one], temperature=3.0)
        expected += gate[i].item() * each.item() / B
    got = losses.picd(case["student"], case["near"], weights, temperature=3.0, gate=gate)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    got.backward()
    assert case["teacher"].grad is None


def test_the_residual_target(case):
    mean, valid = case["near"].mean(1), case["near_mask"].any(1)
    got = losses.residual_target(case["teacher"], mean, case["own"], valid, residual=0.7)
    for i in range(B):
        for c in range(C):
            added = 0.7 * (mean[i, c] - case["own"][i, c]).item() if case["near_mask"][i].any() else 0
            assert got[i, c].item() == pytest.approx(case["teacher"][i, c].item() + added)
    assert not got.requires_grad and torch.equal(got[0], case["teacher"][0])
    assert torch.equal(
        losses.residual_target(case["teacher"], mean, case["own"], valid, residual=0.0), case["teacher"].detach()
    )


def test_corrected_logits_have_their_largest_value_at_the_label():
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[0, 5, 2, -1], [1, 1, 1, 1], [3, -1, 4, 0]])
    found = losses.corrected(logits, labels)
    for where in itertools.product(range(3), range(4)):
        expected, label = logits[where].tolist(), int(labels[where])
        if label >= 0:
            best = max(range(6), key=expected.__getitem__)
            expected[label], expected[best] = expected[best], expected[label]
        assert found[where].tolist() == expected


def test_unknown_names_are_errors():
    logits, weights, labels = torch.randn(2, 3, 4), torch.full((2, 3), 1 / 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="average='mean' is unknown; give 'logits' or 'probabilities'"):
        losses.picd(logits[:, 0], logits, weights, average="mean")
    with pytest.raises(ValueError, match="form='triplet' is unknown"):
        losses.nicd(logits[:, 0], logits[:, 1], logits, weights > 0, form="triplet")
    with pytest.raises(ValueError, match="how='max' is unknown"):
        losses.ensemble([logits[:, 0]], labels, how="max")


@pytest.mark.parametrize("lower", [("student",), ("student", "teacher"), ("far",), ("student", "teacher", "far")])
def test_negatives_and_students_of_a_lower_precision_are_computed_in_float32(case, lower):
    rounded = {name: case[name].detach().bfloat16() for name in ("student", "teacher", "far")}
    given = {name: one if name in lower else one.float() for name, one in rounded.items()}
    student = given["student"].requires_grad_()
    for loss, options in (
        (losses.nicd, {"form": "infonce"}),
        (losses.nicd, {"form": "hinge"}),
        (losses.relational_nicd, {}),
    ):
        got = loss(student, given["teacher"], given["far"], case["far_mask"], **options)
        exact = loss(*(one.float() for one in rounded.values()), case["far_mask"], **options)
        assert got.dtype == torch.float32 and torch.equal(got, exact), "they are rounded once, before the loss"
        assert torch.autograd.grad(got, student)[0].isfinite().all()
