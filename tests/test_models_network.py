"""What all networks share: the classifier, identity and frozen copies, the printed text, the package's names."""

from __future__ import annotations

import copy
import pickle
import pkgutil
from types import ModuleType

import pytest
import torch
from torch import nn

from ickd_lib import models, runtime
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("seeded")


class Reordered(nn.Module):
    """A user's network whose classifier is defined first; it has batch norm, dropout and noise."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5))
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze = nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.head(self.squeeze(x + 0.01 * torch.rand_like(x)))


class Unlearned(Network):
    """A network without a linear layer or convolution: its logits are the mean colours, scaled."""

    def __init__(self):
        super().__init__(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward_normalised(self, x):
        features = x.mean((2, 3))
        return Output(features * self.scale, features)


class Fixed(Network):
    """A network for images of 8x8 pixels only."""

    def __init__(self):
        super().__init__(5, 192)
        self.head = nn.Linear(192, 5)

    def forward_normalised(self, x):
        return Output(self.head(x.flatten(1)), x.flatten(1))


def test_no_attribute_of_the_package_hides_a_module():
    for module in pkgutil.iter_modules(models.__path__):
        assert isinstance(getattr(models, module.name, ModuleType("")), ModuleType), module.name
    assert all(hasattr(models, name) for name in models.__all__)


# ------------------------------------------------------------------------------------------- the classifier


@pytest.mark.parametrize("name", models.names())
def test_the_classifier_of_every_zoo_network_is_its_last_linear_layer(name):
    network = models.create(name, 7)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    layer, module = models.classifier(network)
    defined = [part for part in network.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    assert module is defined[-1] is network.get_submodule(layer) and module.out_features == 7
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(part.training and not part._forward_hooks for part in network.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_the_classifier_runs_last_and_nothing_changes():
    module = Reordered().double()
    module.norm.eval()
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    assert models.classifier(module) == ("head.1", module.head[1])
    assert models.classifier(models.wrap(module, size=12)) == ("module.head.1", module.head[1])
    assert models.classifier(nn.Sequential(module, nn.Softmax(1))) == ("0.head.1", module.head[1])
    models.wrap(module, maps=["conv"])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert module.training and module.head[0].training and not module.norm.training


def test_a_network_may_have_no_classifier():
    name, module = models.classifier(Unlearned())
    assert name == "" and isinstance(module, nn.Identity) and not list(module.parameters())
    with pytest.raises(InputError, match="Unlearned cannot be extended: no linear layer computes its logits") as error:
        models.extend(Unlearned(), 4)
    assert "\n" not in str(error.value)
    layer = nn.Conv2d(3, 4, 1)
    assert models.classifier(layer) == ("", layer)


def test_the_image_size_can_be_given():
    network = Fixed()
    assert models.classifier(network, size=(8, 8)) == ("head", network.head)
    with pytest.raises(
        InputError, match=r"Fixed cannot run on black images \(32x32 gives RuntimeError: .*size="
    ) as error:
        models.classifier(network)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- identity and frozen copies


@pytest.fixture
def hashes(monkeypatch):
    """The number of fingerprints that have been computed, as the length of a list."""
    computed, fingerprint = [], runtime.fingerprint

    def counting(*parts):
        computed.append(len(parts))
        return fingerprint(*parts)

    monkeypatch.setattr(runtime, "fingerprint", counting)
    return computed


def teacher():
    network = models.create("resnet8", 4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    network.classes, network.trained_on = ("a", "b", "c", "d"), {"data": "digits"}
    return network


def test_identity_depends_on_weights_preprocessing_and_facts():
    network = teacher()
    seen = {network.identity}
    assert copy.deepcopy(network).eval().to(memory_format=torch.channels_last).identity in seen
    with torch.no_grad():
        network.fc.bias[0] += 1
    seen.add(network.identity)
    network.bn1.running_mean += 1
    seen.add(network.identity)
    network.set_normalisation((0, 0, 0), (1, 1, 1))
    seen.add(network.identity)
    network.classes = ("b", "a", "c", "d")
    seen.add(network.identity)
    network.stages = ("layer1",)
    seen.add(network.identity)
    assert len(seen) == 6
    wrapped = [models.wrap(Reordered(), features=layer) for layer in ("squeeze", "head", None)]
    for network in wrapped[1:]:
        network.load_state_dict(wrapped[0].state_dict())
    assert len({network.identity for network in wrapped}) == 3


def test_a_frozen_copy_computes_its_identity_once(hashes):
    network = teacher()
    network.layer1.eval()
    expected = network.identity
    before = copy.deepcopy(network.state_dict())
    hashes.clear()
    copied = models.frozen(network, CPU)
    assert sum(parts > 4 for parts in hashes) >= 1
    hashes.clear()
    images = torch.rand(2, 3, 16, 16)
    for _ in range(3):
        assert copied.identity == expected
        copied(images.requires_grad_()).logits.sum().backward()  # through the network, to its images
    with torch.inference_mode():
        assert copied(images).logits.shape == (2, 4) and copied.identity == expected
    assert models.classifier(copied)[0] == "fc" and models.frozen(copied, CPU).identity == expected and not hashes

    assert copied is not network and not any(part.training for part in copied.modules())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert copied.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert (copied.name, copied.classes, copied.trained_on) == (network.name, network.classes, network.trained_on)
    assert network.training and not network.layer1.training and network.fc.weight.requires_grad
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    network.fc.bias.data.zero_()
    assert copied.identity == expected != network.identity


def step(network):
    """One training step with momentum, as `distill` takes it."""
    network.requires_grad_(True).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    network(torch.rand(4, 3, 8, 8)).logits.square().sum().backward()
    optimizer.step()


def batch_statistics(network):
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 8, 8))


def in_place(network):
    with torch.no_grad():
        network.fc.weight[0, 0] += 1


def in_inference_mode(network):
    with torch.inference_mode():
        network.fc.weight[0, 0] += 1


def renamed(network):
    network.classes = ("z", *network.classes[1:])


CHANGES = {
    "a training step": step,
    "batch statistics": batch_statistics,
    "in place": in_place,
    "in place in inference mode": in_inference_mode,
    "loaded weights": lambda network: network.load_state_dict(models.create("resnet8", 4).state_dict()),
    "assigned weights": lambda network: network.load_state_dict(models.create("resnet8", 4).state_dict(), assign=True),
    "lower precision and back": lambda network: network.half().float(),
    "another precision": lambda network: network.double(),
    "replaced layer": lambda network: setattr(network, "fc", nn.Linear(64, 4)),
    "replaced data": lambda network: setattr(network.fc.weight, "data", network.fc.weight.data + 1),
    "normalisation": lambda network: network.set_normalisation((0, 0, 0), (1, 1, 1)),
    "classes": renamed,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("twin", [None, copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_changed_copy_does_not_keep_its_stored_identity(change, twin):
    network = models.frozen(teacher(), CPU)
    stored = network.identity
    if twin is not None:
        network = twin(network)
        assert network.identity == stored and network._stored_identity is None
    CHANGES[change](network)
    fresh = copy.deepcopy(network)
    assert fresh._stored_identity is None
    assert network.identity == fresh.identity != stored
    assert models.frozen(network, CPU).identity == fresh.identity


def test_a_copy_made_in_inference_mode_can_be_used_outside():
    with torch.inference_mode():
        copied = models.frozen(teacher(), CPU)
        from_inference = models.frozen(models.wrap(Reordered()), CPU)
    assert copied.identity == copy.deepcopy(copied).identity and not copied.fc.weight.is_inference()
    assert from_inference.identity and not from_inference.mean.is_inference()
    step(copied)


# ------------------------------------------------------------------------------------------ the printed text


def test_a_network_is_printed_in_two_lines():
    network = models.create("resnet20", 100)
    assert repr(network) == "resnet20: 100 classes, 64 features, 278,324 parameters"
    network.trained_on = {"data": "cifar100/train", "labels": 50000}
    assert str(network).splitlines()[1:] == ["  trained on: data cifar100/train, labels 50000"]
    tree = network.describe()
    assert tree == nn.Module.__repr__(network) and "(layer1): Sequential" in tree and len(tree) > 2000
    assert "(module): Reordered" in models.wrap(Reordered()).describe()


def test_predict_returns_each_submodule_to_its_mode(digits):
    network = models.create("resnet8", 10)
    network.layer1.eval()
    output = models.predict(network, digits.test.subset(torch.arange(70)), batch_size=32)
    assert output.logits.shape == (70, 10) and output.features.shape == (70, 64) and output.maps == ()
    assert network.training and network.layer2.training and not any(part.training for part in network.layer1.modules())
