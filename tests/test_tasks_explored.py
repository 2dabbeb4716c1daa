"""The explorers over regions and boxes: samples, pictures, neighbourhoods, predictors, and both widgets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ickd_lib import data, explore, methods, models, plots, runtime, tasks
from ickd_lib.explore import class_structure, predictors, reports
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.tasks.pictures import LINE, SIDE, WHOLE, box_mask, crop, whole
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer

KINDS = {"segmentation": ("masks", "resnet8-fcn"), "detection": ("boxes", "resnet8-fpn")}


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """A task with 24 training and 8 test images, and untrained networks."""
    plt.switch_backend("Agg")
    annotations, name = KINDS[request.param]
    splits = data.load("scenes", annotations=annotations)
    train, test = splits.train.subset(torch.arange(40, 64)), splits.test.subset(torch.arange(8))
    task = tasks.create(request.param)
    with runtime.seeded("explored"):
        teacher, student = (models.create(name, **train.spec).eval() for _ in range(2))
    bank = MemoryBank.build(teacher, train, task=task, precision="fp32")
    samples = explore.SampleSet(train, task)
    return SimpleNamespace(
        task=task, train=train, test=test, teacher=teacher, student=student, bank=bank, samples=samples
    )


def lined(picture):
    """The pixels of the bright line of an outline."""
    return (picture == torch.tensor(LINE, dtype=torch.uint8)[:, None, None]).all(0)


# -------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("level", [0, 120, 255])
@pytest.mark.parametrize("dim", [True, False])
def test_an_outline_lies_outside_of_what_it_marks(level, dim):
    image = torch.full((3, 90, 120), level, dtype=torch.uint8)
    mask = torch.zeros(90, 120, dtype=torch.bool)
    mask[30:50, 20:40] = True  # 20 x 20 pixels in a crop of 30 x 30
    picture = crop(image, mask, dim=dim)
    middle = SIDE // 2
    inside = slice(middle - 20, middle + 20)
    assert (picture[:, inside, inside] == level).all()
    row = picture[:, middle].T.tolist()
    edge = next(i for i in range(SIDE) if row[i] == list(LINE))
    assert row[edge + 1] == [0, 0, 0] and row[edge + 2] == [level] * 3 and abs(edge - (middle - 23)) <= 1
    assert row[0] == ([round(0.4 * level)] * 3 if dim else [level] * 3)
    assert lined(picture)[:, middle].sum() == 2  # above and below
    picture = whole(image, mask, dim=dim)
    assert picture.shape == (3, WHOLE * 3 // 4, WHOLE)
    y, x = lined(picture).nonzero(as_tuple=True)
    assert [int(v) * 120 / WHOLE for v in (y.min(), y.max(), x.min(), x.max())] == pytest.approx(
        [30, 50, 20, 40],
        abs=1.5,  # the line is up to two pixels outside
    )


def test_crops_stay_in_the_image_and_show_thin_and_missing_regions():
    image = torch.zeros(3, 40, 200, dtype=torch.uint8)
    image[0] = torch.arange(200)  # the column of each pixel
    corner = crop(image, box_mask(torch.tensor([180.0, 0, 200, 20]), 40, 200), dim=False)
    assert corner[0, -1, -1] >= 198 and corner[0, 0, 0] in range(169, 172)  # 30 pixels, moved into the image
    assert lined(corner)[:, -1].any() and lined(corner)[0].any()  # a frame has four sides
    wide = crop(image, box_mask(torch.tensor([0.0, 0, 200, 40]), 40, 200), dim=False)
    assert wide[:, 0].unique().tolist() == [128]  # grey above an image that is wider than high
    thin = torch.zeros(40, 200, dtype=torch.bool)
    thin[20] = True
    assert lined(crop(image, thin, dim=True)).any()
    assert not crop(image, thin & False, dim=True).any()
    assert box_mask(torch.tensor([199.8, 39.9, 200.0, 40.0]), 40, 200).nonzero().tolist() == [[39, 199]]


def test_pictures_mark_regions_and_boxes(case):
    at = torch.tensor([5, 0, len(case.samples) - 1])
    pictures = case.samples.thumbnails(at)
    assert pictures.shape == (3, 3, SIDE, SIDE) and pictures.dtype == torch.uint8
    assert all(lined(picture).any() for picture in pictures)
    whole = case.samples.whole_image(0)
    assert whole.shape == (3, WHOLE, WHOLE) and torch.equal(
        whole, case.task.whole_image(case.train, int(case.samples.keys[0]))
    )
    y, x = lined(whole).nonzero(as_tuple=True)
    found = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]) * 96 / WHOLE
    if case.task.name == "detection":
        assert torch.allclose(found, case.train.objects.flat.boxes[0], atol=1.5)
    else:  # the first region is the background, whose outline surrounds the digits
        y, x = (case.train.masks[0] > 0).nonzero(as_tuple=True)
        box = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
        assert torch.allclose(found, box, atol=1.5)
    digits = data.load("digits").test
    assert explore.SampleSet(digits).whole_image(0) is None


# --------------------------------------------------------------------------------------------------- samples


def test_a_sample_set_of_regions_or_boxes(case):
    samples, classes = case.samples, case.train.classes
    assert samples.classes == (classes if case.task.name == "segmentation" else ("background", *classes))
    assert len(samples.classes) == 11 and (samples.superclasses, samples.superclass_of) == ((), ())
    for at in (0, len(samples) - 1):
        row, key, label = int(samples.rows[at]), int(samples.keys[at]), int(samples.labels[at])
        position = case.train.index.tolist().index(row)
        if case.task.name == "segmentation":
            assert samples.address(at) == (f"row {row}", f"region {row * 11 + label}")
            assert (case.train.masks[position] == label).any()
        else:
            assert samples.address(at) == (f"row {row}", f"box {key}")
            objects = case.train.objects[position]
            assert objects.labels[objects.key == key].tolist() == [label - 1]
    at = torch.tensor([7, 2])
    output = samples.outputs(case.teacher, at, precision="fp32")
    stored = samples.stored_outputs(case.bank, at)
    torch.testing.assert_close(output.logits, stored.logits, atol=1e-4, rtol=1e-4)
    pictured = samples.pictured(at)
    assert pictured.classes == samples.classes and pictured.size == (SIDE, SIDE)
    assert torch.equal(pictured.index, samples.keys[at]) and torch.equal(pictured.labels, samples.labels[at])


def test_searches_find_rows_classes_and_predictions(case):
    samples = case.samples
    row = int(samples.rows[9])
    assert explore.search(f"row:{row}", samples) == (samples.rows == row).nonzero().squeeze(1).tolist()
    assert torch.equal(
        explore.positions(f"{row}-{row + 1}", samples.rows, samples.name),
        ((samples.rows == row) | (samples.rows == row + 1)).nonzero().squeeze(1),
    )
    three = samples.classes.index("3")
    assert explore.search("3", samples) == (samples.labels == three).nonzero().squeeze(1).tolist()
    logits = torch.eye(11)[(samples.labels + 1) % 11]
    four = explore.search("student:4", samples, logits={"student": logits})
    assert four == explore.search("3", samples)
    right = torch.eye(11)[samples.labels]
    one, several = case.task.sample
    with pytest.raises(InputError, match=f"all of these {several} correctly"):
        explore.search("wrong", samples, logits={"student": right})
    with pytest.raises(InputError, match=f"no {one} matches 'zebra'"):
        explore.search("zebra", samples)


def test_banks_images_and_networks_must_fit(case):
    fit = {"student": case.student, "teacher": case.teacher, "task": case.task}
    explore.require_fit(case.bank, case.train, queries=case.test, **fit)
    with pytest.raises(InputError, match="the bank contains"):
        explore.require_fit(case.bank, case.train.subset(torch.arange(3)), **fit)
    with pytest.raises(InputError, match="choose the task segmentation or detection"):
        explore.SampleSet(case.train)
    with pytest.raises(InputError, match="is a network for classification"):
        explore.require_fit(case.bank, case.train, student=models.create("resnet8", 10), task=case.task)
    digits = data.load("digits").test
    with pytest.raises(InputError, match=f"{case.task.name} needs images with"):
        explore.SampleSet(digits, case.task)


# ----------------------------------------------------------------------------------------------- predictions


def test_neighbourhoods_predictors_and_classes(case):
    """Each function gives one value or column for each column of the logits; a class without samples gives NaN."""
    samples, bank = case.samples, case.bank
    at = torch.arange(12)
    output = samples.stored_outputs(bank, at)
    student = samples.outputs(case.student, at).logits
    around = explore.neighbourhood(bank, output, samples.labels[at], samples.keys[at], student_logits=student)
    near = around.positives
    assert near.mask.any() and not (near.index == samples.keys[at, None])[near.mask].any()
    assert (bank.labels[bank.rows(near.index)] == samples.labels[at, None])[near.mask].all()
    terms = explore.terms(methods.create("ickd"), around, samples.labels[at])
    assert set(terms) == {"ce", "kd", "picd", "nicd"} and np.isfinite(list(terms.values())).all()
    scores = predictors.predictor_scores(around.logits, samples.labels[at], temperature=4)
    assert set(scores) == {"teacher", "aggregate", "student"}
    share = predictors.negative_classes(bank, around.negatives, samples.labels[at])
    assert share.shape == (11, 11) and (share.sum(1)[samples.labels[at]] - 1).abs().max() < 1e-9
    table = reports.negative_table(share, samples.classes)
    shown = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[4:]]
    assert set(shown) == {samples.classes[c] for c in samples.labels[at].tolist()}
    occurring = len(set(samples.labels.tolist()))
    assert f"would contribute {1 / (occurring - 1):.1%}" in table
    same, gain = around.logits, torch.zeros(12)
    text = reports.prediction_takeaways(
        {**scores, "free": scores["aggregate"]},
        predictors.changes({**same, "free": same["aggregate"]}, samples.labels[at]),
        gain,
        share,
        same="aggregate",
        free="free",
    )
    assert f"equal contributions it would be {1 / (occurring - 1):.1%}" in text

    logits = bank.logits[bank.rows(samples.keys)]
    matrix = class_structure.class_correlation(logits, samples.labels, 11)
    absent = torch.bincount(samples.labels, minlength=11) == 0
    assert torch.equal(matrix.isnan(), absent[:, None] | absent) and absent[0] == (case.task.name == "detection")
    numbers = class_structure.correlation_numbers({"teacher": matrix, "student": matrix})
    there = (~absent).nonzero().squeeze(1)
    assert numbers["student"]["own"] == pytest.approx(matrix[there, there].mean().item())
    assert numbers["student"]["distance"] == 0
    figure = plots.class_correlation({"teacher": matrix}, samples.classes)
    assert f"same class {numbers['teacher']['own']:.2f}" in figure.axes[0].get_title()
    plt.close(figure)
    region = explore.region(logits, samples.labels, at)
    assert region.counts.tolist() == torch.bincount(samples.labels[at], minlength=11).tolist()
    assert explore.embed(logits, "pca").shape == (len(samples), 2)


# --------------------------------------------------------------------------------------------------- widgets


def test_the_neighbour_explorer_shows_crops_and_the_image_of_the_query(case):
    explorer = NeighbourExplorer(
        case.bank, case.train, queries=case.test, student=case.student, teacher=case.teacher, task=case.task
    )
    assert explorer.error == ""
    samples, one = explorer.query_samples, case.task.sample[0]
    explorer.number.value = int(samples.keys[3])
    crumbs, row, near, _ = explorer.view._last[0]
    query, image = row["blocks"][0]["blocks"][0]["blocks"]
    bytes_ = np.frombuffer(explorer.view._last[1], np.uint8)
    address = samples.address(3)
    assert crumbs["items"][0]["text"].startswith(f"test {', '.join(address)}, ")
    assert query["tiles"][0]["lines"] == [samples.classes[int(samples.labels[3])], *address]
    crops = bytes_[: np.prod(query["shape"]) * 3].reshape(*query["shape"], 3)
    assert (crops[0] == samples.thumbnails(torch.tensor([3]))[0].permute(1, 2, 0).numpy()).all()
    for tile in near["tiles"]:
        position = int(explorer.bank_samples.positions(torch.tensor(tile["key"])))
        picture = explorer.bank_samples.thumbnails(torch.tensor([position]))[0]
        assert (crops[tile["at"]] == picture.permute(1, 2, 0).numpy()).all()
        assert tile["label"].endswith(", ".join(explorer.bank_samples.address(position)))
    assert image["tone"] == "image" and image["shape"] == (1, WHOLE, WHOLE) and image["start"] == crops.size
    assert (bytes_[crops.size :] == samples.whole_image(3).permute(1, 2, 0).numpy().ravel()).all()
    explorer.view._receive(None, {"event": "open", "key": str(near["tiles"][0]["key"])}, [])
    assert explorer.error == "" and explorer.current[0] and len(explorer.path) == 2
    explorer.search.value = f"row:{int(samples.rows[-1])}"
    assert explorer.error == "" and int(samples.rows[explorer.current[1]]) == int(samples.rows[-1])
    explorer.search.value = "wrong student:background"
    assert explorer.error == "" or explorer.error.startswith(f"no {one} matches")
    assert explorer.png().startswith(b"\x89PNG")


def test_the_logit_space_explorer_shows_points_and_crops(case):
    explorer = LogitSpaceExplorer({"a": case.teacher, "b": case.student}, case.train, how="pca", task=case.task)
    explorer.view._receive(None, {"event": "ready", "dark": False, "fresh": True}, [])
    assert explorer.error == "" and len(explorer.scatters[0].widget.points) == len(case.samples)
    several = case.task.sample[1]
    assert [block["kind"] for block in explorer.view._last[0]] == ["legend", "row"]  # confusions and accuracies
    row = int(case.samples.rows[4])
    explorer.written.value = str(row)
    members = (case.samples.rows == row).nonzero().squeeze(1)
    assert explorer.error == "" and torch.equal(explorer.members, members)
    _, own, table, *_ = explorer.view._last[0]
    assert table["title"].startswith(f"separation of the selected {several}")
    at = torch.tensor([int(tile["key"]) for tile in own["tiles"]])  # those with the lowest margin first
    assert sorted(at.tolist()) == members.tolist()
    pixels = np.frombuffer(explorer.view._last[1], np.uint8).reshape(*own["shape"], 3)
    assert (pixels[: len(at)] == case.samples.thumbnails(at).permute(0, 2, 3, 1).numpy()).all()
    explorer.scatters[0].widget.hovering = 4
    (hovered,), _ = explorer.hovered._last
    assert hovered["blocks"][0]["title"] == case.task.sample[0]
    assert hovered["blocks"][1]["title"].startswith(f"predictions for {', '.join(case.samples.address(4))} (class ")
    explorer.class_.value = 3
    assert (explorer.labels[explorer.members] == 3).all() and len(explorer.members)
    assert explorer.png().startswith(b"\x89PNG")
    given = LogitSpaceExplorer({"a": explorer.logits["a"]}, case.train, how="pca", task=case.task)
    assert torch.equal(given.logits["a"], explorer.logits["a"])
    with pytest.raises(InputError, match="choose the task"):
        LogitSpaceExplorer({"a": explorer.logits["a"]}, replace(case.train))
