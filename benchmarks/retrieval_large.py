"""Measures retrieval from a bank of ImageNet's size: half precision, in a mapped file, on a CPU.

    python benchmarks/retrieval.py --rows 1280000 --features 512 [--queries 1024] [--json FILE]
    python benchmarks/retrieval.py --banks FILE ...  # for banks of `ickd bank`: what half precision and faiss change

The features of each of 1,000 classes are the centre of a group of classes, plus that of the class, plus noise in 32
dimensions and some in all, and are rectified. The logits are zeros, which take as much memory as others. The search for
all rows would take hours, so that some rows are queries; their time is multiplied, which the results name.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F

from ickd_lib import runtime
from ickd_lib.memory import Faiss, MemoryBank, Neighbours, approximate, files, retrieval
from ickd_lib.memory.search import Wanted

POSITIVES, NEGATIVES, CLASSES, GROUPS = 8, 128, 1000, 50
PART = 2**15
# Peak rates of an NVIDIA H100 SXM, from its data sheet: float32 without tensor cores, and memory.
H100 = {"operations_per_second": 67e12, "bytes_per_second": 3.35e12}


def write_bank(path: Path, rows: int, features: int, classes: int) -> None:
    """Write a bank of random rows in half precision, in parts."""
    generator = runtime.generator(0, "large")
    labels = torch.arange(rows) % classes
    group = torch.randn(GROUPS, features, generator=generator)[torch.arange(classes) % GROUPS]
    centres = group + torch.randn(classes, features, generator=generator)
    basis = torch.randn(32, features, generator=generator) / 32**0.5
    with torch.device("meta"):  # shapes and types only
        like = {
            "features": torch.empty(rows, features, dtype=torch.half),
            "logits": torch.empty(rows, classes, dtype=torch.half),
            "norms": torch.empty(rows),
            **{name: torch.empty(rows, dtype=torch.long) for name in ("labels", "index", "written")},
        }
    with files.in_parts(path, like, tuple(map(str, range(classes))), {"data": "random", "precision": "half"}) as write:
        write("labels", 0, labels)
        write("index", 0, torch.arange(rows))
        for start in range(0, rows, PART):
            own = labels[start : start + PART]
            noise = torch.randn(len(own), 32, generator=generator) @ basis * 1.5
            values = centres[own] + noise + 0.5 * torch.randn(len(own), features, generator=generator)
            values = values.relu()
            write("norms", start, values.norm(dim=1))
            write("features", start, F.normalize(values, dim=1).half())


def peak_gigabytes(reset: bool = False) -> dict[str, float]:
    """Return the peak of this process's resident memory since the last reset, and its present parts, in gigabytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {name: int(status[name].split()[0]) * 1024 / 1e9 for name in ("VmHWM", "RssAnon", "RssFile")}
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes the present size
    return {
        "peak": round(found["VmHWM"], 2),
        "at_the_end_own": round(found["RssAnon"], 2),
        "at_the_end_mapped": round(found["RssFile"], 2),
    }


def gpu_estimate(rows: int, features: int) -> dict[str, Any]:
    """Estimate the time of an exact table of all rows on an H100 from its peak rates. Nothing is measured."""
    operations = 2 * rows**2 * features
    scores = 2 * 4 * rows**2  # each score is written by the product and read once to compare the blocks' maxima
    features_read = rows / 1024 * rows * features * 4  # all rows, for each 1,024 queries
    seconds = operations / H100["operations_per_second"] + (scores + features_read) / H100["bytes_per_second"]
    return {
        "note": "an estimate from peak rates that was not measured: no search is faster, and real ones reach a part",
        "operations": f"2 · {rows:,}² · {features} = {operations:.3g}",
        "bytes": f"2 · 4 · {rows:,}² + {rows:,} / 1,024 · {rows:,} · {features} · 4 = {scores + features_read:.3g}",
        "h100": H100,
        "seconds_of_operations": round(operations / H100["operations_per_second"], 1),
        "seconds_of_bytes": round((scores + features_read) / H100["bytes_per_second"], 1),
        "seconds": round(seconds, 1),
    }


