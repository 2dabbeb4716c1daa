"""Comparisons of predictors, and of classes in logit space, agree with loops."""

import pytest
import torch

from ickd_lib.explore import class_structure, predictors
from ickd_lib.memory import MemoryBank


@pytest.fixture
def case():
    """Logits of two predictors for four samples of three classes. The teacher errs on samples 1 and 2."""
    labels = torch.tensor([0, 1, 2, 2])
    teacher = torch.tensor([[3.0, 0, 0], [2, 1, 0], [0, 2, 1], [0, 0, 3]])
    other = torch.tensor([[0.0, 1, 0], [0, 3, 0], [0, 4, 0], [0, 0, 1]])
    return {"teacher": teacher, "other": other}, labels


def test_scores_are_accuracy_and_mean_probability(case):
    logits, labels = case
    found = predictors.predictor_scores(logits, labels, temperature=2.0)
    for name, z in logits.items():
        p = [(z[i] / 2).softmax(0)[labels[i]].item() for i in range(4)]
        assert found[name]["true_class"] == pytest.approx(sum(p) / 4)
    assert found["teacher"]["accuracy"] == 0.5 and found["other"]["accuracy"] == 0.5


def test_changes_count_corrected_and_broken_predictions(case):
    found = predictors.changes(*case)
    assert found == {"errors": 2, "correct": 2, "other": {"corrected": 1, "broken": 1}}


def test_notable_queries_have_the_largest_changes_and_the_most_probable_error(case):
    logits, labels = case
    found = predictors.notable_queries(logits["teacher"], logits["other"], logits["other"], labels, temperature=1.0)
    assert list(found.values()) == [1, 0, 2]  # sample 2 is an error with a higher probability than sample 0
    assert "error with the highest probability" in list(found)[2]


def test_without_errors_the_least_probable_prediction_is_chosen():
    labels = torch.tensor([0, 1])
    student = torch.tensor([[1.0, 0.9], [0.0, 5.0]])
    found = predictors.notable_queries(student, student, student, labels, temperature=1.0)
    assert list(found)[2].endswith("(it makes no error)") and list(found.values())[2] == 0


def test_negative_classes_are_shares_of_each_classs_negatives():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    bank = MemoryBank(features, torch.zeros(9, 3), labels, torch.arange(9), ("a", "b", "c"))
    queries = torch.tensor([0, 1, 1])
    _, far = bank.retrieve(features[:3], queries, positives=1, negatives=5)
    found = predictors.negative_classes(bank, far, queries)
    for c in (0, 1):
        taken = [int(labels[row]) for i, rows in enumerate(far.index.tolist()) if queries[i] == c for row in rows]
        assert found[c].tolist() == pytest.approx([taken.count(d) / len(taken) for d in range(3)])
        assert found[c, c] == 0
    assert found[2].sum() == 0  # there is no query of this class
    taken = [(int(queries[i]), int(labels[row])) for i, rows in enumerate(far.index.tolist()) for row in rows]
    same = [c == d or {c, d} == {0, 2} for c, d in taken]  # classes a and c have one superclass
    assert predictors.own_superclass_share(bank, far, queries, [0, 1, 0]) == pytest.approx(sum(same) / len(same))


def test_class_correlation_is_the_mean_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    found = class_structure.class_correlation(logits, labels, 3)
    pairs = torch.corrcoef(logits.double())
    for c in range(3):
        for d in range(3):
            mean = pairs[labels == c][:, labels == d].mean()
            assert found[c, d].item() == pytest.approx(mean.item(), abs=1e-12)


def test_correlation_numbers_separate_the_diagonal():
    base, other = torch.tensor([[0.8, 0.1], [0.1, 0.6]]), torch.tensor([[0.9, 0.3], [0.3, 0.9]])
    found = class_structure.correlation_numbers({"teacher": base, "student": other})
    assert found["teacher"] == pytest.approx({"own": 0.7, "others": 0.1, "distance": 0.0})
    assert found["student"] == pytest.approx({"own": 0.9, "others": 0.3, "distance": 0.2})
