"""Object detection: a sample is a proposal of a detector, or an annotated box."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ickd_lib import metrics, runtime
from ickd_lib.data import DenseBatch, DenseImages, Objects, RandomResize, loader
from ickd_lib.data.sequences import fetch
from ickd_lib.metrics.boxes import require_pycocotools
from ickd_lib.models import Detections, Detector, Network, Regions
from ickd_lib.models.inspection import evaluating
from ickd_lib.runtime import InputError, NotFinite
from ickd_lib.runtime.distributed import any_process, gather, gather_objects, share, wait_for_all
from ickd_lib.tasks.base import Column, Samples, Task, places_of, register
from ickd_lib.tasks.pictures import box_mask, crops, whole

PASS = 16  # number of images that are evaluated in one pass
PARTS = ("backbone", "rpn.head", "roi_heads.box_predictor", "head")  # modules of torchvision whose outputs are checked


@register("detection")
class Detection(Task):
    """Object detection: a sample is one of the proposals that the student's box head is trained on.

    In one-stage detectors a sample is an anchor, or in FCOS a location. Not all of them are samples; see `OneStage`.

    The teacher's logits and features are those of its own box head for the same boxes. The first column of the logits
    is the background, and each class has a further one. The key of a sample is the number of the annotation that it is
    matched to, or -1 for the background. A memory bank has a row for each annotated box that is not a crowd, so methods
    that use a bank compare the proposals that are matched to an annotation.

    The supervised loss is the detector's own classification loss. Its other losses, those of the boxes and of the
    region proposal network, are added to the loss of every method with weight 1. The primary metric is COCO's AP.
    """

    primary = "ap"
    columns = (
        Column("AP", "ap"),
        Column("best AP", "best_ap"),
        Column("AP50", "ap50"),
        Column("AP75", "ap75"),
        Column("agrees with teacher, %", "agreement"),
    )
    shares_teacher = False
    capturable = False
    allow_missing = True  # few images may contain a class
    network = "detection"
    sample = ("box", "boxes")
    recipe = MappingProxyType(
        {
            "epochs": 30,
            "batch_size": 16,
            "lr": 0.002,
            "schedule": "onecycle",
            "optimizer": "adamw",
            "weight_decay": 0.01,
        }
    )
    unsupported_in_parts = frozenset({"maps"})  # their sizes depend on the images of the part
    unsupported = frozenset({"partner", "strong", "peers", "earlier", "pixels", "pooled features"})

    def outputs(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        return ("background", *classes)

    def check(self, images: DenseImages) -> None:  # type: ignore[override]
        super().check(images)  # type: ignore[arg-type]
        if images.objects is None:
            raise InputError(
                f"detection needs images with annotated boxes, but {images.name} has none; choose scenes, voc:PATH or "
                "coco:PATH"
            )
        if bool(images.objects.flat.crowd.all()):
            raise InputError(
                f"none of the {len(images)} images of {images.name} has an object that counts; give others"
            )
        require_pycocotools()

    def check_network(self, network: Network, images: DenseImages | None = None) -> None:  # type: ignore[override]
        super().check_network(network)
        if images is None or getattr(network, "resizes", True) or not isinstance(images.transform, RandomResize):
            return
        side, sizes = int(images.sizes.min(1).values.median()), images.transform.sizes
        if not min(sizes) <= side <= max(sizes):
            runtime.notice(
                f"{network.name} does not resize images: it is trained with shorter sides of {min(sizes)} to "
                f"{max(sizes)} pixels, but evaluated on images in their own size, such as {side}; use --image-size "
                f"{side}, or give it min_size={max(sizes)}"
            )

    def samples(  # type: ignore[override]
        self,
        network: Detector,
        batch: DenseBatch,
        *,
        like: Samples | None = None,
        maps: bool = False,
        precision: str = "fp32",
    ) -> tuple[Samples, Tensor | None]:
        device = batch.index.device
        if like is not None:
            with runtime.autocast(device, precision):
                regions = network.at_boxes(batch.images, like.boxes, maps=maps, resized=batch.resized)
            return _samples(regions, like.labels, like.key), None
        with runtime.autocast(device, precision):
            done = network.training_pass(batch.images, batch.objects, maps=maps, resized=batch.resized)
        # The positions among the objects of an image become positions among those of the batch.
        counts = torch.tensor([0, *(len(one) for one in batch.objects)], device=device).cumsum(0)
        every = torch.cat([*(one.key for one in batch.objects), torch.full((1,), -1, device=device)])
        at = torch.where(done.matched >= 0, counts[done.regions.image] + done.matched, len(every) - 1)
        losses = {name: one.float() for name, one in done.losses.items()}
        loss = losses.pop("loss_classifier" if "loss_classifier" in losses else "classification")
        fixed = torch.stack(list(losses.values())).sum()
        return replace(_samples(done.regions, done.labels, every[at]), fixed=fixed), loss

    def keys(self, images: DenseImages) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        assert images.objects is not None
        flat = images.objects.flat
        return flat.key[~flat.crowd], flat.labels[~flat.crowd] + 1

    def bank_samples(  # type: ignore[override]
        self, network: Detector, images: DenseImages, *, keys: Tensor | None = None, precision: str = "auto"
    ) -> Samples:
        flat, image = _annotations(images)
        chosen = (
            torch.arange(len(flat), device=flat.key.device) if keys is None else places_of(flat.key, keys, images.name)
        )
        device = images.index.device
        key = [torch.empty(0, dtype=torch.long, device=device)]
        logits = [torch.empty(0, network.num_classes + 1, device=device)]
        features = [torch.empty(0, network.features_dim, device=device)]
        with_boxes = image[chosen].unique()
        for some, regions in _regions(network, images, with_boxes[share(len(with_boxes))], precision):
            for parts, one in zip((key, logits, features), (some, regions.logits, regions.features), strict=True):
                parts.append(one)
        wait_for_all()  # a process that read its data later than the others is still at work
        keys, all_logits, all_features = (gather(torch.cat(parts)) for parts in (key, logits, features))
        at = places_of(keys, flat.key[chosen], images.name)
        return Samples(all_logits[at], all_features[at], flat.labels[chosen] + 1, flat.key[chosen], image[chosen])

    def metrics(  # type: ignore[override]
        self, network: Detector, images: DenseImages, *, teacher: Samples | None = None, precision: str = "auto"
    ) -> dict[str, float]:
        device = images.index.device
        detections: list[Detections] = []
        objects: list[Objects] = []
        rows = torch.arange(len(images))[share(len(images))]
        with runtime.autocast(device, _precision(precision, images)), loader.watched(), _finite(network) as finite:
            for batch in loader.batches(images, rows.split(PASS)):
                detections += network.detect(batch.images)
                objects += [replace(one, masks=None) for one in batch.objects]
        # Scores that are not finite are no detections, so they are found only in what the scores are computed from.
        if any_process(not all(torch.stack(finite).tolist() if finite else []))[0]:
            raise NotFinite("the network's logits or boxes have values that are not finite")
        if runtime.world() > 1:
            own = [Detections(*(values.cpu() for values in one)) for one in detections]
            detections = [one for part in gather_objects(own) for one in part]
            objects = [one for part in gather_objects([one.to("cpu") for one in objects]) for one in part]
        numbers = metrics.detection(detections, objects, images.classes)
        if teacher is not None:
            student = self.bank_samples(network, images, precision=precision)
            numbers["agreement"] = (student.logits.argmax(1) == teacher.logits.argmax(1)).double().mean().item()
        return numbers

    def rows(self, images: DenseImages, keys: Tensor) -> Tensor:  # type: ignore[override]
        flat, image = _annotations(images)
        return images.index[image[places_of(flat.key, keys, images.name)]]

    def pictures(self, images: DenseImages, keys: Tensor) -> Tensor:  # type: ignore[override]
        return crops(_boxes(images, keys), dim=False)

    def whole_image(self, images: DenseImages, key: int) -> Tensor:  # type: ignore[override]
        ((image, mask),) = _boxes(images, torch.tensor([key], device=images.index.device))
        return whole(image, mask, dim=False)


@contextlib.contextmanager
def _finite(network: Detector) -> Iterator[list[Tensor]]:
    """Yield a list to which each pass of the network adds whether the outputs of its parts are finite, scalars bool."""
    finite: list[Tensor] = []
    parts = dict(network.module.named_modules())
    handles = [
        parts[name].register_forward_hook(lambda _, __, output: finite.extend(map(_all_finite, _tensors(output))))
        for name in PARTS
        if name in parts
    ]
    try:
        yield finite
    finally:
        for handle in handles:
            handle.remove()


def _all_finite(values: Tensor) -> Tensor:
    return values.isfinite().all()


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dicts."""
    if isinstance(output, Tensor):
        return [output]
    return [one for part in (output.values() if isinstance(output, dict) else output) for one in _tensors(part)]


