"""Networks that are extended to more classes than they were trained on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ickd_lib import models
from ickd_lib.runtime import InputError

pytestmark = pytest.mark.usefixtures("seeded")


class Small(nn.Module):
    """A user's network whose classifier is defined first; another layer has the same number of outputs."""

    def __init__(self, bias=True, after=None):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 5, bias=bias))
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.squeeze = nn.Linear(6, 5)
        self.after = after

    def forward(self, x):
        x = self.head(self.squeeze(self.body(x).mean((2, 3))))
        return x if self.after is None else self.after(x)


def check(network, extended, images, old_classes):
    """The logits of the old classes and the features have not changed."""
    with torch.no_grad():
        old, new = network.eval()(images), extended.eval()(images)
    torch.testing.assert_close(new.logits[:, :old_classes], old.logits, atol=1e-6, rtol=1e-6)
    assert torch.equal(new.features, old.features)
    assert new.logits.shape == (len(images), extended.num_classes)


@pytest.mark.parametrize("name", models.names())
def test_old_classes_keep_their_logits_in_every_zoo_network(name):
    network = models.create(name, 4)
    before = copy.deepcopy(network.state_dict())
    extended = models.extend(network, 7)
    assert extended is not network and extended.num_classes == 7 and network.num_classes == 4 and extended.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    state, changed = extended.state_dict(), []
    for key, value in before.items():
        if state[key].shape != value.shape:
            changed.append(key)
            assert torch.equal(state[key][:4], value) and len(state[key]) == 7
        else:
            assert torch.equal(state[key], value)  # batch-norm statistics too
    assert list(state) == list(before) and len(changed) == 2
    check(network, extended, torch.rand(2, 3, 8, 8), 4)


def test_new_rows_are_initialised_by_torch_from_the_global_generator():
    network = models.create("resnet8", 4)
    torch.manual_seed(3)
    linear = nn.Linear(64, 9)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    extended = models.extend(network, 9)
    assert torch.equal(torch.get_rng_state(), after)  # no other random numbers are drawn
    assert torch.equal(extended.fc.weight[4:], linear.weight[4:]) and torch.equal(extended.fc.bias[4:], linear.bias[4:])
    assert extended.fc.weight.requires_grad and extended.fc.weight.is_leaf and extended.fc.weight.grad is None
    assert not torch.equal(models.extend(network, 9).fc.weight, extended.fc.weight)


def test_the_name_and_other_attributes_are_copied():
    network = models.create("vgg8", 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).double().eval()
    network.name, network.classes, network.trained_on = "mine", ("a", "b", "c"), {"data": "digits"}
    network.classifier.requires_grad_(False)
    extended = models.extend(network, 4)
    assert (extended.name, extended.classes, extended.trained_on) == ("mine", ("a", "b", "c"), {"data": "digits"})
    assert torch.equal(extended.mean, network.mean) and torch.equal(extended.std, network.std)
    assert not any(part.training for part in extended.modules())
    assert extended.classifier.weight.dtype == torch.double and not extended.classifier.weight.requires_grad
    extended.trained_on["data"] = "other"
    assert network.trained_on == {"data": "digits"}
    assert models.extend(extended, 6).num_classes == 6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [None, "body"])
def test_wrapped_modules(bias, features):
    network = models.wrap(Small(bias), features=features, size=12, maps=["body"], name="mine")
    network.module.body[1].eval()
    extended = models.extend(network, 8)
    assert extended.training and extended.module.head.training and not extended.module.body[1].training
    assert extended.module.head[1].training and network.module.head[1].out_features == 5
    assert (extended.module.head[1].bias is not None) == bias and extended.module.squeeze.out_features == 5
    images = torch.rand(2, 3, 9, 9)
    check(network, extended, images, 5)
    assert torch.equal(extended(images, maps=True).maps[0], network(images, maps=True).maps[0])
    F.cross_entropy(extended(images).logits, torch.tensor([6, 7])).backward()
    assert network.module.head[1].weight.grad is None and extended.module.head[1].weight.grad.abs().max() > 0


def test_features_dim_grows_if_the_features_are_the_logits():
    extended = models.extend(models.wrap(Small(), features="head"), 8)
    assert extended.features_dim == 8 == extended(torch.rand(1, 3, 9, 9)).features.shape[1]


def test_torchvision_networks():
    pytest.importorskip("torchvision")
    network = models.create("torchvision/resnet18", 5)
    extended = models.extend(network, 6)
    assert extended.stages == network.stages
    check(network, extended, torch.rand(2, 3, 32, 32), 5)
    with pytest.raises(InputError, match=r"squeezenet1_1 cannot be extended: its classifier 'module.*Conv2d") as error:
        models.extend(models.create("torchvision/squeezenet1_1", 5), 6)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_classes", [4, 3, 0, -1])
def test_fewer_classes_are_refused(num_classes):
    with pytest.raises(InputError, match=f"num_classes={num_classes}, but resnet8 has 4") as error:
        models.extend(models.create("resnet8", 4), num_classes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("after", [nn.BatchNorm1d(5), lambda x: x[:, :5]], ids=["norm", "slice"])
def test_modules_with_a_fixed_number_of_classes_are_refused(after):
    network = models.wrap(Small(after=after))
    with pytest.raises(
        InputError, match=r"Small cannot be extended: .*'module.head.1' it does not return 9 logits"
    ) as error:
        models.extend(network, 9)
    assert "\n" not in str(error.value) and network.num_classes == 5
    assert network(torch.rand(2, 3, 9, 9)).logits.shape == (2, 5)
