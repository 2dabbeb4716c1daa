"""Learned label smoothing and the tangent kernel agree with autograd and per-sample loops, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ickd_lib import theory


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Small(nn.Module):
    """A convolution, batch norm with running statistics that are not the defaults, and a linear layer to 5 classes."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)
        self.double()
        for seed, p in enumerate(self.parameters()):
            p.data = 0.5 * draw(*p.shape, seed=seed) + (p.ndim == 1)
        self.norm.running_mean += draw(4, seed=20)
        self.norm.running_var += draw(4, seed=21).abs()

    def forward(self, x):
        return self.linear(torch.tanh(self.norm(self.convolution(x))).mean((2, 3)))


@pytest.fixture
def network():
    return Small()


@pytest.fixture
def images():
    return draw(7, 3, 4, 4, seed=1)


def jacobian(network, image):
    """Compute the Jacobian [C, P] by one backward pass for each class."""
    parameters = list(network.parameters())
    rows = []
    for logit in network(image[None])[0]:
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(logit, parameters, retain_graph=True)]))
    return torch.stack(rows)


@pytest.mark.parametrize("alpha", [0.1, 0.9])
def test_label_smoothing_is_the_mean_of_two_cross_entropies(alpha):
    logits, labels = draw(6, 5), torch.arange(6) % 5
    targets = theory.smoothed_targets(labels, torch.full((5,), 0.2, dtype=torch.float64), alpha=alpha)
    expected = F.cross_entropy(logits, labels, label_smoothing=alpha, reduction="none")
    torch.testing.assert_close(theory.soft_cross_entropy(logits, targets), expected, rtol=1e-12, atol=1e-12)
    assert targets.sum(1).allclose(torch.ones(6, dtype=torch.float64))


