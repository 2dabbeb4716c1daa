"""Sequences of images and masks: tensors in memory, or files that are decoded when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from ickd_lib import runtime


@dataclass(frozen=True)
class Decoded:
    """A sequence of tensors, each of which is made from its item whenever it is needed.

    Args:
        read: makes a tensor from an item.
        items: one for each tensor, such as the path of a file.
    """

    read: Callable[[Any], Tensor]
    items: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Tensor:
        return self.read(self.items[i])

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, self.items)

    def resident(self, what: str) -> tuple[Tensor, ...]:
        """Return all tensors, made in threads. `what` names them in the progress bar."""
        return tuple(threaded(self.read, self.items, f"reading {what}"))


def threaded(function: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterator[Any]:
    """Yield the function of each item, computed in threads, with a progress bar. The first error ends all threads."""
    pool = ThreadPoolExecutor()
    try:
        yield from tqdm(pool.map(function, items), what, len(items), leave=False, unit="image", file=runtime.stream())
    finally:
        pool.shutdown(cancel_futures=True)


def select(tensors: tuple[Tensor, ...] | Decoded, rows: Sequence[int]) -> tuple[Tensor, ...] | Decoded:
    """Return the tensors at the positions `rows`."""
    if isinstance(tensors, Decoded):
        return Decoded(tensors.read, tuple(tensors.items[i] for i in rows))
    return tuple(tensors[i] for i in rows)


def fetch(tensors: tuple[Tensor, ...] | Decoded, rows: Sequence[int]) -> list[Tensor]:
    """Return the tensors at the positions `rows`, decoded in threads where they are not in memory.

    A worker process of a `Loader` uses one thread.
    """
    if isinstance(tensors, Decoded) and get_worker_info() is None:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(tensors.__getitem__, rows))
    return [tensors[i] for i in rows]


def marks(tensors: tuple[Tensor, ...] | Decoded | None) -> tuple[Any, ...]:
    """Return the values that identify tensors in a fingerprint: of files, their names and sizes in bytes."""
    if tensors is None or isinstance(tensors, tuple):
        return tensors or ()
    return _settings(tensors.read), *(
        [item.name, item.stat().st_size] if isinstance(item, Path) else item if isinstance(item, Tensor) else str(item)
        for item in tensors.items
    )


def _settings(read: Any) -> str:
    """Return the arguments of a function that reads a tensor, as text."""
    if isinstance(read, partial):
        return str(read.args)
    return f"{_settings(read.read)} {read}" if hasattr(read, "read") else ""


def extent(sizes: Tensor) -> str:
    """Return heights and widths [N, 2] as text: "images of 96×96 pixels", or with the smallest and largest sides."""
    if not len(sizes):
        return "images"
    (low, left), (high, right) = sizes.amin(0).tolist(), sizes.amax(0).tolist()
    height = str(low) if low == high else f"{low} to {high}"
    width = str(left) if left == right else f"{left} to {right}"
    return f"images of {height}×{width} pixels"


def channel_statistics(parts: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images, scaled to [0, 1].

    They are computed in float64 from the counts of the 256 levels, which needs no copy of the images as floats.

    Args:
        parts: tensors of shape [N, 3, H, W] or [3, H, W].
    """
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for pixels in parts:
        counts += torch.stack([torch.bincount(pixels.select(-3, c).flatten(), minlength=256) for c in range(3)])
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts @ level) / counts.sum(1)
    std = ((counts @ level**2) / counts.sum(1) - mean**2).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def fingerprint_of_file(path: Path) -> str:
    """Return a fingerprint of the bytes of a file."""
    content = bytearray(path.read_bytes())
    none = torch.empty(0, dtype=torch.uint8)
    return runtime.fingerprint(torch.frombuffer(content, dtype=torch.uint8) if content else none)
