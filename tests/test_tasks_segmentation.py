"""Segmentation: regions and pixels of a batch, the loss, banks of regions, and the metrics, against naive loops."""

import copy
from dataclasses import replace

import pytest
import scenes
import torch
import torch.nn.functional as F
from torch import nn

from ickd_lib import data, explore, models, tasks, training
from ickd_lib.data.sequences import Decoded
from ickd_lib.memory import MemoryBank, require_fit
from ickd_lib.runtime import InputError, NotFinite
from ickd_lib.tasks import Segmentation, segmentation
from ickd_lib.training import Student

pytestmark = pytest.mark.usefixtures("seeded")
C = 5


@pytest.fixture(scope="module")
def few():
    return scenes.small("segmentation")


@pytest.fixture(scope="module")
def network(few):
    """An untrained FCN in evaluation mode, whose predictions differ from region to region."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = models.create("resnet8-fcn", **few.train.spec)
        nn.init.normal_(made.classifier.weight)
    return made.eval()


def strided(stride, classes=C):
    """A small network whose maps have this stride."""
    layers = [nn.Conv2d(3, 6, 3, stride, 1), nn.Tanh(), nn.Conv2d(6, classes, 1)]
    return models.wrap_segmentation(nn.Sequential(*layers), num_classes=classes).eval()


def drawn_batch(height, width, count=3):
    """Images with blocks of four of the five classes; two corners and all of the last image are ignored."""
    blocks = torch.randint(4, (count, -(-height // 6), -(-width // 5)))
    masks = blocks.repeat_interleave(6, 1).repeat_interleave(5, 2)[:, :height, :width].to(torch.uint8).contiguous()
    masks[:, :7, :9], masks[:, -2:, -3:] = 255, 255
    masks[0, 10, 10:14] = 4  # four pixels
    masks[-1] = 255
    index = torch.tensor([7, 2, 30])[:count]
    return data.DenseBatch(torch.rand(count, 3, height, width), index, index * 0, masks, num_classes=C)


def bilinear(maps, size):
    """Resize maps [B, D, h, w] by a loop: the middle of each new pixel is looked up between the old ones."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    result = maps.new_zeros(*maps.shape[:2], *size)

    def around(i, new, old):
        at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        return int(at), min(int(at) + 1, old - 1), at - int(at)

    for y in range(size[0]):
        top, bottom, down = around(y, size[0], maps.shape[2])
        for x in range(size[1]):
            left, right, over = around(x, size[1], maps.shape[3])
            upper = (1 - over) * maps[:, :, top, left] + over * maps[:, :, top, right]
            lower = (1 - over) * maps[:, :, bottom, left] + over * maps[:, :, bottom, right]
            result[:, :, y, x] = (1 - down) * upper + down * lower
    return result


