"""Students that diverge: the others finish as if alone, and what is kept and what is said is right."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

from ickd_lib import __main__ as cli
from ickd_lib import methods, models, runtime, training
from ickd_lib.methods import Method
from ickd_lib.methods.registry import _REGISTRY
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training import Callback, Recipe, Student

RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=40)  # 3 steps an epoch
pytestmark = pytest.mark.usefixtures("untouched_generator")


class Raises(Method):
    """A method that computes something that is not defined for values that are not finite."""

    def forward(self, context):
        logits = context.student.logits
        torch.linalg.eigvalsh((logits.T @ logits).detach() * 1e-3)
        return {"ce": context.supervised}


class Spoils(Callback):
    """Changes the state of the first student after a step."""

    def __init__(self, change, epoch=1, step=3):
        self.change, self.at = change, (epoch, step)

    def step(self, training):
        if (training.epoch, training.step) == self.at:
            with torch.no_grad():
                self.change(next(s for s in training.records if s.learner.name == "a"))


def spoil_weight(state, value=float("nan")):
    next(state.learner.network.parameters()).fill_(value)


def enlarge_classifier(state):
    """Weights that are finite, with which the logits are not."""
    models.classifier(state.learner.network, size=(8, 8))[1].weight.fill_(3e38)


def spoil_momentum(state):
    next(iter(state.optimizer.inner.state.values()))["momentum_buffer"].fill_(float("inf"))


def spoil_average(state):
    next(state.average.network.parameters()).fill_(float("inf"))


def train(digits, students, **options):
    options = {"recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False} | options
    return training.distill(students, digits, **options)


def weights(history):
    return history.network.state_dict()


def same(first, second):
    return all(torch.equal(weights(first)[key], weights(second)[key]) for key in weights(first))


@pytest.mark.parametrize("change", [spoil_weight, enlarge_classifier])
@pytest.mark.parametrize("method", ["ce", "raises"])
@pytest.mark.parametrize("at", [(0, 2), (0, 3), (1, 3)])
def test_a_student_that_diverges_leaves_the_pass_and_the_others_are_as_if_alone(digits, change, method, at, tmp_path):
    method = Raises() if method == "raises" else method
    students = [Student("resnet8", method, 0, "a"), Student("resnet8", "ls", 1, "b")]
    with pytest.raises(Diverged, match=r"^a: .* at epoch \d, step \d") as caught:
        train(digits, students, callbacks=[Spoils(change, *at)], runs=tmp_path)
    alone = train(digits, students[1:])
    assert list(caught.value.histories) == ["b"] and same(caught.value.histories["b"], alone["b"])
    assert "at epoch" in json.loads((tmp_path / "a" / "diverged.json").read_text())["reason"]
    step = caught.value.args[0].partition("at epoch ")[2].split(";")[0]
    assert step.startswith({(0, 2): "1, step 3", (0, 3): "1, step 3", (1, 3): "2, step 3"}[at]), step


def test_a_given_network_that_diverges_is_as_before_and_the_others_are_trained(digits):
    with runtime.seeded(0, "network"):
        networks = [models.create("resnet8", **digits.train.spec) for _ in range(2)]
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    students = [Student(network, name=name) for network, name in zip(networks, "ab", strict=True)]
    with pytest.raises(Diverged) as caught:
        train(digits, students, callbacks=[Spoils(spoil_weight)])
    unchanged = [
        all(torch.equal(weight, old[key]) for key, weight in network.state_dict().items())
        for network, old in zip(networks, before, strict=True)
    ]
    assert unchanged == [True, False] and caught.value.histories["b"].network is networks[1]


def test_a_training_that_is_stopped_after_a_divergence_resumes_exactly(digits, tmp_path):
    class Stops(Spoils):
        def step(self, training):
            super().step(training)
            if (training.epoch, training.step) == (1, 1):
                training.save()
                raise KeyboardInterrupt

    students = [Student("resnet8", Raises(), 0, "a"), Student("resnet8", "ls", 1, "b")]
    with pytest.raises(KeyboardInterrupt):
        train(digits, students, callbacks=[Stops(spoil_weight, 0, 2)], runs=tmp_path)
    assert "weight" in json.loads((tmp_path / "a" / "diverged.json").read_text())["reason"]
    with pytest.raises(Diverged) as caught:
        train(digits, students, callbacks=[Spoils(spoil_weight, 0, 2)], runs=tmp_path)
    assert same(caught.value.histories["b"], train(digits, students[1:])["b"])


def test_other_errors_of_a_method_are_raised(digits):
    class Wrong(Method):
        def forward(self, context):
            raise RuntimeError("a mistake in the method")

    with pytest.raises(RuntimeError, match="a mistake"):
        train(digits, [Student("resnet8", Wrong(), 0, "a")])


@pytest.mark.parametrize(
    ("change", "what"), [(spoil_weight, "network"), (spoil_momentum, "optimizer"), (spoil_average, "average")]
)
def test_a_checkpoint_is_finite_before_it_replaces_another(digits, tmp_path, change, what):
    recipe = Recipe(epochs=2, lr=0.05, batch_size=40, ema=0.9)

    class Stops(Spoils):
        def step(self, training):
            super().step(training)
            if (training.epoch, training.step) == self.at:
                training.save()

    with pytest.raises(Diverged, match="became nan|network" if what == "network" else what) as caught:
        student = [Student("resnet8", "ce", 0, "a")]
        train(digits, student, recipe=recipe, runs=tmp_path, checkpoint_seconds=0, callbacks=[Stops(change, 1, 2)])
    kept = re.search(r"its last good checkpoint is (\S+), of epoch 2, step 2$", str(caught.value))
    state = torch.load(kept[1], weights_only=True)["a"]
    assert (state["epoch"], state["step"]) == (1, 2)
    tensors = [state["network"], state["average"], *state["optimizer"]["state"].values()]
    assert all(value.isfinite().all() for part in tensors for value in part.values() if torch.is_tensor(value))


def test_a_resumed_run_names_the_checkpoint_from_which_it_was_resumed(digits, tmp_path):
    class Stops(Callback):
        def step(self, training):
            if (training.epoch, training.step) == (1, 1):
                raise KeyboardInterrupt

        def end(self, training):
            training.save()

    with pytest.raises(KeyboardInterrupt):
        train(digits, [Student("resnet8", "ce", 0, "a")], callbacks=[Stops()], runs=tmp_path)
    with pytest.raises(Diverged, match=r"its last good checkpoint is \S+a/checkpoint\.pt, of epoch 2, step 1$"):
        train(digits, [Student("resnet8", "ce", 0, "a")], callbacks=[Spoils(spoil_weight, 1, 2)], runs=tmp_path)


def test_a_run_without_a_checkpoint_says_so(digits, tmp_path):
    with pytest.raises(Diverged, match=r"; there is no checkpoint of it$"):
        train(digits, [Student("resnet8", "ce", 0, "a")], callbacks=[Spoils(spoil_weight, 0, 1)], runs=tmp_path)
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


def test_a_checkpoint_that_is_not_finite_is_refused(digits, tmp_path):
    class Stops(Callback):
        def step(self, training):
            if training.step == 2:
                raise KeyboardInterrupt

    call = {"runs": tmp_path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        train(digits, [Student("resnet8", "ce", 0, "a")], callbacks=[Stops()], **call)
    path = tmp_path / "a" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    next(value for value in state["a"]["network"].values() if value.ndim > 1).fill_(float("nan"))
    torch.save(state, path)
    with pytest.raises(InputError, match=r"checkpoint\.pt .* not finite.*; remove .*/a to train anew"):
        train(digits, [Student("resnet8", "ce", 0, "a")], **call)


@pytest.mark.parametrize("method", ["kd", "ickd(positives=3, negatives=5)"])
def test_a_teacher_that_is_not_finite_is_named(digits, teacher, method):
    broken = models.frozen(teacher, torch.device("cpu"))
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"teacher .* not finite") as caught:
        train(digits, [Student("resnet8", method, 0, "a")], teacher=broken)
    assert "learning rate" not in str(caught.value)


def test_a_teacher_whose_output_alone_is_not_finite_is_named(digits, teacher):
    broken = models.frozen(teacher, torch.device("cpu"))
    with torch.no_grad():
        models.classifier(broken, size=(8, 8))[1].weight.fill_(3e38)
    with pytest.raises((InputError, Diverged), match=r"teacher's output .* is not finite") as caught:
        train(digits, [Student("resnet8", "kd", 0, "a")], teacher=broken)
    assert "learning rate" not in str(caught.value)


def test_compare_and_report_name_what_diverged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(_REGISTRY, "raises", Raises)
    monkeypatch.setattr(Raises, "registered_name", "raises")
    assert methods.create("raises").config["name"] == "raises"
    line = "compare --methods raises ce --seeds 2 --labels 60 --epochs 2 --batch-size 30 --device cpu --lr 1e20"
    assert cli.main(line.split()) == 1
    out, _ = capsys.readouterr()
    assert "| raises | 2 |" in out.partition("| method | diverged, seeds |")[2]
    assert cli.main(line.replace("1e20", "0.05").replace("raises ", "").split()) == 0
    capsys.readouterr()
    assert cli.main(["report", "runs"]) == 0
    out = capsys.readouterr().out
    assert "| ce | 2 |" in out and "| raises | 2 |" in out.partition("| method | diverged, seeds |")[2]
    names = [path.parent.name for path in Path("runs").glob("*/diverged.json")]
    assert sum("resnet8-raises" in name for name in names) == 2 == sum("resnet8-ce" in name for name in names)


def test_evaluating_a_network_that_is_not_finite_is_one_line(digits, tmp_path):
    history = train(digits, [Student("resnet8", "ce", 0, "a")], runs=tmp_path)["a"]
    with torch.no_grad():
        next(history.network.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"logits .* not finite"):
        training.evaluate(history.network, digits.test)
