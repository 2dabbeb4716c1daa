"""Images with class masks and objects: the scenes, joint views, batches, subsets, and the sampler on them."""

from dataclasses import replace

import pytest
import torch

from ickd_lib import data
from ickd_lib.data import Objects, RandomCrop, RandomResize, Sampler, SplitObjects
from ickd_lib.data.sets import scenes as scenes_module
from ickd_lib.runtime import InputError


@pytest.fixture(scope="module")
def scenes():
    return data.load("scenes", val=0.1)


@pytest.fixture(scope="module")
def boxes():
    return data.load("scenes", annotations="boxes", val=0.1)


@pytest.fixture(scope="module")
def instances():
    return data.load("scenes", annotations="instances", val=0.1)


def same_objects(a, b):
    pairs = [(getattr(a, f), getattr(b, f)) for f in ("boxes", "labels", "key", "crowd", "masks")]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def same_images(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def same(a, b):
    images = same_images(a, b)
    masks = a.masks is b.masks is None or all(torch.equal(x, y) for x, y in zip(a.masks, b.masks, strict=True))
    objects = all(same_objects(x, y) for x, y in zip(a.objects, b.objects, strict=True))
    return images and masks and objects and torch.equal(a.index, b.index) and torch.equal(a.view, b.view)


# -------------------------------------------------------------------------------------------- scenes


def test_the_scenes_are_the_same_on_every_machine(scenes, boxes, instances):
    assert repr(scenes) == "Splits('scenes', train=800, val=100, test=200 images of 96×96 pixels, 11 classes)"
    assert repr(boxes) == "Splits('scenes', train=800, val=100, test=200 images of 96×96 pixels, 10 classes)"
    for kind, splits in (("masks", scenes), ("boxes", boxes), ("instances", instances)):
        assert [split.fingerprint for split in splits] == FINGERPRINTS[kind], kind
    assert torch.equal(torch.stack(scenes.test.images), torch.stack(boxes.test.images))


FINGERPRINTS = {
    "masks": ["cf0d683b71af9f63", "4f9645278ec7a3f4", "4e919102befba13f"],
    "boxes": ["cf4e8f55fd216227", "8075bc7955d5dddd", "6116407c32938db8"],
    "instances": ["c9dd75109512d025", "5593caec2a312587", "6ba0d813c80486f6"],
}


def test_masks_boxes_and_objects_of_a_scene_agree(scenes, boxes, instances):
    assert scenes.train.classes == ("background", *boxes.train.classes)
    assert boxes.train.masks is instances.train.masks is scenes.train.objects is None
    assert boxes.train.classes == tuple("0123456789") and boxes.train.spec["num_classes"] == 10
    for i in range(0, 800, 7):
        objects, mask, plain = instances.train.objects[i], scenes.train.masks[i], boxes.train.objects[i]
        assert 1 <= len(objects) <= 6 and torch.equal(objects.labels, plain.labels)
        assert torch.equal(objects.boxes, plain.boxes) and plain.masks is None
        assert torch.equal(objects.masks.sum(0) > 0, mask > 0) and objects.masks.sum(0).max() == 1
        for box, label, pixels in zip(objects.boxes, objects.labels, objects.masks, strict=True):
            y, x = pixels.nonzero().T
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1] and len(y) >= 20
            assert (mask[pixels] == label + 1).all()
    keys = boxes.train.objects.flat.key
    assert torch.equal(keys, torch.arange(len(keys))) and not boxes.train.objects.flat.crowd.any()
    assert torch.bincount(boxes.train.objects.flat.labels).min() > 200
    assert set(boxes.train.objects.counts.tolist()) == {1, 2, 3, 4, 5, 6}


