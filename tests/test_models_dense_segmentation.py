"""Networks for segmentation: the zoo with a fully convolutional head, torchvision's networks and wrapped modules."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ickd_lib import models
from ickd_lib.models.backbone import Backbone
from ickd_lib.runtime import InputError

pytestmark = pytest.mark.usefixtures("seeded")

CPU = torch.device("cpu")
FAMILIES = ["resnet8", "resnet8x4", "ResNet18", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
TORCHVISION = {  # features, stride, maps
    "fcn_resnet50": (512, 8, 4),
    "deeplabv3_resnet50": (256, 8, 4),
    "lraspp_mobilenet_v3_large": (128, 8, 2),
}


def refused(message, make):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ the zoo


def test_every_zoo_network_has_a_segmentation_network():
    assert models.names("segmentation") == [f"{name}-fcn" for name in models.names()]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_features_have_stride_4(name):
    network = models.create(f"{name}-fcn", 5)
    images = torch.rand(2, 3, 64, 96)
    output = network(images, maps=True)
    assert output.logits.shape == (2, 5, 16, 24) and output.features.shape == (2, network.features_dim, 16, 24)
    assert (network.task, network.stride, network.name, network.training) == ("segmentation", 4, f"{name}-fcn", True)
    torch.testing.assert_close(output.logits, network.classifier(output.features))
    assert models.classifier(network) == ("classifier", network.classifier)

    shapes = [tuple(one.shape[1:]) for one in output.maps]
    assert shapes == models.map_shapes(network, (64, 96))
    whole = models.map_shapes(models.create(name, 5), (64, 96))
    halved = whole[0][1] == 64  # a network whose first stage keeps the size of the image has a stem of stride 2
    assert shapes == [(channels, h // 2, w // 2) if halved else (channels, h, w) for channels, h, w in whole]
    output.logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network(images.requires_grad_()).logits.requires_grad


def test_images_of_any_size():
    network = models.create("resnet8-fcn", 11).eval()
    for height, width in ((180, 240), (96, 96), (90, 50)):
        logits = network(torch.rand(1, 3, height, width)).logits
        assert logits.shape == (1, 11, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_of_the_last_map_is_the_features(name):
    network = models.create(name, 5).eval()
    images = torch.rand(2, 3, 64, 64)
    features = network(images).features
    maps = Backbone(network).eval()(images)
    torch.testing.assert_close(maps[-1].mean((2, 3)), features)


def test_names_in_any_case_and_the_nearest_name():
    assert models.create("RESNET8-FCN", 3).name == "resnet8-fcn"
    refused("unknown model 'resnet8-fcnn'; did you mean 'resnet8-fcn'", lambda: models.create("resnet8-fcnn"))
    refused("unknown torchvision model 'deeplab_resnet50'", lambda: models.create("torchvision/deeplab_resnet50"))
    refused("unknown task 'segmentations'; did you mean 'segmentation'", lambda: models.names("segmentations"))
    refused("no pretrained weights", lambda: models.create("resnet8-fcn", pretrained=True))
    refused("no option min_size", lambda: models.create("resnet8-fcn", min_size=100))
    refused("pretrained='bone'; it is True", lambda: models.create("resnet8-fcn", pretrained="bone"))
    refused("num_classes=0", lambda: models.create("resnet8-fcn", 0))
    refused("a classifier takes True", lambda: models.create("torchvision/resnet18", pretrained="backbone"))
    refused("floats in", lambda: models.create("resnet8-fcn")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))


# ------------------------------------------------------------------------- what every Network has, here too


def test_identity_frozen_copies_normalisation_and_text(tmp_path):
    network = models.create("resnet8-fcn", 4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert repr(network) == "resnet8-fcn: 4 classes, 64 features, 120,916 parameters"
    seen = {network.identity}
    frozen = models.frozen(network, CPU)
    assert frozen.identity in seen and not any(part.training for part in frozen.modules())
    with torch.no_grad():
        network.backbone.body.layer1[0].conv1.weight[0, 0] += 1
    seen.add(network.identity)
    network.set_normalisation((0, 0, 0), (1, 1, 1))
    seen.add(network.identity)
    assert len(seen) == 3

    images = torch.rand(2, 3, 32, 32)
    network.eval()
    expected = network(images).logits
    assert torch.equal(copy.deepcopy(network)(images).logits, expected)
    network.set_normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    torch.testing.assert_close(network(images * 0.5 + 0.5).logits, expected)


@pytest.mark.parametrize("name", ["resnet8-fcn", "vgg8-fcn"])
def test_saved_weights_load(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    saved, network = models.create(name, 4).eval(), models.create(name, 4).eval()
    safetensors.save_file(saved.state_dict(), tmp_path / "student.safetensors")
    models.load_weights(network, tmp_path / "student.safetensors")
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(network(images).logits, saved(images).logits)
    refused(
        "create the network with num_classes=4",
        lambda: models.load_weights(models.create(name, 5), tmp_path / "student.safetensors"),
    )


def test_initialisation_follows_the_seed():
    def state(seed):
        torch.manual_seed(seed)
        return models.create("MobileNetV2-fcn", 4).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert not first["classifier.bias"].any() and first["classifier.weight"].std() < 0.02
    assert not first["backbone.body.conv1.1.running_mean"].any()  # the probe of strides does not count as training


def test_bfloat16_and_channels_last():
    network = models.create("ShuffleV2-fcn", 4).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower = network(images)
        network.to(memory_format=torch.channels_last)
        other = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(other.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert lower.logits.dtype == torch.bfloat16
    assert F.cosine_similarity(lower.features.float(), expected.features).min() > 0.98


def squares(count):
    """Images with one square of one of four colours on a grey ground, and the class of each pixel (0: ground)."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1]])
    images, masks = 0.5 + 0.05 * torch.randn(count, 3, 32, 32), torch.zeros(count, 32, 32, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        kind, top, left = int(torch.randint(4, ())), *torch.randint(0, 20, (2,)).tolist()
        image[:, top : top + 12, left : left + 12] += colours[kind][:, None, None] - 0.5
        mask[top : top + 12, left : left + 12] = kind + 1
    return images.clamp(0, 1), masks


def test_squares_are_learned():
    images, masks = squares(96)
    new_images, new_masks = squares(32)
    network = models.create("resnet8-fcn", 5, mean=(0.5,) * 3, std=(0.3,) * 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(60):
        part = slice(16 * (step % 6), 16 * (step % 6) + 16)
        logits = F.interpolate(network(images[part]).logits, (32, 32), mode="bilinear")
        optimizer.zero_grad()
        F.cross_entropy(logits, masks[part]).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = F.interpolate(network.eval()(new_images).logits, (32, 32), mode="bilinear").argmax(1)
    right = predicted == new_masks
    assert right.float().mean() > 0.95 and right[new_masks > 0].float().mean() > 0.85


# ------------------------------------------------------------------------------------------- torchvision


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_equal_those_of_the_library(name):
    segmentation = pytest.importorskip("torchvision").models.segmentation
    features, stride, maps = TORCHVISION[name]
    network = models.create(f"torchvision/{name}", 5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert network.training and (network.name, network.task) == (f"torchvision/{name}", "segmentation")
    assert (network.num_classes, network.features_dim, network.stride) == (5, features, stride)
    network.eval()
    expected = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5).eval()
    expected.load_state_dict(network.module.state_dict())
    images = torch.rand(1, 3, 64, 48)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        output = network(images, maps=True)
        whole = expected((images - mean) / std)["out"]
    assert output.logits.shape == (1, 5, 8, 6) and output.features.shape == (1, features, 8, 6)
    torch.testing.assert_close(F.interpolate(output.logits, (64, 48), mode="bilinear"), whole)
    assert len(output.maps) == maps and all(one.ndim == 4 for one in output.maps)
    layer, module = models.classifier(network)
    assert isinstance(module, nn.Conv2d) and module.out_channels == 5 and "aux" not in layer
    if name != "lraspp_mobilenet_v3_large":  # whose logits are the sum of two convolutions
        torch.testing.assert_close(output.logits, module(output.features))


def test_pretrained_torchvision_networks_accept_other_classes(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    library = torchvision.models.segmentation
    source = library.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    weights = library.LRASPP_MobileNet_V3_Large_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    name = "torchvision/lraspp_mobilenet_v3_large"
    same, other = (models.create(name, count, pretrained=True) for count in (21, 4))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in same.module.state_dict().items())
    assert torch.equal(other.module.classifier.cbr[0].weight, source.classifier.cbr[0].weight)
    assert other(torch.rand(2, 3, 64, 64)).logits.shape == (2, 4, 8, 8)
    torch.testing.assert_close(other.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))

    backbone = torchvision.models.MobileNet_V3_Large_Weights
    trained = torchvision.models.mobilenet_v3_large(dilated=True)
    monkeypatch.setattr(backbone, "get_state_dict", lambda self, *_, **__: trained.state_dict())
    network = models.create(name, 4, pretrained="backbone", mean=(0, 0, 0))
    assert torch.equal(network.module.backbone["0"][0].weight, trained.features[0][0].weight)
    assert not network.mean.any() and network.std.flatten()[0] == pytest.approx(0.229)

    def offline(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(weights, "get_state_dict", offline)
    refused(rf"{name} cannot be created: OSError: no route", lambda: models.create(name, pretrained=True))


# ------------------------------------------------------------------------------------------ wrapped modules


class Small(nn.Module):
    """A user's network of stride 2, whose output is enlarged to the size of the image."""

    def __init__(self, output=lambda logits: {"out": logits}, enlarge=True, classes=5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.unused = nn.Conv2d(3, 6, 1)
        self.squeeze = nn.Conv2d(6, 8, 1)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(8, classes, 1))
        self.output, self.enlarge = output, enlarge

    def forward(self, x):
        logits = self.head(self.squeeze(self.body(x)))
        return self.output(F.interpolate(logits, x.shape[2:], mode="bilinear") if self.enlarge else logits)


@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize(
    "output",
    [
        lambda logits: logits,
        lambda logits: {"out": logits, "aux": None},
        lambda logits: {"logits": logits},
        lambda logits: (logits, None),
        lambda logits: SimpleNamespace(logits=logits),
    ],
    ids=["tensor", "out", "logits", "tuple", "object"],
)
def test_what_a_wrapped_module_may_return(output, enlarge):
    module = Small(output, enlarge)
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    network = models.wrap_segmentation(module, maps=["body"], name="mine", num_classes=5)
    assert torch.equal(torch.get_rng_state(), random) and network.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert (network.name, network.num_classes, network.features_dim, network.stride) == ("mine", 5, 8, 2)
    network.eval()
    images = torch.rand(2, 3, 20, 16)
    result = network(images, maps=True)
    assert result.logits.shape == (2, 5, 10, 8) and result.features.shape == (2, 8, 10, 8)
    torch.testing.assert_close(result.logits, module.head[2](result.features))
    torch.testing.assert_close(result.maps[0], module.body(images))
    result.logits.sum().backward()
    assert module.body[0].weight.grad.abs().max() > 0 and not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("named", [None, "head.2"])
def test_a_module_that_enlarges_with_aligned_corners_is_noted(named, capsys):
    class Aligned(Small):
        def forward(self, x):
            return F.interpolate(super().forward(x), x.shape[2:], mode="bilinear", align_corners=True)

    models.wrap_segmentation(Aligned(lambda logits: logits, enlarge=False).eval(), logits=named, name=f"a{named}")
    assert f"note: a{named} enlarges its logits with align_corners=True" in capsys.readouterr().err
    models.wrap_segmentation(Small().eval(), logits=named, name=f"b{named}")
    assert not capsys.readouterr().err


def test_features_of_a_named_layer_and_a_fixed_size(tmp_path):
    module = Small().eval()
    network = models.wrap_segmentation(module, features="squeeze", size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.rand(2, 3, 30, 24)
    resized = F.interpolate((images - 0.5) / 0.5, (12, 12), mode="bilinear", antialias=True)
    result = network(images)
    assert result.logits.shape == (2, 5, 6, 6)
    torch.testing.assert_close(result.features, module.squeeze(module.body(resized)))  # before the ReLU in place
    other = models.wrap_segmentation(module, size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert other.identity != network.identity

    torch.save(module.state_dict(), tmp_path / "inner.pth")
    loaded = models.load_weights(models.wrap_segmentation(Small().eval(), size=12), tmp_path / "inner.pth")
    assert torch.equal(loaded(images).logits, models.wrap_segmentation(module, size=12)(images).logits)


class Summed(Small):
    """Its logits are the sum of two layers, so that the last one does not compute them."""

    def __init__(self):
        super().__init__()
        self.other, self.add = nn.Conv2d(6, 5, 1), nn.Identity()

    def forward(self, x):
        body = self.body(x)
        return {"out": self.add(self.head(self.squeeze(body)) + self.other(body))}


def test_the_layer_of_the_logits_is_checked_and_can_be_named():
    refused("'other' of Summed does not compute the logits", lambda: models.wrap_segmentation(Summed()))
    network = models.wrap_segmentation(Summed().eval(), logits="ADD", features="squeeze")
    assert network.logits_layer == "add"
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network(images).logits, network.module(images)["out"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": "sqeeze"}, "unknown layer of Small 'sqeeze'; did you mean 'squeeze'"),
        ({"logits": "unused"}, "'unused' does not run in a forward pass; name another in logits=…"),
        ({"logits": "squeeze"}, "'squeeze' of Small does not compute"),
        ({"num_classes": 9}, "5 classes, not num_classes=9"),
        ({"maps": ["bdy"]}, "did you mean 'body'"),
    ],
)
def test_wrap_refuses_what_does_not_fit(given, message):
    refused(message, lambda: models.wrap_segmentation(Small(), **given))


def test_wrap_refuses_modules_that_are_not_for_segmentation():
    refused(r"ResNet returned shape \[2, 100\]; expected", lambda: models.wrap_segmentation(models.create("resnet8")))
    refused(r"Small has weights in float16; give module.float\(\)", lambda: models.wrap_segmentation(Small().half()))
    refused("returned str", lambda: models.wrap_segmentation(Small(lambda _: "text")))
    refused("no convolution", lambda: models.wrap_segmentation(nn.Identity()))
    strided = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1, stride=2))
    refused("name layers of one size", lambda: models.wrap_segmentation(strided))
    soft = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Softmax(1))
    refused("does not compute the logits", lambda: models.wrap_segmentation(soft))
    refused("layer '2' of Sequential are probabilities", lambda: models.wrap_segmentation(soft, logits="2"))


@pytest.mark.parametrize("given", ["num_classes=5", "mean=3", "std=(1, 1, 1)", "name='resnet8'"])
def test_what_the_data_determine_is_no_part_of_the_name(given):
    with pytest.raises(InputError, match=f"{given.partition('=')[0]} cannot be part of the name") as error:
        models.create(f"resnet8-fcn({given})", 3)
    assert "\n" not in str(error.value)
