"""Where a bank comes from: which data, and which teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ickd_lib import models
from ickd_lib.runtime import InputError

if TYPE_CHECKING:
    from ickd_lib.data import Images
    from ickd_lib.memory.bank import MemoryBank


def source_of(images: Images | None, teacher: models.Network | None) -> dict[str, str]:
    """What `MemoryBank.source` says of a bank built from these."""
    source = {} if images is None else {"data": images.fingerprint}
    return source if teacher is None else source | {"teacher": teacher.identity}


def require_fit(bank: MemoryBank, images: Images, teacher: models.Network | None = None) -> None:
    """InputError where a bank has other classes than these images, lacks some of them, or is another teacher's."""
    rows = bank.rows(images.index)
    if bank.classes != images.classes or bool((rows < 0).any()) or bool((bank.labels[rows] != images.labels).any()):
        raise InputError(f"the bank is of another data set than {images.name}; build it from this one")
    if teacher is None:
        return
    mark = bank.source.get("teacher", teacher.identity)
    if bank.features.shape[1] != teacher.features_dim or mark != teacher.identity:
        raise InputError(f"the bank is of another teacher than this {teacher.name}; build it with this one")
