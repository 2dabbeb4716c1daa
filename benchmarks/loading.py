"""Compares the speed and memory of streamed images with torchvision's reference loop for classification.

    python benchmarks/loading.py FOLDER [--images 1000] [--rounds 5] [--workers N] [--paths 0] [--out FILE]

FOLDER contains JPEG files, such as some of ImageNet; the classes do not matter. They are linked into class folders of a
temporary folder. Both loops crop and flip at random, at 224 pixels, and end with a normalised batch of floats. The
rounds of the two loops take turns, so that other work on the machine slows down both. The processor's time for an
image, in all processes of a loop, hardly depends on other work. With `--paths`, that many links are made, and the
memory of the processes is measured too, which takes some minutes. Parts that the file already contains are not measured
again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

from ickd_lib import data, runtime
from ickd_lib.data.loader import usual_workers

CLASSES = 10
BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def link(sources: list[Path], root: Path, count: int, classes: int = CLASSES) -> None:
    """Link files into train/ and val/ of `root`: `count` of them into train/, and as many as there are into val/."""
    for split, number in (("train", count), ("val", len(sources))):
        for c in range(classes):
            (root / split / f"n{c:08d}").mkdir(parents=True, exist_ok=True)
        for i in range(number):
            target = root / split / f"n{i % classes:08d}" / f"n{i % classes:08d}_{i}.JPEG"
            os.symlink(sources[i % len(sources)].resolve(), target)


def reference(root: Path, workers: int) -> Iterator[Tensor]:
    """Yield the batches of torchvision's references/classification: PIL images, transforms, default collation."""
    steps = [
        transforms.RandomResizedCrop(224, interpolation=InterpolationMode.BILINEAR, antialias=True),
        transforms.RandomHorizontalFlip(0.5),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(MEAN, STD),
    ]
    images = datasets.ImageFolder(str(root / "train"), transforms.Compose(steps))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers, pin_memory=torch.cuda.is_available())
    for pixels, _ in loader:
        yield pixels.to(runtime.device("auto"), non_blocking=True)


def streamed(root: Path, workers: int) -> Iterator[Tensor]:
    """Yield the batches of this library, normalised as its networks do."""
    device = runtime.device("auto")
    images = data.load(f"imagenet:{root}", stream=True, workers=workers, device=device).train
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    for batch in data.Sampler(images).batches(BATCH, data_seed=0, epoch=0):
        yield (batch.images - mean) / std


def images_per_second(batches: Iterator[Tensor]) -> float:
    """Return the images of a whole epoch divided by its seconds; the first batch and the start are not counted."""
    next(batches)
    start, count = time.perf_counter(), 0
    for pixels in batches:
        count += len(pixels)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def processor_seconds() -> float:
    """Return the processor's time of this process and its children that have ended."""
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def speed(sources: list[Path], count: int, rounds: int, workers: int) -> dict[str, Any]:
    """Measure both loops in turn; the ratio is the median over the rounds."""
    loops = {"reference": reference, "ickd_lib": streamed}
    found: dict[str, list[float]] = {name: [] for name in loops}
    spent: dict[str, list[float]] = {name: [] for name in loops}
    with tempfile.TemporaryDirectory() as folder:
        link(sources, Path(folder), count)
        data.load(f"imagenet:{folder}", stream=True)  # the scan of the files, which is kept
        for _ in range(rounds):
            for name, loop in loops.items():
                before = processor_seconds()
                found[name].append(round(images_per_second(loop(Path(folder), workers)), 1))
                spent[name].append(round(1000 * (processor_seconds() - before) / count, 2))
    ratios = [ours / theirs for ours, theirs in zip(found["ickd_lib"], found["reference"], strict=True)]
    return {
        "images": count,
        "workers": workers,
        "batch": BATCH,
        "images_per_second": found,
        "processor_milliseconds_per_image": spent,
        "ratio": round(statistics.median(ratios), 3),
    }


def memory_of(kind: str, root: Path) -> dict[str, float]:
    """Return seconds and megabytes of a process that lists the images and decodes some of them with two workers.

    That of the main process is what was added to it, that of a worker what it does not share.
    """
    before, start = megabytes(os.getpid(), "Rss"), time.perf_counter()
    if kind == "ickd_lib":
        images = data.load(f"imagenet:{root}", stream=True, workers=2).train
        found = {"seconds_to_start": round(time.perf_counter() - start, 1)}
        order, view = data.Sampler(images).plan(data_seed=0, epoch=0)
        loader = data.Loader(images)
        planned = [(i, order[i * BATCH : (i + 1) * BATCH], view[i * BATCH : (i + 1) * BATCH]) for i in range(12)]
        batches = (one.batch.images for one in loader.steps(planned, data_seed=0, epoch=0))
    else:
        batches = reference(root, 2)
        found = {}
    for i, _ in enumerate(batches):
        if not i and not found:
            found = {"seconds_to_start": round(time.perf_counter() - start, 1)}
        if i == 10:
            break
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    workers = [megabytes(int(child), "Private_") for child in children]
    return found | {
        "main_process_megabytes": round(megabytes(os.getpid(), "Rss") - before),
        "worker_megabytes": round(statistics.mean(workers)) if workers else 0,
    }


def megabytes(process: int, kind: str) -> float:
    """Return the memory of a process: all of it ("Rss"), or what it does not share with others ("Private_")."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1000


def memory(sources: list[Path], count: int) -> dict[str, Any]:
    """Measure memory and start with many paths, and with few for comparison, each in a process of its own."""
    found: dict[str, Any] = {"paths": count}
    for number in (len(sources) * 4, count):
        with tempfile.TemporaryDirectory() as folder:
            link(sources, Path(folder), number, classes=10 if number < 10_000 else 1000)
            environment = {**os.environ, "ICKD_CACHE": f"{folder}/cache"}
            for kind in ("reference", "ickd_lib", "ickd_lib"):  # the second start reads the scan of the first
                call = [sys.executable, __file__, folder, "--memory-of", kind]
                done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
                key = f"{kind}, {number} paths"
                found[f"{key}, again" if key in found else key] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=usual_workers())
    parser.add_argument("--paths", type=int, default=0)
    parser.add_argument("--out", default="")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps(memory_of(given.memory_of, given.folder)))
        return
    sources = sorted(given.folder.glob("*.JPEG"))
    if not sources:
        raise SystemExit(f"{given.folder} contains no *.JPEG file")
    about = {"machine": machine.name(runtime.device("auto")), "cores": os.cpu_count(), "torch": torch.__version__}
    result = runtime.read_json(given.out) if given.out and Path(given.out).exists() else about
    if "speed" not in result:
        result["speed"] = speed(sources, given.images, given.rounds, given.workers)
    if given.paths and "memory" not in result:
        result["memory"] = memory(sources, given.paths)
    print(json.dumps(result, indent=2))
    if given.out:
        runtime.write_json(given.out, result)


if __name__ == "__main__":
    main()
