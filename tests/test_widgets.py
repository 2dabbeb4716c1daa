"""Views, explorers and the neighbour explorer, which displays what the library computes."""

import base64
import copy
import gc
import html
import io
import json
import re
import tracemalloc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import ipywidgets as ipw
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from work import Work

from ickd_lib import explore, methods, models, plots, runtime, training
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Output
from ickd_lib.runtime import InputError
from ickd_lib.widgets import Explorer, NeighbourExplorer, View, view
from ickd_lib.widgets.view import strip

PNG = b"\x89PNG\r\n\x1a\n"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True, scope="module")
def no_window():
    plt.switch_backend("Agg")


@pytest.fixture
def sent(monkeypatch):
    """The messages that views send, in order: (view, content, buffers)."""
    messages = []
    monkeypatch.setattr(View, "send", lambda self, content, buffers=None: messages.append((self, content, buffers)))
    return messages


def tell(view, event, key="", **more):
    view._receive(None, {"event": event, "key": str(key), **more}, [])


# ------------------------------------------------------------------------------------------------------ view


def test_a_view_sends_what_it_shows_and_repeats_it_for_a_fresh_page_only(sent):
    events = []
    view = View(lambda *event: events.append((*event, view.dark)), waiting="soon")
    tell(view, "ready", dark=False, fresh=True)
    assert sent == [] and view.waiting == "soon"  # nothing to show yet
    one, two = {"kind": "text", "text": "one"}, {"kind": "text", "text": "two"}
    view.show(one, two, data=b"abc")
    assert sent == [(view, {"blocks": [one, two]}, [b"abc"])]
    tell(view, "ready", dark=True, fresh=False)
    assert len(sent) == 1 and view.dark
    tell(view, "ready", dark=False, fresh=True)
    assert len(sent) == 2 and sent[1] == sent[0] and not view.dark
    tell(view, "theme", dark=True)
    tell(view, "open", 12)
    assert len(sent) == 2  # none of these needs an answer
    assert events == [
        ("ready", "", False),
        ("ready", "", True),
        ("ready", "", False),
        ("theme", "", True),
        ("open", "12", True),
    ]


def test_a_view_without_a_callback_receives_events(sent):
    view = View()
    tell(view, "theme", dark=True)
    tell(view, "open", 3)
    assert view.dark


def test_save_sends_the_bytes(sent):
    view = View()
    view.save("a.csv", b"1,2\n", "text/csv")
    view.save("b.bin", b"\x00\x01")
    assert sent == [
        (view, {"save": "a.csv", "type": "text/csv"}, [b"1,2\n"]),
        (view, {"save": "b.bin", "type": "application/octet-stream"}, [b"\x00\x01"]),
    ]
    assert view._last == ([], b"")  # what is shown stays


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (5, 9)])
def test_a_strip_contains_the_bytes_of_the_images(size):
    images = torch.randint(256, (3, 3, *size), dtype=torch.uint8, generator=runtime.generator("strip"))
    bytes_, shape = strip(images.contiguous(memory_format=torch.channels_last))
    assert shape == (3, *size) and bytes_ == images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("size", "small"), [((128, 64), (64, 32)), ((100, 300), (21, 64)), ((65, 65), (64, 64)), ((1, 500), (1, 64))]
)
def test_a_strip_of_large_images_is_shrunk_in_proportion(size, small):
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    images[1, 0], images[1, 2, :, : size[1] // 2] = 250, 40
    bytes_, shape = strip(images)
    assert shape == (2, *small) and len(bytes_) == 2 * 3 * small[0] * small[1]
    pixels = np.frombuffer(bytes_, np.uint8).reshape(*shape, 3)
    assert not pixels[0].any() and (pixels[1, ..., 0] == 250).all() and not pixels[1, ..., 1].any()
    assert (pixels[1, :, 0, 2] == 40).all() and not pixels[1, :, -1, 2].any()


# -------------------------------------------------------------------------------------------------- explorer


class Plain(Explorer):
    broken = False

    def __init__(self):
        super().__init__([ipw.Button()], View())

    def figures(self):
        figures = [plt.figure(figsize=(4, 2)), plt.figure(figsize=(2, 1))]
        if self.broken:
            raise ValueError("no figure")
        return figures


def message(explorer):
    """The displayed message: (text, tone). The text is escaped, so it is never parsed as HTML."""
    if not explorer.message.value:
        return "", None
    role, text = re.fullmatch(r'<div role="(\w+)"[^>]*>([^<>]*)</div>', explorer.message.value).groups()
    return html.unescape(text), {"alert": "error", "status": None}[role]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("name <b>one</b> & two"), "name <b>one</b> & two"),
        (RuntimeError("<script>no</script>"), "RuntimeError: <script>no</script>"),
        (KeyError("k"), "KeyError: 'k'"),
    ],
)
def test_an_error_is_displayed_as_text_until_the_next_interaction(error, text):
    explorer, before = Plain(), plt.get_fignums()
    with explorer.guarded():
        plt.figure()  # drawn half
        raise error
    assert explorer.error == text and message(explorer) == (text, "error")
    assert plt.get_fignums() == before
    explorer.show_message("a remark")
    assert message(explorer) == (text, "error")  # never in the place of an error
    with explorer.guarded():
        assert explorer.error == "" and message(explorer) == ("", None)
        explorer.show_message("a remark")
    assert message(explorer) == ("a remark", None)
    with explorer.guarded():
        assert message(explorer) == ("", None)


