"""What the data sets with class masks or objects share: their splits, and the checks of files and annotations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.dense import IGNORED, DenseImages, check_sizes
from ickd_lib.data.images import Images, Splits
from ickd_lib.data.joint import RandomCrop, RandomResize
from ickd_lib.data.objects import Objects, SplitObjects
from ickd_lib.data.pillow import pixels_of, size_of
from ickd_lib.data.resizing import resized
from ickd_lib.data.sequences import Decoded, channel_statistics, fingerprint_of_file, threaded
from ickd_lib.data.sets.base import DataSet
from ickd_lib.runtime import InputError

RESIDENT = 2**30  # bytes of pixels up to which images are decoded once and kept in memory
MEASURED = 256  # largest number of images from which the mean colour is computed if they are not kept in memory
LISTED = 20  # largest number of annotations that one note names


@dataclass(frozen=True, eq=False)
class Part:
    """One split as a data set reads it: see `DenseImages`."""

    images: tuple[Tensor, ...] | Decoded
    sizes: Tensor
    masks: tuple[Tensor, ...] | Decoded | None = None
    objects: SplitObjects | None = None


class Annotation(NamedTuple):
    """An object: position of its image, class, box as in `Objects`, and whether it is a crowd or difficult."""

    image: int
    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False
    difficult: bool = False


class DenseDataSet(DataSet):
    """A data set with class masks or objects. A subclass reads its splits and makes the result with `dense`."""

    def dense(self, parts: Mapping[str, Part], classes: Sequence[str], transform: RandomCrop | RandomResize) -> Splits:
        """Make the splits. If all images take at most RESIDENT bytes, they are decoded here, else when they are needed.

        Args:
            parts: the splits "train", "test" and, where there is one, "val".
            classes: names of the C classes.
            transform: augmentation of the training batches.
        """
        for split in ("train", "test"):
            if not len(parts[split].images):
                raise InputError(f"{self.title}/{split} contains no image; expected at least one")
        small = not self.stream and is_small([part.sizes for part in parts.values()])
        images = {split: _resident(part.images, small, split) for split, part in parts.items()}
        for split, part in parts.items():
            if small and isinstance(part.images, Decoded):
                check_sizes([image.shape[1:] for image in images[split]], part.sizes.tolist(), part.images.items)
        step = 1 if small else math.ceil(len(images["train"]) / MEASURED)
        mean, std = channel_statistics([images["train"][i] for i in range(0, len(images["train"]), step)])
        splits = {
            name: DenseImages(
                images[name],
                part.sizes,
                torch.arange(len(part.images)),
                classes=tuple(classes),
                mean=mean,
                std=std,
                name=f"{self.title}/{name}",
                transform=transform,
                masks=None if part.masks is None else _resident(part.masks, small, f"masks of {name}"),
                objects=part.objects,
            )
            for name, part in parts.items()
        }
        if "val" not in splits:
            splits["val"] = replace(splits["train"].subset(torch.arange(0)), name=f"{self.title}/val")
        if self.image_size:
            splits = {name: resized(one, self.image_size) for name, one in splits.items()}
            splits = {name: replace(one, transform=splits["train"].transform) for name, one in splits.items()}
        return Splits(*(cast(Images, splits[name]) for name in Splits._fields))

    def note_absent(self, split: str, classes: Sequence[str], counts: Tensor) -> None:
        """Print a note of the classes of which a split has no annotation; `counts` [C] are numbers of annotations."""
        absent = [repr(name) for name, count in zip(classes, counts.tolist(), strict=True) if not count]
        if absent:
            runtime.notice(f"{self.title}/{split} has no annotation of class {', '.join(absent)}")

    def objects(
        self,
        split: str,
        annotations: Sequence[Annotation],
        sizes: Tensor,
        classes: Sequence[str],
        source: Path,
        where: Callable[[int], str],
    ) -> tuple[SplitObjects, list[int]]:
        """Check the objects of a split. Boxes are cut off at the border of their image.

        Boxes without an area inside their image are left out, and a note names them.

        Args:
            split: name of the split.
            annotations: all annotations, those of the first image first.
            sizes: height and width of each image, shape [N, 2].
            classes: names of the C classes.
            source: the file or folder that the annotations are from, for the note.
            where: names the annotation at a position, for the note.
        Returns:
            The objects, and the positions in `annotations` of those that were kept.
        """
        boxes = torch.tensor([a.box for a in annotations], dtype=torch.float64).view(-1, 4)
        image = torch.tensor([a.image for a in annotations], dtype=torch.int64)
        limit = sizes.flip(1).repeat(1, 2)[image].double()
        inside = torch.minimum(boxes.clamp(min=0), limit).float()  # in which a narrow box may have no area
        good = (inside[:, 2:] > inside[:, :2]).all(1) & boxes.isfinite().all(1)
        dropped = (~good).nonzero().squeeze(1).tolist()
        cut = (good & ((inside - boxes).abs() > 1).any(1)).nonzero().squeeze(1).tolist()
        for positions, what in (
            (dropped, "boxes without an area inside the image are left out"),
            (cut, "boxes that reach out of the image are cut off"),
        ):
            if positions:
                listed = "; ".join(map(where, positions[:LISTED]))
                more = f" and {len(positions) - LISTED} more" if len(positions) > LISTED else ""
                runtime.notice(f"{self.title}/{split}: {what}, in {source}: {listed}{more}")
        labels = torch.tensor([a.label for a in annotations], dtype=torch.int64)
        crowd, difficult = (
            torch.tensor([getattr(a, name) for a in annotations], dtype=torch.bool) for name in ("crowd", "difficult")
        )
        kept = good.nonzero().squeeze(1)
        flat = Objects(inside[kept], labels[kept], torch.arange(len(kept)), (crowd | difficult)[kept])
        if bool(difficult[kept].any()):
            flat = replace(flat, difficult=difficult[kept])
        self.note_absent(split, classes, torch.bincount(labels[kept], minlength=len(classes)))
        return SplitObjects(flat, torch.bincount(image[kept], minlength=len(sizes))), kept.tolist()


def _resident(tensors: tuple[Tensor, ...] | Decoded, small: bool, what: str) -> tuple[Tensor, ...] | Decoded:
    return tensors.resident(what) if small and isinstance(tensors, Decoded) else tensors


def is_small(sizes: Sequence[Tensor]) -> bool:
    """Return whether images of these heights and widths, [N, 2] for each split, are kept in memory."""
    return 3 * sum(int(size.prod(1).sum()) for size in sizes) <= RESIDENT


def sizes_of(files: Sequence[Path], what: str) -> Tensor:
    """Return height and width of image files, int64 [N, 2], from their headers."""
    return torch.tensor(list(threaded(size_of, files, f"measuring {what}"))).view(-1, 2)


def files(paths: Sequence[Path]) -> Decoded:
    """Return the images of these files, decoded when they are needed."""
    return Decoded(pixels_of, tuple(paths))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without blank ones.

    Raises:
        InputError: the file does not exist or is not text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; add it, or check the path of the data set") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8; save it as such") from None


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names in folder/classes.txt, one a line; empty if there is no such file.

    Raises:
        InputError: a name is given twice, or there are more than 255.
    """
    path = folder / "classes.txt"
    if not path.exists():
        return ()
    names = read_lines(path)
    if len(set(names)) < len(names) or not 1 <= len(names) <= IGNORED:
        raise InputError(
            f"{path} has {len(names)} names, {len(set(names))} of them different; expected 1 to 255, each once"
        )
    return tuple(names)


