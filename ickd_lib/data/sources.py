"""The data sets: where their bytes come from, and every way in which they can be wrong."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ickd_lib.data.images import Images, Splits, stratified
from ickd_lib.runtime import InputError


def _splits(name: str, pixels: dict[str, Tensor], labels: dict[str, Tensor], **facts: Any) -> Splits:
    """Splits from uint8 [N, 3, H, W] and labels [N] a split; mean and std are those of train."""
    train = pixels["train"]
    counts = torch.stack([torch.bincount(train[:, c].flatten(), minlength=256) for c in range(3)]).double()
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts @ level) / counts.sum(1)
    std = ((counts @ level**2) / counts.sum(1) - mean**2).sqrt().clamp(min=1 / 255)
    facts |= {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
    empty = {"val": (train[:0], labels["train"][:0])}
    both = empty | {split: (pixels[split], labels[split]) for split in pixels}
    made = {
        split: Images(x, y, torch.arange(len(y)), name=f"{name}/{split}", **facts) for split, (x, y) in both.items()
    }
    return Splits(made["train"], made["val"], made["test"])


def digits() -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits come with scikit-learn: pip install scikit-learn") from None
    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8))
    pixels = pixels[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(bunch.target).long()
    classes = tuple(str(c) for c in bunch.target_names)
    train = stratified(labels, 1000, classes, seed=0)  # the set has no published split; this one is fixed
    test = torch.ones(len(labels), dtype=torch.bool)
    test[train] = False
    rows = {"train": train, "test": test.nonzero().squeeze(1)}
    return _splits(
        "digits",
        {split: pixels[r] for split, r in rows.items()},
        {split: labels[r] for split, r in rows.items()},
        classes=classes,
        pad=1,
        flip=False,
    )


class ArraysOnly(pickle.Unpickler):
    """Reads the published CIFAR pickles, and nothing that could run code."""

    allowed = {  # noqa: RUF012
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _read_pickle(path: Path, keys: tuple[bytes, ...]) -> dict[bytes, Any]:
    try:
        with open(path, "rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError:
        raise InputError(
            f"{path} is not there; ask for the download (download=True, --download), "
            "or name the folder that holds cifar-100-python"
        ) from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} is damaged or not CIFAR-100 ({error}); remove it and download again") from None
    missing = [key.decode() for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} is not CIFAR-100's: it lacks {', '.join(missing)}; remove it and download again")
    return content


def cifar100(root: Path, download: bool) -> Splits:
    folder = root / "cifar-100-python"
    if download and not (folder / "train").exists():
        from torchvision.datasets import CIFAR100

        try:
            CIFAR100(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"could not download CIFAR-100 to {root} ({error}); try again") from None
    meta = _read_pickle(folder / "meta", (b"fine_label_names", b"coarse_label_names"))
    try:
        classes = tuple(name.decode() for name in meta[b"fine_label_names"])
        superclasses = tuple(name.decode() for name in meta[b"coarse_label_names"])
    except (TypeError, AttributeError):
        raise InputError(f"{folder / 'meta'} is damaged: expected two lists of names; download it again") from None
    pixels, labels = {}, {}
    superclass_of = [-1] * len(classes)
    for split in ("train", "test"):
        path = folder / split
        content = _read_pickle(path, (b"data", b"fine_labels", b"coarse_labels"))
        data, fine, coarse = content[b"data"], content[b"fine_labels"], content[b"coarse_labels"]
        whole = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
        if not whole or data.shape[1] != 3072 or not len(data) == len(fine) == len(coarse) > 0:
            raise InputError(f"{path} is damaged: expected uint8 [N, 3072] with N labels; download it again")
        for label, upper in set(zip(fine, coarse, strict=True)):
            if not (0 <= label < len(classes) and 0 <= upper < len(superclasses)):
                raise InputError(f"{path} has label {label}/{upper} outside the classes; download it again")
            if superclass_of[label] not in (-1, upper):
                raise InputError(f"{path} puts {classes[label]} in two superclasses; download it again")
            superclass_of[label] = upper
        pixels[split] = torch.from_numpy(data).view(-1, 3, 32, 32)
        labels[split] = torch.tensor(fine)
    facts = {"superclasses": superclasses, "superclass_of": tuple(superclass_of)}
    return _splits("cifar100", pixels, labels, classes=classes, pad=4, flip=True, **facts)


def folder(path: Path, image_size: int) -> Splits:
    if not (path / "train").is_dir():
        raise InputError(f"{path} has no folder train/ (class folders of images, with test/ or val/ beside it)")
    found = {split: path / split for split in ("train", "val", "test") if (path / split).is_dir()}
    if len(found) == 1:
        raise InputError(f"{path} has neither test/ nor val/ beside train/; hold some images out")
    if "test" not in found:
        found["test"] = found.pop("val")
    classes = tuple(sorted(p.name for p in found["train"].iterdir() if p.is_dir() and p.name[0] != "."))
    if len(classes) < 2:
        raise InputError(f"{found['train']} has {len(classes)} class folders; expected two or more")
    files: dict[str, list[Path]] = {}
    labels: dict[str, Tensor] = {}
    for split, folder in found.items():
        strange = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in classes)
        if strange:
            raise InputError(f"{folder / strange[0]} is a class that train/ does not have; add it there or remove it")
        members = {c: sorted(_image_files(folder / c)) for c in classes}
        for c in classes:
            if split == "train" and not members[c]:
                raise InputError(f"{folder / c} holds no image; add some or remove the folder")
        files[split] = [f for c in classes for f in members[c]]
        labels[split] = torch.tensor([i for i, c in enumerate(classes) for _ in members[c]], dtype=torch.long)
        if not files[split]:
            raise InputError(f"{folder} holds no image; expected class folders named as those of train/")
    pixels = _decode(files, image_size)
    pad = pixels["train"].shape[-1] // 8
    return _splits(f"folder:{path.name}", pixels, labels, classes=classes, pad=pad, flip=True)


def _image_files(folder: Path) -> list[Path]:
    from PIL import Image

    endings = Image.registered_extensions()
    return [p for p in folder.rglob("*") if p.suffix.lower() in endings and p.is_file() and p.name[0] != "."]


def _decode(files: dict[str, list[Path]], image_size: int) -> dict[str, Tensor]:
    """uint8 [N, 3, H, W] a split; one size for all, found from the first image where image_size is 0."""
    from PIL import Image, ImageOps

    def read(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
                if image_size:
                    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
                return np.asarray(image)
        except Exception as error:  # Pillow's decoders raise many types; each means that this file is unreadable
            raise InputError(f"{path} cannot be read ({error}); repair or remove it") from None

    pixels: dict[str, Tensor] = {}
    size: tuple[int, ...] | None = None
    with ThreadPoolExecutor() as pool:
        for split, paths in files.items():
            arrays = []
            progress = tqdm(pool.map(read, paths), f"reading {split}", len(paths), leave=False, unit="image")
            for path, array in zip(paths, progress, strict=True):
                size = size or array.shape
                if array.shape != size:
                    raise InputError(
                        f"{path} has {array.shape[1]}×{array.shape[0]} pixels, the first image "
                        f"{size[1]}×{size[0]}; name an image_size to resize all of them"
                    )
                arrays.append(torch.from_numpy(array.copy()))
            pixels[split] = torch.stack(arrays).permute(0, 3, 1, 2)
    return pixels
