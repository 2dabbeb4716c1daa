"""The options of the command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args

from ickd_lib import __version__, data, methods, tasks
from ickd_lib.runtime import InputError, shown
from ickd_lib.runtime.arguments import BelowOne, Count, Natural, NotNegative, described, fits
from ickd_lib.training import Recipe
from ickd_lib.training.recipe import settings

DESCRIPTION = """In-context knowledge distillation.

  ickd compare --methods ce kd "ickd(nicd=2.0)" --teacher resnet20 --labels 200 --epochs 40 --schedule onecycle
  ickd train --dataset cifar100 --download --teacher resnet32x4 --student resnet8x4 --method ickd
"""


TEACHER = """a model's name; the folder of a run; or a file: model.py:NAME, a function or class that makes a module, a
TorchScript program model.pt, or an exported program model.pt2; arguments of models.wrap follow in brackets. The code in
such files is run. predictions.csv: the predictions of a teacher for the training images"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(" ".join(message.split()))


def reader(kind: Any) -> Callable[[str], Any]:
    """Return a function that converts the text of an option to the type of an annotation, and checks its range."""
    plain = (get_args(kind) or (kind,))[0]

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if fits(value := plain(text), kind):
                return value
        raise argparse.ArgumentTypeError(f"expected {described(kind)}, not {shown(text)}")

    return read


def _data_options(parser: argparse.ArgumentParser, of_run: bool = False) -> None:
    """Add the options of the data. With `of_run`, the default of the data set is that of a run."""
    group = parser.add_argument_group("data")
    group.add_argument("--task", default="classification", help=", ".join(tasks.names()))
    known = ", ".join(data.names())
    if of_run:
        help_text = f"{known}; by default that of the run, whose path, if it has one, must be given here"
        group.add_argument("--dataset", default="", help=help_text)
    else:
        group.add_argument("--dataset", default="digits", help=known)
    group.add_argument("--data-root", default="data", help="folder of downloaded data sets")
    group.add_argument("--download", action="store_true", help="download CIFAR-100 if it is missing")
    group.add_argument(
        "--labels",
        type=reader(Natural),
        default=0,
        help="number of labelled images that the student is trained on; 0: all",
    )
    group.add_argument("--classes", nargs="+", default=[], help="the student's classes or superclasses; by default all")
    group.add_argument(
        "--augment",
        default="crop",
        help="crop; randaugment, mixup or cutmix, each after the crop; or two of these, as in randaugment+cutmix",
    )
    group.add_argument(
        "--val",
        type=reader(BelowOne),
        default=0.0,
        help="fraction of the training images to hold out for validation; validation images of the data set's own are "
        "used for any number above 0",
    )
    group.add_argument(
        "--image-size",
        type=reader(Natural),
        default=0,
        help="height and width in pixels: of the images of a folder after resizing (0: their own size), or of random "
        "resized crops (0: 224). With masks or boxes: the shorter side (0: their own size)",
    )
    group.add_argument(
        "--annotations",
        default="",
        help="masks, boxes or instances, of a data set that has several of them; by default those that the task needs",
    )
    group.add_argument(
        "--ignore",
        type=reader(int),
        default=None,
        help="value of the ignored pixels in the masks of masks:PATH, beside 255",
    )
    group.add_argument(
        "--stream",
        action="store_true",
        help="decode image files when they are needed, even if all images fit into memory; by default only if they "
        "would take more than half of the available memory (with masks or boxes: more than 1 GiB)",
    )
    group.add_argument(
        "--crop",
        default="",
        help="crops of the images of a folder: pad (own size, after padding) or resized (random resized crops); by "
        "default pad, for imagenet:PATH resized",
    )
    group.add_argument(
        "--views",
        type=reader(Natural),
        default=0,
        help="number of random resized crops of each image, which a teacher cache can hold; 0: new ones in each epoch",
    )
    group.add_argument(
        "--workers",
        type=reader(Natural),
        default=None,
        help="number of worker processes, for each training process, that decode streamed images; by default its "
        "share of the cores, less one",
    )
    group.add_argument(
        "--corrupt",
        default="stop",
        help="what to do with image files that cannot be read: stop with an error, or skip them",
    )


def _teacher_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", default="", required=required, help=TEACHER)
    group.add_argument(
        "--teacher-weights",
        default="",
        help="checkpoint of the teacher, or pretrained for the weights that are part of its name, as in "
        "\"torchvision/resnet34(pretrained='IMAGENET1K_V1')\"; by default it is trained, and kept for later runs",
    )
    group.add_argument(
        "--teacher-classes", nargs="+", default=[], help="the teacher's classes; by default those of the student"
    )
    group.add_argument(
        "--teacher-epochs",
        type=reader(Natural),
        default=0,
        help="epochs of the teacher's training; 0: as many as the student",
    )


