"""Does it matter that in-context samples are near? The study whose plan is docs/study.md; finished runs stay.

    W="resnet56=FILE wrn_16_2=FILE resnet20=FILE"
    python benchmarks/study.py --data-root DIR --stage tune --weights $W
    python benchmarks/study.py --data-root DIR --stage main --weights $W
    python benchmarks/study.py --data-root DIR --stage matched --weights $W
    python benchmarks/study.py --data-root DIR --stage fixed --weights $W
    python benchmarks/study.py --data-root DIR --stage added --weights $W
    python benchmarks/study.py --data-root DIR --stage candidates --weights $W
    python benchmarks/study.py --data-root DIR --stage all --weights $W
    python benchmarks/study.py --report

In stage `tune`, each arm is trained with five settings and evaluated on 5,000 training images that are held out. Stage
`main` trains each arm with its best setting, for each teacher and each subset of the training images, and evaluates it
on the test images, the arms of the primary contrast first. Stage `matched` trains each of these two arms with the
setting of the other one, and stage `fixed` IC-KD with random samples that are drawn once. Stage `added` trains CKD and
KD with the terms of IC-KD added to them, and stage `candidates` variants of IC-KD, in the same cells. Stage `all`
trains some of the arms on all 50,000 training images, with one teacher. `--report` reads the committed JSON files and
prints the tables of docs/study.md. A student that diverges counts as one with an accuracy of 1%, and the tables show
how many did.

A teacher without a file in --weights is trained for 20 epochs on all training images. With --minutes, the script stops
after that time with exit status 75, and the same call continues. With --arms and --teachers, several processes can
train different students at the same time, each with its own --runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from tables import file_of, limited, passes, write, write_finished

from ickd_lib import data, losses, methods, metrics, models, runs, runtime, training
from ickd_lib.memory import MemoryBank
from ickd_lib.runs.seeds import paired
from ickd_lib.training import Recipe, Student
from ickd_lib.training.records import described

TEACHERS = ("resnet56", "wrn_16_2", "resnet20")
STUDENT, IMAGES, EPOCHS = "resnet8", 5_000, 60
RATE, RATES = 0.05, (0.02, 0.12)  # the learning rate of the first three settings of an arm, and those of the others
SCALES = (1 / 3, 1.0, 3.0)  # factors of an arm's weights
TUNING = ("resnet56", 100, 20)  # teacher, seed and epochs of stage `tune`
ALL = ("resnet56", 6)  # teacher and epochs of stage `all`, whose students have all training images
PRIMARY = ("nearest", "random")
SEEDS, MORE = (0,), (0, 1, 2)  # seeds of all arms, and those of the arms in OFTEN and of candidates
OFTEN = ("ce", "kd", "ckd+kd", "random", "nearest")
SHOWN = (  # entry of a summary, its name in the table, factor, decimals
    ("accuracy", "accuracy, %", 100, 2),
    ("top5", "top-5, %", 100, 2),
    ("nll", "NLL", 1, 3),
    ("scaled_nll", "NLL, scaled", 1, 3),
    ("ece", "ECE, %", 100, 2),
    ("agreement", "agreement, %", 100, 2),
)
SECONDARY = ("top5", "scaled_nll", "ece", "agreement")
DIVERGED = 0.01  # the accuracy that a student counts as having if it diverges: that of a guess among 100 classes
STAGES = ("tune", "main", "matched", "fixed", "added", "candidates", "all")
OUT = Path(__file__).parent / "results" / "study"


class OtherNegatives(methods.ICKD):
    """IC-KD whose NICD has other negatives than in-context samples; the other arguments are those of IC-KD.

    separated: "batch" for the teacher's logits of the images of other classes in the batch, "mean" for a single
        negative, the mean logits of all images of the bank.
    """

    def __init__(
        self, *, separated: Literal["batch", "mean"] = "batch", kd: float = 0.9, picd: float = 0.3, nicd: float = 5.0
    ) -> None:
        super().__init__(kd=kd, picd=picd, nicd=0.0)
        self.separated, self.weight, self.limits = separated, nicd, {"nicd": 1.0}
        self.needs |= {"teacher", "bank"}

    def unlimited(self, context: methods.Context) -> dict[str, torch.Tensor]:
        student, teacher, bank = context.student, context.teacher, context.bank
        assert teacher is not None and bank is not None
        own, labels = losses.corrected(teacher.logits, student.labels), student.labels
        negatives, mask = own, labels[:, None] != labels
        if self.separated == "mean":
            negatives, mask = bank.logits.mean(0, keepdim=True), torch.ones_like(mask[:, :1])
        term = losses.nicd(student.logits, own, negatives.expand(len(labels), -1, -1), mask, kappa=self.kappa)
        return super().unlimited(context) | {"nicd": self.weight * term}


def in_context(scale: float, choices: str = "", picd: float = 0.3, nicd: float = 5.0, method: str = "ickd") -> str:
    """Return IC-KD with its default weights, all but that of cross-entropy multiplied by a factor."""
    weights = f"kd={0.9 * scale:.3g}, picd={picd * scale:.3g}, nicd={nicd * scale:.3g}"
    return f"{method}({weights}{', ' if choices else ''}{choices})"


def with_ckd(scale: float, **terms: Any) -> str:
    """Return CKD with the terms of IC-KD added to it; the arguments are those of `in_context`."""
    return f"ckd(ckd={30 * scale:.3g})+{in_context(scale, **terms)}"


# The arms: each is a function of the factor of its weights.
ARMS: dict[str, Callable[[float], str]] = {
    "ce": lambda scale: "ce",
    "kd": lambda scale: f"kd(kd={0.9 * scale:.3g})",
    "lskd": lambda scale: f"lskd(kd={9 * scale:.3g})",
    "dkd": lambda scale: f"dkd(tckd={scale:.3g}, nckd={8 * scale:.3g})",
    "dist": lambda scale: f"dist(inter={2 * scale:.3g}, intra={2 * scale:.3g})",
    "ckd+kd": lambda scale: f"ckd(ckd={30 * scale:.3g})+kd(kd={0.9 * scale:.3g})",
    "crd": lambda scale: f"crd(crd={0.8 * scale:.3g})",
    "nearest": in_context,
    "random": partial(in_context, choices="order='random', redraw=True"),
    "class means": partial(in_context, choices="order='class'"),
    "random positives": partial(in_context, choices="order='random', negatives_order='nearest', redraw=True"),
    "random negatives": partial(in_context, choices="negatives_order='random', redraw=True"),
    "without PICD": partial(in_context, picd=0.0),
    "without NICD": partial(in_context, nicd=0.0),
    "batch as negatives": partial(in_context, choices="separated='batch'", method="other_negatives"),
    "mean as negative": partial(in_context, choices="separated='mean'", method="other_negatives"),
}
UNTUNED = (  # with the setting of `nearest`
    *("class means", "random positives", "random negatives", "without PICD", "without NICD"),
    *("batch as negatives", "mean as negative"),
)
FIXED = {"random, drawn once": partial(in_context, choices="order='random'")}  # with the setting of `random`
WHOLE_BANK = "bank of all images"
CANDIDATES: dict[str, Callable[[float], str]] = {  # with the setting of `nearest`
    "relational": partial(in_context, choices="form='relational'"),
    "residual": partial(in_context, choices="residual=0.5"),
    "dynamic": partial(in_context, choices="dynamic=True"),
    "gate": partial(in_context, choices="gate=1.0"),
    WHOLE_BANK: in_context,
}
CONTRAST = "ckd+kd"
ADDED: dict[str, Callable[[float], str]] = {  # with the setting of CONTRAST
    "corrected": partial(with_ckd, picd=0.0, nicd=0.0),
    "corrected, PICD": partial(with_ckd, nicd=0.0),
    "corrected, PICD, NICD": with_ckd,
    "corrected, random PICD, NICD": partial(with_ckd, choices="order='random', redraw=True"),
}
Setting = tuple[float, float]  # factor of the weights, learning rate
Cells = dict[str, dict[tuple[str, int], dict[str, Any]]]  # summary by arm, and by teacher and seed


def every_arm() -> dict[str, Callable[[float], str]]:
    """Return the arms of all stages."""
    return CANDIDATES | ADDED | FIXED | ARMS


def trials(arm: str, tuned: dict[tuple[str, Setting], float]) -> list[Setting]:
    """Return the five settings of an arm: three factors, then two other learning rates with the best of the factors.

    The arm without weights of its own, `ce`, has five learning rates.

    Args:
        arm: a key of ARMS.
        tuned: the held-out accuracy of each arm and setting that has been trained.
    """
    if arm == "ce":
        return [(1.0, rate) for rate in (RATE, RATE / 5, RATE * 5, *RATES)]
    first = [(scale, RATE) for scale in SCALES]
    best = max(first, key=lambda one: tuned.get((arm, one), 0.0))[0]
    return first + [(best, rate) for rate in RATES]


def results(folder: Path) -> list[tuple[str, Setting, dict[str, Any]]]:
    """Return arm, setting and summary of each student of a stage that is finished or diverged."""
    known = {
        methods.describe(methods.create(weighted(scale))): (arm, scale)
        for arm, weighted in every_arm().items()
        for scale in (SCALES if arm != "ce" else (1.0,))
    }
    found = []
    for one in runs.finished([folder]) if any(folder.glob("*.json")) else []:
        arm, scale = known[one["method"]]
        found.append((WHOLE_BANK if "bank_rows" in one else arm, (scale, one["lr"]), one))
    return found


def tuned(out: Path) -> dict[tuple[str, Setting], float]:
    """Return the held-out accuracy of each arm and setting that was trained in stage `tune`."""
    return {(arm, setting): one["val_accuracy"] for arm, setting, one in results(out / "tune")}


def chosen(out: Path) -> dict[str, Setting]:
    """Return the setting of each tuned arm with the best held-out accuracy; of equal ones the smaller factor and rate.

    Arms whose last two settings have not been trained are left out. Those in UNTUNED and candidates have the setting of
    `nearest`, those in ADDED that of `ckd+kd`, and the one in FIXED that of `random`.
    """
    found, best = tuned(out), {}
    for arm in (one for one in ARMS if one not in UNTUNED):
        tried = [one for one in trials(arm, found) if (arm, one) in found]
        if set(trials(arm, found)[3:]) & set(tried):
            best[arm] = min(tried, key=lambda one: (-found[arm, one], one))
    same = ((PRIMARY[0], (*UNTUNED, *CANDIDATES)), (PRIMARY[1], tuple(FIXED)), (CONTRAST, tuple(ADDED)))
    for tuned_arm, others in same:
        best |= {arm: best[tuned_arm] for arm in others if tuned_arm in best}
    return best


def scaled_nll(network: models.Network, images: data.Images) -> float:
    """Return the NLL after temperature scaling: each half of the images has the temperature of the other half."""
    logits, labels = models.predict(network, images).logits, images.labels
    even = torch.arange(len(labels)) % 2 == 0
    parts = []
    for half in (even, ~even):
        temperature = metrics.best_temperature(logits[~half], labels[~half])
        parts.append(torch.nn.functional.cross_entropy(logits[half] / temperature, labels[half]).item())
    return sum(parts) / 2


class Study:
    """The students of a study that are trained, and those that are still missing.

    Args:
        given: the arguments of the script.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out, self.failed = given, Path(given.out), list[str]()
        self.options = {"device": given.device, "precision": given.precision, "progress": sys.stderr.isatty()}
        self.whole = data.load("cifar100", given.data_root)

    def train(self) -> list[str]:
        """Train all students that are missing, and return a message for each pass in which students diverged."""
        for name, seed, epochs, wanted in self.cells():
            self.cell(self.given.stage, name, seed, epochs, wanted)
        return self.failed

    def cells(self) -> Iterator[tuple[str, int, int, dict[str, list[Setting]]]]:
        """Yield the cells of the stage in the order of training: teacher, seed, epochs, and the settings of each arm.

        Raises:
            InputError: an arm has not been tuned.
        """
        stage, teachers = self.given.stage, self.given.teachers
        every: dict[str, Iterable[str]] = {
            "tune": (arm for arm in ARMS if arm not in UNTUNED),
            "matched": PRIMARY,
            "fixed": FIXED,
            "added": ADDED,
            "candidates": CANDIDATES,
            "all": OFTEN,
        }
        arms = [arm for arm in every.get(stage, ARMS) if arm in (self.given.arms or [arm])]
        if stage == "tune":
            for part in (slice(0, 3), slice(3, 5)):  # the last settings of an arm depend on the results of the first
                yield *TUNING, {arm: trials(arm, tuned(self.out))[part] for arm in arms}
            return
        best = chosen(self.out)
        if missing := [arm for arm in (PRIMARY if stage == "matched" else arms) if arm not in best]:
            raise runtime.InputError(f"not tuned yet: {', '.join(missing)}; run --stage tune first")
        if stage == "all":
            for seed in MORE:
                yield ALL[0], seed, ALL[1], {arm: [best[arm]] for arm in arms}
            return
        if stage == "matched":  # each of the two arms with the setting of the other one
            best |= dict(zip(PRIMARY, (best[arm] for arm in reversed(PRIMARY)), strict=True))
        for some in ([arm for arm in arms if arm in PRIMARY], [arm for arm in arms if arm not in PRIMARY]):
            for seed in MORE:
                for name in teachers:
                    often = {*OFTEN, *FIXED, *ADDED, *CANDIDATES}
                    yield name, seed, EPOCHS, {arm: [best[arm]] for arm in some if seed in SEEDS or arm in often}

    def cell(self, stage: str, name: str, seed: int, epochs: int, wanted: dict[str, list[Setting]]) -> None:
        """Train the missing students of one teacher and one subset of the training images.

        Args:
            stage: name of the stage, and of the folders of its runs and of its JSON files.
            name: the teacher.
            seed: the seed of the subset, of the initialisation and of the order of the images.
            epochs: epochs of the students.
            wanted: settings of each arm.
        """
        done = {
            (arm, setting)
            for arm, setting, one in results(self.out / stage)
            if (one["teacher"], one["data_seed"]) == (name, seed)
        }
        # Methods by learning rate, and by whether the bank is the one with all images.
        queue: dict[tuple[float, bool], list[str]] = {}
        for arm, settings in wanted.items():
            for scale, rate in settings:
                if (arm, (scale, rate)) not in done:
                    queue.setdefault((rate, arm == WHOLE_BANK), []).append(every_arm()[arm](scale))
        if not queue:
            return
        splits = data.load("cifar100", self.given.data_root, val=0.1 if stage == "tune" else 0.0)
        if stage != "all":
            splits = splits._replace(train=splits.train.few(IMAGES, seed))
        folder, teacher = Path(self.given.runs, stage), self.teacher(name)
        for (rate, whole), every in queue.items():
            bank = MemoryBank.build(teacher, self.whole.train, labels=splits.train.index) if whole else None
            for some in passes(every, self.given.together):
                try:
                    training.distill(
                        [Student(STUDENT, method, seed) for method in some],
                        splits,
                        teacher=teacher,
                        recipe=Recipe(epochs=epochs, lr=rate),
                        bank=bank,
                        data_seed=seed,
                        evaluate_every=epochs,
                        runs=folder,
                        teacher_cache=Path(self.given.runs, "teacher_cache"),
                        **self.options,
                    )
                except runtime.Diverged as error:  # the other students of the pass are finished
                    self.failed.append(str(error))
                self.write(folder, self.out / stage)

    def teacher(self, name: str) -> models.Network:
        weights = dict(one.split("=", 1) for one in self.given.weights).get(name, "")
        recipe = Recipe(epochs=20, lr=0.1, schedule="onecycle")
        return training.pretrain(name, self.whole, recipe=recipe, weights=weights, runs=self.given.runs, **self.options)

    def write(self, folder: Path, out: Path) -> None:
        """Write the JSON files of students that are finished, with the NLL after temperature scaling, or that diverged.

        The summary of a student that diverged has no result but the accuracy `DIVERGED`, and the reason as "diverged".
        """
        for summary in write_finished(folder, out):
            print(
                f"{summary['method']} at {summary['lr']}, {summary['teacher']}, seed {summary['data_seed']}", flush=True
            )
        for run in map(runtime.Run, sorted(path.parent for path in folder.glob("*/diverged.json"))):
            if not file_of(run, out).exists():
                reason = runtime.read_json(run.folder / "diverged.json")["reason"]
                result = dict.fromkeys(("accuracy", "val_accuracy") if out.name == "tune" else ("accuracy",), DIVERGED)
                write(run, described(run.settings) | result | {"diverged": reason}, file_of(run, out))
        for path in out.glob("*.json"):
            record = runtime.read_json(path)
            if {"scaled_nll", "diverged"} & set(record["summary"]):
                continue
            if (run := folder / record["summary"]["name"]).exists():
                record["summary"]["scaled_nll"] = scaled_nll(training.load(run, device="cpu"), self.whole.test)
                runtime.write_json(path, record)


