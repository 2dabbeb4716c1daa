"""A teacher with folded batch normalisation and weights in bf16 outputs what the teacher outputs."""

import pytest
import torch
from torch import nn

from ickd_lib import models, runtime, training
from ickd_lib.models import Network, Output
from ickd_lib.training import Recipe, Student
from ickd_lib.training.teacher_source import TeacherPass


def trained_statistics(network):
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    return models.frozen(network, torch.device("cpu"))


def norms(network):
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


@pytest.mark.parametrize(
    "name, left",
    [
        ("resnet32x4", 0),
        ("wrn_16_2", 6),
        ("vgg8", 0),
        ("ShuffleV1", 0),
        ("MobileNetV2", 0),
        ("torchvision/resnet18", 0),
    ],
)
def test_the_copy_has_the_outputs_and_maps_of_the_network(name, left):
    with runtime.seeded(0):
        network = trained_statistics(models.create(name, num_classes=10))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    copy = models.folded(network, (32, 32))
    # In a WRN, most batch normalisation comes before a convolution.
    assert norms(copy) == left < norms(network)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert {part.weight.dtype for part in copy.modules() if isinstance(part, (nn.Conv2d, nn.Linear))} == {
        torch.bfloat16
    }
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        wanted = network(images, maps=True)
        with runtime.autocast(torch.device("cpu"), "bf16"):
            found, plain = copy(images, maps=True), network(images, maps=True)

    def error(one, other):
        return (one.float() - other).norm() / other.norm()

    outputs = [
        (output.logits, output.features, output.unpooled, *output.maps, *output.preactivations)
        for output in (found, plain, wanted)
    ]
    for one, other, exact in zip(*outputs, strict=True):  # no worse than autocast alone
        assert one.shape == exact.shape and error(one, exact) < 2 * error(other, exact) + 1e-3


class Reading(Network):
    """Reads a parameter of its batch normalisation, which a folded copy does not have."""

    def __init__(self, twice: bool):
        super().__init__(10, 4)
        self.conv, self.norm, self.fc, self.twice = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10), twice

    def forward_normalised(self, x):
        x = self.conv(x)
        y = self.norm(x) + x if self.twice else self.norm(x) * self.norm.weight[:, None, None]
        features = y.mean((2, 3))
        return Output(self.fc(features), features)


def test_a_network_whose_maps_are_those_of_convolutions_is_not_copied():
    """In the copy, the output of a convolution is that after its batch normalisation."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

        def forward(self, x):
            return self.fc(self.norm(self.conv(x)).mean((2, 3)))

    with runtime.seeded(0):
        module = Small()
    for maps, copied in (((), True), (("norm",), True), (("conv",), False)):
        network = trained_statistics(models.wrap(module, maps=maps, size=32))
        assert (models.folded(network, (32, 32)) is not None) == copied, maps


@pytest.mark.parametrize("twice", [True, False])
def test_a_network_that_uses_its_layers_otherwise_is_not_copied(twice):
    with runtime.seeded(0):
        network = trained_statistics(Reading(twice))
    assert models.folded(network, (32, 32)) is None


def test_a_training_in_bf16_uses_and_records_it(digits, teacher, tmp_path, monkeypatch):
    used = []
    start = TeacherPass.__init__

    def spied(self, task, network, **given):
        used.append(norms(network))
        start(self, task, network, **given)

    monkeypatch.setattr(TeacherPass, "__init__", spied)
    recipe = Recipe(epochs=1, batch_size=60)
    given = {"teacher": teacher, "recipe": recipe, "device": "cpu", "progress": False}
    for precision, left in (("bf16", 0), ("fp32", norms(teacher))):
        students = [Student("resnet8", "kd", name=precision)]
        (history,) = training.distill(students, digits, precision=precision, runs=tmp_path, **given).values()
        assert history.epochs[0]["loss"] > 0
        numerics = runtime.Run(tmp_path / precision).config["numerics"]
        assert numerics.get("teacher_folded", False) == (left == 0) and used.pop() == left
    training.distill([Student("resnet8", "kd")], digits, precision="bf16", teacher_cache=tmp_path / "cache", **given)
    training.distill([Student("resnet8", "ce")], digits, precision="bf16", **given)
    assert not used
