"""Two-stage detectors: training passes, outputs at given boxes, detection, and what every Network has."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ickd_lib import models
from ickd_lib.runtime import InputError

pytest.importorskip("torchvision")
pytestmark = pytest.mark.usefixtures("seeded")

CPU = torch.device("cpu")
FAMILIES = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1"]
LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


@dataclass(frozen=True)
class Objects:
    boxes: torch.Tensor
    labels: torch.Tensor
    crowd: torch.Tensor | None = None


def scenes(count, side=64, classes=3):
    """Images with up to two squares of the colours of their classes on a grey ground, and the squares."""
    images, every = 0.5 + 0.03 * torch.randn(count, 3, side, side), []
    for image in images:
        labels = torch.randint(classes, (int(torch.randint(1, 3, ())),))
        boxes = []
        for position, label in enumerate(labels.tolist()):
            size = int(torch.randint(12, 25, ()))
            top, left = (int(torch.randint(0, side // 2 - size + 1, ())) for _ in range(2))
            top, left = top + position * side // 2, left + position * side // 2
            image[:, top : top + size, left : left + size] = torch.eye(3)[label][:, None, None]
            boxes.append([left, top, left + size, top + size])
        every.append(Objects(torch.tensor(boxes, dtype=torch.float32), labels))
    return images.clamp(0, 1), every


def nothing():
    return Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def fixed_statistics(network):
    """Training mode, with batch norm in evaluation mode."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return network