def test_the_splits_share_no_digit(monkeypatch):
    used = []
    monkeypatch.setattr(scenes_module, "_draw", lambda digits, count, seed: used.append((digits, count, seed)))
    scenes_module._all_scenes.__wrapped__()
    (train, *_), (val, *_), (test, *_) = used
    assert [len(x) for x in (train, val, test)] == [880, 120, 797]
    assert [x.name for x in (train, val, test)] == ["digits/train", "digits/train", "digits/test"]
    assert not torch.isin(train.index, val.index).any() and len({seed // 10_000 for *_, seed in used}) == 3


# ---------------------------------------------------------------------------------------------- views


@pytest.fixture
def coloured():
    """Images of two sizes whose green channel is 20 times the class mask; each class is an object, too."""
    images, masks, boxes, labels, pixels = [], [], [], [], []
    for i, (height, width) in enumerate([(60, 80), (90, 50)] * 4):
        mask = torch.zeros(height, width, dtype=torch.uint8)
        for label, (top, left) in enumerate([(2 + i, 3), (30, 25 + i)], 1):
            mask[top : top + 22, left : left + 18] = label
            boxes.append([left, top, left + 18, top + 22])
            labels.append(label)
        red = torch.full_like(mask, 100)
        images.append(torch.stack([red, 20 * mask, red]))
        masks.append(mask)
        pixels.append(torch.stack([mask == 1, mask == 2]))
    n = len(labels)
    flat = Objects(
        torch.tensor(boxes).float(), torch.tensor(labels), torch.arange(n) + 100, torch.zeros(n, dtype=torch.bool)
    )
    return data.DenseImages(
        tuple(images),
        torch.tensor([x.shape[1:] for x in images]),
        torch.arange(8) * 3,
        classes=("none", "a", "b"),
        mean=(0.4, 0.2, 0.6),
        std=(1.0, 1.0, 1.0),
        name="coloured/train",
        transform=RandomCrop((64, 72)),
        masks=tuple(masks),
        objects=SplitObjects(flat, torch.full((8,), 2), tuple(pixels)),
    )


def all_views(images, count):
    for view in range(count):
        yield images.batch(torch.arange(len(images)), torch.full((len(images),), view))


@pytest.mark.parametrize("transform", [RandomCrop((64, 72)), RandomResize((40, 70), 100)])
def test_image_masks_and_objects_are_transformed_alike(coloured, transform):
    coloured = replace(coloured, transform=transform)
    seen = {"kept": 0, "lost": 0, "padded": 0}
    for batch in all_views(coloured, 12):
        for image, mask, objects in zip(batch.images, batch.masks, batch.objects, strict=True):
            assert image.shape[1:] == mask.shape == objects.masks.shape[1:]
            inside = mask != 255
            green = (image[1] * 255 / 20).round()
            # The image is interpolated and the mask is not, so they differ at the edges of the rectangles.
            assert (green == mask)[inside].float().mean() > 0.9
            padding = image[:, ~inside]
            seen["padded"] += padding.shape[1]
            expected = torch.tensor([102, 51, 153])[:, None] / 255
            assert torch.equal(padding, expected.expand_as(padding))
            for box, label, key, pixels in zip(objects.boxes, objects.labels, objects.key, objects.masks, strict=True):
                assert label == coloured.objects.flat.labels[key - 100]
                y, x = pixels.nonzero().T
                if len(y) > 60:
                    extent = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    assert (box - extent).abs().max() <= 2.5 and (mask[pixels] == label).all()
            seen["kept"] += len(objects)
            seen["lost"] += 2 - len(objects)
    crop = isinstance(transform, RandomCrop)
    assert seen["kept"] > 100 and (seen["lost"] > 5) == (seen["padded"] > 5000) == crop


@pytest.mark.usefixtures("seeded")
def test_a_crop_at_scale_one_is_a_window_of_the_image(coloured):
    noise = tuple(torch.randint(256, x.shape, dtype=torch.uint8) for x in coloured.images)
    images = replace(coloured, images=noise, transform=RandomCrop((20, 24), (1.0, 1.0)))
    flipped = 0
    for batch in all_views(images, 4):
        assert batch.images.shape == (8, 3, 20, 24) and batch.masks.shape == (8, 20, 24)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for whole, image in zip(noise, (batch.images * 255).round().byte(), strict=True):
            windows = whole.unfold(1, 20, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
            plain, mirrored = ((windows == x).flatten(1).all(1).any() for x in (image, image.flip(-1)))
            assert plain or mirrored
            flipped += int(mirrored)
    assert 6 < flipped < 26


def test_the_shorter_side_is_drawn_and_the_longer_one_limited(coloured):
    images = replace(coloured, transform=RandomResize((30, 60), 90, flip=False))
    sizes = {tuple(image.shape[1:]) for batch in all_views(images, 6) for image in batch.images}
    assert sizes == {(30, 40), (60, 80), (54, 30), (90, 50)}  # 60 would make 108 × 60 of the last


@pytest.mark.usefixtures("untouched_generator")
def test_a_view_is_a_function_of_row_and_number(coloured):
    rows = torch.arange(8)
    batch = coloured.batch(rows, rows + 5)
    assert same(batch, coloured.batch(rows, rows + 5, 1, 2, 3))
    part = coloured.subset(torch.tensor([6, 1]))
    again = part.batch(torch.tensor([1, 0]), torch.tensor([6, 11]))
    assert again.index.tolist() == [3, 18]
    for i, row in enumerate((1, 6)):
        assert torch.equal(again.images[i], batch.images[row]) and torch.equal(again.masks[i], batch.masks[row])
        assert same_objects(again.objects[i], batch.objects[row])
    assert not torch.equal(batch.images[0], coloured.batch(rows[:1], rows[:1] + 6).images[0])


@pytest.mark.usefixtures("untouched_generator")
@pytest.mark.parametrize("transform", [RandomCrop((64, 72)), RandomResize((40, 70), 100)])
def test_a_strong_view_has_other_colours_and_annotations_that_fit(coloured, transform):
    sampler, keys = Sampler(replace(coloured, transform=transform)), {"data_seed": 1, "epoch": 2, "step": 3}
    rows = torch.arange(8)
    batch = sampler.strong_view(rows, **keys)
    assert same(batch, sampler.strong_view(rows, **keys)) and batch.view.tolist() == [-1] * 8
    assert torch.equal(batch.index, coloured.index) and isinstance(batch.images, torch.Tensor) == hasattr(
        transform, "scale"
    )
    part = Sampler(sampler.images.subset(torch.tensor([6, 1]))).strong_view(torch.tensor([1, 0]), **keys)
    assert torch.equal(part.images[1], batch.images[6]) and same_objects(part.objects[0], batch.objects[1])
    for changed in ({"data_seed": 2}, {"epoch": 3}, {"step": 4}):
        assert not same_images(batch, sampler.strong_view(rows, **keys | changed))
    colours = set()
    for image, mask, objects in zip(batch.images, batch.masks, batch.objects, strict=True):
        assert 0 <= image.min() and image.max() <= 1 and image.shape[1:] == mask.shape == objects.masks.shape[1:]
        inside = [image[:, mask == label].median(1).values for label in (0, 1, 2) if (mask == label).any()]
        colours.add(tuple(inside[0].tolist()))
        green = [(colour[1] - colour[0]).item() for colour in inside]
        assert green == sorted(green), "the green of a pixel still grows with its class"
        for label, pixels in zip(objects.labels, objects.masks, strict=True):
            assert (mask[pixels] == label).all()
    assert len(colours) == 8, "each image has colours of its own"


def test_there_are_no_partners(coloured):
    sampler = Sampler(coloured)
    batch = sampler.batch(torch.arange(2), torch.arange(2))
    with pytest.raises(InputError, match="coloured/train has no partners of the same class"):
        sampler.partners(batch, data_seed=0, epoch=0, step=0)


def test_size_is_that_for_which_networks_are_measured(coloured, scenes, boxes):
    assert scenes.train.size == (96, 96) and coloured.size == (64, 72)
    assert replace(coloured, transform=RandomResize((40, 70), 100)).size == (48, 40)  # of 60 × 50 pixels
    assert boxes.train.size == (80, 80)


def test_without_a_view_nothing_is_changed(coloured, scenes):
    batch = coloured.batch(torch.tensor([2, 5]))
    assert isinstance(batch.images, tuple) and batch.view.tolist() == [-1, -1] and batch.index.tolist() == [6, 15]
    for i, position in enumerate((2, 5)):
        assert torch.equal((batch.images[i] * 255).round().byte(), coloured.images[position])
        assert torch.equal(batch.masks[i], coloured.masks[position])
        assert same_objects(batch.objects[i], coloured.objects[position])
    assert scenes.test.batch(torch.arange(4)).images.shape == (4, 3, 96, 96)
    assert repr(batch) == "DenseBatch(2 images of 60 to 90×50 to 80 pixels, masks and objects, cpu)"


# -------------------------------------------------------------------------------------------- subsets


def test_a_subset_keeps_rows_and_keys(coloured):
    part = coloured.subset(torch.tensor([7, 0]))
    assert part.index.tolist() == [21, 0] and part.sizes.tolist() == [[90, 50], [60, 80]]
    assert part.objects.flat.key.tolist() == [114, 115, 100, 101] and len(part.objects) == 2
    assert same_objects(part.objects[1], coloured.objects[0])
    few = coloured.few(3, seed=1)
    assert torch.equal(few.index, coloured.few(3, seed=1).index) and len(few) == 3
    assert len({tuple(coloured.few(3, seed=s).index.tolist()) for s in range(9)}) > 4
    with pytest.raises(InputError, match="cannot draw 9 of 8 images; give a number from 1 to 8"):
        coloured.few(9)
    empty = coloured.subset(torch.arange(0))
    assert len(empty) == len(empty.objects) == 0


def test_the_fingerprint_changes_with_everything(coloured):
    flat, counts = coloured.objects.flat, coloured.objects.counts
    pixels, mask, instances = coloured.images[3].clone(), coloured.masks[3].clone(), coloured.objects.masks[3].clone()
    pixels[0, 0, 0] += 1
    mask[0, 0] = 2
    instances[0, 0, 0] = True

    def changed(tensors, tensor):
        return (*tensors[:3], tensor, *tensors[4:])

    def objects(masks=coloured.objects.masks, **changes):
        return replace(coloured, objects=SplitObjects(replace(flat, **changes), counts, masks))

    variants = [
        coloured,
        replace(coloured, images=changed(coloured.images, pixels)),
        replace(coloured, masks=changed(coloured.masks, mask)),
        replace(coloured, index=coloured.index + 1),
        replace(coloured, classes=("none", "a", "c")),
        objects(boxes=flat.boxes + 1),
        objects(labels=flat.labels - 1),
        objects(key=flat.key + 1),
        objects(crowd=~flat.crowd),
        objects(crowd=~flat.crowd, difficult=~flat.crowd),
        objects(changed(coloured.objects.masks, instances)),
    ]
    assert len({images.fingerprint for images in variants}) == len(variants)
    assert replace(coloured, transform=RandomCrop((8, 8))).fingerprint == coloured.fingerprint


# -------------------------------------------------------------------------------------------- sampler


def test_the_sampler_visits_every_image_once_and_resumes(coloured):
    batches = list(Sampler(coloured).batches(3, data_seed=1, epoch=2))
    assert [len(b) for b in batches] == [3, 3, 2]
    assert torch.equal(torch.cat([b.index for b in batches]).sort().values, coloured.index)
    resumed = list(Sampler(coloured).batches(3, data_seed=1, epoch=2, first=1))
    assert all(same(a, b) for a, b in zip(batches[1:], resumed, strict=True))
    assert not torch.equal(batches[0].index, next(Sampler(coloured).batches(3, data_seed=1, epoch=3)).index)
    view = {int(i): int(v) for b in batches for i, v in zip(b.index, b.view, strict=True)}
    part = coloured.subset(torch.tensor([1, 4, 6]))
    (batch,) = Sampler(part).batches(3, data_seed=1, epoch=2)
    assert all(view[int(i)] == v for i, v in zip(batch.index, batch.view, strict=True))
    few = replace(coloured, views=2)
    assert set(torch.cat([b.view for b in Sampler(few).batches(3, data_seed=1, epoch=2)]).tolist()) == {0, 1}


def test_options_of_load_on_scenes():
    splits = data.load("scenes", labels=40, annotations="boxes", seed=3)
    assert len(splits.train) == 40 and len(splits.val) == 0
    own = data.load("scenes", val=0.3)
    assert (len(own.train), len(own.val)) == (800, 100), "the data set's own validation images"
    with pytest.raises(InputError, match=r"classes=\['1'\] is not an option of scenes"):
        data.load("scenes", classes=["1"])
    with pytest.raises(InputError, match="augment=mixup is not an option of scenes"):
        data.load("scenes", augment="mixup")
    with pytest.raises(InputError, match="image_size=32 is not an option of scenes, only of coco:PATH, folder:PATH"):
        data.load("scenes", image_size=32)
    with pytest.raises(InputError, match="unknown kind of annotations of scenes 'mask'; did you mean 'masks'"):
        data.load("scenes", annotations="mask")
    with pytest.raises(
        InputError, match="annotations=masks is not an option of digits, only of coco:PATH, scenes, voc:PATH"
    ):
        data.load("digits", annotations="masks")
    with pytest.raises(InputError, match="ignore=0 is not an option of scenes, only of masks:PATH"):
        data.load("scenes", ignore=0)
