"""How accurate are the published teachers of the study, and what does a cache of their largest logits alone change?

    python benchmarks/teachers.py --data-root DIR --weights resnet56=FILE wrn_16_2=FILE … --out FILE
    python benchmarks/teachers.py --print benchmarks/results/teachers.json

A teacher cache can store the K largest logits of each view (`--teacher-cache-top K`). What this changes is the KL
divergence of the restored probabilities from the teacher's, a mean over random crops of 2,000 training images, for the
first of the teachers. The script takes a minute of one CPU core.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor
from torch.distributions import Categorical

from ickd_lib import data, losses, models, runtime, training
from ickd_lib.runs.findings import markdown_table
from ickd_lib.training.stored_outputs import StoredOutputs, teacher_outputs

STORED = (0, 50, 20, 10, 5)  # numbers K of stored logits; 0: all
TEMPERATURES = (1.0, 4.0)
IMAGES = 2000


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the test accuracy of each teacher, and what a cache changes for the first one.

    Args:
        given: the arguments of the script.
    """
    splits = data.load("cifar100", given.data_root)
    weights = dict(one.split("=", 1) for one in given.weights)
    teachers = {
        name: models.load_weights(models.create(name, **splits.train.spec), file) for name, file in weights.items()
    }
    generator = runtime.generator("views of a teacher")
    rows = torch.randperm(len(splits.train), generator=generator)[:IMAGES]
    views = splits.train.augmented(rows, torch.randint(splits.train.views, (IMAGES,), generator=generator))
    first = next(iter(teachers.values())).eval()
    logits = torch.cat([teacher_outputs(first, part, "fp32").logits for part in views.split(500)])
    return {
        "accuracy": {
            name: training.evaluate(one, splits.test, precision="fp32")["accuracy"] for name, one in teachers.items()
        },
        "entropy": {f"{t:g}": Categorical(logits=logits / t).entropy().mean().item() for t in TEMPERATURES},
        "stored": [stored(logits, top) for top in STORED],
        "environment": runtime.versions.environment(torch.device("cpu")),
    }


def stored(logits: Tensor, top: int) -> dict[str, Any]:
    """Return the size of a record with the largest logits, and the divergence of what is restored from it.

    Args:
        logits: the teacher's logits, shape [n, C].
        top: number of logits that are stored; 0: all.
    """
    form = StoredOutputs(logits.shape[1], 0, top)
    restored, _ = form.unpack(form.pack(logits, logits[:, :0]))
    kl = {f"{t:g}": losses.kd(restored, logits, temperature=t).item() / t**2 for t in TEMPERATURES}
    return {"top": top, "bytes": 2 * form.width, "kl": kl}


def two_digits(value: float) -> str:
    """Return a number below 1 with two significant digits and without an exponent."""
    return f"{value:.{1 - math.floor(math.log10(value))}f}"


def tables(result: dict[str, Any]) -> str:
    """Return the tables of what `measure` returned, as Markdown."""
    accuracies = [[name, f"{100 * one:.1f}"] for name, one in result["accuracy"].items()]
    rows = [
        [one["top"] or "all", *(two_digits(one["kl"][f"{t:g}"]) for t in TEMPERATURES), f"{one['bytes']} B"]
        for one in result["stored"]
    ]
    heading = ["logits stored", *(f"KL at temperature {t:g}" for t in TEMPERATURES), "size"]
    entropy = ", ".join(f"{value:.1f} at temperature {t}" for t, value in result["entropy"].items())
    return "\n\n".join(
        [
            markdown_table(["teacher", "test accuracy, %"], accuracies),
            markdown_table(heading, rows),
            f"Entropy of the teacher's probabilities: {entropy}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="checkpoints of the teachers")
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--print", default="", metavar="FILE", help="print the tables of a JSON file")
    given = parser.parse_args()
    if not given.print and not given.weights:
        parser.error("give --weights NAME=FILE … or --print FILE")
    result = runtime.read_json(Path(given.print)) if given.print else measure(given)
    if given.out:
        runtime.write_json(Path(given.out), result)
    print(tables(result))


if __name__ == "__main__":
    main()
