"""Trains the teachers and students of the CIFAR-100 tables, or tunes IC-KD; finished runs are not trained again.

    python benchmarks/cifar100.py --data-root DIR [--plan published|strong|small] [--stage table|tune]

In stage `table`, the methods are compared on the test images. In stage `tune`, the choices of IC-KD are changed one at
a time and compared on training images that are held out, on which neither the students nor the teacher are trained. The
defaults were chosen in this stage, which is also the ablation of IC-KD.

Plan `published`, for a GPU, has the published protocol and pairs. With plan `strong`, the first pair is trained for
twice as many epochs with the recipe of MLKD. With plan `small`, for a CPU, ResNet20→ResNet8 is trained on a fixed,
stratified subset of 10,000 training images and evaluated on all test images.

For each finished run, a JSON file with its configuration, commit, device, curves and summary is written to OUT/STAGE. A
run with such a file is not trained again. `ickd report OUT/table --figure FILE.png` writes the table and a figure with
the published numbers, and `ickd report OUT/tune --baseline ickd` writes the ablation.

With --minutes, the script stops after that time: it writes a checkpoint and exits with status 75, and the same call
continues the training. When a student diverges, the others are still trained to the end; then a message with the name
of the diverged student is printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tables import already_written, limited, passes, write_finished

from ickd_lib import data, methods, runtime, training
from ickd_lib.training import Recipe, Student

PROTOCOL = Recipe()
SHORT = Recipe(epochs=60, schedule="cosine")
# The choices of IC-KD in stage `tune`. Each differs from the defaults in one respect. With `order='random'` the
# in-context samples are drawn at random from the same classes instead of retrieved.
CHOICES = (
    "ickd",
    "ickd(order='random')",
    "ickd(nicd=0)",
    "ickd(picd=0)",
    "picd",
    "nicd",
    "ickd(positives=1)",
    "ickd(positives=32)",
    "ickd(negatives=8)",
    "ickd(negatives=32)",
    "ickd(negatives=512)",
    "ickd(aggregation_temperature=0.02)",
    "ickd(aggregation_temperature=None)",
    "ickd(kappa=0.05)",
    "ickd(kappa=0.2)",
    "ickd(picd=3.0)",
    "ickd(nicd=0.5)",
    "ickd(nicd=2.0)",
    "ickd(nicd=10.0)",
    "ickd(kd=9.0)",
    "ickd(average='probabilities')",
    "ickd(query='view')",
    "ickd(form='hinge')",
    "ickd(form='hinge', nicd=50.0)",  # the hinge's gradient lacks the factor 1/κ
    "ickd(per_class=True)",
    "ickd(anchor='aggregate')",
    "nicd(nicd=5.0)",
)
# Weights of the other methods, which are compared in stage `tune` too, because large weights have an advantage in so
# short a training.
SCALES = (
    "ce",
    "kd",
    "kd(kd=9.0)",
    "dkd(nckd=2.0)",
    "dkd",
    "dkd(tckd=3.0, nckd=24.0)",
    "ckd(ckd=10.0)",
    "ckd(ckd=30.0)",
    "ckd",
    "ckd(ckd=300.0)",
)


@dataclass(frozen=True)
class Plan:
    """The networks, recipes, data and methods of a table.

    Args:
        pairs: teacher, student and number of seeds of each pair.
        teacher: recipe of the teachers in stage `table`.
        tuner: recipe of the teachers in stage `tune`.
        student: recipe of the students in stage `table`; None for the one published for the pair.
        short: recipe of the students in stage `tune`.
        labels: number of training images of the students; 0 for all.
        others: the methods with which IC-KD is compared. Weights in brackets were the best in stage `tune`.
        best: the method that is also combined with IC-KD and, because IC-KD contains KD, with KD for comparison.
        seeds_of_choices: number of seeds in stage `tune`.
    """

    pairs: tuple[tuple[str, str, int], ...]
    teacher: Recipe = PROTOCOL
    tuner: Recipe = SHORT
    student: Recipe | None = None
    short: Recipe = SHORT
    labels: int = 0
    others: tuple[str, ...] = ("ce", "kd", "kd(kd=9.0)", "dkd", "ckd", "refilled")
    best: str = "dkd"
    seeds_of_choices: int = 3


PLANS = {
    "published": Plan(
        pairs=(
            ("resnet32x4", "resnet8x4", 3),
            ("wrn_40_2", "wrn_16_2", 1),
            ("resnet56", "resnet20", 1),
            ("vgg13", "vgg8", 1),
            ("resnet32x4", "ShuffleV2", 1),
            ("ResNet50", "MobileNetV2", 1),
            ("wrn_40_2", "wrn_40_1", 1),
            ("resnet110", "resnet32", 1),
            ("resnet32x4", "ShuffleV1", 1),
            ("wrn_40_2", "ShuffleV1", 1),
        ),
    ),
    "strong": Plan(
        pairs=(("resnet32x4", "resnet8x4", 3),),
        student=training.published("mlkd", "resnet32x4", "resnet8x4").recipe,
        others=("kd", "mlkd", "mlkd(standardised=True)"),
        best="mlkd(standardised=True)",
    ),
    "small": Plan(
        pairs=(("resnet20", "resnet8", 3),),
        teacher=Recipe(epochs=20, lr=0.1, schedule="onecycle"),
        tuner=Recipe(epochs=10, lr=0.1, schedule="onecycle"),
        student=Recipe(epochs=15, lr=0.1, schedule="onecycle"),
        short=Recipe(epochs=10, lr=0.1, schedule="onecycle"),
        labels=10_000,
        others=("ce", "kd", "kd(kd=9.0)", "dkd", "ckd", "ckd(ckd=30.0)", "refilled"),
        best="ckd",
    ),
}


def weighted(method: str, pair: tuple[str, str]) -> str:
    """Return a method with the weights published for a pair; with its defaults if none are published for the pair."""
    try:
        return training.published(method, *pair).method
    except runtime.InputError:
        return methods.describe(methods.create(method))


def of_stage(stage: str, plan: Plan, pair: tuple[str, str]) -> list[str]:
    """Return the methods that are trained for a pair in a stage, with the weights published for the pair."""
    if stage == "table":
        named = [weighted(name, pair) for name in plan.others]
        best = weighted(plan.best, pair)
        return [*named, "ickd", "ickd(order='random')", f"{best}+kd", f"{best}+ickd"]
    return [*CHOICES, *SCALES]


def train(stage: str, plan: Plan, given: argparse.Namespace) -> list[str]:
    """Train all students of a stage, pair after pair. Students of one pass share the batches and the teacher's outputs.

    Args:
        stage: "table" or "tune".
        plan: what to train.
        given: the script's arguments.
    Returns:
        A message for each pass in which students diverged, with their names.
    """
    tuning, failed = stage == "tune", []
    runs, out = Path(given.runs, given.plan, stage), Path(given.out, stage)
    load = partial(data.load, "cifar100", given.data_root, val=0.1 if tuning else 0.0, download=given.download)
    options = {"device": given.device, "progress": sys.stderr.isatty()}
    for teacher_name, name, seeds in plan.pairs[: 1 if tuning else given.pairs or None]:
        pair, done = (teacher_name, name), already_written(out)
        every = [weighted(method, pair) for method in given.methods or of_stage(stage, plan, pair)]
        queue = [
            (seed, some)
            for seed in given.seeds or range(plan.seeds_of_choices if tuning else seeds)
            for some in passes([method for method in every if (*pair, method, seed) not in done], given.together)
        ]
        if not queue:
            continue
        to_teacher = plan.tuner if tuning else plan.teacher
        teacher = training.pretrain(teacher_name, load(), recipe=to_teacher, runs=given.runs, **options)
        write_finished(Path(given.runs, "teachers"), Path(given.out, "teachers"))
        splits = load(labels=plan.labels)
        recipe = plan.short if tuning else plan.student or training.published("kd", *pair).recipe
        for seed, some in queue:
            try:
                training.distill(
                    [Student(name, method, seed) for method in some],
                    splits,
                    teacher=teacher,
                    recipe=recipe,
                    data_seed=seed,
                    evaluate_every=recipe.epochs if tuning else max(1, recipe.epochs // 10),
                    runs=runs,
                    teacher_cache=Path(given.runs, "teacher_cache"),
                    **options,
                )
            except runtime.Diverged as error:  # the other students of the pass are finished
                failed.append(str(error))
            finally:  # also after a stop, because some students may have been finished before it
                for summary in write_finished(runs, out):
                    accuracy = summary["val_accuracy" if tuning else "accuracy"]
                    print(f"{summary['method']} seed {summary['data_seed']}: {accuracy:.2%}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--download", action="store_true", help="download CIFAR-100 if the folder lacks it")
    parser.add_argument("--plan", default="published", choices=PLANS, help="networks, recipes and data")
    parser.add_argument("--stage", default="table", choices=("table", "tune"), help="comparison or tuning")
    parser.add_argument("--minutes", type=float, default=0, help="minutes after which to stop; 0: never")
    parser.add_argument("--pairs", type=int, default=0, help="train only the first pairs of the plan; 0: all")
    parser.add_argument("--methods", nargs="*", help="methods to train; by default those of the stage")
    parser.add_argument("--seeds", nargs="*", type=int, help="seeds to train; by default those of the plan")
    parser.add_argument("--together", type=int, default=8, help="largest number of students in one pass")
    parser.add_argument("--runs", default="runs/cifar100", help="folder of runs, teachers and the teacher cache")
    parser.add_argument("--out", default="", help="folder of the JSON files; by default RUNS/PLAN/json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_args()
    given.out = given.out or Path(given.runs, given.plan, "json")
    return limited(lambda: train(given.stage, PLANS[given.plan], given), given.minutes)


if __name__ == "__main__":
    sys.exit(main())
