"""Makes the galleries of docs/gallery: the explorers on photographs of CIFAR-100, each as one HTML file.

    python benchmarks/gallery.py --data-root DIR --teacher resnet56.pth --student resnet20.pth [--out docs/gallery]

Teacher and student are checkpoints of RepDistiller or mdistiller, or files of this library; the name of each file
begins with that of its network. The bank contains all 50,000 training images, and the queries are test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ickd_lib import data, training
from ickd_lib.memory import MemoryBank
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer, SuspectExplorer

FIRST = "maple_tree student:oak_tree teacher:maple_tree"  # finds the first query
POINTS = 2000  # test images with which the maps are computed; the gallery contains some of them
LIMIT = 1_000_000  # largest size of a file in bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--teacher", required=True, type=Path, help="checkpoint such as resnet56.pth")
    parser.add_argument("--student", required=True, type=Path, help="checkpoint such as resnet20.pth")
    parser.add_argument("--out", default="docs/gallery", type=Path, help="folder to write to")
    given = parser.parse_args()
    splits = data.load("cifar100", given.data_root)
    teacher, student = (
        training.pretrain(path.stem, splits, weights=path, device="cpu") for path in (given.teacher, given.student)
    )
    bank = MemoryBank.build(teacher, splits.train)
    given.out.mkdir(parents=True, exist_ok=True)

    queries = {"queries": splits.test, "teacher": teacher, "student": student}
    neighbours = NeighbourExplorer(bank, splits.train, method="ickd(negatives=32)", **queries)
    neighbours.search.value = FIRST
    neighbours.save(given.out / "neighbours.html", queries=12, shown=8)
    spaces = {"teacher": teacher, "student": student}
    LogitSpaceExplorer(spaces, splits.test.few(POINTS, 0)).save(given.out / "logit_space.html", points=600)
    SuspectExplorer(bank, splits.train).save(given.out / "suspects.html", suspects=24)
    for path in sorted(given.out.glob("*.html")):
        size = path.stat().st_size
        print(f"{path}: {size / 1000:,.0f} kB" + (", which is too large to be committed" if size > LIMIT else ""))


if __name__ == "__main__":
    main()
