"""The explorer: it shows what is asked for, says what went wrong, and leaves no figure open."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch

from ickd_lib import data, models, plots, runtime, widgets
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError


@pytest.fixture(scope="module")
def parts():
    plt.switch_backend("Agg")
    splits = data.load("digits", labels=100)
    with runtime.seeded("explorer"):
        teacher, student = (models.create("resnet8", **splits.train.spec).eval() for _ in range(2))
    return splits, teacher, student, MemoryBank.build(teacher, splits.train)


@pytest.fixture
def explorer(parts):
    splits, teacher, student, bank = parts
    queries = splits.test.subset(torch.arange(40))
    return widgets.explore(bank, splits.train, queries=queries, student=student, teacher=teacher, negatives=2)


def test_twenty_touches_leave_no_figure_open(explorer):
    plt.close("all")
    before = [bytes(picture.value) for picture in explorer.pictures]
    for touch in range(20):
        if touch % 4 == 0:
            explorer.surprise.click()
        elif touch % 4 == 1:
            explorer.mistake.click()
        elif touch % 4 == 2:
            explorer.k.value = 2 + touch % 5
        else:
            explorer.aggregation.value = 10 ** -(1 + touch / 20)
    assert plt.get_fignums() == []
    assert explorer.message.value == ""
    after = [bytes(picture.value) for picture in explorer.pictures]
    assert all(picture.startswith(b"\x89PNG") for picture in after)
    assert before[0] != after[0] and before[1] != after[1]


def test_next_mistake_goes_through_all_mistakes_and_round(explorer):
    wrong = (explorer.student.argmax(1) != explorer.queries.labels).nonzero().squeeze(1).tolist()
    explorer.show = lambda _=None: None  # only the order matters here
    explorer.number.unobserve_all()
    explorer.number.value = 0
    visited = []
    for _ in range(len(wrong) + 1):
        explorer.mistake.click()
        visited.append(explorer.number.value)
    start = [i for i in wrong if i > 0]
    assert visited[: len(start)] == start
    assert set(visited) == set(wrong)


def test_what_goes_wrong_is_shown_and_goes_away(explorer):
    explorer.k.value = 30  # ten images a class
    assert "30 positives were asked for" in explorer.message.value and "&#x27;" in explorer.message.value
    explorer.k.value = 3
    assert explorer.message.value == ""


def test_a_bug_is_shown_too(explorer, monkeypatch):
    def broken(*_, **__):
        plt.figure()  # drawn half
        raise RuntimeError("<no> picture")

    monkeypatch.setattr(plots, "neighbours", broken)
    open_before = plt.get_fignums()
    explorer.k.value = 5
    assert plt.get_fignums() == open_before
    assert "RuntimeError: &lt;no&gt; picture" in explorer.message.value


def test_rows_of_the_bank_are_queries_without_a_teacher_and_never_find_themselves(parts, monkeypatch):
    splits, _, _, bank = parts
    seen = []
    draw = plots.neighbours
    monkeypatch.setattr(plots, "neighbours", lambda *a, **k: seen.append((a[1], a[3].index)) or draw(*a, **k))
    explorer = widgets.explore(bank, splits.train)
    assert explorer.message.value == "" and explorer.mistake.disabled
    row, found = seen[0]
    assert row == int(splits.train.index[0]) and row not in found.tolist()[0]
    with pytest.raises(InputError, match="teacher"):
        widgets.explore(bank, splits.train, queries=splits.test)
