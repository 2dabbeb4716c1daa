"""What a task is: it turns a network's output for a batch of images into samples that losses can compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ickd_lib.data import Batch, DenseImages, Images
from ickd_lib.data.split import ImageSplit
from ickd_lib.models import Network, require_network
from ickd_lib.runtime import InputError, choose
from ickd_lib.runtime.registry import enter


@dataclass(frozen=True)
class Pixels:
    """The outputs of a network for segmentation at the h × w positions of its maps, which are called pixels.

    logits: shape [B, C, h, w].
    features: shape [B, D, h, w].
    labels: class of each pixel, int64, shape [B, h, w]; -1 for a pixel that belongs to no region.
    region: position among the samples of the region that each pixel belongs to, int64, shape [B, h, w]; -1 for none.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    region: Tensor

    def detach(self) -> Pixels:
        """Return the same pixels without gradient."""
        return Pixels(self.logits.detach(), self.features.detach(), self.labels, self.region)


@dataclass(frozen=True)
class Samples:
    """The S samples of a batch, with the outputs of one network. Losses, methods and memory banks use samples only.

    logits: shape [S, C].
    features: shape [S, D]; [S, 0] if they were not requested.
    labels: class of each sample as a column of the logits (in detection, 0 is the background), shape [S].
    key: the number that identifies the sample in its data set and its row in a memory bank, shape [S]; -1 for a
        proposal on the background, which has no row.
    image: position in the batch of the image that the sample is from, shape [S].
    maps: outputs [B, C_i, H_i, W_i] of the stages of the network; empty if they were not requested.
    soft: probabilities of the classes if images are mixed, shape [S, C], else None.
    preactivations: the maps before their activation function, like `maps`; empty if they are not known.
    unpooled: map [B, D, H, W] whose mean over the positions is the features; None if it is not known.
    pixels: in segmentation, where a sample is a class region, the outputs at every pixel; else None.
    boxes: in detection, where a sample is a proposal, the boxes of each image, B tensors [S_i, 4]; else empty.
    whole: if these samples are a selection that `known` returned, all samples of the batch; else None.
    fixed: losses of the network that are added to the loss of every method with weight 1, such as that of a detector's
        boxes, a scalar with gradient; None if there are none.
    raw: the network's logits from which both `logits` and the supervised loss are computed, of any shape; None if these
        are `logits`.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    key: Tensor
    image: Tensor
    maps: tuple[Tensor, ...] = ()
    soft: Tensor | None = None
    preactivations: tuple[Tensor, ...] = ()
    unpooled: Tensor | None = None
    pixels: Pixels | None = None
    boxes: tuple[Tensor, ...] = ()
    whole: Samples | None = None
    fixed: Tensor | None = None
    raw: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The targets of cross-entropy: `soft` [S, C] if images are mixed, else `labels` [S]."""
        return self.labels if self.soft is None else self.soft

    @property
    def shared_logits(self) -> Tensor:
        """The logits from which all losses of the batch are computed: `raw`, or those of the pixels or all samples."""
        every = self.whole or self
        return (every.pixels or every).logits if every.raw is None else every.raw

    def detach(self) -> Samples:
        """Return the same samples without gradient and without maps."""
        pixels = None if self.pixels is None else self.pixels.detach()
        return replace(
            Samples(self.logits.detach(), self.features.detach(), self.labels, self.key, self.image),
            soft=self.soft,
            pixels=pixels,
            boxes=self.boxes,
        )

    # `known` and `finest` may be these samples themselves, so they are not kept: samples that contain themselves would
    # keep their maps and their gradient's graph until Python collects its garbage.
    @property
    def known(self) -> Samples:
        """The samples that have a row in a memory bank: all except proposals on the background, whose key is -1."""
        return replace(self._known, whole=self) if self.boxes else self

    @cached_property
    def _known(self) -> Samples:
        at = (self.key >= 0).nonzero().squeeze(1)
        with torch.enable_grad():  # the result is kept, and its first reader may be in a block without gradients
            logits, features, labels, key, image = (
                values[at] for values in (self.logits, self.features, self.labels, self.key, self.image)
            )
        return replace(
            Samples(logits, features, labels, key, image),
            maps=self.maps,
            preactivations=self.preactivations,
        )

    @property
    def finest(self) -> Samples:
        """The P pixels of the regions as samples, for methods that compare each pixel.

        The key of a pixel is the position of its region among the samples. In a task without pixels, these are all
        samples, including those without a row in a memory bank.
        """
        return self._finest if self.pixels else self.whole or self

    @cached_property
    def _finest(self) -> Samples:
        assert self.pixels is not None
        labels, regions = self.pixels.labels.flatten(), self.pixels.region.flatten()
        (inside,) = (labels >= 0).nonzero(as_tuple=True)
        with torch.enable_grad():  # as in `known`
            logits, features = (
                maps.movedim(1, -1).flatten(0, 2)[inside] for maps in (self.pixels.logits, self.pixels.features)
            )
        region = regions[inside]
        return replace(
            Samples(logits, features, labels[inside], region, self.image[region]),
            maps=self.maps,
            preactivations=self.preactivations,
        )


