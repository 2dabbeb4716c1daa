"""Quality of a memory bank: what is retrieved from it, and how old and how outdated its rows are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ickd_lib.data import Images
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.memory import MemoryBank


def retrieval(bank: MemoryBank, images: Images, *, k: int = 8, features: Tensor | None = None) -> dict[str, float]:
    """Compute how often the k nearest rows of a memory bank have the query's class and superclass.

    Args:
        bank: the memory bank that is searched; rows of all classes can be found.
        images: the N images of the queries, with their labels and superclasses.
        k: number of neighbours.
        features: features of the queries, shape [N, D]. With None, each row of the bank is a query for the other rows,
            and `images` must be those that the bank was built from.
    Returns:
        precision@k: share of the k neighbours that have the query's class.
        precision@1: the same for the nearest row alone.
        chance: mean share of the query's class in the bank, the query's own row included.
        superclass_precision@k: share of the k neighbours that have the query's superclass, if there are superclasses.
    Raises:
        InputError: k is below 1, a query has fewer than k other rows, or there are not as many features as images.
    """
    if k < 1:
        raise InputError(f"k={k} is not a number of neighbours; give 1 or more")
    if features is None:
        found, labels = bank.nearest(bank.features, bank.index, k=k), bank.labels
    else:
        found, labels = bank.nearest(features, None, k=k), images.labels
        if len(features) != len(images):
            raise InputError(
                f"there are {len(features)} features, but {len(images)} images; give one row of features for each image"
            )
    if not found.mask.all():
        raise InputError(f"k={k}, but some queries have only {int(found.mask.sum(1).min())} other rows; lower k")
    neighbours = bank.labels[bank.rows(found.index)]
    same = neighbours == labels[:, None]
    share = torch.bincount(bank.labels, minlength=len(bank.classes)).double() / len(bank)
    numbers = {
        f"precision@{k}": same.double().mean().item(),
        "precision@1": same[:, 0].double().mean().item(),
        "chance": share[labels].mean().item(),
    }
    if images.superclasses:  # images with masks or objects have none
        upper = torch.tensor(images.superclass_of, device=labels.device)
        numbers[f"superclass_precision@{k}"] = (upper[neighbours] == upper[labels][:, None]).double().mean().item()
    return numbers


def freshness(bank: MemoryBank, *, step: int) -> dict[str, float]:
    """Measure how full a memory bank is during training, and how old its rows are.

    Args:
        bank: a memory bank that training updates.
        step: number of the last step, counted over all epochs as in `MemoryBank.update`.
    Returns:
        bank_fill: share of rows that have been written.
        bank_age, bank_age_max: mean and largest number of steps since each of these rows was last written; 0 if no
            row has been written.
    """
    age = (step - bank.written[bank.filled]).double()
    mean, most = (age.mean().item(), age.max().item()) if len(age) else (0.0, 0.0)
    return {"bank_fill": bank.filled.double().mean().item(), "bank_age": mean, "bank_age_max": most}


def drift(bank: MemoryBank, rebuilt: MemoryBank, *, k: int = 8) -> dict[str, float]:
    """Measure how far a memory bank that training updates is from one built with the current network.

    The rows of the first were written by earlier states of the network, in training mode and from augmented images. The
    rows of the second come from images without augmentation. Only rows that both banks contain are compared.

    Args:
        bank: the memory bank that training updates.
        rebuilt: a memory bank built now with the same network, from all its images or some of them.
        k: number of nearest rows that are compared; all other rows if there are fewer.
    Returns:
        bank_drift: 1 minus the mean cosine similarity of a row's two features.
        bank_agreement: share of rows whose largest logit belongs to the same class in both banks.
        bank_overlap: share of a row's k nearest rows, among the compared ones, that are the same in both banks.
    Raises:
        InputError: the banks have fewer than two written rows in common.
    """
    rows = bank.rows(rebuilt.index)
    common = (rows >= 0) & bank.filled[rows]
    if common.sum() < 2:
        raise InputError(
            f"the banks have {int(common.sum())} written rows in common, but drift compares 2 or more; give two banks "
            "of the same data, the first with rows that training has written"
        )
    old, new = bank.subset(rows[common]), rebuilt.subset(common.nonzero().squeeze(1))
    k = min(k, len(old) - 1)
    old_nearest, new_nearest = (one.nearest(one.features, one.index, k=k).index for one in (old, new))
    return {
        "bank_drift": 1 - (old.features * new.features).sum(1).mean().item(),
        "bank_agreement": (old.logits.argmax(1) == new.logits.argmax(1)).double().mean().item(),
        "bank_overlap": (old_nearest[:, :, None] == new_nearest[:, None]).any(2).double().mean().item(),
    }
