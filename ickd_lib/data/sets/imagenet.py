"""ImageNet in its published layout (Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge)."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ickd_lib.data.crops import ResizedCrop
from ickd_lib.data.files import Files, listed
from ickd_lib.data.images import Splits
from ickd_lib.data.sets.base import register
from ickd_lib.data.sets.streams import FileDataSet, class_files
from ickd_lib.runtime import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
NAMES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")  # a WNID and its names on each line
SOLUTION = "LOC_val_solution.csv"
ENDS = ("n01440764", "n15075141")  # the first and the last of the WNIDs for which torchvision has names
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


@register("imagenet")
class ImageNet(FileDataSet):
    """ImageNet in PATH/train/WNID/ and PATH/val/, the validation images of which are the test split.

    PATH/val/ has class folders too, or the 50,000 files alone; their classes are then in PATH/LOC_val_solution.csv, or
    in the development kit's ILSVRC2012_validation_ground_truth.txt and meta.mat (which needs SciPy), in PATH or in a
    folder below it. The classes are the folders in train/, sorted. Their names are those in
    PATH/LOC_synset_mapping.txt, synset_words.txt or words.txt, or else torchvision's names of the 1,000 classes. The
    crops are those of `ResizedCrop`, 224 pixels wide and high by default.
    """

    options = frozenset({"path", "image_size", "stream", "crop", "views", "corrupt"})

    def read(self) -> Splits:
        if self.crop == "pad":
            raise InputError("crop='pad' needs images of one size, which those of imagenet do not have; leave it out")
        for split in ("train", "val"):
            if not (self.path / split).is_dir():
                raise InputError(f"{self.path} has no folder {split}/; expected train/ and val/, as published")
        wnids = _folders(self.path / "train")
        if len(wnids) < 2:
            raise InputError(f"{self.path / 'train'} has {len(wnids)} class folders; expected one for each WNID")
        train = class_files(self.path / "train", wnids)
        if len(empty := (torch.bincount(train[1], minlength=len(wnids)) == 0).nonzero()):
            raise InputError(
                f"{self.path / 'train' / wnids[int(empty[0])]} contains no image; unpack its archive again"
            )
        files = {"train": train, "test": self._validation(wnids)}
        return self.streams(files, self._names(wnids), ResizedCrop(self.image_size or SIDE, self.views), (MEAN, STD))

    def _validation(self, wnids: tuple[str, ...]) -> tuple[Files, Tensor]:
        """Return the validation files and the class of each."""
        folder = self.path / "val"
        if found := _folders(folder):
            if unknown := [name for name in found if name not in wnids]:
                raise InputError(f"{folder / unknown[0]} is a class folder that train/ does not have; remove it")
            files, labels = class_files(folder, wnids)
        else:
            files, _ = listed(self.path, ["val"])
            labels = self._truth(files, wnids)
        if not len(files):
            raise InputError(f"{folder} contains no image; unpack the validation images there")
        return files, labels

    def _truth(self, files: Files, wnids: tuple[str, ...]) -> Tensor:
        """Return the class of each file of a flat folder."""
        place = {wnid: c for c, wnid in enumerate(wnids)}
        stems = [Path(files.name(i)).stem for i in range(len(files))]
        solution, truth = self._find(SOLUTION), self._find(TRUTH)
        if solution is not None:
            with open(solution, newline="") as file:
                of = {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) > 1 and row[1].strip()}
            source = solution
        elif truth is not None:
            of, source = self._by_number(truth, stems), truth
        else:
            raise InputError(
                f"{self.path / 'val'} has no class folders, and {self.path} contains neither {SOLUTION} nor {TRUTH}; "
                "add one of them, or sort the images into class folders"
            )
        labels = [place.get(of.get(stem, ""), -1) for stem in stems]
        if -1 in labels:
            stem = stems[labels.index(-1)]
            if stem not in of:
                raise InputError(f"{source} has no class for {stem}; complete the file or remove the image")
            raise InputError(
                f"{source} gives {stem} the class {of[stem]}, but train/ has no such folder; correct the file or add "
                "the folder"
            )
        return torch.tensor(labels, dtype=torch.long)

    def _by_number(self, truth: Path, stems: list[str]) -> dict[str, str]:
        """Return the WNID of each file from the development kit: line n is the class of validation image n."""
        meta = self._find(META)
        if meta is None:
            raise InputError(f"{truth} numbers the classes as {META} does, which is missing; add it below {self.path}")
        try:
            from scipy.io import loadmat
        except ImportError:
            raise InputError(f"{meta} is read with SciPy; run pip install scipy") from None
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        wnid = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in np.atleast_1d(synsets)}
        numbers = [int(line) for line in truth.read_text().split()]
        found = {}
        for stem in stems:
            match = re.search(r"(\d+)$", stem)
            number = int(match.group(1)) if match else 0
            if not 1 <= number <= len(numbers):
                raise InputError(f"{self.path / 'val' / stem} has no line in {truth}, which has {len(numbers)}")
            found[stem] = wnid.get(numbers[number - 1], "?")
        return found

    def _find(self, name: str) -> Path | None:
        """Return a file in PATH or up to two folders below it."""
        return next((p for pattern in ("", "*/", "*/*/") for p in sorted(self.path.glob(pattern + name))), None)

    def _names(self, wnids: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the classes; a name that several classes have is followed by the WNID."""
        listing = next((path for name in NAMES if (path := self.path / name).is_file()), None)
        if listing is not None:
            lines = (
                line.split(maxsplit=1) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()
            )
            known = {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) > 1}
            names = [known.get(wnid, wnid) for wnid in wnids]
        elif len(wnids) == 1000 and (wnids[0], wnids[-1]) == ENDS:
            from torchvision.models import ResNet18_Weights

            names = list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
        else:
            names = list(wnids)
        often = Counter(names)
        return tuple(name if often[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


def _folders(path: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder that are not hidden, sorted."""
    return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != "."))
