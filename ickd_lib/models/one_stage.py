"""One-stage detectors: the outputs at some of the anchors in a training pass, and at the anchors for given boxes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .detection import Detector, Prepared, Regions

SAMPLES = 256  # number of samples of an image in a training pass
CHUNK = 64  # boxes that are compared with all locations at once, because an image may have 20,000 locations
SAME = 0.99  # intersection over union above which a box is an anchor, up to rounding
BEYOND = 2.0**16  # a distance in pixels that is larger than any in an image


class _Dense(NamedTuple):
    """The outputs for all N anchors of B images.

    outputs: the head's outputs "cls_logits" [B, N, C + 1], "bbox_regression" [B, N, 4], and of FCOS "bbox_ctrness".
    features: [B, N / A, D], the input of the layer that computes the logits; the A anchors at one place share it.
    anchors: B tensors [N, 4], in pixels of the resized images, the finest level of the pyramid first.
    grids: (height, width) of each level. Its anchors are ordered by row, then by column, then by the A at a place.
    levels: number of anchors of each level.
    """

    outputs: dict[str, Tensor]
    features: Tensor
    anchors: list[Tensor]
    grids: list[tuple[int, int]]
    levels: list[int]


class OneStage(Detector):
    """A one-stage detector of torchvision: RetinaNet (Lin et al. 2017, arXiv 1708.02002); FCOS is a `CentreSampled`.

    A sample is an anchor, and its box is the anchor's box. In a training pass, each image has `samples` samples: the
    anchors that are matched to an object, and others that are drawn at random from the background inside the image. If
    more than `samples` are matched, that many of them are drawn. Anchors whose overlap with an object is between the
    two thresholds of the matching are not samples. Without objects, the samples are the anchors with the highest score
    of any class.
    The sample for a given box is the anchor with the largest intersection over union (the first of several). So the
    sample for an anchor's box is this anchor, and a teacher with the same anchors is evaluated where its student was.
    The sample for an annotated box is an anchor that is matched to it, unless another object overlaps more with this
    anchor.

    Logits: the network outputs a logit z_c for each class, whose sigmoid is the probability of this class against all
    others. `Regions.logits` is (0, z_1, ..., z_C): column 0, the background, is the constant 0. The softmax of these
    has odds exp(z_c) of each class against the background, as the sigmoid has; its probabilities are close to the
    sigmoids where at most one class is likely. The module's own column 0 is ignored: torchvision's `num_classes`
    includes the background, and its labels begin at 1, so the probability of this column is trained towards 0 for all
    anchors. COCO's weights have 91 columns, and therefore C = 90.

    Features: the output of the classification tower at the anchor's place, the same for all anchors of one place. The
    logits are computed from it and its eight neighbours, by a 3 x 3 convolution.

    Losses: `classification` and `bbox_regression`, of all anchors, and `bbox_ctrness` of FCOS.

    Args:
        module: torchvision's RetinaNet, whose classification head has a convolution `cls_logits` for the logits.
        resizes: whether the module's transform resizes images. If False, they are only padded to one size.
    Attributes:
        samples: number of samples of an image; fewer if it does not have enough anchors.
    """

    classifier_name = "module.head.classification_head.cls_logits"

    def __init__(self, module: nn.Module, *, resizes: bool = True) -> None:
        head: Any = module.get_submodule("head.classification_head")
        super().__init__(module, head.num_classes - 1, head.cls_logits.in_channels, resizes=resizes)
        self.samples = SAMPLES

    def _settings(self) -> list[tuple[Any, tuple[str, ...]]]:
        thresholds = ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates", "center_sampling_radius")
        generator = self.module.anchor_generator
        return [(self, ("samples",)), (generator, ("sizes", "aspect_ratios")), (self.module, thresholds)]

    def _own_regions(self, prepared: Prepared, maps: bool) -> Regions:
        dense = self._dense(prepared)
        best = dense.outputs["cls_logits"][:, :, 1:].amax(2)
        chosen = []
        for score, anchors, size in zip(best, dense.anchors, prepared.images.image_sizes, strict=True):
            inside = _inside(anchors, size)
            count = min(self.samples, int(inside.sum()))
            chosen.append(score.masked_fill(~inside, -torch.inf).topk(count).indices)
        return self._regions(prepared, dense, chosen, maps)

    def _trained(
        self, prepared: Prepared, targets: list[dict[str, Tensor]], maps: bool
    ) -> tuple[dict[str, Tensor], Regions, list[Tensor], list[Tensor]]:
        dense = self._dense(prepared)
        with _matching(self.module.head) as matching:
            losses = self._losses(targets, dense)
        sizes = prepared.images.image_sizes
        chosen, labels, matched = [], [], []
        for target, match, anchors, size in zip(targets, matching, dense.anchors, sizes, strict=True):
            sample = _drawn((match >= 0).nonzero().squeeze(1), self.samples)
            others = ((match == -1) & _inside(anchors, size)).nonzero().squeeze(1)
            sample = torch.cat([sample, _drawn(others, self.samples - len(sample))])
            own = match[sample]
            chosen.append(sample)
            matched.append(own.clamp(min=0))
            padded = torch.cat([target["labels"].new_zeros(1), target["labels"]])  # the background is first
            labels.append(padded[own + 1])
        regions = self._regions(prepared, dense, chosen, maps)._replace(raw=dense.outputs["cls_logits"])
        return losses, regions, labels, matched

    def _regions_at(self, prepared: Prepared, boxes: list[Tensor], maps: bool, annotated: bool) -> Regions:
        dense = self._dense(prepared)
        pairs = zip(dense.anchors, prepared.scaled(boxes), strict=True)
        chosen = [self._anchors_of(dense, anchors, one, annotated) for anchors, one in pairs]
        return self._regions(prepared, dense, chosen, maps)

    def _detected(self, prepared: Prepared) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        dense = self._dense(prepared)
        dense.outputs["cls_logits"][:, :, 0] = -torch.inf  # this column is not a class
        outputs = {key: list(value.split(dense.levels, dim=1)) for key, value in dense.outputs.items()}
        anchors = [list(one.split(dense.levels)) for one in dense.anchors]
        found = self.module.postprocess_detections(outputs, anchors, prepared.images.image_sizes)
        boxes, labels, scores = ([one[key] for one in found] for key in ("boxes", "labels", "scores"))
        return boxes, labels, scores

    def _dense(self, prepared: Prepared) -> _Dense:
        """Evaluate the head once on the pyramid."""
        maps, padded = list(prepared.pyramid.values()), prepared.images.tensors
        towers: list[Tensor] = []
        layer = self.module.head.classification_head.cls_logits
        with layer.register_forward_pre_hook(lambda _, inputs: towers.append(inputs[0])):
            outputs = self.module.head(maps)
        # In a lower precision, the coordinates of anchors, and sums over all anchors, would be too inexact. The
        # generator uses only the size, type and device of the maps.
        outputs = {key: value.to(padded.dtype) for key, value in outputs.items()}
        like = [padded.new_empty(0, 1, *one.shape[2:]) for one in maps]
        anchors = self.module.anchor_generator(prepared.images, like)
        several = self.module.anchor_generator.num_anchors_per_location()[0]
        grids = [(one.shape[2], one.shape[3]) for one in maps]
        levels = [several * height * width for height, width in grids]
        features = torch.cat([one.permute(0, 2, 3, 1).flatten(1, 2) for one in towers], dim=1)
        return _Dense(outputs, features, anchors, grids, levels)

    def _regions(self, prepared: Prepared, dense: _Dense, chosen: list[Tensor], maps: bool) -> Regions:
        """Return the outputs for the chosen anchors of each image, given by their positions among the N."""
        logits, features = dense.outputs["cls_logits"], dense.features
        count, places = logits.shape[1], features.shape[1]
        anchor = torch.cat([i * count + one for i, one in enumerate(chosen)])
        place = torch.cat([i * places + one // (count // places) for i, one in enumerate(chosen)])
        z = logits.flatten(0, 1).index_select(0, anchor)[:, 1:]
        z = torch.cat([z.new_zeros(len(z), 1), z], dim=1)
        boxes = [anchors[one] for anchors, one in zip(dense.anchors, chosen, strict=True)]
        return prepared.regions(z, features.flatten(0, 1).index_select(0, place), boxes, maps)

    def _losses(self, targets: list[dict[str, Tensor]], dense: _Dense) -> dict[str, Tensor]:
        """Return the module's own losses."""
        losses: dict[str, Tensor] = self.module.compute_loss(targets, dense.outputs, dense.anchors)
        return losses

    def _anchors_of(self, dense: _Dense, anchors: Tensor, boxes: Tensor, annotated: bool) -> Tensor:
        """Return the positions, among the anchors [N, 4] of an image, of the samples for the boxes [S, 4]."""
        return _overlapping(anchors, boxes, dense.grids)[1]


