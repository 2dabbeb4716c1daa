"""Detection metrics compared with values computed by hand, and with pycocotools on files of COCO's format."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ickd_lib import data, metrics
from ickd_lib.models import Detections
from ickd_lib.runtime import InputError

CLASSES = ("cat", "dog", "horse")
SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@pytest.fixture
def pycocotools():
    return pytest.importorskip("pycocotools", reason="pycocotools is not installed")


def objects(boxes, labels, crowd=None, area=None):
    n = len(labels)
    return data.Objects(
        torch.tensor(boxes, dtype=torch.float32).view(n, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.arange(n),
        torch.tensor(crowd or [False] * n, dtype=torch.bool),
        area=None if area is None else torch.tensor(area, dtype=torch.float64),
    )


def detections(boxes, labels, scores):
    n = len(labels)
    boxes = torch.tensor(boxes, dtype=torch.float32).view(n, 4)
    return Detections(boxes, torch.tensor(labels, dtype=torch.int64), torch.tensor(scores, dtype=torch.float32))


def perfect(given):
    return Detections(given.boxes, given.labels, torch.linspace(0.9, 0.5, len(given)))


SCENE = [
    objects([[0, 0, 20, 30], [50, 40, 100, 90]], [0, 1]),
    objects([], []),
    objects([[0, 0, 200, 100]], [1]),
]

# --------------------------------------------------------------------------------------------------- by hand


def test_perfect_detections_have_ones(pycocotools, capsys):
    got = metrics.detection([perfect(x) for x in SCENE], SCENE, CLASSES)
    assert list(got) == [*SUMMARY, "recall", "ap_cat", "ap_dog"]  # no object is a horse
    assert all(type(x) is float and x == pytest.approx(1, abs=1e-12) for x in got.values())
    assert capsys.readouterr() == ("", "")


def test_no_detection_and_a_wrong_class_have_zeros(pycocotools):
    for found in (
        [detections([], [], [])] * 3,
        [perfect(x)._replace(labels=torch.full_like(x.labels, 2)) for x in SCENE],
    ):
        got = metrics.detection(found, SCENE, CLASSES)
        assert set(got) == {*SUMMARY, "recall", "ap_cat", "ap_dog"} and not any(got.values())


def test_a_shifted_box_counts_below_its_overlap(pycocotools):
    # Boxes of width 80, shifted by 20: 60 of 100 columns are in both, so the IoU is 0.6.
    got = metrics.detection(
        [detections([[30, 10, 110, 60]], [0], [0.7])], [objects([[10, 10, 90, 60]], [0])], ("medium",)
    )
    expected = {"ap": 0.3, "ap50": 1, "ap75": 0, "ap_medium": 0.3, "recall": 0.3}
    assert got == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand(pycocotools):
    # The ranking is right, wrong, right. Of the 101 recalls 0, 0.01, …, 1, those up to 0.5 have a precision of 1, and
    # those above of 2/3.
    truth = [objects([[0, 0, 10, 10], [40, 40, 50, 50]], [0, 0])]
    found = [detections([[20, 20, 30, 30], [0, 0, 10, 10], [40, 40, 50, 50]], [0, 0, 0], [0.5, 0.9, 0.1])]
    got = metrics.detection(found, truth, ("a",))
    assert got["ap"] == got["ap_a"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12) and got["recall"] == 1
    # A false detection in an image without objects counts; one that overlaps a crowd does not.
    elsewhere = [*found, detections([[0, 0, 10, 10]], [0], [0.95])]
    less = metrics.detection(elsewhere, [*truth, objects([], [])], ("a",))["ap"]
    assert less < got["ap"]
    assert metrics.detection(elsewhere, [*truth, objects([[0, 0, 90, 90]], [0], [True])], ("a",)) == got


def test_a_detection_lies_on_a_difficult_object_only_by_its_intersection_over_union(pycocotools):
    boxes = [[0, 0, 200, 200], [300, 300, 350, 350]]
    truth = objects(boxes, [0, 0], crowd=[True, False])
    truth = replace(truth, difficult=truth.crowd)
    inside = [[at, at, at + 20, at + 20] for at in (10, 60, 110)]
    found = [detections([*inside, boxes[1]], [0] * 4, [0.9, 0.8, 0.7, 0.6])]
    assert metrics.detection(found, [truth], ("a",))["ap50"] == pytest.approx(0.25)
    assert metrics.detection(found, [replace(truth, difficult=None)], ("a",))["ap50"] == pytest.approx(1), "a crowd"
    on_it = [detections([boxes[0], [0, 0, 180, 200], boxes[1]], [0] * 3, [0.9, 0.8, 0.7])]
    assert metrics.detection(on_it, [truth], ("a",))["ap50"] == pytest.approx(1), "however many"
    both = [detections(boxes, [0, 0], [0.9, 0.8])]
    assert metrics.detection(both, [truth], ("a",))["ap"] == pytest.approx(1)


def test_sizes_are_those_of_the_area_if_there_is_one(pycocotools):
    box = [[0, 0, 40, 40]]
    found = [detections(box, [0], [1.0])]
    assert "ap_medium" in metrics.detection(found, [objects(box, [0])], ("a",))
    got = metrics.detection(found, [objects(box, [0], area=[900.0])], ("a",))
    assert "ap_medium" not in got and got["ap_small"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        ([], SCENE, "detections of 0 images and objects of 3"),
        ([detections([[0, 0, 1, 1]], [3], [0.5])], SCENE[:1], "the detections are from 3 to 3; expected 0 to 2"),
        ([detections([], [], [])], [objects([[0, 0, 1, 1]], [-1])], "the objects are from -1 to -1; expected 0 to 2"),
        ([detections([], [], [])], [objects([[0, 0, 1, 1]], [0], [True])], "none of the 1 images has an object"),
        ([], [], "none of the 0 images has an object"),
    ],
)
def test_errors_are_one_line(pycocotools, found, truth, message):
    with pytest.raises(InputError, match=message) as error:
        metrics.detection(found, truth, CLASSES)
    assert "\n" not in str(error.value)


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    for module in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="detection metrics need pycocotools; run pip install pycocotools"):
        metrics.detection([perfect(x) for x in SCENE], SCENE, CLASSES)


# --------------------------------------------------------------------------------------------------- files of COCO

WIDTH, HEIGHT = 320, 240
IDS = [42, 8, 15, 4, 23, 16, 99]
CATEGORIES = {7: "horse", 2: "cat", 5: "dog", 9: "unicorn"}  # there is no unicorn


def instances(rng, ids):
    """Objects of all sizes, some of them crowds, with areas that are a part of their boxes'; image 15 has none."""
    annotations = []
    for image in (i for i in ids if i != 15):
        for n in range(6):
            side = [14, 28, 40, 90, 110, 180][n] * rng.uniform(0.8, 1.2, 2)
            width, height = np.minimum(side, [WIDTH - 2, HEIGHT - 2]).round(2)
            x, y = (rng.uniform(0, 1, 2) * [WIDTH - width, HEIGHT - height]).round(2)
            annotations.append(
                {
                    "id": 11 + len(annotations),
                    "image_id": image,
                    "category_id": int(rng.choice([7, 2, 5])),
                    "bbox": [float(v) for v in (x, y, width, height)],
                    "area": float(width * height * rng.uniform(0.4, 0.9)),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    order = rng.permutation(len(annotations))
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in ids],
        "annotations": [annotations[i] for i in order],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }


