"""The loop: exact resume, students that do not see each other, a teacher that never changes, records, errors."""

import copy
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import registered
import torch
from torch import nn

from ickd_lib import data, memory, methods, models, runtime, training
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import Combined, Context, Method, WithLabels
from ickd_lib.models import Network, Output
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.runtime.versions import _structure
from ickd_lib.training import Recipe, Student, distillation, optimizers, records, step

pytestmark = pytest.mark.usefixtures("untouched_generator")
RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=50)


class Dropping(Network):
    """A small network with dropout: its draws must be its own, and those of the step."""

    stages = ("stem", "second")

    def __init__(self, seed=0, dim=12, dropout=0.3, active=nn.ReLU):
        super().__init__(num_classes=10, features_dim=dim)
        with runtime.seeded(seed):
            self.stem, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Identity()
            layers = nn.Flatten(), nn.Linear(256, dim), nn.BatchNorm1d(dim), active(), nn.Dropout(dropout)
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(dim, 10)

    def forward_normalised(self, x):
        features = self.body(self.second(self.stem(x)))
        return Output(self.head(features), features)


# Small architectures: with dropout; without, and with features of which no two images have the same; with fewer.
SMOOTH = {"dropout": 0, "active": nn.SiLU}
SMALL = {"dropping": {}, "plain": SMOOTH, "slim": {"dim": 7} | SMOOTH}


def know_small_architectures(patch):
    """`models.create` also knows those of SMALL, so that runs of them can be made from their names."""
    from_zoo = models.create

    def create(name, num_classes=100, **kwargs):
        if name not in SMALL:
            return from_zoo(name, num_classes, **kwargs)
        network = Dropping(torch.initial_seed(), **SMALL[name])
        network.name = name
        return network

    patch.setattr(models, "create", create)


@pytest.fixture(autouse=True)
def small_architectures(monkeypatch):
    know_small_architectures(monkeypatch)


def distill(students, digits, teacher, **options):
    options = {"recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False} | options
    return training.distill(students, digits, teacher=teacher, **options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------ the recipe


def test_another_crop_or_flip_is_another_run_and_another_teacher(digits, tmp_path):
    runs, teachers = set(), set()
    for change in ({}, {"flip": True}, {"pad": 3}):
        splits = digits._replace(train=dataclasses.replace(digits.train, **change))
        chosen = {"recipe": Recipe(epochs=1), "runs": tmp_path, "progress": False}
        runs |= {history.folder for history in training.distill([Student("resnet8", "ce")], splits, **chosen).values()}
        training.pretrain("resnet8", splits, **chosen)
        teachers = set((tmp_path / "teachers").iterdir())
    assert len(runs) == 3 and len({one for one in teachers if one.is_dir()}) == 3


def test_two_students_cannot_have_one_network_object(digits):
    with runtime.seeded(0, "network"):
        network = models.create("resnet8", **digits.train.spec)
    with pytest.raises(InputError, match="same network object"):
        training.distill([Student(network, "ce"), Student(network, "ls")], digits, recipe=Recipe(epochs=1))


def test_the_protocol_of_the_field():
    recipe = Recipe()
    assert [recipe.lr_at(e) for e in (0, 149.99, 150, 180, 210, 239)] == pytest.approx(
        [0.05, 0.05, 0.005, 5e-4, 5e-5, 5e-5]
    )


def test_schedules_start_and_end_where_they_should():
    cosine = Recipe(epochs=10, lr=1, schedule="cosine", warmup=2)
    assert [cosine.lr_at(e) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [cosine.lr_at(e, 0.5) for e in (0, 0.5, 1.5, 2, 6)] == pytest.approx([0.25, 0.5, 1, 1, 0.5])
    assert cosine.lr_at(0, 3) == 1, "a step longer than the warm-up"
    one = Recipe(epochs=10, lr=1, schedule="onecycle")
    assert [one.lr_at(e) for e in (0, 3, 10)] == pytest.approx([0.04, 1, 0])
    for wrong, message in [({"epochs": 0}, "epochs=0"), ({"schedule": "cosin"}, "did you mean 'cosine'")]:
        with pytest.raises(InputError, match=message):
            Recipe(**wrong)


def test_the_first_step_of_a_warm_up_changes_the_weights(digits):
    class Rates(training.Callback):
        def start(self, training):
            (state,) = training.states
            rates.extend(state.lr(step) for step in range(training.steps))

    rates = []
    recipe = Recipe(epochs=2, batch_size=30, lr=0.04, warmup=1)
    training.distill([Student("resnet8", "ce")], digits, recipe=recipe, callbacks=[Rates()], device="cpu")
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04])


# ----------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("method", [*registered.trained(), "refilled+kd"])
def test_students_trained_together_equal_students_trained_alone(method, digits, teacher):
    first, second = (
        training.peer_group("dropping", method, seed) for seed in (0, 2)
    )  # of one, where it needs no peers
    groups = [first, [Student("dropping", "ce", 1, "other")], second]
    together = list(distill([student for group in groups for student in group], digits, teacher).values())
    alone = [history for group in groups for history in distill(group, digits, teacher).values()]
    for ours, theirs in zip(together, alone, strict=True):
        assert same(ours.network, theirs.network)
        assert [r["loss"] for r in ours.epochs] == [r["loss"] for r in theirs.epochs]
    for i, one in enumerate(together):
        assert not any(same(one.network, other.network) for other in together[:i])


def test_every_method_takes_images_that_are_mixed(teacher):
    splits = data.load("digits", labels=120, augment="randaugment+cutmix")
    found = distill([Student("dropping", name, 0, name) for name in registered.trained()], splits, teacher)
    assert all(r["loss"] == r["loss"] for history in found.values() for r in history.epochs)
    (plain,) = distill([Student("dropping", "ce", 0)], data.load("digits", labels=120), None)
    assert plain not in distill([Student("dropping", "ce", 0)], splits, None), "another run"


class Interrupted(Exception):
    pass


def stop_at(monkeypatch, count):
    """Raise in the middle of training, as a kill would, after `count` steps."""
    taken = {"steps": 0}
    step = optimizers.Optimizer.step

    def counted(self, *args):
        if taken["steps"] == count:
            raise Interrupted
        taken["steps"] += 1
        return step(self, *args)

    monkeypatch.setattr(optimizers.Optimizer, "step", counted)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 6])
