"""The command line: ickd train | compare | teach | bank | evaluate | export | predict | report | status | diff."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

if os.environ.get("WORLD_SIZE", "1") != "1":  # torch warns about weights that some methods train in one phase only
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
if os.environ.get("RANK", "0") != "0":  # of several processes, the first one shows progress; tqdm reads this at import
    os.environ.setdefault("TQDM_DISABLE", "1")

try:
    from ickd_lib import data, methods, metrics, runs, runtime, tasks, training
    from ickd_lib.export import commands
    from ickd_lib.memory import MemoryBank, requested, require_replaceable
    from ickd_lib.models import Network
    from ickd_lib.options import check_networks, checks, parser, recipe_defaults
    from ickd_lib.runtime import Diverged, InputError
    from ickd_lib.runtime.distributed import ProcessLost, reports
    from ickd_lib.runtime.memory import out_of_memory
    from ickd_lib.training import Recipe
except KeyboardInterrupt:  # the imports take seconds
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None

ANNOTATIONS = {"segmentation": "masks", "detection": "boxes"}  # the kind that a task needs


def _splits(given: argparse.Namespace, labels: int = 0, **changes: Any) -> data.Splits:
    return _loader(given, labels, **changes)(device=runtime.device(given.device))


def _loader(given: argparse.Namespace, labels: int = 0, **changes: Any) -> Callable[..., data.Splits]:
    """Return a function that loads the data set; it can be pickled."""
    options = {"classes": given.classes, "augment": given.augment} | changes
    needed = ANNOTATIONS.get(given.task, "")
    return functools.partial(
        data.load,
        given.dataset,
        given.data_root,
        **options,
        labels=labels,
        val=given.val,
        image_size=given.image_size,
        download=given.download,
        annotations=given.annotations or (needed if needed in data.kinds(given.dataset) else ""),
        ignore=given.ignore,
        **{name: getattr(given, name) for name in ("stream", "crop", "views", "workers", "corrupt", "flip")},
    )


def _unlabelled(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the data that are about unlabelled images."""
    if given.unlabelled not in ("", "all") and not given.unlabelled.isdecimal():
        raise InputError(f"--unlabelled {given.unlabelled} is neither a number nor all")
    if given.unlabelled and not given.teacher:
        raise InputError("unlabelled images can only be used with a teacher; name one with --teacher")
    count = given.unlabelled if given.unlabelled == "all" else int(given.unlabelled or 0)
    return {"unlabelled": count, "unlabelled_share": given.unlabelled_share}


def _recipe(given: argparse.Namespace, **changes: Any) -> Recipe:
    return Recipe(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Recipe)} | changes)


def _options(given: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "precision", "evaluate_every", "checkpoint_seconds", "runs", "sync_batchnorm")
    others = {
        "teacher_cache_gigabytes": given.teacher_cache_gigabytes,
        "teacher_cache_top": given.teacher_cache_top,
        "resume": not given.no_resume,
        "capture": not given.no_capture,
        "teacher_cache": given.teacher_cache or None,
        "task": tasks.create(given.task),
    }
    return {name: getattr(given, name) for name in names} | others


def _teacher(given: argparse.Namespace, needed: bool) -> Network | None:
    """Return the teacher: from a run folder, from a checkpoint, or trained now on all training images and kept."""
    check_networks(given)
    if not given.teacher:
        if needed:
            raise InputError("this method needs a teacher; name one with --teacher (a model's name or a run's folder)")
        return None
    if Path(given.teacher, "config.json").is_file():
        return training.load(given.teacher, device=given.device)
    files: dict[str, Any] = {}
    if (path := given.dataset.partition(":")[2]) and Path(path, "unlabelled").is_dir() and ".csv" in given.teacher:
        files = {"unlabelled": "all"}  # a file of predictions may have lines for these images
    splits = _splits(given, augment="crop", classes=given.teacher_classes or given.classes, **files)
    options = _options(given) | {"resume": True}
    recipe = _recipe(given, epochs=given.teacher_epochs or given.epochs).first_phase()
    return training.pretrain(given.teacher, splits, recipe=recipe, weights=given.teacher_weights, **options)


def _bank_images(given: argparse.Namespace, train: data.Images) -> data.Images | None:
    """Return the images of the teacher's bank if they are to be more than the student's, `train`."""
    if not given.bank_images:
        return None
    images = _splits(given, augment="crop").train
    return images if given.bank_images == "all" else data.selection.extended(train, images, int(given.bank_images))


def _bank(
    given: argparse.Namespace, train: data.Images, images: data.Images | None, teacher: Network | None
) -> MemoryBank | None:
    """Return the teacher's memory bank if it is another one than that of the student's images, `train`.

    Args:
        given: the options.
        train: the student's images.
        images: those of the bank, from `_bank_images`.
        teacher: the teacher.
    """
    task = tasks.create(given.task)
    if teacher is not None and given.threshold:
        return MemoryBank.build(teacher, train, threshold=given.threshold, task=task, precision=given.precision)
    if teacher is None or images is None:
        return None
    labels = "given" if given.bank_labels == "given" else task.keys(train)[0]
    return MemoryBank.build(teacher, images, labels=labels, task=task, precision=given.precision)


