import math

import pytest
import torch

from ickd_lib import metrics, results
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError


def test_accuracy_calibration_and_fidelity_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    got = metrics.classification(logits, labels, teacher)
    assert got["accuracy"] == 0.5 and metrics.accuracy(logits, labels, 2) == 1.0 and got["agreement"] == 0.75
    p, q = logits.double().softmax(1), teacher.double().softmax(1)
    assert got["nll"] == pytest.approx(-sum(math.log(p[i, y]) for i, y in enumerate(labels.tolist())) / 4)
    assert got["teacher_kl"] == pytest.approx((q * (q.log() - p.log())).sum().item() / 4, rel=1e-6)
    confidence, right = p.max(1).values, torch.tensor([1.0, 1.0, 0.0, 0.0])
    bins = [[i for i in range(4) if b / 15 <= confidence[i] < (b + 1) / 15] for b in range(15)]
    expected = sum(abs(sum((right[i] - confidence[i]).item() for i in b)) for b in bins) / 4
    assert got["ece"] == pytest.approx(expected, abs=1e-6)


def test_retrieval_precision_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.9, 0.4], [0.0, 1.0], [0.1, 0.99]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    index = torch.arange(5)
    bank = MemoryBank(features, torch.zeros(5, 3), labels, index, ("a", "b", "c"))
    pixels = torch.zeros(5, 3, 2, 2, dtype=torch.uint8)
    images = Images(
        pixels, labels, index, ("a", "b", "c"), (0,) * 3, (1,) * 3, 0, False, "x/train", ("u", "v"), (0, 0, 1)
    )
    got = metrics.retrieval(bank, images, k=2)
    # nearest two of each row: 0: 1 2; 1: 0 2; 2: 1 0; 3: 4 2; 4: 3 2
    assert got["precision@2"] == pytest.approx(4 / 10) and got["precision@1"] == pytest.approx(4 / 5)
    assert got["superclass_precision@2"] == pytest.approx(8 / 10)
    assert got["chance"] == pytest.approx((0.4 * 2 + 0.2 + 0.4 * 2) / 5)


def test_separation_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    got = metrics.separation(logits, labels, unit=False)
    assert (
        got["within"] == pytest.approx(1) and got["between"] == pytest.approx(10) and got["ratio"] == pytest.approx(10)
    )
    assert got["margin"] == pytest.approx(math.sqrt(101) - 1) and got["negative_margin"] == 0
    far = (10 + math.sqrt(104)) / 2
    assert got["silhouette"] == pytest.approx((far - 2) / far)
    assert metrics.separation(7 * logits + 1e-9, labels)["ratio"] == pytest.approx(
        metrics.separation(logits + 1e-9, labels)["ratio"]
    )


def test_closer_classes_are_less_separate():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    noise, centre = torch.randn(300, 3, generator=g), torch.eye(3)[labels]
    far, near = (metrics.separation(noise + scale * centre, labels) for scale in (8, 2))
    assert far["ratio"] > near["ratio"] and far["silhouette"] > near["silhouette"] and far["margin"] > near["margin"]
    assert far["negative_margin"] < near["negative_margin"]


def test_mean_std_and_paired_intervals():
    assert results.mean_std([1.0, 3.0]) == (2.0, math.sqrt(2))
    assert math.isnan(results.mean_std([1.0])[1])
    mean, half = results.paired([2.0, 3.0, 5.0], [1.0, 1.0, 2.0])
    assert mean == pytest.approx(2) and half == pytest.approx(4.302652729911275 * 1 / math.sqrt(3))
    with pytest.raises(InputError, match="two or more pairs"):
        results.paired([1.0], [2.0])


def test_tables_keep_settings_apart():
    base = {"dataset": "digits", "train_images": 60, "teacher": None, "network": "resnet8", "epochs": 1}
    base |= {"batch_size": 64, "lr": 0.05, "schedule": "step"}
    rows = [
        base | {"method": "ce", "accuracy": 0.5, "best_accuracy": 0.6},
        base | {"method": "ce", "accuracy": 0.7, "best_accuracy": 0.8},
        base | {"method": "kd", "accuracy": 0.9, "best_accuracy": 0.9, "teacher": "resnet20", "agreement": 0.25},
    ]
    text = results.table(rows)
    assert "| ce | 2 | 60.00 ± 14.14 | 70.00 ± 14.14 |" in text
    assert "**digits**, 60 training images: resnet20 → resnet8, 1 epochs at batch 64, learning rate 0.05 (step)" in text
    assert "| kd | 1 | 90.00 | 90.00 | 25.00 |" in text
