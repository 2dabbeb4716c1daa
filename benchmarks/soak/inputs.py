"""Generated bad input over the command line: no input may give a traceback, and an error is one line."""

from __future__ import annotations

import argparse
import inspect
import random
import shutil
import string
from collections import Counter
from pathlib import Path

from children import TRACEBACK, Child

from ickd_lib import methods, options

SECONDS = 2.5  # an input that is accepted trains; it is ended then
TEXTS = [
    *"nan NaN inf -inf 1e30 1e999 -1 0 -0.0 0.5 1e-320 None True [] {} () x .. . / /// ~ - -- = , : * ? % \\".split(),
    *("", " ", "9" * 400, "9" * 5000, "±", "a\0b", "\n", "\t", "<b>&amp;</b>", "'", '"', "$(id)", "a" * 300, "ü/ü"),
    *("/dev/null", "/dev/full", "/proc/self/mem", "/nowhere/at/all", "../..", "lone \udcff surrogate", "0x10", "1_000"),
    *("ickd(", "ickd()", "ickd(nicd=1)(kd=2)", "kd(kd=1", "kd(**{})", "kd(__import__('os'))", "ce+", "+", "ce+ce"),
    *(
        "folder:",
        "folder:/dev",
        "coco:",
        "voc:/proc",
        "masks:x",
        "imagenet:",
        "folder:\0",
        "folder:..",
        "scenes",
        "digits",
    ),
    *("torchvision/resnet18", "timm/none", "a.csv", "a.py:x", "model.pt", "cuda:99", "meta", "mps", "bf16", "fp16"),
]
VALUES = "None nan inf -inf 1e999 -1 0 0.5 1e300 1e30 True 'x' [] (1,2) {} 10**9 1j -0.0 b'' ... 2**70 1e-320".split()
NEVER = {"jobs", "workers", "slurm", "download", "retries"}  # these start processes, or use the network
COMMANDS = {
    "train": "--dataset DATA --student resnet8 --method ce --batch-size 8 --epochs 1 --device cpu",
    "compare": "--dataset DATA --student resnet8 --methods ce kd --teacher RUN --seeds 1 --epochs 1 --device cpu",
    "teach": "resnet8 --dataset DATA --epochs 1 --head-epochs 0 --device cpu",
    "bank": "--dataset DATA --teacher RUN --k 2 --device cpu --out bank.safetensors",
    "evaluate": "RUN --dataset DATA --device cpu",
    "export": "RUN --dataset DATA --format safetensors --out student.safetensors",
    "predict": "RUN DATA/val --dataset DATA",
    "report": "RUNS",
    "status": "RUNS",
    "diff": "RUN RUN",
}


def line(draw: random.Random, data: Path, run: Path) -> list[str]:
    """Return a command line with one to three wrong, odd or extreme arguments."""
    command = draw.choice(list(COMMANDS))
    names = {"DATA": f"folder:{data}", "DATA/val": str(data / "val"), "RUN": str(run), "RUNS": str(run.parent)}
    arguments = [command, *(names.get(word, word) for word in COMMANDS[command].split())]
    actions = options.parser([command])._subparsers._group_actions[0].choices[command]._actions
    flags = [a for a in actions if a.option_strings and a.dest not in NEVER]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        kind = draw.random()
        if kind < 0.25 and command in ("train", "compare"):
            option = "--method" if command == "train" else "--methods"
            arguments += [option, method(draw), *(["--teacher", str(run)] if draw.random() < 0.8 else [])]
        elif kind < 0.75:
            action = draw.choice(flags)
            arguments += [action.option_strings[0]] + ([text(draw)] if _takes(action) or draw.random() < 0.1 else [])
        elif kind < 0.9:
            arguments[draw.randrange(1, len(arguments))] = text(draw)
        else:
            arguments.insert(draw.randrange(1, len(arguments)), text(draw))
    return arguments


def _takes(action: argparse.Action) -> bool:
    return action.nargs != 0


def text(draw: random.Random) -> str:
    """Return a text that is wrong for most options."""
    if draw.random() < 0.8:
        return draw.choice(TEXTS)
    return "".join(draw.choice(string.printable) for _ in range(draw.randrange(8)))


def method(draw: random.Random) -> str:
    """Return the call of a method with a wrong, odd or extreme value."""
    name = draw.choice(methods.names())
    known = list(inspect.signature(type(methods.create(name))).parameters) or ["ce"]
    given = ", ".join(f"{draw.choice(known)}={draw.choice(VALUES)}" for _ in range(draw.choice([1, 1, 2])))
    return draw.choice([f"{name}({given})", f"ce+{name}({given})", f"{name}({given})+kd"])


def try_one(draw: random.Random, place: Path, data: Path, run: Path, counts: Counter[str]) -> list[str]:
    """Run one generated command line, and return what is wrong."""
    shutil.rmtree(place, ignore_errors=True)
    inside = place / "above" / "inside"
    inside.mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        (place / "above" / name).write_text("precious")
        (inside / name).write_text("precious")
    arguments = line(draw, data, run)
    child = Child(arguments, place / "log", folder=inside)
    if ended := child.wait(SECONDS):
        counts["refused" if child.status == 2 else "accepted"] += 1
    else:
        counts["accepted"] += 1
    child.kill()
    counts["bad_inputs"] += 1
    output, wrong = child.output, []
    if "Traceback" in output or (ended and child.status in (TRACEBACK, -6, -7, -8, -11)):
        wrong.append(f"a traceback, status {child.status}")
    errors = [one for one in output.splitlines() if one.startswith("error: ")]
    if ended and child.status == 2 and (len(errors) != 1 or not output.rstrip("\n").endswith(errors[0])):
        wrong.append("an error of more than one line")
    if ended and child.status not in (0, 1, 2):
        wrong.append(f"status {child.status}")
    for name in ("config.json", "summary.json"):
        if any((folder / name).read_text() != "precious" for folder in (inside, inside.parent)):
            wrong.append(f"{name} of another folder was replaced")
    return [f"{arguments}: {'; '.join(wrong)}: {output[-1500:]}"] if wrong else []
