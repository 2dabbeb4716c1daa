"""Groups of options that several commands have, and those of single commands with many."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, get_args

from ickd_lib import data, tasks
from ickd_lib.runtime import InputError, runs_folder, shown
from ickd_lib.runtime.arguments import BelowOne, Count, Natural, NotNegative, Share, described, fits
from ickd_lib.training import Recipe
from ickd_lib.training.recipe import settings

TEACHER = """a model's name; the folder of a run; or a file: model.py:NAME (a function or class that makes a module), a
TorchScript program model.pt, or an exported program model.pt2, with arguments of models.wrap in brackets. The code in
such files is run. Or predictions.csv, the predictions of a teacher for the training images"""


def reader(kind: Any) -> Callable[[str], Any]:
    """Return a function that converts the text of an option to the type of an annotation, and checks its range."""
    plain = (get_args(kind) or (kind,))[0]

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if fits(value := plain(text), kind):
                return value
        raise argparse.ArgumentTypeError(f"expected {described(kind)}, not {shown(text)}")

    return read


def data_options(parser: argparse.ArgumentParser, of_run: bool = False) -> None:
    """Add the options of the data. With `of_run`, those that are recorded in a run are left out or have its values."""
    group = parser.add_argument_group("data")
    known = ", ".join(data.names())
    if of_run:
        help_text = f"{known}; by default that of the run; if it is in a folder, give its PATH here"
        group.add_argument("--dataset", default="", help=help_text)
        parser.set_defaults(task="classification", labels=0, augment="crop")
    else:
        group.add_argument("--task", default="classification", help=", ".join(tasks.names()))
        group.add_argument("--dataset", default="digits", help=known)
        group.add_argument(
            "--labels",
            type=reader(Natural),
            default=0,
            help="number of labelled training images that are used; 0: all",
        )
        group.add_argument(
            "--augment",
            default="crop",
            help="crop; randaugment, mixup or cutmix, each after the crop; or two of these, as in randaugment+cutmix",
        )
    group.add_argument("--data-root", default="data", help="folder of downloaded data sets")
    group.add_argument("--download", action="store_true", help="download CIFAR-100 if it is missing")
    group.add_argument("--classes", nargs="+", default=[], help="the student's classes or superclasses; by default all")
    group.add_argument(
        "--val",
        type=reader(BelowOne),
        default=0.0,
        help="fraction of the training images to hold out for validation; if the data set has validation images, "
        "these are used for any number above 0",
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
        help="value of ignored pixels in the masks of masks:PATH, in addition to 255",
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
        help="number of processes that decode streamed images for each training process; by default its share of the "
        "cores, minus one",
    )
    group.add_argument(
        "--corrupt",
        default="stop",
        help="what to do with image files that cannot be read: stop with an error, or skip them",
    )
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether half of the augmented training images are mirrored from left to right; by default all but the "
        "digits are. Give --no-flip if a mirrored image has another meaning, as for characters or signs",
    )


def teacher_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", default="", required=required, help=TEACHER)
    group.add_argument(
        "--teacher-weights",
        default="",
        help="checkpoint of the teacher, or pretrained for the weights that are part of its name, as in "
        "\"torchvision/resnet34(pretrained='IMAGENET1K_V1')\"; by default it is trained and kept for later runs",
    )
    group.add_argument(
        "--teacher-classes", nargs="+", default=[], help="the teacher's classes; by default those of the student"
    )
    group.add_argument(
        "--teacher-epochs",
        type=reader(Natural),
        default=0,
        help="epochs of the teacher's training; 0: those of --epochs",
    )


def bank_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory bank")
    group.add_argument(
        "--bank-images",
        default="",
        help="number of training images in the teacher's memory bank, or all; images beyond those of the student are "
        "drawn at random; by default those of the student alone",
    )
    group.add_argument(
        "--bank-labels",
        choices=("teacher", "given"),
        default="teacher",
        help="labels in the bank of images beyond those of the student: from the teacher's predictions or the data set",
    )
    group.add_argument(
        "--search",
        default="exact",
        help="exact; or faiss, an approximate search for the negatives, which is faster in a large bank",
    )


def unlabelled_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("unlabelled images")
    group.add_argument(
        "--unlabelled",
        default="",
        help="number of training images to use without labels, or all: files in PATH/unlabelled of a folder, and the "
        "images that --labels leaves out; the teacher's outputs are their targets; by default none",
    )
    group.add_argument(
        "--unlabelled-share",
        type=reader(Share),
        default=0.0,
        help="share of unlabelled images in each batch; 0: as in the training images",
    )
    group.add_argument(
        "--threshold",
        type=reader(Share),
        default=0.0,
        help="least probability of the teacher's prediction with which an unlabelled image has in-context samples",
    )


def recipe_defaults(task: str) -> dict[str, Any]:
    """Return the recipe's defaults for a task, by name of the field; those of a classification for an unknown task."""
    changes = tasks.create(task).recipe if task in tasks.names() else {}
    return {field.name: changes.get(field.name, field.default) for field in dataclasses.fields(Recipe)}


