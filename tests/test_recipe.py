"""Recipes: schedules, milestones, optimisers, clipping and averaged weights."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ickd_lib import runtime, tasks, training
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student
from ickd_lib.training.optimizers import Average, Optimizer
from ickd_lib.training.recipe import optimizers

SHORT = Recipe(epochs=2, lr=0.01, schedule="cosine", batch_size=30)


def rates(recipe):
    return [recipe.lr_at(epoch) for epoch in range(recipe.epochs)]


def test_the_default_schedule_follows_the_number_of_epochs():
    """A training of 30 epochs has its three drops too: at 19, 22 and 26."""
    short = rates(Recipe(epochs=30))
    assert [e for e in range(1, 30) if short[e] < short[e - 1]] == [19, 22, 26]
    assert short[-1] == pytest.approx(0.05e-3)
    for epochs in (3, 8, 30, 100, 240, 480):
        assert rates(Recipe(epochs=epochs))[-1] < 0.05 / 9


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"schedule": "cosine"}, {0: 1.0, 2.5: 0.853553, 5: 0.5, 7.5: 0.146447, 10: 0.0}),
        ({"schedule": "tenth"}, {0: 1.0, 2.5: 0.868198, 5: 0.55, 10: 0.1}),
        ({"schedule": "onecycle"}, {0: 0.04, 1.5: 0.52, 3: 1.0, 6.5: 0.5, 10: 0.0}),
        ({"schedule": "fifths"}, {4.9: 1.0, 5: 0.2, 7: 0.04, 9: 0.008}),
        ({"schedule": "step", "warmup": 2.0}, {0: 0.0, 0.5: 0.25, 1.5: 0.75, 2: 1.0, 5: 1.0, 6: 0.1}),
        ({"schedule": "cosine", "warmup": 2.0}, {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
    ],
    ids=str,
)
def test_a_schedule_is_the_documented_function_of_the_epoch(recipe, expected):
    made = Recipe(epochs=10, lr=0.3, **recipe)
    assert {epoch: made.lr_at(epoch) / 0.3 for epoch in expected} == pytest.approx(expected, abs=1e-6)


def test_milestones_are_shares_of_the_epochs():
    recipe = Recipe(epochs=480, milestones=(150 / 480, 180 / 480, 210 / 480))
    dropped = rates(recipe)
    assert [e for e in range(1, 480) if dropped[e] < dropped[e - 1]] == [150, 180, 210]
    phases = Recipe(epochs=20, schedule="tenth+fifths", milestones=(0.5,)).phases((0.5,))
    assert [recipe.milestones for _, _, recipe in phases] == [(), (0.5,)]
    first = Recipe(epochs=20, schedule="tenth+fifths", milestones=(0.5,)).first_phase()
    assert (first.schedule, first.milestones, first.epochs) == ("tenth", (), 20)
    assert recipe.first_phase() == recipe


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": float("inf")}, "lr=inf: expected a finite number above 0"),
        ({"lr": float("nan")}, "lr=nan: expected a finite number above 0"),
        ({"momentum": 1}, "momentum=1: expected a finite number from 0 to below 1"),
        ({"ema": 1.0}, "ema=1.0: expected a finite number from 0 to below 1"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"betas": (0.9,)}, "betas="),
        ({"milestones": (0.5, 0.2)}, "must be ascending shares"),
        ({"milestones": (150,)}, "must be ascending shares"),
        ({"milestones": (0.5,), "schedule": "cosine"}, "milestones are for the schedules step and fifths"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'; did you mean 'Adam"),
        ({"optimizer": "LBFGS"}, "unknown optimizer 'LBFGS'"),
        ({"optimizer": "Muon"}, "unknown optimizer 'Muon'"),
        ({"optimizer": "SparseAdam"}, "unknown optimizer 'SparseAdam'"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True needs a momentum"),
        ({"warmup": 2, "schedule": "onecycle"}, "warmup=2.0 is for other schedules than onecycle"),
        ({"clip_grad_norm": -1}, "clip_grad_norm=-1: expected a finite number of 0 or more"),
    ],
)
def test_impossible_recipes_are_one_line(wrong, message):
    with pytest.raises(InputError, match=message) as caught:
        Recipe(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adamw", "momentum": 0.5}, "momentum=0.5 is not a setting of the optimizer AdamW; leave it out"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov=True is not a setting of the optimizer AdamW"),
        ({"betas": (0.9, 0.98)}, r"betas=\(0.9, 0.98\) is not a setting of the optimizer SGD"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, "weight_decay=0.1 is not a setting of the optimizer Rprop"),
    ],
)
def test_settings_that_the_optimiser_does_not_have_are_refused(given, message, digits):
    with pytest.raises(InputError, match=message):
        training.distill([Student("resnet8", "ce")], digits, recipe=Recipe(**given))


def test_defaults_that_the_optimiser_does_not_have_are_left_alone():
    for task in ("classification", "segmentation", "detection"):
        usual = tasks.create(task).recipe
        for name in optimizers():
            Recipe(**dict(usual) | {"optimizer": name}).check_optimizer(usual)
            Recipe(optimizer=name).check_optimizer(usual)  # without the task's defaults, as in Python


class Line(nn.Module):
    """Stands in for a network: two layers with biases and a normalisation."""

    def __init__(self):
        super().__init__()
        with runtime.seeded(0):
            self.body, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setattr("ickd_lib.models.classifier", lambda network, size: ("head", network.head))
    return Line()


def steps(network, optimizer, count=5):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        loss = network(torch.randn(8, 3, generator=generator)).square().mean()
        if isinstance(optimizer, Optimizer):
            optimizer.clear()
            loss.backward()
            optimizer.step()
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def equal(a, b):
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (Recipe(nesterov=True), lambda p: torch.optim.SGD(p, 0.05, 0.9, nesterov=True, weight_decay=5e-4)),
        (
            Recipe(optimizer="adamw", lr=0.01, betas=(0.8, 0.99), weight_decay=0.05),
            lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.99), weight_decay=0.05),
        ),
        (Recipe(optimizer="RMSprop", lr=0.01), lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=5e-4)),
        (Recipe(optimizer="NAdam", lr=0.01), lambda p: torch.optim.NAdam(p, 0.01, weight_decay=5e-4)),
    ],
)
def test_an_optimiser_by_name_is_torchs(recipe, make, line):
    other = copy.deepcopy(line)
    steps(line, Optimizer(line, nn.Identity(), recipe, (8, 8)))
    steps(other, make(other.parameters()))
    assert equal(line, other)
    assert {"SGD", "AdamW", "RMSprop", "NAdam"} <= set(optimizers()) and "Optimizer" not in optimizers()


def test_norms_and_biases_are_left_out_of_weight_decay_on_request(line):
    optimizer = Optimizer(line, nn.Identity(), Recipe(decay_norms_and_biases=False, weight_decay=0.1), (8, 8))
    decays = {id(p): group["weight_decay"] for group in optimizer.inner.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in line.named_parameters()} == {
        "body.weight": 0.1,
        "body.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "head.weight": 0.1,
        "head.bias": 0.0,
    }
    assert len(decays) == sum(len(group["params"]) for group in optimizer.inner.param_groups) == 6


def test_the_two_rates_are_those_of_embedding_and_classifier(line):
    optimizer = Optimizer(line, nn.Linear(2, 2), Recipe(lr=1.0, weight_decay=0, momentum=0), (8, 8))
    optimizer.set_rates(0.0, 0.5)
    before = {name: p.clone() for name, p in line.named_parameters()}
    steps(line, optimizer, 1)
    moved = {name for name, p in line.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"optimizer": "adamw"}, "AdamW"),
        ({"optimizer": "nadam", "lr": 0.02}, "NAdam"),
        ({"optimizer": "adam", "lr": 0.01}, ""),
        ({"optimizer": "adagrad"}, ""),
        ({}, ""),
    ],
)
def test_a_learning_rate_of_sgd_is_noted_for_adam(given, name, digits, notes):
    recipe = Recipe(**{"epochs": 1} | given)
    for seed in range(2):
        training.distill([Student("resnet8", seed=seed)], digits, recipe=recipe, device="cpu", progress=False)
    found = [one for one in notes() if "learning rate" in one]
    start = f"note: lr={recipe.lr} is high for the optimizer {name}, "
    assert len(found) == bool(name) and all(one.startswith(start) and "0.001" in one for one in found)


def test_the_gradient_is_clipped(line):
    optimizer = Optimizer(line, nn.Identity(), Recipe(lr=1.0, momentum=0, weight_decay=0, clip_grad_norm=1e-3), (8, 8))
    before = torch.cat([p.detach().flatten().clone() for p in line.parameters()])
    steps(line, optimizer, 1)
    moved = torch.cat([p.detach().flatten() for p in line.parameters()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("decay", [0.75, 0.999])  # the first is reached after 23 steps, the second never
def test_the_average_is_a_running_mean_of_the_weights(line, decay):
    average = Average(line, decay)
    expected = [p.detach().double() for p in line.parameters()]
    optimizer = Optimizer(line, nn.Identity(), Recipe(), (8, 8))
    for n in range(100):
        steps(line, optimizer, 1)
        average.update(torch.tensor(n))
        kept = min(decay, (1 + n) / (10 + n))
        expected = [kept * e + (1 - kept) * p.detach() for e, p in zip(expected, line.parameters(), strict=True)]
    for mine, value in zip(average.network.parameters(), expected, strict=True):
        assert torch.allclose(mine, value.float(), atol=1e-5) and not mine.requires_grad
    assert torch.equal(average.network.norm.running_mean, line.norm.running_mean)


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "adamw", "lr": 0.002}, {"optimizer": "RMSprop", "lr": 0.001}, {"ema": 0.9, "clip_grad_norm": 1.0}],
)
def test_a_training_with_another_optimiser_resumes_exactly(options, digits, tmp_path, monkeypatch):
    recipe = Recipe(**{"epochs": 3, "lr": 0.02, "schedule": "cosine", "batch_size": 40} | options)

    def train(**given):
        students = [Student("resnet8", "ce", 0, "a")]
        return training.distill(students, digits, recipe=recipe, device="cpu", progress=False, **given)["a"]

    whole, step, taken = train(), Optimizer.step, []

    def stopping(self):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(1)
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(runs=tmp_path, checkpoint_seconds=0)
    resumed = train(runs=tmp_path)
    for history in (resumed, train(runs=tmp_path)):  # trained to the end, and loaded
        state = history.network.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in whole.network.state_dict().items())
    assert [r["weights"] for r in resumed.epochs] == [r["weights"] for r in whole.epochs]


def test_the_average_of_a_short_training_does_not_keep_the_initial_weights(digits, monkeypatch):
    """Of 100 steps, 0.999 of the average in each would keep 90% of weights that are as good as chance."""
    update, numbers = Average.update, []
    monkeypatch.setattr(Average, "update", lambda self, step: (numbers.append(int(step)), update(self, step)))
    recipe = Recipe(epochs=25, lr=0.05, schedule="cosine", batch_size=30, ema=0.999)
    given = {"recipe": recipe, "device": "cpu", "progress": False, "evaluate_every": 25}
    (history,) = training.distill([Student("resnet8", "ce")], digits, **given).values()
    assert numbers == list(range(100))
    assert history.summary["accuracy"] > 0.5


def test_the_average_is_what_is_evaluated_and_kept(digits):
    def train(ema):
        recipe = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=30, ema=ema)
        (history,) = training.distill(
            [Student("resnet8", "ce")], digits, recipe=recipe, device="cpu", progress=False
        ).values()
        return history

    plain, averaged = train(0.0), train(0.99)
    assert [r["loss"] for r in plain.epochs] == [r["loss"] for r in averaged.epochs], "training itself is the same"
    assert plain.epochs[-1]["weights"] != averaged.epochs[-1]["weights"]
    numbers = training.evaluate(averaged.network, digits.test)
    assert numbers["accuracy"] == averaged.summary["accuracy"] != plain.summary["accuracy"]


def test_equal_settings_are_recorded_alike():
    """The fingerprint of a run is of the text of its settings, in which 0 and 0.0 differ."""
    one = Recipe(lr=1, weight_decay=0, optimizer="AdamW", betas=[0, 0.9], milestones=[0.5])
    other = Recipe(lr=1.0, weight_decay=0.0, optimizer="adamw", betas=(0.0, 0.9), milestones=(0.5,))
    assert runtime.fingerprint(dataclasses.asdict(one)) == runtime.fingerprint(dataclasses.asdict(other))
