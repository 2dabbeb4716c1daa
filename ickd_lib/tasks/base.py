"""What a task is: it turns a network's output for a batch of images into samples that losses can compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ickd_lib.data import Batch, Images
from ickd_lib.models import Network
from ickd_lib.runtime import InputError, choose


@dataclass(frozen=True)
class Samples:
    """S samples of a batch as one network sees them. Losses, methods and memory banks know samples only.

    logits: shape [S, C].
    features: shape [S, D]; [S, 0] where nobody requested them.
    labels: class of each sample, shape [S].
    key: the number that identifies the sample in its data set, and its row in a memory bank, shape [S].
    image: position in the batch of the image that the sample is from, shape [S].
    maps: outputs [B, C_i, H_i, W_i] of the stages of the network, where a method requested them.
    soft: probabilities of the classes where images are mixed, shape [S, C], else None.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    key: Tensor
    image: Tensor
    maps: tuple[Tensor, ...] = ()
    soft: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The targets of cross-entropy: `soft` [S, C] where images are mixed, else `labels` [S]."""
        return self.labels if self.soft is None else self.soft

    def detach(self) -> Samples:
        """The same samples without gradient and without maps."""
        return Samples(self.logits.detach(), self.features.detach(), self.labels, self.key, self.image, (), self.soft)


class Column(NamedTuple):
    """A column of a table of results: its heading, the summary's number, a factor and a format."""

    heading: str
    key: str
    scale: float = 100
    form: str = ".2f"


class Task:
    """What the samples of an image are, their supervised loss, and the numbers by which a network is judged.

    A subclass is registered by name and defines `samples`, `keys`, `bank_samples` and `metrics`.

    Attributes:
        name: the registered name.
        primary: the key in `metrics` by which networks are compared (larger is better).
        columns: the columns of a table of results, in order.
        shares_teacher: the samples depend on the batch alone, so one pass of the teacher serves all students. False
            where a student chooses its samples (the proposals of a detector): the teacher then runs once per student.
        cacheable: an image is one sample whose teacher output depends on image and view alone (teacher cache).
        unsupported: the needs of methods (`methods.NEEDS`) that the task cannot supply.
    """

    name = ""
    primary = ""
    columns: tuple[Column, ...] = ()
    shares_teacher = True
    cacheable = False
    unsupported: frozenset[str] = frozenset()

    def samples(
        self,
        network: Network,
        batch: Batch,
        *,
        like: Samples | None = None,
        maps: bool = False,
        precision: str = "fp32",
    ) -> tuple[Samples, Tensor | None]:
        """Run a network on a batch.

        Args:
            network: in training mode for a student, in evaluation mode for a teacher.
            batch: B augmented images with their annotations.
            like: the samples of the student; a teacher is evaluated at the same places.
            maps: whether the outputs of the network's stages are needed.
            precision: in which the network computes, "fp32" or "bf16"; what is returned is float32.
        Returns:
            S samples; and the task's own supervised loss, a scalar, for a network in training mode, else None.
        """
        raise TypeError(f"{type(self).__name__} must define samples(network, batch, ...) -> (Samples, loss)")

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Key [S] and label [S] of every sample of a batch, for a task whose samples depend on the batch alone."""
        raise TypeError(f"{type(self).__name__} must define places(batch) -> (key, labels)")

    def keys(self, images: Images) -> tuple[Tensor, Tensor]:
        """Key [N] and label [N] of every sample in a split, without running a network."""
        raise TypeError(f"{type(self).__name__} must define keys(images) -> (key, labels)")

    def bank_samples(
        self, network: Network, images: Images, *, keys: Tensor | None = None, precision: str = "auto"
    ) -> Samples:
        """Samples of a split, from images without augmentation and a network in evaluation mode.

        Args:
            keys: of the samples, in this order, shape [n]; None for all samples, in the order of `keys(images)`.
        """
        raise TypeError(f"{type(self).__name__} must define bank_samples(network, images) -> Samples")

    def metrics(
        self, network: Network, images: Images, *, teacher: Samples | None = None, precision: str = "auto"
    ) -> dict[str, float]:
        """The numbers by which a network is judged on a split, as fractions; one of them is `primary`.

        Args:
            teacher: the teacher's `bank_samples` of the same split, to measure how close the network is to it.
        """
        raise TypeError(f"{type(self).__name__} must define metrics(network, images) -> {{name: number}}")

    def pictures(self, images: Images, keys: Tensor) -> Tensor:
        """A picture of each sample with a key in `keys` [n], uint8, shape [n, 3, h, w]."""
        raise TypeError(f"{type(self).__name__} must define pictures(images, keys) -> Tensor")


_REGISTRY: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def register(name: str) -> Callable[[T], T]:
    """Class decorator that makes a Task known as `name`.

    Raises:
        InputError: another class has the name.
    """

    def add(cls: T) -> T:
        taken = _REGISTRY.get(name)
        if taken and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"task {name!r} is already {taken.__module__}.{taken.__qualname__}; choose another name")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """The registered tasks, sorted."""
    return sorted(_REGISTRY)


def create(name: str) -> Task:
    """A task by name.

    Raises:
        InputError: no task has this name.
    """
    return _REGISTRY[choose(name, _REGISTRY, "task")]()


def positions(images: Images, keys: Tensor) -> Tensor:
    """The position in `images` of each data-set row in `keys` [n], shape [n].

    Raises:
        InputError: a row is not among the images.
    """
    order = images.index.argsort()
    place = torch.searchsorted(images.index[order], keys).clamp(max=len(order) - 1)
    found = order[place]
    if bool((images.index[found] != keys).any()):
        raise InputError(f"some samples are not in {images.name}; give the images that the bank was built from")
    return found
