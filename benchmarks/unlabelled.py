"""What are images without labels worth: 1,000 labelled images of CIFAR-100, alone and with 9,000 unlabelled ones.

    python benchmarks/unlabelled.py --data-root DIR --weights resnet56.pth [--unlabelled 9000 49000] [--minutes 9]
    python benchmarks/unlabelled.py --report benchmarks/results/unlabelled

A ResNet8 is trained with the labels alone, with KD and with IC-KD, on the labelled images and, except for labels alone,
on the labelled and unlabelled images together, over three seeds. The teacher is a ResNet56 from a checkpoint of
RepDistiller or mdistiller. All students take the same number of steps, so that those with fewer images have more
epochs: 30 with 10,000 images, 300 with 1,000. Each seed is one of the initialisation and of the order of the data; the
labelled images are the same.

For each finished student a JSON file is written to OUT, and a student with such a file is not trained again. With
--minutes, the script stops after that time with exit status 75, and the same call goes on from the last checkpoint.

A seed took about 11 minutes for each number of unlabelled images, on one of two busy CPU cores with bf16 hardware.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tables import limited, write_finished

from ickd_lib import data, models, runs, training
from ickd_lib.models import Network
from ickd_lib.runs.findings import markdown_table
from ickd_lib.training import Recipe, Student

METHODS = ("ce", "kd", "ickd")
BATCH = 64


def teacher(given: argparse.Namespace) -> Network:
    """Return the teacher, from a checkpoint whose images were normalised as published."""
    network = models.create("resnet56", 100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
    network = models.load_weights(network, given.weights).eval()
    network.classes = data.load("cifar100", given.data_root).train.classes
    network.trained_on = {"data": "cifar100/train", "labels": 50_000}
    return network


def train(given: argparse.Namespace) -> list[str]:
    """Train the students that are not finished. Those of one seed and number of images share one pass."""
    network = teacher(given)
    for unlabelled in (0, *given.unlabelled):
        splits = data.load("cifar100", given.data_root, labels=given.labels, unlabelled=unlabelled)
        epochs = max(1, round(given.steps * BATCH / len(splits.train)))
        for seed in given.seeds:
            training.distill(
                [Student("resnet8", method, seed) for method in METHODS if not unlabelled or method != "ce"],
                splits,
                teacher=network,
                recipe=Recipe(epochs=epochs, batch_size=BATCH, lr=0.1, schedule="onecycle"),
                data_seed=seed,
                evaluate_every=epochs,
                runs=Path(given.runs),
                teacher_cache=Path(given.runs, "teacher_cache"),
                device=given.device,
                progress=sys.stderr.isatty(),
            )
            for summary in write_finished(Path(given.runs), Path(given.out)):
                print(
                    f"{summary['method']}, {unlabelled:,} unlabelled, seed {seed}: {summary['accuracy']:.2%}",
                    flush=True,
                )
    report(given.out)
    return []


def report(folder: str) -> None:
    """Print the accuracies, and their differences from labels alone, paired by seed."""
    found: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    for one in runs.finished([folder]):
        found[one.get("unlabelled", 0), one["method"]][one["seed"]] = one["accuracy"]
    baseline, rows = found[0, "ce"], []
    for (unlabelled, method), by_seed in sorted(found.items()):
        mean, std = runs.mean_std([100 * value for value in by_seed.values()])
        common = sorted(by_seed.keys() & baseline.keys())
        difference = ""
        if (unlabelled, method) != (0, "ce") and common:
            gaps = [100 * (by_seed[seed] - baseline[seed]) for seed in common]
            difference = f"{statistics.fmean(gaps):+.2f}"
            if len(gaps) > 1:
                low_high = runs.interval(gaps, [0.0] * len(gaps))
                difference += f" ({low_high['low']:+.2f} to {low_high['high']:+.2f})"
        spread = f" ± {std:.2f}" if len(by_seed) > 1 else ""
        rows.append([f"`{method}`", f"{unlabelled:,}", len(by_seed), f"{mean:.2f}{spread}", difference])
    heading = ["method", "unlabelled images", "seeds", "accuracy, %", "difference to labels alone, points"]
    print(markdown_table(heading, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--weights", default="resnet56.pth", help="checkpoint of a ResNet56 of CIFAR-100")
    parser.add_argument("--labels", type=int, default=1000, help="number of labelled images")
    parser.add_argument("--unlabelled", type=int, nargs="+", default=[9000], help="numbers of unlabelled images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4700, help="steps of each student")
    parser.add_argument("--minutes", type=float, default=0, help="minutes after which to stop; 0: never")
    parser.add_argument("--runs", default="runs/unlabelled", help="folder of the runs and the teacher cache")
    parser.add_argument("--out", default="runs/unlabelled/json", help="folder of the JSON files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--report", default="", metavar="FOLDER", help="only print the table of the files in a folder")
    options = parser.parse_args()
    if options.report:
        report(options.report)
    else:
        sys.exit(limited(lambda: train(options), options.minutes))
