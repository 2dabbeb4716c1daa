"""What the notebooks of segmentation and detection compute: predictions, their errors, and retrieved samples."""

from dataclasses import replace

import pytest
import torch

from ickd_lib import data, explore, metrics, models, runtime, tasks
from ickd_lib.data import Objects
from ickd_lib.explore import detection, retrieved, segmentation
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Detections


@pytest.fixture(scope="module")
def masks():
    return data.load("scenes", annotations="masks", labels=24).train


@pytest.fixture(scope="module")
def boxes():
    return data.load("scenes", annotations="boxes", labels=24).train


@pytest.fixture(scope="module")
def segmenter(masks):
    with runtime.seeded(0):
        return models.create("resnet8-fcn", **masks.spec)


@pytest.fixture(scope="module")
def detector(boxes):
    with runtime.seeded(0):
        return models.create("resnet8-fpn", **boxes.spec)


def test_wrong_pixels_are_those_that_the_metrics_count(masks, segmenter):
    predicted = segmentation.predicted_masks(segmenter, masks, precision="fp32")
    assert len(predicted) == len(masks) and all(one.shape == (96, 96) for one in predicted)
    wrong = segmentation.wrong_shares(predicted, masks)
    found = tasks.create("segmentation").metrics(segmenter, masks, precision="fp32")
    assert 1 - wrong.mean().item() == pytest.approx(found["pixel_accuracy"], abs=1e-4)
    truth = torch.stack([masks.batch(torch.tensor([i])).masks[0] for i in range(len(masks))]).long()
    counts = metrics.confusion(torch.stack(predicted).long(), truth, len(masks.classes))
    assert metrics.segmentation(counts, masks.classes)["miou"] == pytest.approx(
        found["miou"], abs=1e-4
    )  # the batches differ, and so rounding


def test_ignored_pixels_are_not_wrong(masks):
    some = masks.subset(torch.arange(2))
    ignored = replace(some, masks=(torch.full_like(some.masks[0], 255), some.masks[1]))
    guess = [torch.zeros(96, 96, dtype=torch.uint8)] * 2
    shares = segmentation.wrong_shares(guess, ignored)
    assert shares[0] == 0 and shares[1] == (some.masks[1] != 0).double().mean()


def test_iou_of_classes_over_seeds_and_their_gaps():
    ours = segmentation.iou_by_class([{"iou_a": 0.5, "iou_b": 0.2}, {"iou_a": 0.7, "iou_b": 0.2}], ("a", "b", "c"))
    assert ours == {"a": [0.5, 0.7], "b": [0.2, 0.2]}
    text = segmentation.class_gaps(ours, {"a": [0.5, 0.5], "b": [0.3, 0.3]}, name="ickd", baseline="ce")
    assert "+10.0 points for class **a**" in text and "−10.0 points for class **b**" in text
    assert "no class differs" in segmentation.class_gaps(ours, ours, name="ickd", baseline="ce")


def test_detections_are_matched_once_the_best_first():
    objects = Objects(
        torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10]]).float(),
        torch.tensor([0, 1, 1]),
        torch.arange(3),
        torch.tensor([False, False, True]),
    )
    found = Detections(
        torch.tensor([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10], [0, 0, 9, 9]]).float(),
        torch.tensor([0, 0, 0, 1, 0]),
        torch.tensor([0.9, 0.8, 0.7, 0.6, 0.3]),
    )
    one = detection.compared(found, objects)
    assert one.correct.tolist() == [True, False, False], "second, wrong class; that on a crowd is left out"
    assert one.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert one.missed.tolist() == [[20, 20, 30, 30]] and one.errors == 3
    none = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert detection.compared(none, objects).errors == 2
    assert detection.compared(found, objects.select(torch.zeros(3, dtype=torch.bool))).errors == 4


