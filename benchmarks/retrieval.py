"""How long exact retrieval takes: the neighbours of every row of a bank of 50,000 rows with 256 features.

    python benchmarks/retrieval.py [--rows 50000] [--features 256] [--rounds 1]

The features are those of 100 noisy classes, rectified, as a ReLU network's are. Beside ours stands faiss's IndexFlatIP,
where faiss-cpu is installed: under the same class constraints (an index of each class, and one of all others), and
without any.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from typing import Any

import numpy as np
import torch

from ickd_lib import runtime
from ickd_lib.memory import MemoryBank

POSITIVES, NEGATIVES = 8, 128


def made_up(rows: int, features: int, classes: int = 100) -> MemoryBank:
    generator = runtime.generator(0, "benchmark")
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, features, generator=generator)
    found = (centres[labels] + torch.randn(rows, features, generator=generator)).relu()
    names = tuple(str(c) for c in range(classes))
    return MemoryBank(found, torch.zeros(rows, classes), labels, torch.arange(rows), names)


def ours(bank: MemoryBank) -> tuple[torch.Tensor, torch.Tensor]:
    bank._tables.clear()
    near, far = bank.table(positives=POSITIVES, negatives=NEGATIVES)
    return near.rows, far.rows


def faiss_constrained(bank: MemoryBank) -> tuple[torch.Tensor, torch.Tensor]:
    import faiss

    features, labels = bank.features.numpy(), bank.labels.numpy()
    near = np.empty((len(labels), POSITIVES), np.int64)
    far = np.empty((len(labels), NEGATIVES), np.int64)
    for c in np.unique(labels):
        own, others = np.flatnonzero(labels == c), np.flatnonzero(labels != c)
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features[own])
        found = own[index.search(features[own], POSITIVES + 1)[1]]
        itself = found == own[:, None]
        itself[~itself.any(1), -1] = True
        near[own] = found[~itself].reshape(len(own), POSITIVES)
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features[others])
        far[own] = others[index.search(features[own], NEGATIVES)[1]]
    return torch.from_numpy(near), torch.from_numpy(far)


def faiss_free(bank: MemoryBank) -> None:
    import faiss

    features = bank.features.numpy()
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    index.search(features, POSITIVES + NEGATIVES + 1)


def measure(rows: int = 50_000, features: int = 256, rounds: int = 1) -> dict[str, Any]:
    """Seconds of each way, rounds alternating; and the share of neighbours that the exact ways agree on."""
    bank = made_up(rows, features)
    ways = {"ours": ours}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        ways |= {"faiss, same constraints": faiss_constrained, "faiss, no constraints": faiss_free}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for way, search in ways.items():
            start = time.perf_counter()
            found[way] = search(bank)
            seconds[way].append(round(time.perf_counter() - start, 2))
    result: dict[str, Any] = {"rows": rows, "features": features, "seconds_of": seconds}
    if len(ways) > 1:
        agreed = [
            (a.sort(1).values == b.sort(1).values).double().mean().item()
            for a, b in zip(found["ours"], found["faiss, same constraints"], strict=True)
        ]
        result["agreement_with_faiss"] = [round(share, 5) for share in agreed]
        for way in list(ways)[1:]:
            ratio = statistics.median(f / o for f, o in zip(seconds[way], seconds["ours"], strict=True))
            result[f"times the seconds of ours: {way}"] = round(ratio, 2)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="of the bank")
    parser.add_argument("--features", type=int, default=256, help="of each row")
    parser.add_argument("--rounds", type=int, default=1, help="times each way is measured")
    given = parser.parse_args()
    for key, value in measure(given.rows, given.features, given.rounds).items():
        print(f"{key}: {value}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{peak:.1f} GB at the most, {torch.get_num_threads()} threads")
