"""Detectors: the interface that two-stage and one-stage detectors have in common, and the types of their outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    """The outputs of a detector for S boxes of B images.

    Attributes:
        logits: [S, C + 1], before the softmax: the first column is the background, the others are the C classes.
        features: [S, D], the input of the layer that computes the logits.
        boxes: B tensors [S_i, 4] in pixels of the given images, in the order of the logits and features. For a
            one-stage detector they are the anchors that the outputs belong to.
        image: [S], position in the batch of the image that each box is from.
        maps: the pyramid [B, channels, H_i, W_i], from the largest map to the smallest; empty unless requested.
        raw: in a training pass, the output from which both the logits and the classification loss are computed; None
            if that is `logits`.
    """

    logits: Tensor
    features: Tensor
    boxes: tuple[Tensor, ...]
    image: Tensor
    maps: tuple[Tensor, ...] = ()
    raw: Tensor | None = None


class TrainingPass(NamedTuple):
    """The results of one training pass of a detector.

    Attributes:
        losses: the detector's own losses, scalars, under torchvision's names. Their sum is the loss of a training
            without distillation.
        regions: logits and features, with gradient, for S samples: the proposals that a box head was trained on, or
            anchors of a one-stage detector.
        labels: [S], the target of each sample as a column of the logits: 0 for background, c + 1 for class c.
        matched: [S], the position of the object that a sample is matched to among the objects of its image, -1 for
            background.
    """

    losses: dict[str, Tensor]
    regions: Regions
    labels: Tensor
    matched: Tensor


class Detections(NamedTuple):
    """The detected objects of one image, the best first.

    Attributes:
        boxes: [n, 4], in pixels of the given image, inside it.
        labels: [n], from 0 to C - 1.
        scores: [n], probabilities.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Detector(Network, ABC):
    """A detector of torchvision, with preprocessing inside: `TwoStage`, `OneStage` or `CentreSampled`.

    Images are a tensor [B, 3, H, W] or B tensors [3, H_i, W_i] of floats in [0, 1], in the size that the data has.
    Boxes are always in pixels of these images, even if the detector resizes the images, so that a student and a teacher
    that resize differently can be compared on the same boxes. C is the number of classes of objects. The logits have
    one column more, because the background is the first class of torchvision's detectors: column c + 1 is class c.

    A subclass defines `_own_regions`, `_trained`, `_regions_at`, `_detected` and `_settings`.

    Args:
        module: the detector of torchvision.
        num_classes: C, without the background.
        features_dim: D, the number of inputs of the layer that computes the logits.
        resizes: whether the module's transform resizes images. If False, they are only padded to one size.
    """

    task = "detection"
    stages = ("module.backbone",)  # whose output is the pyramid, a map for each level

    def __init__(self, module: nn.Module, num_classes: int, features_dim: int, *, resizes: bool) -> None:
        super().__init__(num_classes, features_dim)
        self.module: Any = module
        self.resizes = resizes

    def _facts(self) -> list[Any]:
        transform = (self.module.transform, ("min_size", "max_size", "fixed_size", "size_divisible"))
        parts = (transform, *self._settings())
        return [
            *super()._facts(),
            self.resizes,
            [repr(getattr(part, name, None)) for part, names in parts for name in names],
        ]

    def forward(  # type: ignore[override]
        self,
        images: Tensor | Sequence[Tensor],
        objects: Sequence[Annotated] | None = None,
        *,
        maps: bool = False,
    ) -> Regions | TrainingPass:
        """Return `training_pass(images, objects)`, or without objects the outputs for the detector's own regions.

        The own regions are the proposals of a two-stage detector, and the anchors with the highest scores of a
        one-stage detector.

        Raises:
            InputError: as in `training_pass`; or no objects are given in training mode.
        """
        if objects is not None:
            return self.training_pass(images, objects, maps=maps)
        if self.training:
            raise InputError(
                f"{self.name} is in training mode and was given images only; give their objects or call eval()"
            )
        return self._own_regions(self._prepared(self._checked(images)), maps)

    def training_pass(
        self, images: Tensor | Sequence[Tensor], objects: Sequence[Annotated], *, maps: bool = False, resized: int = 0
    ) -> TrainingPass:
        """Compute the detector's own losses, and the outputs for some of its regions, in one forward pass.

        The regions are drawn with torch's global generator. Under DistributedDataParallel, call the network itself
        instead, which does the same.

        Args:
            images: B images, [B, 3, H, W] or B tensors [3, H_i, W_i].
            objects: the objects of each image; an image may have none.
            maps: also return the pyramid, with gradient.
            resized: the length of the shorter side for which an augmentation has already resized the images
                (`DenseBatch.resized`). A detector that resizes to this length leaves such images as they are, because
                it would undo their random scale.
        Raises:
            InputError: the detector is not in training mode, or has a head for masks or keypoints; images or objects
                have another type, shape or number; a box has no area; a label is not one of the C classes.
        """
        if not self.training:
            raise InputError(f"{self.name} is in evaluation mode; call train() before a training pass")
        images = self._checked(images)
        kept = [self._kept(one, images[0]) for one in objects]
        self._check(images, [boxes for boxes, _, _ in kept], [labels for _, labels, _ in kept])
        prepared = self._prepared(images, resized)
        boxes = prepared.scaled([boxes for boxes, _, _ in kept])
        targets = [{"boxes": one, "labels": labels + 1} for one, (_, labels, _) in zip(boxes, kept, strict=True)]
        losses, regions, labels, matched = self._trained(prepared, targets, maps)
        positions = [
            torch.where(label > 0, torch.cat([given, given.new_zeros(1)])[match], -1)  # without objects `match` is 0
            for match, label, (_, _, given) in zip(matched, labels, kept, strict=True)
        ]
        return TrainingPass(losses, regions, torch.cat(labels), torch.cat(positions))

    def at_boxes(
        self, images: Tensor | Sequence[Tensor], boxes: Sequence[Tensor], *, maps: bool = False, resized: int = 0
    ) -> Regions:
        """Compute logits and features for given boxes, such as those of a student's regions.

        As always, batch norm depends on the network's mode: in training mode it uses the statistics of this batch.

        Args:
            images: B images, [B, 3, H, W] or B tensors [3, H_i, W_i].
            boxes: the boxes of each image, B tensors [S_i, 4] in pixels of the images; S_i may be 0.
            maps: also return the pyramid.
            resized: as in `training_pass`.
        Raises:
            InputError: images or boxes have another type, shape or number; a box has no area.
        """
        return self._at(images, boxes, maps, resized, annotated=False)

    def at_objects(self, images: Tensor | Sequence[Tensor], boxes: Sequence[Tensor], *, maps: bool = False) -> Regions:
        """Compute logits and features for the boxes of annotated objects; arguments and errors as in `at_boxes`.

        It differs from `at_boxes` only for FCOS, and only for an object whose box is exactly one of its anchors; see
        `CentreSampled`.
        """
        return self._at(images, boxes, maps, 0, annotated=True)

    def _at(
        self, images: Tensor | Sequence[Tensor], boxes: Sequence[Tensor], maps: bool, resized: int, *, annotated: bool
    ) -> Regions:
        images = self._checked(images)
        boxes = [one.to(images[0]) for one in boxes]
        self._check(images, boxes)
        return self._regions_at(self._prepared(images, resized), boxes, maps, annotated)

    def detect(self, images: Tensor | Sequence[Tensor]) -> list[Detections]:
        """Detect objects, in evaluation mode and without gradients; each submodule returns to its earlier mode.

        The module's score threshold, its threshold of non-maximum suppression and its largest number of detections
        apply.
        """
        with evaluating(self):
            prepared = self._prepared(self._checked(images))
            boxes, labels, scores = self._detected(prepared)
        boxes = prepared.scaled(boxes, back=True)
        return [Detections(*one) for one in zip(boxes, [one - 1 for one in labels], scores, strict=True)]

    @abstractmethod
    def _settings(self) -> list[tuple[Any, tuple[str, ...]]]:
        """Return parts of the module, each with the names of those of its attributes that the outputs depend on."""

    @abstractmethod
    def _own_regions(self, prepared: Prepared, maps: bool) -> Regions:
        """Compute the outputs for the detector's own regions."""

    @abstractmethod
    def _trained(
        self, prepared: Prepared, targets: list[dict[str, Tensor]], maps: bool
    ) -> tuple[dict[str, Tensor], Regions, list[Tensor], list[Tensor]]:
        """Return the losses, the regions, and for each image the labels and the matched targets of its regions.

        Targets have "boxes" in pixels of the resized images, and "labels" from 1 to C. The matched target of a region
        on the background is arbitrary, and 0 if the image has no targets.
        """

    @abstractmethod
    def _regions_at(self, prepared: Prepared, boxes: list[Tensor], maps: bool, annotated: bool) -> Regions:
        """Compute the outputs for boxes in pixels of the original images."""

    @abstractmethod
    def _detected(self, prepared: Prepared) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return boxes in pixels of the resized images, labels from 1 to C and scores of each image."""

    def _checked(self, images: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return the images as a list; raise an InputError if they are not images."""
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
        if not bool(empty.any() | unknown.any()):  # so that the CPU waits for the GPU only once
            return
        if bool(unknown.any()):
            raise InputError(
                f"an object has label {int(classes[unknown][0])}; the labels of {self.name} are 0 to "
                f"{self.num_classes - 1}, without the background"
            )
        box = [round(edge, 2) for edge in every[empty][0].tolist()]
        raise InputError(f"box {box} has no area; boxes are [left, top, right, bottom] in pixels: leave it out")

    def _prepared(self, images: list[Tensor], already: int = 0) -> Prepared:
        """Normalise, resize and pad the images, and compute their pyramid. Nothing else evaluates the backbone."""
        from torchvision.models.detection.image_list import ImageList

        transform = self.module.transform
        resized = [(image - self.mean[0]) / self.std[0] for image in images]
        if self.resizes and (transform.fixed_size or already != transform.min_size[-1]):
            resized = [transform.resize(image)[0] for image in resized]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        inside = [(image.shape[1], image.shape[2]) for image in resized]
        padded = transform.batch_images(resized, size_divisible=transform.size_divisible)
        pyramid = self.module.backbone(padded)
        levels = {"0": pyramid} if isinstance(pyramid, Tensor) else pyramid
        # Anchors get the type of the maps, and their coordinates must not be rounded under autocast.
        levels = {name: level.to(padded.dtype) for name, level in levels.items()}
        return Prepared(sizes, ImageList(padded, inside), levels)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and len(value) == 3 and value.is_floating_point()


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class Prepared(NamedTuple):
    """A batch after preprocessing: original sizes (H, W), resized and padded images, and their pyramid."""

    sizes: list[tuple[int, int]]
    images: ImageList
    pyramid: dict[str, Tensor]

    def regions(self, logits: Tensor, features: Tensor, boxes: list[Tensor], maps: bool) -> Regions:
        """Return the outputs for boxes in pixels of the resized images; the result has them in original pixels."""
        image = torch.cat([torch.full((len(one),), i, device=one.device) for i, one in enumerate(boxes)])
        original = tuple(self.scaled(boxes, back=True))
        return Regions(logits, features, original, image, tuple(self.pyramid.values()) if maps else ())

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
