"""Is the default of IC-KD ever much worse than labels alone or KD?

    python benchmarks/safe_default.py --data-root DIR --weights FILE [--cells DIR] [--only NAME …] [--tried]
    python benchmarks/safe_default.py --report

Trains students with the defaults of `ce`, `kd` and `ickd`, and with the three earlier defaults of `ickd`, in settings
that differ in classes, number and kind of images, and teacher. No weight is chosen for a setting. `limit` was chosen
on the first four settings, `corrected` on the digits and on beds and couches, and `temperature` on all settings but
those that are marked as held out, whose students were not looked at for any of the three. With --tried, students
are trained with other temperatures and weights of cross-entropy, which were compared before. Methods whose results a
setting has in the JSON file are not trained again.

`--weights` is a checkpoint of a ResNet56 for CIFAR-100, and `--cells` the folder of a detection data set in VOC's
layout, whose boxes are cut out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from own_images import CLASSES
from PIL import Image

from ickd_lib import data, runtime, training
from ickd_lib.data import Splits
from ickd_lib.runs.seeds import paired
from ickd_lib.training import Recipe

METHODS = (
    "ce",
    "kd",
    "ickd",
    "ickd(temperature=4.0)",
    "ickd(temperature=4.0, corrected=False)",
    "ickd(temperature=4.0, limit=None, corrected=False)",
)
TRIED = (
    "ce",
    "ickd",
    "ickd(ce=1.0, temperature=4.0)",
    "ickd(temperature=4.0)",
    "ickd(temperature=2.0)",
    "ickd(temperature=1.0)",
)
OUT = Path(__file__).parent / "results" / "safe_default.json"
FURNITURE = ("bed", "chair", "couch", "lamp", "table", "wardrobe")


@dataclass(frozen=True)
class Setting:
    """Images of the student and of its teacher (a ResNet20, or the given checkpoint if it has no epochs)."""

    images: Callable[[], Splits]
    epochs: int
    teacher_epochs: int
    teachers_images: Callable[[], Splits] | None = None
    held_out: bool = True


def few(splits: Splits, count: int) -> Splits:
    """Return the splits with `count` training images, equally many of each class."""
    return splits._replace(train=splits.train.few(count, 0))


def settings(given: argparse.Namespace) -> dict[str, Setting]:
    """Return the settings by name."""

    def digits(count: int = 0) -> Splits:
        return data.load("digits", labels=count)

    def cifar(count: int, *classes: str) -> Splits:
        splits = data.load("cifar100", given.data_root, classes=classes)
        return few(splits, count) if count else splits

    found = {
        "digits": Setting(lambda: digits(100), 60, 20, digits, False),
        "ten kinds of photographs": Setting(lambda: cifar(1000, *CLASSES), 30, 30, held_out=False),
        "beds and couches": Setting(lambda: cifar(300, "bed", "couch"), 40, 40, held_out=False),
        "CIFAR-100, few images": Setting(lambda: cifar(5000), 20, 0, lambda: cifar(0), False),
        "digits, weak teacher": Setting(lambda: digits(300), 40, 20, lambda: digits(100), False),
        "furniture": Setting(lambda: cifar(3000, *FURNITURE), 20, 20),
        "CIFAR-100, more images": Setting(lambda: cifar(20_000), 4, 0, lambda: cifar(0)),
    }
    if given.cells:
        found["blood cells"] = Setting(
            lambda: few(cells(Path(given.cells), given.runs / "cells"), 600), 15, 8, held_out=False
        )
    return found


def cells(root: Path, folder: Path) -> Splits:
    """Write the annotated boxes of a detection data set as images of 32 × 32 pixels in class folders, and load them."""
    for split in ("train", "test"):
        for name in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            image = Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB")
            for i, one in enumerate(ET.parse(root / "Annotations" / f"{name}.xml").getroot().iter("object")):
                left, top, right, bottom = (
                    int(one.findtext(f"bndbox/{key}", "0")) for key in ("xmin", "ymin", "xmax", "ymax")
                )
                path = folder / split / one.findtext("name", "") / f"{name}-{i}.png"
                if left < right and top < bottom and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.crop((left, top, right, bottom)).resize((32, 32)).save(path)
    return data.load(f"folder:{folder}")


def measure(
    setting: Setting, given: argparse.Namespace, earlier: dict[str, Any], methods: tuple[str, ...]
) -> dict[str, Any]:
    """Train the students of a setting that have no results yet, and return the test accuracies of all."""
    finished = earlier.get("accuracy", {})
    if not (missing := [name for name in methods if name not in finished]):
        return earlier
    splits = setting.images()
    known = setting.teachers_images() if setting.teachers_images else splits
    options: dict[str, Any] = {"runs": given.runs, "device": given.device, "precision": given.precision}
    if setting.teacher_epochs:
        recipe = Recipe(epochs=setting.teacher_epochs, schedule="onecycle", lr=0.1)
        teacher = training.pretrain("resnet20", known, recipe=recipe, **options)
    else:
        teacher = training.pretrain("resnet56", known, weights=given.weights, **options)
    accuracy = training.evaluate(teacher, splits.test)["accuracy"]
    if earlier and accuracy != earlier["teacher_accuracy"]:
        sys.exit(f"the teacher's accuracy is {accuracy}, but {earlier['teacher_accuracy']} in {given.out}")
    histories = training.compare(
        missing,
        splits,
        teacher=teacher,
        seeds=given.seeds,
        recipe=Recipe(epochs=setting.epochs),
        evaluate_every=setting.epochs,
        **options,
    )
    return {
        "held_out": setting.held_out,
        "classes": len(splits.train.classes),
        "images": len(splits.train),
        "test_images": len(splits.test),
        "epochs": setting.epochs,
        "teacher": teacher.name,
        "teacher_accuracy": accuracy,
        "accuracy": finished | {name: [one.summary["accuracy"] for one in found] for name, found in histories.items()},
        "environments": [*earlier.get("environments", []), runtime.environment(runtime.device(given.device))],
    }


def rows(found: dict[str, Any], methods: tuple[str, ...]) -> list[str]:
    """Return the lines of a table of the settings in which all of `methods` were trained."""
    names = " | ".join(f"`{name}`" for name in methods)
    lines = [
        f"| setting | classes | images | teacher, % | {names} | `ickd` minus the better of `ce` and `kd` |",
        "|---|" + "---:|" * (4 + len(methods)),
    ]
    for name, one in found.items():
        if not {*methods, "ce", "kd"} <= one["accuracy"].keys():
            continue
        means = {method: 100 * sum(values) / len(values) for method, values in one["accuracy"].items()}
        cells = [f"{means[method]:.1f}" for method in methods]
        better = max("ce", "kd", key=lambda method: means[method])
        mean, half = paired(*([100 * value for value in one["accuracy"][method]] for method in ("ickd", better)))
        shown = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})".replace("-", "−")
        held_out = " (not used for choices)" if one["held_out"] else ""
        lines.append(
            f"| {name}{held_out} | {one['classes']} | {one['images']:,} | {100 * one['teacher_accuracy']:.1f} | "
            + " | ".join([*cells, shown])
            + " |"
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder of cifar-100-python")
    parser.add_argument("--weights", help="checkpoint of a ResNet56 for CIFAR-100")
    parser.add_argument("--cells", default="", help="folder of a detection data set in VOC's layout")
    parser.add_argument("--only", nargs="+", help="names of settings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/safe_default"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--tried", action="store_true", help="train the changed forms of the default")
    parser.add_argument("--report", action="store_true", help="print the tables of the JSON file")
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name, setting in () if given.report else settings(given).items():
        if not given.only or name in given.only:
            results[name] = measure(setting, given, results.get(name, {}), TRIED if given.tried else METHODS)
            runtime.write_json(given.out, results)
    for methods in (METHODS, TRIED):
        print("\n".join(rows(results, methods)), end="\n\n")