def test_guarded_does_not_catch_interrupts_and_keeps_earlier_figures():
    figure, explorer = plt.figure(), Plain()
    with pytest.raises(KeyboardInterrupt), explorer.guarded():
        plt.figure()
        raise KeyboardInterrupt
    assert plt.get_fignums()[-1] == figure.number
    plt.close(figure)


def test_the_picture_is_the_figures_one_below_the_other():
    before = plt.get_fignums()
    png = Plain().png()
    assert png.startswith(PNG) and Image.open(io.BytesIO(png)).size == (360, 270)  # 90 dots an inch
    assert plt.get_fignums() == before
    with pytest.raises(TypeError, match="Explorer must define figures"):
        Explorer([], View()).png()


def displayed(explorer, monkeypatch) -> list:
    """The outputs of a cell that ends in the explorer."""
    outputs = []
    monkeypatch.setattr(view, "display", lambda data, **_: outputs.append(data))
    explorer._ipython_display_()
    return outputs


def test_the_first_figure_of_a_notebook_may_be_that_of_an_explorer():
    """In a notebook it switches matplotlib's interactive mode on, which displays the figures of later cells."""

    class First(Plain):
        def figures(self):
            plt.ion()
            return super().figures()

    plt.ioff()
    First().png()
    assert plt.isinteractive()
    plt.ioff()


def test_without_a_page_a_picture_is_displayed(monkeypatch):
    explorer, before = Plain(), plt.get_fignums()
    picture, _, bundle = displayed(explorer, monkeypatch)
    assert bundle[WIDGET]["model_id"] == explorer.model_id and explorer.error == ""
    assert base64.b64decode(picture["image/png"]) == explorer.png()
    explorer.broken = True
    (bundle,) = displayed(explorer, monkeypatch)
    assert WIDGET in bundle and "image/png" not in bundle
    assert "no figure" in explorer.error and plt.get_fignums() == before


def test_displaying_an_explorer_keeps_its_error(monkeypatch):
    """An error of its construction can still be read on the page."""
    explorer = Plain()
    with explorer.guarded():
        raise InputError("no such thing")
    displayed(explorer, monkeypatch)
    assert explorer.error == "no such thing" and message(explorer) == ("no such thing", "error")


# ------------------------------------------------------------------------------------- in-context samples


@pytest.fixture(scope="module")
def student(digits):
    """It misclassifies 71 of the 120 images, some of each class."""
    recipe = training.Recipe(epochs=3, lr=0.05, schedule="cosine", batch_size=30)
    students = [training.Student("resnet8", "ce", 8)]
    (history,) = training.distill(students, digits, recipe=recipe, device="cpu", progress=False).values()
    return history.network


@pytest.fixture
def explorer(bank, digits, student):
    return NeighbourExplorer(bank, digits.train, student=student)


@pytest.fixture
def outside(bank, digits, student, teacher):
    """Queries outside the bank, whose data-set rows are also those of other images in the bank."""
    queries = replace(digits.test.subset(torch.arange(40)), index=digits.train.index[:40])
    return NeighbourExplorer(bank, digits.train, student=student, queries=queries, teacher=teacher, method="picd")


@pytest.fixture(scope="module")
def many():
    """50,000 images of 100 classes, ten superclasses, a bank of them and a student."""
    g = runtime.generator("many")
    labels = torch.randint(100, (50_000,), generator=g)
    images = Images(
        torch.randint(256, (50_000, 3, 8, 8), generator=g, dtype=torch.uint8),
        labels,
        torch.arange(50_000),
        tuple(f"class{c}" for c in range(100)),
        (0.5,) * 3,
        (0.25,) * 3,
        1,
        True,
        "many/train",
        tuple(f"upper{s}" for s in range(10)),
        tuple(c % 10 for c in range(100)),
    )
    features = torch.randn(100, 256, generator=g)[labels] + 3 * torch.randn(50_000, 256, generator=g)
    bank = MemoryBank(features, torch.randn(50_000, 100, generator=g), labels, images.index, images.classes)
    with runtime.seeded("many"):
        return bank, images, models.create("resnet8", **images.spec).eval()


def page(explorer):
    """The blocks last shown, by name, and the pictures of the tiles."""
    assert explorer.error == ""
    (crumbs, answer, near, far), strip_ = explorer.view._last
    column, bars, *table = answer["blocks"]
    pictures, verdicts = column["blocks"]
    query = pictures["blocks"][0]
    pixels = np.frombuffer(strip_, np.uint8).reshape(*query["shape"], 3)
    path = [item["text"] for item in crumbs["items"]]
    around = {"query": query, "near": near, "far": far, "verdicts": verdicts["items"]}
    return SimpleNamespace(path=path, bars=bars, table=table, pixels=pixels, **around)


def visit(explorer, at):
    """Write the row of the query at a position into the control."""
    explorer.number.value = int(explorer.query_samples.keys[at])


