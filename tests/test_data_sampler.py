"""The order of an epoch, its batches, strong augmentation, and partners of the same class."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from ickd_lib import data, runtime
from ickd_lib.data import Sampler, randaugment
from ickd_lib.data import strong as strong_module

# ------------------------------------------------------------------------------------------- batches


def test_an_epoch_visits_every_image_once_and_keeps_the_last_batch(digits):
    batches = list(Sampler(digits.train).batches(50, data_seed=1, epoch=2))
    assert [len(b.labels) for b in batches] == [50, 50, 20]
    seen = torch.cat([b.index for b in batches])
    assert torch.equal(seen.sort().values, digits.train.index)
    assert torch.equal(
        torch.cat([b.labels for b in batches]), digits.train.labels[torch.searchsorted(digits.train.index, seen)]
    )
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)


def test_a_last_batch_of_one_image_joins_the_batch_before(digits):
    assert [len(b.labels) for b in Sampler(digits.train).batches(17, data_seed=0, epoch=0)] == [17] * 6 + [18]
    assert Sampler(digits.train).steps(17) == 7


def test_order_and_views_are_functions_of_seed_epoch_and_index(digits):
    def epoch(images, **keys):
        batches = list(Sampler(images).batches(32, **keys))
        return torch.cat([b.index for b in batches]), torch.cat([b.view for b in batches])

    first, again = epoch(digits.train, data_seed=0, epoch=3), epoch(digits.train, data_seed=0, epoch=3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in ({"data_seed": 1, "epoch": 3}, {"data_seed": 0, "epoch": 4}):
        assert not torch.equal(first[0], epoch(digits.train, **other)[0])
    resumed = list(Sampler(digits.train).batches(32, data_seed=0, epoch=3, first=2))
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


# -------------------------------------------------------------------------------- strong augmentation


@pytest.fixture(params=["randaugment", "mixup", "cutmix", "cutmix+randaugment"])
def strong(request, digits):
    """The digits with channels that differ, under a strong augmentation."""
    images = digits.train.images * torch.tensor([1, 0, 1], dtype=torch.uint8)[:, None, None]
    return replace(digits.train, images=images, augment=request.param)


def epoch_of(images, size=32, **keys):
    return list(Sampler(images).batches(size, **({"data_seed": 1, "epoch": 2} | keys)))


def same(a, b):
    pairs = [(getattr(a, f), getattr(b, f)) for f in ("images", "labels", "index", "view", "soft")]
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def test_crop_and_flip_follow_from_the_generators(digits):
    train, keys = digits.train, {"data_seed": 1, "epoch": 2}
    order = torch.randperm(len(train), generator=runtime.generator(1, "order", 2))
    drawn = torch.randint(train.views, (int(train.index.max()) + 1,), generator=runtime.generator(1, "view", 2))
    for batch, rows in zip(Sampler(train).batches(32, **keys), order.split(32), strict=True):
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


@pytest.mark.parametrize("augment", strong_module.AUGMENTATIONS[1:])
def test_strong_augmentation_has_the_published_strengths(digits, augment):
    """RandAugment: two operations at strength 9 of 30; Mixup and CutMix: shares from a Beta distribution at alpha 1."""
    pixels = digits.train.images[:32]
    images, shares = strong_module.augmented(pixels, augment, 5)
    with runtime.seeded("augment", 5):
        if augment == "randaugment":
            nine = torch.full((32,), 9)
            assert torch.equal(images, randaugment.drawn(randaugment.drawn(pixels, nine), nine).float() / 255)
        else:
            kind = v2.MixUp if augment == "mixup" else v2.CutMix
            expected = kind(alpha=1.0, num_classes=32)(pixels.float() / 255, torch.arange(32))
            assert torch.equal(images, expected[0].clamp(0, 1)) and torch.equal(shares, expected[1])


@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_a_mixed_image_and_its_soft_label_have_the_same_shares(digits, augment):
    plain = epoch_of(digits.train)
    for batch, crop in zip(epoch_of(replace(digits.train, augment=augment)), plain, strict=True):
        n, c = len(crop.labels), len(digits.train.classes)
        assert batch.targets is batch.soft and batch.soft.shape == (n, c)
        assert torch.allclose(batch.soft.sum(1), torch.ones(n))
        assert torch.isin(batch.index, crop.index).all()
        shifted = not torch.equal(
            batch.index, crop.index
        )  # whether the partner has the larger share; one draw holds for the whole batch
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


# ------------------------------------------------------------------------------------- the strong view


@pytest.mark.usefixtures("untouched_generator")
def test_a_strong_view_is_a_function_of_seed_epoch_and_step(digits):
    sampler, rows = Sampler(digits.train), torch.arange(40)
    keys = {"data_seed": 1, "epoch": 2, "step": 3}
    view = sampler.strong_view(rows, **keys)
    assert same(view, sampler.strong_view(rows, **keys))
    assert torch.equal(view.labels, digits.train.labels[:40]) and torch.equal(view.index, digits.train.index[:40])
    assert view.images.shape == (40, 3, 8, 8) and view.images.min() >= 0 and view.images.max() <= 1
    assert view.view.tolist() == [-1] * 40 and view.soft is None
    for changed in ({"data_seed": 2}, {"epoch": 0}, {"step": 0}):
        assert not torch.equal(view.images, sampler.strong_view(rows, **keys | changed).images)


def test_each_strong_view_has_operations_of_its_own_and_a_grey_square(digits):
    alike = replace(digits.train.subset(torch.zeros(64, dtype=torch.int64)), pad=0, flip=False)
    images = Sampler(alike).strong_view(torch.arange(64), data_seed=0, epoch=0, step=0).images
    assert len(images.flatten(1).unique(dim=0)) > 48
    white = torch.full((200, 3, 16, 12), 255, dtype=torch.uint8)
    grey = (strong_module.distorted(white, "grey") == 127 / 255).all(1)
    rows, columns = grey.any(2).sum(1), grey.any(1).sum(1)
    assert torch.equal(grey.sum((1, 2)), rows * columns)  # one square, cut off at the border
    assert rows.max() <= 7 and columns.max() <= 7 and 0.5 < (rows > 0).float().mean() < 1


def test_a_strong_view_has_two_operations_of_strengths_from_0_to_30(monkeypatch):
    given = []
    monkeypatch.setattr(randaugment, "drawn", lambda pixels, strength: given.append(strength.clone()) or pixels)
    strong_module.distorted(torch.zeros(400, 3, 4, 4, dtype=torch.uint8), "strengths")
    assert len(given) == 2 and not torch.equal(*given)
    assert all(one.unique().tolist() == list(range(31)) for one in given)


def test_the_second_crop_and_flip_are_drawn_for_each_step(digits):
    rows, keys = torch.arange(40), {"data_seed": 1, "epoch": 2, "step": 3}
    drawn = Sampler(digits.train).strong_numbers(rows, **keys)
    assert torch.equal(drawn, Sampler(digits.train).strong_numbers(rows, **keys))
    for changed in ({"data_seed": 2}, {"epoch": 3}, {"step": 4}):
        assert not torch.equal(drawn, Sampler(digits.train).strong_numbers(rows, **keys | changed))


@pytest.mark.parametrize("seed", [0, 1, 4, 5])
def test_recoloured_images_have_the_documented_factors_and_blur(seed):
    """Factors from 0.6 to 1.4; in half of the cases, a blur of 0.1 to 1.5 pixels."""
    image = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(5))
    *factors, blur, sigma = torch.rand(5, generator=torch.Generator().manual_seed(seed)).tolist()
    expected = v2.functional.adjust_brightness(image, 0.6 + 0.8 * factors[0])
    expected = v2.functional.adjust_contrast(expected, 0.6 + 0.8 * factors[1])
    expected = v2.functional.adjust_saturation(expected, 0.6 + 0.8 * factors[2])
    assert (blur < 0.5) == (seed in (0, 4))
    if blur < 0.5:
        expected = v2.functional.gaussian_blur(expected, [5, 5], [0.1 + 1.4 * sigma])
    assert torch.allclose(strong_module.recoloured(image, torch.Generator().manual_seed(seed)), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------- partners


def test_a_partner_is_a_random_image_of_the_class(digits):
    shuffled = digits.train.subset(torch.randperm(120, generator=torch.Generator().manual_seed(0)))
    (batch,) = epoch_of(shuffled, 120)
    keys = {"data_seed": 1, "epoch": 2, "step": 0}
    partners = Sampler(shuffled).partners(batch, **keys)
    assert torch.equal(partners.labels, batch.labels)
    rows = (shuffled.index == partners.index[:, None]).long().argmax(1)
    assert torch.equal(partners.images, shuffled.augmented(rows, partners.view)) and len(partners.view.unique()) == 9
    assert same(partners, Sampler(shuffled).partners(batch, **keys))
    assert not same(partners, Sampler(shuffled).partners(batch, **(keys | {"step": 1})))
    drawn = [Sampler(shuffled).partners(batch, **(keys | {"step": s})).index[0].item() for s in range(200)]
    assert set(drawn) == set(shuffled.index[shuffled.labels == batch.labels[0]].tolist())  # the image itself, too
