"""Whether being fast costs accuracy: the usual loop and ours, the same protocol, the last epoch's test accuracy.

    python benchmarks/accuracy.py --data-root DIR [--images 5000] [--epochs 8] [--seeds 3] [--out FILE]

The teacher is trained first (on all images), kept, and found again; finished trainings are found again too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from loops import Usual, quiet

from ickd_lib import data, runtime, training


def usual(teacher: Any, student: str, splits: data.Splits, recipe: training.Recipe, seed: int, device: str) -> float:
    where = runtime.device(device)
    loop = Usual(teacher, student, splits.train, where, recipe, seed)
    for _ in range(recipe.epochs):
        loop.epoch()
    loop.student.set_normalisation(splits.train.mean, splits.train.std)
    return training.evaluate(loop.student.eval(), splits.test.to(where), precision="fp32")["accuracy"]


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
    """Accuracies of each way, a seed each, with mean and standard deviation."""
    splits = data.load("cifar100", root)
    if Path(pair[0], "config.json").is_file():
        teacher = training.load(pair[0], device=device)
    else:
        to_teacher = training.Recipe(epochs=8, schedule="onecycle", lr=0.1)
        teacher = training.pretrain(pair[0], splits, recipe=to_teacher, runs=folder, device=device)
    pair = teacher.name, pair[1]
    if images:
        splits = data.Splits(splits.train.few(images), splits.val, splits.test)
    recipe = training.Recipe(epochs=epochs, schedule="cosine")
    found: dict[str, list[float]] = {"usual": [], "ours": [], "ours, memo": []}
    for seed in range(seeds):
        kept = Path(folder, "usual", f"{runtime.fingerprint(pair, images, vars(recipe), teacher.identity)}-{seed}.json")
        if not kept.is_file():
            with quiet():
                accuracy = usual(teacher, pair[1], splits, recipe, seed, device)
            runtime.write_json(kept, {"accuracy": accuracy})
        found["usual"].append(json.loads(kept.read_text())["accuracy"])
        for way, given in (("ours", {}), ("ours, memo", {"memo": Path(folder, "memo")})):
            (history,) = training.distill(
                [training.Student(pair[1], "kd", seed)],
                splits,
                teacher=teacher,
                recipe=recipe,
                data_seed=seed,
                device=device,
                evaluate_every=epochs,
                runs=Path(folder, way.replace(", ", "-")),
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
    parser.add_argument("--data-root", required=True, help="folder of cifar-100-python")
    parser.add_argument("--images", type=int, default=5000, help="of train, stratified; 0: all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--pair", default="resnet20,resnet8", help="teacher (a name, or the folder of its run) and student"
    )
    parser.add_argument("--runs", default="runs/speed", help="folder of what is trained")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", default="benchmarks/results/accuracy.json", help="file of the results")
    given = parser.parse_args()
    options = {key: getattr(given, key) for key in ("images", "epochs", "seeds", "device")}
    result = measure(given.data_root, pair=tuple(given.pair.split(",")), folder=given.runs, **options)
    facts = runtime.environment(runtime.device(given.device))
    runtime.write_json(given.out, {"machine": facts, **result})
    for key, value in result.items():
        print(f"{key}: {value}")