@pytest.fixture
def coco(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "annotations").mkdir()
    for split, ids in (("train", [3]), ("val", IDS)):
        (tmp_path / split).mkdir()
        for i in ids:
            pixels = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(tmp_path / split / f"{i}.png")
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances(rng, ids)))
    return tmp_path


def noisy(truth, g):
    """Detections of an image: most objects with jitter, some of a wrong class, some duplicates, and random boxes."""
    boxes, labels = truth.boxes.repeat(2, 1), truth.labels.repeat(2)
    boxes = boxes + torch.randn(boxes.shape, generator=g) * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) * 0.06
    corner = torch.rand(30, 2, generator=g) * torch.tensor([WIDTH, HEIGHT]) * 0.7
    boxes = torch.cat([boxes, torch.cat([corner, corner + 3 + 60 * torch.rand(30, 2, generator=g)], 1)])
    labels = torch.cat([labels, torch.randint(0, 4, (30,), generator=g)])
    wrong = torch.rand(len(labels), generator=g) < 0.1
    labels = torch.where(wrong, (labels + 1) % 4, labels)
    kept = torch.rand(len(labels), generator=g) < 0.8
    scores = torch.rand(len(labels), generator=g)
    return Detections(boxes[kept], labels[kept], scores[kept])


def by_files(path, results):
    """Evaluate a file of results as COCO's users do."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = dict(zip(SUMMARY, evaluation.stats, strict=False)) | {"recall": evaluation.stats[8]}
    for k, category in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        if precision.max() > -1:
            expected[f"ap_{CATEGORIES[category]}"] = precision.mean()
    return expected


def test_the_numbers_equal_those_of_pycocotools_on_files(coco, pycocotools, capsys):
    test = data.load(f"coco:{coco}").test
    assert test.classes == ("cat", "dog", "horse", "unicorn")
    truth = [test.objects[i] for i in range(len(test))]
    assert sum(x.crowd.sum() for x in truth) >= 3 and [len(x) for x in truth] == [6, 6, 0, 6, 6, 6, 6]
    g = torch.Generator().manual_seed(0)
    found = [noisy(x, g) for x in truth]
    results = [
        {
            "image_id": image,
            "category_id": sorted(CATEGORIES)[label],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for image, one in zip(sorted(IDS), found, strict=True)
        for box, label, score in zip(*(x.tolist() for x in one), strict=True)
    ]
    (coco / "results.json").write_text(json.dumps(results))
    expected = by_files(coco / "annotations" / "instances_val.json", coco / "results.json")
    capsys.readouterr()
    got = metrics.detection(found, truth, test.classes)
    assert capsys.readouterr() == ("", "")
    assert got == pytest.approx(expected, abs=1e-12) and len(got) == 10
    assert len({round(x, 6) for x in got.values()}) == 10 and all(0.01 < x < 0.99 for x in got.values())

    # The sizes are those of the annotations: with the areas of the boxes the numbers are others.
    boxes = [data.Objects(x.boxes, x.labels, x.key, x.crowd) for x in truth]
    other = metrics.detection(found, boxes, test.classes)
    assert other["ap"] == got["ap"] and other["ap_small"] != got["ap_small"]


def test_coco_has_the_area_of_each_annotation(coco):
    splits = data.load(f"coco:{coco}")
    path = coco / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    ids = sorted(IDS)
    own = [[a["area"] for a in content["annotations"] if a["image_id"] == i] for i in ids]
    assert [x.tolist() for x in (splits.test.objects[i].area for i in range(len(ids)))] == own
    part = splits.test.subset(torch.tensor([3, 1])).to("cpu")
    assert part.objects[1].area.tolist() == own[1] and part.objects[0].select(slice(2)).area.tolist() == own[3][:2]
    first = content["annotations"][0]
    del first["area"]  # then it is the area of the box
    path.write_text(json.dumps(content))
    changed = data.load(f"coco:{coco}").test
    image = ids.index(first["image_id"])
    assert changed.objects[image].area[0] == first["bbox"][2] * first["bbox"][3]
    assert changed.fingerprint != splits.test.fingerprint
