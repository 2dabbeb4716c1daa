"""A note is printed if the teacher predicts training images no better than guessing, or does not normalise them."""

import copy

import pytest
import torch
from torch import nn

from ickd_lib import data, models, runtime, training
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Output
from ickd_lib.runtime import errors
from ickd_lib.training import Recipe, Student
from ickd_lib.training.predictions import Predictions

pytestmark = pytest.mark.usefixtures("untouched_generator")
GUESSING = "of 120 training images rightly, which is no better than guessing, as "
PLAIN = "gets images in [0, 1] that are not normalised"


class Rolled(nn.Module):
    """A trained network whose classes are in another order."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        output = self.network.forward_normalised(x)
        return Output(output.logits.roll(1, 1), output.features)


def normalised(network, splits):
    """The network as a teacher that normalises its images as those of the data."""
    spec = splits.train.spec
    made = models.wrap(network, mean=spec["mean"], std=spec["std"])
    made.name = "mine"
    return made


@pytest.fixture
def rolled(teacher, digits):
    return normalised(Rolled(copy.deepcopy(teacher)), digits)


def distill(method, splits, teacher, **given):
    recipe = Recipe(epochs=1, lr=0.05, batch_size=40)
    options = {"teacher": teacher, "recipe": recipe, "device": "cpu", "progress": False} | given
    return training.distill([Student("resnet8", method, name="a")], splits, **options)["a"]


@pytest.mark.parametrize("method", ["kd", "ickd(positives=2, negatives=8)"])
@pytest.mark.parametrize("given", [False, True])
def test_a_teacher_with_another_order_of_classes_is_noted(method, given, digits, rolled, notes):
    """Whether its outputs come from a pass of it, or from a bank."""
    bank = MemoryBank.build(rolled, digits.train) if given and method != "kd" else None
    distill(method, digits, rolled, bank=bank)
    (note,) = [one for one in notes() if "rightly" in one]
    assert note.startswith("note: the teacher mine predicts ") and GUESSING in note
    assert note.endswith("check its weights, the order of its classes and the normalisation of its images")


def test_a_trained_teacher_is_not(digits, teacher, notes):
    distill("kd", digits, teacher)
    assert not [one for one in notes() if "teacher" in one]


def test_a_teacher_that_no_method_uses_is_not_evaluated(digits, rolled, notes, monkeypatch):
    monkeypatch.setattr(Rolled, "forward", None)
    with pytest.raises(TypeError):
        distill("kd", digits, rolled)
    monkeypatch.undo()
    notes()
    distill("ce", digits, rolled)
    assert not [one for one in notes() if "teacher" in one]


def test_a_finished_run_is_not_checked_again(digits, rolled, notes, tmp_path):
    distill("kd", digits, rolled, runs=tmp_path)
    assert any("rightly" in one for one in notes())
    errors._noticed.clear()
    distill("kd", digits, rolled, runs=tmp_path)
    assert not [one for one in notes() if "rightly" in one]


def test_predictions_are_checked_too(digits, notes):
    train = digits.train
    for shift, expected in ((0, False), (1, True)):
        logits = 5 * nn.functional.one_hot((train.labels + shift) % 10, 10).float()
        made = Predictions(logits, train.index, f"file {shift}")
        made.classes = train.classes
        distill("kd", digits, made)
        assert any(GUESSING in one for one in notes()) == expected


def test_the_most_frequent_class_is_a_guess(notes):
    """Of 60 images, 48 are of one class; a teacher that always names it is right about 80%."""
    splits = data.load("digits", classes=["3", "8"])
    labels = splits.train.labels
    rows = torch.cat([(labels == 0).nonzero()[:48, 0], (labels == 1).nonzero()[:12, 0]])
    splits = splits._replace(train=splits.train.subset(rows.sort().values))
    for right, expected in ((48, True), (60, False)):
        named = torch.where(torch.arange(60) < right, splits.train.labels.sort().values, 0)
        logits = nn.functional.one_hot(named, 2).float()
        made = Predictions(logits, splits.train.index[splits.train.labels.argsort(stable=True)], f"file {right}")
        made.classes = splits.train.classes
        distill("kd", splits, made)
        found = [one for one in notes() if "rightly" in one]
        assert len(found) == expected
        assert all("predicts 80% of 60 training images" in one and "as 80% are" in one for one in found)


def test_images_without_a_label_are_left_out(digits, teacher, notes):
    splits = data.load("digits", labels=30, unlabelled=30)
    assert splits.train.unlabelled == 30
    distill("kd", splits, normalised(Rolled(copy.deepcopy(teacher)), splits))
    assert any("of 30 training images rightly" in one for one in notes())


@pytest.mark.parametrize(("method", "expected"), [("kd", 1), ("ce", 0)])
def test_a_teacher_that_does_not_normalise_its_images_is_noted_once(method, expected, digits, notes):
    with runtime.seeded():
        plain = models.create("resnet8", 10)
    for _ in range(2):
        distill(method, digits, plain)
    found = [one for one in notes() if PLAIN in one]
    assert len(found) == expected and all("mean and std to models.create or models.wrap" in one for one in found)


def test_the_check_changes_nothing(digits, rolled, monkeypatch):
    with_check = distill("kd", digits, rolled)
    monkeypatch.setattr(training.distillation, "check_teacher", lambda *args, **given: None)
    without = distill("kd", digits, rolled)
    assert [one["weights"] for one in with_check.epochs] == [one["weights"] for one in without.epochs]
