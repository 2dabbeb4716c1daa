"""Whose prediction should a student learn from when its teacher is often wrong? The plan is in docs/study.md.

    python benchmarks/noisy_teachers.py --data-root DIR --weights resnet56=FILE wrn_16_2=FILE resnet20=FILE
    python benchmarks/noisy_teachers.py --report

A student is trained with labels and KD. Its target is the same in all epochs: the prediction that a teacher makes for
the image without augmentation, or a mean of the predictions for in-context samples of that image. The predictions are
those of the teacher itself, those of its logits with noise, by which half of the images are predicted wrongly, or only
the class that the teacher predicts. The features by which in-context samples are retrieved are always the teacher's.

With --minutes, the script stops after that time with exit status 75, and the same call continues.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from tables import limited, write_finished
from torch import Tensor

from ickd_lib import data, losses, methods, models, runs, runtime, training
from ickd_lib.memory import MemoryBank, Neighbours
from ickd_lib.runs.findings import markdown_table
from ickd_lib.runs.seeds import paired
from ickd_lib.training import Recipe, Student

TEACHERS, SEEDS = ("resnet56", "wrn_16_2", "resnet20"), (0, 1)
STUDENT, IMAGES, EPOCHS, RATE = "resnet8", 5_000, 20, 0.12
TEMPERATURE, POSITIVES = 4.0, 8
WRONG = 0.5  # share of the training images that the teacher with noise predicts wrongly
KINDS = {
    "clean": "the teacher itself",
    "noise": "with noise",
    "class": "its predicted class only",
    "class_1": "its predicted class only, temperature 1",
}
TARGETS = {
    "own": "the image's own prediction",
    "corrected": "the same, corrected by the label",
    "nearest": f"mean of the {POSITIVES} nearest images of its class",
    "random": f"mean of {POSITIVES} random images of its class",
    "mean": "mean of all other images of its class",
    "any": f"mean of the {POSITIVES} nearest images of any class",
}
LABELS = "labels alone"
OUT = Path(__file__).parent / "results" / "noisy_teachers"


class RowKD(methods.WithLabels):
    """Cross-entropy, and KD whose target is the row of the image in the memory bank."""

    needs = frozenset({"bank"})

    def __init__(self, *, ce: float = 0.1, kd: float = 2.7, temperature: float = TEMPERATURE) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature = kd, temperature

    def teach(self, context: methods.Context) -> dict[str, Tensor]:
        assert context.bank is not None
        target = context.bank.logits[context.bank.rows(context.student.key)]
        return {"kd": self.kd * losses.kd(context.student.logits, target, temperature=self.temperature)}


def predictions(logits: Tensor, labels: Tensor, kind: str, seed: int) -> Tensor:
    """Return the probabilities that a teacher predicts at the temperature of KD, shape [N, C].

    Args:
        logits: of the teacher for N images, shape [N, C].
        labels: classes of the images, shape [N].
        kind: a key of KINDS.
        seed: seed of the noise, which is normal and independent for each image and class.
    """
    if kind in ("class", "class_1"):
        return F.one_hot(logits.argmax(1), logits.shape[1]).float()
    if kind == "noise":
        noise = torch.randn(logits.shape, generator=runtime.generator(seed, "noise"))
        low, high = 0.0, 100.0 * float(logits.std())
        for _ in range(40):  # the strength with which half of the images are predicted wrongly
            strength = (low + high) / 2
            wrong = float(((logits + strength * noise).argmax(1) != labels).float().mean())
            low, high = (strength, high) if wrong < WRONG else (low, strength)
        logits = logits + strength * noise
    return F.softmax(logits / TEMPERATURE, 1)


def target(
    bank: MemoryBank, probabilities: Tensor, name: str, seed: int, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the logits of a target for each row of a bank, [N, C], whose softmax at the temperature is that target.

    Args:
        bank: the teacher's bank.
        probabilities: the teacher's predictions for its rows, shape [N, C].
        name: a key of TARGETS.
        seed: seed of random images.
        temperature: of KD.
    """
    if name in ("nearest", "random"):
        table = bank.table if name == "nearest" else bank.random_table
        further: dict[str, Any] = {} if name == "nearest" else {"seed": seed}
        near, _ = table(positives=POSITIVES, negatives=0, **further)
        probabilities = mean(probabilities, near)
    elif name == "any":
        near = bank.nearest(bank.features, bank.index, k=POSITIVES)
        probabilities = mean(probabilities, Neighbours(bank.rows(near.index), near.similarity, near.mask))
    elif name == "mean":
        same = F.one_hot(bank.labels, len(bank.classes)).float()
        sums, counts = same.T @ probabilities, same.sum(0)
        probabilities = (sums[bank.labels] - probabilities) / (counts[bank.labels, None] - 1)
    logits = temperature * probabilities.clamp(min=1e-6).log()
    return losses.corrected(logits, bank.labels) if name == "corrected" else logits


