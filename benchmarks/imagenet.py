"""Trains the two pairs of ImageNet with each method's published settings, and prints the results beside published ones.

    python benchmarks/imagenet.py --data imagenet:PATH [--pairs resnet18 mobilenet] [--methods kd ckd] [--seeds 0]
    torchrun --nproc_per_node 8 benchmarks/imagenet.py --data imagenet:PATH

The pairs are ResNet34→ResNet18 and ResNet50→MobileNetV1. The teachers have torchvision's weights IMAGENET1K_V1, which
are downloaded once. Each method has the epochs, batch size, learning rate and weights that its authors published
(`training.published`); methods with equal recipes are trained in one pass. With several processes, the batch size is
that of all of them together.

For each finished run, a JSON file with its configuration, commit, device, curves and summary is written to OUT/table. A
run with such a file is not trained again. With --minutes, the script stops after that time: it writes a checkpoint and
exits with status 75, and the same call continues the training. (torchrun itself then exits with status 1.) When a
student diverges, the others are still trained to the end; then its name is printed, and the exit status is 1.

    python benchmarks/imagenet.py --report                      # prints the tables of finished runs, trains nothing
    python benchmarks/imagenet.py --sample FOLDER --teacher-weights none --image-size 64 --epochs 1 --batch-size 32

The last call shows that everything runs, and nothing else: from the JPEG files in FOLDER it makes a small data set of
ten classes, in which each training image is repeated, and trains on it with a teacher of random weights.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if os.environ.get("RANK", "0") != "0":  # of several processes, the first one shows progress; tqdm reads this at import
    os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from tables import already_written, limited, passes, write_finished

from ickd_lib import data, models, runs, runtime, training
from ickd_lib.models import Network
from ickd_lib.runtime import distributed
from ickd_lib.training import Recipe, Student

WEIGHTS = "(pretrained='IMAGENET1K_V1')"
# Teacher without the name of its weights, and student. MobileNetV1 is a network of this library.
PAIRS = {
    "resnet18": ("torchvision/resnet34", "torchvision/resnet18"),
    "mobilenet": ("torchvision/resnet50", "MobileNetV1"),
}
METHODS = ("ce", "kd", "dkd", "ckd", "dist", "lskd", "wkd_l", "ickd")


class Pass(NamedTuple):
    """Students that are trained together, on the same batches.

    teacher, student: names of the networks.
    seed: seed of the students and of the order of the data.
    recipe: the recipe of all of them.
    augment: the augmentation of the data.
    methods: the method of each student, with its published arguments.
    """

    teacher: str
    student: str
    seed: int
    recipe: Recipe
    augment: str
    methods: list[str]


def planned(given: argparse.Namespace) -> Iterator[Pass]:
    """Yield the passes of the table, those of the first seed first. Methods with equal recipes are trained together."""
    for seed in given.seeds:
        for teacher, student in (PAIRS[name] for name in given.pairs):
            together: dict[tuple[Recipe, str], list[str]] = {}
            for name in given.methods:
                found = training.published(name, teacher, student, "imagenet")
                together.setdefault((adapted(found.recipe, given), found.augment), []).append(found.method)
            named = teacher + WEIGHTS * (given.teacher_weights == "pretrained")
            for (recipe, augment), every in together.items():
                for some in passes(every, given.together):
                    yield Pass(named, student, seed, recipe, augment, some)


def adapted(recipe: Recipe, given: argparse.Namespace) -> Recipe:
    """Return a recipe with the epochs and the batch size of the script's arguments, if there are any."""
    batch_size = given.batch_size or recipe.batch_size
    lr = recipe.lr * batch_size / recipe.batch_size
    return replace(recipe, epochs=given.epochs or recipe.epochs, batch_size=batch_size, lr=lr)


def teacher_of(name: str, splits: data.Splits, given: argparse.Namespace, device: torch.device) -> Network:
    """Return the teacher: with torchvision's weights, those of a file or random ones, or trained on the data."""
    if given.teacher_weights == "none":
        with runtime.seeded(0, "teacher"):
            return models.create(name, **splits.train.spec).eval()
    weights = "" if given.teacher_weights == "train" else given.teacher_weights
    recipe = adapted(training.published("ce", "", "resnet18", "imagenet").recipe, given)
    return training.pretrain(name, splits, recipe=recipe, weights=weights, runs=given.runs, device=device)