def difference(cells: Cells, arm: str, control: str, key: str, unit: float, comparisons: int = 1) -> str:
    """Return the mean difference of two arms over the cells in which both have the entry, with its interval.

    Args:
        cells: results by arm and cell.
        arm, control: the arms.
        key, unit: entry of the summaries, and its factor.
        comparisons: number of comparisons for which the interval is corrected (Bonferroni).
    Returns:
        "+0.12 (−0.34 to +0.58)"; "+0.12 (one cell)" for one such cell, and "–" for none.
    """
    ours, theirs = common(cells, arm, control, key, unit)
    if found := contrast(cells, arm, control, key, unit, comparisons):
        text = "{:+.2f} ({:+.2f} to {:+.2f})".format(*found)
    else:
        text = f"{ours[0] - theirs[0]:+.2f} (one cell)" if ours else "–"
    return text.replace("-", "−")


def contrast(
    cells: Cells, arm: str, control: str, key: str, unit: float, comparisons: int = 1
) -> tuple[float, float, float] | None:
    """Return what `difference` shows as numbers: mean, low and high end; None for fewer than two such cells."""
    ours, theirs = common(cells, arm, control, key, unit)
    if len(ours) < 2:
        return None
    mean, half = paired(ours, theirs, 1 - 0.05 / comparisons)
    return mean, mean - half, mean + half


