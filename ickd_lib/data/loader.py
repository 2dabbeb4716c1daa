"""Batches that worker processes decode and crop before they are needed, in the order in which they are requested."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ickd_lib import runtime
from ickd_lib.data.dense import DenseImages
from ickd_lib.data.labelled import Batch, LabelledImages
from ickd_lib.data.sampler import Sampler
from ickd_lib.data.split import positions_of
from ickd_lib.data.streamed import StreamedImages
from ickd_lib.runtime import InputError

Request = list[tuple[Tensor, Tensor | None]]  # positions of images and their views, for each part of a step
GRACE = 30  # seconds that a training has after SIGTERM to write its checkpoint


class WorkerDied(InputError):
    """Raised where a process that decodes images ended; another attempt may succeed."""


def usual_workers() -> int:
    """Return the usual number of worker processes: one less than the cores of this training process, at least 1."""
    return max(1, runtime.own_cores() - 1)


class Loaded(NamedTuple):
    """What a training step needs of the data.

    step: number of the step in the epoch.
    batch: the augmented images.
    strong: a second, strongly augmented view of the images; None if it was not requested.
    partner: random images of the same classes; None if they were not requested.
    """

    step: int
    batch: Any
    strong: Any = None
    partner: Any = None

    def part(self, rows: slice) -> Loaded:
        """Return the data of the images at these positions of the batch."""
        return Loaded(self.step, *(one and one.part(rows) for one in self[1:]))


class Loader:
    """Makes the batches of a streamed split in worker processes, before they are needed.

    The batches do not depend on the number of processes.

    Args:
        images: the split; its `workers` is the number of processes, None for `usual_workers`. With 0 this process makes
            the batches.
        workers: largest number of processes; None for that of the split.
    Attributes:
        waited: seconds that the caller of this object has waited for batches so far.
        replaced: data-set rows of the images that could not be decoded and were replaced.
    """

    def __init__(self, images: StreamedImages | DenseImages, workers: int | None = None) -> None:
        self.images: Any = images
        self.waited = 0.0
        self.replaced: set[int] = set()
        count = usual_workers() if images.workers is None else images.workers
        self.workers = count if workers is None else min(workers, count)
        self._requests = _Requests()
        self._loader: DataLoader[Any] | None = None
        self._results: Iterator[Any] = iter(())

    @cached_property
    def places(self) -> Tensor:
        """The position in the split of each data-set row up to the largest one, int64; -1 for rows of other images."""
        return positions_of(self.images.decoder.index)

    def made(self, requests: Iterable[Request]) -> Iterator[list[Any]]:
        """Yield the decoded parts of each request, on the split's device.

        Raises:
            InputError: a file cannot be decoded, or a worker process ended.
        """
        began = time.perf_counter()
        if not self.workers:
            worker = _Worker(self.images.decoder)
            self._results = (worker[request] for request in map(_plain, requests))
        else:
            before = self._loader
            self._loader = self._processes() if before is None else before
            self._requests.given = map(_plain, requests)
            self._results = iter(self._loader)
            if before is None:  # registered after torch's own functions, so that it is called before they wait
                atexit.register(_close_at_exit, weakref.ref(self))
        while True:
            try:
                parts = self._next()
            except InputError:  # ends the processes now, and not when Python frees the error's traceback
                self.close()
                raise
            self.waited += time.perf_counter() - began
            if parts is None:
                return
            yield [self._moved(*part) for part in parts]
            began = time.perf_counter()

    def _next(self) -> list[Any] | None:
        """Return the next result; None at the end."""
        with watched():
            try:
                result = next(self._results, None)
            except (ConnectionError, EOFError, FileNotFoundError, UnpicklingError) as error:
                raise _ended(error) from None  # the results of a process are lost with it
        if isinstance(result, str):
            raise InputError(result)
        return result

    def _processes(self) -> DataLoader[Any]:
        return DataLoader(
            _Worker(self.images.decoder),
            batch_size=None,
            sampler=self._requests,
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=self.images.index.device.type == "cuda",
            worker_init_fn=_apart,
            persistent_workers=True,
            generator=torch.Generator(),  # so that torch's global one is left as it is
        )

    def _moved(self, made: Any, replaced: list[int]) -> Any:
        """Return a part of a batch on the device of the split, and record the images that were replaced."""
        for position in replaced:
            row = int(self.images.decoder.index[position])
            if not self.replaced:
                runtime.notice(
                    f"{self.images.path(position)} cannot be decoded; it and others like it are replaced by the next "
                    "image of the same class"
                )
            self.replaced.add(row)
        return made.to(self.images.index.device, non_blocking=True) if isinstance(made, Tensor) else made

    def steps(
        self,
        planned: Iterable[tuple[int, Tensor, Tensor]],
        *,
        data_seed: int,
        epoch: int,
        strong: bool = False,
        partner: bool = False,
    ) -> Iterator[Loaded]:
        """Yield the batches of training steps, which equal those of a `Sampler`.

        Args:
            planned: number, positions [B] and view numbers [B] of each step, on the CPU.
            data_seed, epoch: select the random numbers of strong augmentation, of `strong` and of `partner`.
            strong, partner: whether to make these too; see `Loaded`.
        """
        sampler, device = Sampler(self.images), self.images.index.device
        # Under Mixup and CutMix, the labels for which partners are drawn are known only when the images are mixed.
        ahead = partner and "mix" not in self.images.augment
        waiting: deque[tuple[dict[str, int], Request]] = deque()

        def requests() -> Iterator[Request]:
            for step, rows, view in planned:
                keys = {"data_seed": data_seed, "epoch": epoch, "step": step}
                request: Request = [(rows, view)]
                if strong:
                    request.append((rows, sampler.strong_numbers(rows, **keys)))
                if ahead:
                    request.append(sampler.partner_numbers(self.images.decoder.labels[rows], **keys))
                waiting.append((keys, request))
                yield request

        for parts in self.made(requests()):
            keys, request = waiting.popleft()
            rows, view = (one.to(device, non_blocking=True) for one in request[0] if one is not None)
            batch = self.images.batch(rows, view, *keys.values(), made=parts[0])
            if isinstance(batch, Batch) and request[0][1] is not None and self.images.augment == "crop":
                batch = replace(batch, planned=(self.images.decoder.index[request[0][0]], request[0][1]))
            second = sampler.strong_view(rows, **keys, made=parts[1]) if strong else None
            other = sampler.partners(batch, **keys, made=parts[-1] if ahead else None) if partner else None
            yield Loaded(keys["step"], batch, second, other)

    def close(self) -> None:
        """End the worker processes; the next request starts new ones."""
        # Not left to the garbage collector: the traceback of an error may refer to the results, and torch raises its
        # own error about a process that ended as long as it has the process in its list.
        end = getattr(self._results, "_shutdown_workers", None)
        self._results, self._loader = iter(()), None
        if end is not None:
            with contextlib.suppress(RuntimeError):
                end()


def _close_at_exit(loader: weakref.ref[Loader]) -> None:
    """End the processes of a loader that was not used up; otherwise the program would wait for them at its end."""
    if found := loader():
        found.close()


def batches(images: DenseImages, parts: Sequence[Tensor]) -> Iterator[Any]:
    """Yield batches without augmentation of the images at the given positions.

    Images that are decoded from files are decoded in worker processes, before they are needed.
    """
    parts = [rows for rows in parts if len(rows)]
    if not images.streamed or len(parts) < 2:
        yield from map(images.batch, parts)
        return
    made = Loader(images, len(parts)).made([(rows, None)] for rows in parts)
    for rows, part in zip(parts, made, strict=True):
        yield images.batch(rows, made=part[0])


def pixels(images: LabelledImages, parts: Sequence[slice]) -> Iterator[Tensor]:
    """Yield images without augmentation as floats in [0, 1], [n, 3, H, W], for each slice of positions."""
    if not isinstance(images, StreamedImages) or len(parts) < 2:
        yield from map(images.pixels, parts)
        return
    every, used = torch.arange(len(images)), Loader(images, len(parts))
    for shared in _SHARED:
        if shared.images.source is images.source:
            every, used = shared.places[images.index.cpu()], shared
    for (part,) in used.made([(every[rows], None)] for rows in parts):
        yield part.float().div_(255)


_SHARED: list[Loader] = []  # those of the present contexts of `same_workers`


@contextlib.contextmanager
def same_workers(images: Any) -> Iterator[None]:
    """In the context, `pixels` of subsets of a split starts the worker processes once, and not for each subset.

    Args:
        images: the split; for other images than `StreamedImages` nothing changes.
    """
    if not isinstance(images, StreamedImages):
        yield
        return
    _SHARED.append(Loader(images))
    try:
        yield
    finally:
        _SHARED.pop().close()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Turn torch's error about a worker process that ended into an InputError; torch may raise it in any statement."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _ended(error) from None


def _ended(error: Exception) -> WorkerDied:
    """Return the error for a worker process that ended, given how it was noticed."""
    reason = (str(error).split(". ")[0].strip() or type(error).__name__).splitlines()[0]
    return WorkerDied(
        f"a process that decodes images ended unexpectedly ({reason}); if memory is short, give fewer workers; the "
        "same call or command continues an interrupted training"
    )


class _Worker(Dataset[Any]):
    """Makes the images of a request in a worker process.

    An error about the input is returned as text, because torch would add its traceback to the message of an exception.
    """

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def __getitem__(self, request: list[tuple[list[int], list[int] | None]]) -> list[Any] | str:
        try:
            made = [self.decoder(rows, view) for rows, view in request]
        except InputError as error:
            return str(error)
        try:
            if get_worker_info() is not None:
                _share(made)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            return (
                f"a process that decodes images cannot pass them on ({reason}); provide more shared memory (/dev/shm) "
                "and open files, or give fewer workers"
            )
        return made


def _share(made: Any) -> None:
    """Move tensors into shared memory now, so that an error is raised here.

    Otherwise a thread of the worker process does this later. If it fails there, the tensors are lost, and the training
    process waits for them for ever.
    """
    if isinstance(made, Tensor):
        made.share_memory_()
    elif isinstance(made, (tuple, list)):
        for part in made:
            _share(part)


class _Requests:
    """The requests of the present epoch, over which the DataLoader iterates. The DataLoader is kept for all epochs."""

    given: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.given


def _plain(request: Request) -> list[tuple[list[int], list[int] | None]]:
    """Return a request as lists of numbers, because each tensor would be sent through a file in shared memory."""
    return [(rows.tolist(), None if view is None else view.tolist()) for rows, view in request]


def _unchanged(made: Any) -> Any:
    return made


def _apart(worker: int) -> None:
    """Make worker processes ignore the signals meant for the training, which needs batches until its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGUSR1", "SIGUSR2"):  # Slurm sends them to all processes of a job
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "setpgid"):  # torchrun ends the process group of the training with SIGTERM
        os.setpgid(0, 0)
    if hasattr(signal, "alarm"):  # Slurm ends all processes of a job with SIGTERM; the alarm ends this one later
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    sys.excepthook = _unless_abandoned


def _unless_abandoned(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print an error in a thread of a worker process, unless its cause is that the training process has ended."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
