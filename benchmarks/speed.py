"""How fast a distillation step is, in one run on one machine, against the usual loop and against what the machine can.

    python benchmarks/speed.py [--data-root DIR] [--rounds 3] [--device auto] [--out benchmarks/results/speed-NAME.json]

Each part is written as soon as it is measured, and a part that the file holds is not measured again: what was cut short
goes on. benchmarks/README.md says what the figures mean.
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

import machine
import retrieval
import start
import torch
from loops import Usual, made_up, quiet, step_seconds, untrained

from ickd_lib import data, models, runtime, training

PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
THREE = ("kd", "ickd", "ckd")  # in one pass, or one by one


def ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds, in each of which both were measured."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def steps_of(pair: tuple[str, str], splits: data.Splits, rate: dict[str, float], given: argparse.Namespace) -> dict:
    """One pair's steps, each way in each round."""
    teacher_name, name = pair
    device = runtime.device(given.device)
    teacher, bank = untrained(teacher_name, splits, device)
    recipe = training.Recipe(epochs=2, schedule="cosine")
    rounds: dict[str, list[float]] = {}

    def ours(*methods: str, copies: int = 1, images: data.Splits = splits, **options: Any) -> float:
        students = [training.Student(name, method, seed) for method in methods for seed in range(copies)]
        return step_seconds(students, images, teacher=teacher, bank=bank, device=given.device, **options)

    def usual() -> float:
        with quiet():
            loop = Usual(teacher, name, splits.train, device, recipe)
            loop.epoch()
            began = time.perf_counter()
            loop.epoch()
        return (time.perf_counter() - began) / len(loop.loader)

    with tempfile.TemporaryDirectory() as memo:
        ours("kd", memo=memo)  # fills it
        ways = {
            "usual": usual,
            "kd": lambda: ours("kd"),
            "ickd": lambda: ours("ickd"),
            "ckd": lambda: ours("ckd"),
            "three in one pass": lambda: ours(*THREE),
            "kd, full memo": lambda: ours("kd", memo=memo),
        }
        if given.together:
            ways["many, full memo"] = lambda: ours("kd", memo=memo, copies=given.together)
        for _ in range(given.rounds):
            for way, measured in ways.items():
                rounds.setdefault(way, []).append(round(measured(), 5))
        some = splits._replace(
            train=splits.train.few(min(1024, len(splits.train)))
        )  # a profile of more takes long to read
        ours("kd", memo=memo, images=some)
        profiles = {
            "kd": machine.shares(lambda: ours("kd", images=some), device),
            "kd, full memo": machine.shares(lambda: ours("kd", memo=memo, images=some), device),
        }
    precision = runtime.precision("auto", device, min(splits.train.size))
    student, size, batch = models.create(name, **splits.train.spec).to(device), splits.train.size, recipe.batch_size
    least = {
        "kd": batch * machine.floor(student, teacher, size, rate, precision),
        "kd, full memo": batch * machine.floor(student, None, size, rate, precision),
    }
    median = {way: statistics.median(values) for way, values in rounds.items()}
    began = time.perf_counter()
    models.predict(student, splits.train.to(device))
    evaluation = (time.perf_counter() - began) * 10_000 / len(splits.train)
    alone = [sum(values) for values in zip(*(rounds[method] for method in THREE), strict=True)]
    times = {way: ratio(rounds["usual"], s) for way, s in rounds.items() if way.startswith("kd")}
    result: dict[str, Any] = {
        "seconds_per_step": rounds,
        "images_per_second": {way: round(batch / s, 1) for way, s in median.items()},
        "times_the_usual": times,
        "ickd_over_kd": ratio(rounds["ickd"], rounds["kd"]),
        "three_in_one_pass_times_three_runs": ratio(alone, rounds["three in one pass"]),
        "floor_seconds": {way: round(s, 5) for way, s in least.items()},
        "floor_times_the_usual": {way: round(median["usual"] / s, 2) for way, s in least.items()},
        "minutes_for_240_epochs_of_cifar100": {
            way: round(240 * (782 * median[way] + evaluation) / 60, 1) for way in ("usual", *times)
        },
        "profile": profiles,
    }
    if given.together:
        one = [given.together * s for s in rounds["kd, full memo"]]
        result[f"{given.together}_students_times_one"] = ratio(one, rounds["many, full memo"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="", help="folder of cifar-100-python; without it, random images")
    parser.add_argument("--rounds", type=int, default=3, help="times each way is measured")
    parser.add_argument(
        "--steps", type=int, default=0, help="of a measurement, at least 16; by default 16, on a GPU 400"
    )
    parser.add_argument("--together", type=int, default=-1, help="students of one pass; by default 0, on a GPU 8")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", default="", help="file of the results; by default named by the device")
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
    splits = data.load("cifar100", given.data_root) if given.data_root else made_up(count, 64)
    splits = data.Splits(splits.train.few(count), splits.val, splits.test.subset(torch.arange(64)))
    precision = runtime.precision("auto", device, 32)
    parts: dict[str, Any] = {
        "rates": lambda: {"precision": precision} | machine.rates(device, precision),
        **{"→".join(pair): (lambda pair=pair: steps_of(pair, splits, found["rates"], given)) for pair in PAIRS},
        "retrieval": lambda: retrieval.measure(rounds=given.rounds),
        "start": start.measure,
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
