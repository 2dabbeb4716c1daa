"""Load a data set by name: read it, select classes and images, and hold out a validation split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ickd_lib import runtime
from ickd_lib.data import selection, sets
from ickd_lib.data.dense import DenseImages
from ickd_lib.data.images import Images, Splits
from ickd_lib.data.labelled import LabelledImages
from ickd_lib.data.sets.folder import Folder
from ickd_lib.data.streamed import StreamedImages
from ickd_lib.data.strong import augmentation
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import BelowOne, Natural, checked


@checked
def load(
    name: str,
    root: str | Path = "data",
    *,
    classes: Sequence[str | int] = (),
    labels: Natural = 0,
    val: BelowOne = 0.0,
    image_size: Natural = 0,
    augment: str = "crop",
    seed: int = 0,
    download: bool = False,
    annotations: str = "",
    ignore: int | None = None,
    stream: bool = False,
    crop: str = "",
    views: Natural = 0,
    workers: Natural | None = None,
    corrupt: str = "stop",
    unlabelled: int | str = 0,
    unlabelled_share: float = 0.0,
    flip: bool | None = None,
    device: torch.device | str = "cpu",
) -> Splits:
    """Load a data set.

    Args:
        name: one of `data.names()`: "digits" (1,797 handwritten digits of 8×8 pixels, part of scikit-learn), "cifar100"
            (the published folder `cifar-100-python` in `root`), "folder:PATH" (class folders of images in PATH/train
            and in PATH/test or PATH/val), "imagenet:PATH" (the published folders train and val), or a data set that you
            registered (see `data.register`). With class masks or objects: "scenes" (drawn from the digits),
            "masks:PATH", "voc:PATH" and "coco:PATH".
        root: the folder that contains downloaded data sets.
        classes: keep these classes only (see `data.selection.restricted`). An empty sequence keeps all classes.
        labels: number of training images to keep, stratified by class; 0 keeps all.
        val: fraction of the training images that become the validation split, stratified (0.1 of CIFAR-100 is 5,000).
            A data set with validation images of its own has these, whatever the fraction. With 0 there are none.
            Of images with masks or objects, `labels` and `val` are plain random draws.
        image_size: height and width in pixels to which the images of a folder are resized. With 0 they are not resized
            and must have one size. Of images with masks or objects, it is the shorter side.
        augment: augmentation of the training batches: "crop" (crop and flip), or "randaugment", "mixup", "cutmix",
            "randaugment+cutmix" or "randaugment+mixup" after crop and flip (see `data.strong`).
        seed: the images that are drawn for `labels` and `val` are a function of it.
        download: download the files of CIFAR-100 with torchvision where they are missing.
        annotations: "masks", "boxes" or "instances" for "scenes", "boxes" or "masks" for "voc:PATH", "boxes" or
            "instances" for "coco:PATH"; by default the first of these.
        ignore: value of the ignored pixels in the files of "masks:PATH".
        stream: decode image files when they are needed, in worker processes, even if all images fit into memory.
            Without it the available memory decides.
        crop: "pad" (the image's own size after padding) or "resized" (random resized crops of `image_size`, by default
            224), for the images of a folder; by default "pad".
        views: number of random resized crops of each image, so that a teacher cache can hold them; 0 draws new ones in
            each epoch.
        workers: number of processes that decode streamed images; None for one less than the number of cores
            that the training process has.
        corrupt: "stop" with an error that names a file that cannot be read, or "skip" such files.
        unlabelled: number of training images without labels, or "all": the files in PATH/unlabelled of a folder, and
            the images that `labels` leaves out, whose labels are then removed. They have the label -1.
        unlabelled_share: share of these in each batch, in which images then return as often as necessary; 0 for their
            share of the training images.
        flip: whether half of the augmented training images are mirrored from left to right; None for the data set's
            own choice, which is True for all but the digits. Give False where a mirrored image has another meaning, as
            for characters or signs. Images with masks or objects have a `transform` instead.
        device: the device that holds the images.
    Raises:
        InputError: the name is unknown, files are missing or damaged, or a number does not fit the data.
    """
    augment = augmentation(augment)
    if not 0 <= unlabelled_share < 1 or (unlabelled_share and not unlabelled):
        raise InputError(
            f"unlabelled_share={unlabelled_share} is no share of unlabelled images, below 1; give unlabelled images too"
        )
    made = sets.create(
        name,
        root=root,
        image_size=image_size,
        download=download,
        annotations=annotations,
        ignore=ignore,
        stream=stream,
        crop=crop,
        views=views,
        corrupt=corrupt,
        device=device,
    )
    made.unlabelled = bool(unlabelled)
    splits = made.read()
    if repeated := [name for name, count in Counter(splits.train.classes).items() if count > 1]:
        raise InputError(f"{name} has several classes of the name {repeated[0]!r}; give each class a name of its own")
    if splits.train.streamed:
        splits = Splits(*(replace(images, workers=workers) for images in splits))  # type: ignore[call-arg]
    if isinstance(splits.train, DenseImages):
        for option, given, default in (
            ("classes", list(classes), []),
            ("augment", augment, "crop"),
            ("unlabelled", unlabelled, 0),
            ("flip", flip, None),
        ):
            if given != default:
                raise InputError(
                    f"{option}={given} is not an option of {name}, whose images have masks or objects; leave it out"
                )
    else:
        if len(classes):
            if bool((splits.train.labels < 0).any()):
                raise InputError(
                    f"classes={list(classes)} of {name}: its unlabelled images may be of others; leave it out"
                )
            splits = Splits(*(images.restricted(classes) for images in splits))
        splits = Splits(*(replace(images, augment=augment) for images in splits))
        if flip is not None:
            splits = Splits(*(_flipped(images, flip) for images in splits))
        elif isinstance(made, Folder):
            runtime.notice(
                f"{made.title}: half of the augmented training images are mirrored from left to right; give flip=False "
                "(--no-flip) if a mirrored image has another meaning, as for characters or signs; flip=True (--flip) "
                "keeps this without a note"
            )
    train, held_out, test = splits
    every, taken = train, []
    if unlabelled:
        train = train.subset((train.labels >= 0).nonzero().squeeze(1))
    if not val:
        held_out = held_out.subset(torch.arange(0))
    elif not len(held_out):
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[train.draw(round(val * len(train)), seed)] = False
        if isinstance(train, LabelledImages):  # a class with one image keeps it
            rest |= (torch.bincount(train.labels[rest], minlength=len(train.classes)) == 0)[train.labels]
        drawn = (~rest).nonzero().squeeze(1)
        held_out = replace(train.subset(drawn), name=held_out.name)
        train = train.subset(rest.nonzero().squeeze(1))
        taken = held_out.index.tolist()
    if labels:
        train = train.few(labels, seed)
    if unlabelled:
        train = replace(
            selection.with_unlabelled(train, every, unlabelled, taken, seed), unlabelled_share=unlabelled_share
        )
    return Splits(train, held_out, test).to(device)


def _flipped(images: Images, flip: bool) -> Images:
    """Return the same images, of which half of the views are mirrored or none."""
    if isinstance(images, StreamedImages):
        return replace(images, crop=replace(images.crop, flip=flip))
    return replace(images, flip=flip)
