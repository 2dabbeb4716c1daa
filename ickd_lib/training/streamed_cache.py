"""A teacher cache for streamed images, which may be larger than memory."""

from __future__ import annotations

import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from ickd_lib import runtime
from ickd_lib.data import Batch, StreamedImages
from ickd_lib.data.split import positions_of
from ickd_lib.models import Network
from ickd_lib.runtime.arguments import Natural, NotNegative, checked
from ickd_lib.tasks import Samples
from ickd_lib.training.stored_outputs import StoredOutputs, teacher_outputs
from ickd_lib.training.teacher_source import TeacherSource, samples_of


class StreamedTeacherCache(TeacherSource):
    """The teacher's outputs for numbered views of streamed images, in half precision, in a memory-mapped file.

    The teacher is evaluated on the views of a batch whose outputs are not stored yet, so that no image is decoded for
    the cache alone. Each view has a fixed place in the file. Several processes may use one file at the same time.

    Args:
        teacher: a frozen network in evaluation mode, on the images' device.
        images: N images whose augmentation is "crop" and whose views are numbered.
        features: whether to store the features too.
        precision: precision of the teacher, "fp32" or "bf16".
        folder: folder of the file; None keeps the outputs in memory.
        gigabytes: largest size of the cache. Views beyond it are computed each time; a note is printed.
        top: number of the largest logits that are stored; 0 stores all (`StoredOutputs`).
    """

    teacher: Network

    @checked
    def __init__(
        self,
        teacher: Network,
        images: StreamedImages,
        *,
        features: bool = False,
        precision: str = "fp32",
        folder: str | Path | None = None,
        gigabytes: NotNegative = 4.0,
        top: Natural = 0,
    ) -> None:
        self.teacher, self.precision, self.views = teacher, precision, images.views
        self.records = StoredOutputs(teacher.num_classes, teacher.features_dim if features else 0, top)
        every = len(images) * images.views
        self.capacity = min(every, int(gigabytes * 1e9 / (2 * (self.records.width + 1))))
        if self.capacity < every:
            runtime.notice(
                f"the teacher cache has room for {self.capacity:,} of {every:,} views, and the others are computed "
                "each time; allow more gigabytes, or store fewer logits (teacher_cache_top)"
            )
        self._position = positions_of(images.decoder.index)
        path = None
        if folder is not None:
            mark = runtime.fingerprint(
                teacher.identity, images.fingerprint, images.views, self.records.width, precision, top
            )
            path = Path(folder) / f"{runtime.shortened(teacher.name.replace('/', '-'))}-{mark}.f16"
        self._slots = _Slots(path, self.capacity, self.records.width)

    @property
    def known(self) -> int:
        """The number of views whose outputs are stored."""
        return self._slots.count()

    @torch.no_grad()
    def __call__(self, batch: Batch, like: Samples | None = None) -> Samples:
        index, view = batch.planned or (batch.index.cpu(), batch.view.cpu())
        device = batch.labels.device
        keys = (self._position[index] * self.views + view).numpy()
        stored, found = self._slots.read(keys)
        records = torch.from_numpy(stored).to(device, non_blocking=True)
        missing = torch.from_numpy((~found).nonzero()[0])
        if len(missing):
            at = missing.to(device)
            output = teacher_outputs(self.teacher, batch.images[at], self.precision)
            fresh = self.records.pack(output.logits, output.features)
            records[at] = fresh
            self._slots.write(keys[~found], fresh.cpu().numpy())
        return samples_of(batch, *self.records.unpack(records))

    def close(self) -> None:
        """Close the file."""
        self._slots.close()


def _checksums(records: np.ndarray) -> np.ndarray:
    """Return a checksum from 1 to 65,535 of each record [n, width], uint16 [n]."""
    found = [zlib.crc32(record.tobytes()) % 65535 + 1 for record in records]
    return np.array(found, np.uint16)


class _Slots:
    """Records at fixed places in a file, or in memory if there is no path.

    The last 16 bits of a record are its checksum, which is never 0, so that a place that was never written, was written
    in part, or is damaged counts as empty. The file is written by `pwrite`, which reports a full disk, whereas writing
    to mapped memory would end the process.
    """

    def __init__(self, path: Path | None, slots: int, width: int) -> None:
        self.width = width + 1
        self.path, self._file = path, -1
        shape = (slots, self.width)
        if path is None:
            self._array: np.ndarray = np.zeros(shape, np.float16)  # the system provides memory as it is written
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            size = 2 * slots * self.width
            if os.fstat(self._file).st_size < size:  # its empty parts take no space on the disk
                self._put(b"\0", size - 1)  # `truncate` could shorten a file that another process made longer just now
            self._array = np.memmap(path, np.float16, "r", shape=shape) if slots else np.zeros(shape, np.float16)
        except OSError as error:
            self._array = np.zeros((0, self.width), np.float16)
            self._give_up(error)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the records at the places [n, width], and which of them are stored, bool [n]."""
        inside = keys < len(self._array)
        records = np.zeros((len(keys), self.width), np.float16)
        records[inside] = self._array[keys[inside]]
        return records[:, :-1].copy(), _checksums(records[:, :-1]) == records[:, -1].view(np.uint16)

    def write(self, keys: np.ndarray, records: np.ndarray) -> None:
        """Store records [n, width] at the places [n]; those beyond the capacity are left out."""
        inside = keys < len(self._array)
        keys, records = keys[inside], records[inside]
        records = np.concatenate([records, _checksums(records).view(np.float16)[:, None]], 1)
        if self.path is None:
            self._array[keys] = records
            return
        try:
            if self._file >= 0:
                for key, record in zip(keys.tolist(), records, strict=True):
                    self._put(record.tobytes(), 2 * self.width * key)
        except OSError as error:
            self._give_up(error)

    def _put(self, content: bytes, at: int) -> None:
        """Write bytes at a position of the file."""
        if hasattr(os, "pwrite"):
            os.pwrite(self._file, content, at)
        else:  # on Windows
            os.lseek(self._file, at, os.SEEK_SET)
            os.write(self._file, content)

    def count(self) -> int:
        return int(np.count_nonzero(self._array[:, -1].view(np.uint16)))

    def _give_up(self, error: OSError) -> None:
        warnings.warn(f"the teacher's outputs are no longer written to {self.path}: {error}", stacklevel=4)
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
