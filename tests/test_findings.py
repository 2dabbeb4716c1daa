"""Comparisons over seeds as tables and sentences: the numbers in the texts are those of the scores."""

import pytest

from ickd_lib.runs import findings, interval
from ickd_lib.runs.new_classes import few_shot_summary, new_classes_summary

SCORES = {"ce": [0.90, 0.91, 0.92], "kd": [0.93, 0.94, 0.95], "rkd": [0.88, 0.93, 0.90], "at": [0.85, 0.861, 0.87]}


def test_differences_are_those_of_interval():
    found = findings.versus(SCORES, "ce")
    assert list(found) == ["kd", "rkd", "at"]
    assert found["kd"] == interval(SCORES["kd"], SCORES["ce"])
    assert findings.versus({"ce": [0.9], "kd": [0.8]}, "ce") == {}


def test_percent_and_points():
    assert findings.percent([0.5, 0.6]) == "55.0 ± 7.1%"
    assert findings.percent([0.5]) == "50.0%"
    assert findings.points(-0.0123) == "−1.2" and findings.points(0.0123, 2) == "+1.23"
    assert findings.count(1, "seed") == "1 seed" and findings.count(0, "seed") == "0 seeds"


def test_a_contrast_table_subtracts_the_others():
    heading, _, *rows = findings.contrast_table(SCORES, "kd").splitlines()
    assert heading == "| `kd` minus | difference, points | 95% interval |"
    assert len(rows) == 3 and rows[0].startswith("| `ce` | +3.00 | +3.00 to +3.00 |")
    assert "2 or more" in findings.contrast_table({"ce": [0.9], "kd": [0.8]}, "kd")


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [("kd", "at", "excludes 0, so `kd` is better"), ("at", "kd", "so `at` is worse"), ("rkd", "ce", "includes 0")],
)
def test_a_contrast_states_whether_the_interval_excludes_zero(ours, other, verdict):
    assert verdict in findings.contrast(SCORES, ours, other)


def test_a_contrast_of_single_seeds_has_no_interval():
    text = findings.contrast({"ce": [0.9], "kd": [0.912]}, "kd", "ce")
    assert text == "`kd` minus `ce`: +1.2 points with a single seed, which gives no interval."


def test_a_summary_names_what_is_established():
    text = findings.summary(SCORES, "ce")
    best, above, below, rest = text.splitlines()
    assert "94.0 ± 1.0%, that of `kd`" in best and "91.0 ± 1.0%" in best and "3 seeds" in best
    assert above == "- Better than `ce`, the 95% interval of the difference is above 0: `kd` (+3.0)."
    assert below == "- Worse than `ce`, the 95% interval of the difference is below 0: `at` (−5.0)."
    assert rest == (
        "- For 1 of 3 methods, the interval of the difference to `ce` includes 0. If all methods were equal, 0.1 of 3 "
        "intervals would exclude 0 on average."
    )
    many = {"ce": SCORES["ce"]} | {str(i): SCORES["kd"] for i in range(50)}
    assert "2.5 of 50 intervals" in findings.summary(many, "ce"), "one in twenty 95% intervals"
    assert "Repeat" not in text
    two = {name: values[:2] for name, values in SCORES.items()}
    assert findings.summary(two, "ce").endswith("Repeat the run with more seeds before you rely on it.")
    assert "`kd` reaches" not in findings.summary(SCORES, "kd")
    assert "single seed" in findings.summary({"ce": [0.9], "kd": [0.8]}, "ce")


def test_headlines():
    assert findings.headline({"ce": [0.9, 0.8]}) == "accuracy in percent, 2 seeds: ce 85.0"
    assert findings.headline_against(SCORES, "ce") == (
        "3 seeds, 4 methods: best kd 94.0%, ce 91.0%; interval above 0 for kd"
    )
    assert findings.headline_against({"ce": [0.9], "kd": [0.95]}, "ce") == "1 seed, 2 methods: best kd 95.0%, ce 90.0%"


def test_costs_are_sorted_and_relative():
    seconds = {"kd": 0.02, "ce": 0.01, "crd": 0.025}
    rows = findings.cost_table(SCORES | {"crd": [0.9, 0.9, 0.9]}, seconds).splitlines()[2:]
    assert rows[0] == "| `ce` | 91.00 ± 1.00 | 10.0 | 1.00× |"
    assert [row.split("`")[1] for row in rows[:2]] == ["ce", "kd"]
    text = findings.cost_summary(seconds)
    assert "`crd`, takes 2.5 times" in text and "A step of `kd`" in text and "2.0 times" in text
    assert "A step of" not in findings.cost_summary({"ce": 0.01, "kd": 0.02})


def test_steps_of_new_classes_are_summarised():
    found = {
        0: {"ce": {"old": [0.0, 0.0], "all": [0.4, 0.5]}, "kd": {"old": [0.1, 0.3], "all": [0.5, 0.5]}},
        5: {"ce": {"old": [0.7, 0.9], "all": [0.8, 0.8]}, "kd": {"old": [0.8, 0.8], "all": [0.7, 0.8]}},
    }
    none, five, change = new_classes_summary(found).splitlines()
    assert none.startswith("- With 0 exemplars of each old class: `ce` reaches 0.0 ± 0.0% on the old classes")
    assert "`kd` reaches 80.0 ± 0.0% on the old classes and 75.0 ± 7.1% on all." in five
    assert "+25.0 to +35.0 points" in change
    assert "5.0 points apart, with 0 they are 5.0 points apart" in change
    assert len(new_classes_summary({0: found[0]}).splitlines()) == 1


def test_few_shot_results_are_compared_by_their_intervals():
    found = {
        "teacher": {1: {"ncm": 0.5, "ncm_interval": 0.02}, 5: {"ncm": 0.6, "ncm_interval": 0.02}},
        "pixels": {1: {"ncm": 0.53, "ncm_interval": 0.02}, 5: {"ncm": 0.7, "ncm_interval": 0.02}},
    }
    one, five = few_shot_summary(found).splitlines()
    assert "1 labelled image " in one and one.endswith("overlap, so no difference is established.")
    assert "60.0 ± 2.0%" in five and "70.0 ± 2.0%" in five and five.endswith("do not overlap.")
