"""The explorer of contributions displays what `Attributor` computes."""

import dataclasses
import re

import pytest
import torch

from ickd_lib import explore, training
from ickd_lib.data import Images
from ickd_lib.runtime import InputError
from ickd_lib.training import KeepWeights, Recipe, Student
from ickd_lib.widgets import AttributionExplorer


@pytest.fixture(scope="module")
def attributor(digits, teacher, bank, tmp_path_factory):
    (history,) = training.distill(
        [Student("resnet8", "ickd(nicd=2.0, positives=4, negatives=16)")],
        digits,
        teacher=teacher,
        bank=bank,
        recipe=Recipe(epochs=4, lr=0.05, schedule="cosine", batch_size=30),
        device="cpu",
        precision="fp32",
        progress=False,
        runs=tmp_path_factory.mktemp("runs"),
        callbacks=[KeepWeights(2)],
    ).values()
    return explore.Attributor(history.folder, history.network, digits.train, bank=bank)


@pytest.fixture
def queries(digits) -> Images:
    return digits.test.subset(torch.arange(40))


@pytest.fixture
def explorer(attributor, queries):
    return AttributionExplorer(attributor, queries)


def tell(explorer, event, key="", **more):
    explorer.view._receive(None, {"event": event, "key": str(key), **more}, [])


def test_the_page_shows_the_contributions(explorer, attributor, queries, digits):
    assert explorer.error == ""
    crumbs, top, up, down, positives, negatives = explorer.view._last[0]
    table = top["blocks"][2]
    found = attributor.attribute(attributor.outputs(queries), 0)
    classes, name = digits.train.classes, digits.train.classes[found.label]
    assert [item["text"] for item in crumbs["items"]] == [
        f"test row {int(queries.index[0])}, {classes[queries.labels[0]]}"
    ]
    order = found.total.argsort(descending=True)
    for block, title, chosen in ((up, "raised", order), (down, "lowered", order.flip(0))):
        assert block["title"] == f"{title} the margin of {name}" and len(block["tiles"]) == 16
        for shown, at in zip(block["tiles"], chosen.tolist(), strict=False):
            assert shown["key"] == int(found.keys[at])
            assert shown["lines"] == [classes[digits.train.labels[at]], f"{float(found.total[at]):+.2g}"]
            assert shown["label"].endswith(f"row {shown['key']}")
    for block, role in ((positives, "positive"), (negatives, "negative")):
        strongest = found.rows[found.roles[role].abs().argsort(descending=True)[:8]]
        assert [shown["key"] for shown in block["tiles"]] == strongest.tolist() and role in block["title"]
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert list(rows)[:5] == ["CE", "KD", "PICD", "NICD", "ALL TERMS"] and len(rows) == 8
    for term, values in found.terms.items():
        up, down, total = (float(text) for text in rows[term.upper()][:3])
        assert up == pytest.approx(float(values.clamp(min=0).sum()), abs=6e-3) and down <= 0 <= up
        assert total == pytest.approx(float(values.sum()), abs=6e-3)
        assert rows[term.upper()][3] == f"{int((values > 0).sum())} of 120"
    assert f"{found.margin:+.2f}" in table["title"]
    verdicts = top["blocks"][0]["blocks"][1]["items"]
    assert verdicts[0]["name"] == name


def test_queries_are_chosen_and_other_classes_explained(explorer, queries, digits):
    explorer.mistake.click()
    at = explorer.current[1]
    assert explorer.error == "" and explorer._last_logits("queries")[at].argmax() != queries.labels[at]
    explorer.of_class.value = 3
    assert int(queries.labels[explorer.current[1]]) == 3
    explorer.of_class.value = -1
    explorer.search.value = "student:right"
    at = explorer.current[1]
    assert explorer._last_logits("queries")[at].argmax() == queries.labels[at]
    explorer.search.value = "nothing like that"
    assert "no image matches" in explorer.error
    explorer.search.value = ""
    explorer.random.click()
    explorer.following.click()
    assert explorer.error == ""
    explorer.number.value = int(queries.index[7])
    assert explorer.current == ("queries", 7)
    missing = int(queries.index[7]) + 1
    while missing in queries.index.tolist():
        missing += 1
    if missing < int(queries.index.max()):
        explorer.number.value = missing
        shown = int(queries.index[explorer.current[1]])
        assert shown == min(row for row in queries.index.tolist() if row > missing), "the arrow goes on"
    explorer.number.value = int(queries.index[7])
    explorer.explained.value = 2
    assert explorer.found.label == 2 and explorer.view._last[0][2]["title"] == "raised the margin of 2"
    before = [tile["key"] for tile in explorer.view._last[0][2]["tiles"]]
    explorer.roles.value = True
    order = explorer.found.with_roles().argsort(descending=True)[:16]
    after = [tile["key"] for tile in explorer.view._last[0][2]["tiles"]]
    assert after == explorer.found.keys[order].tolist() and after != before


def test_a_click_opens_a_training_sample(explorer, digits):
    key = explorer.view._last[0][2]["tiles"][1]["key"]
    tell(explorer, "open", key)
    assert explorer.current[0] == "train" and int(digits.train.index[explorer.current[1]]) == key
    assert [item["key"] for item in explorer.view._last[0][0]["items"]] == [0, 1] and not explorer.back.disabled
    tell(explorer, "crumb", 0)
    assert explorer.current == ("queries", 0) and explorer.back.disabled
    tell(explorer, "open", key)
    explorer.back.click()
    assert explorer.current == ("queries", 0) and explorer.error == ""


def test_a_picture_stands_beside_it_in_both_themes(explorer):
    light = explorer.png()
    tell(explorer, "theme", dark=True)
    dark = explorer.png()
    assert light.startswith(b"\x89PNG") and light != dark and explorer.error == ""


def test_a_picture_has_only_samples_of_the_sign_that_its_titles_state(explorer):
    terms = {name: one.abs() for name, one in explorer.found.terms.items()}
    terms["ce"][:3] = -100
    explorer.found = dataclasses.replace(explorer.found, terms=terms)
    (figure,) = explorer.figures()
    texts = [text.get_text() for text in figure.axes[0].texts]
    up, down = (next(i for i, text in enumerate(texts) if text.startswith(word)) for word in ("raised", "lowered"))
    end = next(i for i, text in enumerate(texts) if text.startswith("as "))
    signs = ["".join(text.partition("\n")[2][:1] for text in texts[a + 1 : b]) for a, b in ((up, down), (down, end))]
    assert signs == ["++++++++", "---"]


def test_methods_without_in_context_terms_and_queries_that_do_not_fit(attributor, digits, teacher, tmp_path):
    wrong = digits.test.subset(torch.arange(3))
    wide = Images(**{**vars(wrong), "images": torch.zeros(3, 3, 16, 16, dtype=torch.uint8)})
    with pytest.raises(InputError, match="must have the same classes and size"):
        AttributionExplorer(attributor, wide)
    (history,) = training.distill(
        [Student("resnet8", "ce")], digits, recipe=Recipe(epochs=1), progress=False, device="cpu", runs=tmp_path
    ).values()
    plain = explore.Attributor(history.folder, history.network, digits.train, checkpoints="last")
    explorer = AttributionExplorer(plain)
    assert explorer.error == "" and explorer.roles.disabled and len(explorer.view._last[0]) == 4
    assert [row[0] for row in explorer.view._last[0][1]["blocks"][2]["rows"]] == ["CE", "ALL TERMS"]
    assert re.search(r"digits|train row", explorer.view._last[0][0]["items"][0]["text"])
    assert explorer.png().startswith(b"\x89PNG")