def _boxes(images: DenseImages, keys: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the image, uint8 [3, h, w], and the pixels, bool [h, w], of each box with a key in `keys` [n]."""
    flat, image = _annotations(images)
    at = places_of(flat.key, keys, images.name)
    found = zip(fetch(images.images, image[at].tolist()), flat.boxes[at], strict=True)
    return [(pixels, box_mask(box, *pixels.shape[1:]).to(pixels.device)) for pixels, box in found]


def _samples(regions: Regions, labels: Tensor, key: Tensor) -> Samples:
    """Return the outputs for proposals as samples."""
    maps = tuple(one.float() for one in regions.maps)
    return Samples(
        regions.logits.float(),
        regions.features.float(),
        labels,
        key,
        regions.image,
        maps,
        boxes=regions.boxes,
        raw=regions.raw,
    )


def _annotations(images: DenseImages) -> tuple[Objects, Tensor]:
    """Return the objects of a split that are not crowds, and the position of the image of each, shape [n]."""
    assert images.objects is not None
    flat = images.objects.flat
    image = torch.arange(len(images)).repeat_interleave(images.objects.counts).to(flat.key.device)
    return flat.select(~flat.crowd), image[~flat.crowd]


def _regions(network: Detector, images: DenseImages, rows: Tensor, precision: str) -> Iterator[tuple[Tensor, Regions]]:
    """Yield the network's outputs for the annotated boxes of some images, with the key of each box."""
    autocast = runtime.autocast(images.index.device, _precision(precision, images))
    with evaluating(network), autocast, loader.watched():
        for batch in loader.batches(images, rows.split(PASS)):
            objects = [one.select(~one.crowd) for one in batch.objects]
            regions = network.at_objects(batch.images, [one.boxes for one in objects])
            yield (
                torch.cat([one.key for one in objects]),
                regions._replace(logits=regions.logits.float(), features=regions.features.float()),
            )


def _precision(precision: str, images: DenseImages) -> str:
    return runtime.precision(precision, images.index.device, int(images.sizes.min()))
