"""The source of a bank: the data and the teacher that it was computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ickd_lib import models
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Task

if TYPE_CHECKING:
    from ickd_lib.data import Images
    from ickd_lib.memory.bank import MemoryBank


def source_of(images: Images | None, teacher: models.Network | None) -> dict[str, str]:
    """Return the fingerprints that identify the source of a bank: under "data" and "teacher", where these are given."""
    source = {} if images is None else {"data": images.fingerprint}
    return source if teacher is None else source | {"teacher": teacher.identity}


def require_fit(
    bank: MemoryBank, images: Images, teacher: models.Network | None = None, task: Task | None = None
) -> None:
    """Check that a bank contains the samples of some images and was computed by a teacher.

    Args:
        bank: the memory bank.
        images: the images, all of whose samples the bank must contain.
        teacher: the network; None accepts a bank of any network.
        task: defines the samples of an image; by default classification.
    Raises:
        InputError: the bank has other classes, lacks samples, has other labels, or was computed by another teacher.
    """
    keys, labels = (task or Classification()).keys(images)
    rows = bank.rows(keys)
    if bank.classes != images.classes or bool((rows < 0).any()) or bool((bank.labels[rows] != labels).any()):
        raise InputError(f"the bank is of another data set than {images.name}; build it from this one")
    if teacher is None:
        return
    mark = bank.source.get("teacher", teacher.identity)
    if bank.features.shape[1] != teacher.features_dim or mark != teacher.identity:
        raise InputError(f"the bank was computed by another teacher than this {teacher.name}; build it with this one")
