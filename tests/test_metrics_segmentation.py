"""Segmentation metrics compared with values computed by hand and with a naive loop over the pixels."""

import json

import pytest
import torch

from ickd_lib import metrics
from ickd_lib.runtime import InputError


def test_confusion_against_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 5, (3, 7, 11), generator=g)
    predicted = torch.randint(0, 5, (3, 7, 11), generator=g)
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for label, prediction in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if label != -1:
            expected[label, prediction] += 1
    got = metrics.confusion(predicted, labels, 5)
    assert got.dtype == torch.int64 and torch.equal(got, expected) and got.sum() < labels.numel()
    assert torch.equal(sum(metrics.confusion(*pair, 5) for pair in zip(predicted, labels, strict=True)), expected)
    bytes_ = metrics.confusion(predicted.byte(), labels.to(torch.int8), 5)
    assert torch.equal(bytes_, expected)


def test_confusion_of_no_pixels():
    nothing = torch.zeros(0, 4, dtype=torch.int64)
    ignored = torch.full((2, 2), -1)
    for labels in (nothing, ignored):
        assert torch.equal(metrics.confusion(torch.zeros_like(labels), labels, 3), torch.zeros(3, 3).long())


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([0, 1], [0, 255], "labels are from 0 to 255; expected -1 to 2"),
        ([0, 1], [0, -2], "labels are from -2 to 0"),
        ([0, 3], [0, 0], "predictions are from 0 to 3; expected 0 to 2"),
        ([-1, 0], [0, 0], "predictions are from -1 to 0"),
        ([0, 1, 2], [0, 1], r"predictions have shape \[3\] and labels \[2\]"),
    ],
)
def test_confusion_refuses_values_out_of_range(predicted, labels, message):
    with pytest.raises(InputError, match=message) as error:
        metrics.confusion(torch.tensor(predicted), torch.tensor(labels), 3)
    assert "\n" not in str(error.value)


def test_segmentation_by_hand():
    # Class c is predicted but has no pixel, d has pixels that are never found, e occurs nowhere.
    labels = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 3, -1, 0, 0, -1]])
    predicted = torch.tensor([[0, 0, 1, 2, 1, 1], [0, 1, 0, 0, 0, 4]])
    got = metrics.segmentation(metrics.confusion(predicted, labels, 5), "abcde")
    # a: 4 of 6 + 1, b: 2 of 3 + 2
    expected = {"iou_a": 4 / 7, "iou_b": 2 / 5, "iou_c": 0, "iou_d": 0}
    expected |= {"miou": (4 / 7 + 2 / 5) / 4, "pixel_accuracy": 6 / 10, "mean_accuracy": (4 / 6 + 2 / 3 + 0) / 3}
    assert got == pytest.approx(expected, abs=1e-15)
    assert all(type(value) is float for value in got.values()) and json.dumps(got, allow_nan=False)


def test_a_perfect_segmentation_has_ones():
    labels = torch.tensor([0, 2, 2, -1])
    got = metrics.segmentation(metrics.confusion(labels.clamp(min=0), labels, 3), ("a", "b", "c"))
    assert got == {"miou": 1, "pixel_accuracy": 1, "mean_accuracy": 1, "iou_a": 1, "iou_c": 1}


def test_segmentation_refuses_other_names_and_no_pixels():
    with pytest.raises(InputError, match=r"shape \[3, 3\], but there are 2 classes"):
        metrics.segmentation(torch.eye(3).long(), "ab")
    with pytest.raises(InputError, match="0 everywhere"):
        metrics.segmentation(torch.zeros(3, 3).long(), "abc")
