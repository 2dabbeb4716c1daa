"""Metrics compared with values computed by hand, and few-shot evaluation compared with a naive loop."""

import json
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import metrics, runs, runtime
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
from ickd_lib.metrics import episodes
from ickd_lib.runtime import InputError

OF_LOGITS = (
    metrics.separation,
    metrics.accuracy,
    metrics.calibration_error,
    metrics.best_temperature,
    metrics.classification,
)


def test_accuracy_calibration_and_fidelity_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    got = metrics.classification(logits, labels, teacher)
    assert got["accuracy"] == 0.5 and metrics.accuracy(logits, labels, 2) == 1.0 and got["agreement"] == 0.75
    p, q = logits.double().softmax(1), teacher.double().softmax(1)
    assert got["nll"] == pytest.approx(-sum(math.log(p[i, y]) for i, y in enumerate(labels.tolist())) / 4)
    assert got["teacher_accuracy"] == 0.25
    assert got["teacher_kl"] == pytest.approx((q * (q.log() - p.log())).sum().item() / 4, rel=1e-6)
    confidence, right = p.max(1).values, torch.tensor([1.0, 1.0, 0.0, 0.0])
    bins = [[i for i in range(4) if b / 15 <= confidence[i] < (b + 1) / 15] for b in range(15)]
    expected = sum(abs(sum((right[i] - confidence[i]).item() for i in b)) for b in bins) / 4
    assert got["ece"] == pytest.approx(expected, abs=1e-6)
    sure = torch.tensor([0.62, 0.68])  # in two of 15 bins, and in one of 10
    apart = torch.stack([sure, 1 - sure], 1).log()
    assert metrics.calibration_error(apart, torch.tensor([0, 1])) == pytest.approx((0.38 + 0.68) / 2, abs=1e-6)
    assert got["confidence"] == pytest.approx(confidence.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("measure", "logits", "labels", "message"),
    [
        (metrics.accuracy, torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.long), r"labels must .* tensor \[4\]"),
        (metrics.accuracy, torch.randn(4, 3), torch.tensor([1, 2, 3, 1]), "between 1 and 3, .* classes 0 to 2"),
        (metrics.accuracy, torch.randn(4, 3), torch.tensor([0, -1, 2, 1]), "leave samples without a label out"),
        (metrics.calibration_error, torch.randn(4, 3).softmax(1), torch.arange(4) % 3, "probabilities, not logits"),
        (metrics.best_temperature, torch.randn(4, 3).softmax(1), torch.arange(4) % 3, "probabilities, not logits"),
        (metrics.classification, torch.randn(4, 3).softmax(1), torch.arange(4) % 3, "probabilities, not logits"),
        (metrics.separation, torch.randn(4, 3), torch.zeros(1, dtype=torch.long), r"labels must .* tensor \[4\]"),
        (metrics.margins, torch.randn(4), torch.zeros(4, dtype=torch.long), "logits must be a dense tensor"),
        (metrics.separation, torch.randn(4, 3), torch.tensor([0, -1, 2, 1]), "leave samples without a label out"),
        (partial(metrics.accuracy, k=0), torch.randn(4, 3), torch.arange(4) % 3, "k=0: .* a whole number of 1 or more"),
        (partial(metrics.reliability, bins=0), torch.randn(4, 3), torch.arange(4) % 3, "bins=0: .* of 1 or more"),
        (partial(metrics.calibration_error, bins=0), torch.randn(4, 3), torch.arange(4) % 3, "bins=0: .* 1 or more"),
        (metrics.best_temperature, torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]), "values .* not finite"),
        *((measure, torch.randn(0, 3), torch.arange(0), "there are no samples") for measure in OF_LOGITS),
        *((measure, torch.full((4, 3), torch.nan), torch.arange(4) % 3, "NaN|not finite") for measure in OF_LOGITS[1:]),
    ],
)
def test_what_is_no_prediction_is_refused(measure, logits, labels, message):
    with pytest.raises(InputError, match=message) as error:
        measure(logits, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(4, 5), (3, 3)])
