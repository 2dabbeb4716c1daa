"""Networks of your own that are created by name."""

import json

import pytest
import torch
from torch import nn

from ickd_lib import __main__ as cli
from ickd_lib import data, export, models, training
from ickd_lib.models.registered import REGISTRY
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student

SHORT = {"recipe": Recipe(epochs=1, lr=0.05), "device": "cpu", "progress": False}


class Plain(nn.Module):
    """A network that returns logits alone."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.body(images))


@pytest.fixture
def plain():
    before = REGISTRY.copy()
    yield models.register("plain")(Plain)
    REGISTRY.clear()
    REGISTRY.update(before)


def test_a_class_is_created_by_name(plain):
    assert "plain" in models.names()
    network = models.create("Plain(width=4)", 5, mean=(0.1, 0.2, 0.3), std=(1, 2, 1))
    assert (network.name, network.num_classes, network.features_dim) == ("plain(width=4)", 5, 4) and network.training
    assert network.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network(images).logits, network.module((images - network.mean) / network.std))


def test_a_function_may_return_a_network_with_its_own_normalisation(plain):
    models.register("own")(lambda num_classes: models.wrap(Plain(num_classes), mean=(0.5,) * 3, std=(2,) * 3))
    network = models.create("own", 3, mean=(0.1,) * 3, std=(1,) * 3)
    assert network.mean.flatten().tolist() == [0.5] * 3 and network.name == "own"
    models.register("bare")(lambda num_classes: models.wrap(Plain(num_classes)))
    assert models.create("bare", 3, mean=(0.25,) * 3, std=(2,) * 3).mean.flatten().tolist() == [0.25] * 3


def test_its_students_have_seeds_and_their_runs_are_loaded(plain, tmp_path, capsys):
    few = data.load("digits", labels=50)
    found = training.compare(["ce", "ls"], few, student="plain", seeds=2, runs=tmp_path, **SHORT)
    one, other = found["ce"]
    assert not torch.equal(one.network.module.head.weight, other.network.module.head.weight)
    loaded = training.load(one.folder, device="cpu")
    assert torch.equal(loaded.module.head.weight, one.network.module.head.weight)
    (again,) = training.distill([Student("plain", "ce", 0)], few, runs=tmp_path, **SHORT).values()
    assert again.folder == one.folder
    (wider,) = training.distill([Student("plain(width=9)", "ce", 0)], few, runs=tmp_path, **SHORT).values()
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert "plain(width=9)" in (tmp_path / "page.html").read_text()
    assert cli.main(["evaluate", str(one.folder), "--device", "cpu"]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)
    written = export.write(one.folder, tmp_path / "plain.pt2", few, format="pt2")
    assert written.difference < 1e-5
    plain.__init__.__defaults__ = (9,)
    try:  # the same name, and another architecture
        (changed,) = training.distill([Student("plain", "ce", 0)], few, runs=tmp_path, **SHORT).values()
    finally:
        plain.__init__.__defaults__ = (8,)
    del REGISTRY["plain"]
    with pytest.raises(InputError, match="import the module that registers the name"):
        training.load(one.folder)
    assert cli.main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert "cannot be built from their folders" in (tmp_path / "page.html").read_text()
    assert len({one.folder, wider.folder, changed.folder}) == 3


def test_it_can_be_a_teacher(plain, digits, tmp_path):
    few = digits._replace(train=digits.train.few(50, 0))
    teacher = training.pretrain("plain", few, runs=tmp_path, **SHORT)
    assert teacher.name == "plain" and teacher.mean.any()
    (history,) = training.distill([Student("resnet8", "kd")], few, teacher=teacher, **SHORT).values()
    assert history.summary["accuracy"] > 0


def test_mistakes(plain):
    for name in ("", "resnet20", "ResNet20", "torchvision/x", "a-fcn", "a.py", "a(b"):
        with pytest.raises(InputError, match="choose another name"):
            models.register(name)
    with pytest.raises(InputError, match="network 'plain' is already registered"):
        models.register("plain")(nn.Linear)
    with pytest.raises(InputError, match=r"plain cannot be created: TypeError.*depth"):
        models.create("plain(depth=3)", 5)
    with pytest.raises(InputError, match="did you mean 'plain'"):
        models.create("plainn", 5)
    with pytest.raises(InputError, match="no pretrained weights"):
        models.create("plain", 5, pretrained=True)
    models.register("five")(lambda num_classes: Plain(5))
    with pytest.raises(InputError, match="five has 5 classes, but 7 were requested"):
        models.create("five", 7)
    models.register("none")(lambda num_classes: None)
    with pytest.raises(InputError, match=r"none returned a NoneType; expected a torch\.nn\.Module"):
        models.create("none", 7)
