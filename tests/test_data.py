import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ickd_lib import data
from ickd_lib.runtime import InputError


def test_digits_are_whole_and_stratified():
    splits = data.load("digits")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1000, 0, 797)
    assert splits.train.images.shape == (1000, 3, 8, 8) and splits.train.images.dtype == torch.uint8
    pixels = splits.train.pixels()
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(splits.train.mean), atol=1e-6)
    assert torch.allclose(pixels.std((0, 2, 3), correction=0), torch.tensor(splits.train.std), atol=1e-5)
    counts = torch.bincount(splits.test.labels)
    assert counts.max() - counts.min() <= 5


def test_validation_is_carved_from_train_and_rows_keep_their_number():
    whole, carved = data.load("digits"), data.load("digits", val=0.1)
    assert (len(carved.train), len(carved.val)) == (900, 100)
    assert carved.val.name == "digits/val"
    assert not set(carved.train.index.tolist()) & set(carved.val.index.tolist())
    for split in (carved.train, carved.val):
        assert torch.equal(split.images, whole.train.images[split.index])
    assert torch.bincount(carved.val.labels).tolist() == [10] * 10


def test_few_labels_are_stratified_and_fixed_by_the_seed():
    a, b, c = (data.load("digits", labels=105, seed=s).train for s in (0, 0, 1))
    counts = torch.bincount(a.labels)
    assert len(a) == 105 and counts.min() >= 10 and counts.max() <= 11
    assert torch.equal(a.index, b.index) and not torch.equal(a.index, c.index)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "cifar10"}, "unknown data set 'cifar10'; did you mean 'cifar100'"),
        ({"name": "digits", "labels": 5}, "cannot draw 5 of 1000 images"),
        ({"name": "digits", "labels": 2000}, "cannot draw 2000 of 1000 images"),
        ({"name": "digits", "val": 1.5}, "val=1.5 is a fraction"),
        ({"name": "digits", "image_size": 16}, "image_size=16 is for folder:PATH"),
        ({"name": "cifar100", "root": "/nowhere"}, "/nowhere/cifar-100-python/meta is not there"),
        ({"name": "folder:/nowhere"}, "/nowhere has no folder train/"),
    ],
)
def test_impossible_requests_are_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        data.load(**call)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("pad", "flip", "views"), [(1, False, 9), (4, True, 162), (0, True, 2)])
def test_a_view_is_the_crop_and_mirror_that_its_number_says(digits, pad, flip, views):
    images = replace(digits.train, pad=pad, flip=flip)
    assert images.views == views
    rows = torch.arange(views) % len(images)
    got = images.augmented(rows, torch.arange(views))
    for view, row in enumerate(rows.tolist()):
        place, mirrored = divmod(view, 2) if flip else (view, 0)
        down, right = divmod(place, 2 * pad + 1)
        expected = F.pad(images.images[row].float() / 255, (pad, pad, pad, pad))[:, down : down + 8, right : right + 8]
        assert torch.equal(got[view], expected.flip(2) if mirrored else expected), view
    centre = (pad * (2 * pad + 1) + pad) * (1 + flip)
    assert torch.equal(images.augmented(rows[:1], torch.tensor([centre])), images.pixels(rows[:1]))


def test_an_epoch_visits_every_image_once_and_keeps_the_last_batch(digits):
    batches = list(digits.train.batches(50, data_seed=1, epoch=2))
    assert [len(b.labels) for b in batches] == [50, 50, 20]
    seen = torch.cat([b.index for b in batches])
    assert torch.equal(seen.sort().values, digits.train.index)
    assert torch.equal(
        torch.cat([b.labels for b in batches]), digits.train.labels[torch.searchsorted(digits.train.index, seen)]
    )
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)


def test_a_last_batch_of_one_joins_the_one_before(digits):
    assert [len(b.labels) for b in digits.train.batches(17, data_seed=0, epoch=0)] == [17] * 6 + [18]
    assert digits.train.steps(17) == 7


