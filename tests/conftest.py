"""Shared by the tests: small real data, a small trained teacher, CIFAR-100 where its folder is named."""

import os
from pathlib import Path

import pytest
import torch

from ickd_lib import data, training
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import registry
from ickd_lib.runtime import errors

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose much when the machine is busy


@pytest.fixture(scope="session")
def digits() -> data.Splits:
    """The digits with 120 labelled training images."""
    return data.load("digits", labels=120)


@pytest.fixture(scope="session")
def teacher(digits):
    """A resnet8 that has seen the 120 images for a few epochs."""
    recipe = training.Recipe(epochs=4, lr=0.05, schedule="cosine", batch_size=30)
    students = [training.Student("resnet8", "ce", 7)]
    (history,) = training.distill(students, digits, recipe=recipe, device="cpu", progress=False).values()
    return history.network


@pytest.fixture(scope="session")
def bank(teacher, digits) -> MemoryBank:
    return MemoryBank.build(teacher, digits.train, precision="fp32")


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """The folder that holds cifar-100-python, named by ICKD_CIFAR100."""
    root = os.environ.get("ICKD_CIFAR100", "")
    if not Path(root, "cifar-100-python", "train").is_file():
        pytest.skip("set ICKD_CIFAR100 to the folder that holds cifar-100-python to run the tests on CIFAR-100")
    return Path(root)


@pytest.fixture
def own_methods(monkeypatch):
    """Methods that a test registers disappear with it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture
def notes(monkeypatch, capsys):
    """Returns the notes that were printed since the last call."""
    monkeypatch.setattr(errors, "_noticed", set())
    return lambda: [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


@pytest.fixture
def untouched_generator():
    """Asserts that the test left torch's global generator, on which a caller may rely, where it was."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def seeded():
    """The test draws from torch's global generator, from a seed; afterwards the generator is where it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