class Column(NamedTuple):
    """A column of a table of results: its heading, its key in the summaries, a factor and a number format."""

    heading: str
    key: str
    scale: float = 100
    form: str = ".2f"


class Task:
    """The definition of the samples of an image, their supervised loss, and the metrics of a network.

    A subclass is registered by name and defines `samples`, `keys`, `bank_samples` and `metrics`; with `shares_teacher`
    also `places`, and for the explorers `pictures`. Where an image has several samples, it also defines `rows`,
    `whole_image` and `sample` for the explorers.

    Attributes:
        name: the registered name.
        primary: the key in the result of `metrics` by which networks are compared (larger is better).
        columns: the columns of a table of results, in order.
        shares_teacher: whether the samples depend on the batch alone, so that one pass of the teacher is enough for all
            students. False if the samples depend on the student (as a detector's proposals do); the teacher is then
            evaluated once per student.
        cacheable: whether an image is one sample and the teacher's output for it depends on image and view alone, so
            that the output can be stored in a teacher cache.
        capturable: whether all tensors of a step have fixed shapes, so that it can be captured as a CUDA graph.
        allow_missing: whether a class may have fewer rows in a memory bank than a method requests. In-context samples
            that are missing are then masked, and a note is printed; otherwise that is an error.
        network: the task of the networks that it takes (`Network.task`).
        recipe: the defaults of those settings of `training.Recipe` for which the task has other defaults.
        unsupported: the needs of methods (`methods.NEEDS`) that the task cannot provide.
        unsupported_in_parts: the needs that it cannot provide with several processes.
        sample: what a sample is called in the explorers, in the singular and the plural.
    """

    name = ""
    primary = ""
    columns: tuple[Column, ...] = ()
    shares_teacher = True
    cacheable = False
    capturable = True
    allow_missing = False
    network = "classification"
    recipe: Mapping[str, Any] = MappingProxyType({})
    unsupported: frozenset[str] = frozenset()
    unsupported_in_parts: frozenset[str] = frozenset()
    sample: tuple[str, str] = ("image", "images")

    def outputs(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the columns of the logits, given those of the classes of a network or a data set."""
        return classes

    def check(self, images: Images) -> None:
        """Raise an InputError of one line if the images do not have the annotations that the task needs."""
        if not isinstance(images, ImageSplit):
            raise InputError(f"{type(images).__name__} is no split of a data set; give one, such as splits.train")

    def check_network(self, network: Network, images: Images | None = None) -> None:
        """Raise an InputError of one line if the outputs of a network are not those of the task.

        For a student, `images` are its training images, and a note is printed if it does not suit them well.
        """
        require_network(network)
        if network.task != self.network:
            known = {"segmentation": "resnet8-fcn", "detection": "resnet8-fpn"}.get(self.network, "resnet8")
            raise InputError(
                f"{network.name} is a network for {network.task}, not for {self.network}; choose one such as {known}"
            )

    def samples(
        self,
        network: Network,
        batch: Batch,
        *,
        like: Samples | None = None,
        maps: bool = False,
        precision: str = "fp32",
    ) -> tuple[Samples, Tensor | None]:
        """Evaluate a network on a batch.

        Args:
            network: in training mode for a student, in evaluation mode for a teacher.
            batch: B augmented images with their annotations.
            like: for a teacher, the samples of the student; the teacher is evaluated at their places.
            maps: whether the outputs of the network's stages are requested.
            precision: precision of the network, "fp32" or "bf16"; the result is in float32.
        Returns:
            S samples, and the task's own supervised loss without `Samples.fixed`, a scalar; in evaluation mode None
            instead of the loss.
        """
        raise TypeError(f"{type(self).__name__} must define samples(network, batch, ...) -> (Samples, loss)")

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of things in a batch over which the supervised loss is a mean, a scalar on its device."""
        return torch.tensor(len(batch.index), device=batch.index.device)

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return key [S] and label [S] of every sample of a batch, if the samples depend on the batch alone."""
        raise TypeError(f"{type(self).__name__} must define places(batch) -> (key, labels)")

    def keys(self, images: Images) -> tuple[Tensor, Tensor]:
        """Return key [N] and label [N] of every sample in a split, without evaluating a network."""
        raise TypeError(f"{type(self).__name__} must define keys(images) -> (key, labels)")

    def bank_samples(
        self, network: Network, images: Images, *, keys: Tensor | None = None, precision: str = "auto"
    ) -> Samples:
        """Return samples of a split, from images without augmentation and a network in evaluation mode.

        Args:
            network: the network; each of its submodules returns to its earlier mode.
            images: the split.
            keys: keys of the requested samples, shape [n], in the order of the result; None for all samples, in the
                order of `keys(images)`.
            precision: "auto", "fp32" or "bf16".
        """
        raise TypeError(f"{type(self).__name__} must define bank_samples(network, images) -> Samples")

    def metrics(
        self, network: Network, images: Images, *, teacher: Samples | None = None, precision: str = "auto"
    ) -> dict[str, float]:
        """Return the metrics of a network on a split, with shares as fractions; one of them is `primary`.

        Args:
            network, images, precision: as in `bank_samples`.
            teacher: the teacher's `bank_samples` of the same split, to which the network is then compared.
        """
        raise TypeError(f"{type(self).__name__} must define metrics(network, images) -> {{name: number}}")

    def pictures(self, images: Images, keys: Tensor) -> Tensor:
        """Return a picture of each sample with a key in `keys` [n], uint8, shape [n, 3, h, w]."""
        raise TypeError(f"{type(self).__name__} must define pictures(images, keys) -> Tensor")

    def whole_image(self, images: Images, key: int) -> Tensor | None:
        """Return a picture of the whole image of a sample that shows where the sample is, uint8, shape [3, h, w].

        None where a sample is a whole image.
        """
        return None

    def rows(self, images: Images, keys: Tensor) -> Tensor:
        """Return the data-set row of the image of each sample with a key in `keys` [n], shape [n]."""
        return keys


_REGISTRY: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def register(name: str) -> Callable[[T], T]:
    """Class decorator that registers a Task under `name`.

    Raises:
        InputError: another class has the name.
    """

    def add(cls: T) -> T:
        cls.name = name
        enter(_REGISTRY, name, cls, "task")
        return cls

    return add


def names() -> list[str]:
    """Return the names of the registered tasks, sorted."""
    return sorted(_REGISTRY)


def create(name: str) -> Task:
    """Create a task by name.

    Raises:
        InputError: no task has this name.
    """
    return _REGISTRY[choose(name, _REGISTRY, "task")]()


def mean_of_each(keys: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return the different ones of the keys [n], shape [m], and the mean of the values [n, ...] of each: [m, ...]."""
    found, at, count = keys.unique(return_inverse=True, return_counts=True)
    sums = (one.new_zeros(len(found), *one.shape[1:]).index_add_(0, at, one) for one in values)
    return found, *(total / count[:, None] for total in sums)


def places_of(keys: Tensor, wanted: Tensor, name: str) -> Tensor:
    """Return the position among `keys` [N], which may have any order, of each of the wanted keys [n]: [n].

    Raises:
        InputError: a wanted key is not among them; `name` is the name, in the message, of the images with these keys.
    """
    order = keys.argsort()
    if len(order):
        found = order[torch.searchsorted(keys[order], wanted).clamp(max=len(order) - 1)]
        if bool((keys[found] == wanted).all()):
            return found
    elif not len(wanted):
        return order
    raise InputError(f"some samples are not in {name}; give the images that the bank was built from")


def positions(images: Images | DenseImages, keys: Tensor) -> Tensor:
    """Return the position in `images` of each data-set row in `keys` [n], shape [n].

    Raises:
        InputError: a row is not among the images.
    """
    return places_of(images.index, keys, images.name)
