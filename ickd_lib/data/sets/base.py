"""What a data set is, and the registry from which `data.load` creates one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.crops import KINDS
from ickd_lib.data.images import Images, Splits
from ickd_lib.data.sequences import channel_statistics
from ickd_lib.runtime import InputError
from ickd_lib.runtime.registry import enter

OPTIONS = frozenset(
    {"path", "root", "image_size", "download", "annotations", "ignore", "stream", "crop", "views", "corrupt"}
)
CORRUPT = ("stop", "skip")


class DataSet:
    """A data set. A subclass declares its options and defines `read`.

    Args:
        path: the part of the name after the colon, as in "folder:PATH".
        root: the folder that contains downloaded data sets.
        image_size: height and width in pixels to which images are resized; 0 keeps their size.
        download: whether files that are missing may be downloaded.
        annotations: the kind of annotation that is read, one of `kinds`; by default the first.
        ignore: value of the pixels of a class mask that are ignored; None for the data set's own.
        stream: whether files are decoded when they are needed, even if the images would fit into memory.
        crop: "pad" or "resized" (see `PadCrop` and `ResizedCrop`); "" for the data set's own.
        views: see `ResizedCrop`.
        corrupt: "stop" or "skip" files that cannot be read.
        device: the device that will hold the images.

    `options` declares which of these a subclass uses. A data set with the option "path" is named "NAME:PATH". A path,
    or another option that a data set does not declare is an error; `root`, `download` and `device` have no effect on
    data sets that do not use them.
    """

    options: frozenset[str] = frozenset()
    kinds: tuple[str, ...] = ()
    registered_name = ""
    unlabelled = False  # whether images without labels are read too, with the label -1, where the data set has some

    def __init__(
        self,
        *,
        path: str | Path = "",
        root: str | Path = "data",
        image_size: int = 0,
        download: bool = False,
        annotations: str = "",
        ignore: int | None = None,
        stream: bool = False,
        crop: str = "",
        views: int = 0,
        corrupt: str = "stop",
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self.root, self.device = Path(path), Path(root), device
        self.stream, self.crop, self.views, self.corrupt = stream, crop, views, corrupt
        self.image_size, self.download = image_size, download
        self.annotations, self.ignore = annotations or next(iter(self.kinds), ""), ignore

    @property
    def title(self) -> str:
        """The first part of the names of the splits: "cifar100", or "folder:" and the last part of the path."""
        return f"{self.registered_name}:{self.path.name}" if "path" in self.options else self.registered_name

    def read(self) -> Splits:
        """Read the data set. A subclass defines this and makes the result with `splits`.

        Raises:
            InputError: files are missing or damaged.
        """
        raise TypeError(f"{type(self).__name__} must define read() -> Splits")

    def splits(
        self,
        pixels: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        *,
        classes: Sequence[str],
        pad: int = 0,
        flip: bool = False,
        superclasses: Sequence[str] = (),
        superclass_of: Sequence[int] = (),
    ) -> Splits:
        """Make the splits from pixels and labels; mean and standard deviation are those of the training pixels.

        Args:
            pixels: uint8 images of the splits "train", "test" and, where there is one, "val": shape [N, 3, H, W] each.
            labels: class of each image, int64, shape [N] for each split.
            classes: names of the C classes.
            pad, flip: the augmentation (see `views.crop_and_flip`).
            superclasses: names of the coarser classes, if any.
            superclass_of: position of each class's superclass in `superclasses`, C numbers.
        Raises:
            InputError: a split is missing, or its pixels or labels have another shape, type or range.
        """
        self._check(pixels, labels, len(classes))
        mean, std = channel_statistics([pixels["train"]])

        def split(name: str) -> Images:
            # A data set without a validation split has an empty one.
            x, y = (pixels[name], labels[name]) if name in pixels else (pixels["train"][:0], labels["train"][:0])
            return Images(
                x,
                y,
                torch.arange(len(y)),
                classes=tuple(classes),
                mean=mean,
                std=std,
                pad=pad,
                flip=flip,
                name=f"{self.title}/{name}",
                superclasses=tuple(superclasses),
                superclass_of=tuple(superclass_of),
            )

        return Splits(split("train"), split("val"), split("test"))

    def _check(self, pixels: Mapping[str, Tensor], labels: Mapping[str, Tensor], num_classes: int) -> None:
        for split in ("train", "test"):
            if split not in pixels:
                raise InputError(f"{self.title} has no split {split!r}; give its pixels and labels")
        size = pixels["train"].shape[2:]
        for split, x in pixels.items():
            runtime.choose(split, Splits._fields, "split")
            if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3 or x.shape[2:] != size:
                raise InputError(
                    f"{self.title}/{split} has pixels of type {x.dtype} and shape {list(x.shape)}; "
                    "expected uint8 [N, 3, H, W], with one size for all splits, as data.stacked returns them"
                )
            y = labels.get(split)
            if y is None or y.dtype != torch.int64 or y.shape != x.shape[:1]:
                given = "no labels" if y is None else f"labels of type {y.dtype} and shape {list(y.shape)}"
                raise InputError(f"{self.title}/{split} has {given}; expected int64 [{len(x)}], one for each image")
            least = -1 if self.unlabelled and split == "train" else 0
            if len(y) and not least <= int(y.min()) <= int(y.max()) < num_classes:
                raise InputError(
                    f"{self.title}/{split} has labels from {int(y.min())} to {int(y.max())}; "
                    f"expected 0 to {num_classes - 1}, one for each of the {num_classes} classes"
                )
        if not len(pixels["train"]):
            raise InputError(f"{self.title}/train contains no image; expected at least one")


_REGISTRY: dict[str, type[DataSet]] = {}
D = TypeVar("D", bound=type[DataSet])


def register(name: str) -> Callable[[D], D]:
    """Class decorator that registers a `DataSet`, so that `data.load(name)` creates and reads it.

    A data set of your own needs no change to the library. This one draws stripes in random colours:

    >>> import torch
    >>> from ickd_lib import data
    >>> @data.register("stripes")
    ... class Stripes(data.DataSet):
    ...     def read(self):
    ...         pixels, labels = {}, {}
    ...         for seed, (split, count) in enumerate({"train": 40, "test": 20}.items()):
    ...             generator = torch.Generator().manual_seed(seed)
    ...             lines = torch.randint(256, (count, 3, 1, 8), dtype=torch.uint8, generator=generator)
    ...             pixels[split], labels[split] = lines.repeat(1, 1, 8, 1), torch.arange(count) % 2
    ...             pixels[split][1::2] = pixels[split][1::2].mT
    ...         return self.splits(pixels, labels, classes=("vertical", "horizontal"), pad=1)
    >>> data.load("stripes", val=0.25)
    Splits('stripes', train=30, val=10, test=20 images of 8×8 pixels, 2 classes)

    A data set that reads files declares, for example, `options = frozenset({"root"})` and opens files in `self.root`.

    Raises:
        InputError: another class has the name, the name contains a colon or a slash, or the class declares an unknown
            option.
    """

    def add(cls: D) -> D:
        if not name or set(name) & set(":/"):
            raise InputError(f"data set name {name!r} is empty or contains ':' or '/'; choose another name")
        for option in cls.options:
            runtime.choose(option, OPTIONS, "option of a data set")
        cls.registered_name = name
        enter(_REGISTRY, name, cls, "data set")
        return cls

    return add


def names() -> list[str]:
    """Return the names of the registered data sets, sorted; "NAME:PATH" where a path belongs to the name."""
    return sorted(f"{name}:PATH" if "path" in cls.options else name for name, cls in _REGISTRY.items())


def kinds(name: str) -> tuple[str, ...]:
    """Return the kinds of annotations of a data set, as in "voc:PATH", the default first; empty if it has one alone.

    Raises:
        InputError: as for `create`.
    """
    return _REGISTRY[_named(name)[0]].kinds


def _named(name: str) -> tuple[str, str]:
    """Return the registered name, and the path, of a data set."""
    title, colon, path = name.partition(":")
    if not colon and Path(name).is_dir():
        raise InputError(f"{name} is a folder; write folder:{name}")
    if not colon:
        return runtime.choose(name, names(), "data set"), ""
    chosen = runtime.choose(title, _REGISTRY, "data set")
    if "path" not in _REGISTRY[chosen].options:
        raise InputError(f"data set {name!r} has a path, but {chosen!r} takes none; give {chosen!r} alone")
    if not path:
        raise InputError(f"data set {name!r} lacks a path; give {chosen}:PATH")
    return chosen, path


def create(
    name: str,
    *,
    root: str | Path = "data",
    download: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> DataSet:
    """Create a data set by name without reading it.

    Args:
        name: one of `names()`, with a path in the place of PATH.
        root, download, device: as in `DataSet`.
        options: its other arguments, except the path.
    Raises:
        InputError: the name is unknown, the path is missing, an option has a wrong value, or the data set does not have
            an option that is given.
    """
    chosen, path = _named(name)
    cls = _REGISTRY[chosen]
    for number in ("image_size", "views"):
        if options.get(number, 0) < 0:
            what = "pixels, or 0 to keep the images' size" if number == "image_size" else "views of an image, or 0"
            raise InputError(f"{number}={options[number]} is negative; give a number of {what}")
    for option, values in (("crop", KINDS), ("corrupt", CORRUPT)):
        if options.get(option):
            options[option] = runtime.choose(options[option], values, option)
    for option, value in options.items():
        unset = None if option == "ignore" else "stop" if option == "corrupt" else type(value)()
        if value != unset and option not in cls.options:
            able = ", ".join(n for n in names() if option in _REGISTRY[n.partition(":")[0]].options)
            raise InputError(f"{option}={value} is not an option of {chosen}, only of {able}; leave it out")
    if options.get("annotations"):
        options["annotations"] = runtime.choose(options["annotations"], cls.kinds, f"kind of annotations of {chosen}")
    return cls(path=path, root=root, download=download, device=device, **options)
