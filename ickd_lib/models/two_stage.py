"""Two-stage detectors: the outputs of the box head for the proposals of a training pass, and for any given boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..runtime import InputError
from .detection import Annotated, Detector, Prepared, Regions, TrainingPass


class TwoStage(Detector):
    """A two-stage detector of torchvision, such as Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

    Its samples are the boxes that the box head is trained on: a random part of the proposals and of the objects' own
    boxes. Logits and features are computed from maps that are pooled from the pyramid at exactly the given boxes. The
    losses are `loss_classifier` and `loss_box_reg` of the box head, and `loss_objectness` and `loss_rpn_box_reg` of the
    region proposal network. A detector with a head for masks or keypoints cannot be trained, but it can be a teacher,
    of which only the box head is used.

    Args:
        module: torchvision's GeneralizedRCNN, whose box predictor has a linear layer `cls_score` for the logits.
        resizes: whether the module's transform resizes images. If False, they are only padded to one size.
    """

    classifier_name = "module.roi_heads.box_predictor.cls_score"

    def __init__(self, module: nn.Module, *, resizes: bool = True) -> None:
        logits = module.get_submodule("roi_heads.box_predictor.cls_score")
        assert isinstance(logits, nn.Linear)
        super().__init__(module, logits.out_features - 1, logits.in_features, resizes=resizes)

    def training_pass(
        self, images: Tensor | Sequence[Tensor], objects: Sequence[Annotated], *, maps: bool = False, resized: int = 0
    ) -> TrainingPass:
        heads = self.module.roi_heads
        if heads.has_mask() or heads.has_keypoint():
            raise InputError(f"{self.name} has a head for masks or keypoints and is not trained; it can be a teacher")
        return super().training_pass(images, objects, maps=maps, resized=resized)

    def _settings(self) -> list[tuple[Any, tuple[str, ...]]]:
        rpn, heads = self.module.rpn, self.module.roi_heads
        return [
            (rpn.anchor_generator, ("sizes", "aspect_ratios")),
            (
                heads.box_roi_pool,
                ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level"),
            ),
            (rpn, ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh")),
            (heads, ("score_thresh", "nms_thresh", "detections_per_img")),
        ]

    def _own_regions(self, prepared: Prepared, maps: bool) -> Regions:
        proposals, _ = self._proposals(prepared)
        return self._regions(prepared, proposals, maps)[0]

    def _trained(
        self, prepared: Prepared, targets: list[dict[str, Tensor]], maps: bool
    ) -> tuple[dict[str, Tensor], Regions, list[Tensor], list[Tensor]]:
        from torchvision.models.detection.roi_heads import fastrcnn_loss

        proposals, losses = self._proposals(prepared, targets)
        proposals, matched, labels, offsets = self.module.roi_heads.select_training_samples(proposals, targets)
        regions, predicted = self._regions(prepared, proposals, maps)
        of_logits, of_boxes = fastrcnn_loss(regions.logits, predicted, labels, offsets)
        return {"loss_classifier": of_logits, "loss_box_reg": of_boxes, **losses}, regions, labels, matched

    def _regions_at(self, prepared: Prepared, boxes: list[Tensor], maps: bool, annotated: bool) -> Regions:
        regions, _ = self._regions(prepared, prepared.scaled(boxes), maps)
        return regions._replace(boxes=tuple(boxes))

    def _detected(self, prepared: Prepared) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        proposals, _ = self._proposals(prepared)
        regions, offsets = self._regions(prepared, proposals, False)
        sizes = prepared.images.image_sizes
        boxes, scores, labels = self.module.roi_heads.postprocess_detections(regions.logits, offsets, proposals, sizes)
        return boxes, labels, scores

    def _proposals(
        self, prepared: Prepared, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the proposals of each image and, with targets, the losses of the region proposal network.

        Under autocast, the head of this network computes in a lower precision, in which proposals would be wrong by
        several pixels. Therefore its outputs are converted to the type of the images.
        """
        rpn, dtype = self.module.rpn, prepared.images.tensors.dtype

        def convert(head: nn.Module, inputs: Any, outputs: Any) -> Any:
            return tuple([one.to(dtype) for one in part] for part in outputs)

        hook = rpn.head.register_forward_hook(convert)
        try:
            return rpn(prepared.images, prepared.pyramid, targets)
        finally:
            hook.remove()

    def _regions(self, prepared: Prepared, boxes: list[Tensor], maps: bool) -> tuple[Regions, Tensor]:
        """Evaluate the box head for boxes in pixels of the resized images; also return its corrections of the boxes."""
        heads, padded = self.module.roi_heads, prepared.images.tensors
        # The pooling computes the strides of its maps from the image size in its first pass. They are exact only for
        # the padded size. They are computed in every pass, so that the outputs do not depend on earlier images.
        size = (padded.shape[2], padded.shape[3])
        heads.box_roi_pool.scales = None
        pooled = heads.box_roi_pool(prepared.pyramid, boxes, [size] * len(boxes))
        features = heads.box_head(pooled).flatten(1)
        logits, offsets = (one.to(padded.dtype) for one in heads.box_predictor(features))
        return prepared.regions(logits, features, boxes, maps), offsets
