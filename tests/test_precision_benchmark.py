"""The trial of precisions on a CPU: measured once, recorded, and not again by who resumes."""

import pytest
import torch
from ickd_lib.training.steps import Steps

from ickd_lib import data, models, runtime, training
from ickd_lib.training import Recipe, Student, trial


@pytest.fixture(scope="module")
def splits():
    """Images of 16 × 16, for which a trial may be worth its time."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images = data.Images(
        pixels, torch.arange(48) % 4, torch.arange(48), tuple("abcd"), (0.5,) * 3, (0.25,) * 3, 2, True, "noise/train"
    )
    return data.Splits(images, images.subset(torch.arange(0)), images.subset(torch.arange(8)))


@pytest.fixture
def asked(monkeypatch):
    """A trial in which bf16 is three times as fast, for trainings of any length; counts how often it was asked."""
    calls = []

    def seconds(*given):
        calls.append(given)
        return {"fp32": 0.3, "bf16": 0.1}

    monkeypatch.setattr(trial, "STEPS", 1)
    monkeypatch.setattr(trial, "seconds", seconds)
    return calls


def train(splits, **given):
    recipe = Recipe(epochs=2, batch_size=16, schedule="cosine")
    options = {"recipe": recipe, "device": "cpu", "progress": False} | given
    return training.distill([Student("resnet8", "ce", name="a")], splits, **options)["a"]


def test_it_measures_both_and_leaves_everything_alone(splits, untouched_generator):
    with runtime.seeded(0):
        student = models.create("resnet8", **splits.train.spec)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    taken = trial.seconds(student.eval(), student, splits.train)
    assert set(taken) == {"fp32", "bf16"} and min(taken.values()) > 0
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters()) and not student.training


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "bf16"), (0.8, "bf16"), (0.9, "fp32"), (3.0, "fp32")])
def test_bf16_must_be_clearly_faster(bf16, chosen):
    assert trial.faster({"fp32": 1.0, "bf16": bf16}) == chosen


def test_what_it_found_is_recorded_and_taken_again(splits, asked, tmp_path, monkeypatch):
    taken = Steps.take

    def stopped(self, circles, step):
        taken(self, circles, step)
        if self.keys[1] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Steps, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(splits, runs=tmp_path, checkpoint_seconds=0)
    path = runtime.Run(tmp_path / "a").config["numerics"]
    assert path["precision"] == "bf16" and path["trial"] == {"fp32": 0.3, "bf16": 0.1} and len(asked) == 1
    resumed = train(splits, runs=tmp_path)
    assert len(asked) == 1
    whole = train(splits)
    assert len(asked) == 2
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key])


@pytest.mark.parametrize("given", [{"precision": "fp32"}, {"precision": "bf16"}])
def test_who_names_a_precision_gets_it(splits, asked, given):
    train(splits, **given)
    assert not asked


def test_short_trainings_and_small_images_are_not_tried(splits, asked, monkeypatch, digits):
    train(digits)
    monkeypatch.setattr(trial, "STEPS", 7)
    train(splits)
    assert not asked
    monkeypatch.setattr(trial, "STEPS", 6)
    train(splits)
    assert len(asked) == 1
