"""The command line: ickd train | compare | bank | evaluate | report | diff."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

# Set before torch loads OpenMP: waiting threads sleep instead of spinning, which is faster on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ickd_lib import __version__, data, methods, metrics, runs, runtime, tasks, training
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training import Recipe

DESCRIPTION = """In-context knowledge distillation.

  ickd compare --methods ce kd "ickd(nicd=2.0)" --teacher resnet20 --labels 200 --epochs 40 --schedule onecycle
  ickd train --dataset cifar100 --download --teacher resnet32x4 --student resnet8x4 --method ickd
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--task", default="classification", help=", ".join(tasks.names()))
    group.add_argument("--dataset", default="digits", help=", ".join(data.names()))
    group.add_argument("--data-root", default="data", help="folder of downloaded data sets")
    group.add_argument("--download", action="store_true", help="download CIFAR-100 if it is missing")
    group.add_argument(
        "--labels", type=int, default=0, help="number of labelled images that the student is trained on; 0: all"
    )
    group.add_argument("--classes", nargs="+", default=[], help="the student's classes or superclasses; by default all")
    group.add_argument(
        "--augment",
        default="crop",
        help="crop; randaugment, mixup or cutmix, each after the crop; or two of these, as in randaugment+cutmix",
    )
    group.add_argument(
        "--val", type=float, default=0.0, help="fraction of the training images to hold out for validation"
    )
    group.add_argument(
        "--image-size",
        type=int,
        default=0,
        help="height and width in pixels to which the images of a folder are resized; 0: keep their size",
    )


def _teacher_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", default="", required=required, help="a model's name, or the folder of a run")
    group.add_argument(
        "--teacher-weights",
        default="",
        help="checkpoint of the teacher; by default it is trained, and kept for later runs",
    )
    group.add_argument(
        "--teacher-classes", nargs="+", default=[], help="the teacher's classes; by default those of the student"
    )
    group.add_argument(
        "--teacher-epochs", type=int, default=0, help="epochs of the teacher's training; 0: as many as the student"
    )


def _training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    for field in dataclasses.fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            group.add_argument(option, action=action, default=field.default, help=field.metadata["help"])
        elif isinstance(field.default, tuple):
            nargs = len(field.default) or "*"
            group.add_argument(option, nargs=nargs, type=float, default=field.default, help=field.metadata["help"])
        else:
            group.add_argument(option, type=type(field.default), default=field.default, help=field.metadata["help"])
    group.add_argument("--evaluate-every", type=int, default=1, help="epochs between evaluations")
    group.add_argument("--checkpoint-seconds", type=float, default=60.0, help="seconds between checkpoints")
    group.add_argument(
        "--no-resume", action="store_true", help="stop with an error if a run exists already, instead of resuming it"
    )
    group.add_argument(
        "--teacher-cache", default="", help="folder of a cache of the teacher's outputs, for this and later runs"
    )
    group.add_argument("--teacher-cache-gigabytes", type=float, default=4.0, help="largest size of the teacher cache")
    group.add_argument(
        "--no-capture", action="store_true", help="on a GPU, run every step eagerly instead of capturing it"
    )


