"""Repeats hostile trials for a stated time: kills, full disks, two processes, bad input, interactions.

    python benchmarks/soak [--minutes 30] [--out runs/soak.json] [--seed N]

The parts take turns. Trainings are forked from this process, so that a kill costs no import. Every result is compared
with that of an uninterrupted training, bit for bit. The file contains the counts; a later call adds to them. The exit
status is 1 if something was lost, spoilt or ended in a traceback; the file then names it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # so that a forked process does not wait for threads that it does not have
os.environ.setdefault("TQDM_DISABLE", "1")

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
import torch._dynamo  # an optimiser imports it, which takes seconds
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inputs
import interactions
import kills
import machine

from ickd_lib import runtime

BATCH = 25  # bad inputs in a round


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"))
    parser.add_argument("--seed", type=int, default=None, help="of all choices; by default the time")
    given = parser.parse_args()
    seed = int(time.time()) if given.seed is None else given.seed
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"counts": {}, "wrong": []}
    before = len(found["wrong"])
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        repeat(Path(folder), given.minutes, random.Random(seed), found, given.out)
    for name, count in sorted(found["counts"].items()):
        print(f"{name.replace('_', ' '):24} {count:>8,}")
    for problem in found["wrong"][before:]:
        print(f"\nWRONG: {problem}")
    return int(len(found["wrong"]) > before)


def warm_up() -> None:
    """Do once what takes seconds, so that forked processes do not repeat it."""
    sklearn.datasets.load_digits()
    runtime.environment(torch.device("cpu"))
    Image.init()


def repeat(folder: Path, minutes: float, draw: random.Random, found: dict[str, Any], out: Path) -> None:
    """Repeat all parts until the time is over. `found` is written to a file after each part."""
    until, began = time.monotonic() + 60 * minutes, time.monotonic()
    counts, earlier = Counter(found["counts"]), found["counts"].get("minutes", 0)
    made: list[kills.Campaign] = []
    with contextlib.ExitStack() as stack:
        reason = stack.enter_context(kills.small_disk(folder / "disk"))
        if reason:
            print(f"skipped: {reason}", file=sys.stderr)
        waiting = kills.campaigns(folder / "trainings")
        while time.monotonic() < until:
            campaign = next(waiting, None)
            if campaign:
                made.append(campaign)
            parts = [partial(one.killed, draw, counts) for one in draw.sample(made, min(4, len(made)))]
            parts.append(partial(draw.choice(made).twice, draw, counts))
            if not reason:
                parts.append(partial(draw.choice(made).on_full_disk, draw, counts, folder / "disk"))
            parts.append(partial(bad_inputs, draw, folder, counts))
            if counts["rounds"] % 5 == 4:
                parts.append(partial(explore, draw, folder, counts, found))
            for part in parts:
                found["wrong"] += part()
                counts["minutes"] = round(earlier + (time.monotonic() - began) / 60, 1)
                found["counts"] = dict(sorted(counts.items()))
                found["environment"] = runtime.environment(torch.device("cpu"))
                found["machine"] = machine.name(torch.device("cpu"))
                runtime.write_json(out, found)
                if time.monotonic() > until:
                    return
            counts["rounds"] += 1


def bad_inputs(draw: random.Random, folder: Path, counts: Counter[str]) -> list[str]:
    """Try some generated command lines."""
    data, run = folder / "trainings" / "images", folder / "trainings" / "taught" / "teacher"
    return [one for _ in range(BATCH) for one in inputs.try_one(draw, folder / "inputs", data, run, counts)]


def explore(draw: random.Random, folder: Path, counts: Counter[str], found: dict[str, Any]) -> list[str]:
    """Interact with the explorers, and return what is wrong."""
    runs = folder / "trainings" / "taught"
    result = interactions.in_child(1000, draw.randrange(2**31), runs, folder / "interactions.json")
    counts["interactions"] += result["interactions"]
    counts["displayed_errors"] += result.get("displayed_errors", 0)
    found["interactions"] = {k: v for k, v in result.items() if k.endswith("growth")}
    wrong = [f"an explorer raised {error}" for error in sorted(set(result["raised"]))]
    if result.get("memory_growth", 0) > 60e6 or result.get("files_growth", 0) > 2:
        wrong.append(f"memory or files grow: {found['interactions']}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