def common(cells: Cells, arm: str, control: str, key: str, unit: float) -> tuple[list[float], list[float]]:
    """Return an entry of both arms in the cells in which both have it; the arguments are those of `difference`."""
    both = cells.get(arm, {}), cells.get(control, {})
    shared = [cell for cell in both[0] if all(key in of_arm.get(cell, {}) for of_arm in both)]
    return [unit * both[0][cell][key] for cell in shared], [unit * both[1][cell][key] for cell in shared]


def read(out: Path, stage: str, wanted: dict[str, Setting | None] | None = None) -> Cells:
    """Return the results of a stage, by arm and cell.

    Runs whose NLL after temperature scaling is still being computed by another process are left out.

    Args:
        out: folder of the JSON files.
        stage: name of the stage.
        wanted: the setting of each arm; None for those that were chosen.
    """
    cells: Cells = {}
    best = chosen(out) if wanted is None else wanted
    for arm, setting, one in results(out / stage):
        if setting == best.get(arm) and {"scaled_nll", "diverged"} & set(one):
            cells.setdefault(arm, {})[one["teacher"], one["data_seed"]] = one
    return cells


def report(out: Path) -> str:
    """Return the tables of the study, for the stages that have results."""
    best, cells = chosen(out), read(out, "main")
    lines = ["The settings that were chosen on held-out images:", ""]
    lines += ["| arm | factor | learning rate | held-out accuracy, % |", "|---|---:|---:|---:|"]
    found = tuned(out)
    lines += [
        f"| {arm} | {scale:.2g} | {rate:g} | {100 * found[arm, (scale, rate)]:.1f} |"
        for arm, (scale, rate) in best.items()
        if (arm, (scale, rate)) in found and arm in ARMS
    ]
    if all(arm in cells for arm in PRIMARY):
        lines += ["", f"Means over the cells, with {IMAGES:,} images and {EPOCHS} epochs:", ""]
        lines += [*arms_table(cells), "", "The primary contrast:", "", *primary(cells)]
        lines += ["", "The same difference in accuracy in each cell, in points:", "", *cells_table(cells)]
    if swapped := read(out, "matched", {PRIMARY[0]: best.get(PRIMARY[1]), PRIMARY[1]: best.get(PRIMARY[0])}):
        lines += ["", "The primary contrast with equal settings:", "", *matched_table(cells, swapped)]
        lines += ["", "The parts of IC-KD, with the setting of nearest:", "", *parts_table(cells, swapped)]
    if fixed := read(out, "fixed"):
        both = {"nearest": swapped.get(PRIMARY[0], {}), "random": cells[PRIMARY[1]]} | fixed
        lines += ["", "Nearness and variety apart, with the setting of random:", "", *fixed_table(both)]
    if added := read(out, "added"):
        lines += ["", f"What is added to {CONTRAST}:", "", *added_table(cells | added)]
    if further := read(out, "candidates"):
        lines += ["", "Candidates for the default:", "", *candidates_table(cells | further)]
    if every := read(out, "all"):
        lines += ["", f"With all training images, {ALL[1]} epochs and the teacher {ALL[0]}:", "", *arms_table(every)]
    return "\n".join(lines)