def check_apart(paths: Mapping[str, Sequence[Path]], *, published: bool = False) -> None:
    """Check that no image is in two splits.

    Files of the same size are compared by their bytes. If two files only have the same name, a note is printed.

    Args:
        paths: the image files of each split.
        published: whether the splits may be published ones, which are used as they are. Two files with the same content
            then lead to a note instead of an error.
    Raises:
        InputError: a file is in two splits, or files of two splits have the same content.
    """
    names: dict[str, tuple[str, Path]] = {}
    shared = []
    for split, given in paths.items():
        for path in given:
            first_split, first = names.setdefault(path.name, (split, path))
            if first_split != split and first != path:
                shared.append(f"{path} and {first}")
    if shared:
        runtime.notice(f"{len(shared)} images of different splits have the same name, such as {shared[0]}")
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for split, given in paths.items():
        for path in given:
            by_size.setdefault(path.stat().st_size, []).append((split, path))
    for same_size in by_size.values():
        if len({split for split, _ in same_size}) < 2:
            continue
        seen: dict[str, tuple[str, Path]] = {}
        for split, path in same_size:
            first_split, first = seen.setdefault(fingerprint_of_file(path), (split, path))
            if first_split != split:
                text = f"{path} in {split} is the same image as {first} in {first_split}"
                if path == first or not published:
                    raise InputError(f"{text}; remove it from one of the splits")
                runtime.notice(text)
