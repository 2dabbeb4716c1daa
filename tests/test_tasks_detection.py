"""Detection: proposals as samples, the losses, banks of annotated boxes, and the metrics."""

import copy
import sys
from dataclasses import replace

import pytest
import scenes
import torch
from torch import nn

from ickd_lib import data, explore, metrics, models, tasks, training
from ickd_lib.data.resizing import resized
from ickd_lib.memory import MemoryBank, require_fit
from ickd_lib.runtime import InputError, NotFinite
from ickd_lib.tasks import Detection, Segmentation, detection
from ickd_lib.training import Student, step

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")
pytestmark = pytest.mark.usefixtures("seeded")
FPN = "resnet8-fpn"
SIDES = {40, 44, 48, 52, 56}  # of the training images if the middle one is 48


@pytest.fixture(scope="module")
def few():
    return scenes.small("detection")


def made(images, seed):
    """An untrained detector in evaluation mode, with few proposals, whose predictions differ from box to box."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = models.create(FPN, box_batch_size_per_image=16, **images.spec)
        nn.init.normal_(network.module.roi_heads.box_predictor.cls_score.weight)
    return network.eval()


@pytest.fixture(scope="module")
def network(few):
    return made(few.train, 1)


@pytest.fixture(scope="module")
def unusual(few):
    """Images of which the second has no object; the first object of each other image is a crowd, beside three more."""
    images = few.test
    flat, counts, counted = images.objects.flat, [], []
    for i in range(len(images)):
        count = 0 if i == 1 else 3 + i % 2
        rows = torch.randint(len(flat), (count,))
        one = flat.select(rows)
        places = torch.rand(count, 2) * 50
        boxes = torch.cat([places, places + 12 + 20 * torch.rand(count, 2)], 1)
        crowd = torch.arange(count) == 0
        counted.append(replace(one, boxes=boxes, crowd=crowd, masks=None, area=None))
        counts.append(count)
    parts = {name: torch.cat([getattr(one, name) for one in counted]) for name in ("boxes", "labels", "crowd")}
    every = data.Objects(parts["boxes"], parts["labels"], 10 + 3 * torch.arange(sum(counts)), parts["crowd"])
    return replace(images, objects=data.SplitObjects(every, torch.tensor(counts)))


@pytest.mark.parametrize(
    ("options", "trained", "evaluated"),
    [({}, SIDES, 48), ({"min_size": 80, "max_size": 99}, {80}, 80), ({"min_size": 56}, SIDES, 56)],
    ids=["as given", "resized", "resized to the longest of the random sides"],
)
def test_the_scale_of_evaluation_with_an_image_size(few, monkeypatch, options, trained, evaluated):
    """It is that of the training, or the middle or the end of the range from which the training draws."""
    train, test = resized(few.train, 48), resized(few.test, 48)
    network, seen = models.create(FPN, **train.spec, **options), []
    transform = network.module.transform
    batch_images = transform.batch_images
    monkeypatch.setattr(
        transform, "batch_images", lambda images, **kw: seen.append(images) or batch_images(images, **kw)
    )
    Detection().samples(network.train(), train.batch(torch.arange(24), torch.arange(24)))
    assert {min(image.shape[1:]) for image in seen.pop()} == trained
    Detection().metrics(network, test)
    Detection().bank_samples(network, test)
    assert {min(image.shape[1:]) for images in seen for image in images} == {evaluated}


def test_a_detector_that_is_evaluated_on_another_scale_than_it_is_trained_on_is_noted(few, capsys):
    large = replace(few.train, transform=data.RandomResize(tuple(range(480, 801, 32)), 1333))
    detector = models.create(FPN, **few.train.spec)
    for images in (few.train, resized(large, 96)):
        Detection().check_network(detector, images)
    Detection().check_network(models.create(FPN, **few.train.spec, min_size=800), large)
    assert not capsys.readouterr().err
    Detection().check_network(detector, large)
    assert "trained with shorter sides of 480 to 800 pixels, but evaluated on images in their own size, such as 96" in (
        capsys.readouterr().err
    )


def overlap(one, other):
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def test_samples_are_the_proposals_with_the_annotations_that_they_match(unusual, network):
    batch, student = unusual.batch(torch.arange(4), torch.arange(4)), copy.deepcopy(network).train()
    torch.manual_seed(3)
    samples, loss = Detection().samples(student, batch, maps=True)
    torch.manual_seed(3)
    done = copy.deepcopy(network).train().training_pass(batch.images, batch.objects)
    torch.testing.assert_close(samples.logits, done.regions.logits)
    torch.testing.assert_close(samples.features, done.regions.features)
    assert len(samples.maps) == 3 and [len(one) for one in samples.boxes] == samples.image.bincount().tolist()
    assert samples.logits.shape[1] == 11 and samples.logits.requires_grad

    boxes, at = torch.cat(samples.boxes), 0
    for i, objects in enumerate(batch.objects):
        kept = [k for k in range(len(objects)) if not objects.crowd[k]]
        for box in samples.boxes[i]:
            shares = [overlap(box.tolist(), objects.boxes[k].tolist()) for k in kept]
            best = max(range(len(kept)), key=lambda k: shares[k], default=None)
            found = best is not None and shares[best] >= 0.5
            assert samples.key[at] == (objects.key[kept[best]] if found else -1)
            assert samples.labels[at] == (objects.labels[kept[best]] + 1 if found else 0)
            assert samples.image[at] == i
            at += 1
    assert at == len(boxes) == len(samples.key)
    assert (samples.key[samples.image == 1] == -1).all() and (samples.key >= 0).sum() >= 6
    assert loss.item() == pytest.approx(done.losses["loss_classifier"].item())
    rest = sum(value.item() for name, value in done.losses.items() if name != "loss_classifier")
    assert samples.fixed.item() == pytest.approx(rest) and len(done.losses) == 4


def test_a_teacher_is_evaluated_on_the_boxes_of_the_student(few, network):
    batch, teacher = few.train.batch(torch.arange(3), torch.arange(3)), made(few.train, 2)
    own, _ = Detection().samples(copy.deepcopy(network).train(), batch)
    with torch.no_grad():
        found, loss = Detection().samples(teacher, batch, like=own)
        regions = teacher.at_boxes(batch.images, own.boxes)
    assert loss is None and found.fixed is None
    assert torch.equal(found.logits, regions.logits) and torch.equal(found.features, regions.features)
    assert torch.equal(found.key, own.key) and torch.equal(found.labels, own.labels)
    assert torch.equal(found.image, own.image) and len(found.logits.unique(dim=0)) > len(found.logits) / 2


@pytest.mark.parametrize("side", [112, 96])
def test_a_random_scale_is_not_undone_by_a_detector_that_resizes_to_the_same_length(few, network, side):
    """The scenes' training images have a random side of 80 to 112 pixels; 96 is another length and is kept to."""
    batch = few.train.batch(torch.arange(6), torch.arange(6))
    assert batch.resized == 112 and few.train.batch(torch.arange(6)).resized == 0
    assert len({image.shape for image in batch.images}) > 1
    found = []
    for options in ({}, {"min_size": side, "max_size": 200}):
        one = models.create("resnet8-fpn", **few.train.spec, **options)
        one.load_state_dict(network.state_dict())
        torch.manual_seed(3)
        own, _ = Detection().samples(one.train(), batch)
        with torch.no_grad():
            found.append((own, Detection().samples(one.eval(), batch, like=own)[0]))
    for plain, resizing in zip(*found, strict=True):
        assert torch.equal(plain.logits, resizing.logits) is (side == 112)


