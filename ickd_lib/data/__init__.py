"""Data sets as resident tensors: `load` one by name, take batches from its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ickd_lib import runtime
from ickd_lib.data import sources
from ickd_lib.data.augment import AUGMENTATIONS, augmentation
from ickd_lib.data.images import Batch, Images, Splits, stratified
from ickd_lib.runtime import InputError

__all__ = ["AUGMENTATIONS", "DATASETS", "Batch", "Images", "Splits", "load", "stratified"]

DATASETS = ("digits", "cifar100", "folder:PATH")


def load(
    name: str,
    root: str | Path = "data",
    *,
    classes: Sequence[str | int] = (),
    labels: int = 0,
    val: float = 0.0,
    image_size: int = 0,
    augment: str = "crop",
    seed: int = 0,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Splits:
    """Load a data set.

    Args:
        name: "digits" (1,797 handwritten digits of 8×8 pixels, part of scikit-learn), "cifar100" (the
            published `cifar-100-python` folder in `root`), or "folder:PATH" (class folders of images in
            PATH/train and PATH/test or PATH/val).
        root: where downloaded data sets live.
        classes: keep these classes only (see `Images.restricted`); empty is all of them.
        labels: train on that many images only, stratified by class; 0 is all of them.
        val: the fraction of train carved out, stratified, as the validation split (0.1: 5,000 of CIFAR-100).
        image_size: resize a folder's images to this many pixels a side; 0 asks that they have one size.
        augment: what a training batch goes through: "crop" (and flip), or after these "randaugment", "mixup",
            "cutmix" or two joined, "randaugment+cutmix" (see `data.augment`).
        seed: which images `labels` and `val` draw.
        download: fetch CIFAR-100 through torchvision when it is not there.
        device: where the images live.
    Raises:
        InputError: an unknown name, missing or damaged files, or numbers that do not fit the data.
    """
    augment = augmentation(augment)
    if name.startswith("folder:"):
        splits = sources.folder(Path(name.removeprefix("folder:")), image_size)
    else:
        chosen = runtime.choose(name, DATASETS, "data set")
        if image_size:
            raise InputError(f"image_size={image_size} is for folder:PATH; {chosen} has its own size")
        splits = sources.digits() if chosen == "digits" else sources.cifar100(Path(root), download)
    if not 0 <= val < 1:
        raise InputError(f"val={val} is a fraction of train: 0 or more, below 1")
    if len(classes):
        splits = Splits(*(images.restricted(classes) for images in splits))
    train, held_out, test = (replace(images, augment=augment) for images in splits)
    if val:
        if len(held_out):
            raise InputError(f"{name} has a validation split of its own; leave val at 0")
        chosen_rows = stratified(train.labels, round(val * len(train)), train.classes, seed)
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[chosen_rows] = False
        held_out = replace(train.subset(chosen_rows), name=held_out.name)
        train = train.subset(rest.nonzero().squeeze(1))
    if labels:
        train = train.few(labels, seed)
    return Splits(train, held_out, test).to(device)
