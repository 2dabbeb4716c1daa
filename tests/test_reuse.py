"""SimKD: a student that is trained, stored, resumed and evaluated with its teacher's classifier."""

import json

import pytest
import torch
from test_training import Interrupted, distill, same, stop_at
from torch import nn

from ickd_lib import data, models, training
from ickd_lib.training import Recipe, Student

RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=50)


@pytest.fixture(scope="module")
def digits():
    splits = data.load("digits", labels=120)
    return splits._replace(test=splits.test.few(60))


@pytest.fixture(scope="module")
def teacher(digits):
    torch.manual_seed(1)
    network = models.create("wrn_16_1", 10, mean=(0.4, 0.4, 0.4), std=(0.5, 0.5, 0.5)).eval()
    network.classes = digits.train.classes
    return network


def test_the_network_is_the_student_a_projector_and_the_frozen_classifier(digits, teacher, tmp_path, capsys):
    options = {"recipe": RECIPE, "runs": tmp_path}
    history = distill([Student("resnet8", "simkd", 1, "a")], digits, teacher, **options)["a"]
    network, summary = history.network, history.summary
    assert isinstance(network, models.Reused) and (network.name, network.features_dim) == ("resnet8", 64)
    assert same(network.classifier, teacher.fc) and network.added["reused"]["size"] == [2, 2]
    student = models.create("resnet8", 10)
    own, whole = (sum(p.numel() for p in one.parameters()) for one in (student, network))
    assert summary["parameters"] == whole > own
    assert summary["network"] == "resnet8" and summary["classifier_of"] == "wrn_16_1"
    assert f"{whole:,} parameters instead of {own:,}" in capsys.readouterr().err
    out = network(digits.test.pixels(), maps=True)
    assert torch.equal(out.logits, network.classifier(out.unpooled.mean((2, 3))))
    assert torch.equal(network(digits.test.pixels()).logits, out.logits)
    assert [tuple(one.shape[1:]) for one in out.maps] == models.map_shapes(student, digits.test.size)


def test_a_run_is_evaluated_from_its_folder(digits, teacher, tmp_path, monkeypatch):
    students, options = [Student("resnet8", "simkd", 1, "a")], {"recipe": RECIPE, "runs": tmp_path}
    history = distill(students, digits, teacher, **options)["a"]
    loaded = training.load(tmp_path / "a", device="cpu")
    assert isinstance(loaded, models.Reused) and same(loaded, history.network) and not loaded.training
    assert loaded.identity == history.network.identity and loaded.classes == digits.train.classes
    assert not any(p.requires_grad for p in loaded.classifier.parameters())
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    numbers = training.evaluate(loaded, digits.test, teacher=teacher, precision="fp32")
    assert numbers == pytest.approx({key: summary[key] for key in numbers})
    stop_at(monkeypatch, 0)  # a finished run is loaded, not repeated
    again = distill(students, digits, teacher, **options)["a"]
    assert same(again.network, history.network) and again.summary == history.summary


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_stopped_run_resumes_exactly(count, digits, teacher, tmp_path, monkeypatch):
    students = [Student("resnet8", "simkd", 3, "a")]
    whole = distill(students, digits, teacher, recipe=RECIPE, runs=tmp_path / "whole")["a"]
    with monkeypatch.context() as patch:
        stop_at(patch, count)
        with pytest.raises(Interrupted):
            distill(students, digits, teacher, recipe=RECIPE, runs=tmp_path / "cut", checkpoint_seconds=0)
    resumed = distill(students, digits, teacher, recipe=RECIPE, runs=tmp_path / "cut")["a"]
    assert same(whole.network, resumed.network)
    assert [r["loss"] for r in whole.epochs] == [r["loss"] for r in resumed.epochs]


def test_the_classifier_and_other_frozen_layers_are_not_given_to_the_optimiser(teacher):
    student = models.create("resnet8", 10)
    network = training_network(student, teacher)
    optimizer = training.optimizers.Optimizer(network, nn.Module(), Recipe(), (8, 8))
    given = {id(p) for p in optimizer.parameters}
    assert {id(p) for p in network.projector.parameters()} <= given
    assert not given & {id(p) for p in network.classifier.parameters()}


def training_network(student, teacher):
    from ickd_lib import methods

    return methods.create("simkd").adapt(student, teacher, (8, 8))


def test_simkd_combines_with_methods_that_compare_the_students_own_maps(digits, teacher):
    history = distill([Student("resnet8", "simkd+at", 1, "a")], digits, teacher, recipe=RECIPE)["a"]
    assert list(history.epochs[-1]["terms"]) == ["simkd", "at"]