def test_stopped_at_any_step_and_resumed_the_weights_are_the_same(count, digits, teacher, tmp_path, monkeypatch):
    students = [Student("dropping", "ickd", 3, "a"), Student("dropping", "kd", 4, "b")]
    whole = distill(students, digits, teacher, runs=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, count)
        if count < 2 * len(students) * 3:
            with pytest.raises(Interrupted):
                distill(students, digits, teacher, runs=tmp_path / "cut", checkpoint_seconds=0)
    resumed = distill(students, digits, teacher, runs=tmp_path / "cut")
    for name in ("a", "b"):
        assert same(whole[name].network, resumed[name].network)
        drop = ("seconds", "images_per_second")
        ours, theirs = ({k: v for k, v in h[name].summary.items() if k not in drop} for h in (whole, resumed))
        assert ours == theirs
        lines = [json.loads(x) for x in (tmp_path / "cut" / name / "metrics.jsonl").read_text().splitlines()]
        assert [r["epoch"] for r in lines] == [1, 2]
        assert [r["loss"] for r in lines] == [r["loss"] for r in whole[name].epochs]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_method_of_two_phases_restarts_its_schedule_and_resumes(count, digits, teacher, tmp_path, monkeypatch):
    recipe = Recipe(epochs=4, lr=0.05, schedule="tenth+fifths", batch_size=50)
    students = [Student("dropping", "refilled", 3, "a"), Student("dropping", "refilled+crd+seed", 3, "b")]
    whole = distill(students, digits, teacher, recipe=recipe)
    assert [list(r["terms"]) for r in whole["a"].epochs] == 2 * [["embedding"]] + 2 * [["ce", "local"]]
    (_, _, first), (_, _, second) = recipe.phases([0.5])
    rates = [schedule.lr_at(epoch + 2 / 3) for schedule in (first, second) for epoch in (0, 1)]
    assert [r["lr"] for r in whole["a"].epochs] == pytest.approx(rates)
    with monkeypatch.context() as patch:
        stop_at(patch, 2 * 3 * count - 1)
        with pytest.raises(Interrupted):
            distill(students, digits, teacher, recipe=recipe, runs=tmp_path, checkpoint_seconds=0)
    resumed = distill(students, digits, teacher, recipe=recipe, runs=tmp_path)
    assert all(same(whole[name].network, resumed[name].network) for name in "ab")
    assert all(same(whole[name].method, resumed[name].method) for name in "ab")


def test_students_stopped_at_different_steps_catch_up(digits, teacher, tmp_path, monkeypatch):
    students = [Student("dropping", "kd", 3, "a"), Student("dropping", "ce", 4, "b")]
    whole = distill(students, digits, teacher)
    for student, count in zip(students, (2, 5), strict=True):
        with monkeypatch.context() as patch:
            stop_at(patch, count)
            with pytest.raises(Interrupted):
                distill([student], digits, teacher, runs=tmp_path, checkpoint_seconds=0)
    resumed = distill(students, digits, teacher, runs=tmp_path)
    assert all(same(whole[name].network, resumed[name].network) for name in "ab")


