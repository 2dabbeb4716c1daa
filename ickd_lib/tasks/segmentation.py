"""Semantic segmentation: a sample is a class region, which is all pixels of one class in an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import metrics, runtime
from ickd_lib.data import DenseBatch, DenseImages, loader
from ickd_lib.data.sequences import Decoded, fetch, threaded
from ickd_lib.models import Network, Output
from ickd_lib.models.inspection import evaluating
from ickd_lib.runtime import InputError, NotFinite
from ickd_lib.runtime.distributed import any_process, gather, share, total, wait_for_all
from ickd_lib.tasks.base import Column, Pixels, Samples, Task, places_of, positions, register
from ickd_lib.tasks.pictures import crops, whole

LARGEST = 64  # height and width of maps up to which a CPU enlarges them by a product of matrices
PASS = 2**18  # largest number of pixels that are evaluated in one pass, if it has several images


@register("segmentation")
class Segmentation(Task):
    """Semantic segmentation: a sample is a region, all pixels of one class in an image.

    The logits and features of a region are the means of the network's maps over its pixels. Its key is row · C + class,
    so a memory bank has one row for each class of each image. Ignored pixels belong to no region. The maps of all
    networks are resized to the image's height and width divided by `stride`, so that networks with different output
    strides can be compared at each pixel (`Samples.pixels`). The class of such a pixel is the one that covers most of
    those pixels of the image in it that are not ignored.

    The supervised loss is cross-entropy over all pixels of the image that are not ignored, with the logits enlarged to
    the size of the image. The primary metric is the mean intersection over union.

    Args:
        stride: height and width of the image divided by those of the maps that are compared.
        least: in training, a region with fewer pixels than this in the augmented image is not a sample. In a memory
            bank, each class of an image has a row, however small its region is.
    """

    primary = "miou"
    columns = (
        Column("mIoU, %", "miou"),
        Column("best, %", "best_miou"),
        Column("pixels, %", "pixel_accuracy"),
        Column("agrees with teacher, %", "agreement"),
    )
    capturable = False
    allow_missing = True  # few images may contain a class
    network = "segmentation"
    sample = ("region", "regions")
    recipe = MappingProxyType(
        {"epochs": 30, "batch_size": 16, "lr": 0.1, "schedule": "onecycle", "nesterov": True},
    )
    unsupported = frozenset({"partner", "pooled features"})

    def __init__(self, *, stride: int = 4, least: int = 16) -> None:
        self.stride, self.least = stride, least
        self._counted: tuple[object, int, Tensor] | None = None  # the last masks and classes, and their shares

    def check(self, images: DenseImages) -> None:  # type: ignore[override]
        super().check(images)  # type: ignore[arg-type]
        if images.masks is None:
            raise InputError(
                f"segmentation needs images with class masks, but {images.name} has none; choose scenes, masks:PATH or "
                "voc:PATH"
            )

    def samples(  # type: ignore[override]
        self,
        network: Network,
        batch: DenseBatch,
        *,
        like: Samples | None = None,
        maps: bool = False,
        precision: str = "fp32",
    ) -> tuple[Samples, Tensor | None]:
        if not isinstance(batch.images, Tensor):
            raise InputError("the images of a batch for segmentation must have one size; give them a RandomCrop")
        with runtime.autocast(batch.index.device, precision):
            output = network(batch.images, maps=maps)
        logits = output.logits.float()
        share = self._shares(batch)  # of the classes of the data, also for a teacher of other classes
        image, label = (share.sum(2) >= self.least).nonzero(as_tuple=True)
        pixels = self._pixels(logits, output.features.float(), share, batch)
        samples = Samples(
            *_means(share, pixels, image, label),
            label,
            batch.index[image] * batch.num_classes + label,
            image,
            tuple(one.float() for one in output.maps),
            preactivations=tuple(one.float() for one in output.preactivations),
            pixels=_with_regions(pixels, image, label, batch.num_classes),
            raw=logits,
        )
        return samples, self._loss(logits, batch) if network.training else None

    def weight(self, batch: DenseBatch) -> Tensor:  # type: ignore[override]
        return (_stacked(batch.masks) < batch.num_classes).sum()

    def places(self, batch: DenseBatch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, label = (self._shares(batch).sum(2) >= self.least).nonzero(as_tuple=True)
        return batch.index[image] * batch.num_classes + label, label

    def keys(self, images: DenseImages) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if images not in _PRESENT:
            assert images.masks is not None
            _PRESENT[images] = _all_present(images.masks, len(images.classes))
        at, label = _PRESENT[images].to(images.index.device).nonzero(as_tuple=True)
        return images.index[at] * len(images.classes) + label, label

    def bank_samples(  # type: ignore[override]
        self, network: Network, images: DenseImages, *, keys: Tensor | None = None, precision: str = "auto"
    ) -> Samples:
        classes = len(images.classes)
        wanted = self.keys(images)[0] if keys is None else keys
        chosen = images if keys is None else images.subset(positions(images, (keys // classes).unique()))
        device = images.index.device
        logits = [torch.empty(0, network.num_classes, device=device)]
        features = [torch.empty(0, network.features_dim, device=device)]
        found = [torch.empty(0, dtype=torch.long, device=device)]
        for batch, output in _outputs(network, chosen, precision):
            share = self._shares(batch)
            image, label = (share.sum(2) > 0).nonzero(as_tuple=True)
            pixels = self._pixels(output.logits, output.features, share, batch)
            for values, kept in zip(_means(share, pixels, image, label), (logits, features), strict=True):
                kept.append(values)
            found.append(batch.index[image] * classes + label)
        wait_for_all()  # a process that read its data later than the others is still at work
        key, all_logits, all_features = (gather(torch.cat(parts)) for parts in (found, logits, features))
        at = places_of(key, wanted, images.name)
        return Samples(
            all_logits[at],
            all_features[at],
            wanted % classes,
            wanted,
            positions(images, wanted // classes),
        )

    def metrics(  # type: ignore[override]
        self, network: Network, images: DenseImages, *, teacher: Samples | None = None, precision: str = "auto"
    ) -> dict[str, float]:
        classes = len(images.classes)
        counts = torch.zeros(classes, classes, dtype=torch.long, device=images.index.device)
        finite = torch.ones((), dtype=torch.bool, device=images.index.device)
        for batch, output in _outputs(network, images, precision):
            masks = _stacked(batch.masks)
            finite &= output.logits.isfinite().all()
            enlarged = F.interpolate(output.logits, masks.shape[1:], mode="bilinear")
            labels = masks.long().masked_fill(masks == images.ignored, -1)
            counts += metrics.confusion(enlarged.argmax(1), labels, classes)
        if any_process(not bool(finite))[0]:  # so that of several processes none waits for one that has ended
            raise NotFinite("the network's logits have values that are not finite")
        found = metrics.segmentation(total(counts), images.classes)
        if teacher is not None:
            own = self.bank_samples(network, images, precision=precision)
            found["agreement"] = (own.logits.argmax(1) == teacher.logits.argmax(1)).double().mean().item()
        return found

    def rows(self, images: DenseImages, keys: Tensor) -> Tensor:  # type: ignore[override]
        return keys // len(images.classes)

    def pictures(self, images: DenseImages, keys: Tensor) -> Tensor:  # type: ignore[override]
        return crops(_regions(images, keys), dim=True)

    def whole_image(self, images: DenseImages, key: int) -> Tensor:  # type: ignore[override]
        ((image, mask),) = _regions(images, torch.tensor([key], device=images.index.device))
        return whole(image, mask, dim=True)

    def _shares(self, batch: DenseBatch) -> Tensor:
        """Count, for each position of the maps, the pixels of the image in it that have each class of the data.

        Returns:
            Float, shape [B, C, h · w]. A student, its teacher and the search for in-context samples share the result.
        """
        last = self._counted
        if last and last[0] is batch.masks and last[1] == batch.num_classes:
            return last[2]
        masks, classes = _stacked(batch.masks), batch.num_classes
        (rows, h), (columns, w) = (self._cells(side, masks.device) for side in masks.shape[1:])
        position = rows[:, None] * w + columns
        valid = masks < classes
        image = torch.arange(len(masks), device=masks.device)[:, None, None]
        place = ((image * classes + masks.long()) * (h * w) + position)[valid]
        counts = torch.bincount(place, minlength=len(masks) * classes * h * w)
        found = counts.float().view(len(masks), classes, h * w)
        self._counted = batch.masks, classes, found
        return found

    def _cells(self, side: int, device: torch.device) -> tuple[Tensor, int]:
        """Return the position on the maps of each row (or column) of the image, and the number of positions."""
        cells = -(-side // self.stride)
        return torch.arange(side, device=device) * cells // side, cells

    def _pixels(self, logits: Tensor, features: Tensor, share: Tensor, batch: DenseBatch) -> Pixels:
        """Resize the maps to the common size, and find the class of each position; the regions are not yet set.

        The class is the one that covers most of those pixels of the image at the position that are not ignored, and -1
        if all of them are.
        """
        size = [-(-side // self.stride) for side in _stacked(batch.images).shape[2:]]
        if list(logits.shape[2:]) != size:
            logits, features = (F.interpolate(one, size, mode="bilinear") for one in (logits, features))
        labels = torch.where(share.sum(1) > 0, share.max(1).indices, -1).view(len(logits), *size)
        return Pixels(logits, features, labels, torch.full_like(labels, -1))

    def _loss(self, logits: Tensor, batch: DenseBatch) -> Tensor:
        """Compute cross-entropy over all pixels of the images that are not ignored; 0 if all are ignored."""
        masks = _stacked(batch.masks)
        labels = masks.long().masked_fill(masks >= batch.num_classes, -1)
        enlarged = _enlarged(logits, masks.shape[1:])
        return F.cross_entropy(enlarged, labels, ignore_index=-1, reduction="sum") / (labels >= 0).sum().clamp(min=1)


def _enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps [B, C, h, w] by bilinear interpolation to a height and width.

    On a CPU, small maps are multiplied by the matrices of the interpolation of rows and of columns, because the
    gradient of `F.interpolate` takes most of the time of the loss there. Both agree up to rounding.
    """
    if maps.device.type != "cpu" or max(maps.shape[2:]) > LARGEST:
        return F.interpolate(maps, tuple(size), mode="bilinear")
    rows, columns = (
        F.interpolate(torch.eye(old, dtype=maps.dtype)[None], new, mode="linear")[0]
        for old, new in zip(maps.shape[2:], size, strict=True)
    )
    return rows.T @ maps @ columns


