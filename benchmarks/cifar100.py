"""The CIFAR-100 table: teachers, students, tuning and ablation, in slices; what is finished is not trained again.

    python benchmarks/cifar100.py --data-root DIR [--plan published|small] [--stage table|tune|ablation] [--minutes 9]

Stage `table` is the comparison; `tune` compares the choices of IC-KD on images held out of train, by a teacher that did
not see them; `ablation` the same choices on the test images.

`published`: the field's protocol and pairs, for a GPU. `small`: ResNet20→ResNet8 on a fixed, stratified 10,000 training
images and the whole test set, for a CPU. A call that runs out of its minutes keeps what it has and exits with 75; the
same call goes on. Each finished run becomes a JSON file in benchmarks/results/cifar100-PLAN/STAGE: configuration,
commit, device, curves, summary. `python -m ickd_lib report benchmarks/results/cifar100-PLAN/table` makes the table.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ickd_lib import data, runtime, training
from ickd_lib.training import Recipe, Student

UNFINISHED = 75
OTHERS = ("ce", "kd", "dkd", "ckd", "refilled")
# What the ablation changes, one at a time; and what takes the place of retrieval.
CHOICES = (
    "ickd",
    "ickd(order='random')",
    "ickd(nicd=0)",
    "ickd(picd=0)",
    "picd",
    "nicd",
    "ickd(positives=1)",
    "ickd(positives=4)",
    "ickd(positives=32)",
    "ickd(negatives=8)",
    "ickd(negatives=128)",
    "ickd(aggregation_temperature=0.02)",
    "ickd(aggregation_temperature=None)",
    "ickd(kappa=0.05)",
    "ickd(kappa=0.2)",
    "ickd(picd=1.0)",
    "ickd(nicd=0.25)",
    "ickd(nicd=1.0)",
    "ickd(nicd=2.0)",
    "ickd(average='probabilities')",
    "ickd(query='view')",
    "ickd(form='hinge')",
    "ickd(per_class=True)",
    "ickd(anchor='aggregate')",
)


@dataclass(frozen=True)
class Plan:
    """Who is trained on what, how long.

    pairs: teacher and student, with how many seeds.  best: the other method that IC-KD is added to.
    student: None for the recipe published for the pair.  labels: of the students' training images; 0: all.
    """

    pairs: tuple[tuple[str, str, int], ...]
    teacher: Recipe
    student: Recipe | None
    labels: int = 0
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
        teacher=Recipe(),
        student=None,
    ),
    "small": Plan(
        pairs=(("resnet20", "resnet8", 3),),
        teacher=Recipe(epochs=20, lr=0.1, schedule="onecycle"),
        student=Recipe(epochs=20, lr=0.1, schedule="onecycle"),
        labels=10_000,
    ),
}


def of_stage(stage: str, plan: Plan, pair: tuple[str, str]) -> list[str]:
    """The methods that are trained, with the weights published for the pair."""
    if stage == "table":
        named = [training.published(name, *pair).method for name in OTHERS]
        best = training.published(plan.best, *pair).method
        return [*named, "ickd", f"{best}+ickd"]
    return list(CHOICES)


def record(history: training.History, folder: Path) -> None:
    """Write a finished run as one JSON file; class names, which every run repeats, are left out."""
    assert history.folder is not None
    config = runtime.Run(history.folder).config
    config["settings"]["data"].pop("classes", None)
    name = re.sub(r"[^\w.=+-]+", "-", history.folder.name)
    runtime.write_json(
        folder / f"{name}.json", {"config": config, "epochs": history.epochs, "summary": history.summary}
    )


def train(stage: str, plan: Plan, given: argparse.Namespace) -> None:
    """Everything of a stage, pair after pair; all students of a seed share batches and the teacher's passes."""
    tuning = stage == "tune"
    options = {"device": given.device, "memo": Path(given.runs, "memo"), "progress": sys.stderr.isatty()}
    results = Path(__file__).parent / "results" / f"cifar100-{given.plan}" / stage
    pairs = plan.pairs if stage == "table" else plan.pairs[:1]
    for teacher_name, name, seeds in pairs:
        whole = data.load("cifar100", given.data_root, val=5000 if tuning else 0, download=given.download)
        teacher = training.pretrain(
            teacher_name, whole, recipe=plan.teacher, runs=given.runs, device=given.device, evaluate_every=10
        )
        splits = data.load("cifar100", given.data_root, labels=plan.labels, val=5000 if tuning else 0)
        recipe = plan.student or training.published("kd", teacher_name, name).recipe
        for seed in range(seeds if stage == "table" else plan.seeds_of_choices):
            every = of_stage(stage, plan, (teacher_name, name))
            for some in [every[i : i + given.together] for i in range(0, len(every), given.together)]:
                students = [Student(name, method, seed) for method in some]
                found = training.distill(
                    students,
                    splits,
                    teacher=teacher,
                    recipe=recipe,
                    data_seed=seed,
                    evaluate_every=max(1, recipe.epochs // 10),
                    runs=Path(given.runs, stage),
                    **options,
                )
                for history in found.values():
                    record(history, results)
                    seen = history.summary["val_accuracy" if tuning else "accuracy"]
                    print(f"{history.summary['method']} seed {seed}: {seen:.2%}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--download", action="store_true", help="download CIFAR-100 where it is not there")
    parser.add_argument("--plan", default="published", choices=PLANS)
    parser.add_argument("--stage", default="table", choices=("table", "tune", "ablation"))
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many, to go on later; 0: never")
    parser.add_argument("--together", type=int, default=8, help="students of one pass")
    parser.add_argument("--runs", default="runs/cifar100", help="folder of run folders, teachers and the memo")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args()
    if given.minutes:
        # As Ctrl-C does: training stops between two steps, with a checkpoint.
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
    try:
        train(given.stage, PLANS[given.plan], given)
    except KeyboardInterrupt:
        print("not finished; the same call goes on from here", file=sys.stderr)
        return UNFINISHED
    return 0


if __name__ == "__main__":
    sys.exit(main())