def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    def command(runs, *more):
        options = "--student resnet8 --method ce --labels 60 --epochs 30 --batch-size 20 --schedule cosine --device cpu"
        return [sys.executable, "-m", "ickd_lib", "train", *options.split(), "--name", "a", "--runs", str(runs), *more]

    # Otherwise both would use as many threads as other programs leave free, which may change between them.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=env)
    child = subprocess.Popen(
        command(tmp_path / "cut", "--checkpoint-seconds", "0"),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=env,
    )
    cut = tmp_path / "cut" / "a"
    deadline = time.monotonic() + 60
    while not (cut / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert (cut / "checkpoint.pt").exists() and not (cut / "summary.json").exists(), "the kill came too late"
    subprocess.run(command(tmp_path / "cut"), check=True, capture_output=True, env=env)
    whole = tmp_path / "whole" / "a"
    assert (cut / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()


def test_ctrl_c_leaves_a_resumable_run(digits, tmp_path):
    students = [Student("resnet8", "ce", 0, "a")]
    recipe = Recipe(epochs=30, lr=0.05, schedule="cosine", batch_size=20)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    timer.start()
    with pytest.raises(KeyboardInterrupt, match="the same call or command continues from here"):
        distill(students, digits, None, recipe=recipe, runs=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["a"]
    assert (saved["epoch"], saved["step"]) > (0, 0)


@pytest.mark.parametrize("method", ["ce", "simkd"])
def test_a_network_that_was_given_goes_on_after_a_stop(digits, teacher, tmp_path, method):
    """It has the weights that it began with, so the same call continues the same run, and ends as if never stopped."""
    recipe = Recipe(epochs=3, lr=0.05, schedule="cosine", batch_size=20)
    with runtime.seeded(0, "network"):
        networks = [models.create("resnet8", **digits.train.spec)]
    networks.append(copy.deepcopy(networks[0]))
    given = {"recipe": recipe, "runs": tmp_path / "cut"}

    class Stop(training.Callback):
        def step(self, loop):
            if (loop.epoch, loop.step) == (1, 2):
                training.loop.stop_training()

    with pytest.raises(KeyboardInterrupt, match="the same call"):
        distill([Student(networks[0], method)], digits, teacher, callbacks=[Stop()], **given)
    assert same(networks[0], networks[1])
    (history,) = distill([Student(networks[0], method)], digits, teacher, **given).values()
    assert len(list((tmp_path / "cut").iterdir())) == 1, "the run was continued"
    (other,) = distill([Student(networks[1], method)], digits, teacher, **given | {"runs": tmp_path / "whole"}).values()
    assert same(history.network, other.network) and history.folder.name == other.folder.name
    further = distill([Student(networks[0], method)], digits, teacher, **given)
    assert next(iter(further.values())).folder != history.folder, "a trained network is another beginning"


@pytest.mark.parametrize(("method", "ema"), [("ce", 0.0), ("ce", 0.9), ("simkd", 0.0)])
def test_a_second_training_of_a_given_network_is_noted(method, ema, digits, teacher, tmp_path, notes):
    with runtime.seeded(0, "network"):
        network = models.create("resnet8", **digits.train.spec)
    recipe = Recipe(epochs=1, lr=0.05, ema=ema)

    def train(student, splits=digits, **given):
        distill([Student(student, method, name="a")], splits, teacher, recipe=recipe, **given)
        return [one for one in notes() if "given to Student" in one]

    with pytest.raises(KeyboardInterrupt):
        train(network, runs=tmp_path, callbacks=[Fails(KeyboardInterrupt())])
    copied = copy.deepcopy(network)
    assert train(network, runs=tmp_path) == [], "the same call goes on"
    (note,) = train(network)
    assert "has been trained on digits/train before" in note and "a copy.deepcopy(network)" in note
    assert train(copied, runs=tmp_path) == [], "a finished run is loaded"
    copied.trained_on = {"data": "cifar100/train", "labels": 50_000}
    assert train(copied) == [], "what was trained on other data is fine-tuned"


class Fails(training.Callback):
    """Raises an error after the second step."""

    def __init__(self, error):
        self.error = error

    def step(self, loop):
        if loop.step == 2:
            raise self.error


@pytest.mark.parametrize("error", [OSError("no space left"), InputError("wrong"), KeyboardInterrupt()])
def test_a_given_network_is_as_before_when_training_fails(digits, teacher, tmp_path, error):
    """Half-trained weights would be recorded as those that the next training began with."""
    with runtime.seeded(0, "network"):
        network = models.create("resnet8", **digits.train.spec)
    network.classes, before = (), copy.deepcopy(network)
    with pytest.raises(type(error)):
        distill([Student(network)], digits, None, runs=tmp_path, checkpoint_seconds=1e6, callbacks=[Fails(error)])
    assert same(network, before) and network.classes == ()
    (folder,) = tmp_path.iterdir()
    (history,) = distill([Student(network)], digits, None, runs=tmp_path).values()
    assert history.folder == folder and history.summary["epochs"] == RECIPE.epochs
    assert not same(network, before) and network.classes == digits.train.classes


def test_without_a_run_folder_a_stopped_network_keeps_what_it_has_learned(digits):
    with runtime.seeded(0, "network"):
        network = models.create("resnet8", **digits.train.spec)
    before = copy.deepcopy(network)
    with pytest.raises(KeyboardInterrupt):
        distill([Student(network)], digits, None, callbacks=[Fails(KeyboardInterrupt())])
    assert not same(network, before)


def test_an_error_before_training_leaves_no_lock(digits, tmp_path):
    """The exception is kept here, and with it the frames of the call."""
    students, bfloat16 = [Student("resnet8", "ce", 0, "a")], {"runs": tmp_path, "precision": "bf16"}

    class Stop(training.Callback):
        def step(self, loop):
            training.loop.stop_training()

    with pytest.raises(KeyboardInterrupt):
        distill(students, digits, None, runs=tmp_path, callbacks=[Stop()])
    with pytest.raises(InputError, match="was trained in fp32, not bf16") as kept:
        distill(students, digits, None, **bfloat16)
    assert runtime.owner(tmp_path / "a") is None and kept.value
    assert distill(students, digits, None, runs=tmp_path)["a"].summary["epochs"] == RECIPE.epochs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_noticed_between_the_blocks_of_a_search(digits, teacher, bank, tmp_path, monkeypatch, number):
    blocks, dot = [], memory.search.dot

    def interrupted(*given):
        blocks.append(len(given[0]))
        if len(blocks) == 2:
            signal.raise_signal(number)
        return dot(*given)

    monkeypatch.setattr(memory.search, "dot", interrupted)
    monkeypatch.setattr(memory.retrieval, "FEW", 0)  # a block for each class
    given = [Student("resnet8", "ickd(positives=2, negatives=3)", 0, "a")], digits, teacher
    with pytest.raises(KeyboardInterrupt, match="stopped before the first step; repeat the call or command"):
        distill(*given, bank=bank.subset(torch.arange(len(bank))), runs=tmp_path)
    assert len(blocks) == 2 and runtime.owner(tmp_path / "a") is None
    assert distill(*given, bank=bank, runs=tmp_path)["a"].summary["epochs"] == RECIPE.epochs


def test_a_stop_is_noticed_while_a_bank_is_built(digits, teacher, monkeypatch):
    passes, autocast = [], models.inference.runtime.autocast

    def interrupted(*given):
        passes.append(given)
        signal.raise_signal(signal.SIGINT)
        return autocast(*given)

    monkeypatch.setattr(models.inference.runtime, "autocast", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped before the first step"):
        distill([Student("resnet8", "ickd(positives=2, negatives=3)", 0)], digits, teacher)
    assert len(passes) == 1


def test_a_stop_after_the_last_step_is_not_lost(digits, tmp_path, monkeypatch):
    students, finish = [Student("resnet8", "ce", 0, "a")], records.RunRecord.finish

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        finish(*given)

    monkeypatch.setattr(records.RunRecord, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same call or command continues from here"):
        distill(students, digits, None, runs=tmp_path)
    monkeypatch.setattr(distillation, "Stepper", None)  # what is finished is not trained again
    assert distill(students, digits, None, runs=tmp_path)["a"].summary["epochs"] == RECIPE.epochs


def test_a_run_records_how_many_images_were_held_out(digits, tmp_path):
    held_out = digits._replace(val=digits.test.subset(torch.arange(7)))
    for name, splits, count in (("none", digits, 0), ("some", held_out, 7)):
        made = distill([Student("resnet8", "ce", 0, name)], splits, None, runs=tmp_path)[name]
        assert runtime.Run(made.folder).config["held_out"] == count
    assert "held_out" not in str(runtime.Run(made.folder).settings), "it is no part of what identifies a run"


def test_a_run_of_an_own_network_records_its_shapes_and_not_its_weights_alone(digits, tmp_path):
    found = []
    for name, seed, dim in (("a", 0, 12), ("b", 1, 12), ("c", 0, 6)):
        made = distill([Student(Dropping(seed, dim), "ce", 0, name)], digits, None, runs=tmp_path)[name]
        found.append(runtime.Run(made.folder).settings["student"])
    assert found[0]["shapes"] == found[1]["shapes"] != found[2]["shapes"]
    assert found[0]["initial"] != found[1]["initial"]
    assert found[0]["parameters"] == sum(p.numel() for p in Dropping(0, 12).parameters()) > found[2]["parameters"]


def test_a_run_of_an_own_network_records_what_it_was_wrapped_with(digits, tmp_path):
    with runtime.seeded():
        module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    given = {"mean": (0.1, 0.2, 1 / 3), "std": (0.5, 0.5, 0.5)}
    wrapped = models.wrap(module, size=(9, 8), maps=["0"], features="2", **given)
    students = [
        Student(wrapped, "ce", 0, "named"),
        Student(models.wrap(copy.deepcopy(module)), "ce", 0, "default"),
        Student("resnet8", "ce", 0, "by-name"),
    ]
    distill(students, digits, None, runs=tmp_path)
    configs = {run.folder.name: run.config for run in runtime.runs(tmp_path)}
    assert configs["named"]["wrapped"] == {
        "mean": [0.1, 0.2, 0.333333],
        "std": [0.5, 0.5, 0.5],
        "maps": ["0"],
        "size": [9, 8],
        "features": "2",
    }
    of_default = {"mean": [0, 0, 0], "std": [1, 1, 1], "maps": [], "size": None, "features": "input of 3"}
    assert configs["default"]["wrapped"] == of_default and "wrapped" not in configs["by-name"]
    assert "size" not in configs["named"]["settings"]["student"], "names of run folders stay as they were"


def corrected(split):
    """The same images, of which one pixel has changed."""
    return dataclasses.replace(split, images=split.images.clone().index_fill_(0, torch.tensor([3]), 7))


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_is_not_opened_with_other_validation_or_test_images(digits, tmp_path, finished):
    splits = digits._replace(val=digits.test.subset(torch.arange(7)))
    run = distill([Student("resnet8", "ce", 0, "a")], splits, None, runs=tmp_path)["a"].folder
    marks = {"val": splits.val.fingerprint, "test": splits.test.fingerprint}
    config = runtime.Run(run).config
    assert config["evaluated_on"] == marks and marks["test"] not in str(config["settings"])
    if not finished:
        (run / "summary.json").unlink()
    for name, what in (("val", "validation"), ("test", "test")):
        others = splits._replace(**{name: corrected(getattr(splits, name))})
        with pytest.raises(InputError, match=f"a is a run with other {what} images .* delete this one"):
            distill([Student("resnet8", "ce", 0, "a")], others, None, runs=tmp_path)
    for accepted in (splits, digits):  # without validation images, no number is of others
        distill([Student("resnet8", "ce", 0, "a")], accepted, None, runs=tmp_path)
    runtime.write_json(run / "config.json", {k: v for k, v in config.items() if k != "evaluated_on"})
    distill([Student("resnet8", "ce", 0, "a")], others, None, runs=tmp_path)  # a run of an earlier version


def test_a_finished_teacher_is_used_when_the_test_images_have_changed(digits, tmp_path, notes):
    chosen = {"recipe": RECIPE, "runs": tmp_path, "device": "cpu", "progress": False}
    first = training.pretrain("resnet8", digits, **chosen)
    notes()
    again = training.pretrain("resnet8", digits._replace(test=corrected(digits.test)), **chosen)
    assert again.identity == first.identity
    assert any("the test images were others" in line for line in notes())


def test_the_teacher_never_changes(digits, teacher):
    own = copy.deepcopy(teacher).train()
    before = copy.deepcopy(own)
    distill([Student("dropping", "ickd(query='view')", 0)], digits, own)
    assert same(own, before) and own.training
    assert all(p.requires_grad and p.grad is None for p in own.parameters())


def test_the_learning_rate_follows_the_recipe_and_losses_fall(digits):
    recipe = Recipe(epochs=6, lr=0.05, schedule="onecycle", batch_size=30)
    (history,) = distill([Student("resnet8", "ce", 0)], digits, None, recipe=recipe).values()
    assert [r["lr"] for r in history.epochs] == pytest.approx([recipe.lr_at(e + 0.75) for e in range(6)])
    assert history.epochs[-1]["loss"] < 0.8 * history.epochs[0]["loss"]
    assert history.epochs[-1]["train_accuracy"] > 0.4


class Fixed(Method):
    """A method with a parameter of its own."""

    def setup(self, student_dim, teacher_dim, num_classes, rows):
        self.projector = nn.Linear(student_dim, teacher_dim)
        self.seen = (student_dim, teacher_dim, num_classes, rows)

    needs = frozenset({"teacher"})

    def forward(self, context: Context):
        return {"distance": (self.projector(context.student.features) - context.teacher.features).square().mean()}


def test_a_methods_own_parameters_are_trained_and_resumed(digits, teacher, tmp_path, monkeypatch, capsys):
    students = [Student("dropping", Fixed(), 5, "a")]
    whole = distill(students, digits, teacher)["a"]
    assert whole.method.seen == (12, 64, 10, 120)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Interrupted):
            distill(students, digits, teacher, runs=tmp_path, checkpoint_seconds=0)
    resumed = distill(students, digits, teacher, runs=tmp_path)["a"]
    assert same(whole.method, resumed.method) and same(whole.network, resumed.network)
    finished = distill(students, digits, teacher, runs=tmp_path)["a"]
    assert same(whole.method, finished.method)
    (tmp_path / "a" / "checkpoint.pt").unlink()
    distill(students, digits, teacher, runs=tmp_path)
    assert "the state of the method of a is lost" in capsys.readouterr().err
    with runtime.seeded(5, "method"):
        fresh = nn.Linear(12, 64)
    assert not torch.equal(fresh.weight, whole.method.projector.weight)


def test_a_method_sees_what_it_declares_and_nothing_else(digits, teacher):
    seen = {}

    class Watching(Method):
        def __init__(self, *, wants: tuple = ()):
            super().__init__()
            self.needs, self.wants = frozenset(wants) - {"retrieval"}, wants
            source = {"peers": "peers", "earlier": "self"}.get("".join(wants[:1]), "teacher")
            self.retrieval = methods.Retrieval(2, 3, source=source) if "retrieval" in wants else None

        def forward(self, context):
            seen[self.wants] = context
            return {"ce": nn.functional.cross_entropy(context.student.logits, context.batch.labels)}

    wants = [(), ("teacher",), ("retrieval",), ("bank",), ("partner",), ("peers",), ("earlier",)]
    wants += [("peers", "retrieval"), ("earlier", "retrieval")]
    students = [Student("dropping", Watching(wants=w), 0, f"s{i}", peer_group="all") for i, w in enumerate(wants)]
    distill(students, digits, teacher)
    for want in wants:
        context = seen[want]
        guides = {"teacher": [context], "peers": context.peers, "earlier": [context.earlier] if context.earlier else []}
        sampled = [who for who, those in guides.items() if any(x.positives or x.negatives for x in those)]
        assert sampled == ([want[0].replace("retrieval", "teacher")] if "retrieval" in want else [])
        given = {
            "teacher": context.teacher is not None,
            "retrieval": bool(sampled),
            "bank": isinstance(context.bank, MemoryBank),
            "partner": context.partner is not None,
            "peers": len(context.peers) == len(wants) - 1,
            "earlier": context.earlier is not None,
        }
        assert given == {name: name in want for name in given}
        assert 0 <= context.progress < 1
        assert context.epoch == RECIPE.epochs - 1 and context.epoch.shape == () and context.epochs == RECIPE.epochs


def test_the_temperature_of_ctkd_is_trained_and_can_be_read_afterwards(digits, teacher):
    (history,) = distill([Student("dropping", "ctkd", 0)], digits, teacher).values()
    first = methods.create("ctkd").learnt_temperature
    assert history.method.learnt_temperature.item() != pytest.approx(first.item(), abs=1e-6)


def test_a_given_bank_is_the_bank_that_is_used(digits, teacher):
    bank = MemoryBank.build(teacher, digits.train, precision="fp32")
    (a,) = distill([Student("dropping", "ickd", 0)], digits, teacher).values()
    (b,) = distill([Student("dropping", "ickd", 0)], digits, teacher, bank=bank).values()
    assert same(a.network, b.network)
    assert a.summary["name"] == b.summary["name"]
    noise = torch.randn(bank.logits.shape, generator=torch.Generator().manual_seed(0))
    bank = MemoryBank(bank.features, bank.logits + noise, bank.labels, bank.index, bank.classes)
    (c,) = distill([Student("dropping", "ickd", 0)], digits, teacher, bank=bank).values()
    assert not same(a.network, c.network) and a.summary["name"] != c.summary["name"]


def test_static_queries_are_those_of_the_clean_rows(digits, teacher, monkeypatch):
    bank = MemoryBank.build(teacher, digits.train, precision="fp32")
    seen = []

    class Watching(methods.ICKD):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    for query in ("row", "view"):
        distill([Student("dropping", Watching(query=query), 0)], digits, teacher, bank=bank)
    half = len(seen) // 2
    assert half > 0
    for row, view in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(row.batch.index, view.batch.index)
        own = bank.features[bank.rows(row.batch.index)]
        near, _ = bank.retrieve(own, row.batch.labels, row.batch.index, negatives=0)
        assert torch.equal(row.positives.index, near.index)
        near, _ = bank.retrieve(view.teacher.features, view.batch.labels, view.batch.index, negatives=0)
        assert torch.equal(view.positives.index, near.index)
        assert not row.teacher.logits.requires_grad and not row.positives.logits.requires_grad


# -------------------------------------------------------------------------------------------- label spaces


@pytest.fixture(scope="module")
def specialist():
    """A teacher of the digits 0 to 4."""
    (history,) = training.distill(
        [Student("resnet8", "ce", 7)],
        data.load("digits", labels=60, classes=range(5)),
        recipe=Recipe(epochs=3, lr=0.05, schedule="cosine", batch_size=30),
        device="cpu",
        progress=False,
    ).values()
    return history.network


def test_a_teacher_of_other_classes_teaches_what_needs_no_common_ones(specialist):
    others = data.load("digits", labels=50, classes=range(5, 10))
    able = [name for name in registered.trained() if methods.create(name).label_space == "any"]
    expected = ["at", "crd", "crd_bank", "fitnet", "hcl"]
    expected += ["pkt", "refilled", "reviewkd", "rkd", "seed", "sp", "vid", "wkd_f"]
    assert able == expected
    free = [name for name in methods.names() if not methods.create(name).needs_teacher]
    assert {"ce", "cskd", "dml", "ickd_online", "ickd_self", "pskd"} <= set(free)
    students = [Student("resnet8", name, 0, name) for name in [*able, *free]]
    found = distill(students, others, specialist)
    for history in found.values():
        assert history.network.num_classes == 5 and history.network.classes == tuple("56789")
        assert "agreement" not in history.summary
    for name in set(registered.trained()) - {*able, *free}:
        with pytest.raises(InputError, match=rf"'{name}' compares logits .* \(0, 1, 2, …\) share 0 with") as caught:
            distill([Student("resnet8", name, 0)], others, specialist)
        assert "\n" not in str(caught.value) and "refilled" in str(caught.value)


def test_kd_acts_on_the_classes_that_both_know(specialist):
    splits = data.load("digits", labels=60, classes=[3, 4, 5, 6])
    seen = []

    class Watching(methods.logits.KD):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    distill([Student("resnet8", Watching(), 0)], splits, specialist)
    ours, theirs = seen[0].common
    assert ours.tolist() == [0, 1] and theirs.tolist() == [3, 4]
    with pytest.raises(InputError, match="share 1 with"):  # a softmax over one class says nothing
        distill([Student("resnet8", "kd", 0)], data.load("digits", labels=60, classes=[4, 5, 6]), specialist)
    with pytest.raises(InputError, match="or kd, which acts on the shared ones"):
        distill([Student("resnet8", "ickd", 0)], splits, specialist)


def test_the_classes_of_a_network_are_kept_with_its_run(digits, specialist, tmp_path):
    (history,) = distill([Student("resnet8", "ce", 0)], digits, None, runs=tmp_path).values()
    assert training.load(history.folder, device="cpu").classes == digits.train.classes
    unknown = copy.deepcopy(specialist)
    unknown.classes = ()
    with pytest.raises(InputError, match=r"5 classes \(of unknown names\)"):
        distill([Student("resnet8", "kd", 0)], digits, unknown)


def test_the_same_classes_in_another_order_are_matched_by_name(digits, teacher):
    turned = copy.deepcopy(teacher)
    turned.classes = teacher.classes[::-1]
    with torch.no_grad():
        turned.fc.weight.copy_(teacher.fc.weight.flip(0))
        turned.fc.bias.copy_(teacher.fc.bias.flip(0))
    a, b = (
        distill([Student("dropping", "kd", 0, "a")], digits, one)["a"].epochs[-1]["loss"] for one in (teacher, turned)
    )
    assert a == pytest.approx(b, rel=1e-4)
    with pytest.raises(InputError, match="share 10 with"):
        distill([Student("dropping", "ickd", 0)], digits, turned)


def test_what_a_teacher_says_and_means_is_part_of_a_run(digits, teacher):
    named, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    other.set_normalisation((0.1, 0.1, 0.1), (1, 1, 1))
    other.stages = ("layer3",)
    names = {next(iter(distill([Student("dropping", "at", 0)], digits, one))) for one in (teacher, named, other)}
    assert len(names) == 2
    named.stages = ()
    with pytest.raises(InputError, match="'at' uses maps, but resnet8 names no stages"):
        distill([Student("dropping", "at", 0)], digits, named)


@pytest.mark.parametrize("share", [0, 1])
def test_one_phase_of_refilled_can_be_all_of_it(share, digits, teacher):
    (history,) = distill([Student("dropping", f"refilled(share={share})", 0)], digits, teacher).values()
    expected = ["embedding"] if share else ["ce", "local"]
    assert [list(r["terms"]) for r in history.epochs] == [expected, expected]


def test_phases_must_fit_the_schedule(digits, teacher):
    with pytest.raises(InputError, match=r"schedule='tenth\+fifths' is for 2 phases, but the method has 1"):
        distill([Student("dropping", "ce", 0)], digits, None, recipe=Recipe(epochs=2, schedule="tenth+fifths"))


def test_what_a_step_costs(digits, teacher):
    found = training.step_seconds(
        ["ce", "ickd", "refilled", "dml"], digits, student="dropping", teacher=teacher, steps=2, rounds=1, device="cpu"
    )
    assert list(found) == ["ce", "ickd", "refilled", "dml"] and all(0 < seconds < 10 for seconds in found.values())


def test_the_cost_of_a_step_is_measured_with_few_images_too(digits, teacher):
    """Methods with banks of their own have one row for each image."""
    few = digits._replace(train=digits.train.few(30, 0))
    methods = ["ickd_online(positives=1, negatives=3)", "ickd(dynamic=True, positives=1, negatives=3)"]
    for batch_size in (8, 64):
        given = {"student": "dropping", "teacher": teacher, "steps": 20, "rounds": 1, "batch_size": batch_size}
        assert all(0 < one < 10 for one in training.step_seconds(methods, few, device="cpu", **given).values())


# ------------------------------------------------------------------------------------- records and reading


def test_a_run_folder_tells_everything(digits, teacher, tmp_path):
    splits = data.load("digits", labels=120, val=0.1)
    (history,) = distill([Student("resnet8", "kd", 1, "kd")], splits, teacher, runs=tmp_path, evaluate_every=2).values()
    folder = tmp_path / "kd"
    assert history.folder == folder
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "metrics.jsonl",
        "student.safetensors",
        "summary.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["numerics"] == {
        "device": "cpu",
        "precision": "fp32",
        "threads": torch.get_num_threads(),
        "teacher_cache": False,
        "captured": False,
    }
    assert config["settings"]["method"] == methods.create("kd").config
    assert config["environment"]["code"] == runtime.code()
    assert config["settings"]["recipe"]["epochs"] == 2 and config["environment"]["torch"] == torch.__version__
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(history.summary))
    assert summary["teacher_saw"] == {"data": "digits/train", "labels": 120} and summary["train_images"] == 120
    assert "test_accuracy" not in history.epochs[0] and {"val_accuracy", "test_accuracy"} <= set(history.epochs[1])
    loaded = training.load(folder, device="cpu")
    assert same(loaded, history.network) and torch.equal(loaded.mean, history.network.mean)
    numbers = training.evaluate(loaded, splits.test, teacher=teacher, precision="fp32")
    assert numbers == pytest.approx({key: summary[key] for key in numbers})


def test_a_finished_run_is_loaded_not_repeated(digits, tmp_path, monkeypatch):
    students = [Student("dropping", "ce", 0, "a")]
    first = distill(students, digits, None, runs=tmp_path)["a"]
    stop_at(monkeypatch, 0)
    again = distill(students, digits, None, runs=tmp_path)["a"]
    assert same(first.network, again.network) and again.epochs == first.epochs and again.summary == first.summary
    with pytest.raises(InputError, match="already contains a run"):
        distill(students, digits, None, runs=tmp_path, resume=False)
    with pytest.raises(InputError, match="contains a run with data_seed=0, not 1"):
        distill(students, digits, None, runs=tmp_path, data_seed=1)


def test_other_settings_are_another_run(digits, tmp_path):
    def folder(**options):
        (history,) = distill([Student("dropping", "ce", 0)], digits, None, runs=tmp_path, **options).values()
        return history.folder.name

    names = [folder(), folder(), folder(data_seed=1), folder(evaluate_every=2)]
    assert names[0] == names[1] and len(set(names)) == 3
    assert names[0].startswith("dropping-ce-seed0-") or names[0].startswith("Dropping-ce-seed0-")


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_from_another_environment_says_what_differs(finished, digits, tmp_path, monkeypatch, capsys):
    students = [Student("dropping", "ce", 0, "a")]
    if finished:
        distill(students, digits, None, runs=tmp_path)
    else:
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            with pytest.raises(Interrupted):
                distill(students, digits, None, runs=tmp_path, checkpoint_seconds=0)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["environment"] |= {"code": "edited", "commit": "0123456789abcdef", "torch": "1.0", "world_size": 2}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    distill(students, digits, None, runs=tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == 3 and all(str(tmp_path / "a") in line for line in lines)
    assert "source of ickd_lib differs (commit 0123456789 then" in lines[0]
    assert f"torch: 1.0 then, {torch.__version__} now" in lines[1] and "world size: 2 then, 1 now" in lines[2]


def own_code(place, factor="1.0", comment=""):
    """A method and a network in a file of the user."""
    place.write_text(
        "from torch import nn\nfrom ickd_lib.methods import Method\n\n"
        "class Body(nn.Module):\n"
        "    def forward(self, x):\n"
        f"        return {factor} * x  # {comment}\n\n"
        "class Mine(nn.Sequential):\n"
        f'    """Mine. {comment}"""\n'
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), Body(), nn.Linear(192, 10))\n\n"
        "class Own(Method):\n"
        "    def forward(self, context):\n"
        f'        return {{"ce": {factor} * context.supervised}}  # {comment}\n'
    )
    spec = importlib.util.spec_from_file_location(f"own_code_{factor}_{len(comment)}", place)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with runtime.seeded():
        return Student(models.wrap(module.Mine(), size=8), module.Own(), 0, "a")


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_own_code_that_was_edited_says_so(finished, digits, tmp_path, monkeypatch, notes):
    place, runs = tmp_path / "mine.py", tmp_path / "runs"
    if finished:
        first = distill([own_code(place)], digits, None, runs=runs)["a"]
    else:
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            with pytest.raises(Interrupted):
                distill([own_code(place)], digits, None, runs=runs, checkpoint_seconds=0)
    sources = runtime.Run(runs / "a").config["sources"]
    assert sources.keys() == {"method", "network"} and all(sources.values())
    assert "sources" not in runtime.Run(runs / "a").settings, "the names of run folders do not depend on it"
    notes()
    if finished:
        distill([own_code(place, comment="a comment is no change")], digits, None, runs=runs)
        assert not [line for line in notes() if "source" in line]
    again = distill([own_code(place, factor="0.5")], digits, None, runs=runs)["a"]
    of_method, of_network = (line for line in notes() if "another source" in line)
    assert f"{runs / 'a'} is from another source of the method 'Own', which has been edited" in of_method
    assert "raise the attribute version of its class, or name another folder of runs" in of_method
    assert "of the network 'Mine'" in of_network and of_network.endswith(
        "to train the present one, name another folder of runs"
    )
    assert not finished or again.summary == first.summary


def test_code_without_a_file_and_code_of_the_library_have_no_source(digits, teacher, tmp_path):
    typed = {"__name__": "typed", "Method": Method}
    exec("class Own(Method):\n    def forward(self, context):\n        return {'ce': context.supervised}", typed)
    students = [Student("resnet8", typed["Own"](), 0, "a"), Student("resnet8", "kd", 0, "b")]
    for _ in range(2):
        distill(students, digits, teacher, runs=tmp_path)
    assert runtime.Run(tmp_path / "a").config["sources"] == {"method": None}
    assert "sources" not in runtime.Run(tmp_path / "b").config


def test_comments_and_docstrings_are_no_other_source():
    one = _structure("def f(x):\n    return x + 1\n")
    assert one == _structure('def f(x):\n    """Adds one."""\n    # why\n    return (x + 1)\n')
    assert one != _structure("def f(x):\n    return x + 2\n")


def test_a_teacher_is_trained_once_and_kept(digits, tmp_path, monkeypatch):
    call = {"recipe": Recipe(epochs=1, batch_size=60), "runs": tmp_path, "device": "cpu", "progress": False}
    first = training.pretrain("resnet8", digits, **call)
    with monkeypatch.context() as patch:
        stop_at(patch, 0)
        again = training.pretrain("resnet8", digits, **call, evaluate_every=2)
        assert same(first, again) and again.trained_on == {"data": "digits/train", "labels": 120}
        with pytest.raises(Interrupted):
            training.pretrain("resnet8", digits, **call, seed=1)
    weights = next((tmp_path / "teachers").glob("*/student.safetensors"))
    assert same(first, training.pretrain("resnet8", digits, weights=weights, device="cpu"))


def test_a_folder_of_teachers_is_no_folder_of_all_runs(digits, teacher, tmp_path):
    runs = tmp_path / "teachers"
    for call in (
        lambda: training.distill([Student("resnet8", "kd")], digits, teacher=teacher, runs=runs),
        lambda: training.compare(["ce"], digits, runs=runs),
        lambda: training.pretrain("resnet8", digits, runs=runs),
        lambda: training.teach("resnet8", digits, runs=runs),
    ):
        with pytest.raises(InputError, match="cannot be the folder of all runs"):
            call()
    assert not runs.exists()


def test_a_teacher_with_the_weights_of_its_name_is_not_trained(digits, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        source = torchvision.models.mobilenet_v3_small()
    weights = torchvision.models.MobileNet_V3_Small_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    monkeypatch.setattr(distillation, "Stepper", None)  # any training fails
    name, classes = "torchvision/mobilenet_v3_small(pretrained='IMAGENET1K_V1')", tuple(f"n{i:08}" for i in range(1000))
    train = SimpleNamespace(spec={**digits.train.spec, "num_classes": 1000}, classes=classes)
    network = training.pretrain(name, digits._replace(train=train), weights="pretrained", device="cpu")
    assert torch.equal(network.module.classifier[3].weight, source.classifier[3].weight) and not network.training
    assert network.classes == classes and network.trained_on == {"weights": "torchvision IMAGENET1K_V1"}
    for other in (name, "resnet8"):
        with pytest.raises(
            InputError, match=r"has no pretrained weights for 10 classes; name some that have, as in .*V1"
        ):
            training.pretrain(other, digits, weights="pretrained", device="cpu")


def test_a_trained_network_is_loaded_without_the_weights_that_its_training_started_from(digits, tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    fetched = []

    def fetch(*_, **__):
        fetched.append(torchvision.models.mobilenet_v3_small().state_dict())
        return fetched[-1]

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    name = "torchvision/mobilenet_v3_small(pretrained=True)"
    call = {"recipe": Recipe(epochs=1, batch_size=60), "runs": tmp_path, "device": "cpu", "progress": False}
    first = training.pretrain(name, digits, **call)
    assert len(fetched) == 1
    assert same(first, training.pretrain(name, digits, **call))
    weights = next((tmp_path / "teachers").glob("*/student.safetensors"))
    assert same(first, training.pretrain(name, digits, weights=weights, device="cpu"))
    loaded = training.load(weights.parent, device="cpu")
    assert same(first, loaded) and torch.equal(first.mean, loaded.mean) and len(fetched) == 1
    with torch.random.fork_rng():
        models.create(name, 10)
    assert len(fetched) == 2  # a new network is pretrained again


def test_compare_pairs_the_methods_by_seed(digits, teacher):
    found = training.compare(
        ["ce", "ickd"],
        digits,
        student="dropping",
        teacher=teacher,
        seeds=2,
        recipe=RECIPE,
        device="cpu",
        progress=False,
    )
    assert [len(h) for h in found.values()] == [2, 2]
    assert [h.summary["seed"] for h in found["ickd"]] == [0, 1] == [h.summary["data_seed"] for h in found["ickd"]]


# -------------------------------------------------------------------------------------------- what goes wrong


def test_a_diverging_loss_names_term_and_step_and_keeps_the_last_good_checkpoint(digits, tmp_path):
    class Breaks(Method):
        def forward(self, context):
            loss = nn.functional.cross_entropy(context.student.logits, context.batch.labels)
            return {"ce": loss, "odd": loss * (float("nan") if context.progress >= 0.5 else 0.0)}

    with pytest.raises(Diverged, match=r"a: loss term 'odd' became nan at epoch 2, step 1; .* is .*/a/checkpoint.pt"):
        students = [Student("dropping", Breaks(), 0, "a")]
        distill(students, digits, None, runs=tmp_path, checkpoint_seconds=0)
    state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["a"]
    assert all(value.isfinite().all() for value in state["network"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"students": []}, "no student to train"),
        ({"students": [Student("dropping", "ce", 0, "a")] * 2}, "two students are named 'a'"),
        ({"teacher": None}, "method 'ickd' needs a teacher"),
        ({"students": [Student("resnt8", "ickd")]}, "did you mean 'resnet8'"),
        ({"evaluate_every": 0}, "evaluate_every=0"),
        ({"device": "cuda:7"}, "torch finds"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
    ],
)
def test_what_cannot_work_is_said_before_training(change, message, digits, teacher, tmp_path):
    call = {"students": [Student("dropping", "ickd")], "teacher": teacher} | change
    with pytest.raises(InputError, match=message):
        distill(call.pop("students"), digits, call.pop("teacher"), **call)


MISTAKES = {
    "not a dict": (
        lambda c: c.supervised,
        "method 'Own' returned an object of type Tensor; return a dict of named loss",
    ),
    "no scalar": (
        lambda c: {"kd": c.student.logits.sum(1)},
        r"the loss term 'kd' has shape \[50\], but must be a scalar",
    ),
    "a number": (lambda c: {"kd": 1.0}, "the loss term 'kd' is of type float; return a scalar tensor"),
    "nothing": (lambda c: {}, "'Own' returned no loss term; return one"),
    "detached": (
        lambda c: {"kd": c.supervised.detach()},
        r"'Own': no loss term \(kd\) has a gradient; compute one from",
    ),
    "teacher": (
        lambda c: {"kd": c.teacher.logits.mean()},
        r"Own' .*'logits'\); it uses teacher, so add 'teacher' to its",
    ),
    "shared": (lambda c: {"kd": c.shared_logits()[0].mean()}, "it uses shared_logits, so add 'teacher' to its needs"),
    "maps": (lambda c: {"kd": c.student.maps[-1].mean()}, "it uses maps, so add 'maps' to its needs"),
    "retrieval": (lambda c: {"kd": c.positives.logits.mean()}, "it uses positives, so set its attribute retrieval"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_own_method_is_named_in_the_first_step(mistake, digits, teacher):
    returned, message = MISTAKES[mistake]

    class Own(Method):
        def forward(self, context):
            return returned(context)

    with pytest.raises(InputError, match=message) as caught:
        distill([Student("dropping", Own())], digits, teacher)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_the_optimiser_does_not_have_is_named(digits, teacher):
    class Own(Method):
        needs = frozenset({"teacher", "features"})

        def forward(self, context):
            if not hasattr(self, "project"):
                self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)  # it is not to be trained
                self.project = torch.nn.Linear(context.student.features.shape[1], context.teacher.features.shape[1])
            return {"ce": context.supervised + self.project(context.student.features).square().mean()}

    message = r"its parameter (parts\.1\.)?project\.weight was created .* it must be created in setup"
    for method in (Own(), Combined(parts=[methods.create("kd"), Own()])):
        with pytest.raises(InputError, match=message) as caught:
            distill([Student("dropping", method)], digits, teacher)
        assert "\n" not in str(caught.value)


def test_a_note_names_the_attributes_that_checkpoints_do_not_contain(digits, notes, tmp_path):
    class Own(Method):
        def __init__(self):
            super().__init__()
            self.steps, self.seen, self.sum, self.constant, self.undefined = 0, [], None, (1, "a"), float("nan")
            self.register_buffer("kept", torch.zeros(()))

        def forward(self, context):
            self.steps += 1
            self.seen.append(self.steps)
            self.sum = (self.sum or 0.0) + 0.5
            self.kept += 1
            return {"ce": context.supervised}

    students = [Student("dropping", Own(), seed) for seed in (0, 1)]
    distill(students, digits, None)
    assert not any("checkpoints" in line for line in notes()), "no checkpoint is written"
    distill(students, digits, None, runs=tmp_path, checkpoint_seconds=0)
    found = [line.split(", which")[0] for line in notes() if "checkpoints do not contain" in line]
    assert found == [f"note: method 'Own' changes {names} in training" for names in ("steps, seen", "steps, seen, sum")]


def test_checkpoints_contain_everything_that_a_method_changes(digits, teacher, notes, tmp_path):
    students = [Student("dropping", name, 0, name) for name in registered.trained()]
    distill(students, digits, teacher, runs=tmp_path, checkpoint_seconds=0)
    assert not any("checkpoints do not contain" in line for line in notes())


@pytest.mark.parametrize("combined", [False, True])
def test_what_is_added_to_the_labels_must_be_a_dict(combined, digits, teacher):
    class Own(WithLabels):
        def teach(self, context):
            return context.supervised

    method = Combined(parts=[methods.create("kd"), Own()]) if combined else Own()
    with pytest.raises(InputError, match="method 'Own' returned an object of type Tensor; return a dict of named loss"):
        distill([Student("dropping", method)], digits, teacher)


def test_only_the_first_step_checks_the_loss_terms(digits, monkeypatch):
    checked, first_terms = [], step.first_terms
    monkeypatch.setattr(step, "first_terms", lambda *given: checked.append(given) or first_terms(*given))
    distill([Student("dropping", "ce")], digits, None)
    assert len(checked) == 1


def test_a_method_that_does_not_call_the_constructor_of_its_base_is_named(digits):
    class Own(Method):
        def __init__(self, *, weight: float = 1.0):
            self.weight = weight

    with pytest.raises(InputError, match=r"'Own': its __init__ does not call super\(\).__init__\(\); call it there"):
        distill([Student("dropping", Own())], digits, None)


def test_a_bank_or_teacher_of_other_data_is_refused(digits, teacher):
    other = MemoryBank.build(teacher, data.load("digits", labels=120, seed=1).train, precision="fp32")
    with pytest.raises(InputError, match="the bank is of another data set"):
        distill([Student("dropping", "ickd")], digits, teacher, bank=other)
    with runtime.seeded(0):
        other_classes = models.create("resnet8", 7)
    with pytest.raises(InputError, match=r"the teacher's 7 classes \(of unknown names\)"):
        distill([Student("dropping", "kd")], digits, other_classes)


def test_a_split_without_images_is_refused(digits):
    empty = digits.test.subset(torch.arange(0))
    with pytest.raises(InputError, match="digits/test has no image"):
        distill([Student("dropping", "ce")], digits._replace(test=empty), None)


def test_a_damaged_checkpoint_is_named(digits, tmp_path, monkeypatch):
    students = [Student("dropping", "ce", 0, "a")]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            distill(students, digits, None, runs=tmp_path, checkpoint_seconds=0)
    path = tmp_path / "a" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged"):
        distill(students, digits, None, runs=tmp_path)


def test_a_renamed_run_is_resumed(digits, tmp_path, monkeypatch):
    student = Student("dropping", "ce", 0, "a")
    whole = distill([student], digits, None)["a"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            distill([student], digits, None, runs=tmp_path, checkpoint_seconds=0)
    (tmp_path / "a").rename(tmp_path / "b")
    resumed = distill([dataclasses.replace(student, name="b")], digits, None, runs=tmp_path)["b"]
    assert same(whole.network, resumed.network)


def test_a_full_disk_keeps_the_last_checkpoint(digits, tmp_path, monkeypatch):
    students = [Student("dropping", "ce", 0, "a")]
    save, written = torch.save, []

    def full(state, file):
        if len(written) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        written.append(file)
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"no space left while writing .*checkpoint\.pt"):
            distill(students, digits, None, runs=tmp_path, checkpoint_seconds=0)
    assert torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["a"]["step"] == 2
    assert not list((tmp_path / "a").glob(".*part"))
    whole = distill(students, digits, None)["a"]
    assert same(whole.network, distill(students, digits, None, runs=tmp_path)["a"].network)


def test_the_same_code_trains_on_cifar100(cifar_root):
    splits = data.load("cifar100", cifar_root, labels=400)
    splits = data.Splits(splits.train, splits.val, splits.test.few(200))
    with runtime.seeded(0):
        teacher = models.create("resnet8", **splits.train.spec)
    recipe = Recipe(epochs=1, batch_size=100)
    students = [Student("resnet8", "ickd(positives=3)", 0)]
    (history,) = distill(students, splits, teacher, recipe=recipe, precision="auto").values()
    assert history.epochs[0]["terms"].keys() == {"ce", "kd", "picd", "nicd"}
    assert memory.MemoryBank.build(teacher, splits.train).features.shape == (400, 64)


def test_a_module_that_is_no_network_of_this_library_is_named(digits):
    module, recipe = nn.Sequential(nn.Flatten()), Recipe(epochs=1)
    for call in (
        lambda: training.distill([Student("resnet8", "kd")], digits, teacher=module, recipe=recipe),
        lambda: training.distill([Student(module, "ce")], digits, recipe=recipe),
        lambda: training.compare(["kd"], digits, teacher=module, recipe=recipe),
        lambda: training.evaluate(module, digits.test),
        lambda: models.predict(module, digits.test),
        lambda: MemoryBank.build(module, digits.train),
    ):
        with pytest.raises(InputError, match="Sequential is no network of this library; make one of a module with"):
            call()


def test_a_comparison_leaves_out_a_damaged_run_and_refuses_a_seed_twice(digits, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{")
    options = {"student": "dropping", "recipe": RECIPE, "device": "cpu", "progress": False, "runs": tmp_path}
    assert len(training.compare(["ce"], digits, seeds=[3], **options)["ce"]) == 1
    assert "left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="contains a seed twice"):
        training.compare(["ce"], digits, seeds=[0, 0], **options)
