"""Measures exact retrieval: the in-context samples of every row of a bank of 50,000 rows with 256 features.

    python benchmarks/retrieval.py [--rows 50000] [--features 256] [--rounds 1] [--device auto]

The features of each of 100 classes are its centre plus noise, and are rectified as in a network that ends in a ReLU. On
a CPU, if faiss-cpu is installed, its IndexFlatIP is measured too: with the same class constraints (one index of each
class and one of all other classes), and without constraints.

From 200,000 rows on, the bank is in half precision and in a mapped file, as `retrieval_large` describes.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
from pathlib import Path
from typing import Any

import machine
import numpy as np
import retrieval_large
import torch

from ickd_lib import runtime
from ickd_lib.memory import MemoryBank, approximate

POSITIVES, NEGATIVES = 8, 128


def random_bank(rows: int, features: int, classes: int = 100) -> MemoryBank:
    """Return a bank of random features around a random centre of each class."""
    generator = runtime.generator(0, "benchmark")
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, features, generator=generator)
    values = (centres[labels] + torch.randn(rows, features, generator=generator)).relu()
    names = tuple(str(c) for c in range(classes))
    return MemoryBank(values, torch.zeros(rows, classes), labels, torch.arange(rows), names)


def ickd_lib_search(bank: MemoryBank) -> tuple[torch.Tensor, torch.Tensor]:
    """Search with ickd_lib and return the rows of the positives [N, 8] and negatives [N, 128]."""
    bank._tables.clear()  # otherwise a second search would return the result of the first
    positives, negatives = bank.table(positives=POSITIVES, negatives=NEGATIVES)
    return positives.rows, negatives.rows


def faiss_constrained(bank: MemoryBank) -> tuple[torch.Tensor, torch.Tensor]:
    """Search with faiss under the same class constraints and return rows of shapes [N, 8] and [N, 128]."""
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
    """Search as many rows per query with faiss, without class constraints."""
    import faiss

    features = bank.features.numpy()
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    index.search(features, POSITIVES + NEGATIVES + 1)


def measure(rows: int = 50_000, features: int = 256, rounds: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Measure each search in each of several rounds.

    Args:
        rows, features: size of the bank.
        rounds: how often each search is measured.
        device: device of the bank and of the search with ickd_lib: "auto", "cpu", "cuda" or "cuda:N".
    Returns:
        The seconds of each search in each round and, where faiss was measured, the share of neighbours on which both
        exact searches agree and the median ratio of the times.
    """
    chosen = runtime.device(device)
    bank = random_bank(rows, features).to(chosen)
    ways: dict[str, Any] = {"ickd_lib": ickd_lib_search}
    if chosen.type == "cuda":
        ickd_lib_search(bank)  # the first search on a GPU loads its libraries
    elif importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        ways |= {"faiss, same constraints": faiss_constrained, "faiss, no constraints": faiss_free}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Any] = {}

    def search(way: str) -> None:
        found[way] = ways[way](bank)

    for _ in range(rounds):
        for way in ways:
            seconds[way].append(round(machine.seconds(lambda way=way: search(way), chosen), 3))
    result: dict[str, Any] = {"device": str(chosen), "rows": rows, "features": features, "seconds_of": seconds}
    if len(ways) > 1:
        agreed = [
            (a.sort(1).values == b.sort(1).values).double().mean().item()
            for a, b in zip(found["ickd_lib"], found["faiss, same constraints"], strict=True)
        ]
        result["agreement_with_faiss"] = [round(share, 5) for share in agreed]
        for way in list(ways)[1:]:
            ratio = statistics.median(f / o for f, o in zip(seconds[way], seconds["ickd_lib"], strict=True))
            result[f"times the seconds of ickd_lib: {way}"] = round(ratio, 2)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="number of rows of the bank")
    parser.add_argument("--features", type=int, default=256, help="number of features of a row")
    parser.add_argument("--rounds", type=int, default=1, help="how often each search is measured")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--queries", type=int, default=1024, help="of a large bank: number of rows that are queries")
    parser.add_argument(
        "--banks", nargs="+", default=[], help="measure banks in files, in half precision and with faiss"
    )
    parser.add_argument("--json", default="", help="file for the results")
    given = parser.parse_args()
    if given.banks:
        found = {Path(path).name: retrieval_large.losses(path) for path in given.banks}
    elif given.rows < approximate.LARGE:
        found = measure(given.rows, given.features, given.rounds, given.device)
    else:
        found = retrieval_large.measure(given.rows, given.features, given.queries)
    for key, value in found.items():
        print(f"{key}: {value}")
    if given.json:
        runtime.write_json(given.json, found)
    if given.rows < approximate.LARGE:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"peak memory of the process: {peak:.1f} GB; CPU threads: {torch.get_num_threads()}")
        if torch.cuda.is_available():
            print(f"peak memory on the GPU: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