def assert_shows(explorer, images, at, teacher, index=None):
    """The page displays the image at a position, and what the bank retrieves for the teacher's output."""
    shown, bank = page(explorer), explorer.bank
    label = images.labels[at : at + 1]
    k, tau = (explorer.positives.value, explorer.negatives.value), explorer.aggregation.value
    near, far = bank.retrieve(teacher.features, label, index, positives=k[0], negatives=k[1], allow_missing=True)
    weights = (near.similarity[0] / tau).softmax(0)
    classes, row = images.classes, int(images.index[at])
    (tile,) = shown.query["tiles"]
    assert tile["lines"] == [classes[int(label)], f"row {row}"] and "event" not in shown.query
    assert (shown.pixels[tile["at"]] == images.images[at].permute(1, 2, 0).numpy()).all()
    assert explorer.current == explorer.path[-1] and explorer.current[1] == at
    positions = {int(row): i for i, row in enumerate(explorer.images.index)}
    for block, found, tone in ((shown.near, near, "same"), (shown.far, far, "other")):
        assert block["tone"] == tone and block["event"] == "open"
        assert [tile["key"] for tile in block["tiles"]] == found.index[0, :20].tolist()
        for i, tile in enumerate(block["tiles"]):
            of = positions[int(found.index[0, i])]
            lines = [classes[int(explorer.images.labels[of])], f"cos {float(found.similarity[0, i]):.3f}"]
            assert tile["lines"] == lines + [f"w {w:.0%}" for w in weights[i : i + 1].tolist() if tone == "same"]
            assert f"row {tile['key']}" in tile["label"]
            assert (tile["lines"][0] == classes[int(label)]) == (tone == "same")
            assert (shown.pixels[tile["at"]] == explorer.images.images[of].permute(1, 2, 0).numpy()).all()
    torch.testing.assert_close(explorer.found.weights[0], weights)
    return shown


def own(explorer, at):
    """The teacher's output for an image of the bank, and its row."""
    index = explorer.images.index[at : at + 1]
    rows = explorer.bank.rows(index)
    return Output(explorer.bank.logits[rows], explorer.bank.features[rows]), index


@pytest.mark.parametrize("at", [0, 57, 119])
def test_it_shows_what_the_bank_retrieves_for_its_own_rows_and_excludes_these(explorer, at):
    visit(explorer, at)
    explorer.positives.value, explorer.negatives.value = 5, 11
    shown = assert_shows(explorer, explorer.images, at, *own(explorer, at))
    row = int(explorer.images.index[at])
    assert row not in [tile["key"] for tile in shown.near["tiles"] + shown.far["tiles"]]
    assert shown.path == [f"train row {row}, {explorer.images.classes[int(explorer.images.labels[at])]}"]


def test_it_shows_what_the_bank_retrieves_for_other_images(outside, teacher):
    for at in (0, 31):
        visit(outside, at)
        output = models.predict(teacher, outside.queries.subset(torch.tensor([at])))
        shown = assert_shows(outside, outside.queries, at, output)
        assert shown.path[0].startswith("test row ")
    key = page(outside).far["tiles"][0]["key"]
    tell(outside.view, "open", key)  # this one is the bank's own
    at = outside.images.index.tolist().index(key)
    assert outside.current == ("bank", at)
    assert_shows(outside, outside.images, at, *own(outside, at))


@pytest.mark.parametrize("shuffle", [True, False])
def test_images_may_stand_in_another_order_than_in_the_bank(bank, digits, shuffle):
    order = torch.randperm(120, generator=runtime.generator("order")) if shuffle else torch.arange(120)
    explorer = NeighbourExplorer(bank, digits.train.subset(order))
    assert_shows(explorer, explorer.images, 0, *own(explorer, 0))


def test_a_small_class_shows_what_it_has(bank, digits):
    keep = ((digits.train.labels != 3) | (torch.arange(120) < 40)).nonzero().squeeze(1)
    images, rows = digits.train.subset(keep), bank.rows(digits.train.index[keep])
    few = MemoryBank(bank.features[rows], bank.logits[rows], bank.labels[rows], bank.index[rows], bank.classes)
    count = int((images.labels == 3).sum())
    assert 1 < count < 8
    explorer = NeighbourExplorer(few, images)
    explorer.of_class.value = 3
    shown = page(explorer)
    assert len(shown.near["tiles"]) == count - 1 and "(8 requested)" in shown.near["title"]
    assert len(shown.far["tiles"]) == 20 and "requested" not in shown.far["title"]


def test_sliders_change_how_many_and_the_weights(explorer):
    before = page(explorer)
    assert (explorer.positives.value, explorer.negatives.value) == (8, 40)  # as many as ickd takes of 120 images
    assert (len(before.near["tiles"]), len(before.far["tiles"])) == (8, 20)
    assert before.far["title"] == "40 nearest of other classes, of which the first 20 can be displayed"
    explorer.positives.value = 3
    explorer.negatives.value = 20
    shown = assert_shows(explorer, explorer.images, 0, *own(explorer, 0))
    assert (len(shown.near["tiles"]), len(shown.far["tiles"])) == (3, 20)
    explorer.aggregation.value = 0.001
    sharp = assert_shows(explorer, explorer.images, 0, *own(explorer, 0))
    explorer.aggregation.value = 1.0
    flat = assert_shows(explorer, explorer.images, 0, *own(explorer, 0))
    first, last = (float(shown.near["tiles"][0]["lines"][2][2:-1]) for shown in (sharp, flat))
    assert first > last
    assert sharp.verdicts[1]["number"] != flat.verdicts[1]["number"]
    assert (explorer.positives.max, explorer.negatives.max) == (11, 108)  # twelve images a class


# ------------------------------------------------------------------------------------------------- choosing


def test_a_query_is_chosen_by_its_row_and_one_image_has_one_number(digits, bank, student):
    explorer = NeighbourExplorer(bank, digits.train, student=student)
    rows = sorted(digits.train.index[[50, 7, 91, 33]].tolist())
    for row in rows:
        explorer.number.value = row
        assert page(explorer).query["tiles"][0]["lines"][1] == f"row {row}" and message(explorer) == ("", None)
        assert int(explorer.images.index[explorer.current[1]]) == row
    missing = next(row for row in range(rows[0], rows[-1]) if row not in explorer.images.index)
    explorer.number.value = rows[0]
    explorer.number.value = missing  # the next one in the direction of the change
    reached = int(explorer.images.index[explorer.current[1]])
    assert reached == min(row for row in explorer.images.index.tolist() if row > missing) == explorer.number.value
    assert message(explorer)[0] == f"digits/train has no row {missing}; this is {reached}"


