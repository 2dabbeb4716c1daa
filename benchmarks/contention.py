"""Measures how much busy cores slow down training on a CPU, for each number of threads and OpenMP wait policy.

    python benchmarks/contention.py [--threads 1 2] [--busy 0 1] [--seconds 10] [--out FILE]

A ResNet8 is distilled from a ResNet20 with KD in fp32, on random 32×32 images in batches of 64. Each case is a process
of its own, because OpenMP reads OMP_WAIT_POLICY and OMP_NUM_THREADS once, when torch is loaded. In a case with busy
cores, that many further processes run a loop of pure Python.

With the policy "active", an OpenMP thread that has finished its part waits for the others in a loop, which keeps its
core busy; with "passive" it sleeps. Run this script on an otherwise idle machine. `busy_before` in the file is the
number of cores that were busy with other processes before a case began.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import machine
import torch
from loops import random_splits, untrained

from ickd_lib import runtime, training
from ickd_lib.runtime.threads import busy_cores

PAIR = ("resnet20", "resnet8")
POLICIES = ("active", "passive")
WARM_UP = 3  # first steps, which are not counted, because libraries choose their kernels in them
LONGEST = 600  # seconds after which a busy process ends by itself, for the case that this process is killed


class Finished(Exception):
    """Raised to end a training when its time is over."""


class Clock(training.Callback):
    """Keeps cores busy during a training, counts its steps for some seconds, and then raises `Finished`.

    Args:
        threads: torch's number of threads. It is set at the start of the training, because `distill` chooses fewer
            threads where cores are busy.
        busy: number of cores to keep busy.
        seconds: time for which steps are counted, after `WARM_UP` steps.
    Attributes:
        steps: number of counted steps.
        elapsed: time of these steps in seconds.
    """

    def __init__(self, threads: int, busy: int, seconds: float) -> None:
        self.threads, self.busy, self.seconds = threads, busy, seconds
        self.steps, self.elapsed, self.began = -WARM_UP, 0.0, 0.0
        self.load = contextlib.ExitStack()

    def start(self, loop: Any) -> None:
        torch.set_num_threads(self.threads)
        self.load.enter_context(busy_processes(self.busy))

    def step(self, loop: Any) -> None:
        self.steps += 1
        if self.steps <= 0:
            self.began = time.perf_counter()
            return
        self.elapsed = time.perf_counter() - self.began
        if self.elapsed >= self.seconds:
            raise Finished

    def end(self, loop: Any) -> None:
        self.load.close()


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` cores busy inside the context, each with a process of its own."""
    code = f"import time\nend = time.monotonic() + {LONGEST}\nwhile time.monotonic() < end: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def images_per_second(threads: int, busy: int, seconds: float) -> float:
    """Train in this process for some seconds and return the number of images per second.

    Args:
        threads: number of threads.
        busy: number of cores to keep busy.
        seconds: time for which steps are counted.
    """
    recipe = training.Recipe(epochs=1000, schedule="cosine")  # so many that the training does not end by itself
    splits = random_splits(16 * recipe.batch_size, 16)
    teacher, _ = untrained(PAIR[0], splits, torch.device("cpu"))
    clock = Clock(threads, busy, seconds)
    with contextlib.suppress(Finished):
        training.distill(
            [training.Student(PAIR[1], "kd")],
            splits,
            teacher=teacher,
            recipe=recipe,
            device="cpu",
            precision="fp32",
            evaluate_every=recipe.epochs,
            progress=False,
            callbacks=[clock],
        )
    return clock.steps * recipe.batch_size / clock.elapsed


def measure(
    threads: Sequence[int] = (1, 2),
    busy: Sequence[int] = (0, 1),
    policies: Sequence[str] = POLICIES,
    seconds: float = 10,
) -> list[dict[str, Any]]:
    """Measure every combination of threads, busy cores and policy, each in a process of its own.

    Args:
        threads: numbers of OpenMP threads.
        busy: numbers of cores that other processes keep busy.
        policies: values of OMP_WAIT_POLICY.
        seconds: time for which the steps of a case are counted.
    Returns:
        For each case its threads, wait policy and busy cores, the number of cores that were busy before it began, and
        its images per second.
    """
    cases = []
    for count in threads:
        for policy in policies:
            for cores in busy:
                before = busy_cores(0.5)
                environment = os.environ | {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": policy}
                call = [sys.executable, __file__, "--case", str(count), str(cores), str(seconds)]
                output = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
                cases.append(
                    {
                        "threads": count,
                        "wait_policy": policy,
                        "busy_cores": cores,
                        "busy_before": round(before, 2),
                        "images_per_second": round(json.loads(output), 1),
                    }
                )
    return cases


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Format the cases as a text table, with one line for each case and one column for each key."""
    lines = [[key.replace("_", " ") for key in cases[0]], *([str(value) for value in case.values()] for case in cases)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of OpenMP threads")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1], help="numbers of busy cores")
    parser.add_argument("--seconds", type=float, default=10, help="time for which the steps of a case are counted")
    parser.add_argument("--out", default="benchmarks/results/contention.json", help="file of the results")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)  # a process of one case: threads, busy, seconds
    given = parser.parse_args()
    if given.case:
        print(images_per_second(int(given.case[0]), int(given.case[1]), float(given.case[2])))
        return
    device = torch.device("cpu")
    facts = runtime.environment(device) | {"device_name": machine.name(device), "cores": os.cpu_count()}
    cases = measure(given.threads, given.busy, seconds=given.seconds)
    result = {"machine": facts, "pair": "→".join(PAIR), "precision": "fp32", "seconds": given.seconds, "cases": cases}
    runtime.write_json(given.out, result)
    print(table(cases))


if __name__ == "__main__":
    main()
