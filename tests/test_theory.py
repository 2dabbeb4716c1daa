"""The package theory agrees with autograd, per-sample loops and Monte Carlo, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ickd_lib import theory
from ickd_lib.runtime import InputError


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


# ------------------------------------------------------------------------------------- smoothing


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


# ------------------------------------------------------------------------------------- tangent, contexts, reports


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


def test_by_similarity_is_brute_force_without_the_query_and_breaks_ties_by_row():
    features = draw(12, 3)
    features[5] = 2 * features[9]  # the same direction, so that both have the same similarity
    rows = torch.tensor([0, 4, 11])
    order = theory.by_similarity(features, rows)
    for i, found in zip(rows.tolist(), order.tolist(), strict=True):
        unit = [f / f.norm() for f in features]
        others = [j for j in range(12) if j != i]
        assert found == sorted(others, key=lambda j, i=i: (-round((unit[i] @ unit[j]).item(), 12), j))


def test_shuffling_within_classes_keeps_every_prefixes_class_mix_and_moves_samples():
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    order = theory.by_similarity(draw(40, 4), torch.arange(10))
    mixed = theory.shuffled(order, generator=torch.Generator().manual_seed(1), labels=labels)
    assert torch.equal(labels[mixed], labels[order])
    assert torch.equal(mixed.sort(1)[0], order.sort(1)[0])
    assert (mixed != order).double().mean() > 0.7
    freely = theory.shuffled(order, generator=torch.Generator().manual_seed(1))
    assert torch.equal(freely.sort(1)[0], order.sort(1)[0])
    assert not torch.equal(labels[freely], labels[order])


def test_random_sets_have_the_expected_share_of_their_classes():
    """Sets are drawn without replacement, so that a class is expected to add its count times its mean share."""
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    order = theory.by_similarity(draw(40, 4), rows)
    share = draw(6, 40, seed=2) / 40 + 0.02
    share = share / share.sum(1, keepdim=True)
    found = theory.cumulative_shares(share, order, labels, draws=3000, generator=torch.Generator().manual_seed(1))
    k = 10
    for i in range(6):
        others = [j for j in range(40) if j != i]
        near = order[i, :k].tolist()
        by_class = {c: share[i, [j for j in others if labels[j] == c]].mean().item() for c in range(3)}
        matched = sum(by_class[labels[j].item()] for j in near)
        spread = 5 * share[i].std().item() * math.sqrt(k / 3000)
        assert found["nearest"][i, k - 1].item() == pytest.approx(share[i, near].sum().item(), rel=1e-10)
        assert found["same classes"][i, k - 1].item() == pytest.approx(matched, abs=spread)
        assert found["any"][i, k - 1].item() == pytest.approx(k * share[i, others].mean().item(), abs=spread)
    for running in found.values():  # all other samples: 1 less the query's own share
        torch.testing.assert_close(running[:, -1], 1 - share[torch.arange(6), rows], rtol=1e-10, atol=1e-10)


def test_residuals_sum_to_zero_and_the_class_mean_leaves_nothing_of_a_class():
    soft, labels = draw(12, 4).softmax(1), torch.arange(12) % 3  # class 3 is empty
    found = theory.residuals(soft, labels)
    for r in found.values():
        assert r.sum(1).abs().max() < 1e-12
    for c in range(3):
        assert found["class mean"][labels == c].mean(0).abs().max() < 1e-12
        assert found["label"][labels == c][:, c].max() < 0


def test_mean_interval_is_of_the_mean_with_ddof_1():
    mean, half = theory.mean_interval(torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64))
    assert mean.item() == pytest.approx(3)
    assert half.item() == pytest.approx(1.96 * math.sqrt(7 / 3))


@pytest.fixture
def found(network, images):
    """Shares of the three residuals for queries 0, 2 and 5 among the seven samples."""
    labels, soft, rows = torch.arange(7) % 2, draw(7, 5, seed=4).softmax(1), torch.tensor([0, 2, 5])
    order = theory.by_similarity(draw(7, 4), rows)
    generator = torch.Generator().manual_seed(3)
    return theory.context_shares(network, images, rows, order, labels, soft, draws=5, generator=generator)


def test_context_shares_are_those_of_each_residual_with_the_same_random_sets(network, images, found):
    labels, soft, rows = torch.arange(7) % 2, draw(7, 5, seed=4).softmax(1), torch.tensor([0, 2, 5])
    order = theory.by_similarity(draw(7, 4), rows)
    for name, residual in theory.residuals(soft, labels).items():
        share, total = theory.shares(network, images[rows], images, residual)
        torch.testing.assert_close(found[name].share, share)
        assert found[name].own == pytest.approx(sum(share[i, row].item() for i, row in enumerate(rows.tolist())) / 3)
        assert found[name].length == pytest.approx(sum(total[i].norm().item() for i in range(3)) / 3)
        generator = torch.Generator().manual_seed(3)
        running = theory.cumulative_shares(share, order, labels, draws=5, generator=generator)
        for kind, expected in running.items():
            torch.testing.assert_close(found[name].running[kind], expected)


def test_rows_and_panels_hold_the_means_over_the_queries(found):
    rows = theory.share_rows("a view", found, k=2)
    panels = theory.share_panels(found)
    assert list(panels) == list(theory.TITLES.values())
    for row, panel in zip(rows, panels.values(), strict=True):
        running = found[row["residual"]].running
        assert row["length"] == pytest.approx(found[row["residual"]].length / found["uniform"].length)
        for kind in ("nearest", "same classes", "any"):
            assert row[kind] == pytest.approx(running[kind][:, 1].mean().item())
        paired = running["nearest"][:, 1] - running["same classes"][:, 1]
        assert row["gain"] == pytest.approx(paired.mean().item(), abs=1e-12)
        assert row["half"] == pytest.approx(1.96 * paired.std().item() / math.sqrt(3))
        mean, half = panel["same classes, random"]
        assert mean.shape == half.shape == (6,) and mean[1] == pytest.approx(row["same classes"])


def row(residual, gain, half):
    return {
        "view": "student",
        "residual": residual,
        "length": 0.5,
        "own": 0.25,
        "nearest": 0.3,
        "same classes": 0.2,
        "any": 0.1,
        "gain": gain,
        "half": half,
    }


def test_a_finding_is_a_difference_only_where_its_interval_excludes_0():
    rows = [row("uniform", 0.1, 0.05), row("label", -0.1, 0.05), row("class mean", 0.1, 0.2)]
    more, less, neither = theory.share_findings(rows, k=8).splitlines()
    assert "larger" in more and "smaller" in less and "does not differ clearly" in neither
    assert all("30.0%" in line and "20.0%" in line and "8 nearest" in line for line in (more, less, neither))
    table = theory.share_table(rows, k=8).splitlines()
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert "| 0.50 | 25.0% | 30.0% | 20.0% | 10.0% | +10.0 ± 5.0 points |" in table[2]


def test_the_takeaways_and_the_headline_give_the_numbers():
    rows = [row("uniform", 0.1, 0.05), row("label", -0.03, 0.05), row("class mean", 0.07, 0.2)]
    identity = {"loss": 1e-15, "gradient": 2e-16}
    text = theory.takeaways(identity, rows, {"independent errors, all classes": 0.15}, k=8)
    assert len(text.splitlines()) == 4
    for number in (
        "1e-15",
        "2e-16",
        "+10.0 ± 5.0",
        "-3.0 ± 5.0",
        "+7.0 ± 20.0",
        "independent errors, all classes 0.15",
    ):
        assert number in text
    assert "8 nearest of 250" in theory.headline(rows, k=8, samples=250)


# ------------------------------------------------------------------------------------- toy, aggregation, reports


def test_mixtures_posterior_is_bayes_rule_and_its_labels_follow_it():
    x, labels, log_posterior = theory.mixture(40_000, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.MultivariateNormal
    centres = [[1.5 * math.cos(2 * math.pi * c / 3), 1.5 * math.sin(2 * math.pi * c / 3)] for c in range(3)]
    identity = torch.eye(2, dtype=torch.float64)
    density = torch.stack(
        [normal(torch.tensor(c, dtype=torch.float64), identity).log_prob(x).exp() for c in centres], 1
    )
    torch.testing.assert_close(log_posterior.exp(), density / density.sum(1, keepdim=True))
    for low in (0.2, 0.5, 0.8):  # calibration: of the points with a posterior of about p, a fraction p has the label
        chosen = (log_posterior.exp()[:, 0] - low).abs() < 0.05
        expected = log_posterior.exp()[chosen, 0].mean().item()
        tolerance = 4 * math.sqrt(0.25 / chosen.sum().item())
        assert (labels[chosen] == 0).double().mean().item() == pytest.approx(expected, abs=tolerance)


def test_correlated_errors_have_unit_variance_and_the_stated_correlation():
    x = torch.tensor([[0.0, 0.0], [0.01, 0.0], [2.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [theory.correlated_errors(x, 50, correlation=0.6, length=2.0, generator=generator) for _ in range(600)]
    )
    moments = torch.einsum("tac,tbc->ab", draws, draws) / draws[:, 0].numel()
    expected = torch.eye(3, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 0.6
    expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = 0.6 * math.exp(-0.5)
    torch.testing.assert_close(moments, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("same_label", [False, True])
def test_neighbours_and_weights_equal_a_loop(same_label):
    x, labels, _ = theory.mixture(30, generator=torch.Generator().manual_seed(0))
    similarity, values = theory.gaussian_similarity(x, width=0.8), draw(30, 3)
    index, weights = theory.neighbour_weights(similarity, 4, temperature=0.1, labels=labels if same_label else None)
    found = theory.aggregate(values, index, weights)
    for i in range(30):
        s = {j: math.exp(-((x[i] - x[j]) ** 2).sum().item() / 2 / 0.64) for j in range(30) if j != i}
        if same_label:
            s = {j: v for j, v in s.items() if labels[j] == labels[i]}
        near = sorted(s, key=lambda j: -s[j])[:4]
        assert index[i].tolist() == near
        raw = [math.exp(s[j] / 0.1) for j in near]
        expected = sum(w / sum(raw) * values[j] for w, j in zip(raw, near, strict=True))
        torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-10)
    equal = theory.neighbour_weights(similarity, 4, temperature=math.inf)[1]
    assert torch.equal(equal, torch.full((30, 4), 0.25, dtype=torch.float64))


def test_more_neighbours_than_there_are_is_an_error():
    similarity, labels = torch.eye(6), torch.tensor([0, 0, 0, 0, 1, 1])
    with pytest.raises(InputError, match="1 to 1"):
        theory.neighbour_weights(similarity, 2, temperature=1.0, labels=labels)
    with pytest.raises(InputError, match="1 to 5"):
        theory.neighbour_weights(similarity, 6, temperature=1.0)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.05, math.inf])
def test_error_of_aggregation_is_the_predicted_variance_and_bias(correlation, temperature):
    """Monte Carlo over the teacher's errors; their correlation length is large, so that ρ holds for all pairs."""
    generator = torch.Generator().manual_seed(0)
    x, _, truth = theory.mixture(120, generator=generator)
    index, weights = theory.neighbour_weights(theory.gaussian_similarity(x, width=1.0), 12, temperature=temperature)
    variance = 0.49
    left, bias = theory.predicted_error(truth, index, weights, variance=variance, correlation=correlation)
    measured = []
    for _ in range(300):
        e = theory.correlated_errors(x, 3, correlation=correlation, length=500.0, generator=generator)
        error = theory.aggregate(truth + math.sqrt(variance) * e, index, weights) - truth
        measured.append(error.square().mean())
    found, half = theory.mean_interval(torch.stack(measured))
    assert found.item() == pytest.approx(left + bias, abs=2.5 * half.item())
    assert half.item() < 0.08 * (left + bias)
    assert bias > 0.02  # otherwise the test would not check the bias


