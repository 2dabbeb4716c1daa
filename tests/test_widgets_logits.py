"""The logit-space explorer, driven as by a page: what it displays, what it links, and that memory does not grow."""

from __future__ import annotations

import csv
import gc
import json
import sys
import tracemalloc
import weakref
from dataclasses import replace

import ipywidgets as ipw
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from work import Work

from ickd_lib import explore, metrics, models, plots, runtime
from ickd_lib.data import Images
from ickd_lib.explore import maps
from ickd_lib.plots.style import class_colours
from ickd_lib.runtime import InputError
from ickd_lib.widgets import logit_blocks, rerun, scatter
from ickd_lib.widgets import logits as module
from ickd_lib.widgets.logits import LogitSpaceExplorer


def made(count=200, classes=5, upper=0):
    """Images whose first pixel is their position, in rows 1000, 1002, …, and logits of three networks."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    pixels = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(count) % 256
    names = tuple(f"class {c}" for c in range(classes))
    supers = {"superclasses": tuple(f"upper {u}" for u in range(upper)), "superclass_of": ()}
    if upper:
        supers["superclass_of"] = tuple(c % upper for c in range(classes))
    index = 1000 + 2 * torch.arange(count)
    images = Images(pixels, labels, index, names, (0.5,) * 3, (0.5,) * 3, 1, False, "made/test", **supers)
    noise = [torch.randn(count, classes, generator=generator) for _ in range(3)]
    logits = {name: 3 * torch.eye(classes)[labels] + k * noise[k - 1] for k, name in enumerate("abc", 1)}
    return images, logits


def opened(images, logits, dark=False, **given):
    explorer = LogitSpaceExplorer(logits, images, **{"how": "pca", **given})
    explorer.view._receive(None, {"event": "ready", "dark": dark, "fresh": True}, [])
    assert explorer.error == ""
    return explorer


def blocks(view, kind=None):
    return [block for block in view._last[0] if kind in (None, block["kind"])]


def legend(explorer):
    return [item["name"] for item in blocks(explorer.view, "legend")[0]["items"]]


@pytest.fixture
def parts():
    plt.switch_backend("Agg")
    return made()


def test_nothing_large_is_created_before_a_page_is_open(parts):
    explorer = LogitSpaceExplorer(parts[1], parts[0], how="pca")
    seen = [explorer]
    for widget in seen:  # which grows meanwhile
        seen += getattr(widget, "children", ())
    seen += [one.layout for one in seen] + [one.style for one in seen if hasattr(one, "style")]
    saved = [{"module": one._view_module, **one.get_state(drop_defaults=True)} for one in seen]
    scripts = sum(len(one._esm) + len(getattr(one, "_css", "")) for one in seen if hasattr(one, "_esm"))
    size = len(json.dumps(saved, default=str)) + scripts
    assert explorer.scatters == [] and size < 70_000, size
    explorer.view._receive(None, {"event": "ready", "dark": False, "fresh": True}, [])
    made_first = list(explorer.scatters)
    explorer.view._receive(None, {"event": "ready", "dark": False, "fresh": False}, [])
    assert len(made_first) == 2 and explorer.scatters == made_first  # a second page shows the same ones


def test_points_have_the_places_of_the_map_and_the_colours_of_their_classes(parts):
    images, logits = parts
    explorer = opened(images, logits)
    left = explorer.scatters[0].widget
    points, plane = left.points, maps.embed(logits["a"], "pca")
    assert np.abs(points[:, :2]).max() <= 0.96
    for axis in range(2):
        assert np.corrcoef(points[:, axis], plane[:, axis])[0, 1] == pytest.approx(1, abs=1e-5)
    scale = np.ptp(points[:, :2], axis=0) / np.ptp(plane, axis=0)
    assert scale[0] == pytest.approx(scale[1], rel=1e-5)  # neither axis is stretched
    looks = class_colours(images.classes)[2]
    wrong = logits["a"].argmax(1) != images.labels
    assert wrong.any() and not wrong.all()
    for at in range(200):
        colour = left.color[int(points[at, 2])]
        assert tuple(colour) == pytest.approx(to_rgba(to_hex(looks[images.labels[at]]["color"])))
    explorer.colour.value = "right or wrong"
    for at in range(200):
        kind = int(points[at, 2])
        assert tuple(left.color[kind]) == pytest.approx(to_rgba(scatter.WRONG if wrong[at] else scatter.RIGHT))
        assert left.size[kind] == (7 if wrong[at] else 4)
    assert "wrong" in legend(explorer) and left.axes is False and left.legend is False


def test_pointing_at_an_image_displays_it_and_its_predictions(parts):
    images, logits = parts
    explorer = opened(images, logits)
    left, right = (scatter.widget for scatter in explorer.scatters)
    right.hovering = 17
    assert left.hovering == 17
    (row,), data = explorer.hovered._last
    tiles, table = row["blocks"]
    assert data[0] == 17 and tiles["tiles"][0]["lines"] == ["class 2", "row 1034"]
    shares = logits["b"][17].softmax(0)
    predicted = int(shares.argmax())
    mark = "✓" if predicted == 2 else "✗"
    assert table["rows"][1] == ["b", f"{mark} class {predicted}", f"{shares[predicted]:.3f}", f"{shares[2]:.3f}"]
    right.hovering = None
    assert left.hovering == -1 and explorer.hovered._last[1] == data  # it stays


def test_the_image_under_the_pointer_is_shown_with_each_prediction(parts):
    images, logits = parts
    wrong = int((logits["c"].argmax(1) != images.labels).nonzero()[0])
    explorer = opened(images, logits)
    explorer.scatters[0].widget.hovering = wrong
    (row,) = blocks(explorer.hovered, "row")
    tile, table = row["blocks"]
    assert tile["tiles"][0]["lines"][0] == images.classes[images.labels[wrong]]
    assert table["title"] == f"predictions for row {1000 + 2 * wrong} (class {images.classes[images.labels[wrong]]})"
    assert table["columns"] == ["network", "prediction", "its probability", "that of the label"]
    expected = []
    for name in "abc":
        exponents = logits[name][wrong].double().exp()
        best, label = int(exponents.argmax()), int(images.labels[wrong])
        numbers = [f"{float(exponents[at] / exponents.sum()):.3f}" for at in (best, label)]
        expected.append([name, f"{'✓' if best == label else '✗'} class {best}", *numbers])
    assert table["rows"] == expected and table["rows"][2][1].startswith("✗")


def test_a_lasso_shows_members_their_separation_and_their_neighbours(parts):
    images, logits = parts
    explorer = opened(images, logits)
    left, right = (scatter.widget for scatter in explorer.scatters)
    chosen = torch.randperm(200, generator=torch.Generator().manual_seed(2))[:40]
    left.selection = chosen.numpy().astype(np.uint32)
    members = chosen.sort().values
    assert right.selection.tolist() == members.tolist()
    (table,) = blocks(explorer.view, "table")
    for row, name in zip(table["rows"], "abc", strict=True):
        apart = metrics.separation(logits[name][members], images.labels[members])
        right_ones = 100 * metrics.accuracy(logits[name][members], images.labels[members])
        to_own, margin = (values[members] for values in metrics.margins(logits[name], images.labels))
        among = [f"{to_own.mean():.3f}", f"{margin.mean():.3f}", f"{100 * (margin < 0).double().mean():.1f}"]
        assert row == [name, f"{right_ones:.1f}", *among, f"{apart['ratio']:.3f}", f"{apart['silhouette']:.3f}"]
    own, near_a, near_b = blocks(explorer.view, "tiles")
    assert own["title"] == "40 selected" and len(own["tiles"]) == 24 and own["pages"] == [0, 2]
    margins = metrics.margins(logits["b"], images.labels)[1][members]
    outliers = members[margins.argsort(stable=True)][:24].tolist()  # the first ones; b is the network of the right map
    assert [tile["lines"][2] for tile in own["tiles"]] == [f"row {1000 + 2 * m}" for m in outliers]
    for tiles, name in ((near_a, "a"), (near_b, "b")):
        of = explore.region(logits[name], images.labels, members, neighbours=8)
        assert [int(tile["key"]) for tile in tiles["tiles"]] == of.nearest.tolist()
        assert tiles["tiles"][0]["lines"][3] == f"cos {of.cosine[0]:.3f}" and tiles["title"].endswith(name)
        for tile in tiles["tiles"]:  # each shows its own image
            assert explorer.view._last[1][tile["at"] * 8 * 8 * 3] == int(tile["key"])
    explorer.clear.click()
    assert not len(left.selection) and not len(right.selection) and not blocks(explorer.view, "tiles")
    assert blocks(explorer.hovered)[0]["kind"] == "text"


def test_kinds_that_no_point_has_do_not_shift_the_colours_of_the_others(parts):
    images, logits = parts
    sure = 3 * torch.eye(5)[images.labels]
    wrong = sure.clone()
    wrong[3] = 3 * torch.eye(5)[0]  # one mistake, of class 3; jscatter counts the kinds that there are
    explorer = opened(images, {"sure": sure + 0.1 * logits["a"], "wrong": wrong + 0.1 * logits["a"]})
    for one, logits in zip(explorer.scatters, explorer.logits.values(), strict=True):
        errs = (logits.argmax(1) != images.labels).long()
        assert one.widget.points[:, 2].tolist() == (images.labels + 5 * errs).tolist()
        kinds = one.widget.color
        assert to_hex(kinds[3]) == to_hex(kinds[8]) == to_hex(class_colours(images.classes)[2][3]["color"])


def test_tiles_carry_predictions_and_are_sorted_filtered_and_paged(parts):
    images, logits = parts
    explorer = opened(images, logits)
    explorer.select(torch.arange(200))
    z = logits["b"]  # of the right map
    confidence, predicted = z.softmax(1).max(1)
    assert explorer.judged.value == "b" and explorer.order.value == "outliers first"
    explorer.order.value = "row"

    def shown():
        tiles = blocks(explorer.view, "tiles")[0]
        for tile in tiles["tiles"]:
            at = int(tile["key"])
            mark = "✓" if predicted[at] == images.labels[at] else "✗"
            assert tile["lines"][1] == f"{mark} class {int(predicted[at])} {confidence[at]:.2f}"
            assert explorer.view._last[1][tile["at"] * 8 * 8 * 3] == at
        return [int(tile["key"]) for tile in tiles["tiles"]], tiles["pages"]

    assert shown() == (list(range(24)), [0, 9])
    explorer.view._receive(None, {"event": "page", "key": "8"}, [])
    assert shown() == (list(range(192, 200)), [8, 9])
    explorer.order.value = "lowest confidence"
    order = confidence.argsort(stable=True).tolist()
    assert shown() == (order[:24], [0, 9])
    explorer.shown.value = "wrong"
    wrong = [at for at in order if predicted[at] != images.labels[at]]
    assert shown() == (wrong[:24], [0, -(-len(wrong) // 24)])
    explorer.shown.value = "networks differ"
    differ = [at for at in order if predicted[at] != logits["a"][at].argmax()]
    assert shown()[0] == differ[:24] and explorer.error == ""


def test_colours_by_prediction_confidence_and_disagreement(parts):
    images, logits = parts
    explorer = opened(images, logits)
    right = explorer.scatters[1].widget
    places = right.points[:, :2].copy()
    confidence, predicted = logits["b"].softmax(1).max(1)
    ok = {name: (z.argmax(1) == images.labels) for name, z in logits.items()}

    def colour(at):
        return to_hex(right.color[int(right.points[at, 2])])

    explorer.colour.value = "prediction"
    looks = [to_hex(look["color"]) for look in class_colours(images.classes)[2]]
    assert [colour(at) for at in range(200)] == [looks[c] for c in predicted.tolist()]
    explorer.colour.value = "confidence"
    assert "90–100 %" in legend(explorer)
    assert right.points[:, 2].tolist() == [min(9, int(10 * c)) for c in confidence.tolist()]
    explorer.colour.value = "disagreement"
    assert "only a right" in legend(explorer) and "only b right" in legend(explorer)
    kind = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
    assert right.points[:, 2].tolist() == [kind[bool(x), bool(y)] for x, y in zip(ok["a"], ok["b"], strict=True)]
    explorer.shows[1].value = "c"
    assert "only c right" in legend(explorer)
    left = explorer.scatters[0].widget
    assert left.points[:, 2].tolist() == [kind[bool(x), bool(y)] for x, y in zip(ok["a"], ok["c"], strict=True)]
    explorer.shows[1].value = "b"
    explorer.colour.value = "class"
    assert np.array_equal(right.points[:, :2], places) and explorer.error == ""


def test_a_cell_a_class_and_a_button_select(parts):
    images, logits = parts
    explorer = opened(images, logits)
    predicted, labels = logits["b"].argmax(1), images.labels
    matrix, errors, by_class = blocks(explorer.view)[-1]["blocks"]
    counts = metrics.confusion(predicted, labels, 5)
    assert matrix["counts"] == counts.tolist() and matrix["title"].startswith("confusion matrix of b")
    key = errors["items"][0]["key"]
    label, wrong = map(int, key.split(","))
    assert counts[label, wrong] == counts.clone().fill_diagonal_(0).max() == int(errors["items"][0]["number"])
    explorer.view._receive(None, {"event": "cell", "key": key}, [])
    expected = ((labels == label) & (predicted == wrong)).nonzero().squeeze(1).tolist()
    assert explorer.members.tolist() == expected == explorer.scatters[0].widget.selection.tolist()
    accuracy = (counts.diagonal() / counts.sum(1)).sort()
    assert [item["key"] for item in by_class["items"]] == accuracy.indices.tolist()
    assert by_class["items"][0]["number"] == f"{100 * accuracy.values[0]:.1f} %"
    explorer.view._receive(None, {"event": "class", "key": "3"}, [])
    assert explorer.members.tolist() == (labels == 3).nonzero().squeeze(1).tolist()
    ok = {name: z.argmax(1) == labels for name, z in logits.items()}
    assert explorer.first_only.description == "a right, b wrong"
    explorer.first_only.click()
    assert explorer.members.tolist() == (ok["a"] & ~ok["b"]).nonzero().squeeze(1).tolist()
    explorer.shows[1].value = "c"
    assert explorer.second_only.description == "c right, a wrong"
    explorer.second_only.click()
    only = (ok["c"] & ~ok["a"]).nonzero().squeeze(1).tolist()
    assert explorer.members.tolist() == only if only else "there is no image" in explorer.error


def test_an_entry_of_the_legend_selects(parts):
    images, logits = parts
    explorer = opened(images, logits)
    predicted = logits["b"].argmax(1)  # of the network whose predictions are shown
    for by, holds in {
        "class": lambda c: images.labels == c,
        "prediction": lambda c: predicted == c,
        "right or wrong": lambda c: (predicted != images.labels) == bool(c),
        "disagreement": lambda c: (logits["a"].argmax(1) == images.labels) & (predicted != images.labels),
    }.items():
        explorer.colour.value = by
        explorer.view._receive(None, {"event": "legend", "key": "1"}, [])
        assert explorer.error == "" and explorer.members.tolist() == holds(1).nonzero().squeeze(1).tolist()
        pressed = [item["pressed"] for item in blocks(explorer.view, "legend")[0]["items"]]
        assert pressed == [at == 1 for at in range(len(pressed))]
    explorer.view._receive(None, {"event": "legend", "key": "1"}, [])
    assert not len(explorer.members)


def written(explorer, panel=0):
    """The names on a map: text, place and least zoom."""
    frame = explorer.scatters[panel].widget.labels
    return {row.label: (np.array([row.x, row.y]), row.zoomIn) for row in frame.itertuples()}


@pytest.mark.parametrize("wide", [380, 209])
def test_names_of_clusters_stand_at_their_medians_and_do_not_overlap(wide):
    images, logits = made(count=600, classes=10)
    explorer = opened(images, logits)
    explorer.view._receive(None, {"event": "resize", "key": str(wide)}, [])
    names = written(explorer)
    points = explorer.scatters[0].widget.points
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    half = {name: np.array([7.5 * len(name), 16]) / 380 for name in names}  # in units of the map at zoom 1
    assert len(names) == 10
    for c in range(10):
        (centre, zoom), own = names[f"class {c}"], half[f"class {c}"]
        scaled = own * max(1, 380 / wide)
        inside = np.median(points[(images.labels == c).numpy(), :2], 0).clip(low + scaled, high - scaled)
        np.testing.assert_allclose(centre, inside, atol=1e-5)
        for other, (place, least) in names.items():
            if other != f"class {c}":
                apart = np.abs(centre - place) * max(zoom, least)  # at the zoom from which on both are displayed
                assert (apart >= (own + half[other]) * 0.999).any()
    explorer.names.value = False
    assert written(explorer) == {} and explorer.error == ""


@pytest.mark.parametrize(("classes", "upper", "expected"), [(30, 0, 10), (60, 12, 12), (60, 25, 0)])
def test_too_many_names_are_written_only_if_they_are_asked_for(classes, upper, expected):
    explorer = opened(*made(count=600, classes=classes, upper=upper))
    assert len(written(explorer)) == expected and explorer.names.value == bool(expected)
    explorer.names.value = True
    assert len(written(explorer)) == (expected or upper)
    explorer.colour.value = "selected classes"
    explorer.select([0, 1, 2])
    assert set(written(explorer)) == {"class 0", "class 1", "class 2"}


def test_names_may_have_any_letters():
    points, cluster = np.array([[0.0, 0.0], [0.5, 0.5], [0.5, 0.4]], np.float32), torch.tensor([0, 1, 3])
    frame = scatter.ClusterNames(points, cluster, ["猫", "large_man-made_things", "empty"], dark=True).frame
    assert list(frame["label"]) == ["猫", "large man-made\nthings"]


def test_maps_are_refitted_when_the_page_is_resized(parts, monkeypatch):
    explorer, sent = opened(*parts), []
    for one in explorer.scatters:
        monkeypatch.setattr(one.widget, "send", lambda content, buffers=None: sent.append(content))
    explorer.view._receive(None, {"event": "resize"}, [])
    assert explorer.error == "" and len(sent) == 2
    area = json.loads(json.dumps(sent[0]))["area"]
    points = explorer.scatters[0].widget.points
    assert area["x"] < points[:, 0].min() and area["x"] + area["width"] > points[:, 0].max()


def test_a_search_selects_as_in_the_other_explorer(parts):
    images, logits = parts
    explorer = opened(images, logits)
    for text in ("a!=b", "b:wrong", "conf<0.6", '"class 2" a:wrong', "row:1000-1020"):
        explorer.search.value = text
        assert explorer.error == "" and explorer.search.value == text
        assert explorer.members.tolist() == explore.search(text, images, logits, of="b")
    explorer.class_.value = 1
    assert explorer.search.value == ""
    explorer.search.value = "zebra"
    assert "no image matches 'zebra'" in explorer.error and len(explorer.members) == 40


def test_a_selection_is_saved_as_csv(parts, monkeypatch):
    images, logits = parts
    saved = []
    explorer = opened(replace(images, files=tuple(f"c/{row}.png" for row in range(1400))), logits)
    monkeypatch.setattr(explorer.view, "save", lambda name, data, type: saved.append((name, data.decode())))
    explorer.export.click()
    assert "nothing is selected" in explorer.error and not saved
    explorer.written.value = "1000 1010"
    explorer.export.click()
    ((name, text),) = saved
    rows = list(csv.DictReader(text.splitlines()))
    assert name == "selection.csv" and [row["row"] for row in rows] == ["1000", "1010"]
    assert [row["file"] for row in rows] == ["c/1000.png", "c/1010.png"] and rows[0]["label"] == "class 0"
    for row, at in zip(rows, (0, 5), strict=True):
        for network, z in logits.items():
            confidence, best = z[at].softmax(0).max(0)
            assert row[f"{network} prediction"] == f"class {int(best)}"
            assert float(row[f"{network} confidence"]) == pytest.approx(float(confidence), abs=1e-4)


def test_one_image_has_no_separation_and_is_displayed(parts):
    explorer = opened(*parts)
    explorer.scatters[0].widget.selection = np.array([9], dtype=np.uint32)
    assert [row[5:] for row in blocks(explorer.view, "table")[0]["rows"]] == [["–"] * 2] * 3
    assert explorer.hovered._last[1][0] == 9
    explorer.view._receive(None, {"event": "look", "key": "30"}, [])  # a tile, by mouse or keyboard
    assert explorer.hovered._last[1][0] == 30


def test_classes_and_rows_are_selected_without_a_mouse(parts):
    images, logits = parts
    explorer = opened(images, logits)
    left = explorer.scatters[0].widget
    explorer.class_.value = 3
    assert left.selection.tolist() == (images.labels == 3).nonzero().squeeze(1).tolist() and explorer.class_.value == 3
    explorer.written.value = "1000 1007-1012"
    assert left.selection.tolist() == [0, 4, 5, 6] and explorer.class_.value == -1
    explorer.written.value = "1001"
    assert "no row 1001" in explorer.error and "made/test" in explorer.message.value
    assert left.selection.tolist() == [0, 4, 5, 6]  # as they were
    left.selection = np.array([1, 2], dtype=np.uint32)
    assert explorer.error == "" and explorer.written.value == "" and explorer.message.value == ""
    assert all(control.description for control in (explorer.how, explorer.colour, *explorer.shows, explorer.clear))


def test_another_space_moves_the_points_in_place(parts):
    images, logits = parts
    explorer = opened(images, logits)
    left, right = (scatter.widget for scatter in explorer.scatters)
    before = left.points.copy(), right.points.copy()
    explorer.shows[1].value = "c"
    assert explorer.scatters[1].widget is right and np.array_equal(left.points, before[0])
    expected = maps.embed(logits["c"], "pca")
    assert np.corrcoef(right.points[:, 0], expected[:, 0])[0, 1] == pytest.approx(1, abs=1e-5)
    wrong = (logits["c"].argmax(1) != images.labels).numpy()
    assert np.array_equal(right.points[:, 2] >= 5, wrong)


def test_themes_change_ground_and_not_classes(parts):
    explorer = opened(*parts)
    widget = explorer.scatters[0].widget
    light, colours = list(widget.background_color), list(widget.color)
    explorer.view._receive(None, {"event": "theme", "dark": True}, [])
    assert max(light[:3]) == 1 and max(widget.background_color[:3]) < 0.2 and list(widget.color) == colours


@pytest.mark.parametrize("dark", [False, True])
def test_points_of_every_colour_differ_from_the_ground(dark):
    images, logits = made(360, 36, upper=12)
    explorer = opened(images, logits, dark)

    def luminance(colour):
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
        return 0.05 + 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    widget = explorer.scatters[0].widget
    for by in explorer.colour.options:
        explorer.colour.value = by
        for colour in widget.color:
            dimmer, brighter = sorted([luminance(colour), luminance(widget.background_color)])
            assert brighter / dimmer > 1.25, (by, to_hex(colour))


def test_many_classes_are_coloured_by_superclass_or_by_selected_classes():
    images, logits = made(360, 36, upper=12)
    explorer = opened(images, logits)
    assert explorer.colour.options == (
        *("superclass", "selected classes", "prediction", "right or wrong", "confidence", "disagreement"),
    )
    widget, looks = explorer.scatters[0].widget, class_colours(images.classes, *explorer_upper(images))[2]
    assert tuple(widget.color[13]) == pytest.approx(to_rgba(to_hex(looks[1]["color"])))
    assert widget.size[11] > widget.size[1]  # an eleventh colour is the first one again, so larger
    images, logits = made(360, 36)
    explorer = opened(images, logits)
    explorer.class_.value = 30
    names, group, looks = class_colours(images.classes, (), (), [30])
    assert tuple(explorer.scatters[0].widget.color[30]) == pytest.approx(to_rgba(to_hex(looks[group[30]]["color"])))
    assert "class 30" in legend(explorer) and "others" in legend(explorer) and names == ["class 30", "others"]


def explorer_upper(images):
    return images.superclasses, images.superclass_of


def test_a_hundred_interactions_leave_figures_and_memory_unchanged(parts):
    explorer = opened(*parts)
    plt.close("all")

    def touch(i):
        left = explorer.scatters[i % 2].widget
        left.hovering = i % 200
        left.selection = np.arange(i % 50, 60 + i % 50, dtype=np.uint32)
        if i % 5 == 0:
            explorer.shows[0].value = "abc"[i // 5 % 3]
            explorer.colour.value = ("class", "right or wrong")[i // 5 % 2]
        if i == 25:
            explorer.png()

    for i in range(30):
        touch(i)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(100):
            touch(i)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert explorer.error == "" and plt.get_fignums() == []
    assert grown < 300_000, grown


def test_an_error_is_displayed_and_another_choice_works(parts, monkeypatch):
    images, logits = parts

    def broken(*_, **__):
        raise RuntimeError("no map")

    with monkeypatch.context() as patched:
        patched.setattr(module, "embed", broken)
        explorer = LogitSpaceExplorer(logits, images, how="tsne")
        explorer.view._receive(None, {"event": "ready", "dark": False, "fresh": True}, [])
        assert explorer.error == "RuntimeError: no map" and explorer.scatters == []
        assert 'role="alert"' in explorer.message.value
    explorer.how.value = "pca"
    assert explorer.error == "" and len(explorer.scatters) == 2


def test_the_waiting_time_of_umap_is_displayed(parts, monkeypatch, capsys):
    images, logits = parts
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    explorer, messages = opened(images, logits), []
    monkeypatch.setattr(maps, "_compute", lambda unit, *_: messages.append(explorer.message.value) or unit[:, :2])
    explorer.how.value = "umap"
    assert "compiled once" in messages[0] and explorer.message.value == ""
    waiting = LogitSpaceExplorer(logits, images)  # without a page, the cell prints the message
    waiting.figures()
    plt.close("all")
    assert "compiled once" in capsys.readouterr().out


def test_without_a_page_a_picture_is_displayed(parts, monkeypatch):
    seen = []
    draw = plots.embeddings
    monkeypatch.setattr(plots, "embeddings", lambda *a, **k: seen.append((a, k)) or draw(*a, **k))
    explorer = LogitSpaceExplorer(parts[1], parts[0], how="pca")
    assert explorer.png().startswith(b"\x89PNG") and plt.get_fignums() == []
    (maps, labels, _), how = seen[0]
    assert list(maps) == ["a", "b", "c"] and len(labels) == 200 and how["how"] == "PCA" and not explorer.scatters


def test_networks_are_evaluated(parts):
    with runtime.seeded("explorer"):
        network = models.create("resnet8", **parts[0].spec)
    explorer = LogitSpaceExplorer({"net": network, "a": parts[1]["a"]}, parts[0], how="pca", precision="fp32", panels=3)
    torch.testing.assert_close(explorer.logits["net"], models.predict(network, parts[0], precision="fp32").logits)
    assert [control.description for control in explorer.shows] == ["left map", "right map"]


def test_wrong_arguments_are_refused(parts):
    images, logits = parts
    for networks, given, reason in (
        ({}, {}, "no networks"),
        ({"a": logits["a"][:9]}, {}, r"'a' are \[9, 5\]"),
        ({"a": logits["a"] * torch.inf}, {}, "nan or infinite"),
        (logits, {"how": "mds"}, "unknown map"),
        (logits, {"panels": 4}, "panels=4"),
    ):
        with pytest.raises(InputError, match=reason):
            LogitSpaceExplorer(networks, images, **given)


def test_fifty_thousand_points_answer_at_once():
    """The pointer costs much less than one reading of all logits, a lasso around 20,000 points few of them."""
    images, logits = made(50_000, 20)
    explorer = opened(images, {name: logits[name] for name in "ab"})
    left = explorer.scatters[0].widget
    with Work() as hover:
        left.hovering = 1
    with Work() as lasso:
        left.selection = np.arange(20_000, dtype=np.uint32)
    assert hover.elements < 0.5 * logits["a"].numel()  # 0.25 of them
    assert lasso.elements < 100 * logits["a"].numel()  # 63 of them; 0.3 s where nothing else runs
    assert explorer.error == "" and len(explorer.members) == 20_000


def test_masks_select_and_positions_out_of_range_change_nothing(parts):
    images, logits = parts
    explorer = opened(images, logits)
    explorer.select(images.labels == 3)
    assert explorer.members.tolist() == (images.labels == 3).nonzero().squeeze(1).tolist()
    before = explorer.members.tolist()
    explorer.select([10**6])
    assert "positions must be from 0 to 199" in explorer.error and explorer.members.tolist() == before


def test_a_page_that_opens_in_the_dark_is_dark(parts):
    explorer = opened(*parts)
    explorer.view._receive(None, {"event": "ready", "dark": True, "fresh": False}, [])
    assert all(sum(one.widget.background_color[:3]) < 1 for one in explorer.scatters)


def test_moving_over_a_map_keeps_the_message(parts):
    explorer = opened(*parts)
    explorer.written.value = "nothing"
    explorer.scatters[0].widget.hovering = 5
    assert "'nothing' is not a row number" in explorer.error and "alert" in explorer.message.value


def test_an_error_while_pointing_is_displayed(parts, monkeypatch):
    explorer = opened(*parts)
    monkeypatch.setattr(logit_blocks, "sample_tiles", lambda *_, **__: 1 / 0)
    explorer.scatters[0].widget.hovering = 5
    assert "ZeroDivisionError" in explorer.error and "alert" in explorer.message.value


def test_a_closed_explorer_its_maps_and_logits_are_freed(parts):
    opened(*parts).close()  # jscatter creates some objects once
    gc.collect()
    before, references = len(ipw.widgets.widget._instances), []
    for _ in range(2):
        explorer = opened(*parts)
        explorer.class_.value = 3
        references += [weakref.ref(one) for one in (explorer, *explorer.scatters, *explorer._maps.values())]
        references += [weakref.ref(one.widget) for one in explorer.scatters]
        explorer.close()
    del explorer
    gc.collect()
    assert [one() for one in references] == [None] * len(references)
    assert len(ipw.widgets.widget._instances) == before


def test_a_cell_that_is_run_again_keeps_the_selection_if_the_images_are_the_same(parts, monkeypatch):
    images, logits = parts
    monkeypatch.setattr(rerun, "executing_cell", lambda: "a cell")

    def made(rows):
        return LogitSpaceExplorer({name: of[rows] for name, of in logits.items()}, images.subset(rows), how="pca")

    first, second = torch.arange(30), torch.arange(30, 60)
    explorer = made(first)
    explorer.select([3, 5])
    assert made(first).members.tolist() == [3, 5]
    assert made(second).members.tolist() == [], "as many images of the same split, but others"