def test_a_class_a_search_and_next_go_through_what_matches(explorer):
    labels = explorer.images.labels.tolist()
    sevens = [i for i, label in enumerate(labels) if label == 7]
    explorer.of_class.value = 7
    assert explorer.current == ("bank", sevens[0]) and explorer.number.value == explorer.images.index[sevens[0]]
    assert message(explorer)[0] == f"match 1 of {len(sevens)}"
    visited = []
    for _ in sevens:
        explorer.following.click()
        visited.append(explorer.current[1])
    assert visited == sevens[1:] + sevens[:1]  # in order, and round
    explorer.of_class.value = -1
    assert explorer.current == ("bank", 0) and message(explorer) == ("", None)
    explorer.search.value = "row:" + str(int(explorer.images.index[33]))
    assert (
        explorer.current == ("bank", 33)
        and page(explorer).query["tiles"][0]["lines"][1] == f"row {int(explorer.images.index[33])}"
    )
    explorer.search.value = "zebra"
    assert explorer.error.startswith("no image matches 'zebra'") and explorer.current == ("bank", 33)
    explorer.search.value = "4"
    assert explorer.error == "" and labels[explorer.current[1]] == 4
    explorer.of_class.value = 5
    assert explorer.error.startswith("no image of class '5' matches '4'") and "\n" not in explorer.error


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_search_by_predicted_class(explorer, student, role):
    bank = explorer.bank
    logits = bank.logits if role == "teacher" else models.predict(student, explorer.images).logits
    expected = (logits.argmax(1) == 3).nonzero().squeeze(1).tolist()
    explorer.search.value = f"{role}:3"
    visited = [explorer.current[1]]
    for _ in expected[1:]:
        explorer.following.click()
        visited.append(explorer.current[1])
    assert visited == expected and len(expected) > 3


def test_a_search_of_other_images_evaluates_the_teacher(outside, teacher):
    logits = models.predict(teacher, outside.queries).logits
    outside.search.value = "teacher:3"
    assert outside.current == ("queries", int((logits.argmax(1) == 3).nonzero()[0]))


@pytest.mark.parametrize("text", ["WRONG", "Student:3", "TEACHER:3"])
def test_a_search_in_the_explorer_ignores_case_as_anywhere(explorer, text):
    explorer.search.value = text.lower()
    assert explorer.error == ""
    at = explorer.current
    explorer.search.value = ""
    explorer.search.value = text
    assert explorer.error == "" and explorer.current == at


def test_the_search_field_offers_classes_and_forms(explorer, outside):
    offered = explorer.search.words
    assert offered[:10] == list(explorer.images.classes) and "\n" not in explorer.search.help
    assert {"wrong", "teacher:wrong", "student:conf<0.5", "student!=teacher"} <= set(offered)
    teacher, student = (explorer._logits_of_all(role) for role in ("teacher", "student"))
    differ = teacher.argmax(1) != student.argmax(1)
    explorer.search.value = "student!=teacher teacher:wrong conf<0.5"
    wrong = teacher.argmax(1) != explorer.images.labels
    expected = (differ & wrong & (student.softmax(1).amax(1) < 0.5)).nonzero().squeeze(1).tolist()
    if expected:
        assert explorer.error == "" and explorer.current == ("bank", expected[0])
        assert explorer._matches(explorer.search.value) == expected
    explorer.search.value = "file:zero"
    assert "has no file names" in explorer.error


def test_an_image_of_ones_own_is_a_query(outside, explorer, teacher, student, tmp_path):
    picture = tmp_path / "three.png"
    pixels = outside.queries.images[5].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((24, 16), Image.Resampling.NEAREST).save(picture)
    outside.file.value = str(picture)
    assert outside.error == "" and outside.current == ("own", 0)
    shown = page(outside)
    assert shown.path == ["image three.png"] and shown.query["tiles"][0]["lines"] == ["label unknown", "three.png"]
    own = outside.sets["own"]
    assert own.images.images.shape == outside.images.images[:1].shape
    p = models.predict(teacher, own.images).logits.softmax(1)[0]
    teacher_chip, _, student_chip = shown.verdicts
    assert teacher_chip["name"] == outside.images.classes[int(p.argmax())] and teacher_chip["right"] is None
    assert student_chip["number"] == f"{float(models.predict(student, own.images).logits.softmax(1).max()):.3f}"
    assert {tile["lines"][0] for tile in shown.near["tiles"]} == {teacher_chip["name"]} and shown.table == []
    assert "the class that the teacher predicts" in shown.near["title"] and outside.png().startswith(PNG)
    tell(outside.view, "open", shown.near["tiles"][0]["key"])
    assert outside.path[0] == ("own", 0) and len(page(outside).path) == 2
    outside.back.click()
    assert outside.current == ("own", 0)
    outside.following.click()
    assert outside.current[0] == "queries" and outside.error == ""
    outside.open_image(picture.read_bytes(), name="again.png")  # as an upload does
    assert page(outside).path == ["image again.png"]
    outside.file.value = str(tmp_path / "none.png")
    assert "there is no file" in outside.error
    assert explorer.upload.disabled and explorer.file.disabled  # there is no teacher
    explorer.open_image(picture)
    assert "pass teacher=…" in explorer.error