def diverged(summaries: dict[tuple[str, int], dict[str, Any]]) -> int:
    """Return the number of cells in which the student of an arm diverged."""
    return sum("diverged" in one for one in summaries.values())


def counted(summaries: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Return the number of cells of an arm, and of those in which its student diverged: "9" or "9, 1 diverged"."""
    return f"{len(summaries)}, {count} diverged" if (count := diverged(summaries)) else str(len(summaries))


def arms_table(cells: Cells) -> list[str]:
    """Return the lines of the table of all arms: means over the cells, and the difference in accuracy to `random`.

    A student that diverged has an accuracy and no other entry; the other means are over the other cells. `ce` has no
    teacher, so that its students of one seed are equal: they count once, and are compared with the mean of the control
    over the teachers.
    """
    head = ["arm", "cells", *(name for _, name, _, _ in SHOWN), f"to {PRIMARY[1]}, points"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for arm in (one for one in ARMS if one in cells):
        rows = cells[arm].values()
        found = [([unit * one[key] for one in rows if key in one], digits) for key, _, unit, digits in SHOWN]
        means = [f"{statistics.fmean(values):.{digits}f}" if values else "–" for values, digits in found]
        both = {one: averaged(cells[one], 1) if arm == "ce" else cells[one] for one in (arm, PRIMARY[1])}
        shown = difference(both, arm, PRIMARY[1], "accuracy", 100) if arm != PRIMARY[1] else ""
        lines.append(f"| {' | '.join([arm, counted(both[arm]), *means, shown])} |")
    return lines


def averaged(summaries: dict[tuple[str, int], dict[str, Any]], place: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the mean accuracy over the cells with the same teacher (place 0) or the same seed (place 1)."""
    groups: dict[tuple[str, int], list[float]] = {}
    for cell, one in summaries.items():
        groups.setdefault((cell[0], 0) if place == 0 else ("", cell[1]), []).append(one["accuracy"])
    return {group: {"accuracy": statistics.fmean(values)} for group, values in groups.items()}


def primary(cells: Cells) -> list[str]:
    """Return the table of the primary contrast, for each teacher too, with the secondary outcomes, and the verdict.

    Cells that share a teacher or a seed may be alike. So the interval is also computed from the means over the cells of
    each seed, and from those of each teacher, as if these three values were all.
    """
    done, planned = min(len(cells[arm]) for arm in PRIMARY), len(TEACHERS) * len(MORE)
    complete = done == planned
    lines = [f"| {PRIMARY[0]} minus {PRIMARY[1]} | difference |", "|---|---|"]
    lines.append(f"| **accuracy, points** | **{difference(cells, *PRIMARY, 'accuracy', 100)}** |")
    for name in TEACHERS:
        own = {arm: {cell: one for cell, one in cells[arm].items() if cell[0] == name} for arm in PRIMARY}
        lines.append(f"| accuracy with {name} as teacher, points | {difference(own, *PRIMARY, 'accuracy', 100)} |")
    if complete:
        for place, name in enumerate(("teacher", "seed")):
            own = {arm: averaged(cells[arm], place) for arm in PRIMARY}
            lines.append(
                f"| accuracy, from one mean for each {name}, points | {difference(own, *PRIMARY, 'accuracy', 100)} |"
            )
    for key, name, unit, _ in SHOWN:
        if key in SECONDARY:
            lines.append(f"| {name} (four comparisons) | {difference(cells, *PRIMARY, key, unit, len(SECONDARY))} |")
    if not complete:
        return [*lines, "", f"Trained cells: {done} of {planned}. There is no verdict before all are trained."]
    found = contrast(cells, *PRIMARY, "accuracy", 100)
    assert found is not None
    mean, low, high = found
    verdict = "undecided"
    if low > 0 and mean >= 0.3:
        verdict = "nearness helps"
    elif high < 0 and mean <= -0.3:
        verdict = "nearness harms"
    elif -0.5 <= low and high <= 0.5:
        verdict = "nearness does not matter"
    return [*lines, "", f"By the rule of the plan: **{verdict}**."]


def cells_table(cells: Cells) -> list[str]:
    """Return the lines of a table of the primary contrast in each cell: a row for each teacher."""
    lines = [f"| teacher | {' | '.join(f'seed {seed}' for seed in MORE)} |", "|---|" + "---:|" * len(MORE)]
    for name in TEACHERS:
        shown = []
        for seed in MORE:
            ours, theirs = (cells[arm].get((name, seed)) for arm in PRIMARY)
            points = 100 * (ours["accuracy"] - theirs["accuracy"]) if ours and theirs else None
            shown.append("–" if points is None else f"{points:+.2f}".replace("-", "−"))
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def matched_table(cells: Cells, swapped: Cells) -> list[str]:
    """Return the lines of the table of the primary contrast with equal settings, corrected for the two settings.

    Args:
        cells: results with the setting of each arm.
        swapped: results of both arms, each with the setting of the other one.
    """
    lines = [f"| {PRIMARY[0]} minus {PRIMARY[1]}, both with the setting of | cells | accuracy, points | NLL, scaled |"]
    lines.append("|---|---:|---|---|")
    for kept, moved in (PRIMARY, PRIMARY[::-1]):
        both = {kept: cells[kept], moved: swapped.get(moved, {})}
        shown = [
            difference(both, *PRIMARY, key, unit, len(PRIMARY)) for key, unit in (("accuracy", 100), ("scaled_nll", 1))
        ]
        lines.append(f"| {kept} | {counted(both[moved])} | {' | '.join(shown)} |")
    return lines


def parts_table(cells: Cells, swapped: Cells) -> list[str]:
    """Return the lines of the table of what replaces a part of `nearest`.

    The arguments are those of `matched_table`.
    """
    both = {arm: cells[arm] for arm in (PRIMARY[0], *UNTUNED) if arm in cells} | {
        PRIMARY[1]: swapped.get(PRIMARY[1], {})
    }
    lines = [
        f"| arm | cells | accuracy to {PRIMARY[0]}, points | accuracy to {PRIMARY[1]}, points |",
        "|---|---:|---|---|",
    ]
    for arm in (one for one in UNTUNED if one in cells):
        shown = [difference(both, arm, control, "accuracy", 100) for control in PRIMARY]
        lines.append(f"| {arm} | {counted(cells[arm])} | {' | '.join(shown)} |")
    return lines


def fixed_table(cells: Cells) -> list[str]:
    """Return the lines of the table of nearest samples, random ones drawn once, and random ones drawn in each epoch.

    The intervals are corrected for the two differences.
    """
    (once,) = FIXED
    lines = ["| difference | cells | accuracy, points | NLL, scaled |", "|---|---:|---|---|"]
    for arm, control in ((PRIMARY[0], once), (once, PRIMARY[1])):
        shown = [difference(cells, arm, control, key, unit, 2) for key, unit in (("accuracy", 100), ("scaled_nll", 1))]
        lines.append(f"| {arm} minus {control} | {counted(cells[once])} | {' | '.join(shown)} |")
    return lines


def added_table(cells: Cells) -> list[str]:
    """Return the lines of the table of what is added to CKD and KD, compared with these alone."""
    lines = [
        f"| {CONTRAST} and | cells | accuracy, points | top-5, % | NLL, scaled | ECE, % |",
        "|---|---:|---|---|---|---|",
    ]
    for arm in (one for one in ADDED if one in cells):
        keys = (("accuracy", 100), ("top5", 100), ("scaled_nll", 1), ("ece", 100))
        shown = [difference(cells, arm, CONTRAST, key, unit) for key, unit in keys]
        lines.append(f"| {arm} | {counted(cells[arm])} | {' | '.join(shown)} |")
    return lines


def candidates_table(cells: Cells) -> list[str]:
    """Return the lines of the table of the candidates, compared with `nearest`.

    No candidate is adopted or rejected before all of its cells are trained.
    """
    head = ["candidate", "cells", "accuracy to nearest, points", "NLL, scaled, to nearest", "adopted"]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---|---|---|"]
    for arm in (one for one in CANDIDATES if one in cells):
        gain = contrast(cells, arm, PRIMARY[0], "accuracy", 100, len(CANDIDATES))
        worse = contrast(cells, arm, PRIMARY[0], "scaled_nll", 1)
        shown = [difference(cells, arm, PRIMARY[0], "accuracy", 100, len(CANDIDATES))]
        shown.append(difference(cells, arm, PRIMARY[0], "scaled_nll", 1))
        adopted = "yes" if gain and worse and gain[1] > 0 and worse[0] <= 0.02 else "no"
        if len(cells[arm]) < len(TEACHERS) * len(MORE):
            adopted = "–"
        lines.append(f"| {arm} | {counted(cells[arm])} | {' | '.join(shown)} | {adopted} |")
    return lines


def main() -> int:
    methods.register("other_negatives")(OtherNegatives)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--stage", default="main", choices=STAGES)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *ADDED, *CANDIDATES], help="train these arms alone")
    parser.add_argument("--teachers", nargs="+", default=TEACHERS, choices=TEACHERS, help="train with these alone")
    parser.add_argument("--weights", nargs="*", default=[], help="checkpoints of teachers, as NAME=FILE")
    parser.add_argument("--minutes", type=float, default=0, help="minutes after which to stop; 0: never")
    parser.add_argument("--together", type=int, default=8, help="largest number of students in one pass")
    parser.add_argument("--runs", default="runs/study", help="folder of runs, teachers and the teacher cache")
    parser.add_argument("--out", default=str(OUT), help="folder of the JSON files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument(
        "--report", action="store_true", help="print the tables of the finished runs, and train nothing"
    )
    given = parser.parse_args()
    if given.report:
        print(report(Path(given.out)))
        return 0
    return limited(lambda: Study(given).train(), given.minutes)


if __name__ == "__main__":
    sys.exit(main())
