"""Images with masks or objects that are resized when they are loaded."""

import math

import pytest
import torch
from test_data_dense_sets import coco, photo, segmented, voc  # noqa: F401  # fixtures

from ickd_lib import data
from ickd_lib.data import Sampler
from ickd_lib.data.resizing import resized
from ickd_lib.data.sets import annotated
from ickd_lib.data.sets import coco as coco_file


def test_images_and_masks_get_the_shorter_side(segmented):  # noqa: F811
    whole, small = (data.load(f"masks:{segmented}", ignore=3, image_size=size) for size in (0, 8))
    assert small.train.sizes.tolist() == [[12, 8], [8, 12], [12, 8], [8, 12]]
    assert small.train.transform.size == tuple(round(side * 8 / 16) for side in whole.train.transform.size)
    assert small.test.transform == small.train.transform
    for image, mask, size, before in zip(
        small.train.images, small.train.masks, small.train.sizes.tolist(), whole.train.masks, strict=True
    ):
        assert list(image.shape) == [3, *size] and list(mask.shape) == size and mask.dtype == torch.uint8
        rows, columns = (((torch.arange(n) + 0.5) * m / n).long() for n, m in zip(size, before.shape, strict=True))
        assert torch.equal(mask, before[rows[:, None], columns]), "the nearest pixel, never a mixture of classes"
    assert small.train.fingerprint != whole.train.fingerprint


def test_files_that_are_read_when_needed_are_resized_then(segmented, monkeypatch):  # noqa: F811
    resident = data.load(f"masks:{segmented}", ignore=3, image_size=8)
    monkeypatch.setattr(annotated, "RESIDENT", 0)
    lazy = data.load(f"masks:{segmented}", ignore=3, image_size=8)
    other = data.load(f"masks:{segmented}", ignore=3, image_size=10)
    rows = torch.arange(1)
    for view in (None, torch.tensor([5])):
        a, b = resident.train.batch(rows, view), lazy.train.batch(rows, view)
        assert torch.equal(a.masks, b.masks) and torch.allclose(a.images, b.images, atol=0.02)
    assert len({one.train.fingerprint for one in (lazy, other, data.load(f"masks:{segmented}", ignore=3))}) == 3
    again = data.load(f"masks:{segmented}", ignore=3, image_size=8)
    assert again.train.fingerprint == lazy.train.fingerprint


def test_boxes_and_areas_are_scaled(coco):  # noqa: F811
    whole, small = (data.load(f"coco:{coco}", image_size=size).train for size in (0, 8))
    factors = [8 / min(size) for size in whole.sizes.tolist()]
    for i, factor in enumerate(factors):
        before, after = whole.objects[i], small.objects[i]
        assert torch.isin(after.key, before.key).all()
        kept = torch.isin(before.key, after.key)
        assert torch.allclose(after.boxes, before.boxes[kept] * factor, atol=0.6)
        assert ((before.boxes[~kept, 2:] - before.boxes[~kept, :2]) * factor < 1.5).any(1).all()
        size = small.sizes[i].tolist()
        exact = size[0] * size[1] / math.prod(whole.sizes[i].tolist())
        if after.area is not None:
            assert torch.allclose(after.area, before.area[kept] * exact)
    middle = whole.transform.sizes[len(whole.transform.sizes) // 2]
    assert small.transform.sizes[len(small.transform.sizes) // 2] == 8
    assert small.transform.longest == round(whole.transform.longest * 8 / middle)
    found = small.batch(torch.arange(len(small))).objects
    for own, other in zip([small.objects[i] for i in range(len(small))], found, strict=True):
        assert (other.area is None) == (own.area is None)
        assert own.area is None or torch.equal(other.area, own.area)
    batch = next(Sampler(small).batches(2, data_seed=0, epoch=0))
    assert all(min(image.shape[1:]) <= 12 for image in batch.images)


def test_objects_that_are_left_out_are_counted_in_a_note(coco, notes):  # noqa: F811
    small = data.load(f"coco:{coco}", image_size=4)  # a fourth, so that the crowd of 2×16 pixels is half a pixel wide
    assert [len(small.train.objects.flat), len(small.test.objects.flat)] == [1, 2]
    assert notes() == [
        f"note: {small.train.name}: 1 of 2 objects are left out, because with image_size=4 less than a pixel of their "
        "height or width is left"
    ]


def test_masks_of_objects_are_resized_when_they_are_needed(coco, monkeypatch):  # noqa: F811
    pytest.importorskip("pycocotools")
    read, items = coco_file._object_masks, []
    monkeypatch.setattr(coco_file, "_object_masks", lambda item: items.append(item) or read(item))
    whole, small = (data.load(f"coco:{coco}", annotations="instances", image_size=size).train for size in (0, 4))
    assert not items and small.fingerprint != whole.fingerprint
    assert small.objects[0].masks.shape == (0, 4, 6) and small.objects[1].masks.shape == (1, 4, 6)
    square = whole.objects[1].masks[0]
    assert torch.equal(small.objects[1].masks[0], square[2::4, 2::4]) and len(small.objects[1]) == 1
    for view in (None, torch.tensor([3, 4])):
        batch = small.batch(torch.tensor([1, 0]), view)
        assert [len(one.masks) for one in batch.objects] == [len(one) for one in batch.objects] == [1, 0]
        assert batch.objects[0].masks.shape[1:] == batch.images[0].shape[1:]
    assert len(small.subset(torch.tensor([1])).objects[0].masks) == 1


def test_each_split_is_resized_once(coco, monkeypatch):  # noqa: F811
    names = []
    monkeypatch.setattr(annotated, "resized", lambda images, size: names.append(images.name) or resized(images, size))
    splits = data.load(f"coco:{coco}", image_size=8)
    assert len(names) == len(set(names)) == 3 and splits.test.transform == splits.train.transform


def test_a_subset_and_an_empty_split():
    scenes = data.load("scenes", annotations="instances").train.few(3)
    small = resized(scenes, 48)
    assert small.sizes.tolist() == [[48, 48]] * 3 and small.objects.masks[0].shape[1:] == (48, 48)
    assert len(resized(scenes.subset(torch.arange(0)), 48)) == 0
    with pytest.raises(data.by_name.InputError, match="image_size=32 is not an option of scenes"):
        data.load("scenes", image_size=32)