def test_tiles_have_the_names_of_files(bank, digits, student):
    files = tuple(f"train/some_{row}.png" for row in range(int(digits.train.index.max()) + 1))
    explorer = NeighbourExplorer(bank, replace(digits.train, files=files), student=student)
    for tile in (*page(explorer).near["tiles"], *page(explorer).far["tiles"]):
        assert tile["lines"][-1] == f"some_{tile['key']}.png" and f"train/some_{tile['key']}.png" in tile["label"]
    explorer.search.value = f"file:some_{int(digits.train.index[9])}.png"
    assert explorer.current == ("bank", 9)


def test_random_draws_from_what_matches(explorer):
    drawn = set()
    for _ in range(30):
        explorer.random.click()
        drawn.add(explorer.current[1])
    assert len(drawn) > 20
    explorer.of_class.value, explorer.search.value = 2, "wrong"
    matches = explorer._matches("wrong")
    drawn = set()
    for _ in range(20):
        explorer.random.click()
        drawn.add(explorer.current[1])
    assert drawn <= set(matches) and len(drawn) > 3


@pytest.mark.parametrize(("of_class", "text"), [(-1, ""), (8, ""), (-1, "teacher:3"), (3, "teacher:3")])
def test_next_mistake_goes_through_all_mistakes_in_order_and_round(explorer, student, of_class, text):
    images = explorer.images
    wrong = models.predict(student, images).logits.argmax(1) != images.labels
    if of_class >= 0:
        wrong &= images.labels == of_class
    if text:
        wrong &= explorer.bank.logits.argmax(1) == 3
    mistakes = wrong.nonzero().squeeze(1).tolist()
    assert len(mistakes) > 1
    explorer.of_class.value, explorer.search.value = of_class, text
    visit(explorer, mistakes[-1])
    visited = []
    for _ in range(len(mistakes) + 1):
        explorer.mistake.click()
        visited.append(explorer.current[1])
        assert explorer.number.value == int(images.index[visited[-1]])
    assert visited == mistakes + mistakes[:1]
    assert message(explorer)[0] == f"match 1 of {len(mistakes)}"


def test_a_neighbour_becomes_the_query_and_the_path_leads_back(explorer):
    visit(explorer, 20)
    assert explorer.back.disabled
    places = [("bank", 20)]
    for kind in ("near", "far", "near"):
        key = getattr(page(explorer), kind)["tiles"][1]["key"]
        tell(explorer.view, "open", key)
        places.append(("bank", explorer.images.index.tolist().index(key)))
        assert (
            explorer.path == places
            and explorer.number.value == key  # the current query belongs to the images that are chosen from
            and not explorer.back.disabled
        )
        assert_shows(explorer, explorer.images, places[-1][1], *own(explorer, places[-1][1]))
    assert len(page(explorer).path) == 4
    explorer.back.click()
    assert explorer.path == places[:3]
    tell(explorer.view, "crumb", 1)
    assert explorer.path == places[:2]
    assert_shows(explorer, explorer.images, places[1][1], *own(explorer, places[1][1]))
    tell(explorer.view, "crumb", 0)
    assert explorer.path == places[:1] and explorer.back.disabled
    explorer.following.click()
    assert explorer.path == [("bank", 21)]


def test_the_crumbs_of_a_long_path_are_its_last_ones(explorer):
    for _ in range(20):
        tell(explorer.view, "open", page(explorer).near["tiles"][0]["key"])
    items = explorer.view._last[0][0]["items"]
    assert len(items) < 20 and [item["key"] for item in items] == list(range(21 - len(items), 21))
    row = int(explorer.images.index[explorer.path[items[0]["key"]][1]])
    assert items[0]["text"].startswith(f"train row {row}, ")


def test_back_twice_in_a_hurry_leaves_the_first_query(explorer):
    """A second click may arrive after the button was disabled."""
    tell(explorer.view, "open", page(explorer).near["tiles"][0]["key"])
    explorer.back.click()
    explorer.back.click()
    assert explorer.path == [("bank", 0)]
    explorer.following.click()
    assert explorer.error == "" and explorer.current == ("bank", 1)


# ---------------------------------------------------------------------------------- probabilities and terms


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_bars_are_probabilities_at_the_temperature(bank, digits, student, temperature):
    explorer = NeighbourExplorer(bank, digits.train, student=student, temperature=temperature)
    visit(explorer, 77)
    output, index = own(explorer, 77)
    near, _ = bank.retrieve(output.features, digits.train.labels[77:78], index, positives=8, negatives=8)
    weights = (near.similarity[0] / 0.05).softmax(0)
    logits = {
        "teacher": output.logits[0],
        "aggregate": weights @ near.logits[0],
        "student": models.predict(student, digits.train.subset(torch.tensor([77]))).logits[0],
    }
    bars = page(explorer).bars
    for column, (name, z) in enumerate(logits.items()):
        p = (z.double() / temperature).softmax(0)
        found = {row["name"]: row["values"][column] for row in bars["rows"]}
        assert found == {c: pytest.approx(x, abs=1e-5) for c, x in zip(digits.train.classes, p.tolist(), strict=True)}
        assert bars["columns"][column] == name
        chip, predicted = page(explorer).verdicts[column], int(z.argmax())
        assert (chip["who"], chip["name"]) == (name, digits.train.classes[predicted])
        assert chip["number"] == f"{p[predicted]:.3f}"
        assert chip["right"] == (predicted == int(digits.train.labels[77]))
    peaks = [max(row["values"]) for row in bars["rows"]]
    assert peaks == sorted(peaks, reverse=True)
    marked = [row["name"] for row in bars["rows"] if row["marked"]]
    assert marked == [digits.train.classes[int(digits.train.labels[77])]]
    assert f"temperature {temperature:g}, " in bars["title"]
    explorer.scale.value = 3.0 if temperature == 1 else 1.0  # the switch
    assert f"temperature {explorer.temperature:g}, " in page(explorer).bars["title"]
    changed = {row["name"]: row["values"][0] for row in page(explorer).bars["rows"]}
    p = (output.logits[0].double() / explorer.temperature).softmax(0)
    assert changed == {c: pytest.approx(x, abs=1e-5) for c, x in zip(digits.train.classes, p.tolist(), strict=True)}