def test_detections_inside_a_crowd_are_left_out_and_those_inside_a_difficult_object_are_wrong():
    one = torch.ones(1, dtype=torch.bool)
    crowd = Objects(torch.tensor([[0.0, 0, 200, 200]]), torch.tensor([0]), torch.arange(1), one)
    boxes = torch.tensor([[10, 10, 30, 30], [0, 0, 190, 200], [190, 190, 230, 230], [5, 5, 5, 5]]).float()
    found = Detections(boxes, torch.zeros(4, dtype=torch.long), torch.ones(4))
    assert detection.compared(found, crowd).boxes.tolist() == boxes[2:].tolist()
    assert detection.compared(found, replace(crowd, difficult=one)).boxes.tolist() == boxes[[0, 2, 3]].tolist()


def test_detected_covers_every_image(boxes, detector):
    found = detection.detected(detector, boxes, score=0.0)
    assert len(found) == len(boxes)
    counts = boxes.objects.counts
    assert all(int(one.correct.sum()) + len(one.missed) == n for one, n in zip(found, counts.tolist(), strict=True))
    assert detection.error_counts(found).tolist() == [one.errors for one in found]


def test_training_proposals_leave_the_network_as_it_was(boxes, detector, untouched_generator):
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    mode = detector.training
    samples = detection.training_proposals(detector, boxes, torch.arange(4))
    again = detection.training_proposals(detector, boxes, torch.arange(4))
    assert torch.equal(samples.logits, again.logits) and len(samples.boxes) == 4
    assert detector.training == mode
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    objects = boxes.batch(torch.arange(4)).objects
    image, chosen = detection.notable_proposal(samples, objects)
    inside = samples.image == image
    key = samples.key[inside][chosen]
    assert (
        key in objects[image].key
        and samples.labels[inside][chosen] == boxes.objects.flat.labels[boxes.objects.flat.key == key].item() + 1
    )


@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_close_queries_and_their_pictures(name, masks, boxes, segmenter, detector):
    images, network = (masks, segmenter) if name == "segmentation" else (boxes, detector)
    task = tasks.create(name)
    bank, samples = MemoryBank.build(network, images, task=task, precision="fp32"), explore.SampleSet(images, task)
    nearest = bank.retrieve(bank.features, bank.labels, bank.index, positives=1, negatives=1, allow_missing=True)
    chosen = retrieved.close_queries(*nearest, bank.labels, 3)
    assert len({int(bank.labels[i]) for i in chosen}) == 3
    gaps = (nearest[0].similarity - nearest[1].similarity).abs()[:, 0]
    assert gaps[chosen[0]] == gaps[nearest[0].mask[:, 0] & nearest[1].mask[:, 0]].min()
    at = samples.positions(bank.index[chosen]).tolist()
    found = bank.retrieve(
        bank.features[chosen], bank.labels[chosen], bank.index[chosen], positives=200, negatives=2, allow_missing=True
    )
    near = found[0]
    pictures, texts = retrieved.illustrated(samples, at, samples, *found)
    assert pictures.shape[:3] == (3, 203, 3) and pictures.dtype == torch.uint8
    classes = task.outputs(images.classes)
    for line, i, mask in zip(texts, chosen, near.mask, strict=True):
        own = classes[int(bank.labels[i])]
        assert line[0] == own and not any(line[1 + int(mask.sum()) : 201])
        assert all(text.split("\n")[0] == own for text in line[1 : 1 + int(mask.sum())])
        assert all(text.split("\n")[0] != own for text in line[201:])


def test_class_means_are_nan_without_samples():
    found = retrieved.class_means(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 2]), 3)
    assert found[[0, 2]].tolist() == [0.5, 0.5] and found[1].isnan()


def test_notable_images_are_different():
    errors = {
        "teacher": torch.tensor([0.0, 0.0, 0.0, 0.0]),
        "ce": torch.tensor([0.1, 0.9, 0.2, 0.3]),
        "kd": torch.tensor([0.1, 0.9, 0.8, 0.3]),
    }
    assert retrieved.notable(errors) == {
        "typical image": 3,
        "largest lead of the teacher": 1,
        "students differ most": 2,
    }
    assert len(retrieved.notable({name: values[:2] for name, values in errors.items()})) == 2
