"""The CIFAR-100 table: teachers, students and the tuning of IC-KD, in slices; what is finished is not trained again.

    python benchmarks/cifar100.py --data-root DIR [--plan published|strong|small] [--stage table|tune]

Stage `table` is the comparison, on the test images. `tune` changes IC-KD's choices one at a time and compares them on
images held out of train, which neither student nor teacher saw: defaults are chosen by it, and it is their ablation.

`published`: the field's protocol and pairs, for a GPU. `strong`: twice as many epochs with RandAugment, the first pair.
`small`: ResNet20→ResNet8 on a fixed, stratified 10,000 training images and the whole test set, for a CPU.

Each finished run becomes a JSON file in OUT/STAGE: configuration, commit, device, curves, summary. What is there is
not trained again. `python -m ickd_lib report OUT/table --figure FILE.png` makes the table and a figure beside the
published numbers, `report OUT/tune --baseline ickd` the ablation.

With --minutes, a call that runs out of them keeps what it has and exits with 75; the same call goes on. A student that
diverges is named at the end, with exit status 1; the others are finished. --parts DIR keeps teachers and unfinished
students there as well, in files of at most 15 MiB, and takes them from there where they are missing: with DIR and OUT a
machine that forgets all else goes on.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ickd_lib import data, methods, results, runtime, training
from ickd_lib.training import Recipe, Student

UNFINISHED = 75
PART = 15 * 2**20  # bytes
PROTOCOL = Recipe()
SHORT = Recipe(epochs=60, schedule="cosine")
# What tuning changes, one at a time; `order='random'` takes random samples of the right classes, not retrieved ones.
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
    "ickd(form='hinge', nicd=50.0)",  # no 1/κ in its gradient
    "ickd(per_class=True)",
    "ickd(anchor='aggregate')",
    "nicd(nicd=5.0)",
)
# And the scale of other methods, since so short a training rewards a large one.
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
    """Who is trained on what, how long.

    pairs: teacher and student, with how many seeds.
    teacher, tuner: the recipes of the teachers, of the table and of tuning.
    student: None for the recipe published for the pair.  short: the one of tuning.
    labels: of the students' training images; 0: all.  augment: of the students' training images.
    others: what IC-KD is compared with; the weights in brackets were the best in tuning.
    best: the one it is added to, as KD is, which IC-KD contains.
    """

    pairs: tuple[tuple[str, str, int], ...]
    teacher: Recipe = PROTOCOL
    tuner: Recipe = SHORT
    student: Recipe | None = None
    short: Recipe = SHORT
    labels: int = 0
    augment: str = "crop"
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
        student=Recipe(epochs=480),
        augment="randaugment",
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


def of_stage(stage: str, plan: Plan, pair: tuple[str, str]) -> list[str]:
    """The methods that are trained, with the weights published for the pair."""
    if stage == "table":
        named = [training.published(name, *pair).method for name in plan.others]
        best = training.published(plan.best, *pair).method
        return [*named, "ickd", "ickd(order='random')", f"{best}+kd", f"{best}+ickd"]
    return [*CHOICES, *SCALES]


def passes(every: list[str], together: int) -> list[list[str]]:
    """The students of each pass. What a GPU cannot replay goes by itself, or it would keep the others from it."""
    alone = [[method] for method in every if "query='view'" in method]
    rest = [method for method in every if [method] not in alone]
    return [rest[i : i + together] for i in range(0, len(rest), together)] + alone


def record(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Write each finished run of the folder as one JSON file; class names, which every run repeats, are left out.

    Returns:
        The summaries of those that had none.
    """
    found = []
    for run in map(runtime.Run, sorted(path.parent for path in folder.glob("*/summary.json"))):
        path = out / (re.sub(r"[^\w.=+-]+", "-", run.folder.name) + ".json")
        if not path.exists() and run.summary:
            config = run.config
            config["settings"]["data"].pop("classes", None)
            runtime.write_json(path, {"config": config, "epochs": run.metrics, "summary": run.summary})
            found.append(run.summary)
    return found


