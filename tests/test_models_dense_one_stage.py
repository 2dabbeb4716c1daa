"""One-stage detectors (RetinaNet, FCOS): training passes, the anchors of given boxes, detection, and creation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_models_dense_detection import CPU, Objects, fixed_statistics, nothing, refused, scenes
from torch import nn

from ickd_lib import models
from ickd_lib.models import fpn, one_stage

torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.usefixtures("seeded")

KINDS = ["RetinaNet", "FCOS"]
KEYS = {"RetinaNet": {"classification", "bbox_regression"}}
KEYS["FCOS"] = {*KEYS["RetinaNet"], "bbox_ctrness"}
SCALE = {"min_size": 80, "max_size": 120}  # in two images of scenes() boxes are not multiples of pixels then


def small(kind, classes=3, *, resizes=False, **options):
    """A detector with strides 4, 8 and 16, anchors from 12 pixels on (or locations), and a column for no class."""
    detection = torchvision.models.detection
    pyramid = fpn.Pyramid(models.create("resnet8"))
    ratios, side = ((0.5, 1.0, 2.0), 3) if kind == "RetinaNet" else ((1.0,), 1)
    sizes = tuple((side * stride,) for stride in pyramid.strides)
    anchors = detection.anchor_utils.AnchorGenerator(sizes, (ratios,) * len(sizes))
    options = {"anchor_generator": anchors, "size_divisible": 16, **options}
    module = getattr(detection, kind)(pyramid, classes + 1, image_mean=[0.5] * 3, image_std=[0.3] * 3, **options)
    head = module.head.classification_head.cls_logits
    with torch.no_grad():  # outputs that differ between places, and no detections of column 0
        head.weight.mul_(20)
        head.bias.fill_(-1.0).view(-1, classes + 1)[:, 0] = -30.0
    return models.wrap_detection(module, resizes=resizes, name=kind.lower())


def unequal(count=2):
    """Images of two sizes, the second without objects."""
    images, objects = scenes(count)
    return [images[0], images[1, :, :40, :50]], [objects[0], nothing()]


def overlap(a, b):
    return torchvision.ops.box_iou(a[None], b[None]).item()


# ------------------------------------------------------------------------------------------ the training pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [True, False], ids=["one tensor", "two sizes"])
@pytest.mark.parametrize("resizes", [True, False], ids=["resized", "as given"])
def test_losses_and_detections_are_torchvisions_own(kind, together, resizes):
    network = fixed_statistics(small(kind, resizes=resizes, **SCALE, score_thresh=0.2))
    images, objects = scenes(2) if together else unequal()
    twin = copy.deepcopy(network.module)
    if not resizes:
        twin.transform.resize = lambda image, target=None: (image, target)
    targets = [{"boxes": one.boxes, "labels": one.labels + 1} for one in objects]
    expected, found = twin(list(images), targets), network(images, objects).losses
    assert set(found) == set(expected) == KEYS[kind]
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert "compute_loss" not in vars(network.module.head)

    detected = network.detect(images)
    for one, own in zip(detected, twin.eval()(list(images)), strict=True):
        assert len(one.boxes) > 0 and torch.equal(one.labels, own["labels"] - 1)
        torch.testing.assert_close(one.boxes, own["boxes"])
        torch.testing.assert_close(one.scores, own["scores"])
    assert network.training and not detected[0].boxes.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_gradients_of_a_training_pass(kind):
    network = small(kind)
    images, objects = scenes(2)
    result = network.training_pass(images, [objects[0], nothing()], maps=True)
    regions = result.regions
    assert regions.logits.shape == (512, 4) and regions.features.shape == (512, 64) and network.features_dim == 64
    assert result.labels.shape == result.matched.shape == (512,)
    assert regions.image.tolist() == [0] * 256 + [1] * 256 and [len(one) for one in regions.boxes] == [256, 256]
    assert [one.shape[2] for one in regions.maps] == [16, 8, 4]
    assert [shape[1] for shape in models.map_shapes(network, (64, 64))] == [16, 8, 4]
    layer, module = models.classifier(network)
    assert module is network.get_submodule(layer) and module.in_channels == 64
    sum(result.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())

    network.zero_grad()
    network.training_pass(images, objects).regions.logits.square().sum().backward()
    grads = {key: parameter.grad for key, parameter in network.named_parameters()}
    assert grads["module.backbone.body.body.conv1.weight"].abs().max() > 0
    assert not any(grad is not None and grad.any() for key, grad in grads.items() if "regression_head" in key)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_features_belong_to_the_anchors(kind):
    """Against a loop over the levels of the pyramid, the positions of a map and the anchors at a position."""
    network = small(kind).eval()
    images, _ = scenes(2)
    regions = network.at_boxes(images, [torch.tensor([[20.0, 8, 32, 20], [30, 30, 62, 60]])] * 2, maps=True)
    head, module = network.module.head.classification_head, network.module
    cells = module.anchor_generator.generate_anchors
    for i in range(2):
        seen = {}
        for level, one in enumerate(regions.maps):
            tower = head.conv(one[i : i + 1])
            z = head.cls_logits(tower)[0].unflatten(0, (-1, 4))  # anchors, columns, height, width
            sizes, ratios = module.anchor_generator.sizes[level], module.anchor_generator.aspect_ratios[level]
            for a, cell in enumerate(cells(sizes, ratios)):
                for y in range(one.shape[2]):
                    for x in range(one.shape[3]):
                        box = cell + torch.tensor([x, y, x, y]) * 4 * 2**level
                        seen[tuple(box.tolist())] = (z[a, 1:, y, x], tower[0, :, y, x])
        for row in (regions.image == i).nonzero().flatten().tolist():
            box = regions.boxes[i][row - 2 * i]
            logits, features = seen[tuple(box.tolist())]
            torch.testing.assert_close(regions.logits[row, 1:], logits)
            torch.testing.assert_close(regions.features[row], features)
            assert regions.logits[row, 0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_matched_to_objects_by_their_position(kind):
    network = small(kind)
    images, _ = scenes(3)
    boxes = torch.tensor([[2.0, 2, 30, 30], [34, 34, 60, 62]])
    crowd = torch.tensor([True, False])
    objects = [Objects(boxes, torch.tensor([2, 0])), nothing(), Objects(boxes, torch.tensor([1, 2]), crowd)]
    result = network.training_pass(images, objects)
    first, second, third = (result.regions.image == i for i in range(3))
    pairs = {tuple(pair) for pair in torch.stack([result.labels[first], result.matched[first]], 1).tolist()}
    assert pairs == {(3, 0), (1, 1), (0, -1)}
    assert (result.labels[second] == 0).all() and (result.matched[second] == -1).all()
    assert set(result.matched[third].tolist()) == {1, -1}  # the crowd is no target
    assert torch.equal(result.labels[third] > 0, result.matched[third] == 1)
    for i in (0, 2):
        for box, match in zip(result.regions.boxes[i], result.matched[result.regions.image == i].tolist(), strict=True):
            most = max(overlap(box, boxes[j]) for j in range(2) if i == 0 or j == 1)
            if kind == "RetinaNet":
                assert most >= 0.5 if match >= 0 else most < 0.4  # those between are no samples
            elif match >= 0:
                assert ((box[:2] + box[2:]) / 2 > boxes[match, :2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_samples(kind):
    network = small(kind)
    images, objects = scenes(1)
    matched = (network(images, objects).labels > 0).sum()
    network.samples = int(matched) + 5
    labels = network(images, objects).labels
    assert len(labels) == network.samples and (labels > 0).sum() == matched
    network.samples = 3
    first, second = (network(images, objects) for _ in range(2))
    assert len(first.labels) == 3 and (first.labels > 0).all()
    assert not torch.equal(first.regions.boxes[0], second.regions.boxes[0])  # drawn at random
    network.samples = 10**6
    images, objects = unequal()
    regions = network(images, objects).regions
    middle = (regions.boxes[1][:, :2] + regions.boxes[1][:, 2:]) / 2
    assert (middle >= 0).all() and (middle < torch.tensor([50, 40])).all()  # none in the padding
    assert len(regions.boxes[1]) == {"RetinaNet": 3, "FCOS": 1}[kind] * (13 * 10 + 7 * 5 + 4 * 3)


def test_one_pass_of_backbone_and_head():
    network = small("FCOS")
    calls = []
    for part in (network.module.backbone, network.module.head):
        part.register_forward_hook(lambda *_: calls.append(1))
    images, objects = scenes(2)
    network(images, objects, maps=True)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_determines_the_training_pass(kind):
    network = fixed_statistics(small(kind))
    network.samples = 20
    images, objects = scenes(2)

    def outcome(seed):
        torch.manual_seed(seed)
        result = network(images, objects)
        network.zero_grad()
        (sum(result.losses.values()) + result.regions.features.sum()).backward()
        return result.regions.boxes[0], network.module.backbone.body.body.conv1.weight.grad.clone()

    first, again, other = outcome(1), outcome(1), outcome(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


# ----------------------------------------------------------------------------------------------- given boxes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [True, False], ids=["one tensor", "two sizes"])
@pytest.mark.parametrize("resizes", [True, False], ids=["resized", "as given"])
def test_an_anchors_box_gives_this_anchor(kind, together, resizes):
    network = fixed_statistics(small(kind, resizes=resizes, **SCALE))
    images, objects = scenes(2) if together else unequal()
    regions = network.training_pass(images, objects).regions
    again = network.at_boxes(images, regions.boxes)
    assert all(torch.equal(a, b) for a, b in zip(again.boxes, regions.boxes, strict=True))
    assert torch.equal(again.image, regions.image)
    assert torch.equal(again.logits, regions.logits) and torch.equal(again.features, regions.features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 0.8])
def test_an_annotated_box_gives_an_anchor_that_is_matched_to_it(kind, scale):
    network = fixed_statistics(small(kind))
    network.samples = 10**6
    for seed in range(5):
        torch.manual_seed(seed)
        images, objects = scenes(2, side=96)
        boxes = [one.boxes * scale + 0.3 for one in objects]
        result = network(images, [Objects(one, own.labels) for one, own in zip(boxes, objects, strict=True)])
        for call in (network.at_boxes, network.at_objects):
            regions = call(images, boxes)
            assert regions.logits.shape == (sum(map(len, boxes)), 4)
            for i, found in enumerate(regions.boxes):
                own = result.matched[result.regions.image == i]
                for j, box in enumerate(found):
                    position = (result.regions.boxes[i] == box).all(1).nonzero().squeeze(1)
                    assert own[position].tolist() == [j]


def test_the_location_for_an_object_equals_a_loop():
    """FCOS: level by the distance to the farthest edge, at most 1.5 strides from the middle, inside the box."""
    network = small("FCOS").eval()
    images = torch.rand(1, 3, 96, 96)
    corner, size = torch.rand(60, 2) * 50, 4 + torch.rand(60, 2) ** 2 * 90
    boxes = torch.cat([corner, corner + size], 1)
    found = network.at_objects(images, [boxes]).boxes[0]
    for box, own in zip(boxes.tolist(), found.tolist(), strict=True):
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        best = []
        for stride, low, high in ((4, 0, 32), (8, 32, 64), (16, 64, math.inf)):
            for y in range(0, 96, stride):
                for x in range(0, 96, stride):
                    edges = x - box[0], y - box[1], box[2] - x, box[3] - y
                    away = max(abs(x - middle[0]), abs(y - middle[1]))
                    if low < max(edges) < high:
                        matched = min(edges) > 0 and away < 1.5 * stride
                        best.append((not matched, away, (x, y, stride)))
        x, y, stride = min(best)[2]
        away = max(abs(own[0] + own[2] - 2 * middle[0]), abs(own[1] + own[3] - 2 * middle[1])) / 2
        assert own[2] - own[0] == stride and away == pytest.approx(min(best)[1], abs=0.01), (box, own)


def test_a_location_and_an_object_with_the_same_box():
    network = small("FCOS").eval()
    images, box = torch.rand(1, 3, 64, 64), torch.tensor([[24.0, 24, 40, 40]])
    as_location, as_object = network.at_boxes(images, [box]), network.at_objects(images, [box])
    assert torch.equal(as_location.boxes[0], box)
    assert as_object.boxes[0].tolist() == [[30, 30, 34, 34]]  # 16 pixels are on the finest level
    retina = small("RetinaNet").eval()
    assert torch.equal(retina.at_objects(images, [box]).logits, retina.at_boxes(images, [box]).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchor_with_the_largest_overlap_equals_a_comparison_with_all(kind):
    network = small(kind).eval()
    images = torch.rand(1, 3, 64, 96)
    dense = network._dense(network._prepared(list(images)))
    corner, size = torch.rand(200, 2) * 60 - 5, 2 + torch.rand(200, 2) * 50
    boxes = torch.cat([corner, corner + size], 1)
    boxes = torch.cat([boxes, boxes.round(), dense.anchors[0], torch.tensor([[500.0, 500, 510, 510]])])
    expected = torchvision.ops.box_iou(boxes, dense.anchors[0]).max(1)
    overlap, position = one_stage._overlapping(dense.anchors[0], boxes, dense.grids)
    torch.testing.assert_close(overlap, expected.values)
    assert torch.equal(position, expected.indices)


def test_the_first_of_several_anchors_that_overlap_equally():
    network = small("RetinaNet").eval()
    regions = network.at_boxes(torch.rand(1, 3, 64, 64), [torch.tensor([[26.0, 24, 38, 36]])])
    assert regions.boxes[0].tolist() == [[26, 22, 38, 34]]  # the one of [26, 26, 38, 38] is later


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_evaluated_at_the_anchors_of_a_student(kind):
    student, teacher = small(kind), models.frozen(small(kind), CPU)
    images, objects = scenes(2)
    boxes = student(images, objects).regions.boxes
    before = copy.deepcopy(teacher.state_dict())
    regions = teacher.at_boxes(images, boxes)
    assert all(torch.equal(a, b) for a, b in zip(regions.boxes, boxes, strict=True))
    assert regions.logits.shape == (512, 4) and not regions.logits.requires_grad
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    none = teacher.at_boxes(images, [nothing().boxes] * 2)
    assert none.logits.shape == (0, 4) and none.features.shape == (0, 64) and none.image.shape == (0,)
    assert teacher.at_objects(images, [objects[0].boxes, nothing().boxes]).image.tolist() == [0] * len(objects[0].boxes)
    two_stage = models.create("resnet8-fpn", 3)
    proposals = two_stage(images, objects).regions.boxes
    assert teacher.at_boxes(images, proposals).logits.shape == (sum(map(len, proposals)), 4)
    assert torch.equal(
        fixed_statistics(two_stage).at_objects(images, boxes).logits, two_stage.at_boxes(images, boxes).logits
    )


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_without_boxes_uses_the_anchors_with_the_highest_scores(kind):
    network = models.frozen(small(kind), CPU)
    images, _ = scenes(2)
    regions = network(images, maps=True)
    assert regions.logits.shape == (512, 4) and len(regions.maps) == 3
    scores = regions.logits[:, 1:].amax(1).view(2, 256)
    assert (scores.diff() <= 0).all()
    torch.testing.assert_close(network.at_boxes(images, regions.boxes).logits, regions.logits)


def test_the_softmax_has_the_odds_of_the_sigmoids():
    network = small("RetinaNet").eval()
    logits = network(torch.rand(1, 3, 64, 64)).logits
    softmax, sigmoid = logits.softmax(1), logits[:, 1:].sigmoid()
    torch.testing.assert_close(softmax[:, 1:] / softmax[:, :1], sigmoid / (1 - sigmoid))


# ---------------------------------------------------------------------------- what every Network has, here too


@pytest.mark.parametrize("kind", KINDS)
def test_identity_copies_and_saved_weights(kind, tmp_path):
    network = small(kind)
    assert (network.task, network.num_classes, network.features_dim, network.name) == (
        "detection",
        3,
        64,
        kind.lower(),
    )
    seen = {network.identity, models.frozen(network, CPU).identity}
    assert len(seen) == 1
    network.module.nms_thresh = 0.3
    seen.add(network.identity)
    network.module.anchor_generator.sizes = ((5,), (9,), (17,))
    seen.add(network.identity)
    assert len(seen) == 3
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network.state_dict(), tmp_path / "student.safetensors")
    loaded = models.load_weights(small(kind), tmp_path / "student.safetensors")
    torch.save(network.module.state_dict(), tmp_path / "inner.pth")
    assert models.load_weights(loaded, tmp_path / "inner.pth") is loaded
    advice = "create the network with num_classes=3$"
    refused(advice, lambda: models.load_weights(small(kind, 5), tmp_path / "inner.pth"))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    """Anchors keep their coordinates, which bfloat16 would round to whole pixels and coarser."""
    network = fixed_statistics(small(kind))
    images, objects = scenes(2, side=96)
    expected = network(images, objects)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(images, objects)
        network.detect(images)
        torch.manual_seed(3)
        again = network.at_boxes(images, found.regions.boxes)
    assert all(torch.equal(a, b) for a, b in zip(again.boxes, found.regions.boxes, strict=True))
    assert found.regions.boxes[0].dtype == found.losses["classification"].dtype == torch.float32
    assert (found.labels > 0).sum() == (expected.labels > 0).sum()
    for key, value in expected.losses.items():
        torch.testing.assert_close(found.losses[key], value, rtol=0.05, atol=0.05)


# --------------------------------------------------------------------------------- torchvision and wrapped ones

NAMES = ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"]


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_detectors(name):
    network = models.create(f"torchvision/{name}", 3, min_size=64)
    assert (network.name, network.num_classes, network.features_dim) == (f"torchvision/{name}", 3, 256)
    assert network.training and network.resizes and network.std.unique().tolist() == [1]
    assert network.module.head.classification_head.num_classes == 4
    images, objects = scenes(1)
    assert set(network(images, objects).losses) == KEYS["FCOS" if "fcos" in name else "RetinaNet"]
    assert network.eval().at_boxes(images, [objects[0].boxes]).logits.shape[1] == 4
    assert len(network.detect(images)) == 1
    refused(f"unknown option of {name} 'nms_tresh'; did", lambda: models.create(f"torchvision/{name}", nms_tresh=0.3))


@pytest.mark.parametrize(("name", "classes"), list(zip(NAMES, (90, 5, 90), strict=True)))
def test_torchvisions_weights(name, classes, monkeypatch):
    """With 90 classes they are COCO's own; with 5 only the layer of the logits is new."""
    source = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    weights = torchvision.models.get_model_weights(name)
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    network = models.create(f"torchvision/{name}", classes, pretrained=True, min_size=None, topk_candidates=50)
    own, head = source.head.classification_head, network.module.head.classification_head
    assert network.num_classes == classes and not network.resizes
    assert torch.equal(network.module.head.regression_head.bbox_reg.weight, source.head.regression_head.bbox_reg.weight)
    assert torch.equal(head.conv[0][0].weight if "retina" in name else head.conv[0].weight, next(own.parameters()))
    if classes == 90:
        assert torch.equal(head.cls_logits.weight, own.cls_logits.weight)
    else:
        assert head.cls_logits.out_channels == 6 * head.num_anchors and head.num_classes == 6
        assert head.cls_logits.bias[0].item() == pytest.approx(math.log(0.01 / 0.99), rel=1e-4)
    torch.testing.assert_close(network.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    images, objects = scenes(1)
    assert network(images, objects).regions.logits.shape[1] == classes + 1


def test_the_weights_of_a_backbone(monkeypatch):
    source = torchvision.models.resnet50()
    weights = torchvision.models.ResNet50_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: source.state_dict())  # no download
    network = models.create("torchvision/retinanet_resnet50_fpn", 3, pretrained="backbone")
    assert torch.equal(network.module.backbone.body.conv1.weight, source.conv1.weight)
    assert not network.module.backbone.body.conv1.weight.requires_grad  # as torchvision's own detectors are built
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_detectors(kind):
    module = small(kind).module
    network = models.wrap_detection(module.eval(), num_classes=3, mean=(0.1, 0.2, 0.3))
    assert network.module is module and not network.training and network.name == kind and network.resizes
    assert network.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert network.std.flatten().tolist() == pytest.approx([0.3] * 3)
    assert isinstance(network, models.Detector)
    refused("3 classes without the background, not num_classes=4", lambda: models.wrap_detection(module, num_classes=4))
    refused(r"float16; give module.float\(\)", lambda: models.wrap_detection(copy.deepcopy(module).half()))
    module.head.classification_head.cls_logits = nn.Identity()
    refused(f"{kind} has no convolution head.*cls_logits", lambda: models.wrap_detection(module))
    ssd = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    refused("SSD is not a torchvision GeneralizedRCNN .* RetinaNet or FCOS; wrap", lambda: models.wrap_detection(ssd))


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_images_objects_and_modes_are_refused(kind):
    network = small(kind)
    image, one = torch.rand(1, 3, 64, 64), torch.tensor([[1.0, 2, 30, 40]])
    refused(r"was given torch.uint8 of shape", lambda: network.detect(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
    refused("has no area", lambda: network(image, [Objects(one[:, [2, 1, 0, 3]], torch.tensor([0]))]))
    refused(f"label 3; the labels of {kind.lower()} are 0", lambda: network(image, [Objects(one, torch.tensor([3]))]))
    refused("1 images, but the boxes of 2", lambda: network.at_boxes(image, [one, one]))
    refused(r"boxes of shape \[4\]", lambda: network.at_objects(image, [one[0]]))
    refused("training mode and was given images only", lambda: network(image))
    network.eval()
    refused("evaluation mode; call train", lambda: network.training_pass(image, [nothing()]))
