"""Compares the time of a distillation step with that of the usual loop and with the least time on this machine.

    python benchmarks/speed.py [--data-root DIR] [--rounds 3] [--device auto] [--out benchmarks/results/speed-NAME.json]

Each part is written as soon as it is measured, and parts that the file already contains are not measured again. An
interrupted call can therefore be repeated. docs/speed.md explains the measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TEARDOWN_CUPTI", "0")  # the profiler must not end what captured steps still use

import loops
import machine
import retrieval
import start
import torch
from loops import UsualLoop, random_splits, step_seconds, untrained

from ickd_lib import data, models, runtime, training

PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
THREE = ("kd", "ickd", "ckd")  # methods that are trained in one pass, and one by one
PROFILED = 1024  # number of images in a profile; the evaluation of a profile of more images takes long


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over rounds of the ratio of two times that were measured in the same round."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def measure_pair(
    pair: tuple[str, str], splits: data.Splits, rate: dict[str, float], given: argparse.Namespace
) -> dict[str, Any]:
    """Measure the steps of one teacher and student.

    Args:
        pair: names of the teacher's and of the student's network.
        splits: the images.
        rate: the result of `machine.rates`.
        given: the script's arguments.
    Returns:
        Seconds of each kind of step in each round, ratios between them, and upper bounds.
    """
    teacher_name, name = pair
    device = runtime.device(given.device)
    teacher, bank = untrained(teacher_name, splits, device)
    recipe = training.Recipe(epochs=2, schedule="cosine")
    rounds: dict[str, list[float]] = {}

    def distilled(*methods: str, copies: int = 1, **options: Any) -> float:
        students = [training.Student(name, method, seed) for method in methods for seed in range(copies)]
        return step_seconds(students, splits, teacher=teacher, bank=bank, device=given.device, **options)

    def usual() -> float:
        loop = UsualLoop(teacher, name, splits.train, device, recipe)
        loop.epoch()
        return machine.seconds(loop.epoch, device) / len(loop.loader)

    with tempfile.TemporaryDirectory() as cache:
        distilled("kd", teacher_cache=cache)  # computes the teacher's outputs for all views of this training
        ways = {
            "usual": usual,
            "kd": lambda: distilled("kd"),
            "ickd": lambda: distilled("ickd"),
            "ckd": lambda: distilled("ckd"),
            "three in one pass": lambda: distilled(*THREE),
            "kd, full cache": lambda: distilled("kd", teacher_cache=cache),
        }
        if given.together:
            ways["many, full cache"] = lambda: distilled("kd", teacher_cache=cache, copies=given.together)
        for _ in range(given.rounds):
            for way, measured in ways.items():
                rounds.setdefault(way, []).append(round(measured(), 5))
    precision = runtime.precision("auto", device, min(splits.train.size))
    student, size, batch = models.create(name, **splits.train.spec).to(device), splits.train.size, recipe.batch_size
    least = {
        "kd": batch * machine.floor(student, teacher, size, rate, precision),
        "kd, full cache": batch * machine.floor(student, None, size, rate, precision),
    }
    median = {way: statistics.median(values) for way, values in rounds.items()}
    train = splits.train.to(device)
    evaluation = machine.fastest(lambda: models.predict(student, train), device, rounds=2) * 10_000 / len(train)
    one_by_one = [sum(values) for values in zip(*(rounds[method] for method in THREE), strict=True)]
    times = {way: ratio(rounds["usual"], s) for way, s in rounds.items() if way.startswith("kd")}
    result: dict[str, Any] = {
        "usual_loop_workers": loops.WORKERS,
        "seconds_per_step": rounds,
        "images_per_second": {way: round(batch / s, 1) for way, s in median.items()},
        "times_the_usual": times,
        "ickd_over_kd": ratio(rounds["ickd"], rounds["kd"]),
        "three_in_one_pass_times_three_runs": ratio(one_by_one, rounds["three in one pass"]),
        "floor_seconds": {way: round(s, 5) for way, s in least.items()},
        "floor_times_the_usual": {way: round(median["usual"] / s, 2) for way, s in least.items()},
        "minutes_for_240_epochs_of_cifar100": {
            way: round(240 * (782 * median[way] + evaluation) / 60, 1) for way in ("usual", *times)
        },
    }
    if given.together:
        one = [given.together * s for s in rounds["kd, full cache"]]
        result[f"{given.together}_students_times_one"] = ratio(one, rounds["many, full cache"])
    return result


def profile_pair(pair: tuple[str, str], splits: data.Splits, given: argparse.Namespace) -> dict[str, Any]:
    """Profile the steps of one teacher and student; the arguments are as for `measure_pair`.

    Returns:
        For training with and without a full teacher cache, the share of each kind of operation in the time of all.
    """
    device = runtime.device(given.device)
    few = splits._replace(train=splits.train.few(min(PROFILED, len(splits.train))))
    teacher, _ = untrained(pair[0], few, device)

    def distilled(**options: Any) -> float:
        return step_seconds([training.Student(pair[1], "kd")], few, teacher=teacher, device=given.device, **options)

    with tempfile.TemporaryDirectory() as cache:
        distilled(teacher_cache=cache)
        return {
            "kd": machine.shares(distilled, device),
            "kd, full cache": machine.shares(lambda: distilled(teacher_cache=cache), device),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", default="", help="folder that contains cifar-100-python; without it, images are random"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each kind of step is measured")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="number of steps of a measurement, at least 16; by default 16, and 400 on a GPU",
    )
    parser.add_argument(
        "--together", type=int, default=-1, help="number of students in one pass; by default 0, and 8 on a GPU"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default="", help="file of the results; its default name contains that of the device")
    given = parser.parse_args()
    device = runtime.device(given.device)
    cuda = device.type == "cuda"
    given.together = (8 if cuda else 0) if given.together < 0 else given.together
    count = (given.steps or (400 if cuda else 16)) * 64
    facts = runtime.environment(device) | {
        "device_name": machine.name(device),
        "threads": torch.get_num_threads(),
        "batch": 64,
        "steps": count // 64,
    }
    name = machine.name(device).replace(" ", "-").lower() if cuda else f"cpu-{torch.get_num_threads()}"
    out = Path(given.out or f"benchmarks/results/speed-{name}.json")
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"machine": facts}
    splits = data.load("cifar100", given.data_root) if given.data_root else random_splits(count, 64)
    splits = data.Splits(splits.train.few(count), splits.val, splits.test.subset(torch.arange(64)))
    precision = runtime.precision("auto", device, 32)
    parts: dict[str, Any] = {
        "rates": lambda: {"precision": precision} | machine.rates(device, precision),
        **{"→".join(pair): (lambda pair=pair: measure_pair(pair, splits, found["rates"], given)) for pair in PAIRS},
        "retrieval": lambda: retrieval.measure(rounds=given.rounds, device=given.device),
        "start": start.measure,
        # The profiles are last, because a profiler can disturb what is measured after it.
        **{f"profile of {'→'.join(pair)}": (lambda pair=pair: profile_pair(pair, splits, given)) for pair in PAIRS},
    }
    for part, measure in parts.items():
        if part not in found:
            began = time.perf_counter()
            measured = measure()
            found[part] = measured | {"commit": facts["commit"], "seconds": round(time.perf_counter() - began, 1)}
            runtime.write_json(out, found)
        print(f"\n{part}")
        for key, value in found[part].items():
            if key != "seconds_per_step":
                print(f"  {key}: {value}")
    print(f"\n{out}")


if __name__ == "__main__":
    main()