def test_without_a_student_there_are_no_terms_and_no_mistakes(bank, digits):
    explorer = NeighbourExplorer(bank, digits.train)
    assert page(explorer).table == [] and explorer.mistake.disabled
    assert page(explorer).bars["columns"] == ["teacher", "aggregate"]
    explorer.search.value = "wrong"
    assert explorer.error.startswith("'wrong' needs a student; use one of the networks given (teacher), or give one")


VARIANTS = ["ickd(residual=0.5, gate=1, dynamic=True)", "nicd(positives=0, form='relational')"]


@pytest.mark.parametrize("method", ["ickd", "picd(kd=0.5)", "ickd(average='probabilities', form='hinge')", *VARIANTS])
def test_the_table_compares_a_query_with_the_mean_of_many(bank, digits, student, method):
    explorer = NeighbourExplorer(bank, digits.train, student=student, method=method)
    visit(explorer, 41)
    explorer.positives.value, explorer.negatives.value = 4, 6
    explorer.aggregation.value = 0.2
    terms = explorer.terms()
    by_hand = methods.create(method, aggregation_temperature=0.2)

    def direct(images):
        rows = bank.rows(images.index)
        found = explore.neighbourhood(
            bank,
            Output(bank.logits[rows], bank.features[rows]),
            images.labels,
            images.index,
            student_logits=models.predict(student, images).logits,
            positives=4,
            negatives=6,
            aggregation_temperature=0.2,
        )
        return explore.terms(by_hand, found, images.labels)

    alone, mean = direct(digits.train.subset(torch.tensor([41]))), direct(digits.train)  # 120 are fewer than a sample
    assert terms == {name: pytest.approx((alone[name], mean[name]), rel=1e-4, abs=1e-6) for name in alone}
    (table,) = page(explorer).table
    whole = sum(alone.values())
    assert table["title"] == f"loss terms of {method} with 4 positives, 6 negatives, τₐ = 0.2"
    assert table["columns"][-1] == "relative to the mean of 120 queries"
    assert table["rows"] == [
        [name.upper(), f"{x:.3f}", f"{x / whole:.0%}", f"{x / y:.2f} ×" if y > 0 else "–"]
        for name, (x, y) in terms.items()
    ]
    assert sum(float(row[1]) for row in table["rows"]) == pytest.approx(whole, abs=0.003)


def test_the_terms_of_queries_outside_and_of_a_neighbour_from_there(outside, teacher, student):
    table = page(outside).table[0]
    assert [row[0] for row in table["rows"]] == ["CE", "PICD"] and "40 queries" in table["columns"][-1]
    before = outside.terms()
    outside_ce = torch.nn.functional.cross_entropy(
        models.predict(student, outside.queries).logits, outside.queries.labels
    )
    assert before["ce"][1] == pytest.approx(0.1 * float(outside_ce), rel=1e-4)
    tell(outside.view, "open", page(outside).near["tiles"][0]["key"])
    after = outside.terms()
    assert after["ce"][1] == before["ce"][1] and after["ce"][0] != before["ce"][0]


def test_a_loss_of_zero_has_a_table_too(bank, digits, student):
    explorer = NeighbourExplorer(bank, digits.train, student=student, method="nicd(ce=0, form='hinge', margin=-3)")
    assert explorer.error == "" and page(explorer).table[0]["rows"][0][1] == "0.000"


def test_the_given_method_is_not_changed(bank, digits, student):
    method = methods.create("ickd")
    explorer = NeighbourExplorer(bank, digits.train, student=student, method=method)
    explorer.aggregation.value = 0.5
    assert explorer.error == "" and method.aggregation_temperature == 0.05


def test_a_method_with_equal_weights_is_shown_with_equal_weights(bank, digits, student):
    explorer = NeighbourExplorer(bank, digits.train, student=student, method="ickd(aggregation_temperature=None)")
    assert explorer.error == ""
    assert explorer.found.weights[0].tolist() == pytest.approx([1 / 8] * 8)


# --------------------------------------------------------------------------------------------- many classes


@pytest.mark.parametrize("uppers", [True, False])
def test_more_than_ten_classes_have_the_colours_of_figures(many, uppers):
    bank, images, student = many
    images = images if uppers else replace(images, superclasses=(), superclass_of=())
    explorer = NeighbourExplorer(bank, images, student=student)
    for _ in range(5):
        explorer.random.click()
        shown, label = page(explorer), images.classes[int(images.labels[explorer.current[1]])]
        *rows, others = shown.bars["rows"]
        assert others["name"] == "90 other classes"
        for column, left in enumerate(others["values"]):
            assert left == pytest.approx(1 - sum(row["values"][column] for row in rows), abs=1e-5)
        names = [row["name"] for row in rows]
        numbers = [images.classes.index(name) for name in names]
        assert len(names) == 10 and [row["name"] for row in rows if row["marked"]] == [label]
        _, group, looks = plots.class_colours(
            images.classes, images.superclasses, images.superclass_of, () if uppers else sorted(numbers)
        )
        colours = {name: to_hex(looks[group[c]]["color"]) for c, name in enumerate(images.classes)}
        assert [row["colour"] for row in rows] == [colours[name] for name in names]
        probabilities = torch.stack(list(explorer.found.probabilities(1.0).values()))[:, 0]
        peaks, predicted = probabilities.amax(0), probabilities.argmax(1).tolist()
        assert set(predicted) <= set(numbers)  # no prediction lacks its row
        free = [c for c in numbers if images.classes[c] != label and c not in predicted]
        least = min(float(peaks[c]) for c in free)
        assert all(float(peaks[c]) <= least for c in range(100) if c not in numbers)
        tiles = shown.query["tiles"] + shown.near["tiles"] + shown.far["tiles"]
        if uppers:
            assert all(tile["colour"] == colours[tile["lines"][0]] for tile in tiles)
        for tile in tiles:
            assert (tile["lines"][0] == label) == (tile in shown.query["tiles"] + shown.near["tiles"])


