"""Choice of images: by class, or as a stratified subset."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.data.labelled import LabelledImages

S = TypeVar("S", bound="LabelledImages")


def stratified(labels: Tensor, count: int, classes: tuple[str, ...], seed: int) -> Tensor:
    """Draw `count` images so that each class keeps its share, with at least one image of each class.

    Args:
        labels: class of each image, shape [N].
        count: number of images to draw.
        classes: names of the C classes.
        seed: the draw is a function of `seed` and `count`.
    Returns:
        Positions of the drawn images in `labels`, sorted, shape [count].
    Raises:
        InputError: `count` is smaller than the number of classes that have images, or larger than N.
    """
    labels = labels.cpu()
    if (labels < 0).any():
        raise InputError("some of the images have no label; choose from the labelled ones")
    sizes = torch.bincount(labels, minlength=len(classes))
    present = int((sizes > 0).sum())
    if not present <= count <= len(labels):
        raise InputError(
            f"cannot draw {count} of {len(labels)} images; give a number from {present}, one for each class, "
            f"to {len(labels)}"
        )
    exact = sizes * count / len(labels)
    share = exact.floor().long().clamp(min=1).minimum(sizes)
    # Rounding down leaves some images over, and the minimum of one can take too many. One image at a time is therefore
    # given to the class that is furthest below its exact share, or taken from the class that is furthest above it.
    while share.sum() != count:
        step = 1 if share.sum() < count else -1
        gap = step * (exact - share)
        gap[(share >= sizes) if step == 1 else (share <= 1)] = -torch.inf
        share[gap.argmax()] += step
    shuffled = torch.randperm(len(labels), generator=runtime.generator(seed, "stratified", count))
    drawn = [shuffled[labels[shuffled] == c][: int(share[c])] for c in range(len(classes))]
    return torch.cat(drawn).sort().values


def extended(subset: S, everything: S, count: int, seed: int = 0) -> S:
    """Return a subset together with other images, which are drawn at random whatever their classes.

    Args:
        subset: images of `everything`.
        everything: the images from which the others are drawn.
        count: number of all images that are returned; they are in the order of `everything`.
        seed: the draw is a function of `seed` and `count`.
    Raises:
        InputError: `count` is smaller than the subset, or larger than `everything`.
    """
    if not len(subset) <= count <= len(everything):
        raise InputError(
            f"cannot extend {len(subset)} images to {count}; give a number from {len(subset)} to {len(everything)}"
        )
    chosen = torch.isin(everything.index, subset.index).cpu()
    others = (~chosen).nonzero().squeeze(1)
    drawn = torch.randperm(len(others), generator=runtime.generator(seed, "extended", count))
    chosen[others[drawn[: count - len(subset)]]] = True
    return everything.subset(chosen.nonzero().squeeze(1))


def with_unlabelled(labelled: S, everything: S, count: int | str, taken: Sequence[int] = (), seed: int = 0) -> S:
    """Return labelled images together with others without their labels, which are -1.

    Args:
        labelled: images of `everything`.
        everything: the images from which the others are drawn.
        count: number of the others, or "all".
        taken: rows of images that are not drawn.
        seed: the draw is a function of `seed` and `count`.
    Raises:
        InputError: there are fewer others than `count`, or none.
    """
    known = torch.isin(everything.index, labelled.index)
    available = (
        (~known & ~torch.isin(everything.index, torch.tensor(list(taken), dtype=torch.long))).nonzero().squeeze(1)
    )
    number = len(available) if count == "all" else count
    if not isinstance(number, int) or not 0 < number <= len(available):
        raise InputError(
            f"unlabelled={count}, but {everything.name} has {len(available)} images beside the labelled ones; give a "
            "number of them or all, put files into PATH/unlabelled of a folder, or give fewer labels"
        )
    drawn = available[torch.randperm(len(available), generator=runtime.generator(seed, "unlabelled", number))[:number]]
    chosen = torch.cat([known.nonzero().squeeze(1), drawn]).sort().values
    found = everything.subset(chosen)
    labels = torch.where(known[chosen], found.labels, -1)
    return replace(found, labels=labels)  # type: ignore[type-var]  # every kind of images is a dataclass


def only(images: S, classes: Sequence[str | int]) -> S:
    """Return the images of the given classes; the labels and the list of classes do not change.

    Images without a label are left out.

    Args:
        images: the split to choose from.
        classes: one or more classes, as in `positions`.
    Raises:
        InputError: as for `positions`.
    """
    selected = torch.zeros(len(images.classes), dtype=torch.bool)
    selected[positions(images, classes)] = True
    labels = images.labels
    return images.subset(((labels >= 0) & selected.to(labels.device)[labels]).nonzero().squeeze(1))


def restricted(images: S, classes: Sequence[str | int]) -> S:
    """Return the images of the given classes, relabelled so that the list of classes contains these K only.

    Args:
        images: the split to choose from.
        classes: two or more classes, as in `positions`.
    Returns:
        Images with labels 0 to K-1, in the data set's order of classes; images without a label are left out. Mean,
        standard deviation and the row numbers in `index` do not change. When `classes` covers every class, the result
        is `images` itself.
    Raises:
        InputError: as for `positions`, or fewer than two classes are given.
    """
    chosen = positions(images, classes)
    if len(chosen) < 2:
        raise InputError(
            f"classes={list(classes)!r} selects the class {images.classes[chosen[0]]!r} only; give two or more classes"
        )
    if len(chosen) == len(images.classes):
        return images
    new_label = torch.full((len(images.classes),), -1)
    new_label[chosen] = torch.arange(len(chosen))
    names = tuple(images.classes[c] for c in chosen)
    kept = only(images, names)
    title, slash, split = images.name.partition("/")
    return replace(  # type: ignore[type-var]  # every kind of images is a dataclass
        kept,
        labels=new_label.to(kept.labels.device)[kept.labels],
        classes=names,
        superclass_of=images.superclass_of and tuple(images.superclass_of[c] for c in chosen),
        name=title.removesuffix(_listed(images.classes)) + _listed(names) + slash + split,
    )


def positions(images: LabelledImages, classes: Sequence[str | int]) -> list[int]:
    """Return the positions of the given classes in the data set's list, each once and sorted.

    Args:
        images: the split that has the classes.
        classes: names of classes, names of superclasses (each stands for all its classes), or positions. Their order
            and repetitions do not matter.
    Raises:
        InputError: `classes` is empty or a string, a name is unknown, or a position is out of range.
    """
    title = images.name.split("/")[0]
    if isinstance(classes, str) or not len(classes):
        raise InputError(f"classes={classes!r} is not a list of classes; give names or positions of classes of {title}")
    # A superclass without any class in the split cannot be chosen.
    superclasses = [name for s, name in enumerate(images.superclasses) if s in images.superclass_of]
    names = list(dict.fromkeys((*images.classes, *superclasses)))
    chosen: set[int] = set()
    for given in classes:
        if isinstance(given, SupportsIndex):
            position = operator.index(given)
            if not 0 <= position < len(images.classes):
                raise InputError(
                    f"class {position} is out of range; {title} has {len(images.classes)} classes, numbered from 0 to "
                    f"{len(images.classes) - 1}"
                )
            if (text := str(position)) in images.classes and images.classes[position] != text:
                raise InputError(
                    f"class {position} of {title} is {images.classes[position]!r} by its position, and another class "
                    f"is named {text!r}; give the name as a text"
                )
            chosen.add(position)
            continue
        # An exact match comes first: two names may differ in upper and lower case only.
        kind = "class or superclass" if superclasses else "class"
        name = given if given in names else runtime.choose(given, names, kind)
        if name in images.classes:
            chosen.add(images.classes.index(name))
        else:
            superclass = images.superclasses.index(name)
            chosen.update(c for c, s in enumerate(images.superclass_of) if s == superclass)
    return sorted(chosen)


def _listed(classes: tuple[str, ...]) -> str:
    """Return the part of a data set's name that identifies the classes to which it is restricted."""
    names = ",".join(classes)
    return f"({names})" if len(names) <= 40 else f"({len(classes)} classes {runtime.fingerprint(list(classes))[:4]})"