def train(given: argparse.Namespace) -> None:
    """Train one student and print its summary."""
    recipe, unlabelled = _recipe(given), _unlabelled(given)
    check_networks(given)
    if given.published:
        changed = [name for name, value in recipe_defaults(given.task).items() if getattr(given, name) != value]
        if changed or given.augment != "crop":
            raise InputError(f"--published sets {', '.join(changed) or 'augment'} itself; leave one of the two out")
        folder = Path(given.teacher, "config.json")
        network = runtime.Run(folder.parent).settings["student"]["network"] if folder.is_file() else given.teacher
        found = training.published(given.method, network, given.student, given.published)
        given.method, recipe, given.augment = found.method, found.recipe, found.augment
        if given.dataset.partition(":")[0] != given.published:
            runtime.notice(f"these settings are for {given.published}, and the data set is {given.dataset}")
        print(f"{'published' if found.official else 'not published'} settings: {found.source}", file=sys.stderr)
    requested(given.search)
    checks.check_training(given, [given.method], recipe)
    method, splits = methods.create(given.method), _splits(given, given.labels, **unlabelled)
    check_networks(given, splits)
    of_bank = _bank_images(given, splits.train)
    teacher = _teacher(given, method.needs_teacher)
    bank = _bank(given, splits.train, of_bank, teacher)
    students = training.peer_group(given.student, given.method, given.seed, given.peers)
    students[0] = dataclasses.replace(students[0], name=given.name)
    histories = training.distill(
        students,
        splits,
        teacher=teacher,
        bank=bank,
        recipe=recipe,
        data_seed=given.data_seed,
        search=given.search,
        callbacks=[training.KeepWeights(given.keep_weights)] if given.keep_weights else [],
        **_options(given),
    )
    for history in histories.values():
        print(json.dumps(history.summary, indent=2))
        print(f"run folder: {history.folder}")


def _executor(given: argparse.Namespace) -> contextlib.AbstractContextManager[Executor | None]:
    """Return what trains the jobs of a comparison; None for this process."""
    if given.slurm:
        if given.jobs != 1:
            raise InputError("--jobs and --slurm exclude each other; Slurm decides how many jobs run at a time")
        return training.Slurm(Path(given.runs) / "jobs" / "slurm", given.slurm)
    return training.Processes(given.jobs) if given.jobs != 1 else contextlib.nullcontext()


def compare(given: argparse.Namespace) -> None:
    """Train every method over the seeds and print the table."""
    requested(given.search)
    with _executor(given) as executor:
        _compare(given, executor)


def _compare(given: argparse.Namespace, executor: Executor | None) -> None:
    recipe, unlabelled = _recipe(given), _unlabelled(given)
    check_networks(given)
    checks.check_training(given, given.methods, recipe)
    splits = _splits(given, given.labels, **unlabelled)
    check_networks(given, splits)
    of_bank = _bank_images(given, splits.train)
    teacher = _teacher(given, any(methods.create(name).needs_teacher for name in given.methods))
    bank = _bank(given, splits.train, of_bank, teacher)
    try:
        found = training.compare(
            given.methods,
            splits if executor is None else _loader(given, given.labels, **unlabelled),
            student=given.student,
            teacher=teacher,
            bank=bank,
            peers=given.peers,
            seeds=given.seeds,
            recipe=recipe,
            executor=executor,
            retries=given.retries,
            methods_per_job=given.methods_per_job,
            search=given.search,
            with_peers=True,
            **_options(given),
        )
    except Diverged as error:  # all other students were trained to the end
        summaries = [history.summary for histories in error.histories.values() for history in histories]
        counts = {
            method: given.seeds - len({history.summary["data_seed"] for history in error.histories[method]})
            for method in given.methods
        }
        if isinstance(error, training.JobsDied):  # the error names them, and the students that diverged
            counts = {}
        print(runs.table(summaries, diverged={method: count for method, count in counts.items() if count}))
        raise
    summaries = [history.summary for histories in found.values() for history in histories]
    print(runs.table(summaries))
    for sentence in runs.behind_labels(summaries):
        runtime.notice(sentence)


def teach(given: argparse.Namespace) -> None:
    """Fine-tune a network, whose run folder can then be a teacher, and print its summary."""
    checks.check_teach(given)
    training_names = ("epochs", "head_epochs", "lr", "lr_head", "batch_size", "weight_decay", "linear_probe", "seed")
    names = (*training_names, "data_seed", "name", "runs", "device", "precision")
    splits = _splits(given, given.labels)
    history = training.teach(given.network, splits, **{name: getattr(given, name) for name in names})
    print(json.dumps(history.summary, indent=2))
    print(f"use it as a teacher: --teacher {history.folder}")