def test_each_class_has_one_colour_and_that_of_the_query_is_not_grey(many):
    bank, images, _ = many
    explorer = NeighbourExplorer(bank, replace(images, superclasses=(), superclass_of=()))
    explorer.negatives.value = 32
    for _ in range(10):
        explorer.random.click()
        shown, colours = page(explorer), {}
        for tile in shown.query["tiles"] + shown.near["tiles"] + shown.far["tiles"]:
            colours.setdefault(tile["lines"][0], set()).add(tile["colour"])
        assert shown.query["tiles"][0]["colour"] != to_hex("0.85")
        for row in shown.bars["rows"][:-1]:
            colours.setdefault(row["name"], set()).add(row["colour"])
        assert all(len(found) == 1 for found in colours.values())


def test_an_improbable_label_is_shown_and_marked(many):
    bank, images, _ = many
    logits = torch.zeros(50_000, 100)
    logits[:, 20:40] = 10
    sure = MemoryBank(bank.features, logits, bank.labels, bank.index, bank.classes)
    explorer = NeighbourExplorer(sure, images)
    explorer.of_class.value = 99
    *rows, _ = page(explorer).bars["rows"]
    assert [row["name"] for row in rows] == [f"class{c}" for c in [*range(20, 29), 99]]
    assert [row["marked"] for row in rows] == 9 * [False] + [True] and max(rows[-1]["values"]) < 0.01


def test_an_answer_reads_the_bank_a_few_times_only(many):
    """So it is quick: 0.05 s where nothing else runs."""
    bank, images, student = many
    explorer = NeighbourExplorer(bank, images, student=student)
    explorer.random.click()
    for _ in range(5):
        with Work() as work:
            explorer.random.click()
        assert explorer.error == ""
        assert 0 < work.elements < 4 * (bank.features.numel() + bank.logits.numel())  # 2.7 of them


# --------------------------------------------------------------------------------- refusals, errors, upkeep


