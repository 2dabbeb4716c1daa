"""A split of images that are decoded and cropped when they are needed, because they do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from ickd_lib import runtime
from ickd_lib.data import strong
from ickd_lib.data.crops import PadCrop, ResizedCrop
from ickd_lib.data.files import AT_ONCE, JPEG, Files, remembered
from ickd_lib.data.headers import upright_pixels
from ickd_lib.data.labelled import LabelledImages
from ickd_lib.data.pillow import pixels_of
from ickd_lib.runtime import InputError
from ickd_lib.runtime.files import Pieces


@dataclass(frozen=True, eq=False)
class FileSource:
    """Decodes the images of files.

    files: the files of all images of the data-set split.
    image_size: height and width to which Pillow resizes each image when it is read; 0 keeps its size.
    exact: whether Pillow reads every file, as it does for images that are held in memory.
    """

    files: Files
    image_size: int = 0
    exact: bool = False

    def __getitem__(self, row: int) -> Tensor:
        """Return the image in a row of the split: uint8, shape [3, h, w]."""
        if self.exact:
            return pixels_of(self.files.path(row), self.image_size)
        return upright_pixels(self.files.path(row), bool(self.files.kind[row] == JPEG))


@dataclass(frozen=True, eq=False)
class KeptSource:
    """The decoded images of a split, which may differ in size, in one block of memory.

    files: their files, for messages.
    pixels: all images one after another in the order height, width, channel, uint8.
    ends: the end of each image in `pixels`, int64, shape [M].
    """

    files: Files
    pixels: Tensor
    ends: np.ndarray

    def __getitem__(self, row: int) -> Tensor:
        """Return the image in a row of the split: uint8, shape [3, h, w]."""
        height, width = self.files.sizes[row].tolist()
        end = int(self.ends[row])
        return self.pixels[end - 3 * height * width : end].view(height, width, 3).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Cropper:
    """Decodes and crops the images of a batch, in a worker process or in the process that trains.

    source: the images of the data-set split by their rows.
    crop: how they are cropped.
    index: row of each image of the split, int64 on the CPU, shape [N].
    labels: class of each image, int64 on the CPU, shape [N].
    skip: whether an image that cannot be decoded is replaced by the next one of its class; if not, it is an error.
    """

    source: FileSource | KeptSource
    crop: PadCrop | ResizedCrop
    index: Tensor
    labels: Tensor
    skip: bool

    def __call__(self, rows: Sequence[int], view: Sequence[int] | None = None) -> tuple[Tensor, list[int]]:
        """Return the crops of images in memory of the CPU.

        Args:
            rows: positions of B images in the split.
            view: view number of each; None for the images without augmentation.
        Returns:
            uint8, shape [B, 3, H, W], in channels-last memory format; and the positions of images that were replaced.
        Raises:
            InputError: a file cannot be decoded.
        """
        with torch.inference_mode(False):  # inference mode belongs to one thread, but all threads write to `out`
            out = torch.empty(len(rows), 3, *self.crop.size, dtype=torch.uint8, memory_format=torch.channels_last)
        replaced: list[int] = []

        def make(at: int) -> None:
            row, image = self._readable(rows[at], replaced)
            out[at] = self.crop.whole(image) if view is None else self.crop.view(image, row, view[at])

        if len(rows) > 1 and get_worker_info() is None and isinstance(self.source, FileSource):
            with ThreadPoolExecutor() as pool:
                list(pool.map(make, range(len(rows))))
        else:
            for at in range(len(rows)):
                make(at)
        return out, sorted(replaced)

    def _readable(self, position: int, replaced: list[int]) -> tuple[int, Tensor]:
        """Return the row and the pixels of an image, or of the next one of its class that can be decoded."""
        row = int(self.index[position])
        try:
            return row, self.source[row]
        except InputError as error:
            if not self.skip:
                raise
            replaced.append(position)
            same = (self.labels == self.labels[position]).nonzero().squeeze(1)
            for other in torch.cat([same[same > position], same[same < position]]).tolist():
                try:
                    return int(self.index[other]), self.source[int(self.index[other])]
                except InputError:
                    continue
            raise InputError(f"{error}; no other image of its class can be read either") from None


@dataclass(frozen=True, eq=False, repr=False)
class StreamedImages(LabelledImages):
    """One split of a data set whose images are decoded and cropped when they are needed.

    A `Loader` does so in worker processes, before they are needed. The methods of this class are those of `Images`,
    but there is no attribute with the pixels.

    Args:
        source: the images of the data-set split by their rows.
        crop: the crops of training and of evaluation.
        labels, index, classes, mean, std, name, augment: as for `Images`.
        workers: number of processes that decode; 0 decodes in the process that trains, None means
            `loader.usual_workers`.
        skip: whether an image that cannot be decoded is replaced by the next one of its class; if not, it is an error.
        superclasses, superclass_of, unlabelled_share: as for `Images`.
        prefix: what stands before the paths of the source in `files`, such as "train/".
    """

    source: FileSource | KeptSource
    crop: PadCrop | ResizedCrop
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    augment: str = "crop"
    workers: int | None = 1
    skip: bool = False
    superclasses: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    unlabelled_share: float = 0.0
    prefix: str = ""
    streamed = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", strong.augmentation(self.augment))

    def __repr__(self) -> str:
        where = "decoded when needed" if isinstance(self.source, FileSource) else "cropped when needed"
        return (
            f"StreamedImages({self.name!r}, {len(self)} {self.extent}, {len(self.classes)} classes, "
            f"augment={self.augment!r}, {where}, {self.labels.device})"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a crop in pixels."""
        return self.crop.size

    @property
    def views(self) -> int:
        """The number of views of an image."""
        return self.crop.count

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the images, labels, rows and class names.

        With a `PadCrop` they are those of the same images in memory, for which all images are decoded once; the result
        is kept in the cache folder. With a `ResizedCrop` they change with the path or size of a file, mean and standard
        deviation, and the crops, but not with the pixels.
        """
        files = self.source.files
        if isinstance(self.crop, PadCrop):
            known = [torch.from_numpy(one.copy()) for one in (files.names, files.ends, files.bytes, files.modified)]
            content = self.labels, self.index, list(self.classes)
            mark = runtime.fingerprint(os.path.abspath(files.root), *known, *content, repr(self.crop))
            made = remembered(f"pixels-{mark}.json", {"fingerprint": str}, lambda: self._of_pixels(*content))
            return str(made["fingerprint"])
        arrays = [torch.from_numpy(one.copy()) for one in (files.names, files.ends, files.bytes)]
        described = [repr(self.crop), list(self.classes), list(self.mean), list(self.std)]
        return runtime.fingerprint(*arrays, self.labels, self.index, described)

    def _of_pixels(self, *others: Any) -> dict[str, Any]:
        """Return the fingerprint of all pixels and other values as `Images` computes it, as an entry of a file."""
        pixels = (block.permute(0, 2, 3, 1) for block in self.blocks(torch.arange(len(self))))
        pieces = Pieces(torch.uint8, (len(self), *self.size, 3), pixels)
        return {"fingerprint": runtime.fingerprint(pieces, *others)}

    @property
    def recorded_crop(self) -> dict[str, int | bool]:
        """`pad` and `flip` of a `PadCrop`, and `flip` of a `ResizedCrop` without flips, which runs record."""
        if isinstance(self.crop, PadCrop):
            return {"pad": self.crop.pad, "flip": self.crop.flip}
        return {} if self.crop.flip else {"flip": False}

    @property
    def evaluation_crop(self) -> dict[str, Any]:
        """How images are brought to one size for the evaluation; see `ImageSplit`."""
        return super().evaluation_crop | ({"crop": "resized"} if isinstance(self.crop, ResizedCrop) else {})

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Path of the file of every row of the whole split, relative to the folder of the data set."""
        found = self.source.files
        return tuple(self.prefix + found.name(row) for row in range(len(found)))

    @cached_property
    def decoder(self) -> Cropper:
        """What decodes and crops the images of this split: the object that is sent to worker processes."""
        return Cropper(self.source, self.crop, self.index.cpu(), self.labels.cpu(), self.skip)

    def subset(self, rows: Tensor) -> StreamedImages:
        """Return the images at the positions `rows`, which keep their data-set rows in `index`."""
        rows = rows.to(self.labels.device)
        return replace(self, labels=self.labels[rows], index=self.index[rows])

    def to(self, device: torch.device | str) -> StreamedImages:
        """Return the same split with labels, rows and batches on another device."""
        return replace(self, labels=self.labels.to(device), index=self.index.to(device))

    def shown(self, rows: Tensor | slice) -> Tensor:
        """Return images without augmentation: uint8, shape [n, 3, H, W]. They are decoded now, so give few rows."""
        positions = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        return self.decoder(positions.tolist())[0].to(self.labels.device)

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield many images without augmentation on the CPU, some at a time: uint8, shape [n, 3, H, W].

        The next ones are decoded while the caller uses those before them, with a progress bar.

        Args:
            rows: their positions, int64, shape [N].
        """

        def make(some: Tensor) -> Tensor:
            return self.decoder(some.tolist())[0]

        first, *others = rows.split(AT_ONCE)
        bar = tqdm(None, f"reading {self.name}", len(rows), leave=False, unit="image", file=runtime.stream())
        with ThreadPoolExecutor(1) as pool, bar:
            ahead = pool.submit(make, first)
            for following in (*others, None):
                made = ahead.result()
                if following is not None:
                    ahead = pool.submit(make, following)
                yield made
                bar.update(len(made))

    def cropped(self, rows: Tensor, view: Tensor) -> Tensor:
        """Return the crops with the view numbers `view` [B] of the images at the positions `rows` [B].

        They are uint8, of shape [B, 3, H, W].
        """
        return self.decoder(rows.tolist(), view.tolist())[0].to(self.labels.device)

    def file(self, row: int) -> str:
        """Return the path of the file in a row of the whole split, relative to the folder of the split."""
        return self.source.files.name(row)

    def path(self, position: int) -> Path:
        """Return the path of the file of an image."""
        return self.source.files.path(int(self.index[position]))