def test_known_samples_are_those_with_a_row(few, network):
    batch = few.train.batch(torch.arange(3), torch.arange(3))
    samples, _ = Detection().samples(copy.deepcopy(network).train(), batch, maps=True)
    matched = [i for i, key in enumerate(samples.key.tolist()) if key >= 0]
    known = samples.known
    assert 0 < len(matched) < len(samples.key)
    for part in ("logits", "features", "labels", "key", "image"):
        assert torch.equal(getattr(known, part), getattr(samples, part)[matched])
    assert known.whole is samples and known.finest is samples and samples.finest is samples
    assert known.maps is samples.maps and (known.labels > 0).all()
    assert torch.isin(known.key, Detection().keys(few.train)[0]).all()


@pytest.mark.parametrize("method", ["ce", "kd(ce=0, kd=1)", "ls", "picd(ce=0, positives=2, negatives=3)"])
def test_losses_of_boxes_have_weight_one_with_every_method(method, few, network, monkeypatch):
    student = copy.deepcopy(network)
    before = {name: value.clone() for name, value in student.named_parameters()}
    fixed, trained, losses, samples = [], [], step.step_losses, Detection.samples

    def sampling(*given, **options):
        found = samples(*given, **options)
        fixed.extend([] if found[0].fixed is None else [found[0].fixed.item()])
        return found

    def computed(*given):
        found = losses(*given)
        trained.extend(loss.item() for loss in found)
        return found

    monkeypatch.setattr(Detection, "samples", sampling)
    monkeypatch.setattr(step, "step_losses", computed)
    students = [Student(student, method, name="a")]
    history = scenes.distill("detection", students, few, made(few.train, 2))["a"]
    (record,) = history.epochs
    assert record["terms"]["boxes"] == pytest.approx(sum(fixed) / len(fixed), rel=1e-5) and len(fixed) == 3
    assert sum(trained) / 3 == pytest.approx(sum(record["terms"].values()), rel=1e-5)
    proposals = [name for name in before if "rpn.head.bbox_pred" in name]
    assert proposals and all((dict(student.named_parameters())[name] != before[name]).any() for name in proposals)


