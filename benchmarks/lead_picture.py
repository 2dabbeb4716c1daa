"""Draws the README's first picture: CIFAR-100 photographs beside the in-context samples from a teacher's memory bank.

    python benchmarks/lead_picture.py --data-root DIR --weights resnet56.pth [--out figures/neighbours_cifar100.png]

The teacher is a ResNet56 from a checkpoint of RepDistiller or mdistiller, or from a file of this library.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ickd_lib import data, training
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank

QUERIES = (36277, 26589, 35328)  # rows of the training images: a clock, a leopard, a dolphin
SHOWN = 4  # number of in-context samples of each kind that are drawn
SAME, OTHER, QUERY = "#0173b2", "#d55e00", "0.15"
STEP, GAP, TEXT = 1.06, 0.32, 0.36  # in tiles: distance of neighbouring tiles, gap between groups, room below a tile


def draw(images: Images, bank: MemoryBank, queries: tuple[int, ...] = QUERIES, shown: int = SHOWN) -> Figure:
    """Draw one line for each query: the photograph, its nearest rows of its class, its nearest rows of other classes.

    Args:
        images: the images from which the bank was built.
        bank: the teacher's memory bank.
        queries: data-set rows of the queries.
        shown: number of in-context samples of each kind.
    """
    index = torch.tensor(queries)
    rows = bank.rows(index)
    near, far = bank.retrieve(bank.features[rows], bank.labels[rows], index, positives=shown, negatives=shown)
    starts = (0.0, STEP + GAP, STEP * (1 + shown) + 2 * GAP)  # left edges of query, positives and negatives
    width, line = starts[2] + shown * STEP, 1 + TEXT
    height = len(queries) * line + 0.4
    figure = plt.figure(figsize=(8.2, 8.2 * height / width))
    axis = figure.add_axes((0, 0, 1, 1))
    heads = (
        (starts[0], "query", QUERY),
        (starts[1], "nearest of the same class: pull", SAME),
        (starts[2], "nearest of other classes: push away", OTHER),
    )
    for x, text, colour in heads:
        axis.text(x, 0.2, text, color=colour, fontsize=11, weight="bold", va="center")
    for number, row in enumerate(queries):
        top = 0.4 + number * line
        tiles = [(starts[0], row, QUERY)]
        for start, found, colour in ((starts[1], near, SAME), (starts[2], far, OTHER)):
            tiles += [(start + STEP * i, int(j), colour) for i, j in enumerate(found.index[number])]
        for x, at, colour in tiles:
            position = int((images.index == at).nonzero())
            picture = images.images[position].permute(1, 2, 0).numpy()
            axis.imshow(picture, extent=(x, x + 1, top + 1, top), interpolation="lanczos")
            axis.add_patch(Rectangle((x, top), 1, 1, fill=False, edgecolor=colour, linewidth=2))
            name = images.classes[int(images.labels[position])].replace("_", " ")
            axis.text(x + 0.5, top + 1.06, name, color=colour, fontsize=10, ha="center", va="top")
    axis.set(xlim=(-0.03, width), ylim=(height, 0), aspect="equal")
    axis.set_axis_off()
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG that is 1,148 pixels wide, with 64 levels for each colour channel.

    The file is half as large as with 256 levels, and the picture still looks smooth.
    """
    with io.BytesIO() as drawn:
        figure.savefig(drawn, dpi=140, format="png")
        drawn.seek(0)
        picture = Image.open(drawn).convert("RGB")
    picture.point([min(255, round(level / 4) * 4) for level in range(256)] * 3).save(path, format="png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--weights", required=True, help="checkpoint of a ResNet56 that was trained on CIFAR-100")
    parser.add_argument("--out", default="figures/neighbours_cifar100.png", help="file to write")
    given = parser.parse_args()
    splits = data.load("cifar100", given.data_root)
    teacher = training.pretrain("resnet56", splits, weights=given.weights, device="cpu")
    bank = MemoryBank.build(teacher, splits.train)
    accuracy = training.evaluate(teacher, splits.test)["accuracy"]
    save(draw(splits.train, bank), given.out)
    print(f"{given.out}: drawn with a teacher whose test accuracy is {accuracy:.1%}")


if __name__ == "__main__":
    main()