def _bank_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory bank")
    group.add_argument(
        "--bank-images",
        default="",
        help="number of training images in the teacher's memory bank, or all: those of the student, and others that "
        "are drawn at random; by default those of the student alone",
    )
    group.add_argument(
        "--bank-labels",
        choices=("teacher", "given"),
        default="teacher",
        help="labels of the images in the bank that are not the student's: predicted by the teacher, or given",
    )
    group.add_argument(
        "--search",
        default="exact",
        help="exact; or faiss, an approximate search for the negatives, which is faster in a large bank",
    )


def _unlabelled_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("unlabelled images")
    group.add_argument(
        "--unlabelled",
        default="",
        help="number of training images without labels, or all: files in PATH/unlabelled of a folder, and the images "
        "that --labels leaves out; the teacher teaches them",
    )
    group.add_argument(
        "--unlabelled-share",
        type=float,
        default=0.0,
        help="their share of each batch; 0: as in the training images",
    )
    group.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        help="least probability of the teacher's prediction for an unlabelled image to have in-context samples",
    )


def recipe_defaults(task: str) -> dict[str, Any]:
    """Return the recipe's defaults for a task, by name of the field; those of a classification for an unknown task."""
    changes = tasks.create(task).recipe if task in tasks.names() else {}
    return {field.name: changes.get(field.name, field.default) for field in dataclasses.fields(Recipe)}


def _training_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    group = parser.add_argument_group("training")
    for field in dataclasses.fields(Recipe):
        option, kind = "--" + field.name.replace("_", "-"), settings()[field.name]
        common = {"default": defaults[field.name], "help": field.metadata["help"]}
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            group.add_argument(option, action=action, **common)
        elif isinstance(field.default, tuple):
            group.add_argument(option, nargs=len(field.default) or "*", type=reader(get_args(kind)[0]), **common)
        else:
            group.add_argument(option, type=reader(kind), **common)
    group.add_argument("--evaluate-every", type=reader(Count), default=1, help="epochs between evaluations")
    group.add_argument(
        "--checkpoint-seconds", type=reader(NotNegative), default=60.0, help="seconds between checkpoints"
    )
    group.add_argument(
        "--no-resume", action="store_true", help="stop with an error if a run exists already, instead of resuming it"
    )
    group.add_argument(
        "--teacher-cache",
        default="",
        help="folder of a cache of the teacher's outputs, for this and later runs; random resized crops also need "
        "--views",
    )
    group.add_argument(
        "--teacher-cache-gigabytes", type=reader(NotNegative), default=4.0, help="largest size of the teacher cache"
    )
    group.add_argument(
        "--teacher-cache-top",
        type=reader(Natural),
        default=0,
        help="number of the largest logits of each output in the teacher cache; 0: all of them",
    )
    group.add_argument(
        "--sync-batchnorm",
        action="store_true",
        help="with several processes, normalise by the statistics of the whole batch",
    )
    group.add_argument(
        "--no-capture", action="store_true", help="on a GPU, run every step eagerly instead of capturing it"
    )


def _machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--runs", default="runs", help="folder that contains the run folders")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N; with several processes auto, cpu or cuda"
    )
    group.add_argument("--precision", default="auto", help="auto, fp32 or bf16")


def _job_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("jobs")
    group.add_argument(
        "--jobs",
        type=reader(Count),
        default=1,
        help="number of processes on this machine, each of which trains the students of one seed at a time",
    )
    group.add_argument(
        "--slurm",
        default="",
        metavar="KEY=VALUE,…",
        help="train the students of each seed in a job of Slurm, as in partition=gpu,gpus=1,time=8:00:00; other keys: "
        "account, qos, constraint, exclude, cpus, mem, and cluster=local to try it without Slurm",
    )
    group.add_argument(
        "--retries", type=reader(Natural), default=3, help="how often a job that died is run again, from its checkpoint"
    )
    group.add_argument(
        "--methods-per-job",
        type=reader(Natural),
        default=0,
        help="largest number of methods in a job, for more jobs than seeds; each evaluates the teacher again; 0: all",
    )


def _export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("run", help="the run folder")
    export.add_argument("--format", default="onnx", help="onnx, pt2 (torch.export) or safetensors (weights and a card)")
    export.add_argument("--out", required=True, help="file to write, which ends in .onnx, .pt2 or .safetensors")
    export.add_argument(
        "--preprocess",
        action="store_true",
        help="the graph takes uint8 images and gives probabilities; by default images in [0, 1] and logits",
    )
    export.add_argument("--int8", action="store_true", help="quantise the network to 8 bits; onnx only")
    export.add_argument(
        "--calibration", type=int, default=200, help="number of training images that determine the ranges of --int8"
    )
    export.add_argument(
        "--teacher", default="", help="run folder of the teacher, for the table; by default it is searched beside RUN"
    )
    export.add_argument(
        "--test-images", type=int, default=0, help="number of test images on which the table is measured; 0: all"
    )
    _data_options(export, of_run=True)
    export.set_defaults(device="cpu")