def _machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--runs", default="runs", help="folder that contains the run folders")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--precision", default="auto", help="auto, fp32 or bf16")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser("ickd", description=DESCRIPTION, formatter_class=_Help, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"ickd {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=_Help, allow_abbrev=False)

    known = ", ".join(methods.names())
    train = command("train", "Train one student.")
    train.add_argument("--student", default="resnet8", help="a model's name")
    train.add_argument(
        "--method", default="ickd", help=f"{known}; arguments follow in brackets, as in 'ickd(nicd=0.5)'"
    )
    train.add_argument("--seed", type=int, default=0, help="seed of the initialisation")
    train.add_argument("--data-seed", type=int, default=0, help="seed of the order and the augmentation of the images")
    train.add_argument(
        "--published",
        nargs="?",
        const="cifar100",
        default="",
        metavar="DATA",
        help="take weights, recipe and augmentation from the method's authors: those published for this pair on "
        "CIFAR-100, or with --published imagenet on ImageNet; an error if there are none",
    )
    train.add_argument(
        "--name",
        default="",
        help="name of the run folder; by default student, method, seed and a fingerprint of the settings",
    )
    compare = command("compare", "Train a student with several methods over several seeds; print a table.")
    compare.add_argument("--student", default="resnet8", help="a model's name")
    compare.add_argument("--methods", nargs="+", default=["ce", "kd", "ickd"], help=known)
    compare.add_argument("--seeds", type=int, default=3, help="number of seeds")
    for trainer in (train, compare):
        trainer.add_argument(
            "--peers",
            nargs="+",
            default=[],
            help="networks to train beside the student if the method needs peers; by default one of the same kind",
        )
        _data_options(trainer)
        _teacher_options(trainer)
        _training_options(trainer)
        _machine_options(trainer)
    bank = command("bank", "Build a teacher's memory bank, save it, and measure its retrieval.")
    bank.add_argument("--out", default="", help="file to write; by default RUNS/DATASET-TEACHER.bank.safetensors")
    bank.add_argument(
        "--k", type=int, default=8, help="number of neighbours for which the retrieval precision is computed"
    )
    _data_options(bank)
    _teacher_options(bank, required=True)
    _training_options(bank)
    _machine_options(bank)
    evaluate = command("evaluate", "Evaluate the student of a finished run on the test images.")
    evaluate.add_argument("run", help="the run folder")
    _data_options(evaluate)
    _machine_options(evaluate)
    report = command("report", "Turn run folders into a Markdown table.")
    report.add_argument(
        "folders", nargs="*", default=["runs"], help="folders that contain runs, or JSON files that --json wrote"
    )
    report.add_argument("--out", default="", help="file to write; by default the table is printed")
    report.add_argument("--baseline", default="", help="a method; the table then shows the differences to it")
    report.add_argument(
        "--figure", default="", help="file for a figure of the accuracies beside published ones, or of the differences"
    )
    report.add_argument("--json", default="", help="file for the configuration, records and summary of each run")
    report.add_argument(
        "--without-epochs", action="store_true", help="leave the records of epochs out of the JSON file"
    )
    difference = command("diff", "Compare two runs: settings, environment, and the first epoch at which they differ.")
    difference.add_argument("runs", nargs=2, metavar="RUN", help="a run folder")
    return top


def _splits(given: argparse.Namespace, labels: int = 0, **changes: Any) -> data.Splits:
    options = {"classes": given.classes, "augment": given.augment} | changes
    return data.load(
        given.dataset,
        given.data_root,
        **options,
        labels=labels,
        val=given.val,
        image_size=given.image_size,
        download=given.download,
        device=runtime.device(given.device),
    )


def _recipe(given: argparse.Namespace, **changes: Any) -> Recipe:
    return Recipe(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Recipe)} | changes)


def _options(given: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "precision", "evaluate_every", "checkpoint_seconds", "runs", "teacher_cache_gigabytes")
    others = {
        "resume": not given.no_resume,
        "capture": not given.no_capture,
        "teacher_cache": given.teacher_cache or None,
        "task": tasks.create(given.task),
    }
    return {name: getattr(given, name) for name in names} | others


def _teacher(given: argparse.Namespace, needed: bool) -> Network | None:
    """Return the teacher: from a run folder, from a checkpoint, or trained now on all training images and kept."""
    if not given.teacher:
        if needed:
            raise InputError("this method needs a teacher; name one with --teacher (a model's name or a run's folder)")
        return None
    if Path(given.teacher, "config.json").is_file():
        return training.load(given.teacher, device=given.device)
    splits = _splits(given, augment="crop", classes=given.teacher_classes or given.classes)
    options = _options(given) | {"resume": True}
    recipe = _recipe(given, epochs=given.teacher_epochs or given.epochs)
    return training.pretrain(given.teacher, splits, recipe=recipe, weights=given.teacher_weights, **options)


def train(given: argparse.Namespace) -> None:
    """Train one student and print its summary."""
    recipe = _recipe(given)
    if given.published:
        changed = [f.name for f in dataclasses.fields(Recipe) if getattr(given, f.name) != f.default]
        if changed or given.augment != "crop":
            raise InputError(f"--published sets {', '.join(changed) or 'augment'} itself; leave one of the two out")
        folder = Path(given.teacher, "config.json")
        network = runtime.Run(folder.parent).settings["student"]["network"] if folder.is_file() else given.teacher
        found = training.published(given.method, network, given.student, given.published)
        given.method, recipe, given.augment = found.method, found.recipe, found.augment
        print(f"{'published' if found.official else 'not published'} settings: {found.source}", file=sys.stderr)
    method, splits = methods.create(given.method), _splits(given, given.labels)
    teacher = _teacher(given, method.needs_teacher)
    students = training.peer_group(given.student, given.method, given.seed, given.peers)
    students[0] = dataclasses.replace(students[0], name=given.name)
    histories = training.distill(
        students, splits, teacher=teacher, recipe=recipe, data_seed=given.data_seed, **_options(given)
    )
    for history in histories.values():
        print(json.dumps(history.summary, indent=2))
        print(f"run folder: {history.folder}")


