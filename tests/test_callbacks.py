"""Callbacks: when they are called, what they see, and which of them keep steps from being captured."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from ickd_lib import methods, training
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training import Callback, ProgressBar, Recipe, Student
from ickd_lib.training.capture import reason_against, works_on_host

RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=40)  # 3 steps an epoch


class Recording(Callback):
    def __init__(self):
        self.calls = []

    def start(self, training):
        self.calls.append(("start", training.epoch, training.step))

    def step(self, training):
        (state,) = training.states
        self.calls.append(("step", training.epoch, training.step, state.step))

    def epoch(self, training):
        (state,) = training.states
        records = training.records[state].epochs
        self.calls.append(("epoch", training.epoch, len(records), "test_accuracy" in records[-1]))

    def end(self, training):
        self.calls.append(("end", training.epoch, training.step))


def train(digits, callbacks, methods=("ce",), **options):
    students = [Student("resnet8", method, name=str(i)) for i, method in enumerate(methods)]
    options = {"recipe": RECIPE, "device": "cpu", "progress": False} | options
    return training.distill(students, digits, callbacks=callbacks, **options)


def test_callbacks_are_called_in_order(digits):
    seen = Recording()
    train(digits, [seen])
    assert seen.calls == [
        ("start", 0, 0),
        *[("step", 0, step, step) for step in (1, 2, 3)],
        ("epoch", 1, 1, True),
        *[("step", 1, step, step) for step in (1, 2, 3)],
        ("epoch", 2, 2, True),
        ("end", 2, 0),
    ]


def test_the_end_is_called_when_training_fails_and_a_resumed_training_starts_where_it_was(digits, tmp_path):
    class Failing(Recording):
        def step(self, training):
            super().step(training)
            if (training.epoch, training.step) == (1, 2):
                raise KeyboardInterrupt

    seen, again = Failing(), Recording()
    with pytest.raises(KeyboardInterrupt):
        train(digits, [seen], runs=tmp_path, checkpoint_seconds=0)
    assert seen.calls[-1] == ("end", 1, 2)
    train(digits, [again], runs=tmp_path)
    assert again.calls[0] == ("start", 1, 2) and again.calls[-1] == ("end", 2, 0)


def test_an_error_of_a_callback_at_the_start_is_the_one_that_is_raised(digits):
    with pytest.raises(InputError, match="KeepWeights writes into run folders"):
        training.distill(
            [training.Student("resnet8", "ce")],
            digits,
            recipe=training.Recipe(epochs=1),
            callbacks=[training.KeepWeights(1)],
        )


def test_kept_weights_are_those_that_are_evaluated(digits, tmp_path):
    recipe = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=40, ema=0.9)
    (history,) = train(digits, [training.KeepWeights(1)], runs=tmp_path, recipe=recipe).values()
    kept = load_file(tmp_path / "0/weights/epoch-0002.safetensors")
    assert all(torch.equal(value.cpu(), kept[name]) for name, value in history.network.state_dict().items())


def test_a_callback_does_not_change_the_training(digits):
    class Logger(Callback):
        """Six lines: a CSV file with the mean of each loss term and the learning rate."""

        def __init__(self, path):
            self.path = path

        def epoch(self, training):
            with open(self.path, "a") as file:
                for state in training.ended:
                    record = training.records[state].epochs[-1]
                    csv.writer(file).writerow([state.learner.name, record["epoch"], record["lr"], record["loss"]])

    (plain,) = train(digits, []).values()
    (watched,) = train(digits, [Recording(), ProgressBar()]).values()
    assert [r["weights"] for r in plain.epochs] == [r["weights"] for r in watched.epochs]
    assert Logger("x").needs_eager is False


def test_the_progress_bar_shows_losses_and_the_last_test_accuracy(digits, capsys):
    (history,) = train(digits, [], progress=True).values()
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "epoch 2/2" in shown and "6/6" in shown and "ce=" in shown
    assert f"test={history.summary['accuracy']:.1%}" in shown
    train(digits, [], methods=("ce", "ls"), progress=True)
    assert "loss=" in capsys.readouterr().err.split("\r")[-1]


def test_what_a_captured_step_cannot_serve_is_named():
    class Inside(Callback):
        needs_eager = True

    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert reason_against([Recording()], [network]) == ""
    assert reason_against([Recording(), Inside()], [network]) == "the callback Inside observes the inside of a step"
    network[0].register_forward_hook(lambda *_: None)
    assert reason_against([], [network]) == "Sequential has forward hooks"
    named = [methods.create("cskd")]
    assert works_on_host(named, "crop") == "cskd needs random images of the same class, drawn on the host"
    assert works_on_host([], "mixup") == "the augmentation 'mixup' is drawn on the host" and not works_on_host(
        [], "crop"
    )


class Breaks(methods.Method):
    """Its loss is NaN from the second epoch on."""

    def forward(self, context):
        return {"ce": context.supervised * (float("nan") if context.progress >= 0.5 else 1.0)}


def test_the_others_finish_when_one_student_diverges(digits, tmp_path):
    whole = train(digits, [], methods=("ce", "ls"))
    methods = {"0": "ce", "b": Breaks(), "1": "ls"}
    students = [Student("resnet8", method, name=name) for name, method in methods.items()]
    with pytest.raises(Diverged, match=r"b: loss term 'ce' became nan at epoch 2, step 1; .* checkpoint is ") as caught:
        training.distill(
            students, digits, recipe=RECIPE, device="cpu", progress=False, runs=tmp_path, checkpoint_seconds=0
        )
    assert list(caught.value.histories) == ["0", "1"]
    for name, history in caught.value.histories.items():
        assert [r["weights"] for r in history.epochs] == [r["weights"] for r in whole[name].epochs]
    assert (tmp_path / "0" / "summary.json").exists() and not (tmp_path / "b" / "summary.json").exists()
    kept = torch.load(tmp_path / "b" / "checkpoint.pt", weights_only=True)["b"]
    assert (kept["epoch"], kept["step"]) == (0, 3), "the last step of the first epoch"
    assert all(value.isfinite().all() for value in kept["network"].values())


def test_a_checkpoint_with_weights_that_are_not_finite_is_not_written(digits, tmp_path):
    class Spoils(Callback):
        def step(self, training):
            if (training.epoch, training.step) == (1, 1):
                with torch.no_grad():
                    next(training.states[0].learner.network.parameters()).fill_(torch.inf)

    with pytest.raises(Diverged, match="epoch 2"):
        train(digits, [Spoils()], runs=tmp_path, checkpoint_seconds=0)
    kept = torch.load(tmp_path / "0" / "checkpoint.pt", weights_only=True)["0"]
    assert all(value.isfinite().all() for value in kept["network"].values())


def test_a_comparison_returns_the_rest_when_a_method_diverges(digits, teacher, monkeypatch):
    options = {"teacher": teacher, "seeds": 2, "recipe": RECIPE, "device": "cpu", "progress": False}
    with pytest.raises(Diverged) as caught:
        training.compare(["ce", "kd(kd=1e30)", "ickd"], digits, **options)
    assert [len(found) for found in caught.value.histories.values()] == [2, 0, 2]
    assert str(caught.value).count("became nan at epoch 1, step 2") == 2 and "\n" not in str(caught.value)


def test_comparing_leaves_the_teacher_where_it_was(digits, teacher):
    device, before = next(teacher.parameters()).device, id(next(teacher.parameters()))
    training.compare(["ickd"], digits, teacher=teacher, seeds=1, recipe=RECIPE, device="cpu", progress=False)
    assert next(teacher.parameters()).device == device and id(next(teacher.parameters())) == before
