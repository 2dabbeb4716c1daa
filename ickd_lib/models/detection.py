"""Two-stage detectors: the outputs of the box head for the proposals of a training pass, and for any given boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..runtime import InputError
from .inspection import evaluating
from .network import Network

if TYPE_CHECKING:
    from torchvision.models.detection.image_list import ImageList


class Annotated(Protocol):
    """The n objects of one image.

    boxes: left, top, right and bottom edge in pixels of the image, floats, shape [n, 4].
    labels: class of each object, from 0 to C - 1, int64, shape [n].

    It may also have `crowd`, bool [n]: boxes that are left out of the training, such as COCO's crowds.
    """

    @property
    def boxes(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


class Regions(NamedTuple):
    """The outputs of a detector's box head for S boxes of B images.

    Attributes:
        logits: [S, C + 1], before the softmax, for the background (first) and the C classes.
        features: [S, D], the input of the layer that computes the logits.
        boxes: B tensors [S_i, 4] in pixels of the images given; logits and features have the same order.
        image: [S], position in the batch of the image that each box is from.
        maps: the pyramid [B, channels, H_i, W_i], from the largest map to the smallest; empty unless requested.
    """

    logits: Tensor
    features: Tensor
    boxes: tuple[Tensor, ...]
    image: Tensor
    maps: tuple[Tensor, ...] = ()


class TrainingPass(NamedTuple):
    """All that one training pass of a detector computes.

    Attributes:
        losses: the detector's own losses, scalars: `loss_classifier` and `loss_box_reg` of the box head,
            `loss_objectness` and `loss_rpn_box_reg` of the region proposal network. Their sum is trained.
        regions: logits and features, with gradient, for the S proposals that the box head was trained on.
        labels: [S], the target of each proposal as a column of the logits: 0 for background, c + 1 for class c.
        matched: [S], the position of the object that a proposal is matched to among the objects of its image, -1 for
            background.
    """

    losses: dict[str, Tensor]
    regions: Regions
    labels: Tensor
    matched: Tensor


class Detections(NamedTuple):
    """The detected objects of one image, the best first.

    Attributes:
        boxes: [n, 4], in pixels of the image given, inside it.
        labels: [n], from 0 to C - 1.
        scores: [n], probabilities.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Detector(Network):
    """A two-stage detector of torchvision (Faster R-CNN, Ren et al. 2015, arXiv 1506.01497), with preprocessing inside.

    Images are a tensor [B, 3, H, W] or B tensors [3, H_i, W_i] of floats in [0, 1], in the size that the data has.
    Boxes are always in pixels of these images, also if the detector resizes them, so that a student and a teacher that
    resize differently can be compared on the same boxes. C counts the classes of objects. The logits have one column
    more, because torchvision's detectors put the background first: column c + 1 is class c. A detector with a head for
    masks or keypoints can be a teacher, for its boxes alone, but is not trained. One-stage detectors (RetinaNet, FCOS,
    SSD) have no proposals and are not supported.

    Args:
        module: torchvision's GeneralizedRCNN, whose box predictor has a linear layer `cls_score` for the logits.
        resizes: resize images as the module's transform does; False leaves their size and only pads them to one size.
    """

    task = "detection"
    stages = ("module.backbone",)  # whose output is the pyramid, a map for each level
    classifier_name = "module.roi_heads.box_predictor.cls_score"

    def __init__(self, module: nn.Module, *, resizes: bool = True) -> None:
        logits = module.get_submodule("roi_heads.box_predictor.cls_score")
        assert isinstance(logits, nn.Linear)
        super().__init__(logits.out_features - 1, logits.in_features)
        self.module: Any = module
        self.resizes = resizes

    def _facts(self) -> list[Any]:
        transform, rpn, heads = self.module.transform, self.module.rpn, self.module.roi_heads
        anchors, pool = rpn.anchor_generator, heads.box_roi_pool
        parts = (
            (transform, ("min_size", "max_size", "fixed_size", "size_divisible")),
            (anchors, ("sizes", "aspect_ratios")),
            (pool, ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level")),
            (rpn, ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh")),
            (heads, ("score_thresh", "nms_thresh", "detections_per_img")),
        )
        settings = [repr(getattr(part, name, None)) for part, names in parts for name in names]
        return [*super()._facts(), self.resizes, settings]

    def forward(  # type: ignore[override]
        self,
        images: Tensor | Sequence[Tensor],
        objects: Sequence[Annotated] | None = None,
        *,
        maps: bool = False,
    ) -> Regions | TrainingPass:
        """Return `training_pass(images, objects)`, or without objects the outputs for the detector's own proposals.

        Raises:
            InputError: as `training_pass`; no objects are given in training mode.
        """
        if objects is not None:
            return self.training_pass(images, objects, maps=maps)
        if self.training:
            raise InputError(
                f"{self.name} is in training mode and was given images only; give their objects or call eval()"
            )
        scene = self._scene(self._checked(images))
        proposals, _ = self.module.rpn(scene.images, scene.pyramid)
        return self._regions(scene, proposals, maps)[0]

    def training_pass(
        self, images: Tensor | Sequence[Tensor], objects: Sequence[Annotated], *, maps: bool = False
    ) -> TrainingPass:
        """Compute the detector's own losses, and the outputs for the proposals they are computed on, in one pass.

        Proposals and anchors are sampled with torch's global generator; the objects themselves are added to the
        proposals before. Under DistributedDataParallel call the network itself, which does the same.

        Args:
            images: B images, [B, 3, H, W] or B tensors [3, H_i, W_i].
            objects: the objects of each image; an image may have none.
            maps: also return the pyramid, with gradient.
        Raises:
            InputError: the detector is not in training mode, or has a head for masks or keypoints; images or objects
                have another type, shape or number; a box has no area; a label is not one of the C classes.
        """
        from torchvision.models.detection.roi_heads import fastrcnn_loss

        if not self.training:
            raise InputError(f"{self.name} is in evaluation mode; call train() before a training pass")
        heads = self.module.roi_heads
        if heads.has_mask() or heads.has_keypoint():
            raise InputError(f"{self.name} has a head for masks or keypoints and is not trained; it can be a teacher")
        images = self._checked(images)
        kept = [self._kept(one, images[0]) for one in objects]
        self._check(images, [boxes for boxes, _, _ in kept], [labels for _, labels, _ in kept])
        scene = self._scene(images)
        boxes = scene.scaled([boxes for boxes, _, _ in kept])
        targets = [{"boxes": one, "labels": labels + 1} for one, (_, labels, _) in zip(boxes, kept, strict=True)]

        proposals, losses = self.module.rpn(scene.images, scene.pyramid, targets)
        proposals, matched, labels, offsets = heads.select_training_samples(proposals, targets)
        regions, predicted = self._regions(scene, proposals, maps)
        of_logits, of_boxes = fastrcnn_loss(regions.logits, predicted, labels, offsets)
        positions = [
            torch.where(label > 0, torch.cat([given, given.new_zeros(1)])[match], -1)  # without objects `match` is 0
            for match, label, (_, _, given) in zip(matched, labels, kept, strict=True)
        ]
        losses = {"loss_classifier": of_logits, "loss_box_reg": of_boxes, **losses}
        return TrainingPass(losses, regions, torch.cat(labels), torch.cat(positions))

    def at_boxes(self, images: Tensor | Sequence[Tensor], boxes: Sequence[Tensor], *, maps: bool = False) -> Regions:
        """Compute logits and features for given boxes, such as a student's proposals or annotated boxes.

        Batch norm follows the network's mode, as always: in training mode it uses the statistics of this batch.

        Args:
            images: B images, [B, 3, H, W] or B tensors [3, H_i, W_i].
            boxes: the boxes of each image, B tensors [S_i, 4] in pixels of the images; S_i may be 0.
            maps: also return the pyramid.
        Raises:
            InputError: images or boxes have another type, shape or number; a box has no area.
        """
        images = self._checked(images)
        boxes = [one.to(images[0]) for one in boxes]
        self._check(images, boxes)
        scene = self._scene(images)
        regions, _ = self._regions(scene, scene.scaled(boxes), maps)
        return regions._replace(boxes=tuple(boxes))

    def detect(self, images: Tensor | Sequence[Tensor]) -> list[Detections]:
        """Detect objects, in evaluation mode and without gradients; each submodule returns to its earlier mode.

        The module's thresholds for scores, for suppression and for the number of detections apply.
        """
        heads = self.module.roi_heads
        with evaluating(self):
            scene = self._scene(self._checked(images))
            proposals, _ = self.module.rpn(scene.images, scene.pyramid)
            regions, offsets = self._regions(scene, proposals, False)
            sizes = scene.images.image_sizes
            found = heads.postprocess_detections(regions.logits, offsets, proposals, sizes)
        boxes = scene.scaled(found[0], back=True)
        return [Detections(*one) for one in zip(boxes, [labels - 1 for labels in found[2]], found[1], strict=True)]

    def _checked(self, images: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return the images as a list, if they are images."""
        several = list(images) if isinstance(images, (Tensor, list, tuple)) else []
        wrong: list[Any] = [image for image in several if not _is_image(image)] if several else [images]
        if wrong:
            raise InputError(
                f"{self.name} was given {_described(wrong[0])} as an image; it takes floats in [0, 1], of shape "
                "[B, 3, H, W] or B tensors of shape [3, H, W]"
            )
        return several

    def _kept(self, objects: Annotated, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes and labels of the objects that are not crowds, and their positions among all."""
        crowd = getattr(objects, "crowd", None)
        labels = objects.labels.to(like.device)
        kept = torch.ones_like(labels, dtype=torch.bool) if crowd is None else ~crowd.to(like.device)
        positions = kept.nonzero().squeeze(1)
        return objects.boxes.to(like)[positions], labels[positions], positions

    def _check(self, images: list[Tensor], boxes: list[Tensor], labels: Sequence[Tensor] = ()) -> None:
        """Check the number, shape and area of the boxes of all images, and their labels if these are given."""
        if len(boxes) != len(images):
            raise InputError(f"{len(images)} images, but the boxes of {len(boxes)}; give the boxes of each image")
        for one in boxes:
            if one.ndim != 2 or one.shape[1] != 4:
                raise InputError(
                    f"boxes of shape {list(one.shape)}; give a tensor [n, 4] for each image, also for n = 0"
                )
        every = torch.cat(boxes)
        classes = torch.cat([*labels, every.new_zeros(0, dtype=torch.int64)])
        empty = ~(every[:, 2:] > every[:, :2]).all(1)
        unknown = (classes < 0) | (classes >= self.num_classes)
        if not bool(empty.any() | unknown.any()):  # the GPU is waited for once
            return
        if bool(unknown.any()):
            raise InputError(
                f"an object has label {int(classes[unknown][0])}; the labels of {self.name} are 0 to "
                f"{self.num_classes - 1}, without the background"
            )
        box = [round(edge, 2) for edge in every[empty][0].tolist()]
        raise InputError(f"box {box} has no area; boxes are [left, top, right, bottom] in pixels: leave it out")

    def _scene(self, images: list[Tensor]) -> _Scene:
        """Normalise, resize and pad the images, and compute their pyramid: the only pass of the backbone."""
        from torchvision.models.detection.image_list import ImageList

        transform = self.module.transform
        resized = [(image - self.mean[0]) / self.std[0] for image in images]
        if self.resizes:
            resized = [transform.resize(image)[0] for image in resized]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        inside = [(image.shape[1], image.shape[2]) for image in resized]
        padded = transform.batch_images(resized, size_divisible=transform.size_divisible)
        pyramid = self.module.backbone(padded)
        return _Scene(sizes, ImageList(padded, inside), {"0": pyramid} if isinstance(pyramid, Tensor) else pyramid)

    def _regions(self, scene: _Scene, boxes: list[Tensor], maps: bool) -> tuple[Regions, Tensor]:
        """Evaluate the box head for boxes in pixels of the resized images; also return its corrections of the boxes."""
        heads, padded = self.module.roi_heads, scene.images.tensors
        # The pooling computes the strides of its maps from the image size of its first pass. Only the padded size gives
        # them exactly; and they are computed anew, so that the outputs do not depend on earlier images.
        size = (padded.shape[2], padded.shape[3])
        heads.box_roi_pool.scales = None
        pooled = heads.box_roi_pool(scene.pyramid, boxes, [size] * len(boxes))
        features = heads.box_head(pooled).flatten(1)
        logits, offsets = heads.box_predictor(features)
        image = torch.cat([torch.full((len(one),), i, device=one.device) for i, one in enumerate(boxes)])
        original = tuple(scene.scaled(boxes, back=True))
        return Regions(logits, features, original, image, tuple(scene.pyramid.values()) if maps else ()), offsets


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and len(value) == 3 and value.is_floating_point()


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class _Scene(NamedTuple):
    """A batch after preprocessing: original sizes (H, W), resized and padded images, and their pyramid."""

    sizes: list[tuple[int, int]]
    images: ImageList
    pyramid: dict[str, Tensor]

    def scaled(self, boxes: Sequence[Tensor], *, back: bool = False) -> list[Tensor]:
        """Return the boxes of each image in pixels of the resized image; or, with `back`, in those of the original."""
        result = []
        for one, old, new in zip(boxes, self.sizes, self.images.image_sizes, strict=True):
            if old != new:
                y, x = (new[side] / old[side] for side in (0, 1))
                factors = one.new_tensor([x, y, x, y])
                one = one / factors if back else one * factors
            result.append(one)
        return result


def wrap_detection(
    module: nn.Module,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resizes: bool = True,
    name: str | None = None,
) -> Detector:
    """Make a Detector of any module that is built as torchvision's two-stage detectors are.

    The Detector contains the module itself, not a copy.

    Args:
        module: a torchvision GeneralizedRCNN (such as FasterRCNN or MaskRCNN).
        num_classes: C, the number of classes without the background, compared with the module's; None accepts any.
        mean: [3], subtracted from images in [0, 1]; None takes the module's own.
        std: [3], by which the difference is divided; None takes the module's own.
        resizes: resize images as the module's transform does; False leaves their size.
        name: the network's name in error messages and run folders; by default the module's class.
    Raises:
        InputError: the module is no GeneralizedRCNN, or its box predictor has no linear layer `cls_score`; C is not
            `num_classes`.
    """
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

    name = name or type(module).__name__
    if not isinstance(module, GeneralizedRCNN):
        raise InputError(
            f"{name} is no torchvision GeneralizedRCNN (a two-stage detector such as FasterRCNN); wrap one, or create "
            "one by name, such as resnet8-fpn or torchvision/fasterrcnn_resnet50_fpn"
        )
    predictor: Any = getattr(module.roi_heads, "box_predictor", None)
    if not isinstance(getattr(predictor, "cls_score", None), nn.Linear):
        raise InputError(f"the box predictor of {name} has no linear layer cls_score, which computes the logits")
    network = Detector(module, resizes=resizes)
    if num_classes not in (None, network.num_classes):
        raise InputError(
            f"{name} has {network.num_classes} classes without the background, not num_classes={num_classes}"
        )
    network.name = name
    network.training = module.training
    own: Any = module.transform
    network.set_normalisation(own.image_mean if mean is None else mean, own.image_std if std is None else std)
    like = predictor.cls_score.weight
    network.mean, network.std = network.mean.to(like), network.std.to(like)
    return network