@pytest.mark.parametrize(
    ("change", "more", "reason"),
    [
        (lambda images: replace(images, classes=tuple("abcdefghij")), {}, "of another data set"),
        (lambda images: images.restricted(["1", "2"]), {}, "of another data set"),
        (lambda images: images, {"queries": lambda i: replace(i, classes=tuple("abcdefghij"))}, "the same classes"),
        (lambda images: images, {"queries": lambda i: replace(i, images=i.images[..., :6])}, r"\(8, 6\) pixels"),
        (lambda images: images, {"queries": lambda i: i, "teacher": None}, "need a teacher"),
        (lambda images: images, {"method": "ce"}, "method='ce'"),
        (lambda images: images, {"method": "kd"}, "method='kd'"),
        (lambda images: images, {"method": "ickd+dist"}, r"method='ickd\+dist'"),
        (lambda images: images, {"method": "ickdd"}, "ickdd"),
        (lambda images: images, {"method": "ickd_online"}, "ickd_online"),
        (lambda images: images, {"method": "ickd_self"}, "ickd_self"),
        (lambda images: images, {"method": "ickd(kd=0, picd=0, nicd=0)"}, "method"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(bank, digits, teacher, student, change, more, reason):
    more = {"teacher": teacher, "student": student, **more}
    if "queries" in more:
        more["queries"] = more["queries"](digits.test)
    with pytest.raises(InputError, match=reason) as error:
        NeighbourExplorer(bank, change(digits.train), **more)
    assert "\n" not in str(error.value)


def test_errors_in_callbacks_are_displayed_until_the_next_interaction(explorer, monkeypatch):
    def broken(*_, **__):
        plt.figure()
        raise RuntimeError("<no> rows")

    before, last = plt.get_fignums(), explorer.view._last
    with monkeypatch.context() as patch:
        patch.setattr(explorer.bank, "retrieve", broken)
        for touch in (
            lambda: setattr(explorer.positives, "value", 4),
            explorer.random.click,
            explorer.mistake.click,
            lambda: tell(explorer.view, "open", int(explorer.images.index[3])),
            lambda: visit(explorer, 9),
        ):
            touch()
            assert explorer.error == "RuntimeError: <no> rows" and message(explorer) == (explorer.error, "error")
            assert explorer.view._last is last and plt.get_fignums() == before
    explorer.random.click()
    assert explorer.error == "" and message(explorer) == ("", None)
    assert_shows(explorer, explorer.images, explorer.current[1], *own(explorer, explorer.current[1]))


def test_the_picture_of_an_explorer(outside, monkeypatch):
    before = plt.get_fignums()
    picture, _, bundle = displayed(outside, monkeypatch)
    picture = base64.b64decode(picture["image/png"])
    assert WIDGET in bundle and picture.startswith(PNG) and outside.error == ""
    tell(outside.view, "open", page(outside).far["tiles"][0]["key"])
    assert outside.png() != picture and plt.get_fignums() == before


def touch(explorer, i):
    """The i-th of many interactions."""
    steps = (
        explorer.random.click,
        lambda: tell(explorer.view, "open", page(explorer).near["tiles"][0]["key"]),
        lambda: tell(explorer.view, "open", page(explorer).far["tiles"][-1]["key"]),
        lambda: setattr(explorer.positives, "value", 1 + i % 11),
        lambda: tell(explorer.view, "crumb", 1),
        explorer.back.click,
        explorer.mistake.click,
        lambda: setattr(explorer.aggregation, "value", 10 ** -(1 + i % 17 / 20)),
        lambda: setattr(explorer.of_class, "value", i % 10),
        lambda: setattr(explorer.negatives, "value", 1 + i % 108),
        explorer.following.click,
        lambda: setattr(explorer.of_class, "value", -1),
        lambda: setattr(explorer.search, "value", f"teacher:{i % 4} wrong"),
        lambda: visit(explorer, i % 120),
        lambda: setattr(explorer.search, "value", "zebra" if i % 2 else ""),
        lambda: setattr(explorer.search, "value", ""),
        lambda: tell(explorer.view, "ready", dark=bool(i % 2), fresh=True),
    )
    steps[i % len(steps)]()


def tree(widget):
    """A widget and all widgets that its state refers to, each once."""
    found, left = {}, [widget]
    while left:
        one = left.pop()
        if one.model_id not in found:
            found[one.model_id] = one
            for value in (getattr(one, name) for name in one.keys):
                left += [
                    v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, ipw.Widget)
                ]
    return found.values()


def saved(widget):
    """A widget's state as a notebook saves it, which includes a view's code."""
    code = ["_esm", "_css"] if isinstance(widget, View) else []
    return json.dumps(widget.get_state(drop_defaults=True) | (widget.get_state(code) if code else {}))


def test_a_saved_notebook_stays_small(explorer):
    def size():
        states = [saved(widget) for widget in tree(explorer)]
        assert len(states) > 15 and any("_esm" in state for state in states)
        return sum(map(len, states))

    before = size()
    for i in range(51):
        touch(explorer, i)
    assert size() < before + 1000 and max(before, size()) < 40 * 1024


def test_a_hundred_interactions_leave_no_figure_open_and_memory_unchanged(explorer):
    before = plt.get_fignums()
    tracemalloc.start()
    try:
        for i in range(34):
            touch(explorer, i)
        gc.collect()
        start = tracemalloc.get_traced_memory()[0]
        for i in range(34, 34 + 102):
            touch(explorer, i)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - start < 200_000
    finally:
        tracemalloc.stop()
    assert plt.get_fignums() == before and explorer.error == ""


def test_arguments_that_do_not_fit_the_bank_are_refused_in_one_line(digits, bank, teacher):
    images = digits.train
    with runtime.seeded(3):
        other = models.create("resnet8", **images.spec).eval()
        wide = models.create("resnet8", num_classes=12).eval()
    some = images.subset(torch.arange(0, 120, 3))
    for given, reason in (
        ({"images": some}, "the bank contains 120 samples, but digits/train has 40"),
        ({"images": digits.test.subset(torch.arange(120))}, "of another data set"),
        ({"student": wide}, "the student outputs logits of 12 classes"),
        ({"queries": digits.test, "teacher": wide}, "by another teacher"),
        ({"queries": digits.test, "teacher": other}, "by another teacher"),
        ({"method": "ickd(order='random')"}, "does not use the nearest samples"),
        ({"method": "ickd+dist"}, "not in-context distillation from a teacher's bank alone"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            NeighbourExplorer(bank, **{"images": images, **given})
        assert "\n" not in str(error.value)


def test_a_diverged_student_is_reported(digits, bank):
    student = models.create("resnet8", **digits.train.spec).eval()
    explorer = NeighbourExplorer(bank, digits.train, student=student)
    with torch.no_grad():
        next(student.parameters()).fill_(torch.nan)
    explorer.following.click()
    assert "some logits of the student are nan or infinite" in explorer.error


def test_a_double_click_goes_one_step(explorer):
    key = page(explorer).far["tiles"][0]["key"]
    for _ in range(2):
        tell(explorer.view, "open", key)
    assert len(explorer.path) == 2
    tell(explorer.view, "open", "no row")
    assert "ValueError" in explorer.error


def test_a_faultless_student_has_no_mistake_to_show(explorer, monkeypatch):
    truth = torch.eye(10)[explorer.queries.labels]
    monkeypatch.setattr(explorer, "_logits_of_all", lambda role: truth)
    explorer.mistake.click()
    assert explorer.error == "the student classifies all of these images correctly, so there is no mistake to show"


def test_a_closed_explorer_and_what_it_held_is_freed(digits, bank, student):
    """The registry of widgets is as long as before, and neither explorer nor network is alive."""
    gc.collect()
    before = len(ipw.widgets.widget._instances)
    references = []
    for _ in range(3):
        network = copy.deepcopy(student)
        explorer = NeighbourExplorer(bank, digits.train, student=network)
        explorer.mistake.click()
        explorer.close()
        explorer.close()  # a second call does nothing
        references += [weakref.ref(one) for one in (explorer, explorer.view, explorer.number, network)]
    del explorer, network
    gc.collect()
    assert [one() for one in references] == [None] * len(references)
    assert len(ipw.widgets.widget._instances) == before