def test_a_teacher_of_other_classes_or_samples_is_refused(shape):
    message = rf"teacher_logits must .* \[4, 3\] .* not \[{shape[0]}, {shape[1]}\]"
    with pytest.raises(InputError, match=message) as error:
        metrics.classification(torch.randn(4, 3), torch.arange(4) % 3, torch.randn(shape))
    assert "\n" not in str(error.value)


def test_classes_that_are_masked_are_no_mistake_in_the_logits():
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [2.0, 1.0, -torch.inf]])
    assert metrics.accuracy(logits, torch.tensor([1, 1])) == 0.5
    assert 0 < metrics.calibration_error(logits, torch.tensor([1, 1])) < 1


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
    # The nearest two rows of each row are 0: 1 2; 1: 0 2; 2: 1 0; 3: 4 2; 4: 3 2.
    assert got["precision@2"] == pytest.approx(4 / 10) and got["precision@1"] == pytest.approx(4 / 5)
    assert got["superclass_precision@2"] == pytest.approx(8 / 10)
    assert got["chance"] == pytest.approx((0.4 * 2 + 0.2 + 0.4 * 2) / 5)
    assert metrics.retrieval(bank, images, k=4)["precision@4"] == pytest.approx(4 / 20)
    assert metrics.retrieval(bank, images, k=5, features=features)["precision@1"] == 1
    for k, given in ((5, None), (6, features)):
        with pytest.raises(InputError, match=f"k={k}, but some queries have only {k - 1} other rows"):
            metrics.retrieval(bank, images, k=k, features=given)
    with pytest.raises(InputError, match="there are 3 features, but 5 images") as error:
        metrics.retrieval(bank, images, k=2, features=features[:3])
    assert "\n" not in str(error.value)


def test_freshness_counts_steps_and_filled_rows():
    bank = MemoryBank(torch.eye(4), 3 * torch.eye(4), torch.arange(4), torch.arange(4), tuple("abcd"))
    assert metrics.freshness(bank, step=0) == {"bank_fill": 1, "bank_age": 0, "bank_age_max": 0}
    bank.written = torch.tensor([-1, 9, 4, 7])
    assert metrics.freshness(bank, step=9) == {"bank_fill": 0.75, "bank_age": pytest.approx(7 / 3), "bank_age_max": 5}
    bank.written.fill_(-1)
    assert metrics.freshness(bank, step=9) == {"bank_fill": 0, "bank_age": 0, "bank_age_max": 0}


def test_drift_by_hand():
    def built(degrees, predictions, rows):
        angles = torch.tensor(degrees) * math.pi / 180
        features = 3 * torch.stack([angles.cos(), angles.sin()], 1)
        logits = 3.0 * F.one_hot(torch.tensor(predictions), 3)
        return MemoryBank(features, logits, torch.zeros(len(rows)).long(), torch.tensor(rows), ("a", "b", "c"))

    # Rows 1, 3 and 7 are compared. Row 5 is not rebuilt, row 9 is not filled, and row 11 is not in the first bank.
    bank = built([0.0, 40.0, 20.0, 100.0, 5.0], [0, 1, 2, 0, 1], [1, 3, 5, 7, 9])
    bank.written[4] = -1
    rebuilt = built([0.0, 70.0, 40.0, 10.0, 0.0], [0, 1, 2, 1, 0], [1, 3, 7, 9, 11])
    got = metrics.drift(bank, rebuilt, k=1)
    cosines = [math.cos(math.radians(angle)) for angle in (0, 30, 60)]
    assert got["bank_drift"] == pytest.approx(1 - sum(cosines) / 3, abs=1e-6)
    assert got["bank_agreement"] == pytest.approx(2 / 3)
    assert got["bank_overlap"] == pytest.approx(
        1 / 3
    )  # nearest rows in both banks: of 1: 3 and 7; of 3: 1 and 7; of 7: 3 and 3
    assert metrics.drift(bank, rebuilt, k=2)["bank_overlap"] == 1 == metrics.drift(bank, rebuilt)["bank_overlap"]


