"""Makes the galleries of docs/gallery: the explorers on photographs of CIFAR-100, each as one HTML file.

    python benchmarks/gallery.py --data-root DIR --teacher resnet56.pth --student resnet20.pth [--out docs/gallery]

Teacher and student are checkpoints of RepDistiller or mdistiller, or files of this library; the name of each file
begins with that of its network. The bank contains all 50,000 training images, and the queries are test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ickd_lib import data, training
from ickd_lib.memory import MemoryBank
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer, SuspectExplorer

FIRST = "maple_tree student:oak_tree teacher:maple_tree"  # finds the first query
POINTS = 2000  # test images with which the maps are computed; the gallery contains some of them
LIMIT = 1_000_000  # largest size of a file in bytes


def explorers(data_root: str | Path, teacher: Path, student: Path) -> tuple[Any, Any, Any]:
    """Return the explorers of neighbours, of the logit space and of suspects, of two networks from checkpoints."""
    splits = data.load("cifar100", data_root)
    networks = {
        role: training.pretrain(path.stem, splits, weights=path, device="cpu")
        for role, path in (("teacher", teacher), ("student", student))
    }
    bank = MemoryBank.build(networks["teacher"], splits.train)
    neighbours = NeighbourExplorer(bank, splits.train, method="ickd(negatives=32)", queries=splits.test, **networks)
    neighbours.search.value = FIRST
    spaces = LogitSpaceExplorer(networks, splits.test.few(POINTS, 0))
    return neighbours, spaces, SuspectExplorer(bank, splits.train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--teacher", required=True, type=Path, help="checkpoint such as resnet56.pth")
    parser.add_argument("--student", required=True, type=Path, help="checkpoint such as resnet20.pth")
    parser.add_argument("--out", default="docs/gallery", type=Path, help="folder to write to")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    neighbours, spaces, suspects = explorers(given.data_root, given.teacher, given.student)
    neighbours.save(given.out / "neighbours.html", queries=12, shown=8)
    spaces.save(given.out / "logit_space.html", points=600)
    suspects.save(given.out / "suspects.html", suspects=24)
    for path in sorted(given.out.glob("*.html")):
        size = path.stat().st_size
        print(f"{path}: {size / 1000:,.0f} kB" + (", which is too large to be committed" if size > LIMIT else ""))


if __name__ == "__main__":
    main()
