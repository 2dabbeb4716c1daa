"""The shares of samples, and the reports on them, agree with loops and with hand-made rows."""

import math

import pytest
import torch
from test_theory import Small, draw

from ickd_lib import theory


@pytest.fixture
def network():
    return Small()


@pytest.fixture
def images():
    return draw(7, 3, 4, 4, seed=1)


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
        "−3.0 ± 5.0",
        "+7.0 ± 20.0",
        "independent errors, all classes 0.15",
    ):
        assert number in text
    assert "8 nearest of 250" in theory.headline(rows, k=8, samples=250)