def test_a_bank_does_not_drift_from_itself(bank):
    expected = {"bank_drift": pytest.approx(0, abs=1e-6), "bank_agreement": 1, "bank_overlap": 1}
    assert metrics.drift(bank, bank) == expected
    half = torch.arange(0, len(bank), 2)
    part = MemoryBank(*(tensor[half] for tensor in (bank.features, bank.logits, bank.labels, bank.index)), bank.classes)
    assert metrics.drift(bank, part) == expected == metrics.drift(part, bank)


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


def test_closer_classes_have_a_smaller_separation():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    noise, centre = torch.randn(300, 3, generator=g), torch.eye(3)[labels]
    far, near = (metrics.separation(noise + scale * centre, labels) for scale in (8, 2))
    assert far["ratio"] > near["ratio"] and far["silhouette"] > near["silhouette"] and far["margin"] > near["margin"]
    assert far["negative_margin"] < near["negative_margin"]


def test_mean_std_and_paired_intervals():
    assert runs.mean_std([1.0, 3.0]) == (2.0, math.sqrt(2))
    assert math.isnan(runs.mean_std([1.0])[1])
    mean, half = runs.paired([2.0, 3.0, 5.0], [1.0, 1.0, 2.0])
    assert mean == pytest.approx(2) and half == pytest.approx(4.302652729911275 * 1 / math.sqrt(3))
    with pytest.raises(InputError, match="two or more pairs"):
        runs.paired([1.0], [2.0])


def test_tables_keep_settings_apart():
    base = {"dataset": "digits", "train_images": 60, "teacher": None, "network": "resnet8", "epochs": 1}
    base |= {"batch_size": 64, "lr": 0.05, "schedule": "step"}
    rows = [
        base | {"method": "ce", "accuracy": 0.5, "best_accuracy": 0.6},
        base | {"method": "ce", "accuracy": 0.7, "best_accuracy": 0.8},
        base | {"method": "kd", "accuracy": 0.9, "best_accuracy": 0.9, "teacher": "resnet20", "agreement": 0.25},
    ]
    text = runs.table(rows)
    assert "| ce | 2 | 60.00 ± 14.14 | 70.00 ± 14.14 |" in text
    assert "**digits**, 60 training images: resnet20 → resnet8, 1 epoch at batch 64, learning rate 0.05 (step)" in text
    assert "| kd | 1 | 90.00 | 90.00 | 25.00 |" in text
    known = [rows[2] | {"teacher_accuracy": accuracy} for accuracy in (0.97312, 0.97314)]
    assert "images: resnet20 (accuracy 97.3%) → resnet8, 1 epoch" in runs.table(known)
    known[1]["teacher_accuracy"] = 0.95
    assert "images: resnet20 (accuracy 95.0% to 97.3%) → resnet8, 1 epoch" in runs.table(known)
    assert "accuracy" not in runs.table([known[0] | {"val_accuracy": 0.9}]).split("\n")[0], "known for test images only"
    taught = rows[2] | {"teacher_saw": {"data": "digits(0,1)/train", "labels": 9}, "augment": "mixup"}
    text = runs.table([rows[2], taught])
    assert "resnet20 of digits(0,1) → resnet8" in text and "(step), mixup" in text and "± " not in text


def clusters(classes=6, size=20, dim=8, spread=0.05):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(classes * size) % classes
    return torch.eye(dim)[labels] + spread * torch.randn(len(labels), dim, generator=g), 10 * labels - 3


def test_few_shot_is_perfect_on_separate_clusters():
    features, labels = clusters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ways in (0, 2, 5):
            got = metrics.few_shot(features, labels, ways=ways, shots=2, episodes=5)
            assert got == {"ncm": 1.0, "ncm_interval": 0.0, "linear": 1.0, "linear_interval": 0.0}
    assert all(type(value) is float for value in got.values()) and json.dumps(got)


def test_few_shot_is_chance_on_random_features():
    g = torch.Generator().manual_seed(1)
    features, labels = torch.randn(2000, 16, generator=g), torch.arange(2000) % 20
    got = metrics.few_shot(features, labels, ways=5, shots=1, episodes=60)
    for name in ("ncm", "linear"):
        assert 0 < got[f"{name}_interval"] < 0.05
        assert abs(got[name] - 1 / 5) < 1.5 * got[f"{name}_interval"]  # three standard errors


