"""Random numbers as functions of keys, so that a result does not depend on what ran before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def seed_of(*keys: object) -> int:
    """Return an integer seed that is a function of `keys`."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:7], "little")


def generator(*keys: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator whose state is a function of `keys` alone, as in generator(data_seed, "order", epoch)."""
    return torch.Generator(device).manual_seed(seed_of(*keys))


def reseed(device: torch.device, *keys: object) -> None:
    """Set torch's global generators, that of the CPU and that of `device`, to a function of `keys`.

    torch.manual_seed seeds every backend that torch was built with, which takes 200 times as long.
    """
    torch.default_generator.manual_seed(seed_of(*keys))
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed_of(*keys))


def kept_generators() -> contextlib.AbstractContextManager[None]:
    """Return a context at whose end torch's global generators, those of all GPUs too, are as they were before."""
    return torch.random.fork_rng(range(torch.cuda.device_count()))  # torch warns of several GPUs if none are named


@contextlib.contextmanager
def seeded(*keys: object) -> Iterator[None]:
    """Make torch's global generators a function of `keys` inside the context, and restore them afterwards."""
    with kept_generators():
        torch.manual_seed(seed_of(*keys))
        yield