def test_order_and_views_are_functions_of_seed_epoch_and_index(digits):
    def epoch(images, **keys):
        batches = list(images.batches(32, **keys))
        return torch.cat([b.index for b in batches]), torch.cat([b.view for b in batches])

    first, again = epoch(digits.train, data_seed=0, epoch=3), epoch(digits.train, data_seed=0, epoch=3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in ({"data_seed": 1, "epoch": 3}, {"data_seed": 0, "epoch": 4}):
        assert not torch.equal(first[0], epoch(digits.train, **other)[0])
    resumed = list(digits.train.batches(32, data_seed=0, epoch=3, first=2))
    assert torch.equal(torch.cat([b.index for b in resumed]), first[0][64:])
    rows = torch.arange(len(digits.train) // 2, len(digits.train))
    index, view = epoch(digits.train.subset(rows), data_seed=0, epoch=3)
    whole = dict(zip(*(t.tolist() for t in first), strict=True))
    assert all(whole[i] == v for i, v in zip(index.tolist(), view.tolist(), strict=True))


def test_the_fingerprint_sees_pixels_labels_and_rows(digits):
    train = digits.train
    pixels = train.images.clone()
    pixels[3, 0, 2, 2] += 1
    marks = {
        train.fingerprint,
        replace(train, images=pixels).fingerprint,
        replace(train, labels=train.labels.roll(1)).fingerprint,
        replace(train, index=train.index + 1).fingerprint,
    }
    assert len(marks) == 4


# -------------------------------------------------------------------------------------------- cifar-100


def write_cifar(folder, **changes):
    """A tiny file set in the published layout: four classes in two superclasses."""
    target = folder / "cifar-100-python"
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 8)):
        fine = [i % 4 for i in range(n)]
        content = {
            b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            b"fine_labels": fine,
            b"coarse_labels": [f // 2 for f in fine],
            b"filenames": [b"x.png"] * n,
        }
        (target / split).write_bytes(pickle.dumps(content | changes.get(split, {}), protocol=2))
    names = {b"fine_label_names": [b"a", b"b", b"c", b"d"], b"coarse_label_names": [b"ab", b"cd"]}
    (target / "meta").write_bytes(pickle.dumps(names | changes.get("meta", {}), protocol=2))
    return target


def test_the_published_layout_is_read(tmp_path):
    target = write_cifar(tmp_path)
    splits = data.load("cifar100", tmp_path)
    with open(target / "train", "rb") as file:
        content = pickle.load(file, encoding="bytes")
    assert torch.equal(splits.train.images, torch.from_numpy(content[b"data"]).view(-1, 3, 32, 32))
    assert splits.train.labels.tolist() == content[b"fine_labels"]
    assert splits.train.superclasses == ("ab", "cd") and splits.train.superclass_of == (0, 0, 1, 1)
    assert splits.train.views == 162


def test_it_is_downloaded_only_when_absent_and_asked_for(tmp_path, monkeypatch):
    import torchvision

    asked = []

    def fetch(root, download):
        asked.append((root, download))
        write_cifar(tmp_path)

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fetch)
    with pytest.raises(InputError, match=r"ask for the download \(download=True, --download\)"):
        data.load("cifar100", tmp_path)
    assert asked == []
    assert len(data.load("cifar100", tmp_path, download=True).train) == 40
    assert len(data.load("cifar100", tmp_path, download=True).train) == 40
    assert asked == [(str(tmp_path), True)]


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    import torchvision

    def fetch(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fetch)
    with pytest.raises(InputError, match=r"could not download CIFAR-100 to .* \(no route to host\); try again"):
        data.load("cifar100", tmp_path, download=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {b"data": np.zeros((40, 3071), np.uint8)}}, r"train is damaged: expected uint8 \[N, 3072\]"),
        ({"train": {b"fine_labels": [0] * 39}}, "train is damaged"),
        ({"test": {b"fine_labels": [4] * 8}}, "test has label 4/0 outside the classes"),
        ({"test": {b"coarse_labels": [1] * 8}}, "puts a in two superclasses"),
        ({"meta": {b"fine_label_names": None}}, "meta is damaged"),
    ],
)
def test_wrong_structure_is_named(tmp_path, changes, message):
    write_cifar(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        data.load("cifar100", tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    path = write_cifar(tmp_path) / "train"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cifar-100-python/train is damaged"):
        data.load("cifar100", tmp_path)


def test_nothing_in_a_pickle_is_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("",))

    (write_cifar(tmp_path) / "train").write_bytes(pickle.dumps({b"data": Attack()}, protocol=2))
    with pytest.raises(InputError, match="which no CIFAR file needs"):
        data.load("cifar100", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_cifar100_itself(cifar_root):
    splits = data.load("cifar100", cifar_root, val=0.1)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45000, 5000, 10000)
    assert torch.bincount(splits.val.labels).tolist() == [50] * 100
    assert splits.train.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=1e-4)
    assert splits.train.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-4)
    assert splits.train.classes[:2] == ("apple", "aquarium_fish") and len(splits.train.superclasses) == 20


# --------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """Two classes, train and test, PNG and JPEG, 12 × 12 pixels."""
    for split, n in (("train", 6), ("test", 3)):
        for c, shade in (("cat", 40), ("dog", 200)):
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(n):
                image = Image.new("RGB", (12, 12), (shade, i, 0))
                image.save(tmp_path / split / c / f"{i}.{'png' if i % 2 else 'jpg'}")
    return tmp_path


def test_a_folder_is_read(folder):
    splits = data.load(f"folder:{folder}")
    assert splits.train.classes == ("cat", "dog") and splits.train.images.shape == (12, 3, 12, 12)
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6 and len(splits.test) == 6 and len(splits.val) == 0
    assert (splits.train.images[:6, 0].float() - 40).abs().max() <= 2
    (folder / "test").rename(folder / "val")
    assert len(data.load(f"folder:{folder}").test) == 6


def test_sizes_are_one_or_image_size_makes_them_so(folder):
    Image.new("RGB", (30, 20), (40, 0, 0)).save(folder / "train" / "cat" / "odd.png")
    with pytest.raises(InputError, match=r"odd.png has 30×20 pixels, the first image 12×12; name an image_size"):
        data.load(f"folder:{folder}")
    assert data.load(f"folder:{folder}", image_size=16).train.images.shape == (13, 3, 16, 16)


@pytest.mark.parametrize("damage", ["corrupt", "empty class", "strange class", "no test"])
def test_damage_in_a_folder_is_named(folder, damage):
    if damage == "corrupt":
        path = folder / "train" / "cat" / "1.png"
        path.write_bytes(path.read_bytes()[:40])
        message = r"cat/1.png cannot be read"
    elif damage == "empty class":
        (folder / "train" / "emu").mkdir()
        message = r"train/emu holds no image"
    elif damage == "strange class":
        (folder / "test" / "emu").mkdir()
        message = r"test/emu is a class that train/ does not have"
    else:
        (folder / "test").rename(folder / "tests")
        message = r"neither test/ nor val/"
    with pytest.raises(InputError, match=message):
        data.load(f"folder:{folder}")