def train(given: argparse.Namespace, device: torch.device) -> list[str]:
    """Train all students of the table, pass after pass.

    Args:
        given: the script's arguments.
        device: the device of this process.
    Returns:
        A message for each pass in which students diverged, with their names.
    """
    folder, out, failed = Path(given.runs, "table"), Path(given.out, "table"), []
    # Process 0 alone reads which runs are finished, because it writes their files while others may still look for them.
    done = distributed.broadcast(already_written(out))
    streamed = {"stream": given.stream, "views": given.views, "workers": given.workers}
    load = partial(data.load, given.data, image_size=given.image_size, crop="resized", device=device, **streamed)
    splits_with = functools.cache(lambda augment: load(augment=augment))
    teacher_named = functools.cache(lambda name: teacher_of(name, splits_with("crop"), given, device))
    for one in planned(given):
        some = [name for name in one.methods if (one.teacher, one.student, name, one.seed) not in done]
        if not some:
            continue
        teacher, splits = teacher_named(one.teacher), splits_with(one.augment)
        try:
            training.distill(
                [Student(one.student, method, one.seed) for method in some],
                splits,
                teacher=teacher,
                recipe=one.recipe,
                data_seed=one.seed,
                device=device,
                evaluate_every=max(1, one.recipe.epochs // 20),
                checkpoint_seconds=given.checkpoint_seconds,
                runs=folder,
                teacher_cache=Path(given.runs, "teacher_cache") if given.views else None,
                teacher_cache_gigabytes=given.teacher_cache_gigabytes,
                progress=sys.stderr.isatty(),
            )
        except runtime.Diverged as error:  # the other students of the pass are finished
            failed.append(str(error))
        finally:  # also after a stop, because some students may have been finished before it
            if distributed.rank() == 0:
                for summary in write_finished(folder, out):
                    print(f"{summary['method']} seed {summary['data_seed']}: {summary['accuracy']:.2%}", flush=True)
    if distributed.rank() == 0:
        report(out)
    return failed


def report(out: Path) -> None:
    """Print the tables of the runs with a JSON file in a folder."""
    summaries = runs.finished([out])
    print(runs.table(summaries))
    print(runs.published_table(summaries))


def sample(source: Path, folder: Path, classes: int = 10, held_out: int = 5, repeats: int = 4) -> str:
    """Make a small data set in the layout of ImageNet from a few files, with links; links that exist stay.

    Args:
        source: folder of files WNID_name.JPEG. They are divided into classes in the order of their names, whatever they
            show, and each class has the WNID of its first file as its name.
        folder: folder of the data set.
        classes: number of classes.
        held_out: images of each class that become test images.
        repeats: links to each other image in train/.
    Returns:
        The name of the data set.
    Raises:
        InputError: there are too few files.
    """
    files = sorted(source.glob("*.JPEG"))
    each = len(files) // classes
    if each <= held_out:
        raise runtime.InputError(
            f"{source} contains {len(files)} .JPEG files; expected {classes * (held_out + 1)} or more"
        )
    for first in range(0, classes * each, each):
        some = files[first : first + each]
        name = some[0].name.partition("_")[0]
        links = {folder / "val" / name / file.name: file for file in some[:held_out]}
        for file in some[held_out:]:
            links |= {folder / "train" / name / f"{copy}_{file.name}": file for copy in range(repeats)}
        for link, file in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(file.resolve())
    return f"imagenet:{folder}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="imagenet:PATH, or folder:PATH for images of your own")
    parser.add_argument("--sample", default="", help="folder of JPEG files, of which a small data set is made instead")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS, help="by their students")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to train")
    parser.add_argument(
        "--teacher-weights",
        default="pretrained",
        help="pretrained: those of torchvision, as published; a checkpoint; train: the teacher is trained on the data; "
        "none: random ones, to try the script without a download",
    )
    parser.add_argument("--epochs", type=int, default=0, help="epochs of all methods; 0: the published ones")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=0,
        help="batch size of all methods, to which their learning rate is scaled; 0: the published ones",
    )
    parser.add_argument("--image-size", type=int, default=224, help="height and width of the crops in pixels")
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        help="number of random crops of each image, for which a teacher cache in RUNS is used; 0: new ones in each "
        "epoch, as published",
    )
    parser.add_argument("--teacher-cache-gigabytes", type=float, default=64, help="largest size of the teacher cache")
    parser.add_argument(
        "--workers", type=int, default=None, help="processes that decode images; by default the free cores"
    )
    parser.add_argument("--stream", action="store_true", help="decode images as needed even if they fit into memory")
    parser.add_argument("--together", type=int, default=4, help="largest number of students in one pass")
    parser.add_argument("--minutes", type=float, default=0, help="minutes after which to stop; 0: never")
    parser.add_argument("--checkpoint-seconds", type=float, default=600, help="seconds between checkpoints")
    parser.add_argument("--runs", default="runs/imagenet", help="folder of runs and teachers")
    parser.add_argument("--out", default="", help="folder of the JSON files; by default RUNS/json")
    parser.add_argument("--report", action="store_true", help="print the tables of finished runs, and train nothing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_args()
    given.out = given.out or Path(given.runs, "json")
    try:
        if given.report:
            report(Path(given.out, "table"))
            return 0
        with distributed.processes(given.device) as device:
            if given.sample:
                folder = Path(given.runs, "sample")
                given.data = distributed.broadcast(distributed.rank() or sample(Path(given.sample), folder))
            return limited(lambda: train(given, device), given.minutes)
    except runtime.InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