# The classes that occur in each image of a split, bool [N, C], so that the masks are read only once.
_PRESENT: WeakKeyDictionary[DenseImages, Tensor] = WeakKeyDictionary()


def _means(share: Tensor, pixels: Pixels, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [S, C] and features [S, D] of regions: the means over their pixels.

    Args:
        share: from `Segmentation._shares`.
        pixels: the maps.
        image, label: position in the batch and class of each region, shape [S].
    """
    weights = (share / share.sum(2, keepdim=True).clamp(min=1)).transpose(1, 2)
    logits, features = (
        (one.flatten(2) @ weights).transpose(1, 2)[image, label] for one in (pixels.logits, pixels.features)
    )
    return logits, features


def _with_regions(pixels: Pixels, image: Tensor, label: Tensor, classes: int) -> Pixels:
    """Return the pixels with their regions, given position in the batch and class of each region, shape [S].

    Pixels of a class that has no region in their image lose their label.
    """
    number = torch.full((len(pixels.labels), classes), -1, device=image.device)
    number[image, label] = torch.arange(len(image), device=image.device)
    at = torch.arange(len(pixels.labels), device=image.device)[:, None, None]
    region = torch.where(pixels.labels >= 0, number[at, pixels.labels.clamp(min=0)], -1)
    return Pixels(pixels.logits, pixels.features, torch.where(region >= 0, pixels.labels, -1), region)


def _regions(images: DenseImages, keys: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the image, uint8 [3, h, w], and the pixels, bool [h, w], of each region with a key in `keys` [n]."""
    assert images.masks is not None
    classes = len(images.classes)
    at = positions(images, keys // classes).tolist()
    found = zip(fetch(images.images, at), fetch(images.masks, at), (keys % classes).tolist(), strict=True)
    return [(image, mask == label) for image, mask, label in found]


def _present(mask: Tensor, classes: int) -> Tensor:
    """Return which classes occur in a mask, bool [C]."""
    return torch.bincount(mask.flatten(), minlength=256)[:classes] > 0


def _all_present(masks: tuple[Tensor, ...] | Decoded, classes: int) -> Tensor:
    """Return whether each of N masks has each class, bool [N, C]. Files are decoded in threads."""
    if isinstance(masks, Decoded):
        each = threaded(lambda item: _present(masks.read(item), classes), masks.items, "reading masks")
    else:
        each = (_present(mask, classes) for mask in masks)
    return torch.stack(list(each))


def _stacked(given: Tensor | tuple[Tensor, ...] | None) -> Tensor:
    """Return images or masks of one size as one tensor."""
    assert given is not None
    return given if isinstance(given, Tensor) else torch.stack(given)


def _outputs(network: Network, images: DenseImages, precision: str) -> Iterator[tuple[DenseBatch, Output]]:
    """Yield batches of images without augmentation, with the outputs of the network in evaluation mode, in float32.

    All images of a batch have the same size. Several processes each evaluate a part of the images.
    """
    device = images.index.device
    precision = runtime.precision(precision, device, int(images.sizes.min()))
    if runtime.world() > 1:
        images = images.subset(torch.arange(len(images))[share(len(images))])
    parts, start = [], 0
    while start < len(images):
        same = (images.sizes[start:] == images.sizes[start]).all(1).long().cumprod(0).sum()
        count = min(int(same), max(1, PASS // int(images.sizes[start].prod())))
        parts.append(torch.arange(start, start + count))
        start += count
    with evaluating(network), torch.no_grad(), loader.watched():
        for batch in loader.batches(images, parts):
            with runtime.autocast(device, precision):
                output = network(_stacked(batch.images))
            yield batch, Output(output.logits.float(), output.features.float())
