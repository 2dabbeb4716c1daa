"""How long exact retrieval takes: the neighbours of every row of a bank of 50,000 rows with 256 features.

    python benchmarks/retrieval.py [--rows 50000] [--features 256]

The features are those of 100 noisy classes, rectified, as a ReLU network's are. Prints seconds and peak memory.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from ickd_lib import runtime
from ickd_lib.memory import MemoryBank

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="of the bank")
    parser.add_argument("--features", type=int, default=256, help="of each row")
    given = parser.parse_args()
    generator, classes = runtime.generator(0, "benchmark"), 100
    labels = torch.arange(given.rows) % classes
    centres = torch.randn(classes, given.features, generator=generator)
    features = (centres[labels] + torch.randn(given.rows, given.features, generator=generator)).relu()
    names = tuple(str(c) for c in range(classes))
    bank = MemoryBank(features, torch.zeros(given.rows, classes), labels, torch.arange(given.rows), names)
    start = time.perf_counter()
    bank.table(positives=8, negatives=32)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{given.rows:,} × {given.features}, 8 positives and 32 negatives of every row: {seconds:.1f} s, "
        f"{peak:.1f} GB at the most, {torch.get_num_threads()} threads"
    )
