"""Feature maps of a network's stages, which hooks collect during one pass."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from test_models import Tokens, one_line
from torch import nn

from ickd_lib import models
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError

# Channels and side of each map for an image of 32x32 pixels.
MAPS = {
    "resnet8": [(16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "ResNet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "ResNet50": [(256, 32), (512, 16), (1024, 8), (2048, 4)],
    "wrn_16_2": [(32, 32), (64, 16), (128, 8)],
    "vgg8": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "MobileNetV1": [(128, 8), (256, 4), (512, 2), (1024, 1)],
    "MobileNetV2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "ShuffleV1": [(240, 16), (480, 8), (960, 4)],
    "ShuffleV2": [(116, 16), (232, 8), (464, 4)],
}


pytestmark = pytest.mark.usefixtures("seeded")


def hooks(network: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules())


class InPlace(nn.Module):
    """A user's network whose ReLU overwrites the output of the layer before it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.deep = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.pair = Pair()
        self.head = nn.Linear(4, 5)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.deep(self.relu(self.norm(self.conv(x))))
        return self.head(self.pair(x)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x, None


@pytest.mark.parametrize("name", models.names())
def test_every_zoo_network_has_maps_of_falling_size(name):
    network = models.create(name, 7).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        plain, full = network(images), network(images, maps=True)
    assert plain.maps == () and isinstance(full, Output)
    assert torch.equal(plain.logits, full.logits) and torch.equal(plain.features, full.features)
    assert len(full.maps) == len(network.stages) >= 3
    sides = [x.shape[2] for x in full.maps]
    assert sides == sorted(sides, reverse=True) and all(x.ndim == 4 and len(x) == 2 for x in full.maps)
    assert hooks(network) == 0


@pytest.mark.parametrize("name", MAPS)
def test_shapes_of_maps(name):
    with torch.no_grad():
        maps = models.create(name).eval()(torch.rand(1, 3, 32, 32), maps=True).maps
    assert [(x.shape[1], x.shape[2]) for x in maps] == MAPS[name]


def test_maps_equal_the_stages_run_by_hand_and_carry_gradient():
    network = models.create("resnet8", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).eval()
    images = torch.rand(2, 3, 12, 12)
    out = network(images, maps=True)
    x = F.relu(network.bn1(network.conv1((images - network.mean) / network.std)))
    for stage, found in zip((network.layer1, network.layer2, network.layer3), out.maps, strict=True):
        x = stage(x)
        assert torch.equal(x, found)
    assert torch.equal(out.maps[2].mean((2, 3)), out.features)
    out.maps[0].square().mean().backward()
    assert network.conv1.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in network.layer2.parameters())
    with torch.inference_mode():
        assert torch.equal(network(images, maps=True).maps[1], out.maps[1])


@pytest.mark.parametrize("name", [*MAPS, "torchvision/resnet18", "torchvision/resnet50"])
def test_maps_before_activation_and_before_pooling(name):
    if "/" in name:
        pytest.importorskip("torchvision")
    network = models.create(name, 5)
    with (
        torch.no_grad()
    ):  # in training mode, since batch norm of fresh running statistics may leave all values positive
        out = network(torch.rand(2, 3, 40, 40), maps=True)
        assert torch.allclose(out.unpooled.mean((2, 3)), out.features, atol=1e-5)
        assert [x.shape for x in out.preactivations] == [x.shape for x in out.maps]
        if not network.activations:
            assert name in ("MobileNetV2", "ShuffleV2") and out.preactivations is out.maps
        elif name.startswith("wrn"):  # its maps are the values before batch norm
            assert torch.equal(out.unpooled, out.preactivations[-1].relu())
            norm = copy.deepcopy(network.block2.layer[0].bn1)
            assert torch.equal(norm(out.maps[0]), out.preactivations[0])
        else:
            for before, after in zip(out.preactivations, out.maps, strict=True):
                assert before.min() < 0 and torch.equal(before.relu(), after)


def test_no_hooks_and_maps_remain_after_a_pass_or_an_error(monkeypatch):
    network = models.create("resnet8")
    out = network(torch.rand(2, 3, 8, 8), maps=True)
    alive = weakref.ref(out.maps[0])
    assert alive() is not None and hooks(network) == 0
    del out
    assert alive() is None
    monkeypatch.setattr(network.layer3, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        network(torch.rand(2, 3, 8, 8), maps=True)
    assert hooks(network) == 0


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_copy_collects_its_own_maps(wrapped):
    network = models.wrap(InPlace().eval(), maps=["conv", "deep"]) if wrapped else models.create("resnet8").eval()
    network.classes = ("a", "b")
    images = torch.rand(2, 3, 8, 8)
    before = network(images, maps=True).maps
    twin = copy.deepcopy(network)
    assert twin.stages == network.stages and twin.classes == ("a", "b")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    other, after = twin(images, maps=True).maps, network(images, maps=True).maps
    for old, own, new in zip(before, after, other, strict=True):
        assert torch.equal(old, own) and not torch.allclose(old, new)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"Headless names no stages .*stages = \('layer1', …\)"),
        (("conf",), "Headless has no layer 'conf'"),
        (("idle",), "'idle' of Headless does not run"),
        (("head",), r"'head' of Headless returns shape \[2, 5\]; maps must be"),
    ],
)
def test_the_error_names_the_stage_that_has_no_map(given, message):
    class Headless(Network):
        stages = given

        def __init__(self):
            super().__init__(5, 3)
            self.conv = nn.Conv2d(3, 3, 1)
            self.idle = nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(3, 5)

        def forward_normalised(self, x):
            features = self.conv(x).mean((2, 3))
            return Output(self.head(features), features)

    network, images = Headless(), torch.rand(2, 3, 8, 8)
    with pytest.raises(InputError, match=message) as error:
        network(images, maps=True)
    one_line(error)
    assert hooks(network) == 0 and network(images).maps == ()


