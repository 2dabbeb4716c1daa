"""The error of aggregated targets agrees with loops and Monte Carlo, on data with a known posterior."""

import math

import pytest
import torch
from test_theory import draw
from torch.nn import functional as F

from ickd_lib import theory
from ickd_lib.runtime import InputError


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
