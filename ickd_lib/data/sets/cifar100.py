"""CIFAR-100 from its published files (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ickd_lib import runtime
from ickd_lib.data.images import Splits
from ickd_lib.data.sets.base import DataSet, register
from ickd_lib.runtime import InputError


@register("cifar100")
class Cifar100(DataSet):
    """50,000 training and 10,000 test images of 32×32 pixels in 100 classes and 20 superclasses.

    They are read from the published folder `cifar-100-python` in `root`.
    """

    options = frozenset({"root", "download"})

    def read(self) -> Splits:
        folder = self.root / "cifar-100-python"
        if self.download:
            runtime.from_main(lambda: None if (folder / "train").exists() else self._download())
        classes, superclasses = _read_names(folder / "meta")
        pixels, labels = {}, {}
        superclass_of = [-1] * len(classes)
        for split in ("train", "test"):
            path = folder / split
            images, fine, coarse = _read_split(path)
            for label, superclass in set(zip(fine, coarse, strict=True)):
                if not (0 <= label < len(classes) and 0 <= superclass < len(superclasses)):
                    raise InputError(
                        f"{path} has label {label} with superclass {superclass}, but there are {len(classes)} classes "
                        f"and {len(superclasses)} superclasses; download it again"
                    )
                if superclass_of[label] not in (-1, superclass):
                    raise InputError(f"{path} has class {classes[label]!r} in two superclasses; download it again")
                superclass_of[label] = superclass
            pixels[split] = torch.from_numpy(images).view(-1, 3, 32, 32)
            labels[split] = torch.tensor(fine)
        return self.splits(
            pixels,
            labels,
            classes=classes,
            pad=4,
            flip=True,
            superclasses=superclasses,
            superclass_of=superclass_of,
        )

    def _download(self) -> None:
        from torchvision.datasets import CIFAR100

        try:
            CIFAR100(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"could not download CIFAR-100 to {self.root} ({error}); try again") from None


def _read_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the names of the classes and of the superclasses."""
    meta = _read_pickle(path, (b"fine_label_names", b"coarse_label_names"))
    try:
        classes = tuple(name.decode() for name in meta[b"fine_label_names"])
        superclasses = tuple(name.decode() for name in meta[b"coarse_label_names"])
    except (TypeError, AttributeError):
        raise InputError(f"{path} is damaged: expected two lists of names; download it again") from None
    return classes, superclasses


def _read_split(path: Path) -> tuple[np.ndarray, list[int], list[int]]:
    """Read images as uint8 [N, 3072], their N classes and their N superclasses."""
    content = _read_pickle(path, (b"data", b"fine_labels", b"coarse_labels"))
    images, fine, coarse = content[b"data"], content[b"fine_labels"], content[b"coarse_labels"]
    is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2
    if not is_bytes or images.shape[1] != 3072 or not len(images) == len(fine) == len(coarse) > 0:
        raise InputError(f"{path} is damaged: expected uint8 [N, 3072] with N labels; download it again")
    return images, fine, coarse


class ArraysOnly(pickle.Unpickler):
    """Unpickler for the published CIFAR files that accepts NumPy arrays only, so that no code in a file runs."""

    allowed = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _read_pickle(path: Path, keys: tuple[bytes, ...]) -> dict[bytes, Any]:
    """Read the dictionary in a CIFAR pickle, which must have `keys`."""
    try:
        with open(path, "rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; allow the download (download=True, --download), or give as root (--data-root) the "
            "folder that contains cifar-100-python"
        ) from None
    except OSError:
        raise
    except Exception as error:  # A damaged pickle can raise any type.
        raise InputError(
            f"{path} is damaged or not from CIFAR-100 ({error}); remove it and download it again"
        ) from None
    missing = [key.decode() for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(
            f"{path} is not from CIFAR-100: it lacks {', '.join(missing)}; remove it and download it again"
        )
    return content
