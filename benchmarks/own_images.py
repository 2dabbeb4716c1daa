"""Are IC-KD's default weights safe for a person's own images: ten classes, few photographs, a weak teacher?

    python benchmarks/own_images.py --data-root DIR [--epochs 30] [--seeds 2]

Writes a folder of 1,000 training and 1,000 test photographs of ten classes of CIFAR-100 and compares methods on it. The
teacher is a ResNet20 that is trained on the same photographs. Finished runs are not trained again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from PIL import Image

from ickd_lib import __main__, data

CLASSES = (
    "apple",
    "bear",
    "bicycle",
    "bus",
    "castle",
    "clock",
    "dolphin",
    "leopard",
    "maple_tree",
    "rocket",
)
METHODS = ("ce", "kd", "ickd", "ickd(limit=None)", "ickd(nicd=2.0)", "ickd(nicd=0)")


def write(root: str, folder: Path, count: int = 100) -> None:
    """Write the first `count` images of each class and split as PNG files in class folders; complete ones stay."""
    splits = data.load("cifar100", root)
    for split, images in (("train", splits.train), ("test", splits.test)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i, pixels in enumerate(images.only([name]).images[:count]):
                path = folder / split / name / f"{i}.png"
                if not path.exists():
                    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder of cifar-100-python")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", default="runs/own_images/photographs", help="folder of the photographs")
    given = parser.parse_args()
    write(given.data_root, Path(given.folder))
    line = f"compare --dataset folder:{given.folder} --teacher resnet20 --student resnet8 --runs runs/own_images/runs"
    line += f" --epochs {given.epochs} --seeds {given.seeds} --evaluate-every {given.epochs} --methods"
    raise SystemExit(__main__.main([*line.split(), *METHODS]))
