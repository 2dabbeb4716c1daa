"""Retrieval on the device against the CPU, seconds of retrieval, of augmentation and of steps, and a profile."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import loops
import machine
import retrieval
import torch
from setting import Counted, Setting, check

from ickd_lib import models
from ickd_lib.data import strong
from ickd_lib.memory import MemoryBank
from ickd_lib.training import Student

# Images per second that were predicted for ResNet32x4→ResNet8x4 with batch 64 on an H200.
PREDICTED = {
    "kd": (29_000, 38_000),
    "kd, full cache": (58_000, 80_000),
    "eight students, full cache": (100_000, 160_000),
}


def retrieved(setting: Setting) -> dict[str, Any]:
    """The exact search finds on the device the rows that it finds on the CPU."""
    bank = retrieval.random_bank(1000 if setting.small else 10_000, 64)
    pairs = zip(bank.table(), MemoryBank.to(bank, setting.device).table(), strict=True)
    equal = [float((one.rows == other.rows.cpu()).double().mean()) for one, other in pairs]
    measured = {"equal_positives": equal[0], "equal_negatives": equal[1]}
    # An equal cosine to 16 digits may be rounded the other way.
    return check(measured, (min(equal) > 0.9999, "other rows are found"))


def retrieval_seconds(setting: Setting) -> dict[str, Any]:
    """Seconds of a whole table: nearest rows, random rows, and nearest rows of an untrained teacher, all alike."""
    rows, features = (1000, 32) if setting.small else (50_000, 256)
    bank = retrieval.random_bank(rows, features).to(setting.device)
    _, alike = loops.untrained(setting.pair[0], setting.splits, setting.device)
    counts = {"positives": 8, "negatives": 128}

    def searched(some: MemoryBank) -> float:
        some._tables.clear()  # otherwise a second search would return the result of the first
        return round(machine.seconds(lambda: some.table(allow_missing=True, **counts), setting.device), 3)

    measured: dict[str, Any] = {
        "rows": rows,
        "features": features,
        "first_seconds": searched(bank),
        "nearest_seconds": searched(bank),
        "random_seconds": round(
            machine.seconds(lambda: bank.random_table(allow_missing=True, seed=1, **counts), setting.device), 3
        ),
        "untrained_rows": len(alike),
        "untrained_seconds": searched(alike),
    }
    if setting.cuda:
        measured["peak_gigabytes"] = round(torch.cuda.max_memory_allocated(setting.device) / 1e9, 2)
    slow = [key for key in ("nearest_seconds", "random_seconds", "untrained_seconds") if measured[key] > 10]
    return check(measured, (not slow, f"more than 10 s: {', '.join(slow)}"))


def augmentation(setting: Setting) -> dict[str, Any]:
    """Milliseconds of the strong views of a batch, and of RandAugment, on the device."""
    pixels = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8).to(setting.device)
    ways: dict[str, Callable[[], Any]] = {
        "strong_view_milliseconds": lambda: strong.distorted(pixels, "keys"),
        "randaugment_milliseconds": lambda: strong.augmented(pixels, "randaugment", "keys"),
    }
    equal = torch.allclose(strong.distorted(pixels, 1).cpu(), strong.distorted(pixels.cpu(), 1), atol=1.5 / 255)
    found = {name: round(1000 * machine.fastest(work, setting.device), 2) for name, work in ways.items()}
    # Single pixels of a sheared or rotated image may come from a neighbour.
    return found | {"equal_to_the_cpu_everywhere": equal}


def step_seconds(setting: Setting) -> dict[str, Any]:
    """Seconds of steps as they are trained, and images per second beside what was predicted."""
    name = setting.pair[1]
    teacher, bank = loops.untrained(setting.pair[0], setting.splits, setting.device)
    folder, replays = setting.scratch / "timed-cache", {}

    def timed(way: str, methods: tuple[str, ...] = ("kd",), copies: int = 1, **given: Any) -> float:
        counted = Counted()
        students = [Student(name, method, seed) for method in methods for seed in range(copies)]
        options = {"teacher": teacher, "bank": bank, "device": setting.device, "callbacks": [counted]} | given
        seconds = loops.step_seconds(students, setting.splits, **options)
        replays[way] = counted.replays
        return seconds

    cached = {"teacher_cache": folder, "teacher_cache_gigabytes": 8.0}
    timed("kd, full cache", **cached)  # computes the outputs
    seconds = {
        "kd": timed("kd"),
        "kd, eager": timed("kd, eager", capture=False),
        "kd, full cache": timed("kd, full cache", **cached),
        "ickd": timed("ickd", ("ickd",)),
        "ickd, full cache": timed("ickd, full cache", ("ickd",), **cached),
        "eight students, full cache": timed("eight students, full cache", copies=8, **cached),
    }
    with mock.patch.object(models, "folded", lambda *_: None):
        seconds["kd, teacher not folded"] = timed("kd, teacher not folded")
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        seconds["kd, cudnn.benchmark"] = timed("kd, cudnn.benchmark")
    finally:
        torch.backends.cudnn.benchmark = before
    trained = {way: 64 * (8 if way.startswith("eight") else 1) / value for way, value in seconds.items()}
    measured = {
        "pair": "→".join(setting.pair),
        "milliseconds": {way: round(1000 * value, 3) for way, value in seconds.items()},
        "images_per_second": {way: round(value) for way, value in trained.items()},
        "replays": replays,
    }
    if not setting.small:
        measured["predicted_images_per_second"] = PREDICTED
    wrong = [way for way, count in replays.items() if bool(count) != (setting.cuda and way != "kd, eager")]
    return check(measured, (not wrong, f"wrongly captured or not captured: {', '.join(wrong)}"))


def profile(setting: Setting) -> dict[str, Any]:
    """Shares of the kinds of operation in captured steps of `kd` and of `ickd`."""
    teacher, bank = loops.untrained(setting.pair[0], setting.splits, setting.device)
    few = setting.splits._replace(train=setting.splits.train.few(min(1024, len(setting.splits.train))))
    given: dict[str, Any] = {"teacher": teacher, "bank": bank, "device": setting.device}

    def shares(method: str) -> dict[str, float]:
        students = [Student(setting.pair[1], method)]
        return machine.shares(lambda: loops.step_seconds(students, few, **given), setting.device)

    found: dict[str, Any] = {method: shares(method) for method in ("kd", "ickd")}
    empty = [method for method, of in found.items() if not of]
    return check(
        found | {"cupti": os.environ.get("TEARDOWN_CUPTI", "")},
        (not empty, f"the profiler recorded nothing of {', '.join(empty)}"),
    )