def _predict_options(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", help="a run folder, or a file of ickd export that ends in .onnx or .pt2")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file, or a folder of image files")
    predict.add_argument("--bank", default="", help="file of a memory bank, whose most similar rows are shown")
    predict.add_argument(
        "--top", type=int, default=3, help="number of classes, and of rows of the bank, for each image"
    )
    predict.add_argument("--csv", default="", help="file for the predictions as CSV")
    _data_options(predict, of_run=True)
    predict.set_defaults(device="cpu")


def parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Args:
        arguments: the command line, whose `--task` determines the defaults of the training; None for that of the
            process.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--task", nargs="?", default="classification")
    defaults = recipe_defaults(first.parse_known_args(arguments)[0].task)
    top = _Parser("ickd", description=DESCRIPTION, formatter_class=_Help, allow_abbrev=False)
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
    train.add_argument("--seed", type=reader(int), default=0, help="seed of the initialisation")
    train.add_argument(
        "--data-seed", type=reader(int), default=0, help="seed of the order and the augmentation of the images"
    )
    train.add_argument(
        "--published",
        nargs="?",
        const="cifar100",
        default="",
        metavar="DATA",
        help="take weights, recipe and augmentation as published for the method and this pair of networks on "
        "CIFAR-100, or with --published imagenet or coco on ImageNet or COCO; an error if none are published",
    )
    train.add_argument(
        "--name",
        default="",
        help="name of the run folder; by default student, method, seed and a fingerprint of the settings",
    )
    compare = command("compare", "Train a student with several methods over several seeds; print a table.")
    compare.add_argument("--student", default="resnet8", help="a model's name")
    compare.add_argument("--methods", nargs="+", default=["ce", "kd", "ickd"], help=known)
    compare.add_argument("--seeds", type=reader(Count), default=3, help="number of seeds")
    for trainer in (train, compare):
        trainer.add_argument(
            "--peers",
            nargs="+",
            default=[],
            help="networks to train beside the student if the method needs peers; by default one of the same kind",
        )
        _data_options(trainer)
        _teacher_options(trainer)
        _bank_options(trainer)
        _unlabelled_options(trainer)
        _training_options(trainer, defaults)
        _machine_options(trainer)
    _job_options(compare)
    teach = command("teach", "Fine-tune a pretrained network; its run folder is a teacher for train and compare.")
    teach.add_argument("network", help="a model's name, such as 'torchvision/resnet18(pretrained=True)'")
    teach.add_argument(
        "--head-epochs", type=int, default=5, help="epochs at the beginning in which only the classifier is trained"
    )
    teach.add_argument("--epochs", type=int, default=20, help="epochs after them, in which all layers are trained")
    teach.add_argument("--lr", type=float, default=1e-4, help="highest learning rate of all layers but the classifier")
    teach.add_argument("--lr-head", type=float, default=1e-3, help="highest learning rate of the classifier")
    teach.add_argument("--batch-size", type=int, default=64, help="images per step")
    teach.add_argument("--weight-decay", type=float, default=0.05, help="weight decay of AdamW")
    teach.add_argument(
        "--linear-probe",
        action="store_true",
        help="train only the classifier, for --epochs epochs, on features that are computed once, without augmentation",
    )
    teach.add_argument("--seed", type=int, default=0, help="seed of the initialisation of the classifier")
    teach.add_argument("--data-seed", type=int, default=0, help="seed of the order and the augmentation of the images")
    teach.add_argument(
        "--name", default="", help="name of the run folder; by default network, method and a fingerprint"
    )
    _data_options(teach)
    _machine_options(teach)
    bank = command("bank", "Build a teacher's memory bank, save it, and measure its retrieval.")
    bank.add_argument("--out", default="", help="file to write; by default RUNS/DATASET-TEACHER.bank.safetensors")
    bank.add_argument(
        "--k", type=reader(Count), default=8, help="number of neighbours for which the retrieval precision is computed"
    )
    _data_options(bank)
    _teacher_options(bank, required=True)
    _training_options(bank, defaults)
    _machine_options(bank)
    evaluate = command("evaluate", "Evaluate the student of a finished run on the test images.")
    evaluate.add_argument("run", help="the run folder")
    _data_options(evaluate)
    _machine_options(evaluate)
    _export_options(command("export", "Export the network of a finished run, and compare it with its teacher."))
    _predict_options(command("predict", "Predict the classes of image files."))
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
    status = command("status", "Show how far each run is. Nothing is written.")
    status.add_argument("folder", nargs="?", default="runs", help="a folder that contains runs")
    status.add_argument("--json", action="store_true", help="print JSON instead of a table")
    difference = command("diff", "Compare two runs: settings, environment, and the first epoch at which they differ.")
    difference.add_argument("runs", nargs=2, metavar="RUN", help="a run folder")
    return top
