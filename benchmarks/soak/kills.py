"""Trainings that are killed again and again, on a full disk, or started twice, compared with uninterrupted ones."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from children import TRACEBACK, Child, die_between_files, die_in_write, fail_in_write
from PIL import Image
from safetensors.torch import load_file

KILLS = 8  # largest number of kills of one training
COMMON = (
    "--device cpu --precision fp32 --schedule cosine --lr 0.05 --checkpoint-seconds 0 --epochs 2 --evaluate-every 2"
).split()
IN_CONTEXT = "ickd(positives=2, negatives=4)"


class Campaign:
    """Trainings of one command.

    Args:
        folder: a folder for everything.
        arguments: the command line without `--runs`.
        kept: a folder that the command writes beside the runs, such as a teacher cache; "" for none.
    """

    def __init__(self, folder: Path, arguments: list[str], kept: str = "") -> None:
        self.folder, self.arguments, self.kept = folder, arguments, kept
        folder.mkdir(parents=True)
        whole = self.start(folder / "whole")
        if not whole.wait(600) or whole.status:
            raise RuntimeError(f"{arguments} does not train:\n{whole.output[-2000:]}")
        self.seconds = _seconds(folder / "whole") + 0.3
        self.expected = results(folder / "whole" / "runs")
        assert self.expected

    def start(self, place: Path, before: Callable[[], object] = lambda: None, log: str = "log") -> Child:
        """Start the command with its files in the folder `place`."""
        place.mkdir(parents=True, exist_ok=True)
        kept = [f"--{self.kept}", str(place / "kept")] if self.kept else []
        return Child([*self.arguments, "--runs", str(place / "runs"), *kept], place / log, before)

    def finish(self, place: Path) -> list[str]:
        """Train to the end, and return what is wrong with the result."""
        child = self.start(place)
        if not child.wait(600):
            child.kill()
            return ["a resumed training did not end"]
        if child.status:
            return [f"a resumed training ended with {child.status}: {child.output[-1500:]}"]
        return differences(self.expected, place / "runs")

    def killed(self, draw: random.Random, counts: Counter[str]) -> list[str]:
        """Kill trainings of one run some times, then train to the end."""
        place = self.folder / "killed"
        shutil.rmtree(place, ignore_errors=True)
        wrong = []
        for _ in range(draw.randrange(3, KILLS + 1)):
            kind = draw.choice(["kill", "kill", "kill", "write", "files", "error", "stop"])
            chance = random.Random(draw.random())
            before = {"write": die_in_write, "files": die_between_files, "error": fail_in_write}.get(kind)
            child = self.start(place, (lambda: before(chance)) if before else lambda: None)  # noqa: B023
            ended = child.wait(draw.uniform(0, 0.7 * self.seconds) if before is None else 120)
            if kind == "stop" and not ended:
                child.kill(draw.choice([signal.SIGTERM, signal.SIGINT]), group=False)
                if not child.wait(600):
                    wrong.append("a stopped training did not end")
            elif not ended:
                child.kill(group=draw.random() < 0.5)
                if before:
                    wrong.append(f"{kind} did not end: {child.output[-1500:]}")
            status = child.status
            if "Traceback" in child.output or status in (TRACEBACK, -signal.SIGSEGV, -signal.SIGBUS):
                wrong.append(f"{kind} ended with {status}: {child.output[-1500:]}")
            name = {"write": "exits_in_writes", "files": "exits_between_files", "error": "failed_writes"}.get(kind)
            if status == -signal.SIGKILL and name is None:
                counts["kills"] += 1
            elif name and status:
                counts[name] += 1
            elif status == 130:
                counts["stops"] += 1
            elif status == 0:
                counts["ended_before"] += 1
                break
            elif status < 0 and kind == "stop":  # before the training, nothing catches SIGTERM
                counts["kills"] += 1
            else:
                wrong.append(f"{kind} ended with {status}: {child.output[-1500:]}")
        return wrong + self.finish(place)

    def twice(self, draw: random.Random, counts: Counter[str]) -> list[str]:
        """Start the training twice at once; one of them trains."""
        place = self.folder / "twice"
        shutil.rmtree(place, ignore_errors=True)
        first = self.start(place, log="first")
        first.wait(draw.uniform(0, self.seconds))
        second = self.start(place, log="second")
        wrong = [] if first.wait(600) and second.wait(600) else ["a training of two did not end"]
        for child in (first, second):
            refused = child.status == 2 and "is being trained by" in child.output
            if (child.status and not refused) or "Traceback" in child.output:
                wrong.append(f"of two trainings, one ended with {child.status}: {child.output[-1500:]}")
            counts["refused_as_second"] += refused
        if first.status and second.status:
            wrong.append("of two trainings, both were refused")
        counts["started_twice"] += 1
        return wrong + self.finish(place)

    def on_full_disk(self, draw: random.Random, counts: Counter[str], disk: Path) -> list[str]:
        """Train on a disk that is full, and to the end when there is room again."""
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        place, filler = disk / "full", disk / "filler"
        needed = sum(path.stat().st_size for path in (self.folder / "whole").rglob("*") if path.is_file())
        wrong = []
        for _ in range(2):
            left = int(draw.uniform(0, 1.3) * needed)
            with open(filler, "wb") as file:
                file.write(b"0" * max(shutil.disk_usage(disk).free - left, 0))
            child = self.start(place, log="log") if (place.exists() or left > 8192) else None
            if child is None:
                continue
            if not child.wait(600):
                wrong.append("a training on a full disk did not end")
            counts["full_disks"] += 1
            one_line = child.status == 2 and "no space left while writing" in child.output
            if (child.status and not one_line) or "Traceback" in child.output:
                if child.output or child.status == TRACEBACK:  # the log may have no room
                    wrong.append(f"a training on a full disk ended with {child.status}: {child.output[-1500:]}")
            filler.unlink()
        return wrong + self.finish(place)


def campaigns(folder: Path) -> Iterator[Campaign]:
    """Yield the campaigns; each trains once without interruption first."""
    made = folder / "images"
    draw_images(made)
    data = ["--dataset", f"folder:{made}"]
    student = ["train", *data, "--student", "resnet8", *COMMON]
    named = ["--method", "ce", "--name", "teacher", "--batch-size", "8", "--runs", str(folder / "taught")]
    teacher = Child([*student, *named], folder / "teacher-log")
    if not teacher.wait(600) or teacher.status:
        raise RuntimeError(teacher.output)
    taught = ["--teacher", str(folder / "taught" / "teacher")]
    train = [*student, *taught]
    compare = ["compare", *data, *taught, "--student", "resnet8", "--seeds", "1", *COMMON]
    digits = ["--dataset", "digits", "--labels", "40", "--student", "resnet8", "--optimizer", "adamw"]
    yield Campaign(folder / "classification", [*train, "--method", IN_CONTEXT, "--batch-size", "9"])
    yield Campaign(folder / "streamed", [*train, "--method", "dkd", "--batch-size", "11", "--stream", "--workers", "1"])
    yield Campaign(folder / "cache", [*train, "--method", "kd", "--batch-size", "7"], "teacher-cache")
    crops = ["--stream", "--workers", "0", "--crop", "resized", "--views", "3", "--image-size", "16"]
    yield Campaign(folder / "crops", [*train, "--method", "kd", "--batch-size", "7", *crops], "teacher-cache")
    yield Campaign(folder / "compare", [*compare, "--methods", "ce", IN_CONTEXT, "crd", "dml", "--batch-size", "13"])
    yield Campaign(folder / "adam", ["train", *digits, "--method", "ce", *COMMON, "--batch-size", "8"])


def draw_images(folder: Path, classes: int = 3, each: int = 9) -> None:
    """Write small PNG files of random pixels, in train/ and val/."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", each), ("val", each // 3)):
        for name in range(classes):
            place = folder / split / f"class {name}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(40 * name, 120 + 40 * name, (16, 16, 3), generator=generator)
                Image.fromarray(pixels.byte().numpy()).save(place / f"{number}.png")


def _seconds(place: Path) -> float:
    """Return for how long a training wrote files."""
    times = [path.stat().st_mtime for path in place.rglob("*") if path.is_file()]
    return max(times) - min(times)


def results(runs: Path) -> dict[str, tuple[dict[str, torch.Tensor], list[dict], dict]]:
    """Return weights, records and summary of each run below a folder, without seconds."""
    found = {}
    for path in sorted(runs.rglob("student.safetensors")):
        records = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((path.parent / "summary.json").read_text())
        found[path.parent.name] = (load_file(path), [_timeless(r) for r in records], _timeless(summary))
    return found


def _timeless(record: dict) -> dict:
    return {k: v for k, v in record.items() if "second" not in k and "waited" not in k}


def differences(expected: dict, runs: Path) -> list[str]:
    """Return what differs between runs and the uninterrupted ones, and which files were left over."""
    found = results(runs)
    wrong = [f"run {name} is missing" for name in expected if name not in found]
    wrong += [f"run {name} is new" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        weights, records, summary = expected[name]
        other, other_records, other_summary = found[name]
        if weights.keys() != other.keys() or any(not torch.equal(weights[k], other[k]) for k in weights):
            wrong.append(f"{name}: other weights")
        if records != other_records:
            wrong.append(f"{name}: other records, {len(other_records)} instead of {len(records)}")
        if summary != other_summary:
            wrong.append(f"{name}: another summary")
    left = [p.name for p in runs.rglob("*") if p.name.endswith(".part") or p.name == "training.lock"]
    return wrong + [f"left over: {', '.join(left)}"] * bool(left)


@contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[str]:
    """Mount a small disk in a folder, and yield "", or why this is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, text=True
    )
    if made.returncode:
        yield f"a small disk cannot be mounted: {made.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