class CentreSampled(OneStage):
    """FCOS of torchvision (Tian et al. 2019, arXiv 1904.01355), which has one anchor, a location, at each place.

    The box of a location is a square around it, as wide as its stride. If a box that is given to `at_boxes` is that of
    a location, up to rounding, its sample is this location. All other boxes, and all that are given to `at_objects`,
    are treated as boxes of objects: the sample is the location nearest to the middle of the box among those that FCOS
    matches to an object with this box. FCOS matches the locations inside the box, at most 1.5 strides
    (`center_sampling_radius`) from its middle, whose distance to the farthest edge is in the range of their level. If
    there are none, because the box is small or thin, the sample is the nearest location whose distance to the farthest
    edge is in the range of its level. FCOS itself assigns a location that is matched to several objects to the smallest
    of them; here each box is considered alone.
    A student and a teacher should resize images alike; otherwise the student's locations are not locations of the
    teacher.

    Logits are those of the classes alone, as `OneStage` describes them. A detection's score is instead
    sqrt(sigmoid(z_c) sigmoid(centreness)), as in torchvision.

    Args:
        module: torchvision's FCOS, whose classification head has a convolution `cls_logits` for the logits.
        resizes: whether the module's transform resizes images. If False, they are only padded to one size.
    """

    def _losses(self, targets: list[dict[str, Tensor]], dense: _Dense) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.module.compute_loss(targets, dense.outputs, dense.anchors, dense.levels)
        return losses

    def _anchors_of(self, dense: _Dense, anchors: Tensor, boxes: Tensor, annotated: bool) -> Tensor:
        overlap, position = _overlapping(anchors, boxes, dense.grids)
        objects = torch.ones_like(overlap, dtype=torch.bool) if annotated else overlap <= SAME
        matched = partial(_centre_sampled, anchors, levels=dense.levels, radius=self.module.center_sampling_radius)
        position[objects] = torch.cat([matched(part) for part in boxes[objects].split(CHUNK)])
        return position


