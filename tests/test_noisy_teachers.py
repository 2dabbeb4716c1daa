"""Targets of a teacher that is often wrong: what each is, and that the script trains each once."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import noisy_teachers as noisy

from ickd_lib import data, models
from ickd_lib.memory import MemoryBank


@pytest.fixture
def bank():
    """30 rows of three classes, of which the teacher predicts all but the first two rightly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    logits = torch.randn(30, 3, generator=generator) + 6 * torch.eye(3)[labels]
    logits[:2] = torch.tensor([0.0, 1.0, 5.0])
    features = torch.eye(3)[labels] + 0.2 * torch.randn(30, 3, generator=generator)
    return MemoryBank(features, logits, labels, torch.arange(30) + 100, ("a", "b", "c"))


def test_predictions_of_the_kinds(bank):
    clean, noise, of_class, at_1 = (noisy.predictions(bank.logits, bank.labels, kind, 0) for kind in noisy.KINDS)
    assert torch.equal(clean, (bank.logits / 4).softmax(1))
    assert float((noise.argmax(1) != bank.labels).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert not torch.equal(noise, noisy.predictions(bank.logits, bank.labels, "noise", 1))
    assert torch.equal(of_class, torch.eye(3)[bank.logits.argmax(1)]) and torch.equal(at_1, of_class)


def test_each_target_is_what_it_states(bank):
    clean = noisy.predictions(bank.logits, bank.labels, "clean", 0)
    found = {name: (noisy.target(bank, clean, name, 0) / 4).softmax(1) for name in noisy.TARGETS}
    torch.testing.assert_close(found["own"], clean)
    assert torch.equal(found["corrected"].argmax(1), bank.labels)
    torch.testing.assert_close(found["corrected"][2:], clean[2:])
    others = [i for i in range(30) if bank.labels[i] == bank.labels[7] and i != 7]
    torch.testing.assert_close(found["mean"][7], clean[others].mean(0))
    for name, near in (
        ("nearest", bank.retrieve(bank.features, bank.labels, bank.index, positives=8, negatives=0)[0]),
        ("any", bank.nearest(bank.features, bank.index, k=8)),
    ):
        weights = (near.similarity / 0.05).softmax(1)
        expected = (weights[..., None] * clean[bank.rows(near.index)]).sum(1)
        torch.testing.assert_close(found[name], expected)
        assert not bool((near.index == bank.index[:, None]).any()), "an image is not its own neighbour"
    drawn, _ = bank.random_table(positives=8, negatives=0, seed=0)
    assert bool((bank.labels[drawn.rows] == bank.labels[:, None]).all())
    assert not torch.allclose(found["random"], found["nearest"])


def test_a_class_alone_becomes_the_share_of_votes(bank):
    votes = noisy.predictions(bank.logits, bank.labels, "class", 0)
    for temperature in (4.0, 1.0):
        found = (noisy.target(bank, votes, "mean", 0, temperature=temperature) / temperature).softmax(1)
        counts = 9 * found[3]  # of the nine other images of its class, the teacher takes one for class c
        torch.testing.assert_close(counts, torch.tensor([8.0, 0.0, 1.0]), atol=1e-3, rtol=0)


def test_each_student_is_trained_once_and_reported(monkeypatch, cifar_root, tmp_path, capsys, own_methods):
    whole = data.load
    monkeypatch.setattr(noisy.data, "load", lambda *given: whole(*given, labels=100, classes=["fish"]))
    for name, value in {"TEACHERS": ("resnet8",), "IMAGES": 50, "EPOCHS": 1, "POSITIVES": 2}.items():
        monkeypatch.setattr(noisy, name, value)
    monkeypatch.setattr(noisy, "KINDS", {kind: noisy.KINDS[kind] for kind in ("clean", "class_1")})
    monkeypatch.setattr(noisy, "TARGETS", {one: noisy.TARGETS[one] for one in ("own", "nearest")})
    torch.save(models.create("resnet8", 5).state_dict(), tmp_path / "t.pth")
    argv = ["noisy_teachers.py", "--data-root", str(cifar_root), "--device", "cpu", "--runs", str(tmp_path / "runs")]
    argv += ["--weights", f"resnet8={tmp_path / 't.pth'}", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    assert noisy.main() == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert len(files) == 2 * (1 + 4)
    assert {path.parts[-3] for path in files if "temperature=1" in path.name} == {"class_1"}
    assert noisy.main() == 0 and files == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*argv, "--report"])
    assert noisy.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("| 2 | ") == 5 and "| labels alone | 2 | " in printed
    assert sum(" to " in line.split("|")[5] for line in printed.splitlines()[2:] if line) == 2
