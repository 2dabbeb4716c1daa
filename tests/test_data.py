"""Loading by name, storage, selection of classes, and views."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ickd_lib import data
from ickd_lib.data.sequences import channel_statistics
from ickd_lib.runtime import InputError


def test_digits_are_complete_and_stratified():
    splits = data.load("digits")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1000, 0, 797)
    assert splits.train.images.shape == (1000, 3, 8, 8) and splits.train.images.dtype == torch.uint8
    pixels = splits.train.pixels()
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(splits.train.mean), atol=1e-6)
    assert torch.allclose(pixels.std((0, 2, 3), correction=0), torch.tensor(splits.train.std), atol=1e-5)
    counts = torch.bincount(splits.test.labels)
    assert counts.max() - counts.min() <= 5


def test_the_digits_never_change():
    """Memory banks and teacher caches of earlier versions are found by these fingerprints."""
    splits = data.load("digits")
    assert (splits.train.fingerprint, splits.test.fingerprint) == ("f56c75705d076a77", "1fd2ddf57823d8db")


def test_validation_is_carved_from_train_and_rows_keep_their_number():
    whole, carved = data.load("digits"), data.load("digits", val=0.1)
    assert (len(carved.train), len(carved.val)) == (900, 100)
    assert carved.val.name == "digits/val"
    assert not set(carved.train.index.tolist()) & set(carved.val.index.tolist())
    for split in (carved.train, carved.val):
        assert torch.equal(split.images, whole.train.images[split.index])
    assert torch.bincount(carved.val.labels).tolist() == [10] * 10


def test_few_labels_are_stratified_and_a_function_of_the_seed():
    a, b, c = (data.load("digits", labels=105, seed=s).train for s in (0, 0, 1))
    counts = torch.bincount(a.labels)
    assert len(a) == 105 and counts.min() >= 10 and counts.max() <= 11
    assert torch.equal(a.index, b.index) and not torch.equal(a.index, c.index)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "cifar10"}, "unknown data set 'cifar10'; did you mean 'cifar100'"),
        ({"name": "folder"}, "unknown data set 'folder'; did you mean 'folder:PATH'"),
        ({"name": "foldr:/nowhere"}, "unknown data set 'foldr'; did you mean 'folder'"),
        ({"name": "folder:"}, "data set 'folder:' lacks a path; give folder:PATH"),
        ({"name": "digits:/nowhere"}, "'digits:/nowhere' has a path, but 'digits' takes none"),
        ({"name": "digits", "labels": 5}, "cannot draw 5 of 1000 images; give a number from 10, one for each class"),
        ({"name": "digits", "labels": 2000}, "cannot draw 2000 of 1000 images"),
        ({"name": "digits", "val": 1.5}, "val=1.5: expected a finite number from 0 to below 1"),
        (
            {"name": "digits", "image_size": 16},
            "image_size=16 is not an option of digits, only of coco:PATH, folder:PATH",
        ),
        ({"name": "folder:/nowhere", "image_size": -1}, "image_size=-1: expected a whole number of 0 or more"),
        (
            {"name": "digits", "classes": [3, 10]},
            "class 10 is out of range; digits has 10 classes, numbered from 0 to 9",
        ),
        ({"name": "digits", "classes": [-1, 3]}, "class -1 is out of range"),
        ({"name": "digits", "classes": ["7", 7]}, "selects the class '7' only; give two or more"),
        ({"name": "digits", "classes": ["1", "10"]}, "unknown class '10'; did you mean '1'"),
        ({"name": "digits", "classes": "56"}, "classes='56': expected a list"),
        ({"name": "digits", "augment": "cutmx"}, "unknown augmentation 'cutmx'; did you mean 'cutmix'"),
        ({"name": "digits", "augment": "mixup+cutmix"}, "mixes images in two ways"),
        ({"name": "digits", "augment": "mixup+mixup"}, "contains a part twice"),
        ({"name": "digits", "augment": "crop+mixup"}, "remove 'crop'"),
        ({"name": "cifar100", "root": "/nowhere"}, "/nowhere/cifar-100-python/meta does not exist"),
        ({"name": "folder:/nowhere"}, "/nowhere is not a folder"),
    ],
)
def test_impossible_requests_are_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        data.load(**call)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- storage


def test_representations_are_short(digits):
    batch = next(data.Sampler(digits.train).batches(50, data_seed=0, epoch=0))
    mixed = next(data.Sampler(replace(digits.train, augment="mixup")).batches(50, data_seed=0, epoch=0))
    images = "Images('digits/train', 120 images of 8×8 pixels, 10 classes, augment='crop', cpu)"
    assert repr(digits.train) == images
    assert repr(digits) == "Splits('digits', train=120, val=0, test=797 images of 8×8 pixels, 10 classes)"
    assert repr(batch) == "Batch(50 images of 8×8 pixels, labels, cpu)"
    assert repr(mixed) == "Batch(50 images of 8×8 pixels, soft labels, cpu)"
    assert repr(data.Sampler(digits.train)) == f"Sampler({images})"


@pytest.mark.parametrize(("pad", "flip", "views"), [(1, False, 9), (4, True, 162), (0, True, 2)])
def test_a_view_number_determines_the_crop_and_the_flip(digits, pad, flip, views):
    images = replace(digits.train, pad=pad, flip=flip)
    assert images.views == views
    rows = torch.arange(views) % len(images)
    augmented = images.augmented(rows, torch.arange(views))
    for view, row in enumerate(rows.tolist()):
        place, mirrored = divmod(view, 2) if flip else (view, 0)
        down, right = divmod(place, 2 * pad + 1)
        expected = F.pad(images.images[row].float() / 255, (pad, pad, pad, pad))[:, down : down + 8, right : right + 8]
        assert torch.equal(augmented[view], expected.flip(2) if mirrored else expected), view
    centre = (pad * (2 * pad + 1) + pad) * (1 + flip)
    assert torch.equal(images.augmented(rows[:1], torch.tensor([centre])), images.pixels(rows[:1]))


def test_the_fingerprint_changes_with_pixels_labels_rows_and_classes(digits):
    train = digits.train
    pixels = train.images.clone()
    pixels[3, 0, 2, 2] += 1
    fingerprints = {
        train.fingerprint,
        replace(train, images=pixels).fingerprint,
        replace(train, labels=train.labels.roll(1)).fingerprint,
        replace(train, index=train.index + 1).fingerprint,
        replace(train, classes=tuple("abcdefghij")).fingerprint,
    }
    assert len(fingerprints) == 5


# ------------------------------------------------------------------------------------------- selection


def test_some_classes_become_the_label_space():
    whole, some = data.load("digits"), data.load("digits", classes=[9, "5", 7, "7"], val=0.1)
    assert some.train.classes == ("5", "7", "9") and some.train.spec["num_classes"] == 3
    assert [split.name for split in some] == [f"digits(5,7,9)/{split}" for split in ("train", "val", "test")]
    for split, all_of in zip(some, (whole.train, whole.train, whole.test), strict=True):
        rows = torch.searchsorted(all_of.index, split.index)
        assert torch.equal(split.images, all_of.images[rows])
        assert torch.equal(torch.tensor([5, 7, 9])[split.labels], all_of.labels[rows])
        assert (split.mean, split.std) == (whole.train.mean, whole.train.std)
    assert len(some.train) + len(some.val) == int((whole.train.labels[:, None] == torch.tensor([5, 7, 9])).any(1).sum())
    assert torch.bincount(data.load("digits", classes=[5, 7, 9], labels=30).train.labels).tolist() == [10] * 3
    assert some.train.restricted([0, "9"]).name == "digits(5,9)/train"
    assert whole.train.restricted(range(10)) is whole.train


def test_only_some_classes_in_the_same_label_space(digits):
    images = digits.train.only(["3", 8])
    assert images.classes == digits.train.classes and images.name == digits.train.name
    assert images.labels.unique().tolist() == [3, 8] and images.fingerprint != digits.train.fingerprint
    assert len(images) == int(((digits.train.labels == 3) | (digits.train.labels == 8)).sum())
    assert digits.train.only([4]).labels.unique().tolist() == [4]


def test_a_superclass_stands_for_all_its_classes(cifar_root):
    splits = data.load("cifar100", cifar_root, classes=["people", "trees", "apple"])
    assert splits.test.name.startswith("cifar100(11 classes ") and len(splits.train) == 5500
    assert splits.train.classes[:3] == ("apple", "baby", "boy") and len(splits.train.superclasses) == 20
    superclasses = [splits.train.superclasses[s] for s in splits.train.superclass_of]
    assert superclasses[:3] == ["fruit_and_vegetables", "people", "people"] and superclasses.count("trees") == 5
    assert splits.test.restricted(["people"]).name == "cifar100(baby,boy,girl,man,woman)/test"
    with pytest.raises(InputError, match="unknown class or superclass 'peple'; did you mean 'people'"):
        splits.train.restricted(["peple", "trees"])
    with pytest.raises(InputError, match="unknown class or superclass 'fish'"):
        splits.train.only(["fish"])  # None of its classes are left.


def test_the_only_image_of_a_class_is_not_held_out(tmp_path):
    for split in ("train", "test"):
        for name, count in (("a", 6), ("b", 6), ("c", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    train, val, _ = data.load(f"folder:{tmp_path}", val=0.25)
    assert torch.bincount(train.labels).tolist()[2] == 1 and not (val.labels == 2).any()
    assert len(train) + len(val) == 13 and set(val.labels.tolist()) == {0, 1}


def test_images_without_labels_are_written_into_their_own_folder(tmp_path):
    splits = data.load("digits", labels=30, unlabelled=50)
    path = data.write_folder(splits, tmp_path / "written")
    counts = {c.name: len(list(c.iterdir())) for c in (path / "train").iterdir()}
    assert counts == {str(digit): 3 for digit in range(10)} and len(list((path / "unlabelled").iterdir())) == 50


def test_validation_images_are_written_and_dense_ones_refused(tmp_path):
    splits = data.load("digits", labels=60, val=0.2)
    again = data.load(f"folder:{data.write_folder(splits, tmp_path / 'written')}", val=0.2)
    for name in data.Splits._fields:
        old, new = getattr(splits, name), getattr(again, name)
        assert len(old) == len(new) > 0 and old.labels.bincount().tolist() == new.labels.bincount().tolist()
    with pytest.raises(InputError, match="scenes/train has masks or objects, and class folders hold one class"):
        data.write_folder(data.load("scenes"), tmp_path / "scenes")


def test_a_constant_channel_has_a_standard_deviation():
    for level in range(256):
        _, std = channel_statistics([torch.full((7, 3, 5, 5), level, dtype=torch.uint8)])
        assert std == pytest.approx((1 / 255,) * 3)


def test_a_share_of_unlabelled_images_without_any_has_the_usual_order():
    train = data.load("digits", labels=60, unlabelled=40, unlabelled_share=0.5).train
    known = train.subset((train.labels >= 0).nonzero().squeeze(1))
    batches = list(data.Sampler(known).batches(20, data_seed=0, epoch=0))
    assert sorted(torch.cat([one.index for one in batches]).tolist()) == known.index.tolist()