# ------------------------------------------------------------------------------------------- banks and metrics


def test_a_bank_has_a_row_for_each_annotated_box_that_is_no_crowd(unusual, network):
    task = Detection()
    samples = task.bank_samples(network, unusual, precision="fp32")
    keys, labels, image, logits, features = [], [], [], [], []
    for i in range(len(unusual)):
        (objects,) = unusual.batch(torch.tensor([i])).objects
        for k in range(len(objects)):
            if not objects.crowd[k]:
                with torch.no_grad():
                    one = network.at_objects(unusual.batch(torch.tensor([i])).images, [objects.boxes[k : k + 1]])
                keys.append(objects.key[k].item())
                labels.append(objects.labels[k].item() + 1)
                image.append(i)
                logits.append(one.logits[0])
                features.append(one.features[0])
    assert samples.key.tolist() == keys and samples.labels.tolist() == labels and samples.image.tolist() == image
    assert 1 not in image and len(keys) == len(unusual.objects.flat) - len(unusual) + 1
    torch.testing.assert_close(samples.logits, torch.stack(logits), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(samples.features, torch.stack(features), atol=1e-4, rtol=1e-4)
    assert torch.equal(task.keys(unusual)[0], samples.key) and torch.equal(task.keys(unusual)[1], samples.labels)
    assert task.outputs(unusual.classes) == ("background", *unusual.classes) and not network.training

    order = torch.randperm(len(keys))[:5]
    some = task.bank_samples(network, unusual, keys=samples.key[order], precision="fp32")
    for part in ("logits", "features"):
        torch.testing.assert_close(getattr(some, part), getattr(samples, part)[order], atol=1e-4, rtol=1e-4)
    for part in ("labels", "key", "image"):
        assert torch.equal(getattr(some, part), getattr(samples, part)[order])
    for key in (11, 10**6, unusual.objects.flat.key[0].item()):  # of no object, and of a crowd
        with pytest.raises(InputError, match="some samples are not in scenes/test"):
            task.bank_samples(network, unusual, keys=torch.tensor([keys[0], key]))


def test_a_bank_of_images_of_unequal_sizes(unusual, network):
    sizes = [(96, 96), (80, 70), (64, 96), (90, 85), (96, 60), (70, 70)]
    images = tuple(one[:, :h, :w] for one, (h, w) in zip(unusual.images, sizes, strict=True))
    cut = replace(unusual, images=images, sizes=torch.tensor(sizes))
    flat = cut.objects.flat
    limit = torch.tensor([(w, h, w, h) for h, w in sizes]).repeat_interleave(cut.objects.counts, 0)
    boxes = torch.minimum(flat.boxes, limit)
    boxes[:, :2] = torch.minimum(boxes[:, :2], boxes[:, 2:] - 4)
    cut = replace(cut, objects=replace(cut.objects, flat=replace(flat, boxes=boxes)))
    samples = Detection().bank_samples(network, cut, precision="fp32")
    batch = cut.batch(torch.arange(6))
    with torch.no_grad():
        regions = network.at_objects(batch.images, [one.boxes[~one.crowd] for one in batch.objects])
    torch.testing.assert_close(samples.logits, regions.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(samples.image, regions.image)
    assert 0 <= Detection().metrics(network, cut)["ap"] <= 1


def test_the_metrics_are_coco_ap_of_the_detections(few, network, monkeypatch):
    task, images = Detection(), few.test
    own = task.bank_samples(network, images, precision="fp32")
    other = torch.arange(len(own.logits)) % 3 == 0  # every third box is of another class to the teacher
    reference = replace(own, logits=torch.where(other[:, None], own.logits.roll(1, 1), own.logits))
    found = task.metrics(network, images, teacher=reference, precision="fp32")
    detected, objects = [], []
    for i in range(len(images)):
        batch = images.batch(torch.tensor([i]))
        detected += network.detect(batch.images)
        objects += batch.objects
    expected = metrics.detection(detected, objects, images.classes)
    assert found.pop("agreement") == pytest.approx(1 - other.double().mean().item())
    assert found == pytest.approx(expected, abs=1e-3)
    assert all(column.key in (*found, "agreement", "best_ap") for column in task.columns) and task.primary in found

    def perfect(given):
        return [models.Detections(one.boxes, one.labels, torch.ones(len(one))) for one in objects]

    monkeypatch.setattr(network, "detect", perfect)
    assert task.metrics(network, images)["ap"] == pytest.approx(1)
    monkeypatch.setattr(network, "detect", lambda given: [one._replace(boxes=one.boxes + 40) for one in perfect(given)])
    assert task.metrics(network, images)["ap"] < 0.2


@pytest.mark.parametrize("part", ["backbone", "rpn.head.cls_logits", "roi_heads.box_head", "roi_heads.box_predictor"])
def test_outputs_that_are_not_finite_are_an_error_and_no_missing_detections(few, network, part):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        next(broken.module.get_submodule(part).parameters()).fill_(float("nan"))
    with pytest.raises(NotFinite, match="the network's logits or boxes have values that are not finite"):
        Detection().metrics(broken, few.test)


def test_all_processes_raise_what_one_of_them_found(few, network, monkeypatch):
    flags = []
    monkeypatch.setattr(detection, "any_process", lambda *given: flags.append(given) or (True,))
    with pytest.raises(NotFinite):
        Detection().metrics(network, few.test)
    assert flags == [(False,)] and not any(module._forward_hooks for module in network.modules())


def test_masks_of_objects_are_not_kept_for_the_metrics(network, monkeypatch):
    given = []
    monkeypatch.setattr(metrics, "detection", lambda found, objects, classes: given.extend(objects) or {})
    images = data.load("scenes", annotations="instances").test.few(3)
    Detection().metrics(network, images)
    assert images.objects[0].masks is not None and [one.masks for one in given] == [None] * 3


def test_without_pycocotools_images_are_refused_before_the_training(few, monkeypatch):
    for module in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="detection metrics need pycocotools; run pip install pycocotools"):
        Detection().check(few.train)


def test_a_bank_is_saved_and_refused_for_what_it_is_not_from(few, network, tmp_path):
    task, images, path = Detection(), few.test, tmp_path / "bank.safetensors"
    bank = MemoryBank.build(network, images, task=task)
    assert bank.classes == ("background", *images.classes) and (bank.labels > 0).all()
    bank.save(path)
    again = MemoryBank.load(path, images=images, teacher=network)
    assert all(torch.equal(value, again.tensors[name]) for name, value in bank.tensors.items())
    require_fit(again, images, network, task)
    other = made(images, 2)
    for given in ({"images": few.train}, {"teacher": other}):
        with pytest.raises(InputError, match="was built with"):
            MemoryBank.load(path, **given)
    changed = replace(images, images=tuple(255 - one for one in images.images))
    for where, who, message in (
        (few.train, network, "another data set"),
        (changed, network, "another data set"),
        (images, other, "another teacher"),
    ):
        with pytest.raises(InputError, match=message):
            require_fit(again, where, who, task)
    masks = data.load("scenes", annotations="masks").test.few(6)
    regions = MemoryBank.build(models.create("resnet8-fcn", **masks.spec), masks, task=Segmentation())
    for bank_of, where, of in ((regions, images, task), (again, masks, Segmentation())):
        with pytest.raises(InputError, match="another data set"):
            require_fit(bank_of, where, None, of)


def test_explorers_address_boxes(few, network):
    samples = explore.SampleSet(few.test, Detection())
    at = torch.tensor([5, 0, len(samples) - 1])
    assert torch.equal(samples.positions(samples.keys[at]), at)
    pictures = samples.thumbnails(at)
    assert pictures.shape[:2] == (3, 3) and pictures.dtype == torch.uint8


# -------------------------------------------------------------------------------------------------- mistakes


def test_networks_and_data_of_another_task_are_refused(few, network):
    digits, masks = data.load("digits", labels=60), data.load("scenes", annotations="masks")
    masks = masks._replace(train=replace(masks.train, objects=None))
    fpn, plain = [Student(FPN, "ce")], [Student("resnet8", "ce")]
    fcn = models.create("resnet8-fcn", **few.train.spec)
    options = {"recipe": scenes.RECIPE, "device": "cpu", "progress": False}
    for call, message in (
        (lambda: training.distill(fpn, digits, **options), "resnet8-fpn is a network for detection, not for classif"),
        (lambda: scenes.distill("detection", plain, few), "choose one such as resnet8-fpn"),
        (lambda: scenes.distill("detection", fpn, digits), "annotated boxes, but digits/train has none; choose scenes"),
        (lambda: scenes.distill("detection", fpn, masks), "annotated boxes, but scenes/train has none; choose scenes"),
        (
            lambda: training.distill(plain, few, **options),
            "classification needs images with one label each, but scenes",
        ),
        (lambda: scenes.distill("detection", fpn, few, fcn), "resnet8-fcn is a network for segmentation, not for det"),
        (lambda: training.evaluate(fcn, few.test, task=Detection()), "resnet8-fcn is a network for segmentation"),
        (lambda: MemoryBank.build(fcn, few.test, task=Detection()), "resnet8-fcn is a network for segmentation"),
        (lambda: MemoryBank.build(network, few.test), "classification needs images with one label each"),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert isinstance(tasks.create("detection"), Detection)
