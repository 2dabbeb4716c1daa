"""Measures how much time distillation adds to a training step of segmentation and of detection.

    python benchmarks/dense.py [--rounds 5] [--out FILE]

No method with a teacher can avoid the teacher's pass on the student's images. Therefore the script prints, for each
method, the time of a step, minus the time of a step without distillation and minus that of the teacher's pass, as a
fraction of the step without distillation. Networks are not trained beforehand, and the measurements of the methods take
turns. Each time is the shortest of the rounds, because other programs can only make a step longer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from ickd_lib import data, models, runtime, tasks, training

STEPS = 16  # of one measurement
PAIRS = {
    "segmentation": ("masks", "resnet20-fcn", "resnet8-fcn", ["ce", "kd", "ckd", "dkd", "ickd"]),
    "detection": ("boxes", "resnet20-fpn", "resnet8-fpn", ["ce", "kd", "ckd", "dkd", "ickd"]),
}


def teacher_seconds(
    teacher: models.Network, student: models.Network, train: data.DenseImages, task: tasks.Task, precision: str, n: int
) -> float:
    """Return the seconds of a teacher's evaluation of a batch, the best mean over `STEPS` of `n` batches."""
    sampler, student = data.Sampler(train), student.train()
    taken = []
    for step, batch in enumerate(sampler.batches(16, data_seed=0, epoch=0)):
        if step == n:
            break
        samples, _ = task.samples(student, batch, precision=precision)
        start = time.perf_counter()
        with torch.no_grad():
            task.samples(teacher, batch, like=None if task.shares_teacher else samples.detach(), precision=precision)
        taken.append(time.perf_counter() - start)
    del taken[0]
    return min(statistics.mean(taken[i : i + STEPS]) for i in range(0, len(taken) - STEPS + 1, STEPS))


def measure(kind: str, *, rounds: int, device: str) -> dict[str, Any]:
    """Return the milliseconds of a step of each method and of the teacher's pass, and what each method adds to them."""
    annotations, large, small, names = PAIRS[kind]
    task, splits = tasks.create(kind), data.load("scenes", annotations=annotations, device=runtime.device(device))
    train = splits.train
    precision = runtime.precision("auto", train.index.device, min(train.size))
    with runtime.seeded(0):
        teacher, student = (models.create(name, **train.spec).to(train.index.device) for name in (large, small))
    teacher.classes = train.classes
    options = {"task": task, "batch_size": 16, "steps": STEPS // 2, "rounds": rounds, "device": device}
    options |= {"precision": precision, "statistic": min}
    steps = training.step_seconds(names, splits, student=small, teacher=teacher, **options)
    frozen = models.frozen(teacher, train.index.device)
    alone = teacher_seconds(frozen, student, train, task, precision, 1 + STEPS * rounds)
    return {
        "precision": precision,
        "step, ms": {name: round(1000 * seconds, 1) for name, seconds in steps.items()},
        "teacher's pass, ms": round(1000 * alone, 1),
        "added beyond the teacher's pass": {
            name: round((seconds - steps["ce"] - alone) / steps["ce"], 3)
            for name, seconds in steps.items()
            if name != "ce"
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of measurements of each method")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default="benchmarks/results/dense_speed.json", help="file of the results")
    given = parser.parse_args()
    found = {kind: measure(kind, rounds=given.rounds, device=given.device) for kind in PAIRS}
    runtime.write_json(given.out, {"machine": runtime.environment(runtime.device(given.device)), **found})
    for kind, numbers in found.items():
        print(kind)
        for key, value in numbers.items():
            print(f"  {key}: {value}")
