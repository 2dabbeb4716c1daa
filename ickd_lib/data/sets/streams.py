"""Splits of image files that are decoded when they are needed, or held in memory in their own sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.crops import PadCrop, ResizedCrop
from ickd_lib.data.files import AT_ONCE, UNREADABLE, Files, for_all, listed, remembered, scanned
from ickd_lib.data.headers import header_of, upright_pixels
from ickd_lib.data.images import Images, Splits
from ickd_lib.data.sequences import channel_statistics
from ickd_lib.data.sets.base import DataSet
from ickd_lib.data.streamed import FileSource, KeptSource, StreamedImages
from ickd_lib.runtime import InputError
from ickd_lib.runtime.memory import available_bytes

SHARE = 0.5  # largest share of the available memory that decoded images may take
MEASURED = 2048  # number of images from which mean and standard deviation are computed for random resized crops


class FileDataSet(DataSet):
    """A data set of image files in class folders. A subclass lists the files and makes the result with `streams`."""

    def fits(self, decoded_bytes: int, why: str) -> bool:
        """Return whether images of this many bytes are held in memory, and print the choice with its reason.

        Args:
            decoded_bytes: the bytes of all images after decoding.
            why: what these are, as in "120 images of 32×32 pixels".
        """
        available = available_bytes(self.device)
        if self.stream:
            runtime.notice(f"{self.title} is streamed, as requested")
            return False
        limit = "an unknown amount of memory is" if available is None else f"{gigabytes(available)} are"
        fits = available is None or decoded_bytes <= SHARE * available
        where = "held in memory" if fits else "streamed"
        size = gigabytes(decoded_bytes)
        text = f"{self.title} is {where}: {why} take {size} decoded"
        runtime.notice(f"{text}, and {limit} available", once=text)
        return fits

    def tell_unreadable(self, split: str, files: Sequence[Path]) -> None:
        """Print how many files of a split are left out because they cannot be read, if there are any."""
        if files:
            runtime.notice(f"{self.title}/{split}: {len(files):,} unreadable files are left out, such as {files[0]}")

    def require_rest(self, split: str, labels: Tensor, rows: Tensor, classes: Sequence[str]) -> None:
        """Raise InputError if unreadable files leave a split without an image, or train without one of a class.

        Args:
            split: its name.
            labels: class of every file, shape [M]; -1 for a file without a label.
            rows: positions of the files that can be read.
            classes: names of the classes.
        """
        if len(labels) and not len(rows):
            raise InputError(f"none of the {len(labels)} files of {self.title}/{split} can be read; repair them")
        if split == "train":
            lost = set(labels.tolist()) - set(labels[rows].tolist()) - {-1}
            if lost:
                raise InputError(
                    f"no image of class {classes[min(lost)]!r} in {self.title}/train can be read; repair some of them"
                )

    def streams(
        self,
        files: Mapping[str, tuple[Files, Tensor]],
        classes: Sequence[str],
        crop: ResizedCrop | None,
        statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> Splits:
        """Scan the files and make the splits.

        Args:
            files: for "train", "test" and optionally "val": the files, and the class of each, int64 [M].
            classes: names of the C classes.
            crop: the crops; None for those of a folder of equally sized images.
            statistics: mean and standard deviation of each channel; None to compute them from training images.
        Raises:
            InputError: a file cannot be read, or the images differ in size although the crops need one.
        """
        scans = {split: scanned(given, f"{self.title}/{split}") for split, (given, _) in files.items()}
        rows = {split: self._readable(split, given) for split, given in scans.items()}
        pad = self._pad_crop(scans, rows) if crop is None else None
        sources: dict[str, FileSource | KeptSource] = {
            split: FileSource(given, self.image_size if pad else 0, exact=pad is not None)
            for split, given in scans.items()
        }
        if pad is None and self._fits(scans):
            for name, given in scans.items():
                sources[name], rows[name] = self._kept(given, rows[name], name)
        for name, (_, labels) in files.items():
            self.require_rest(name, labels, rows[name], classes)

        def split(name: str) -> StreamedImages:
            source, labels = (sources[name], files[name][1]) if name in files else (sources["train"], torch.empty(0))
            chosen = rows[name] if name in files else torch.empty(0, dtype=torch.long)
            below = Path(source.files.root).relative_to(self.path).as_posix()
            return StreamedImages(
                source,
                pad or cast(ResizedCrop, crop),
                labels[chosen].long(),
                chosen,
                classes=tuple(classes),
                mean=(0.0,) * 3,
                std=(1.0,) * 3,
                name=f"{self.title}/{name}",
                skip=self.corrupt == "skip",
                prefix="" if below == "." else f"{below}/",
            )

        made = {name: split(name) for name in Splits._fields}
        mean, std = statistics or _statistics(made["train"])
        return Splits(*(cast(Images, replace(made[name], mean=mean, std=std)) for name in Splits._fields))

    def _fits(self, scans: Mapping[str, Files]) -> bool:
        total = sum(3 * int(given.sizes.astype(np.int64).prod(1).sum()) for given in scans.values())
        return self.fits(total, f"{sum(map(len, scans.values())):,} images")

    def _readable(self, split: str, files: Files) -> Tensor:
        """Return the rows of the files that can be read, or raise InputError if some cannot."""
        broken = (files.kind == UNREADABLE).nonzero()[0]
        if len(broken):
            try:
                header_of(files.path(int(broken[0])))
                reason = f"{files.path(int(broken[0]))} has changed"
            except InputError as error:
                reason = str(error)
            more = f" ({len(broken):,} files of {split} are unreadable)" if len(broken) > 1 else ""
            if self.corrupt == "stop":
                raise InputError(f"{reason}{more}; corrupt='skip' leaves such files out")
            runtime.notice(f"{self.title}/{split}: {len(broken):,} unreadable files are left out, such as {reason}")
        return torch.from_numpy((files.kind != UNREADABLE).nonzero()[0])

    def _kept(self, files: Files, rows: Tensor, split: str) -> tuple[KeptSource, Tensor]:
        """Decode the files in some rows into one block of memory, and return it with the rows that could be decoded."""
        lengths = 3 * files.sizes.astype(np.int64).prod(1)
        source = KeptSource(files, torch.empty(int(lengths.sum()), dtype=torch.uint8), lengths.cumsum())
        failed: list[int] = []

        def read(some: np.ndarray) -> np.ndarray:
            for i in some.tolist():
                place = source[i]
                try:
                    image = upright_pixels(files.path(i), bool(files.kind[i] > 1))
                except InputError:
                    if self.corrupt == "stop":
                        raise
                    failed.append(i)
                    continue
                if image.shape != place.shape:
                    raise InputError(f"{files.path(i)} was changed while it was read; start again")
                place.copy_(image)
            return some

        parts = np.split(rows.numpy(), range(AT_ONCE, len(rows), AT_ONCE))
        for_all(read, parts, f"reading {split}", len(rows), len)
        self.tell_unreadable(split, [files.path(i) for i in sorted(failed)])
        return source, rows[~torch.isin(rows, torch.tensor(failed, dtype=torch.long))]

    def _pad_crop(self, scans: Mapping[str, Files], rows: Mapping[str, Tensor]) -> PadCrop:
        """Return the crops of a folder of equally sized images; see `Folder`."""
        size = (self.image_size, self.image_size)
        if not self.image_size:
            first = scans["train"].sizes[int(rows["train"][0])] if len(rows["train"]) else np.zeros(2, np.int32)
            for files in scans.values():
                other = ((files.sizes != first).any(1) & (files.kind != UNREADABLE)).nonzero()[0]
                if len(other):
                    path, (height, width) = files.path(int(other[0])), files.sizes[int(other[0])]
                    raise InputError(
                        f"{path} has {width}×{height} pixels, but the first image has {first[1]}×{first[0]}; "
                        "give an image_size (--image-size) or crop='resized' (--crop resized) to resize all of them"
                    )
            size = int(first[0]), int(first[1])
        return PadCrop(size, size[1] // 8, flip=True)


def gigabytes(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def class_files(folder: Path, classes: Sequence[str]) -> tuple[Files, Tensor]:
    """Return the image files of a split in the order of the classes, and the class of each, int64 [M]."""
    present = [name for name in classes if (folder / name).is_dir()]
    files, counts = listed(folder, present)
    of = torch.tensor([list(classes).index(name) for name in present], dtype=torch.long)
    return files, of.repeat_interleave(torch.tensor(counts, dtype=torch.long))


def _statistics(train: StreamedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over the images, or over a random sample of them.

    All images count where the same images in memory would have those of all. The result is kept in the cache folder.
    """
    files = train.source.files
    count = len(train) if isinstance(train.crop, PadCrop) else MEASURED
    arrays = [torch.from_numpy(one.copy()) for one in (files.names, files.bytes, files.modified)]
    mark = runtime.fingerprint(files.root, *arrays, train.index, repr(train.crop), count)

    def measured() -> dict[str, Any]:
        drawn = torch.randperm(len(train), generator=runtime.generator("mean", len(train)))[:count].sort().values
        return dict(zip(("mean", "std"), channel_statistics(train.blocks(drawn)), strict=True))

    found = remembered(f"mean-{mark}.json", {"mean": list, "std": list}, measured)
    return tuple(found["mean"]), tuple(found["std"])