class Clock:
    """Seconds, and seconds of the CPU, since the last call: the latter count no time in which other processes run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __call__(self, name: str) -> None:
        """Record the time since the start under a name, and start again."""
        self.seconds[name] = round(time.perf_counter() - self.start[0], 2)
        self.cpu_seconds[name] = round(time.process_time() - self.start[1], 2)
        self.restart()


def shared(one: Neighbours, other: Neighbours) -> float:
    """Return the share of the rows in `one`, [Q, k], that are also in `other`."""
    both = zip(one.rows.tolist(), other.rows.tolist(), strict=True)
    return round(sum(len({*a} & {*b}) for a, b in both) / one.rows.numel(), 4)


def losses(path: str | Path, queries: int = 1024) -> dict[str, Any]:
    """Measure which neighbours in a bank stay the same in half precision and with faiss, and how its values change.

    Args:
        path: the file of a bank in single precision.
        queries: number of rows that are queries.
    """
    bank = MemoryBank.load(path)
    tensors = bank.tensors | {"features": bank.features.half(), "logits": bank.logits.half()}
    half = MemoryBank(**tensors, classes=bank.classes)  # type: ignore[arg-type]
    rows = torch.randperm(len(bank), generator=runtime.generator(0, "queries"))[:queries].sort().values
    exact, rounded = (one.table(positives=POSITIVES, negatives=NEGATIVES, rows=rows) for one in (bank, half))
    chosen = Faiss().resolved(len(bank))
    index = approximate.Index(bank, chosen)
    found: dict[str, Any] = {"rows": len(bank), "features": bank.features.shape[1], "queries": len(rows)}
    for name, probes in (("", chosen.probes), (" with twice as many probes", 2 * chosen.probes)):
        index.settings = dataclasses.replace(chosen, probes=probes)
        _, far = retrieval.table(bank, rows, Wanted(0, NEGATIVES), index)
        found[f"recall@{NEGATIVES} of faiss{name}, {probes} of {chosen.lists} lists"] = shared(exact[1], far)
    same = [a.rows == b.rows for a, b in zip(exact, rounded, strict=True)]
    change = max(
        (a.similarity - b.similarity)[s].abs().max().item() for a, b, s in zip(exact, rounded, same, strict=True)
    )
    return found | {
        f"half: recall@{POSITIVES} of positives": shared(exact[0], rounded[0]),
        f"half: recall@{NEGATIVES} of negatives": shared(exact[1], rounded[1]),
        "half: largest change of a cosine": round(change, 5),
        "half: largest change of a logit": round((bank.logits - half.logits.float()).abs().max().item(), 4),
        "largest logit": round(bank.logits.abs().max().item(), 1),
    }


def sample(bank: MemoryBank, queries: int) -> torch.Tensor:
    """Return rows of some classes that are drawn at random: as in a whole table, several queries have one class."""
    order = torch.randperm(len(bank.classes), generator=runtime.generator(0, "queries")).tolist()
    return torch.cat([bank.class_rows[c][:128] for c in order])[:queries].sort().values


def measure(rows: int, features: int, queries: int = 1024, folder: str | None = None) -> dict[str, Any]:
    """Measure memory, time and recall of both searches for a bank in a mapped file.

    Args:
        rows, features: size of the bank.
        queries: number of rows that are queries in each search.
        folder: folder of the file of the bank, which is removed; None for the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "large.bank.safetensors"
        clock = Clock()
        write_bank(path, rows, features, CLASSES)
        clock("writing")
        memory = {"writing": peak_gigabytes(reset=True)}
        bank = MemoryBank.load(path, mapped=True)
        bank.prepare()
        clock("class means")
        memory["loading, class means"] = peak_gigabytes(reset=True)
        drawn = sample(bank, queries)
        found = {}
        result = {
            "machine": machine.name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "rows": rows,
            "features": features,
            "classes": CLASSES,
            "queries": len(drawn),
            "gigabytes_of_the_file": round(path.stat().st_size / 1e9, 2),
        }
        chosen, index = Faiss().resolved(rows), None
        for name in ("exact", "faiss"):
            clock.restart()
            if name == "faiss":
                index = approximate.Index(bank, chosen)
                clock("index of faiss")
                memory["index of faiss"] = peak_gigabytes(reset=True)
            found[name] = retrieval.table(bank, drawn, Wanted(POSITIVES, NEGATIVES), index)
            clock(name)
            memory[name] = peak_gigabytes(reset=True)
    scale, cpu = rows / len(drawn), clock.cpu_seconds
    table = rows * (POSITIVES + NEGATIVES) * (8 + 4 + 1) / 1e9
    return result | {
        "faiss": {"lists": chosen.lists, "probes": chosen.probes},
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "cpu_minutes_of_a_table_extrapolated": {
            "note": f"CPU seconds of {len(drawn):,} queries times {scale:,.0f}, with faiss plus those of the index",
            "exact": round(cpu["exact"] * scale / 60, 1),
            "faiss": round((cpu["faiss"] * scale + cpu["index of faiss"]) / 60, 1),
        },
        f"recall@{NEGATIVES}_of_faiss": shared(found["exact"][1], found["faiss"][1]),
        "share_of_equal_positives": (found["faiss"][0].rows == found["exact"][0].rows).double().mean().item(),
        "gigabytes_resident": memory,
        "gigabytes_of_a_table_of_all_rows": round(table, 2),
        "estimate_for_a_gpu": gpu_estimate(rows, features),
    }