def keep(runs: Path, parts: Path) -> None:
    """Teachers and unfinished students as one archive in parts; what nothing needs to go on is left out."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in sorted(config.parent for config in runs.rglob("config.json")):
            done = (folder / "summary.json").exists()
            if done and folder.parent.name != "teachers":
                continue
            for file in sorted(folder.iterdir()):
                if not (done and file.name == "checkpoint.pt"):
                    archive.add(file, file.relative_to(runs))
    before, written = set(parts.glob("runs.tar.*")), set()
    for at, start in enumerate(range(0, len(whole := packed.getbuffer()), PART)):
        written.add(path := parts / f"runs.tar.{at:02}")
        with runtime.replacing(path) as part:
            part.write_bytes(whole[start : start + PART])
    for old in before - written:
        old.unlink()


def restore(parts: Path, runs: Path) -> None:
    """Unpack what `keep` wrote; a run that is there stays as it is."""
    if not (whole := b"".join(part.read_bytes() for part in sorted(parts.glob("runs.tar.*")))):
        return
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        new = [file for file in archive if not (runs / file.name).parent.exists()]
        archive.extractall(runs, new, filter="data")


def finished(folder: Path) -> set[tuple[str, str, str, int]]:
    """Teacher, student, method and seed of each run that has its JSON file in the folder."""
    found = results.finished([folder]) if any(folder.glob("*.json")) else []
    return {(one["teacher"], one["network"], one["method"], one["data_seed"]) for one in found}


def train(stage: str, plan: Plan, given: argparse.Namespace) -> list[str]:
    """Everything of a stage, pair after pair; all students of a seed share batches and the teacher's passes.

    Returns:
        A line for each student that diverged.
    """
    tuning, failed = stage == "tune", []
    runs, out = Path(given.runs, given.plan, stage), Path(given.out, stage)
    load = partial(data.load, "cifar100", given.data_root, val=0.1 if tuning else 0.0, download=given.download)
    options = {"device": given.device, "progress": sys.stderr.isatty()}
    for teacher_name, name, seeds in plan.pairs[:1] if tuning else plan.pairs:
        pair, done = (teacher_name, name), finished(out)
        named = [training.published(method, *pair).method for method in given.methods or of_stage(stage, plan, pair)]
        every = [methods.describe(methods.create(method)) for method in named]
        queue = [
            (seed, some)
            for seed in given.seeds or range(plan.seeds_of_choices if tuning else seeds)
            for some in passes([method for method in every if (*pair, method, seed) not in done], given.together)
        ]
        if not queue:
            continue
        taught = plan.tuner if tuning else plan.teacher
        teacher = training.pretrain(teacher_name, load(), recipe=taught, runs=given.runs, **options)
        record(Path(given.runs, "teachers"), Path(given.out, "teachers"))
        splits = load(labels=plan.labels, augment=plan.augment)
        usual = plan.student or training.published("kd", *pair).recipe
        recipe = plan.short if tuning else usual
        while queue:
            seed, some = queue.pop(0)
            try:
                training.distill(
                    [Student(name, method, seed) for method in some],
                    splits,
                    teacher=teacher,
                    recipe=recipe,
                    data_seed=seed,
                    evaluate_every=recipe.epochs if tuning else max(1, recipe.epochs // 10),
                    runs=runs,
                    memo=Path(given.runs, "memo"),
                    **options,
                )
            except runtime.Diverged as error:
                if len(some) > 1:  # the others go on, each by itself
                    queue = [(seed, [method]) for method in some] + queue
                else:
                    failed.append(str(error))
            finally:  # also where a stop came when they were finished
                for summary in record(runs, out):
                    seen = summary["val_accuracy" if tuning else "accuracy"]
                    print(f"{summary['method']} seed {summary['data_seed']}: {seen:.2%}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--download", action="store_true", help="download CIFAR-100 where it is not there")
    parser.add_argument("--plan", default="published", choices=PLANS)
    parser.add_argument("--stage", default="table", choices=("table", "tune"))
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many, to go on later; 0: never")
    parser.add_argument("--methods", nargs="*", help="only these; by default those of the stage")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these; by default those of the plan")
    parser.add_argument("--together", type=int, default=8, help="students of one pass")
    parser.add_argument("--runs", default="runs/cifar100", help="folder of run folders, teachers and the memo")
    parser.add_argument("--parts", default="", help="folder that keeps teachers and unfinished students in small files")
    parser.add_argument("--out", default="", help="folder of the JSON files; by default RUNS/PLAN/json")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args()
    given.out = given.out or Path(given.runs, given.plan, "json")
    if given.parts:
        restore(Path(given.parts), Path(given.runs))
    if given.minutes:
        # As Ctrl-C does, also where a shell has it ignored: training stops between two steps, with a checkpoint.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
    try:
        failed = train(given.stage, PLANS[given.plan], given)
    except KeyboardInterrupt:
        print("not finished; the same call goes on from here", file=sys.stderr)
        return UNFINISHED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if given.parts:
            keep(Path(given.runs), Path(given.parts))
    for line in failed:
        print(line, file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
