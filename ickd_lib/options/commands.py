"""The commands of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from ickd_lib import __version__, methods
from ickd_lib.options.groups import (
    bank_options,
    data_options,
    export_options,
    job_options,
    machine_options,
    predict_options,
    reader,
    recipe_defaults,
    shown_teacher_options,
    teacher_options,
    training_options,
    unlabelled_options,
)
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Count, Natural, NotNegative, Positive

DESCRIPTION = """In-context knowledge distillation.

  ickd compare --methods ce kd ickd --teacher resnet20 --labels 200 --epochs 40 --schedule onecycle
  ickd train --dataset cifar100 --download --teacher resnet32x4 --student resnet8x4 --method ickd
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Return the help of an option, with its default unless that is empty."""
        empty = action.default is None or action.default in ("", [], ())
        return action.help if empty else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(" ".join(message.split()))


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
        "CIFAR-100 (with --published imagenet: ImageNet; with --published coco: COCO); an error if none are published",
    )
    train.add_argument(
        "--name",
        default="",
        help="name of the run folder; by default student, method, seed and a fingerprint of the settings",
    )
    train.add_argument(
        "--keep-weights",
        type=reader(Natural),
        default=0,
        metavar="N",
        help="keep the weights of every N-th epoch in the run folder, to attribute predictions to images; 0: none",
    )
    compare = command("compare", "Train a student with several methods and seeds, and print a table.")
    compare.add_argument("--student", default="resnet8", help="a model's name")
    compare.add_argument("--methods", nargs="+", default=["ce", "kd", "ickd"], help=known)
    compare.add_argument("--seeds", type=reader(Count), default=3, help="number of seeds")
    for trainer in (train, compare):
        trainer.add_argument(
            "--peers",
            nargs="+",
            default=[],
            help="networks to train with the student if the method needs peers; by default one like the student",
        )
        data_options(trainer)
        teacher_options(trainer)
        bank_options(trainer)
        unlabelled_options(trainer)
        training_options(trainer, defaults)
        machine_options(trainer)
    job_options(compare)
    teach = command("teach", "Fine-tune a pretrained network. Its run folder can be the teacher in train and compare.")
    teach.add_argument("network", help="a model's name, such as 'torchvision/resnet18(pretrained=True)'")
    teach.add_argument(
        "--head-epochs",
        type=reader(Natural),
        default=5,
        help="epochs at the beginning in which only the classifier is trained",
    )
    teach.add_argument(
        "--epochs", type=reader(Count), default=20, help="epochs after these, in which all layers are trained"
    )
    teach.add_argument(
        "--lr", type=reader(Positive), default=1e-4, help="highest learning rate of all layers but the classifier"
    )
    teach.add_argument("--lr-head", type=reader(Positive), default=1e-3, help="highest learning rate of the classifier")
    teach.add_argument("--batch-size", type=reader(Count), default=64, help="images per step")
    teach.add_argument("--weight-decay", type=reader(NotNegative), default=0.05, help="weight decay of AdamW")
    teach.add_argument(
        "--linear-probe",
        action="store_true",
        help="train only the classifier, for --epochs epochs, on features that are computed once, without augmentation",
    )
    teach.add_argument("--seed", type=reader(int), default=0, help="seed of the initialisation of the classifier")
    teach.add_argument(
        "--data-seed", type=reader(int), default=0, help="seed of the order and the augmentation of the images"
    )
    teach.add_argument(
        "--name", default="", help="name of the run folder; by default network, method and a fingerprint"
    )
    data_options(teach)
    machine_options(teach)
    bank = command("bank", "Build a teacher's memory bank, save it, and measure its retrieval.")
    bank.add_argument("--out", default="", help="file to write; by default RUNS/DATASET-TEACHER.bank.safetensors")
    bank.add_argument(
        "--k", type=reader(Count), default=8, help="number of neighbours for which the retrieval precision is computed"
    )
    data_options(bank)
    teacher_options(bank, required=True)
    training_options(bank, defaults)
    machine_options(bank)
    evaluate = command("evaluate", "Evaluate the student of a finished run on the test images.")
    evaluate.add_argument("run", help="the run folder")
    data_options(evaluate, of_run=True)
    machine_options(evaluate)
    export_options(command("export", "Export the network of a finished run, and compare it with its teacher."))
    predict_options(command("predict", "Predict the classes of image files."))
    report = command("report", "Turn run folders into a Markdown table, or into an HTML page.")
    report.add_argument(
        "folders", nargs="*", default=["runs"], help="folders that contain runs, or JSON files that --json wrote"
    )
    report.add_argument("--out", default="", help="file to write; by default the table is printed")
    report.add_argument("--baseline", default="", help="a method; the table then shows the differences to it")
    report.add_argument(
        "--figure", default="", help="file for a figure of the accuracies and published ones, or of the differences"
    )
    report.add_argument("--json", default="", help="file for the configuration, records and summary of each run")
    report.add_argument(
        "--without-epochs", action="store_true", help="leave the records of epochs out of the JSON file"
    )
    report.add_argument("--html", default="", help="file for an HTML page: curves, classes, calibration and mistakes")
    shown_teacher_options(report, "--html")
    data_options(report, of_run=True)
    report.set_defaults(device="cpu")
    status = command("status", "Show how far each run is. Nothing is written.")
    status.add_argument("folder", nargs="?", default="runs", help="a folder that contains runs")
    status.add_argument("--json", action="store_true", help="print JSON instead of a table")
    difference = command("diff", "Compare two runs: settings, environment, and the first epoch at which they differ.")
    difference.add_argument("runs", nargs=2, metavar="RUN", help="a run folder")
    return top