def test_kd_at_temperature_1_is_learned_label_smoothing_up_to_an_entropy():
    student, teacher, labels = draw(6, 5).requires_grad_(), 3 * draw(6, 5, seed=1), torch.arange(6) % 5
    soft, alpha = teacher.softmax(1), 0.7
    targets = theory.smoothed_targets(labels, soft, alpha=alpha)
    learned = theory.soft_cross_entropy(student, targets)
    kl = F.kl_div(student.log_softmax(1), soft, reduction="none").sum(1)
    kd = (1 - alpha) * F.cross_entropy(student, labels, reduction="none") + alpha * kl
    entropy = -(soft * soft.log()).sum(1)
    torch.testing.assert_close(learned - alpha * entropy, kd, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (learned, kd)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], student.softmax(1) - targets, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_kd_gradient_is_autograds(temperature):
    student, teacher = (3 * draw(6, 5)).requires_grad_(), 3 * draw(6, 5, seed=1)
    loss = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="sum"
    )
    (expected,) = torch.autograd.grad(loss, student)
    found = theory.kd_gradient(student.detach(), teacher, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_kd_gradient_tends_to_centred_logit_matching_as_one_over_temperature():
    student, teacher = 3 * draw(6, 5) + 1, 3 * draw(6, 5, seed=1) - 2  # Hinton et al. assume means of zero
    limit = theory.matching_gradient(student, teacher)
    z = student.clone().requires_grad_()
    centred = (z - z.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    (expected,) = torch.autograd.grad(centred.square().sum() / 10, z)
    torch.testing.assert_close(limit, expected, rtol=1e-12, atol=1e-12)
    gaps = [(theory.kd_gradient(student, teacher, temperature=t) - limit).norm().item() for t in (1e2, 1e3, 1e4)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.02)
    # The coefficient of 1/τ is half of the centred squares, divided by C.
    a, b = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    second = (a**2 - (a**2).mean(1, keepdim=True) - b**2 + (b**2).mean(1, keepdim=True)) / 10
    assert gaps[2] * 1e4 == pytest.approx(second.norm().item(), rel=1e-3)


def test_the_gaps_of_the_identities_are_rounding_and_that_of_the_limit_falls():
    student, teacher, labels = draw(6, 5), 3 * draw(6, 5, seed=1), torch.arange(6) % 5
    gaps = theory.identity_gaps(student, teacher, labels, alpha=0.7, temperature=4.0)
    assert sorted(gaps) == ["gradient", "gradient at the temperature", "loss"]
    assert all(gap < 1e-13 for gap in gaps.values())
    shifted = theory.identity_gaps(student, teacher, labels, alpha=0.0, temperature=4.0)
    assert shifted["loss"] < 1e-13  # without the teacher, both losses are the cross-entropy
    temperatures = torch.tensor([1.0, 1e3, 1e4])
    found = theory.matching_gaps(student, teacher, temperatures)
    limit = theory.matching_gradient(student, teacher)
    expected = [
        ((theory.kd_gradient(student, teacher, temperature=t) - limit).norm() / limit.norm()).item()
        for t in temperatures.tolist()
    ]
    assert found.tolist() == pytest.approx(expected)
    assert found[1] / found[2] == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("chunk", [2, 64])
def test_kernel_influence_and_shares_equal_loops_of_backward_passes(network, images, chunk):
    queries, samples, r = images[:3], images[2:], draw(5, 5, seed=3)
    left, right = ([jacobian(network.eval(), x) for x in some] for some in (queries, samples))
    expected = torch.stack([torch.stack([i @ j.T for j in right]) for i in left])
    kernel = theory.tangent_kernel(network, queries, samples, chunk=chunk)
    torch.testing.assert_close(kernel, expected, rtol=1e-10, atol=1e-10)
    total = theory.influence(network, queries, samples, r, chunk=chunk)
    share, also_total = theory.shares(network, queries, samples, r, chunk=chunk)
    for i in range(3):
        pushes = [expected[i, j] @ r[j] for j in range(5)]
        torch.testing.assert_close(total[i], sum(pushes), rtol=1e-10, atol=1e-10)
        for j in range(5):
            value = (pushes[j] @ total[i] / total[i].norm() ** 2).item()
            assert share[i, j].item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(also_total, total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(share.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    scaled = theory.shares(network, queries, samples, 7 * r, chunk=chunk)[0]
    torch.testing.assert_close(scaled, share, rtol=1e-10, atol=1e-12)


def test_influence_uses_eval_mode_and_leaves_the_network_as_it_was(network, images):
    network.train()
    network.linear.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    targets = draw(7, 5).softmax(1)
    trained = theory.predicted_change(network, images[:2], images, targets, lr=0.1)
    theory.actual_change(network, images[:2], images, targets, lr=0.1)
    theory.tangent_kernel(network, images[:2], images)
    assert network.training and network.norm.training and not network.linear.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(trained, theory.predicted_change(network.eval(), images[:2], images, targets, lr=0.1))


def test_frozen_parameters_take_no_part(network, images):
    targets = draw(7, 5).softmax(1)
    network.convolution.requires_grad_(False)
    predicted = theory.predicted_change(network, images[:2], images, targets, lr=1e-6)
    actual = theory.actual_change(network, images[:2], images, targets, lr=1e-6)
    torch.testing.assert_close(predicted, actual, rtol=1e-4, atol=1e-12)
    assert theory.tangent_kernel(network, images[:1], images[:1]).shape == (1, 1, 5, 5)


def test_first_order_prediction_meets_a_real_step_and_its_error_falls_with_the_step(network, images):
    labels = torch.arange(7) % 5
    targets = theory.smoothed_targets(labels, draw(7, 5, seed=4).softmax(1), alpha=0.5)
    errors = []
    for lr in (1e-2, 1e-3, 1e-4):
        predicted = theory.predicted_change(network, images[:3], images, targets, lr=lr)
        actual = theory.actual_change(network, images[:3], images, targets, lr=lr)
        errors.append(((predicted - actual).norm() / actual.norm()).item())
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


def test_first_order_errors_are_those_of_single_steps_and_leave_the_network_as_it_was(network, images):
    targets = draw(7, 5, seed=4).softmax(1)
    steps = torch.tensor([1e-4, 1e-2, 10.0])
    single = network.float()  # the errors are computed in float64 all the same
    errors = theory.first_order_errors(single, images[:3].float(), images.float(), targets.float(), steps)
    assert all(p.dtype == torch.float32 for p in single.parameters())
    double, samples, wide = single.double(), images.float().double(), targets.float().double()
    for step, error in zip(steps.tolist(), errors.tolist(), strict=True):
        predicted = theory.predicted_change(double, samples[:3], samples, wide, lr=step)
        real = theory.actual_change(double, samples[:3], samples, wide, lr=step)
        assert error == pytest.approx(((predicted - real).norm() / real.norm()).item(), rel=1e-6)
    assert theory.largest_step(steps, errors, tolerance=1e-3) == steps[1].item()
    assert math.isnan(theory.largest_step(steps, errors, tolerance=1e-12))


def test_distillation_less_label_smoothing_is_the_kernel_sum_of_teacher_less_uniform(network, images):
    labels, soft, alpha, lr = torch.arange(7) % 5, draw(7, 5, seed=4).softmax(1), 0.3, 0.1
    uniform = torch.full((7, 5), 0.2, dtype=torch.float64)
    changes = [
        theory.predicted_change(network, images[:3], images, theory.smoothed_targets(labels, q, alpha=alpha), lr=lr)
        for q in (soft, uniform)
    ]
    summed = theory.influence(network, images[:3], images, theory.residuals(soft, labels)["uniform"])
    torch.testing.assert_close(changes[0] - changes[1], lr * alpha / 7 * summed, rtol=1e-10, atol=1e-12)
