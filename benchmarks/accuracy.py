"""Compares the test accuracy of the usual loop and of `training.distill` after the last epoch of the same protocol.

    python benchmarks/accuracy.py --data-root DIR [--images 5000] [--epochs 8] [--seeds 3] [--out FILE]

The teacher is first trained on all images. The teacher and every finished training are kept in --runs, and the next
call with the same settings uses them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from loops import UsualLoop

from ickd_lib import data, runtime, training


def usual(teacher: Any, student: str, splits: data.Splits, recipe: training.Recipe, seed: int, device: str) -> float:
    """Train a student with the usual loop and return its test accuracy, a fraction.

    Args:
        teacher: the teacher, a network.
        student: name of the student's network.
        splits: the data.
        recipe: epochs, learning rates and optimiser.
        seed: seed of the student's initial weights and of the order of the images.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """
    chosen = runtime.device(device)
    loop = UsualLoop(teacher, student, splits.train, chosen, recipe, seed)
    for _ in range(recipe.epochs):
        loop.epoch()
    loop.student.set_normalisation(splits.train.mean, splits.train.std)
    return training.evaluate(loop.student.eval(), splits.test.to(chosen), precision="fp32")["accuracy"]


def measure(
    root: str,
    *,
    images: int = 5000,
    epochs: int = 8,
    seeds: int = 3,
    pair: tuple[str, str] = ("resnet20", "resnet8"),
    device: str = "auto",
    folder: str = "runs/speed",
) -> dict[str, Any]:
    """Train KD students with the usual loop, with `distill`, and with `distill` and a teacher cache.

    Args:
        root: folder that contains cifar-100-python.
        images: number of training images of the students, stratified; 0 for all.
        epochs: number of epochs of the students.
        seeds: number of students that each loop trains.
        pair: the teacher (a model's name or its run folder) and the student's network.
        device: "auto", "cpu", "cuda" or "cuda:N".
        folder: folder in which the runs are kept.
    Returns:
        The accuracies of each loop, one for each seed, with their mean and standard deviation in percent.
    """
    splits = data.load("cifar100", root)
    if Path(pair[0], "config.json").is_file():
        teacher = training.load(pair[0], device=device)
    else:
        to_teacher = training.Recipe(epochs=8, schedule="onecycle", lr=0.1)
        teacher = training.pretrain(pair[0], splits, recipe=to_teacher, runs=folder, device=device)
    pair = teacher.name, pair[1]
    if images:
        splits = splits._replace(train=splits.train.few(images))
    recipe = training.Recipe(epochs=epochs, schedule="cosine")
    found: dict[str, list[float]] = {"usual": [], "ickd_lib": [], "ickd_lib, teacher cache": []}
    for seed in range(seeds):
        kept = Path(folder, "usual", f"{runtime.fingerprint(pair, images, vars(recipe), teacher.identity)}-{seed}.json")
        if not kept.is_file():
            runtime.write_json(kept, {"accuracy": usual(teacher, pair[1], splits, recipe, seed, device)})
        found["usual"].append(json.loads(kept.read_text())["accuracy"])
        for way, given in (
            ("ickd_lib", {}),
            ("ickd_lib, teacher cache", {"teacher_cache": Path(folder, "teacher_cache")}),
        ):
            (history,) = training.distill(
                [training.Student(pair[1], "kd", seed)],
                splits,
                teacher=teacher,
                recipe=recipe,
                data_seed=seed,
                device=device,
                evaluate_every=epochs,
                runs=Path(folder, re.sub(r"\W+", "-", way)),
                progress=False,
                **given,
            ).values()
            found[way].append(history.summary["accuracy"])
    result: dict[str, Any] = {"pair": "→".join(pair), "images": images or 50_000, "epochs": epochs, "seeds": found}
    for way, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        result[way] = f"{100 * statistics.mean(values):.2f} ± {100 * spread:.2f}"
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder that contains cifar-100-python")
    parser.add_argument("--images", type=int, default=5000, help="number of training images of the students; 0: all")
    parser.add_argument("--epochs", type=int, default=8, help="number of epochs of the students")
    parser.add_argument("--seeds", type=int, default=3, help="number of students that each loop trains")
    parser.add_argument(
        "--pair", default="resnet20,resnet8", help="teacher (a model's name or its run folder) and student"
    )
    parser.add_argument("--runs", default="runs/speed", help="folder of the teacher, the students and the cache")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default="benchmarks/results/accuracy.json", help="file of the results")
    given = parser.parse_args()
    options = {key: getattr(given, key) for key in ("images", "epochs", "seeds", "device")}
    result = measure(given.data_root, pair=tuple(given.pair.split(",")), folder=given.runs, **options)
    facts = runtime.environment(runtime.device(given.device))
    runtime.write_json(given.out, {"machine": facts, **result})
    for key, value in result.items():
        print(f"{key}: {value}")
