"""How good, small and fast is the file that comes out: from photographs and a published network to ONNX and pt2.

    python benchmarks/shipping.py --data-root DIR --weights resnet56.pth
    python benchmarks/shipping.py --print benchmarks/results/shipping-cpu.json

Writes a folder of photographs: ten classes of CIFAR-100, enlarged to 64 pixels, with 100 training, 20 validation and 50
test images each. The teacher is a ResNet56 that another project trained on all 100 classes of CIFAR-100 (a checkpoint
of RepDistiller or mdistiller). A file that this script writes, teacher.py, keeps its outputs for the ten classes and
gives it images of 32 pixels. The student is a ResNet8 for 64 pixels, trained with each method; the one of the last
method is exported by `ickd export`, to ONNX with and without 8 bits, and to pt2.

Finished students are not trained again. The script takes about four minutes of one CPU core.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from own_images import CLASSES, write

from ickd_lib import __main__ as command_line
from ickd_lib import export, runs, runtime
from ickd_lib.runs.findings import markdown_table

SIZE = 64
SPLITS = {"train": ("train", 0, 100), "val": ("train", 100, 120), "test": ("test", 0, 50)}  # of each class of CIFAR-100
METHODS = ("ce", "kd", "ickd(nicd=1.0)")
FORMATS = {"onnx": ["--int8"], "pt2": []}
TEACHER = '''"""The published network, of whose 100 outputs those of the folder's classes are kept."""

from torch import nn

from ickd_lib import models


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        published = models.create("resnet56", 100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
        self.network = models.load_weights(published, {weights!r})

    def forward(self, images):
        output = self.network(images)
        return output.logits[:, {kept}], output.features
'''


def command(*words: object) -> None:
    """Run a command of `ickd`."""
    if status := command_line.main([str(word) for word in words]):
        raise SystemExit(status)


def measure(given: argparse.Namespace) -> None:
    """Train, export, and write the result."""
    folder, own, file = (Path(given.runs, name) for name in ("photographs", "runs", "teacher.py"))
    kept = write(given.data_root, folder, SPLITS, SIZE)
    file.write_text(TEACHER.format(weights=str(Path(given.weights).resolve()), kept=kept))
    images = ("--dataset", f"folder:{folder}", "--val", 0.1, "--teacher", f"{file}:Teacher(size=32)")
    recipe = ("--epochs", given.epochs, "--schedule", "onecycle", "--lr", given.lr, "--batch-size", 32)
    options = (*recipe, "--seeds", 1, "--evaluate-every", given.epochs, "--runs", own, "--device", "cpu")
    command("compare", *images, "--methods", *METHODS, *options)
    summaries = {
        row["method"]: row for row in runs.overview(own) if (row["epochs"], row["lr"]) == (given.epochs, given.lr)
    }
    student = summaries[METHODS[-1]]["folder"]
    tables = {}
    for format, more in FORMATS.items():
        out, numbers = Path(given.runs, f"student.{format}"), Path(given.runs, f"{format}.json")
        command("export", student, *images, "--format", format, "--out", out, *more, "--preprocess", "--json", numbers)
        tables[format] = runtime.read_json(numbers)
    result: dict[str, Any] = {
        "environment": runtime.environment(torch.device("cpu"))
        | {
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        },
        "protocol": {
            "epochs": given.epochs,
            "lr": given.lr,
            "size": SIZE,
            "classes": sorted(CLASSES),
            "images": SPLITS,
        },
        "accuracy": {method: summaries[method]["accuracy"] for method in METHODS},
        "held_out": {method: summaries[method]["val_accuracy"] for method in METHODS},
        "tables": tables,
    }
    runtime.write_json(Path(given.out), result)
    show(given.out)


def show(file: str) -> None:
    """Print the accuracies of the students, and the tables of `ickd export`, of a file of results."""
    result = runtime.read_json(Path(file))
    rows = [
        [f"`{method}`", f"{100 * result['held_out'][method]:.1f}", f"{100 * accuracy:.1f}"]
        for method, accuracy in result["accuracy"].items()
    ]
    print(markdown_table(["method", "validation images, %", "test images, %"], rows), end="\n\n")
    for rows in result["tables"].values():
        print(export.table(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--weights", default="resnet56.pth", help="checkpoint of a ResNet56 of CIFAR-100")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--runs", default="runs/shipping", help="folder of the photographs, runs and exported files")
    parser.add_argument("--out", default="runs/shipping/results.json")
    parser.add_argument("--print", default="", metavar="FILE", help="only print the tables of this file")
    options = parser.parse_args()
    show(options.print) if options.print else measure(options)