def compare(given: argparse.Namespace) -> None:
    """Train every method over the seeds and print the table."""
    made = [methods.create(name) for name in given.methods]
    if given.seeds < 1:
        raise InputError(f"seeds={given.seeds} must be 1 or more")
    recipe, splits = _recipe(given), _splits(given, given.labels)
    teacher = _teacher(given, any(method.needs_teacher for method in made))
    try:
        found = training.compare(
            given.methods,
            splits,
            student=given.student,
            teacher=teacher,
            peers=given.peers,
            seeds=given.seeds,
            recipe=recipe,
            **_options(given),
        )
    except Diverged as error:  # all other students were trained to the end
        summaries = [history.summary for histories in error.histories.values() for history in histories]
        counts = {method: given.seeds - len(error.histories[method]) for method in given.methods}
        print(runs.table(summaries, diverged={method: count for method, count in counts.items() if count}))
        raise
    print(runs.table([history.summary for histories in found.values() for history in histories]))


def bank(given: argparse.Namespace) -> None:
    """Build and save a memory bank, and print its retrieval precision."""
    teacher = _teacher(given, True)
    assert teacher is not None
    images = _splits(given, given.labels).train
    built = MemoryBank.build(teacher, images, task=tasks.create(given.task), precision=given.precision)
    name = re.sub(r"[^\w.-]+", "-", f"{images.name.split('/')[0]}-{teacher.name}")
    path = Path(given.out or Path(given.runs) / f"{name}.bank.safetensors")
    built.save(path)
    numbers = metrics.retrieval(built, images, k=given.k)
    print(json.dumps({"bank": str(path), "rows": len(built), "features": built.features.shape[1], **numbers}, indent=2))


def evaluate(given: argparse.Namespace) -> None:
    """Evaluate the student of a finished run."""
    network, splits = training.load(given.run, device=given.device), _splits(given)
    print(
        json.dumps(
            training.evaluate(network, splits.test, task=tasks.create(given.task), precision=given.precision), indent=2
        )
    )


def report(given: argparse.Namespace) -> None:
    """Print or write the table of finished runs."""
    summaries = runs.finished(given.folders)
    text = runs.table(summaries, baseline=given.baseline, best_first=True)
    if given.figure:
        _draw(given, summaries)
    if given.json:
        found = [run for folder in given.folders for run in runtime.runs(folder) if run.summary]
        records = [
            {
                "run": run.folder.name,
                "config": run.config,
                "epochs": [] if given.without_epochs else run.metrics,
                "summary": run.summary,
            }
            | ({"role": "teacher"} if run.folder.parent.name == "teachers" else {})
            for run in found
        ]
        runtime.write_json(given.json, records)
    if given.out:
        with runtime.replacing(given.out) as part:
            part.write_text(text)
    else:
        print(text)


def diff(given: argparse.Namespace) -> None:
    """Print what differs between two runs."""
    print("\n".join(runs.diff(*given.runs)))


def _draw(given: argparse.Namespace, summaries: list[dict[str, Any]]) -> None:
    """Write the figure of `report`."""
    from ickd_lib import plots

    kind = runtime.choose(Path(given.figure).suffix[1:], ("png", "svg", "pdf"), "kind of figure")
    plots.use()
    if given.baseline:
        settings = runs.grouped(summaries)
        if len(settings) > 1:
            raise InputError(f"differences are drawn for one setting, not {len(settings)}; name fewer runs")
        ((setting, by_method),) = settings.items()
        apart = runs.differences(by_method, given.baseline)
        ranked = dict(sorted(apart.items(), key=lambda pair: -pair[1]["mean"]))
        of = "accuracy on held-out images" if setting[-1] else "test accuracy"
        figure = plots.differences(ranked, baseline=given.baseline, of=of)
    else:
        figure = plots.published(runs.beside_published(summaries))
    with runtime.replacing(given.figure) as part:
        figure.savefig(part, format=kind)


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line; None for that of the process.
    Returns:
        The exit status: 0; 1 if a student diverged; 2 if an input is wrong (one line on stderr); 130 if interrupted.
    """
    top = parser()
    given, extra = top.parse_known_args(arguments)
    try:
        if extra:
            subparsers = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
            options = [o for a in subparsers.choices[given.command]._actions for o in a.option_strings]
            runtime.choose(extra[0].split("=")[0], options, "option")
            raise InputError(f"unexpected argument {extra[0]!r}")
        globals()[given.command](given)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