def refused(message, make):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def trained():
    """A resnet8-fpn after a few steps on coloured squares, with its losses before and after."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, objects = scenes(16)
        network = models.create("resnet8-fpn", 3, mean=(0.5,) * 3, std=(0.3,) * 3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
        history = []
        for step in range(40):
            part = slice(8 * (step % 2), 8 * (step % 2) + 8)
            losses = network(images[part], objects[part]).losses
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append(
                {**{key: float(value.detach()) for key, value in losses.items()}, "all": float(total.detach())}
            )
        return network, images, objects, history


# ------------------------------------------------------------------------------------------ the training pass


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_gradients_of_a_training_pass(name):
    network = models.create(f"{name}-fpn", 3)
    images, objects = scenes(2, side=96)
    result = network.training_pass(images, [objects[0], nothing()], maps=True)
    regions = result.regions
    count = sum(len(boxes) for boxes in regions.boxes)
    assert regions.logits.shape == (count, 4) and regions.features.shape == (count, network.features_dim)
    assert result.labels.shape == result.matched.shape == regions.image.shape == (count,)
    assert regions.image.tolist() == [i for i, boxes in enumerate(regions.boxes) for _ in boxes]
    assert network.stages == ("module.backbone",)
    sides = [one.shape[2] for one in regions.maps]
    assert sides[:3] == [24, 12, 6] and [shape[1] for shape in models.map_shapes(network, (96, 96))] == sides

    assert set(result.losses) == LOSSES and all(loss.ndim == 0 for loss in result.losses.values())
    layer, module = models.classifier(network)
    assert module is network.get_submodule(layer) and module.out_features == 4
    torch.testing.assert_close(regions.logits, module(regions.features))
    torch.testing.assert_close(
        result.losses["loss_classifier"], nn.functional.cross_entropy(regions.logits, result.labels)
    )
    sum(result.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())

    network.zero_grad()
    network.training_pass(images, objects).regions.logits.square().sum().backward()
    body = [parameter.grad for key, parameter in network.named_parameters() if "backbone.body" in key]
    assert any(grad is not None and grad.abs().max() > 0 for grad in body[:3])


def test_proposals_are_matched_to_objects_by_their_position():
    network = models.create("resnet8-fpn", 3)
    images, _ = scenes(3)
    boxes = torch.tensor([[2.0, 2, 30, 30], [34, 34, 60, 62]])
    crowd = torch.tensor([True, False])
    objects = [Objects(boxes, torch.tensor([2, 0])), nothing(), Objects(boxes, torch.tensor([1, 2]), crowd)]
    result = network.training_pass(images, objects)
    first, second, third = (result.regions.image == i for i in range(3))
    pairs = {tuple(pair) for pair in torch.stack([result.labels[first], result.matched[first]], 1).tolist()}
    assert {(3, 0), (1, 1)} <= pairs <= {(3, 0), (1, 1), (0, -1)}
    assert (result.labels[second] == 0).all() and (result.matched[second] == -1).all() and second.any()
    assert {1} <= set(result.matched[third].tolist()) <= {1, -1}  # the crowd is no target
    assert torch.equal(result.labels[third] > 0, result.matched[third] == 1)
    for i, own in enumerate(objects):
        inside = result.regions.image == i
        for box, match in zip(result.regions.boxes[i], result.matched[inside].tolist(), strict=True):
            if match >= 0:
                target = own.boxes[match]
                size = (torch.minimum(box[2:], target[2:]) - torch.maximum(box[:2], target[:2])).clamp(min=0).prod()
                union = (box[2:] - box[:2]).prod() + (target[2:] - target[:2]).prod() - size
                assert size / union >= 0.5


def test_one_pass_of_the_backbone():
    network = models.create("resnet8-fpn", 3)
    calls = []
    network.module.backbone.register_forward_hook(lambda *_: calls.append(1))
    images, objects = scenes(2)
    network(images, objects, maps=True)
    assert len(calls) == 1


def test_a_training_pass_equals_torchvisions_own():
    network = fixed_statistics(models.create("resnet8-fpn", 3, min_size=80, max_size=100))
    images, objects = scenes(2)
    targets = [{"boxes": one.boxes, "labels": one.labels + 1} for one in objects]
    twin = copy.deepcopy(network.module)
    twin.transform.image_mean, twin.transform.image_std = [0.0] * 3, [1.0] * 3
    torch.manual_seed(4)
    expected = twin(list(images), targets)
    torch.manual_seed(4)
    found = network(images, objects).losses
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    detected, own = network.detect(images)[0], twin.eval()(list(images))[0]
    torch.testing.assert_close(detected.boxes, own["boxes"])
    torch.testing.assert_close(detected.scores, own["scores"])
    assert torch.equal(detected.labels, own["labels"] - 1) and network.training


# ----------------------------------------------------------------------------------------------- given boxes


@pytest.mark.parametrize("options", [{}, {"min_size": 96, "max_size": 200}], ids=["as given", "resized"])
@pytest.mark.parametrize("together", [True, False], ids=["one tensor", "two sizes"])
def test_outputs_at_the_training_proposals_are_those_of_the_training_pass(options, together):
    network = fixed_statistics(models.create("resnet8-fpn", 3, **options))
    images, objects = scenes(2)
    if not together:
        images = [images[0], images[1, :, :, :50]]
        objects = [objects[0], nothing()]
    regions = network.training_pass(images, objects).regions
    again = network.at_boxes(images, regions.boxes)
    torch.testing.assert_close(again.logits, regions.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.features, regions.features, atol=1e-4, rtol=1e-4)
    assert torch.equal(again.image, regions.image)
    assert all(torch.equal(a, b) for a, b in zip(again.boxes, regions.boxes, strict=True))


def test_boxes_follow_the_image_when_a_detector_resizes():
    """Outputs at a box of the original image equal those at the enlarged box of the enlarged image."""
    network = models.create("resnet8-fpn", 3).eval()
    resizing = models.create("resnet8-fpn", 3, min_size=128, max_size=200).eval()
    resizing.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 64, 96)
    large = nn.functional.interpolate(images, (128, 192), mode="bilinear")
    box = torch.tensor([[10.0, 20, 50, 60]])
    expected, found = network.at_boxes(large, [2 * box]), resizing.at_boxes(images, [box], maps=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.boxes[0], box) and found.maps[0].shape[2:] == (32, 48)
    assert network.identity != resizing.identity  # the weights are the same, the outputs are not


@pytest.mark.parametrize(("name", "side"), [("resnet8-fpn", 33), ("vgg8-fpn", 32)])
def test_the_size_of_the_first_image_does_not_matter(name, side):
    """33 pixels are padded to 48; VGG has other strides in images below 64 pixels."""
    first, second = (models.create(name, 3).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    first.at_boxes(torch.rand(1, 3, side, side), [torch.tensor([[0.0, 0, 20, 20]])])
    images, box = torch.rand(1, 3, 64, 64), [torch.tensor([[5.0, 5, 40, 30]])]
    assert torch.equal(first.at_boxes(images, box).logits, second.at_boxes(images, box).logits)


def test_a_teacher_is_evaluated_on_the_proposals_of_a_student():
    student = models.create("resnet8-fpn", 3)
    teacher = models.frozen(models.create("ShuffleV1-fpn", 3, min_size=96), CPU)
    images, objects = scenes(2)
    boxes = student(images, objects).regions.boxes
    before = copy.deepcopy(teacher.state_dict())
    regions = teacher.at_boxes(images, boxes)
    assert regions.logits.shape == (sum(map(len, boxes)), 4) and not regions.logits.requires_grad
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    annotated = teacher.at_boxes(images, [objects[0].boxes, nothing().boxes])
    assert annotated.image.tolist() == [0] * len(objects[0].boxes)
    none = teacher.at_boxes(images, [nothing().boxes] * 2)
    assert none.logits.shape == (0, 4) and none.features.shape == (0, 128) and none.image.shape == (0,)


# ------------------------------------------------------------------------------------------------- detection


def test_losses_fall_and_squares_are_detected(trained):
    network, images, objects, history = trained
    for key in ("loss_classifier", "loss_objectness", "all"):
        first, last = (sum(one[key] for one in part) / 4 for part in (history[:4], history[-4:]))
        assert last < 0.7 * first, (key, first, last)
    found = network.detect(images[:4])
    for one, own in zip(found, objects[:4], strict=True):
        assert one.boxes.shape == (len(one.scores), 4) and one.labels.shape == one.scores.shape
        assert (one.boxes >= 0).all() and (one.boxes <= 64).all() and (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert ((one.labels >= 0) & (one.labels < 3)).all() and ((one.scores > 0) & (one.scores <= 1)).all()
        assert (one.scores.diff() <= 0).all() and len(own.boxes) > 0
    assert network.training and not found[0].boxes.requires_grad


def test_boxes_are_not_rounded_under_autocast(trained):
    network, images, objects, _ = trained
    large = nn.functional.interpolate(images[:2], (509, 509))
    scaled = [SimpleNamespace(boxes=one.boxes * 509 / 64, labels=one.labels) for one in objects[:2]]
    with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        done = network(large, scaled)
        found = network.detect(large)
    boxes = torch.cat([*done.regions.boxes, *(one.boxes for one in found)])
    assert boxes.dtype == done.regions.logits.dtype == torch.float32
    rounded = (boxes == boxes.bfloat16().float()) & (boxes > 0) & (boxes < 509)
    assert rounded.float().mean() < 0.2
    assert all(loss.dtype == torch.float32 for loss in done.losses.values())


def test_detections_are_in_pixels_of_the_images_given(trained):
    network, images, _, _ = trained
    resizing = models.create("resnet8-fpn", 3, mean=(0.5,) * 3, std=(0.3,) * 3, min_size=64, max_size=200)
    resizing.load_state_dict(network.state_dict())
    small = nn.functional.interpolate(images, (32, 32), mode="nearest")
    large = nn.functional.interpolate(small, (64, 64), mode="bilinear")
    expected, found = (
        torch.cat([x.boxes for x in one]) for one in (network.detect(large), resizing.detect(list(small)))
    )
    assert len(found) > 0 and found.max() <= 32.001
    torch.testing.assert_close(2 * found, expected, atol=1e-2, rtol=1e-3)


def test_evaluation_without_boxes_uses_the_detectors_own_proposals(trained):
    network = models.frozen(trained[0], CPU)
    regions = network(trained[1][:2], maps=True)
    assert regions.logits.shape == (len(regions.image), 4) and len(regions.maps) == 3
    assert torch.equal(network.at_boxes(trained[1][:2], regions.boxes).logits, regions.logits)


# ---------------------------------------------------------------------------- what every Network has, here too


def test_identity_copies_text_and_saved_weights(tmp_path):
    network = models.create("resnet8-fpn", 3, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert (network.task, network.num_classes, network.features_dim) == ("detection", 3, 128)
    network.trained_on = {"data": "scenes"}
    assert repr(network).startswith("resnet8-fpn: 3 classes, 128 features, ") and "trained on: data scenes" in repr(
        network
    )
    frozen = models.frozen(network, CPU)
    seen = {network.identity, frozen.identity}
    assert len(seen) == 1 and not any(part.training for part in frozen.modules())
    with torch.no_grad():
        network.module.backbone.body.body.conv1.weight[0, 0] += 1
    seen.add(network.identity)
    network.set_normalisation((0, 0, 0), (1, 1, 1))
    seen.add(network.identity)
    network.module.roi_heads.nms_thresh = 0.3
    seen.add(network.identity)
    assert len(seen) == 4

    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network.state_dict(), tmp_path / "student.safetensors")
    loaded = models.load_weights(models.create("resnet8-fpn", 3).eval(), tmp_path / "student.safetensors")
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[5.0, 5, 40, 30]])]
    expected = network.eval().at_boxes(images, boxes).logits
    assert torch.equal(loaded.at_boxes(images, boxes).logits, expected)
    torch.save(network.module.state_dict(), tmp_path / "inner.pth")
    assert models.load_weights(loaded, tmp_path / "inner.pth") is loaded
    network.set_normalisation((0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(network.at_boxes(images * 0.5 + 0.5, boxes).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_seed_determines_network_and_training_pass():
    def outcome(seed):
        torch.manual_seed(seed)
        network = models.create("resnet8-fpn", 3)
        images, objects = scenes(2)
        result = network(images, objects)
        sum(result.losses.values()).backward()
        return result.regions.logits, network.module.backbone.body.body.conv1.weight.grad

    first, again, other = outcome(1), outcome(1), outcome(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_bfloat16():
    network = models.create("resnet8-fpn", 3).eval()
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[5.0, 5, 40, 30], [0, 0, 64, 64]])]
    with torch.no_grad():
        expected = network.at_boxes(images, boxes).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower = network.at_boxes(images, boxes).features
            network.train()(images, [Objects(boxes[0], torch.tensor([0, 2]))])
            network.detect(images)
    assert nn.functional.cosine_similarity(lower.float(), expected).min() > 0.98


# --------------------------------------------------------------------------------- torchvision and wrapped ones


def test_names():
    listed = models.names("detection")
    assert {"resnet8-fpn", "resnet20-fpn", "resnet18-fpn", "resnet101-fpn"} <= set(listed)
    assert len({name.lower() for name in listed}) == len(listed)
    refused("unknown model 'resnet7-fpn'; did you mean 'resnet", lambda: models.create("resnet7-fpn"))
    refused(
        "unknown torchvision model 'fasterrcnn_resnet51_fpn'; did you mean 'fasterrcnn_resnet50_fpn",
        lambda: models.create("torchvision/fasterrcnn_resnet51_fpn"),
    )
    refused("unknown torchvision model 'ssd300", lambda: models.create("torchvision/ssd300_vgg16"))
    refused("option of resnet8-fpn 'minsize'; did you mean 'min_size'", lambda: models.create("resnet8-fpn", minsize=3))
    refused("resnet18-fpn has no pretrained.*'backbone'", lambda: models.create("resnet18-fpn", pretrained=True))
    refused("resnet8-fpn has no pretrained", lambda: models.create("resnet8-fpn", pretrained="backbone"))
    refused("resnet8-fpn cannot be created", lambda: models.create("resnet8-fpn", rpn_anchor_generator="small"))


def test_torchvisions_resnet_with_a_pyramid(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    source = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    network = models.create("resnet18-fpn", 3, pretrained="backbone", min_size=None, box_batch_size_per_image=16)
    assert torch.equal(network.module.backbone.body.conv1.weight, source.conv1.weight)
    assert not network.module.backbone.body.conv1.weight.requires_grad  # as torchvision's own detectors are built
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    images, objects = scenes(1)
    result = network(images, objects, maps=True)
    assert [one.shape[2] for one in result.regions.maps] == [16, 8, 4, 2, 1]  # P2 to P6
    assert len(result.labels) <= 16 and result.regions.features.shape[1] == 1024
    assert not network.resizes and models.create("resnet18-fpn", 3).resizes


def test_torchvisions_detectors(monkeypatch):
    detection = pytest.importorskip("torchvision").models.detection
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    network = models.create(f"torchvision/{name}", 3, mean=(0.5,) * 3, min_size=64)
    assert (network.name, network.num_classes, network.features_dim) == (f"torchvision/{name}", 3, 1024)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    torch.testing.assert_close(network.mean.flatten(), torch.full((3,), 0.5))
    images, objects = scenes(1)
    assert network.eval().at_boxes(images, [objects[0].boxes]).logits.shape[1] == 4
    assert len(network.detect(images)) == 1

    source = getattr(detection, name)(weights=None, weights_backbone=None)
    weights = detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    same, other = (models.create(f"torchvision/{name}", count, pretrained=True) for count in (90, 5))
    predictor = source.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(same.module.roi_heads.box_predictor.cls_score.weight, predictor)
    assert other.num_classes == 5 and other.module.roi_heads.box_predictor.bbox_pred.out_features == 24
    torch.testing.assert_close(other.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


def frozen_parts(network):
    """Describe the modules of a network, and which of its parameters are trained."""
    return repr(network), [parameter.requires_grad for parameter in network.parameters()]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18-fpn(pretrained='backbone')",
        "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn(pretrained=True)",
        "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn(pretrained='backbone')",
        "torchvision/lraspp_mobilenet_v3_large(pretrained=True)",
    ],
)
def test_pretrained_networks_without_their_weights(name, monkeypatch):
    """Their modules are those with the weights, such as frozen batch norm, so that a checkpoint fits."""
    api = pytest.importorskip("torchvision").models._api

    def offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(api, "load_state_dict_from_url", offline)
    with models.without_weights():
        without = models.create(name, 3)
    refused("no connection", lambda: models.create(name, 3))
    plain = name.partition("(")[0]
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        patch.setattr(api.WeightsEnum, "get_state_dict", lambda *_, **__: {})
        full, new = models.create(name, 3), models.create(plain, 3)
    assert frozen_parts(without) == frozen_parts(full)
    assert torch.equal(without.mean, full.mean) and not torch.equal(without.mean, new.mean)
    without.load_state_dict(full.state_dict())


def test_detectors_of_ones_own():
    module = models.create("resnet8-fpn", 3).module
    module.transform.image_mean, module.transform.image_std = [0.4] * 3, [0.5] * 3
    network = models.wrap_detection(module.eval(), name="mine", num_classes=3, resizes=False)
    assert network.module is module and not network.training and network.name == "mine"
    assert network.mean.flatten().tolist() == pytest.approx([0.4] * 3) and network.std[0, 0] == pytest.approx(0.5)
    assert models.wrap_detection(module, mean=(0, 0, 0)).mean.abs().max() == 0
    refused("3 classes without the background, not num_classes=4", lambda: models.wrap_detection(module, num_classes=4))
    refused("ResNet is not a torchvision GeneralizedRCNN", lambda: models.wrap_detection(models.create("resnet8", 3)))
    module.roi_heads.box_predictor = nn.Identity()
    refused("has no linear layer cls_score", lambda: models.wrap_detection(module))


def test_a_detector_with_masks_can_be_a_teacher():
    network = models.create("resnet8-fpn", 3)
    heads = network.module.roi_heads
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = nn.Identity()
    images, objects = scenes(1)
    refused("has a head for masks or keypoints", lambda: network(images, objects))
    network.eval()
    assert len(network.detect(images)) == 1 and len(network.at_boxes(images, [objects[0].boxes]).logits) > 0


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"torch.uint8 of shape \[3, 64, 64\]"),
        (torch.zeros(1, 1, 64, 64), r"torch.float32 of shape \[1, 64, 64\]"),
        (torch.zeros(3, 64, 64), r"torch.float32 of shape \[64, 64\]"),
        ("picture.png", "str"),
        ([], "list"),
    ],
)
def test_images_of_another_type_are_refused(images, message):
    network = models.create("resnet8-fpn", 3)
    refused(f"resnet8-fpn was given {message}", lambda: network.detect(images))
    refused(f"resnet8-fpn was given {message}", lambda: network(images, [nothing()]))


def test_impossible_objects_and_modes_are_refused():
    network = models.create("resnet8-fpn", 3)
    image, one = torch.rand(1, 3, 64, 64), torch.tensor([[1.0, 2, 30, 40]])

    def with_objects(boxes, label=0):
        return lambda: network(image, [SimpleNamespace(boxes=boxes, labels=torch.full((len(boxes),), label))])

    for edges in ([5.0, 5, 5, 9], [9.0, 5, 5, 9], [5.0, 5, float("nan"), 9]):
        refused(r"box \[\d.0, 5.0, .*\] has no area", with_objects(torch.tensor([edges])))
        refused("has no area", lambda edges=edges: network.at_boxes(image, [torch.tensor([edges])]))
    refused("label 3; the labels of resnet8-fpn are 0 to 2, without", with_objects(one, 3))
    refused("label -1", with_objects(one, -1))
    refused(r"boxes of shape \[4\]", lambda: network.at_boxes(image, [one[0]]))
    refused("1 images, but the boxes of 2", lambda: network.at_boxes(image, [one, one]))
    refused("training mode and was given images only", lambda: network(image))
    network.eval()
    refused("evaluation mode; call train", with_objects(one))


def test_arguments_may_be_part_of_the_name():
    network = models.create("Resnet8-fpn( min_size=40, max_size=50)", 3, mean=(0.1,) * 3)
    assert network.name == "resnet8-fpn(min_size=40, max_size=50)" and network.resizes
    assert network.module.transform.min_size == (40,) and network.mean.flatten()[0] == pytest.approx(0.1)
    again = models.create(network.name, 3)
    assert again.name == network.name and again.module.transform.max_size == 50
    with pytest.raises(InputError, match=r"resnet8 has no option min_size"):
        models.create("resnet8(min_size=3)")
    with pytest.raises(InputError, match=r"cannot read model 'resnet8-fpn\(40\)'; write it like"):
        models.create("resnet8-fpn(40)")


def test_pretrained_networks_named_so_keep_their_normalisation(monkeypatch):
    from torchvision.models import resnet18
    from torchvision.models._api import WeightsEnum

    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *_, **__: resnet18().state_dict())
    network = models.create("resnet18-fpn(pretrained='backbone')", 3, mean=(0.1,) * 3, std=(0.2,) * 3)
    assert network.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
