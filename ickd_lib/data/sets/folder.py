"""Images of your own in a folder, sorted into class folders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data.crops import ResizedCrop
from ickd_lib.data.files import listed
from ickd_lib.data.headers import header_of
from ickd_lib.data.images import Images, Splits
from ickd_lib.data.pillow import image_files, pixels_of_splits
from ickd_lib.data.sets.base import register
from ickd_lib.data.sets.streams import FileDataSet, class_files
from ickd_lib.runtime import InputError

SIDE = 224  # height and width of random resized crops unless an `image_size` is given


@register("folder")
class Folder(FileDataSet):
    """Images in PATH/train/CLASS/ and PATH/test/CLASS/, and optionally PATH/val/CLASS/.

    If there is no test/, val/ is the test split. With the default crop "pad", the images must have one size, unless an
    `image_size` is given, to which they are resized and cropped. The augmentation is a flip, and a crop after padding
    by an eighth of the width. With the crop "resized", they may differ in size, and `ResizedCrop` crops them. Images in
    PATH/unlabelled/, in folders of any depth, are further training images without labels.
    """

    options = frozenset({"path", "image_size", "stream", "crop", "views", "corrupt"})

    def read(self) -> Splits:
        folders = self._split_folders()
        classes = _class_folders(folders["train"])
        if len(classes) < 2:
            raise InputError(f"{folders['train']} has {len(classes)} class folders; expected two or more")
        for folder in folders.values():
            unknown = [name for name in _class_folders(folder) if name not in classes]
            if unknown:
                raise InputError(
                    f"{folder / unknown[0]} is a class folder that train/ does not have; add it there or remove it"
                )
        if self.crop == "resized":
            return self._streamed(folders, classes, ResizedCrop(self.image_size or SIDE, self.views))
        if self.views:
            raise InputError(f"views={self.views} is an option of crop='resized'; give both, or leave views out")
        if self.stream:
            self.fits(0, "")
            return self._streamed(folders, classes, None)
        files: dict[str, list[Path]] = {}
        labels: dict[str, Tensor] = {}
        for split, folder in folders.items():
            of_class = {c: image_files(folder / c) for c in classes}
            self._require(folder, classes, [len(of_class[c]) for c in classes])
            files[split] = [file for c in classes for file in of_class[c]]
            labels[split] = torch.tensor([i for i, c in enumerate(classes) for _ in of_class[c]], dtype=torch.long)
        if self._without_labels:
            others = image_files(self._without_labels)
            files["train"] += others
            labels["train"] = torch.cat([labels["train"], torch.full((len(others),), -1)])
        height, width = (self.image_size,) * 2 if self.image_size else _first_size(files["train"])
        count = sum(map(len, files.values()))
        if not self.fits(3 * count * height * width, f"{count:,} images of {height}×{width} pixels"):
            return self._streamed(folders, classes, None)
        failed: dict[str, list[int]] = {}
        pixels = pixels_of_splits(files, self.image_size, failed if self.corrupt == "skip" else None)
        rows = {split: self._rows(split, paths, failed.get(split, [])) for split, paths in files.items()}
        if any(failed.values()):
            pixels = {split: pixels[split][kept] for split, kept in rows.items()}
            for split, kept in rows.items():
                self.require_rest(split, labels[split], kept, classes)
                labels[split] = labels[split][kept]
        splits = self.splits(pixels, labels, classes=classes, pad=pixels["train"].shape[-1] // 8, flip=True)
        named = {name: tuple(file.relative_to(self.path).as_posix() for file in files[name]) for name in files}
        splits = Splits(
            *(
                replace(one, index=rows.get(name, one.index), files=named.get(name, ()))
                for name, one in splits._asdict().items()
            )
        )
        _note_copies(splits)
        return splits

    def _streamed(self, folders: dict[str, Path], classes: tuple[str, ...], crop: ResizedCrop | None) -> Splits:
        files = {split: class_files(folder, classes) for split, folder in folders.items()}
        for split, (_, labels) in files.items():
            self._require(folders[split], classes, torch.bincount(labels, minlength=len(classes)).tolist())
        if self._without_labels:
            every, counts = listed(self.path, [*(f"train/{name}" for name in classes), self._without_labels.name])
            files["train"] = every, torch.cat([files["train"][1], torch.full((counts[-1],), -1)])
        return self.streams(files, classes, crop)

    @property
    def _without_labels(self) -> Path | None:
        """The folder of the images without labels, if they are requested and there are some."""
        folder = self.path / "unlabelled"
        return folder if self.unlabelled and folder.is_dir() else None

    def _require(self, folder: Path, classes: tuple[str, ...], counts: list[int]) -> None:
        """Raise InputError if a class of train/ or a whole split has no image."""
        for name, count in zip(classes, counts, strict=True):
            if folder.name == "train" and not count:
                raise InputError(f"{folder / name} contains no image; add some or remove the folder")
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if folder.name != "train" and empty and sum(counts):
            runtime.notice(f"{folder} has no image of {len(empty)} of {len(classes)} classes, such as {empty[0]}")
        if not sum(counts):
            raise InputError(f"{folder} contains no image; expected class folders with the names of those in train/")

    def _rows(self, split: str, files: list[Path], failed: list[int]) -> Tensor:
        """Return the rows of the files that could be read, and print how many could not."""
        readable = torch.ones(len(files), dtype=torch.bool)
        readable[failed] = False
        self.tell_unreadable(split, [files[i] for i in failed])
        return readable.nonzero().squeeze(1)

    def _split_folders(self) -> dict[str, Path]:
        """Return the folders of the splits "train", "test" and, where both val/ and test/ exist, "val"."""
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; name one that contains train/ and test/ or val/")
        if not (self.path / "train").is_dir():
            raise InputError(
                f"{self.path} has no folder train/; expected class folders of images in train/ and in test/ or val/"
            )
        found = {split: self.path / split for split in ("train", "val", "test") if (self.path / split).is_dir()}
        if len(found) == 1:
            raise InputError(f"{self.path} has neither test/ nor val/ beside train/; move some images into one of them")
        if "test" not in found:
            found["test"] = found.pop("val")
        return found


def _note_copies(splits: Splits) -> None:
    """Print how many validation and test images have the same pixels as a labelled training image, if some have."""
    train = splits.train
    place: dict[int, int] = {}
    for i, (key, label) in enumerate(zip(_hashes(train), train.labels.tolist(), strict=True)):
        if label >= 0:
            place.setdefault(key, i)
    for split in (splits.val, splits.test):
        pairs = [(i, place[key]) for i, key in enumerate(_hashes(split)) if key in place]
        same = [(i, j) for i, j in pairs if torch.equal(split.images[i], train.images[j])]
        if same:
            one, other = split.file(int(split.index[same[0][0]])), train.file(int(train.index[same[0][1]]))
            runtime.notice(
                f"{len(same):,} of {len(split):,} images of {split.name} have the same pixels as a training image, "
                f"such as {one} and {other}; the accuracy on them is not that on new images, so remove them from one "
                "of the folders"
            )


def _hashes(images: Images) -> Iterator[int]:
    """Yield a hash of the pixels of each image, which equal images share."""
    return (hash(pixels.tobytes()) for pixels in images.images.permute(0, 2, 3, 1).numpy())


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in `folder` that are not hidden, sorted."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))


def _first_size(files: list[Path]) -> tuple[int, int]:
    """Return height and width of the first image that can be read; of none, (0, 0), and decoding names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about large images, which are an error later
        for path in files:
            try:
                return header_of(path)[:2]
            except InputError:
                continue
    return 0, 0
