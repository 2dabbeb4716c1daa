"""Measurements of retrieval agree with loops over all pairs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import metrics
from ickd_lib.memory import MemoryBank
from ickd_lib.memory.measurements import (
    chance_precision,
    nearest_similarities,
    pixel_features,
    precision_at,
    retrieval_seconds,
)
from ickd_lib.runtime import InputError

CLASSES = ("a", "b", "c")


@pytest.fixture
def small():
    """A bank of 12 rows of three classes with unequal numbers of rows."""
    generator = torch.Generator().manual_seed(0)
    features, logits = torch.randn(12, 4, generator=generator), torch.randn(12, 3, generator=generator)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    return MemoryBank(features, logits, labels, 10 * torch.arange(12), CLASSES)


@pytest.fixture
def queries():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("group_of", [None, torch.tensor([0, 1, 0])])
def test_precision_is_the_share_of_neighbours_of_the_class_or_group(small, queries, group_of):
    features, labels = queries
    found = precision_at(small, features, labels, ks=[1, 3, 7], group_of=group_of)
    group = [0, 1, 2] if group_of is None else group_of.tolist()
    for i, (feature, label) in enumerate(zip(features, labels.tolist(), strict=True)):
        order = (small.features @ F.normalize(feature, dim=0)).argsort(descending=True).tolist()
        for j, k in enumerate([1, 3, 7]):
            same = [group[int(small.labels[row])] == group[label] for row in order[:k]]
            assert found[i, j].item() == pytest.approx(sum(same) / k)


def test_rows_of_the_bank_are_not_their_own_neighbours(small):
    found = precision_at(small, small.features, small.labels, small.index, ks=[1, 4])
    assert found[10:, 0].max() <= 1 and found[10:, 1].max() <= 0.25  # class c has one other row
    with_itself = precision_at(small, small.features, small.labels, ks=[1])
    assert with_itself.min() == 1


def test_precision_agrees_with_the_metric_of_retrieval(bank, digits):
    found = precision_at(bank, bank.features, bank.labels, bank.index, ks=[1, 8]).mean(0)
    expected = metrics.retrieval(bank, digits.train, k=8)
    assert found.tolist() == pytest.approx([expected["precision@1"], expected["precision@8"]])
    assert chance_precision(bank, bank.labels) == pytest.approx(expected["chance"])


def test_chance_is_the_mean_share_of_the_querys_class_or_group(small, queries):
    _, labels = queries
    assert chance_precision(small, labels) == pytest.approx((6 + 4 + 2 + 4 + 6) / 12 / 5)
    assert chance_precision(small, labels, torch.tensor([0, 1, 0])) == pytest.approx((8 + 4 + 8 + 4 + 8) / 12 / 5)
    without = small.labels < 2  # no row of the last class
    bank = MemoryBank(small.features[without], small.logits[without], small.labels[without], small.index[:10], CLASSES)
    assert chance_precision(bank, labels) == pytest.approx((6 + 4 + 0 + 4 + 6) / 10 / 5)


def test_numbers_of_neighbours_are_checked(small, queries):
    with pytest.raises(InputError, match="must be 1 or more"):
        precision_at(small, *queries, ks=[0, 2])
    with pytest.raises(InputError, match="only 12 other rows, not 13"):
        precision_at(small, *queries, ks=[13])


def test_nearest_similarities_are_means_over_the_queries(small, queries):
    features, labels = queries
    found = nearest_similarities(*small.retrieve(features, labels, positives=2, negatives=2))
    cosine = F.normalize(features, dim=1) @ small.features.T
    same = labels[:, None] == small.labels
    own = cosine.masked_fill(~same, -2).amax(1)
    other = cosine.masked_fill(same, -2).amax(1)
    assert found["own"] == pytest.approx(own.mean().item(), abs=1e-6)
    assert found["other"] == pytest.approx(other.mean().item(), abs=1e-6)
    assert found["other_nearer"] == pytest.approx((other >= own).double().mean().item())


def test_pixel_features_of_small_images_are_their_pixels_and_larger_ones_are_averaged(digits):
    images = digits.train
    assert torch.equal(pixel_features(images), images.pixels().flatten(1))
    large = replace(images, images=images.images.repeat_interleave(6, 2).repeat_interleave(6, 3))  # 48 pixels
    found = pixel_features(large, side=8).view(len(images), 3, 8, 8)
    torch.testing.assert_close(found, images.pixels())
    assert pixel_features(large).shape == (len(images), 3 * 16 * 16)


def test_retrieval_seconds_are_positive_for_each_size(untouched_generator):
    found = retrieval_seconds([20, 40], dim=3, classes=4, positives=2, negatives=3, batch=5, repeats=3)
    assert list(found) == ["search, one query", "search, batch of 5", "table, batch of 5"]
    assert all(len(values) == 2 and all(v > 0 and math.isfinite(v) for v in values) for values in found.values())
