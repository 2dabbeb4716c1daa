"""A cache of the teacher's outputs for each view of each image, so that each output is computed once."""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Batch, Images
from ickd_lib.data.split import positions_of
from ickd_lib.models import Network
from ickd_lib.models.inference import images_of_a_pass
from ickd_lib.runtime.arguments import Natural, NotNegative, checked
from ickd_lib.runtime.distributed import any_process, gather, share, shares
from ickd_lib.runtime.locks import lock
from ickd_lib.tasks import Samples
from ickd_lib.training.stored_outputs import StoredOutputs, teacher_outputs
from ickd_lib.training.teacher_source import TeacherSource, samples_of

BLOCK = 2**20  # bytes that are read at once
AHEAD = {"cpu": 64, "cuda": 1024}  # number of steps for which the cache is filled at once


class TeacherCache(TeacherSource):
    """The teacher's logits, and its features where they are needed, for views of images, in half precision.

    Crop and flip give few views of an image (162 on CIFAR), so that a long training uses each view several times, and
    later trainings use the same views again. `fill` computes missing outputs in large batches; `take` returns those of
    a batch. The outputs stay on the images' device. If a folder is given, they are also appended to files in it, which
    later runs with the same teacher and data read.

    Args:
        teacher: a frozen network in evaluation mode, on the images' device.
        images: N images whose augmentation is "crop".
        features: whether to keep the features too.
        precision: precision of the teacher, "fp32" or "bf16".
        folder: folder of the files; None keeps the outputs in memory only. While another process writes the files, this
            one only reads them.
        gigabytes: largest size of the cache (the logits of all views of CIFAR-100 take 1.6 GB); outputs beyond it are
            computed each time.
        ahead: largest number of views in one call of `fill`; None for the number of images.
        top: number of the largest logits that are kept; 0 keeps all (`StoredOutputs`).
    """

    teacher: Network

    @checked
    def __init__(
        self,
        teacher: Network,
        images: Images,
        *,
        features: bool = False,
        precision: str = "fp32",
        folder: str | Path | None = None,
        gigabytes: NotNegative = 4.0,
        ahead: Natural | None = None,
        top: Natural = 0,
    ) -> None:
        self.teacher, self.images, self.precision = teacher, images, precision
        self.classes = teacher.num_classes
        self.records = StoredOutputs(self.classes, teacher.features_dim if features else 0, top)
        self.width = self.records.width
        self.capacity = min(len(images) * images.views, int(gigabytes * 1e9 / (2 * self.width)))
        device = images.labels.device
        self.known = 0
        self._place = torch.full((len(images), images.views), -1, dtype=torch.int32, device=device)
        # The system provides memory only as entries are written. Entries beyond the capacity are valid until the next
        # `fill` only.
        room = min(self.capacity + (ahead or len(images)), self._place.numel())
        self._kept = torch.empty(room, self.width, dtype=torch.half, device=device)
        self._position = positions_of(images.index)
        self._log: _Log | None = None
        if folder is not None:
            mark = runtime.fingerprint(
                teacher.identity, images.fingerprint, images.views, self.width, precision, *([top] if top else [])
            )
            self._log = _Log(Path(folder) / f"{runtime.shortened(teacher.name.replace('/', '-'))}-{mark}", self.width)
            self._read()

    def _read(self) -> None:
        """Read the outputs in the folder."""
        assert self._log is not None
        keys, records = self._log.read(self.capacity)
        keep = (keys >= 0) & (keys < self._place.numel())
        keys, records = keys[keep], records[keep]
        self.known = len(keys)
        self._kept[: self.known] = records.to(self._kept.device)
        self._place.view(-1)[keys.to(self._place.device)] = torch.arange(
            self.known, dtype=torch.int32, device=self._place.device
        )

    @torch.no_grad()
    def fill(self, rows: Tensor, view: Tensor) -> int:
        """Compute the outputs that are missing for the views `view` [M] of the images at positions `rows` [M].

        Returns:
            The number of outputs that the teacher computed.
        """
        if self.known == self._place.numel():
            return 0
        place = self._place.view(-1)
        place.masked_fill_(place >= self.capacity, -1)
        keys = (rows * self.images.views + view).unique()
        keys = keys[place[keys] < 0]
        if not len(keys):
            return 0
        parts = [torch.empty(0, self.width, dtype=torch.half, device=keys.device)]
        counts = shares(len(keys))  # each of several processes computes a part
        for some in keys[share(len(keys))].split(images_of_a_pass(keys.device)):
            pixels = self.images.augmented(some // self.images.views, some % self.images.views)
            output = teacher_outputs(self.teacher, pixels, self.precision)
            parts.append(self.records.pack(output.logits, output.features))
        fresh = gather(torch.cat(parts), counts)
        stay = min(len(keys), self.capacity - self.known)
        self._kept[self.known : self.known + stay] = fresh[:stay]
        self._kept[self.capacity : self.capacity + len(keys) - stay] = fresh[stay:]
        end = torch.arange(stay, device=keys.device) + self.known
        beyond = torch.arange(len(keys) - stay, device=keys.device) + self.capacity
        place[keys] = torch.cat([end, beyond]).int()
        self.known += stay
        if self._log:
            self._log.append(keys[:stay], fresh[:stay])
        return len(keys)

    def take(self, index: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's outputs for views that the last call of `fill` covered, in float32.

        Args:
            index: rows of the images in the data set, shape [B].
            view: view number of each image, shape [B].
        Returns:
            Logits [B, C], and features [B, D], or [B, 0] if they are not kept.
        """
        return self.records.unpack(self._kept[self._place[self._position[index], view].long()])

    def __call__(self, batch: Batch, like: Samples | None = None) -> Samples:
        return samples_of(batch, *self.take(batch.index, batch.view))

    def close(self) -> None:
        """Close the files, so that other processes may write them."""
        if self._log:
            self._log.close()


class _Log:
    """The files of a cache: for keys, for outputs, and for a checksum of each part, which are appended to together.

    After a crash, `read` removes what is incomplete, and what follows a part whose checksum is wrong.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.sizes = folder, (2 * width, 8, 8)  # bytes of an entry of each file
        self.width = width
        self._files: list[Any] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = [open(path, "ab") for path in self._paths]
            if _locked(files[1]):
                self._files = files
            else:
                for file in files:
                    file.close()
        except OSError as error:
            self._give_up(error)

    def read(self, most: int) -> tuple[Tensor, Tensor]:
        """Read up to `most` keys [n] and records [n, width], and remove what is incomplete or damaged at the end."""
        count, records, keys = 0, np.empty(0, np.float16), np.empty(0, np.int64)
        try:
            parts, whole = runtime.from_main(lambda: self._whole(most))
            files = zip(self._paths, self.sizes, (True, True, False), strict=True)
            own = min(path.stat().st_size // size if path.is_file() else 0 for path, size, needed in files if needed)
            if any_process(own < whole)[0]:
                raise runtime.InputError(f"{self.folder} is not the same folder for all processes; name a shared one")
            for file, size, entries in zip(self._files, self.sizes, (whole, whole, parts), strict=False):
                file.truncate(entries * size)
            if count := min(whole, most):
                records = np.fromfile(self._paths[0], np.float16, count * self.width)
                keys = np.fromfile(self._paths[1], np.int64, count)
        except (OSError, runtime.InputError) as error:  # of the first of several processes
            self._give_up(error)
            count, records, keys = 0, np.empty(0, np.float16), np.empty(0, np.int64)
        return torch.from_numpy(keys), torch.from_numpy(records).view(count, self.width)

    def _whole(self, most: int) -> tuple[int, int]:
        """Return the number of parts that are complete and right, and of their records.

        Of the records from `most` on, which are not used, the checksums are not compared.
        """
        sizes = [
            path.stat().st_size // n if path.is_file() else 0 for path, n in zip(self._paths, self.sizes, strict=True)
        ]
        there = min(sizes[:2])
        sums = np.fromfile(self._paths[2], np.uint32, 2 * sizes[2]).reshape(-1, 2).tolist() if sizes[2] else []
        if there and not sums:  # a cache of an earlier version has no checksums
            sums = [[there, self._checksum(0, there)]]
            self._write(2, np.array(sums, np.uint32).tobytes())
        whole = 0
        for number, (count, checksum) in enumerate(sums):
            if whole + count > there:
                return number, whole
            if whole < most and self._checksum(whole, count) != checksum:
                runtime.notice(f"{self.folder} is damaged from record {whole:,} on, and the rest is computed again")
                return number, whole
            whole += count
        return len(sums), whole

    def _checksum(self, start: int, count: int) -> int:
        """Return the CRC-32 of some records and their keys."""
        found = 0
        for path, size in zip(self._paths[:2], self.sizes, strict=False):
            with open(path, "rb") as file:
                file.seek(start * size)
                left = count * size
                while left and (block := file.read(min(left, BLOCK))):
                    found, left = zlib.crc32(block, found), left - len(block)
        return found

    @property
    def _paths(self) -> list[Path]:
        return [self.folder / name for name in ("records.f16", "keys.i64", "checksums.u32")]

    def append(self, keys: Tensor, records: Tensor) -> None:
        """Append keys [n] and records [n, width]; after an error, warn and write no more."""
        parts = [tensor.cpu().contiguous().numpy().tobytes() for tensor in (records, keys)]
        checksum = np.array([len(keys), zlib.crc32(parts[1], zlib.crc32(parts[0]))], np.uint32)
        try:
            for number, content in enumerate([*parts, checksum.tobytes()] if len(keys) else []):
                self._write(number, content)
        except OSError as error:
            self._give_up(error)

    def _write(self, number: int, content: bytes) -> None:
        """Append to one of the files, if this process writes them."""
        if self._files:
            self._files[number].write(content)
            self._files[number].flush()

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"the teacher's outputs are no longer written to {self.folder}: {error}", stacklevel=4)
        self.close()

    def close(self) -> None:
        files, self._files = self._files, []
        for file in files:
            with contextlib.suppress(OSError):  # after an error, it writes what is left once more
                file.close()


def _locked(file: Any) -> bool:
    """Lock a file until this process closes it, and return True; return False if another process has locked it."""
    try:
        return lock(file)
    except NotImplementedError:  # a system without locks: do not write to a file that another process may be writing
        return os.path.getsize(file.name) == 0
    except OSError:
        return False
