"""The sentences that numbers choose, in each of their cases."""

import math

import pytest
import torch

from ickd_lib.explore import reports


def test_mean_std_gives_a_spread_only_for_several_values():
    assert reports.mean_std([1.0]) == "1.00"
    assert reports.mean_std([1.0, 3.0]) == "2.00 ± 1.41"
    assert reports.mean_std([-1.0, -3.0], "+.1f") == "-2.0 ± 1.4"


@pytest.mark.parametrize(("train", "part"), [(0.9, "10.0 points above"), (0.7, "10.0 points below")])
def test_precision_sentences_state_the_direction_of_the_gap(train, part):
    found = {"train": train, "test": 0.8}
    text = reports.precision_sentences(found, k=8, chance=0.1, train="train", held_out="test")
    assert part in text and "(train)" in text and "10.0%" in text


def test_class_extremes_leave_out_classes_without_a_value():
    text = reports.class_extremes({"a": 0.5, "b": math.nan, "c": 0.9})
    assert text == "Class **a** has the lowest precision, 50.0%, and class **c** has the highest, 90.0%."


def test_equal_weights_are_named_as_such():
    given = {"positives": 8, "temperature": 0.05, "spread": 0.01}
    assert "plain mean" in reports.effective_positives(7.9, **given)
    assert "plain mean" not in reports.effective_positives(3.0, **given)


@pytest.mark.parametrize(("train", "part"), [(0.9, "is higher than that"), (0.8, "is not higher than that")])
def test_takeaways_of_a_bank(train, part):
    text = reports.bank_takeaways(
        {"rows": 1000, "megabytes": 1.5, "build_seconds": 2.0},
        {"train": train, "test": 0.8, "pixels": 0.4},
        {"search, one query": [9.0], "search, batch of 4": [0.002], "table, batch of 4": [0.0001]},
        k=8,
        chance=0.1,
        train="train",
        held_out="test",
        pixels="pixels",
        other_nearer=0.05,
        largest=64000,
    )
    assert part in text and "2.000 ms" in text and "0.1000 ms" in text and text.count("\n") == 3


def test_tables_of_predictors():
    scores = {"teacher": {"accuracy": 0.9, "true_class": 0.8}}
    assert reports.score_table(scores).endswith("| teacher | 90.0% | 0.800 |")
    found = {"errors": 10, "correct": 90, "student": {"corrected": 3, "broken": 4}}
    table = reports.change_table(found)
    assert "teacher's 10 errors" in table and table.endswith("| student | 3 | 4 |")
    rows = {"training images": {"own": 0.9, "other": 0.5, "other_nearer": 0.01}}
    assert reports.similarity_table(rows).endswith("| training images | 0.900 | 0.500 | 1.00% |")


def test_a_query_is_described_with_the_most_frequent_class_of_its_negatives():
    text = reports.query_sentence(
        "An error",
        {"teacher": torch.tensor([0.2, 0.8]), "student": torch.tensor([0.7, 0.3])},
        torch.tensor([0, 0, 1]),
        ("cat", "dog"),
        row=12,
        label=1,
    )
    assert "row 12 of class dog" in text and "teacher dog (0.80), student cat (0.70)" in text
    assert "3 negatives, 2 are of class cat" in text


def test_the_table_of_negatives_is_sorted_by_share():
    share = torch.tensor([[0, 0.6, 0.4], [0.1, 0, 0.9], [0.5, 0.5, 0]])
    lines = reports.negative_table(share, ("a", "b", "c"), most=2).splitlines()
    assert "50.0%" in lines[0] and lines[-2:] == ["| b | c | 90% |", "| a | b | 60% |"]


def test_takeaways_of_predictions_state_both_signs():
    scores = {name: {"accuracy": a} for name, a in {"teacher": 0.9, "same": 1.0, "any": 0.88}.items()}
    found = {"errors": 10, "correct": 90, "same": {}, "any": {"corrected": 1, "broken": 3}}
    gain, share = torch.tensor([0.1, -0.3]), torch.tensor([[0, 0.6, 0.4], [0.2, 0, 0.8], [0, 0, 0]])
    text = reports.prediction_takeaways(scores, found, gain, share, same="same", free="any")
    assert "+12.0 points" in text and "-2.0 points" in text and "0.30" in text and "70%" in text


def separation(ratio, silhouette):
    return {"ratio": ratio, "silhouette": silhouette, "margin": ratio}


def test_the_table_of_separation_pairs_the_seeds():
    accuracy = {"ce": [0.5, 0.7], "kd": [0.6, 0.8]}
    found = {"ce": separation([1.0, 2.0], [0.1, 0.2]), "kd": separation([2.0, 3.5], [0.1, 0.2])}
    table = reports.separation_table(accuracy, found, methods=["ce", "kd"], baseline="ce")
    assert table.splitlines()[-1] == "| kd | +10.0 ± 0.0 | +1.250 ± 0.354 | +0.000 ± 0.000 | +1.250 ± 0.354 |"
    assert "| ce |" not in table


@pytest.mark.parametrize(
    ("silhouette", "accuracy", "texts"),
    [
        (0.9, 0.9, ["It also has the largest silhouette", "It also has the largest ratio and"]),
        (0.1, 0.9, ["`ce` has the largest silhouette", "It has the largest ratio, but not"]),
        (0.9, 0.1, ["It also has the largest silhouette", "has neither"]),
    ],
)
def test_takeaways_of_separation(silhouette, accuracy, texts):
    found = {
        "teacher": separation([4.0], [0.8]),
        "ce": separation([1.0], [0.5]),
        "ickd": separation([2.0], [silhouette]),
    }
    correlation = {"ce": {"distance": 0.2}, "ickd": {"distance": 0.1}}
    scores = {"ce": [0.5], "ickd": [accuracy]}
    text = reports.separation_takeaways(scores, found, correlation, methods=["ce", "ickd"])
    assert all(part in text for part in texts)
    assert "`ickd` has the largest ratio" in text and "one seed" in text and "0.100" in text
    twice = {name: {key: 2 * values for key, values in of.items()} for name, of in found.items()}
    text = reports.separation_takeaways(
        {k: 2 * v for k, v in scores.items()}, twice, correlation, methods=["ce", "ickd"]
    )
    assert "over 2 seeds" in text and "one seed" not in text