def mean(probabilities: Tensor, near: Neighbours) -> Tensor:
    """Return the mean prediction for the neighbours of each row, with the default weights of IC-KD."""
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=0.05)
    return (weights[..., None] * probabilities[near.rows]).sum(1)


def train(given: argparse.Namespace) -> list[str]:
    """Train the students that are missing, and return a message for each that diverged."""
    whole, out, failed = data.load("cifar100", given.data_root), Path(given.out), list[str]()
    options: dict[str, Any] = {"device": given.device, "precision": given.precision, "progress": sys.stderr.isatty()}
    checkpoints = dict(one.split("=", 1) for one in given.weights)

    def student(
        folder: str, method: str, seed: int, teacher: models.Network | None = None, bank: MemoryBank | None = None
    ) -> None:
        if any(one["data_seed"] == seed for one in summaries(out / folder)):
            return
        splits = whole._replace(train=whole.train.few(IMAGES, seed))
        try:
            training.distill(
                [Student(STUDENT, method, seed)],
                splits,
                teacher=teacher,
                recipe=Recipe(epochs=EPOCHS, lr=RATE),
                bank=bank,
                data_seed=seed,
                evaluate_every=EPOCHS,
                runs=Path(given.runs, folder),
                **options,
            )
        except runtime.Diverged as error:
            failed.append(str(error))
        write_finished(Path(given.runs, folder), out / folder)

    for seed in given.seeds:
        student("labels", "ce", seed)
        for name in given.teachers:
            teacher = training.pretrain(name, whole, weights=checkpoints[name], runs=given.runs, **options)
            bank = MemoryBank.build(teacher, whole.train.few(IMAGES, seed), precision="fp32")
            for kind in KINDS:
                probabilities = predictions(bank.logits, bank.labels, kind, seed)
                temperature = 1.0 if kind == "class_1" else TEMPERATURE
                method = "row_kd(temperature=1.0)" if kind == "class_1" else "row_kd"
                for one in TARGETS:
                    logits = target(bank, probabilities, one, seed, temperature=temperature)
                    changed = MemoryBank(bank.features, logits, bank.labels, bank.index, bank.classes, norms=bank.norms)
                    student(f"{name}/{kind}/{one}", method, seed, teacher, changed)
    return failed


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Return the summaries of the finished students of a folder."""
    return runs.finished([folder]) if any(folder.glob("*.json")) else []


def report(out: Path) -> str:
    """Return the table: mean accuracies, and differences to the image's own prediction, paired by teacher and seed."""
    found: dict[tuple[str, str], dict[tuple[str, int], float]] = defaultdict(dict)
    for kind in KINDS:
        for one in TARGETS:
            for name in TEACHERS:
                for summary in summaries(out / name / kind / one):
                    found[kind, one][name, summary["data_seed"]] = 100 * summary["accuracy"]
    rows = []
    if labels := [100 * one["accuracy"] for one in summaries(out / "labels")]:
        rows.append(["–", LABELS, len(labels), f"{statistics.fmean(labels):.2f}", ""])
    for (kind, one), cells in found.items():
        shared = [cell for cell in cells if cell in found[kind, "own"]]
        difference = ""
        if one != "own" and len(shared) > 1:
            ours, own = ([found[kind, name][cell] for cell in shared] for name in (one, "own"))
            middle, half = paired(ours, own, 0.95)
            difference = f"{middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f})".replace("-", "−")
        rows.append([KINDS[kind], TARGETS[one], len(cells), f"{statistics.fmean(cells.values()):.2f}", difference])
    head = ["teacher", "target of KD", "cells", "accuracy, %", "to its own prediction, points"]
    return markdown_table(head, rows)


def main() -> int:
    methods.register("row_kd")(RowKD)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--weights", nargs="*", default=[], help="checkpoints of the three teachers, as NAME=FILE")
    parser.add_argument("--teachers", nargs="+", default=TEACHERS, choices=TEACHERS, help="train with these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--minutes", type=float, default=0, help="minutes after which to stop; 0: never")
    parser.add_argument("--runs", default="runs/noisy_teachers", help="folder of the runs")
    parser.add_argument("--out", default=str(OUT), help="folder of the JSON files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--report", action="store_true", help="print the table of the finished runs, and train nothing")
    given = parser.parse_args()
    if given.report:
        print(report(Path(given.out)))
        return 0
    return limited(lambda: train(given), given.minutes)


if __name__ == "__main__":
    sys.exit(main())