def training_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    group = parser.add_argument_group("training")
    for field in dataclasses.fields(Recipe):
        option, kind = "--" + field.name.replace("_", "-"), settings()[field.name]
        common = {"default": defaults[field.name], "help": field.metadata["help"]}
        if isinstance(field.default, bool):
            group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
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
        help="folder of a cache of the teacher's outputs, for this and later runs; by default none; random resized "
        "crops also need --views",
    )
    group.add_argument(
        "--teacher-cache-gigabytes", type=reader(NotNegative), default=4.0, help="largest size of this cache, in GB"
    )
    group.add_argument(
        "--teacher-cache-top",
        type=reader(Natural),
        default=0,
        help="number of largest logits of each output that are cached; 0: all logits",
    )
    group.add_argument(
        "--sync-batchnorm",
        action="store_true",
        help="with several processes, normalise by the statistics of the whole batch",
    )
    group.add_argument(
        "--no-capture", action="store_true", help="on a GPU, run every step eagerly instead of capturing it"
    )


def _runs(text: str) -> str:
    try:
        runs_folder(text)
    except InputError as error:  # argparse hides the message of a ValueError
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--runs", type=_runs, default="runs", help="folder that contains the run folders")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N; with several processes auto, cpu or cuda"
    )
    group.add_argument("--precision", default="auto", help="auto, fp32 or bf16")


def job_options(parser: argparse.ArgumentParser) -> None:
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
        help="largest number of methods in a job, for more jobs than seeds; each job evaluates the teacher; 0: all",
    )


def export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("run", help="the run folder")
    export.add_argument(
        "--format", default="onnx", help="onnx, pt2 (torch.export) or safetensors (weights, model card)"
    )
    export.add_argument("--out", required=True, help="file to write, which ends in .onnx, .pt2 or .safetensors")
    export.add_argument(
        "--preprocess",
        action="store_true",
        help="the graph takes uint8 images and returns probabilities; by default images in [0, 1] and logits",
    )
    export.add_argument("--int8", action="store_true", help="quantise the network to 8 bits; onnx only")
    export.add_argument(
        "--calibration",
        type=reader(Count),
        default=None,
        help="number of training images that determine the ranges of --int8; by default 200, or all if they are fewer",
    )
    shown_teacher_options(export, "the table")
    export.add_argument("--json", default="", help="file for the numbers of the table")
    export.add_argument(
        "--test-images",
        type=reader(Natural),
        default=0,
        help="number of test images on which the table is measured; 0: all",
    )
    data_options(export, of_run=True)
    export.set_defaults(device="cpu")


def shown_teacher_options(parser: argparse.ArgumentParser, use: str) -> None:
    parser.add_argument(
        "--teacher",
        default="",
        help=f"the teacher, for {use}: its run folder, the file of a network, or with --teacher-weights a model's "
        "name; by default its run folder is searched in the folder of the run folders",
    )
    parser.add_argument("--teacher-weights", default="", help="checkpoint of a teacher that is given by its name")


def predict_options(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", help="a run folder, or a file of ickd export that ends in .onnx or .pt2")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="an image file, or a folder of image files")
    predict.add_argument("--bank", default="", help="file of a memory bank; its most similar images are shown")
    predict.add_argument(
        "--top", type=reader(Count), default=3, help="number of classes, and of similar images, for each image"
    )
    predict.add_argument("--csv", default="", help="file for the predictions as CSV")
    data_options(predict, of_run=True)
    predict.set_defaults(device="cpu")