def naive(output, batch, stride, least):
    """Regions [(image, class, logits, features)], and class and region of each position, by a loop over all pixels."""
    count, height, width = batch.masks.shape
    h, w = -(-height // stride), -(-width // stride)
    logits, features = (bilinear(one.detach().double(), (h, w)) for one in (output.logits, output.features))
    regions, labels = [], torch.full((count, h, w), -1)
    region = labels.clone()
    for i in range(count):
        cells = {}
        for y in range(height):
            for x in range(width):
                c = batch.masks[i, y, x].item()
                if c != 255:
                    cells.setdefault(c, []).append((y * h // height, x * w // width))
        for c, places in sorted(cells.items()):
            if len(places) >= least:
                means = [torch.stack([one[i, :, y, x] for y, x in places]).mean(0) for one in (logits, features)]
                regions.append((i, c, *means))
        numbers = {c: r for r, (image, c, _, _) in enumerate(regions) if image == i}
        for y in range(h):
            for x in range(w):
                shares = {c: places.count((y, x)) for c, places in sorted(cells.items())}
                most = max(shares, key=shares.get, default=None)  # the first of equal ones
                if most in numbers and shares[most]:
                    labels[i, y, x], region[i, y, x] = most, numbers[most]
    return logits, features, regions, labels, region


@pytest.mark.parametrize(
    ("stride", "own", "size"),
    [(4, 4, (22, 29)), (4, 8, (24, 32)), (4, 2, (21, 26)), (8, 4, (30, 27)), (1, 1, (13, 14))],
    ids=["no multiple", "coarser network", "finer network", "coarser task", "every pixel"],
)
def test_regions_and_pixels_are_those_of_a_loop(stride, own, size):
    batch, network = drawn_batch(*size), strided(own)
    task = Segmentation(stride=stride, least=6)
    samples, loss = task.samples(network, batch)
    logits, features, regions, labels, region = naive(network(batch.images), batch, stride, 6)
    assert loss is None and len(regions) > 4 and (0, 4) not in [one[:2] for one in regions], "4 pixels are no region"
    assert samples.image.tolist() == [i for i, *_ in regions]
    assert samples.labels.tolist() == [c for _, c, *_ in regions]
    assert samples.key.tolist() == [batch.index[i].item() * C + c for i, c, *_ in regions]
    torch.testing.assert_close(samples.logits.double(), torch.stack([one[2] for one in regions]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        samples.features.double(), torch.stack([one[3] for one in regions]), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(samples.pixels.logits.double(), logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(samples.pixels.features.double(), features, atol=1e-6, rtol=1e-5)
    assert torch.equal(samples.pixels.labels, labels) and torch.equal(samples.pixels.region, region)

    finest = samples.finest
    places = [(i, y, x) for i, y, x in (labels >= 0).nonzero().tolist()]
    assert finest.labels.tolist() == [labels[place].item() for place in places]
    assert finest.key.tolist() == [region[place].item() for place in places]
    assert finest.image.tolist() == [place[0] for place in places]
    expected = torch.stack([logits[i, :, y, x] for i, y, x in places])
    torch.testing.assert_close(finest.logits.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(20, 36), (19, 40), (65, 70)])
def test_small_maps_are_enlarged_as_by_pytorch(size):
    maps = torch.randn(2, 3, 5, 9, dtype=torch.float64, requires_grad=True)
    found, expected = segmentation._enlarged(maps, size), F.interpolate(maps, size, mode="bilinear")
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(one, maps, towards)[0] for one in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_the_shares_of_a_batch_are_not_those_of_another_one():
    """They are kept for the last batch, with its masks and its number of classes."""
    task, first, second = Segmentation(), drawn_batch(22, 29), drawn_batch(22, 29)
    second = replace(second, masks=second.masks.flip(0))
    more = replace(first, num_classes=first.num_classes + 1)
    for batch in (first, second, more, first):
        assert torch.equal(task._shares(batch), Segmentation()._shares(batch))
        assert torch.equal(task._shares(batch), Segmentation()._shares(batch)), "the second call returns what was kept"


def test_the_loss_is_cross_entropy_of_all_pixels_that_are_not_ignored():
    batch, network = drawn_batch(22, 29), strided(4).train()
    _, loss = Segmentation().samples(network, batch)
    enlarged = F.interpolate(network(batch.images).logits, (22, 29), mode="bilinear")
    expected = F.cross_entropy(enlarged.double(), batch.masks.long(), ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = (torch.autograd.grad(one, network.module[0].weight)[0] for one in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_images_whose_pixels_are_all_ignored_add_nothing():
    batch, network = drawn_batch(22, 29), strided(4).train()
    void = replace(batch, masks=torch.full_like(batch.masks, 255))
    samples, loss = Segmentation().samples(network, void)
    assert len(samples.labels) == len(samples.finest.labels) == 0 and loss.item() == 0
    loss.backward()
    assert all((parameter.grad == 0).all() for parameter in network.parameters())


def test_a_teacher_of_other_classes_has_the_regions_of_the_data():
    batch, task = drawn_batch(22, 29), Segmentation(least=6)
    own, _ = task.samples(strided(4), batch)
    for classes in (3, 9):
        other, _ = task.samples(strided(4, classes), batch)
        assert torch.equal(other.key, own.key) and torch.equal(other.labels, own.labels)
        assert torch.equal(other.pixels.region, own.pixels.region) and other.logits.shape == (len(own.key), classes)


def test_places_are_those_of_the_samples_and_have_a_row_in_a_bank(few, network):
    task, train = Segmentation(), few.train
    keys, labels = task.keys(train)
    present = [(i, c) for i in range(len(train)) for c in train.masks[i].unique().tolist() if c != 255]
    assert keys.tolist() == [train.index[i].item() * 11 + c for i, c in present]
    assert labels.tolist() == [c for _, c in present]
    for view in (0, 5, 123):
        batch = train.batch(torch.arange(len(train)), torch.full((len(train),), view))
        key, label = task.places(batch)
        samples, _ = task.samples(network, batch)
        assert torch.equal(samples.key, key) and torch.equal(samples.labels, label)
        assert torch.isin(key, keys).all() and torch.equal(key % 11, label) and len(key.unique()) == len(key)


# ------------------------------------------------------------------------------------------- banks and metrics


@pytest.fixture(scope="module")
def unequal(few):
    """Images of several sizes, no multiples of the stride, two of them of one size after each other; one is ignored."""
    test = few.test
    sizes = [(40, 37), (40, 37), (33, 50), (61, 22), (40, 37), (30, 30)]
    images = tuple(one[:, :h, :w] for one, (h, w) in zip(test.images, sizes, strict=True))
    masks = [one[:h, :w].clone() for one, (h, w) in zip(test.masks, sizes, strict=True)]
    masks[2][:10], masks[4][:] = 255, 255
    return replace(test, images=images, masks=tuple(masks), sizes=torch.tensor(sizes), objects=None)


def test_a_bank_has_each_class_of_each_image(unequal, network):
    task = Segmentation()
    samples = task.bank_samples(network, unequal, precision="fp32")
    rows = torch.arange(len(unequal))
    alone = [Segmentation(least=1).samples(network, unequal.batch(rows[i : i + 1]))[0] for i in rows.tolist()]
    for part in ("logits", "features"):
        expected = torch.cat([getattr(one, part) for one in alone])
        torch.testing.assert_close(getattr(samples, part), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(samples.key, torch.cat([one.key for one in alone]))
    assert torch.equal(samples.key, task.keys(unequal)[0]) and torch.equal(samples.labels, task.keys(unequal)[1])
    assert samples.image.tolist() == [i for i, one in enumerate(alone) for _ in one.key] and 4 not in samples.image
    order = torch.randperm(len(samples.key))[:7]
    some = task.bank_samples(network, unequal, keys=samples.key[order], precision="fp32")
    for part in ("logits", "features"):
        torch.testing.assert_close(getattr(some, part), getattr(samples, part)[order], atol=1e-5, rtol=1e-4)
    for part in ("labels", "key", "image"):
        assert torch.equal(getattr(some, part), getattr(samples, part)[order])
    assert not network.training


@pytest.mark.parametrize("key", [11 * 10**6, None], ids=["image", "class"])
def test_a_bank_does_not_make_up_samples(unequal, network, key):
    known = Segmentation().keys(unequal)[0]
    key = key or next(k for k in range(int(known[0]) // 11 * 11, int(known[-1])) if k not in known)
    with pytest.raises(InputError, match="some samples are not in scenes/test"):
        Segmentation().bank_samples(network, unequal, keys=torch.tensor([int(known[0]), key]))


def test_mask_files_are_read_once_for_the_keys(few):
    """Each training moves its splits to its device, which must not make the keys of the same images unknown."""
    read = []
    masks = Decoded(lambda i: read.append(i) or few.train.masks[i], tuple(range(len(few.train))))
    images = replace(few.train, masks=masks)
    expected = Segmentation().keys(few.train)
    for moved in (images, images.to("cpu"), images.to(torch.device("cpu"))):
        assert all(map(torch.equal, Segmentation().keys(moved), expected))
    assert sorted(read) == list(range(len(images)))


def test_the_metrics_are_those_of_a_loop_at_full_resolution(unequal, network):
    task = Segmentation()
    teacher = copy.deepcopy(network)
    nn.init.normal_(teacher.classifier.bias, std=3)
    reference = task.bank_samples(teacher, unequal, precision="fp32")
    found = task.metrics(network, unequal, teacher=reference, precision="fp32")
    counts = torch.zeros(11, 11)
    for image, mask in zip(unequal.images, unequal.masks, strict=True):
        with torch.no_grad():
            logits = network(image[None] / 255).logits
        predicted = F.interpolate(logits, mask.shape, mode="bilinear")[0].argmax(0)
        for y in range(len(mask)):
            for x in range(mask.shape[1]):
                if mask[y, x] != 255:
                    counts[mask[y, x].item(), predicted[y, x].item()] += 1
    ious = {}
    for c in range(11):
        union = counts[c].sum() + counts[:, c].sum() - counts[c, c]
        if union:
            ious[c] = (counts[c, c] / union).item()
    assert found["miou"] == pytest.approx(sum(ious.values()) / len(ious), abs=1e-6) and 0 < found["miou"] < 1
    assert found["pixel_accuracy"] == pytest.approx((counts.diag().sum() / counts.sum()).item(), abs=1e-6)
    for c, iou in ious.items():
        assert found[f"iou_{unequal.classes[c]}"] == pytest.approx(iou, abs=1e-6)
    own = task.bank_samples(network, unequal, precision="fp32")
    same = [a.argmax() == b.argmax() for a, b in zip(own.logits, reference.logits, strict=True)]
    assert found["agreement"] == pytest.approx(sum(same).item() / len(same)) and 0 < found["agreement"] < 1
    assert task.primary in found and all(column.key in found or "best" in column.key for column in task.columns)
    assert "agreement" not in task.metrics(network, unequal, precision="fp32")


def test_all_processes_raise_what_one_of_them_found(few, network, monkeypatch):
    broken, flags = copy.deepcopy(network), []
    nn.init.constant_(broken.classifier.bias, float("nan"))
    with pytest.raises(NotFinite, match="the network's logits have values that are not finite"):
        Segmentation().metrics(broken, few.test)
    monkeypatch.setattr(segmentation, "any_process", lambda *given: flags.append(given) or (True,))
    for one in (network, broken):
        with pytest.raises(NotFinite):
            Segmentation().metrics(one, few.test)
    assert flags == [(False,), (True,)]


def test_a_bank_is_saved_and_refused_for_what_it_is_not_from(few, network, tmp_path):
    task, images = Segmentation(), few.test
    bank = MemoryBank.build(network, images, task=task)
    assert torch.equal(bank.index, task.keys(images)[0].sort().values) and bank.classes == images.classes
    bank.save(tmp_path / "bank.safetensors")
    again = MemoryBank.load(tmp_path / "bank.safetensors", images=images, teacher=network)
    assert all(torch.equal(value, again.tensors[name]) for name, value in bank.tensors.items())
    require_fit(again, images, network, task)
    other = strided(4, 11)
    other.features_dim = bank.features.shape[1]
    for given in ({"images": few.train}, {"teacher": other}):
        with pytest.raises(InputError, match="was built with"):
            MemoryBank.load(tmp_path / "bank.safetensors", **given)
    changed = replace(images, images=tuple(255 - one for one in images.images))
    for where, who, message in (
        (few.train, network, "another data set"),
        (changed, network, "another data set"),
        (images, other, "another teacher"),
    ):
        with pytest.raises(InputError, match=message):
            require_fit(again, where, who, task)
    digits = data.load("digits", labels=60).train
    with pytest.raises(InputError, match="another data set"):
        scenes.distill(
            "segmentation",
            [Student("resnet8-fcn", scenes.quick("picd"))],
            few,
            network,
            bank=MemoryBank.build(models.create("resnet8", **digits.spec), digits),
        )


def test_explorers_address_regions(few, network):
    samples = explore.SampleSet(few.test, Segmentation())
    at = torch.tensor([5, 0, len(samples) - 1])
    assert torch.equal(samples.positions(samples.keys[at]), at)
    pictures = samples.thumbnails(at)
    assert pictures.shape[:2] == (3, 3) and pictures.dtype == torch.uint8


# -------------------------------------------------------------------------------------------------- mistakes


def refused(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_networks_and_data_of_another_task_are_refused(few, network):
    digits = data.load("digits", labels=60)
    boxes = data.load("scenes", annotations="boxes")
    fcn, plain = [Student("resnet8-fcn", "ce")], [Student("resnet8", "ce")]
    options = {"recipe": scenes.RECIPE, "device": "cpu", "progress": False}
    classification = models.create("resnet8", **few.train.spec)
    for call, message in (
        (
            lambda: training.distill(fcn, digits, **options),
            "resnet8-fcn is a network for segmentation, not for classif",
        ),
        (
            lambda: scenes.distill("segmentation", plain, few),
            "resnet8 is a network for classification, not for segment",
        ),
        (lambda: scenes.distill("segmentation", fcn, digits), "digits/train has none; choose scenes"),
        (
            lambda: scenes.distill("segmentation", fcn, boxes),
            "segmentation needs images with class masks, but scenes/tr",
        ),
        (
            lambda: training.distill(plain, few, **options),
            "classification needs images with one label each, but scenes",
        ),
        (lambda: scenes.distill("segmentation", fcn, few, classification), "resnet8 is a network for classification"),
        (lambda: training.evaluate(network, few.test), "classification needs images with one label each"),
        (lambda: training.evaluate(classification, few.test, task=Segmentation()), "resnet8 is a network for classif"),
        (lambda: MemoryBank.build(network, few.test), "classification needs images with one label each"),
        (lambda: MemoryBank.build(classification, few.test, task=Segmentation()), "resnet8 is a network for classif"),
        (lambda: MemoryBank.build(network, digits.test, task=Segmentation()), "digits/test has none"),
    ):
        refused(call, message)
    batch = replace(few.train.batch(torch.arange(2)), images=(torch.rand(3, 8, 8), torch.rand(3, 9, 8)))
    refused(lambda: Segmentation().samples(network, batch), "must have one size; give them a RandomCrop")


def test_the_name_of_the_task_creates_it():
    assert isinstance(tasks.create("segmentation"), Segmentation)
    with pytest.raises(InputError, match="did you mean 'segmentation'"):
        tasks.create("segmentaton")