# ------------------------------------------------------------------------------------------- wrapped modules


def test_wrapped_maps_are_the_values_before_an_in_place_relu():
    module = InPlace().eval()
    network = models.wrap(module, maps=("norm", "DEEP", "pair"), size=10)
    assert network.stages == ("module.norm", "module.deep", "module.pair")
    images = torch.rand(2, 3, 10, 10)
    out = network(images, maps=True)
    normed = module.norm(module.conv(images))
    assert normed.min() < 0 and torch.equal(out.maps[0], normed)
    assert torch.equal(out.maps[1], module.deep(normed.relu())) and torch.equal(out.maps[2], out.maps[1])
    assert torch.equal(out.logits, network(images).logits) and network(images).maps == ()
    out.maps[0].sum().backward()
    assert module.conv.weight.grad is not None and module.deep.weight.grad is None
    assert models.wrap(module, maps="norm").stages == ("module.norm",)
    assert hooks(network) == 0


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (["norm", "dep"], "unknown layer of InPlace 'dep'; did you mean 'deep'"),
        (["unused"], "'module.unused' of InPlace does not run"),
        (["head"], r"'module.head' of InPlace returns shape \[2, 5\]"),
    ],
)
def test_wrap_refuses_layers_without_a_map(maps, message):
    module = InPlace()
    with pytest.raises(InputError, match=message) as error:
        models.wrap(module, maps=maps)
    one_line(error)
    assert module.norm.num_batches_tracked == 0 and module.training and hooks(module) == 0


def test_channels_that_come_last_are_features_but_no_map():
    class Last(nn.Module):
        """As a Swin transformer: a normalisation of [B, H, W, C], before the mean and the classifier."""

        def __init__(self):
            super().__init__()
            self.conv, self.block, self.norm = nn.Conv2d(3, 6, 4, 4), nn.Identity(), nn.LayerNorm(6)
            self.fc = nn.Linear(6, 10)

        def forward(self, x):
            return self.fc(self.norm(self.block(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))

    module = Last()
    network = models.wrap(module, features="norm", size=32)
    assert network.features_dim == 6
    images = torch.rand(2, 3, 32, 32)
    output = network.eval()(images)
    torch.testing.assert_close(output.logits, module.fc(output.features))
    with pytest.raises(
        InputError, match=r"layer 'block' of Last returns \[2, 8, 8, 6\], whose channels seem to come last"
    ):
        models.wrap(module, maps=("block",), size=32)
    with pytest.raises(
        InputError, match=r"layer 'block' computes features \[2, 8, 8, 6\], whose channels seem"
    ) as error:
        models.wrap(module, features="block", size=32)
    one_line(error)
    assert models.wrap(module, maps=("conv",), size=32).stages == ("module.conv",)


def test_tokens_are_not_a_map():
    with pytest.raises(InputError, match=r"'module.mix' of Tokens returns shape \[2, 64, 8\]; maps must be") as error:
        models.wrap(Tokens(), maps=["embed", "mix"])
    one_line(error)
    assert models.wrap(Tokens(), maps=["embed"])(torch.rand(1, 3, 16, 16), maps=True).maps[0].shape == (1, 8, 4, 4)
    with pytest.raises(InputError, match=r"Tokens names no stages .*models.wrap\(module, maps="):
        models.wrap(Tokens())(torch.rand(1, 3, 16, 16), maps=True)


def test_torchvisions_resnets_name_their_stages():
    pytest.importorskip("torchvision")
    network = models.create("torchvision/resnet18", 5).eval()
    images, expected = torch.rand(2, 3, 64, 64), []
    with torch.no_grad():
        maps = network(images, maps=True).maps
        x = network.module.maxpool(network.module.relu(network.module.bn1(network.module.conv1(images))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = network.module.get_submodule(stage)(x)
            expected.append(x)
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    assert models.create("torchvision/squeezenet1_1", 5).stages == ()


def test_timms_resnets_name_their_stages():
    pytest.importorskip("timm", reason="timm is not installed")
    network = models.create("timm/resnet10t", 5).eval()
    with torch.no_grad():
        maps = network(torch.rand(1, 3, 64, 64), maps=True).maps
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_classes_are_unknown_until_set():
    assert models.create("resnet8").classes == () == models.wrap(InPlace()).classes