def bank(given: argparse.Namespace) -> None:
    """Build and save a memory bank, and print its retrieval precision."""
    checks.check_bank(given)
    images, task = _splits(given, given.labels).train, tasks.create(given.task)
    if given.k >= (rows := len(task.keys(images)[0])):
        raise InputError(f"--k {given.k}, but each row of the bank has {rows - 1:,} other rows; give a smaller number")
    teacher = _teacher(given, True)
    assert teacher is not None
    name = runtime.shortened(re.sub(r"[^\w.-]+", "-", f"{images.name.split('/')[0]}-{teacher.name}"))
    path = Path(given.out or Path(given.runs) / f"{name}.bank.safetensors")
    if not given.out:
        require_replaceable(path, images, teacher)
    built = MemoryBank.build(teacher, images, task=task, precision=given.precision)
    if runtime.rank() == 0:
        built.save(path)
    numbers = metrics.retrieval(built, images, k=given.k)
    print(json.dumps({"bank": str(path), "rows": len(built), "features": built.features.shape[1], **numbers}, indent=2))


def evaluate(given: argparse.Namespace) -> None:
    """Evaluate the student of a finished run."""
    network = training.load(given.run, device=given.device)
    images = commands.data_of(runtime.Run(given.run), given, functools.partial(_splits, given)).test
    task = tasks.create(given.task)
    print(json.dumps(training.evaluate(network, images, task=task, precision=given.precision), indent=2))


def export(given: argparse.Namespace) -> None:
    """Export the network of a run, and print a table of it, its file and its teacher."""
    checks.check_teacher_name(given)
    checks.check_files(given, "out", "json")
    commands.export(given, functools.partial(_splits, given))


def predict(given: argparse.Namespace) -> int:
    """Predict the classes of image files; return 1 if one of them cannot be read."""
    return commands.predict(given, functools.partial(_splits, given))


def report(given: argparse.Namespace) -> None:
    """Print or write the table of finished runs, or write a page about them."""
    checks.check_report(given)
    summaries = runs.finished(given.folders)
    given.baseline = runs.chosen_baseline(summaries, given.baseline)
    text = runs.table(summaries, baseline=given.baseline, best_first=True, diverged=runs.diverged(given.folders))
    for sentence in [*runs.behind_labels(summaries), *runs.without_teacher(summaries, given.baseline)]:
        runtime.notice(sentence)
    if given.figure:
        from ickd_lib.pages import commands as pages

        pages.draw(given, summaries)
    if given.json:
        records = runs.collected(given.folders)
        if given.without_epochs:
            records = [run | {"epochs": []} for run in records]
        runtime.write_json(given.json, records)
    if given.html:
        from ickd_lib.pages import commands as pages

        pages.report(given, functools.partial(_splits, given))
    if given.out:
        with runtime.replacing(given.out) as part:
            part.write_text(text, encoding="utf-8")
    elif not given.html:
        print(text)


def status(given: argparse.Namespace) -> None:
    """Print how far the runs are."""
    rows, left_out = runs.progress(given.folder)
    print(json.dumps({"runs": rows, "left_out": left_out}, indent=2) if given.json else runs.progress_table(rows))
    for problem in left_out:
        print(f"left out: {problem}", file=sys.stderr)


def diff(given: argparse.Namespace) -> None:
    """Print what differs between two runs."""
    print("\n".join(runs.diff(*given.runs)))


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line; None for that of the process.
    Returns:
        The exit status: 0; 1 if a student diverged, or `predict` could not read an image; 2 if an input is wrong (one
        line on stderr); 3 if another process of the training ended; 130 if interrupted; 141 if the output's reader,
        such as `head`, ended first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without ± shows "?" instead
    try:
        top = parser(arguments)
        given, extra = top.parse_known_args(arguments)
        if "\0" in "".join(sys.argv[1:] if arguments is None else arguments):
            raise InputError("an argument contains the character NUL")
        if extra:
            subparsers = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
            options = [o for a in subparsers.choices[given.command]._actions for o in a.option_strings]
            if extra[0].startswith("-"):
                runtime.choose(extra[0].split("=")[0], options, "option")
            folders = "; name folders before the options" if given.command in ("report", "status") else ""
            raise InputError(f"unexpected argument {extra[0]!r}{folders}")
        with runtime.processes(getattr(given, "device", "cpu")):
            output = contextlib.nullcontext() if runtime.rank() == 0 else contextlib.redirect_stdout(io.StringIO())
            with output:  # process 0 prints for all
                status = globals()[given.command](given) or 0
                sys.stdout.flush()
                return status
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return 141
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return _failed(f"error: {place}{getattr(error, 'strerror', None) or error}", 2)
    except Diverged as error:
        return _failed(f"error: {error}", 1)
    except ProcessLost as error:
        return _failed(f"error: {error}", 3)
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "seaborn", "sklearn", "umap"):
            raise
        return _failed(f"error: {error.name} is not installed; run pip install 'ickd[notebooks]'", 2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _failed("error: there is not enough memory; take smaller batches, fewer images or smaller numbers", 2)
    except KeyboardInterrupt as stop:
        return _failed(str(stop) or "stopped", 130)


def _unread() -> bool:
    """Return whether nobody reads the output any more; what is left of it is then dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _failed(message: str, status: int) -> int:
    """Print the message of an error, of several processes with the same error in one, and return the exit status."""
    if reports(message):
        process = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)  # names may be odd
        print(f"{process}{line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