def test_labels_memorised_average_away_over_all_neighbours_but_never_over_those_of_the_same_label():
    x, labels, log_posterior = theory.mixture(1200, generator=torch.Generator().manual_seed(0))
    truth, hard = log_posterior.exp(), F.one_hot(labels, 3).double()
    similarity = theory.gaussian_similarity(x, width=1.0)
    own = (hard - truth).square().mean().item()
    index, weights = theory.neighbour_weights(similarity, 24, temperature=0.05)
    error = (theory.aggregate(hard, index, weights) - truth).square().mean().item()
    variance = (truth * (1 - truth)).mean(1)
    predicted = sum(theory.predicted_error(truth, index, weights, variance=variance, correlation=0.0))
    assert error == pytest.approx(predicted, rel=0.15)
    assert error < 0.15 * own
    for k in (1, 24, 300):
        chosen = theory.neighbour_weights(similarity, k, temperature=0.05, labels=labels)
        torch.testing.assert_close(theory.aggregate(hard, *chosen), hard, rtol=1e-12, atol=1e-12)


@pytest.fixture
def toy():
    generator = torch.Generator().manual_seed(0)
    x, labels, log_posterior = theory.mixture(300, generator=generator)
    teachers = theory.toy_teachers(
        x, labels, log_posterior, draws=20, sigma=0.8, correlation=0.6, length=4.0, memory=0.9, generator=generator
    )
    return x, labels, log_posterior, teachers


