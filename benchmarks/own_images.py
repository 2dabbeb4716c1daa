"""Are IC-KD's default weights safe for a person's own images: ten classes, few photographs, a weak teacher?

    python benchmarks/own_images.py --data-root DIR [--epochs 30] [--seeds 2]

Writes a folder of 1,000 training and 1,000 test photographs of ten classes of CIFAR-100 and compares methods on it. The
teacher is a ResNet20 that is trained on the same photographs. Finished runs are not trained again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
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
METHODS = ("ce", "kd", "ickd", "ickd(temperature=4.0, limit=None, corrected=False)", "ickd(nicd=2.0)", "ickd(nicd=0)")


SPLITS = {
    "train": ("train", 0, 100),
    "test": ("test", 0, 100),
}  # of each class: split of CIFAR-100, first and last image


def write(root: str, folder: Path, parts: Mapping[str, tuple[str, int, int]] = SPLITS, size: int = 32) -> list[int]:
    """Write images of the ten classes as PNG files in class folders; complete ones stay.

    Args:
        root: folder of cifar-100-python.
        folder: folder of the written images.
        parts: for each split of the folder, the split of CIFAR-100, and which images of each class.
        size: height and width of the images.
    Returns:
        The numbers of the classes in CIFAR-100, in the order of the folder.
    """
    splits = data.load("cifar100", root)
    for split, (source, start, stop) in parts.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number, pixels in enumerate(getattr(splits, source).only([name]).images[start:stop]):
                path = folder / split / name / f"{number}.png"
                if not path.exists():
                    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                    image.resize((size, size), Image.Resampling.BICUBIC).save(path)
    return [splits.train.classes.index(name) for name in sorted(CLASSES)]


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
