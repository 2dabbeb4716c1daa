import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ickd_lib import data, runtime
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
        ({"name": "digits", "classes": [3, 10]}, "class 10 is out of range; digits has 10, from 0 to 9"),
        ({"name": "digits", "classes": [-1, 3]}, "class -1 is out of range"),
        ({"name": "digits", "classes": ["7", 7]}, "is '7' alone; name two or more"),
        ({"name": "digits", "classes": ["1", "10"]}, "unknown class '10'; did you mean '1'"),
        ({"name": "digits", "classes": "56"}, "classes='56' is no list"),
        ({"name": "digits", "augment": "cutmx"}, "unknown augmentation 'cutmx'; did you mean 'cutmix'"),
        ({"name": "digits", "augment": "mixup+cutmix"}, "mixes images in two ways"),
        ({"name": "digits", "augment": "mixup+mixup"}, "names a part twice"),
        ({"name": "digits", "augment": "crop+mixup"}, "leave 'crop' out"),
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


# ------------------------------------------------------------------------------------------- classes


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


def test_a_superclass_is_all_of_its_classes(cifar_root):
    splits = data.load("cifar100", cifar_root, classes=["people", "trees", "apple"])
    assert splits.test.name.startswith("cifar100(11 classes ") and len(splits.train) == 5500
    assert splits.train.classes[:3] == ("apple", "baby", "boy") and len(splits.train.superclasses) == 20
    uppers = [splits.train.superclasses[s] for s in splits.train.superclass_of]
    assert uppers[:3] == ["fruit_and_vegetables", "people", "people"] and uppers.count("trees") == 5
    assert splits.test.restricted(["people"]).name == "cifar100(baby,boy,girl,man,woman)/test"
    with pytest.raises(InputError, match="unknown class or superclass 'peple'; did you mean 'people'"):
        splits.train.restricted(["peple", "trees"])
    with pytest.raises(InputError, match="unknown class or superclass 'fish'"):
        splits.train.only(["fish"])  # none of its classes are left


# -------------------------------------------------------------------------------- strong augmentation


@pytest.fixture(params=["randaugment", "mixup", "cutmix", "cutmix+randaugment"])
def strong(request, digits):
    """The digits, three channels told apart, under a strong augmentation."""
    images = digits.train.images * torch.tensor([1, 0, 1], dtype=torch.uint8)[:, None, None]
    return replace(digits.train, images=images, augment=request.param)


def epoch_of(images, size=32, **keys):
    return list(images.batches(size, **({"data_seed": 1, "epoch": 2} | keys)))


def same(a, b):
    pairs = [(getattr(a, f), getattr(b, f)) for f in ("images", "labels", "index", "view", "soft")]
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def test_crop_and_flip_are_what_they_were(digits):
    train, keys = digits.train, {"data_seed": 1, "epoch": 2}
    order = torch.randperm(len(train), generator=runtime.generator(1, "order", 2))
    drawn = torch.randint(train.views, (int(train.index.max()) + 1,), generator=runtime.generator(1, "view", 2))
    for batch, rows in zip(train.batches(32, **keys), order.split(32), strict=True):
        view = drawn[train.index[rows]]
        expected = data.Batch(train.augmented(rows, view), train.labels[rows], train.index[rows], view)
        assert same(batch, expected) and batch.targets is batch.labels


@pytest.mark.usefixtures("untouched_generator")
def test_strong_batches_are_a_function_of_seed_epoch_and_step(strong):
    batches = epoch_of(strong)
    assert all(same(a, b) for a, b in zip(batches, epoch_of(strong), strict=True))
    assert all(same(a, b) for a, b in zip(batches[2:], epoch_of(strong, first=2), strict=True))
    assert not torch.equal(batches[0].images, epoch_of(strong, epoch=3)[0].images)
    for batch, plain in zip(batches, epoch_of(replace(strong, augment="crop")), strict=True):
        assert batch.images.dtype == torch.float32 and batch.images.shape == plain.images.shape
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.min() >= 0 and batch.images.max() <= 1
        assert batch.view.tolist() == [-1] * len(batch.labels)
        assert torch.equal(batch.labels, strong.labels[torch.searchsorted(strong.index, batch.index)])
    assert strong.fingerprint == replace(strong, augment="crop").fingerprint


def test_randaugment_draws_for_each_image(digits):
    alike = digits.train.subset(torch.zeros(32, dtype=torch.int64))
    alike = replace(alike, pad=0, augment="randaugment")
    (batch,) = epoch_of(alike)
    assert batch.soft is None and len(batch.images.flatten(1).unique(dim=0)) > 8


@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_a_mixed_image_is_that_of_its_shares(digits, augment):
    plain = epoch_of(digits.train)
    for batch, crop in zip(epoch_of(replace(digits.train, augment=augment)), plain, strict=True):
        n, c = len(crop.labels), len(digits.train.classes)
        assert batch.targets is batch.soft and batch.soft.shape == (n, c)
        assert torch.allclose(batch.soft.sum(1), torch.ones(n))
        assert torch.isin(batch.index, crop.index).all()
        shifted = not torch.equal(batch.index, crop.index)  # all images share one draw
        assert torch.equal(batch.index, crop.index.roll(1) if shifted else crop.index)
        one_hot, before = F.one_hot(crop.labels, c).float(), F.one_hot(crop.labels.roll(1), c).float()
        differ = crop.labels != crop.labels.roll(1)
        share = batch.soft[differ].gather(1, crop.labels[differ, None]).mean()
        assert (share < 0.5) == shifted
        assert torch.allclose(batch.soft, share * one_hot + (1 - share) * before, atol=1e-6)
        first, second = crop.images, crop.images.roll(1, 0)
        if augment == "mixup":
            assert torch.allclose(batch.images, share * first + (1 - share) * second, atol=1e-6)
        else:
            assert ((batch.images == first) | (batch.images == second)).all()


# ------------------------------------------------------------------------------------------- partners


def test_a_partner_is_another_image_of_the_class(digits):
    shuffled = digits.train.subset(torch.randperm(120, generator=torch.Generator().manual_seed(0)))
    (batch,) = epoch_of(shuffled, 120)
    keys = {"data_seed": 1, "epoch": 2, "step": 0}
    partners = shuffled.partners(batch, **keys)
    assert torch.equal(partners.labels, batch.labels) and (partners.index != batch.index).all()
    rows = (shuffled.index == partners.index[:, None]).long().argmax(1)
    assert torch.equal(partners.images, shuffled.augmented(rows, partners.view)) and len(partners.view.unique()) == 9
    assert same(partners, shuffled.partners(batch, **keys))
    assert not same(partners, shuffled.partners(batch, **(keys | {"step": 1})))
    drawn = [shuffled.partners(batch, **(keys | {"step": s})).index[0].item() for s in range(200)]
    others = shuffled.index[(shuffled.labels == batch.labels[0]) & (shuffled.index != batch.index[0])]
    assert set(drawn) == set(others.tolist())


def test_the_only_image_of_a_class_is_its_own_partner(digits):
    first = [int((digits.train.labels == c).nonzero()[0]) for c in range(10)]
    lonely = digits.train.subset(torch.tensor(first))
    (batch,) = epoch_of(lonely)
    assert torch.equal(lonely.partners(batch, data_seed=0, epoch=0, step=0).index, batch.index)


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
