"""What a bank was computed from: which data, and which teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ickd_lib import models
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Task

if TYPE_CHECKING:
    from ickd_lib.data import Images
    from ickd_lib.memory.bank import MemoryBank


def source_of(images: Images | None, teacher: models.Network | None) -> dict[str, str]:
    """The `MemoryBank.source` of a bank that is built from these: fingerprints of the data and the teacher."""
    source = {} if images is None else {"data": images.fingerprint}
    return source if teacher is None else source | {"teacher": teacher.identity}


def require_fit(
    bank: MemoryBank, images: Images, teacher: models.Network | None = None, task: Task | None = None
) -> None:
    """Check that a bank covers the samples of some images and was computed by a teacher.

    Raises:
        InputError: the bank has other classes, lacks samples, or was computed by another teacher.
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
