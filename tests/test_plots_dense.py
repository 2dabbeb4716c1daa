"""Figures of segmentation and detection contain the masks, boxes and pictures that they were given."""

from __future__ import annotations

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from ickd_lib import plots
from ickd_lib.data import Objects
from ickd_lib.explore.detection import Found
from ickd_lib.plots.style import OTHER, SAME

CLASSES = ("background", "a", "b")


@pytest.fixture(autouse=True)
def closed():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def objects(boxes, labels) -> Objects:
    labels = torch.tensor(labels, dtype=torch.long)
    return Objects(torch.as_tensor(boxes).float(), labels, torch.arange(len(labels)), torch.zeros_like(labels).bool())


def test_mask_colours_differ_for_twenty_one_classes():
    found = plots.segmentation.mask_colours(["background", *(str(c) for c in range(20))])
    assert len({tuple(colour) for colour in found.round(3)}) == 21
    assert len(set(found[0])) == 1, "the background is grey"
    assert not any(len(set(colour.round(3))) == 1 for colour in found[1:]), "and no other class is"


def test_masks_have_the_colour_of_their_class_and_ignored_pixels_are_white():
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[2:6, 2:6], mask[0, 0] = 2, 255
    figure = plots.segmentation.masks([torch.rand(3, 8, 8)] * 2, [mask, torch.zeros_like(mask)], CLASSES)
    picture = figure.axes[2].images[0].get_array()
    colours = plots.segmentation.mask_colours(CLASSES)
    assert np.allclose(picture[3, 3], colours[2]) and np.allclose(picture[7, 7], colours[0])
    assert np.allclose(picture[0, 0], 1)
    assert [text.get_text() for text in figure.axes[2].texts] == ["b"] and not figure.axes[3].texts
    assert [text.get_text() for text in figure.legends[0].texts] == ["background", "b", "ignored"]


def test_wrong_pixels_have_the_full_colour_of_the_prediction():
    truth = torch.zeros(10, 10, dtype=torch.uint8)
    truth[0, :5] = 255
    guess = truth.clone()
    guess[5:, :], guess[0, :5] = 1, 2
    figure = plots.segmentation.segmentations(
        [torch.rand(3, 10, 10)], [truth], {"teacher": [truth], "kd": [guess]}, CLASSES, titles=["one"]
    )
    colours = plots.segmentation.mask_colours(CLASSES)
    right, wrong = (figure.axes[i].images[0].get_array() for i in (2, 3))
    assert np.allclose(wrong[7, 7], colours[1]) and np.allclose(wrong[0, 0], 1)
    assert np.allclose(wrong[2, 2], right[2, 2]) and wrong[2, 2].min() > colours[0].max(), "pale"
    assert [figure.axes[i].get_xlabel() for i in (2, 3)] == ["0.0% wrong", f"{50 / 95:.1%} wrong"]
    assert [axis.get_title() for axis in figure.axes] == ["image", "labels", "teacher", "kd"]
    assert [text.get_text() for text in figure.axes[3].texts] == ["a"]


def test_images_of_unequal_sizes_are_drawn():
    sizes = ((6, 9), (12, 5))
    images, masks = [torch.rand(3, *s) for s in sizes], [torch.zeros(s, dtype=torch.uint8) for s in sizes]
    figure = plots.segmentation.segmentations(images, masks, {"ce": masks}, CLASSES)
    assert [axis.images[0].get_array().shape[:2] for axis in figure.axes[::3]] == list(sizes)
    figure = plots.detection.boxes(images, [objects([[1, 1, 4, 4]], [0]), objects(torch.zeros(0, 4), [])], CLASSES)
    assert [len(axis.patches) for axis in figure.axes] == [1, 0]


def test_boxes_are_where_they_were_given():
    (axis,) = plots.detection.boxes([torch.rand(3, 20, 30)], [objects([[2, 3, 10, 12]], [1])], CLASSES).axes
    (patch,) = axis.patches
    assert (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) == (1.5, 2.5, 8, 9)
    assert [text.get_text() for text in axis.texts] == ["a"]


def test_detections_are_coloured_by_what_they_are():
    boxes = torch.tensor([[0, 0, 5, 5], [5, 5, 9, 9]]).float()
    one = Found(boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), torch.tensor([True, False]), boxes[:1])
    figure = plots.detection.detections([torch.rand(3, 10, 10)], [objects([[0, 0, 5, 5]], [1])], {"kd": [one]}, CLASSES)
    _, axis = figure.axes
    looks = [(patch.get_edgecolor()[:3], patch.get_linestyle()) for patch in axis.patches]
    assert looks[1:] == [(SAME, "-"), (OTHER, "--")] and looks[0][1] == ":"
    assert axis.get_xlabel() == "1 right, 1 wrong,\n1 missed"
    assert [text.get_text() for text in axis.texts] == ["a", "b"]


def test_a_proposal_is_beside_the_boxes_that_are_retrieved_for_it():
    boxes, labels = torch.tensor([[0, 0, 4, 4], [2, 2, 8, 8], [1, 1, 5, 5]]).float(), torch.tensor([0, 2, 1])
    pictures = torch.randint(255, (4, 3, 6, 6), dtype=torch.uint8)
    figure = plots.detection.proposals(
        torch.zeros(3, 10, 10), boxes, labels, 1, pictures, ["a", "b", "c", "d"], positives=2
    )
    left, rows = figure.axes
    assert left.get_title() == "3 proposals, 2 of them on an object (blue)"
    colours = [mcolors.to_hex(patch.get_edgecolor()) for patch in left.patches]
    assert colours == ["#ffffff", *[mcolors.to_hex(SAME)] * 2, plots.detection.CHOSEN]
    assert len(rows.images) == 4 and (rows.images[2].get_array() == pictures[2].permute(1, 2, 0).numpy()).all()
    assert {"a", "b", "c", "d"} <= {text.get_text() for text in rows.texts}


def test_retrieved_pictures_are_in_lines_and_masked_ones_are_left_out():
    pictures = torch.randint(255, (2, 4, 3, 6, 6), dtype=torch.uint8)
    texts = [["q", "p1", "p2", "n1"], ["r", "p3", "", "n2"]]
    (axis,) = plots.retrieved(pictures, texts, positives=2).axes
    assert len(axis.images) == 7
    assert [text.get_text() for text in axis.texts][3:] == ["q", "p1", "p2", "n1", "r", "p3", "n2"]
    assert (axis.images[3].get_array() == pictures[0, 3].permute(1, 2, 0).numpy()).all()


def test_class_scores_have_a_marker_for_each_network_and_class():
    given = {"teacher": {"a": [0.9], "b": [0.8]}, "kd": {"a": [0.5, 0.7], "b": [0.4, 0.4]}, "ce": {"a": [0.3, 0.5]}}
    figure = plots.class_scores(given, xlabel="IoU, %")
    (axis,) = figure.axes
    means = [
        c.get_offsets()[0, 0] for c in axis.collections if isinstance(c, PathCollection) and len(c.get_offsets()) == 1
    ]
    assert np.allclose(means, [90, 80, 60, 40, 40])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["teacher", "kd", "ce"]
