"""Images of your own in a folder, sorted into class folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ickd_lib.data.decode import decode, image_files
from ickd_lib.data.images import Splits
from ickd_lib.data.sets.base import DataSet, register
from ickd_lib.runtime import InputError


@register("folder")
class Folder(DataSet):
    """Images in PATH/train/CLASS/ and PATH/test/CLASS/, and optionally PATH/val/CLASS/.

    If there is no test/, val/ is the test split. The images must have one size, unless an `image_size` is given, to
    which they are resized and cropped. The augmentation is a flip, and a crop after padding by an eighth of the width.
    """

    options = frozenset({"path", "image_size"})

    def read(self) -> Splits:
        folders = self._split_folders()
        classes = _class_folders(folders["train"])
        if len(classes) < 2:
            raise InputError(f"{folders['train']} has {len(classes)} class folders; expected two or more")
        files: dict[str, list[Path]] = {}
        labels: dict[str, Tensor] = {}
        for split, folder in folders.items():
            unknown = [name for name in _class_folders(folder) if name not in classes]
            if unknown:
                raise InputError(
                    f"{folder / unknown[0]} is a class folder that train/ does not have; add it there or remove it"
                )
            of_class = {c: image_files(folder / c) for c in classes}
            for c in classes:
                if split == "train" and not of_class[c]:
                    raise InputError(f"{folder / c} contains no image; add some or remove the folder")
            files[split] = [file for c in classes for file in of_class[c]]
            labels[split] = torch.tensor([i for i, c in enumerate(classes) for _ in of_class[c]], dtype=torch.long)
            if not files[split]:
                raise InputError(
                    f"{folder} contains no image; expected class folders with the names of those in train/"
                )
        pixels = decode(files, self.image_size)
        return self.splits(pixels, labels, classes=classes, pad=pixels["train"].shape[-1] // 8, flip=True)

    def _split_folders(self) -> dict[str, Path]:
        """Return the folders of the splits "train", "test" and, where both val/ and test/ exist, "val"."""
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


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in `folder` that are not hidden, sorted."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
