"""The precision benchmark on a CPU: measured once, recorded, and not measured again on resuming."""

import pytest
import torch

from ickd_lib import data, models, runtime, training
from ickd_lib.tasks import Classification
from ickd_lib.training import Recipe, Student, precision_benchmark
from ickd_lib.training.stepper import Stepper


@pytest.fixture(scope="module")
def splits():
    """Images of 16 × 16, for which a measurement may be worth its time."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images = data.Images(
        pixels, torch.arange(48) % 4, torch.arange(48), tuple("abcd"), (0.5,) * 3, (0.25,) * 3, 2, True, "noise/train"
    )
    return data.Splits(images, images.subset(torch.arange(0)), images.subset(torch.arange(8)))


@pytest.fixture
def calls(monkeypatch):
    """A measurement in which bf16 is three times as fast, for trainings of any length; counts the calls."""
    calls = []

    def seconds(*given):
        calls.append(given)
        return {"fp32": 0.3, "bf16": 0.1}

    monkeypatch.setattr(precision_benchmark, "STEPS", 1)
    monkeypatch.setattr(precision_benchmark, "seconds", seconds)
    return calls


def train(splits, **given):
    recipe = Recipe(epochs=2, batch_size=16, schedule="cosine")
    options = {"recipe": recipe, "device": "cpu", "progress": False} | given
    return training.distill([Student("resnet8", "ce", name="a")], splits, **options)["a"]


def test_it_measures_both_and_leaves_everything_alone(splits, untouched_generator):
    with runtime.seeded(0):
        student = models.create("resnet8", **splits.train.spec)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    taken = precision_benchmark.seconds(student.eval(), student, splits.train, Classification())
    assert set(taken) == {"fp32", "bf16"} and min(taken.values()) > 0
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters()) and not student.training


@pytest.mark.parametrize(("step", "rounds"), [(0.01, 20), (0.2, 3)])
def test_short_steps_are_measured_more_often(splits, monkeypatch, step, rounds):
    class Clock:
        now, calls = 0.0, 0

        def perf_counter(self):
            return self.now

    class Timed(Classification):
        def samples(self, *given, **options):
            clock.now, clock.calls = clock.now + step, clock.calls + 1
            return super().samples(*given, **options)

    clock = Clock()
    monkeypatch.setattr(precision_benchmark, "time", clock)
    student = models.create("resnet8", **splits.train.spec)
    assert precision_benchmark.seconds(student, None, splits.train, Timed()) == pytest.approx(
        {"fp32": step, "bf16": step}
    )
    assert clock.calls == 2 * rounds


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "bf16"), (0.8, "bf16"), (0.9, "fp32"), (3.0, "fp32")])
def test_bf16_must_be_clearly_faster(bf16, chosen):
    assert precision_benchmark.faster({"fp32": 1.0, "bf16": bf16}) == chosen


def test_what_it_found_is_recorded_and_taken_again(splits, calls, tmp_path, monkeypatch):
    taken = Stepper.take

    def stopped(self, groups, step):
        taken(self, groups, step)
        if self.keys["epoch"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(splits, runs=tmp_path, checkpoint_seconds=0)
    path = runtime.Run(tmp_path / "a").config["numerics"]
    assert path["precision"] == "bf16" and path["precision_benchmark"] == {"fp32": 0.3, "bf16": 0.1} and len(calls) == 1
    resumed = train(splits, runs=tmp_path)
    assert len(calls) == 1
    whole = train(splits)
    assert len(calls) == 2
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key])


@pytest.mark.parametrize("given", [{"precision": "fp32"}, {"precision": "bf16"}])
def test_who_names_a_precision_gets_it(splits, calls, given):
    train(splits, **given)
    assert not calls


def test_short_trainings_and_small_images_are_not_tried(splits, calls, monkeypatch, digits):
    train(digits)
    monkeypatch.setattr(precision_benchmark, "STEPS", 7)
    train(splits)
    assert not calls
    monkeypatch.setattr(precision_benchmark, "STEPS", 6)
    train(splits)
    assert len(calls) == 1