def _inside(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which anchors [N, 4] have their middle in an image of `size` (H, W) and not in its padding, bool [N]."""
    x, y = _middle(anchors).unbind(1)
    return (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0])


def _middle(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _drawn(positions: Tensor, count: int) -> Tensor:
    """Draw `count` of the positions, or return all if there are not more."""
    if len(positions) <= count:
        return positions
    return positions[torch.randperm(len(positions), device=positions.device)[:count]]


def _overlapping(anchors: Tensor, boxes: Tensor, grids: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the largest intersection over union of each box [S, 4] with anchors [N, 4], and the anchor's position.

    Anchors of one shape form a grid, on which the area of the intersection is the product of a factor that depends on
    the column and one that depends on the row. So a box is compared with all columns and all rows, not all anchors.
    """
    several = len(anchors) // sum(height * width for height, width in grids)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1, keepdim=True)
    overlaps, positions, start = [], [], 0
    for height, width in grids:
        grid = anchors[start : start + height * width * several].view(height, width, several, 4)
        across, column = _common(boxes[:, 0], boxes[:, 2], grid[0, :, :, 0], grid[0, :, :, 2])
        along, row = _common(boxes[:, 1], boxes[:, 3], grid[:, 0, :, 1], grid[:, 0, :, 3])
        shapes = (grid[0, 0, :, 2:] - grid[0, 0, :, :2]).prod(1)
        both = across * along
        overlaps.append(both / (area + shapes - both))
        positions.append(start + (row * width + column) * several + torch.arange(several, device=row.device))
        start += height * width * several
    overlap, position = torch.cat(overlaps, 1), torch.cat(positions, 1)
    best = overlap.amax(1, keepdim=True)
    return best[:, 0], position.masked_fill(overlap < best, len(anchors)).amin(1)


def _common(start: Tensor, end: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest overlap of each of S intervals with n others of each of A kinds, and its position: [S, A].

    The S intervals go from `start` to `end`, both [S], and the others from `starts` to `ends`, both [n, A]. Of several
    equal overlaps, the position is that of the first.
    """
    shared = torch.minimum(end[:, None, None], ends) - torch.maximum(start[:, None, None], starts)
    longest = shared.clamp(min=0).max(1)
    return longest.values, longest.indices


def _centre_sampled(anchors: Tensor, boxes: Tensor, *, levels: list[int], radius: float) -> Tensor:
    """Return the position of the location for each box [S, 4] as `CentreSampled` describes it."""
    side = anchors[:, 2] - anchors[:, 0]
    low, high = 4 * side, 8 * side  # the range of a level, in torchvision's FCOS
    low[: levels[0]] = 0
    high[-levels[-1] :] = torch.inf
    place = _middle(anchors)
    away = (place - _middle(boxes)[:, None]).abs().amax(2)
    edges = torch.cat([place - boxes[:, None, :2], boxes[:, None, 2:] - place], dim=2)
    farthest = edges.amax(2)
    in_range = (low < farthest) & (farthest < high)
    matched = in_range & (away < radius * side) & (edges.amin(2) > 0)
    # Matched locations come before others in range, and these before all others.
    return (away + BEYOND * (2 - in_range.float() - matched.float())).argmin(1)


@contextlib.contextmanager
def _matching(head: Any) -> Iterator[list[Tensor]]:
    """Collect the matching that the losses use: for each image the target of each anchor, negative if it has none.

    torchvision passes it from `compute_loss` of the detector to that of the head, and returns it nowhere.
    """
    matching: list[Tensor] = []
    original = head.compute_loss

    def compute_loss(targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> Any:
        matching.extend(matched)
        return original(targets, outputs, anchors, matched)

    head.compute_loss = compute_loss
    try:
        yield matching
    finally:
        del head.compute_loss