def test_toy_teachers_have_the_stated_errors(toy):
    _, labels, log_posterior, teachers = toy
    assert list(teachers) == ["independent errors", "correlated errors", "memorised labels"]
    for name in ("independent errors", "correlated errors"):
        teacher = teachers[name]
        assert teacher.values.shape == (300, 60) and teacher.values is teacher.logits and not teacher.errs_by_label
        error = teacher.values - log_posterior.repeat(1, 20)
        assert error.square().mean().item() == pytest.approx(teacher.variance, rel=0.2)
        assert teacher.variance == pytest.approx(0.64)
    memorised = teachers["memorised labels"]
    assert memorised.errs_by_label
    torch.testing.assert_close(memorised.logits.exp(), memorised.values)
    torch.testing.assert_close(memorised.values.sum(1), torch.ones(300, dtype=torch.float64))
    assert (memorised.values.gather(1, labels[:, None]) >= 0.9).all()
    error = (memorised.values - memorised.truth).square().mean().item()
    assert error == pytest.approx(memorised.variance.mean().item(), rel=0.2)


def test_aggregation_errors_equal_direct_computation_and_no_prediction_is_made_for_memorised_labels(toy):
    x, labels, _, teachers = toy
    similarity = theory.gaussian_similarity(x, width=1.0)
    rows = theory.aggregation_errors(
        teachers, similarity, labels, sizes=[1, 8], temperatures={"equal": math.inf, "weighted": 0.05}
    )
    assert len(rows) == 2 * 2 * 2 * 3
    assert len({tuple(row[key] for key in ("teacher", "weighting", "neighbours", "k")) for row in rows}) == len(rows)
    for found in rows:
        given = None if found["neighbours"] == "all classes" else labels
        temperature = math.inf if found["weighting"] == "equal" else 0.05
        near = theory.neighbour_weights(similarity, found["k"], temperature=temperature, labels=given)
        teacher = teachers[found["teacher"]]
        truth = teacher.truth.repeat(1, teacher.values.shape[1] // 3)
        error = (theory.aggregate(teacher.values, *near) - truth).square().mean()
        assert found["measured"] == pytest.approx((error / (teacher.values - truth).square().mean()).item())
        if found["teacher"] == "memorised labels" and given is not None:
            assert found["predicted"] is None
        else:
            variance, correlation = teacher.variance, teacher.correlation
            predicted = theory.predicted_error(teacher.truth, *near, variance=variance, correlation=correlation)
            scale = torch.as_tensor(variance).mean().item()
            assert found["predicted"] == pytest.approx(sum(predicted) / scale)
            assert found["bias"] == pytest.approx(predicted[1] / scale)
    smallest = theory.smallest_errors(rows)
    assert len(smallest) == 6
    chosen = [
        row["measured"] for row in rows if row["teacher"] == "correlated errors" and row["neighbours"] == "same label"
    ]
    assert smallest["correlated errors, same label"] == min(chosen)


def test_divergences_are_kl_from_the_posterior_to_the_averaged_logits(toy):
    x, labels, log_posterior, teachers = toy
    near = {
        "same label": theory.neighbour_weights(
            theory.gaussian_similarity(x, width=1.0), 4, temperature=0.05, labels=labels
        )
    }
    found = theory.divergences(teachers, near, log_posterior)
    for name, teacher in teachers.items():
        for kind, logits in {
            "own target": teacher.logits,
            "same label": theory.aggregate(teacher.logits, *near["same label"]),
        }.items():
            parts = [
                F.kl_div(part.log_softmax(1), log_posterior, log_target=True, reduction="batchmean").item()
                for part in logits.split(3, dim=1)
            ]
            assert found[name][kind] == pytest.approx(sum(parts) / len(parts))
    table = theory.divergence_table(found, k=4).splitlines()
    assert "k = 4" in table[0] and table[2] == "| teacher | own target | same label |"
    assert len(table) == 4 + len(teachers) and len({line.count("|") for line in table[2:]}) == 1


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_at_the_break_even_error_the_aggregate_is_as_good_as_the_own_target(toy, correlation):
    x, _, log_posterior, _ = toy
    near = theory.neighbour_weights(theory.gaussian_similarity(x, width=1.0), 8, temperature=0.05)
    sigma = theory.break_even(log_posterior, *near, correlation=correlation)
    error = sum(theory.predicted_error(log_posterior, *near, variance=sigma**2, correlation=correlation))
    assert error == pytest.approx(sigma**2)