def test_few_shot_against_a_naive_loop_over_one_episode():
    features, labels = clusters(spread=0.8)
    rows = [(labels == value).nonzero().squeeze(1) for value in labels.unique()]
    draws = (rows, 4, 3, 5, runtime.generator(7, "few_shot"))
    support, query, answer = episodes._episode(*draws)
    assert support.shape == (4, 3) and query.shape == answer.shape == (20,)
    assert len({*support.flatten().tolist(), *query.tolist()}) == 32  # no image occurs twice
    correct = 0
    for row, own in zip(query.tolist(), answer.tolist(), strict=True):
        assert labels[row] == labels[support[own, 0]]
        cosines = []
        for way in support.tolist():
            assert len({labels[i].item() for i in way}) == 1
            mean = sum(features[i] / features[i].norm() for i in way) / len(way)
            cosines.append(F.cosine_similarity(features[row], mean, dim=0).item())
        correct += cosines.index(max(cosines)) == own
    got = metrics.few_shot(features, labels, ways=4, shots=3, queries=5, episodes=1, seed=7)
    assert 5 < correct < 20 and got["ncm"] == pytest.approx(correct / 20) and math.isnan(got["ncm_interval"])

    # The interval over several episodes; the scale of the features does not matter.
    shares = []
    again = runtime.generator(7, "few_shot")
    for _ in range(4):
        support, query, answer = episodes._episode(rows, 4, 3, 5, again)
        means = F.normalize(F.normalize(features, dim=1)[support].mean(1), dim=1)
        shares.append((F.cosine_similarity(features[query][:, None], means, dim=2).argmax(1) == answer).double().mean())
    got = metrics.few_shot(features * 7, labels, ways=4, shots=3, queries=5, episodes=4, seed=7)
    assert got["ncm"] == pytest.approx(torch.stack(shares).mean().item())
    assert got["ncm_interval"] == pytest.approx(3.182446 * torch.stack(shares).std().item() / 2)  # t of 3


def test_few_shot_uses_fewer_queries_of_a_small_class():
    labels = torch.tensor([0] * 4 + [1] * 9)
    rows = [(labels == value).nonzero().squeeze(1) for value in (0, 1)]
    support, query, answer = episodes._episode(rows, 2, 3, 5, torch.Generator().manual_seed(0))
    assert support.shape == (2, 3) and sorted(labels[query].tolist()) == [0] + [1] * 5
    assert (labels[support[:, 0]][answer] == labels[query]).all()


def test_few_shot_is_a_function_of_its_seed_alone():
    features, labels = clusters(spread=0.6)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = metrics.few_shot(features, labels, ways=3, shots=1, episodes=6)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    torch.rand(3)
    assert metrics.few_shot(features, labels, ways=3, shots=1, episodes=6) == first
    assert metrics.few_shot(features, labels, ways=3, shots=1, episodes=6, seed=1) != first
    assert metrics.few_shot(features.double().requires_grad_(), labels.int(), ways=3, shots=1, episodes=6) == first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shots": 0}, "shots=0"),
        ({"queries": 0}, "queries=0"),
        ({"episodes": 0}, "episodes=0"),
        ({"ways": 7}, "ways=7, but the labels contain 6 classes"),
        ({"ways": 1}, "ways=1, but"),
        ({"ways": -2}, "ways=-2"),
        ({"shots": 19}, "class 7 has 19 images"),
        ({"labels": torch.zeros(119, dtype=torch.long)}, "the labels contain 1 class;"),
        ({"labels": torch.zeros(7, dtype=torch.long)}, r"\[119, 8\] and labels \[7\]"),
        ({"features": torch.full((119, 8), torch.nan)}, "finite"),
    ],
)
def test_few_shot_refuses_episodes_that_cannot_be_drawn(given, message):
    features, labels = clusters()
    one = (labels == 7).nonzero()[0].item()  # class 7 has one image less than the others
    features, labels = (torch.cat([x[:one], x[one + 1 :]]) for x in (features, labels))
    with pytest.raises(InputError, match=message) as error:
        metrics.few_shot(given.pop("features", features), given.pop("labels", labels), **given)
    assert "\n" not in str(error.value)
