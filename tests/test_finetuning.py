"""Fine-tuning of a network to a teacher, and a linear probe; the command `teach`."""

import json
import math

import pytest
import torch

from ickd_lib import __main__ as cli
from ickd_lib import data, models, runs, runtime, training
from ickd_lib.runtime import InputError
from ickd_lib.training import records

SHORT = {"epochs": 2, "head_epochs": 1, "batch_size": 30, "device": "cpu", "progress": False}


def test_the_classifier_is_trained_first_then_all_layers(digits, tmp_path):
    seen = []

    class Watch(training.Callback):
        def step(self, loop):
            seen.append({k: v.clone() for k, v in loop.states[0].learner.network.named_parameters()})

    history = training.teach("resnet8", digits, runs=tmp_path, callbacks=[Watch()], **SHORT)
    first, head, last = seen[0], seen[3], seen[-1]  # the first epoch has four steps
    changed = {name for name in first if not torch.equal(first[name], head[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert all(not torch.equal(head[name], last[name]) for name in head if name.endswith("conv1.weight"))
    rates = [epoch["lr"] for epoch in history.epochs]
    assert history.summary["epochs"] == 3 and rates[0] < rates[1], "the schedule begins anew"
    network = training.load(history.folder)
    assert network.classes == digits.train.classes
    training.distill(
        [training.Student("resnet8", "kd")],
        digits,
        teacher=network,
        **{k: SHORT[k] for k in ("device",)},
        recipe=training.Recipe(epochs=1, batch_size=60),
        progress=False,
    )


def test_random_weights_are_noted(digits, monkeypatch, notes):
    monkeypatch.setattr(training.finetuning, "distill", lambda *_, **__: {"": None})
    training.teach("torchvision/resnet18(pretrained=True)", digits, runs=None)
    assert notes() == []
    for name in ("resnet8", "torchvision/resnet18", "torchvision/resnet18(pretrained=False)"):
        training.teach(name, digits, runs=None)
        (note,) = notes()
        assert note.startswith(f"note: {name} has no pretrained weights") and "training.pretrain" in note


def test_the_rates_of_both_parts_follow_a_cosine_in_each_phase(digits):
    rates = []

    class Watch(training.Callback):
        def step(self, loop):
            rates.append([group["lr"].item() for group in loop.states[0].optimizer.inner.param_groups])

    training.teach("resnet8", digits, runs=None, callbacks=[Watch()], lr=1e-3, lr_head=4e-3, **SHORT)
    # The first epoch has four steps. It is a phase of its own, before the eight steps of the second one.
    cosines = [(1 + math.cos(math.pi * step / steps)) / 2 for steps in (4, 8) for step in range(steps)]
    expected = [[0.0 if at < 4 else 1e-3 * share, 4e-3 * share] for at, share in enumerate(cosines)]
    assert torch.allclose(torch.tensor(rates), torch.tensor(expected), rtol=1e-4, atol=1e-9)


def test_a_linear_probe_visits_the_images_in_the_order_of_the_seed_at_a_cosine_rate(digits):
    given = {"epochs": 2, "batch_size": 50, "lr_head": 0.01, "data_seed": 3, "device": "cpu", "precision": "fp32"}
    history = training.teach("resnet8", digits, linear_probe=True, runs=None, progress=False, **given)
    train, network = digits.train, history.network
    features = models.predict(network, train, precision="fp32").features
    with runtime.seeded(0, "network"):
        head = models.create("resnet8", **train.spec).fc
    optimizer = torch.optim.AdamW(head.parameters(), 0.01, weight_decay=0.05)
    for step in range(6):
        if step % 3 == 0:
            order = torch.randperm(120, generator=runtime.generator(3, "order", step // 3)).split(40)
        rows = order[step % 3]
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 6)) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features[rows]), train.labels[rows]).backward()
        optimizer.step()
    assert torch.allclose(network.fc.weight, head.weight, atol=1e-6)
    assert [epoch["lr"] for epoch in history.epochs] == pytest.approx([0.0075, optimizer.param_groups[0]["lr"]])


def test_a_linear_probe_trains_the_classifier_alone(tmp_path):
    splits = data.load("digits", labels=400, val=0.1)
    history = training.teach(
        "resnet8", splits, linear_probe=True, epochs=30, lr_head=0.01, runs=tmp_path, device="cpu", name="probe"
    )
    loaded = training.load(tmp_path / "probe")
    assert history.summary["accuracy"] > 0.4 and history.summary["val_accuracy"] > 0.4
    assert torch.equal(loaded.fc.weight, history.network.fc.weight)
    again = training.teach(
        "resnet8", splits, linear_probe=True, epochs=30, lr_head=0.01, runs=tmp_path, device="cpu", name="probe"
    )
    assert again.summary == history.summary, "a finished run is loaded"
    with pytest.raises(InputError, match="contains a run with"):
        training.teach("resnet8", splits, linear_probe=True, epochs=3, runs=tmp_path, device="cpu", name="probe")


def test_a_linear_probe_that_was_stopped_begins_again(digits, tmp_path, monkeypatch):
    given = {"linear_probe": True, "epochs": 2, "device": "cpu", "name": "probe", "progress": False}
    finish = records.RunRecord.finish

    def stopped(*_):
        assert runtime.owner(tmp_path / "probe"), "the folder is locked"
        raise KeyboardInterrupt

    monkeypatch.setattr(records.RunRecord, "finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        training.teach("resnet8", digits, runs=tmp_path, **given)
    assert runtime.owner(tmp_path / "probe") is None
    used = []
    monkeypatch.setattr(records.RunRecord, "finish", lambda *a: used.append(torch.get_num_threads()) or finish(*a))
    with pytest.raises(InputError, match="was trained in fp32, not bf16"):
        training.teach("resnet8", digits, runs=tmp_path, precision="bf16", **given)
    with runtime.same_threads(2):
        history = training.teach("resnet8", digits, runs=tmp_path, **given)
    assert used == [1], "the number of threads that the run began with"
    whole = training.teach("resnet8", digits, runs=tmp_path / "whole", **given)
    assert torch.equal(history.network.fc.weight, whole.network.fc.weight) and history.summary["seconds"] > 0
    first, last = runs.records(runs.overview(tmp_path)[0])
    assert first["loss"] > last["loss"] > 0 and last["test_accuracy"] == history.summary["accuracy"]
    with pytest.raises(InputError, match="linear_probe=True does not use callbacks"):
        training.teach("resnet8", digits, runs=tmp_path, callbacks=[], **given)
    with pytest.raises(InputError, match="already contains a run"):
        training.teach("resnet8", digits, runs=tmp_path, resume=False, **given)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = "teach resnet8 --labels 60 --epochs 1 --batch-size 30 --device cpu"
    assert cli.main([*line.split(), "--name", "big", "--head-epochs", "1"]) == 0
    assert "use it as a teacher: --teacher runs/big" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/big/config.json").read_text())["settings"]["method"]["name"] == "finetune"
    assert cli.main([*line.split(), "--name", "probe", "--linear-probe"]) == 0
    for teacher in ("runs/big", "runs/probe"):
        assert cli.main(f"train --method kd --teacher {teacher} --labels 60 --epochs 1 --device cpu".split()) == 0
    capsys.readouterr()
    for wrong, message in (("--epochs 0", "a whole number of 1 or more"), ("--lr 0", "a finite number above 0")):
        assert cli.main([*line.split(), *wrong.split()]) == 2
        assert message in capsys.readouterr().err
