"""Checks on a GPU, in about five minutes, what was built without one; every step has a verdict.

    python benchmarks/gpu_first [--device auto] [--small] [--data-root DIR] [--out FILE] [--only STEP …]

It runs without installation if PYTHONPATH contains the root of the repository, and needs neither Jupyter, papermill,
umap nor ipywidgets. A step that fails does not end the others. The results are written after each step: the verdict,
the seconds and what was measured, with versions, commit and device. The exit status is 1 if a step failed.

Without --data-root, the images are random ones of CIFAR's shape; with --small they are the embedded digits, and the
networks are small. `--device cpu --small` runs the same code in about a minute; what needs CUDA is skipped then.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TEARDOWN_CUPTI", "0")  # the profiler must not end what captured steps still use

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import basics
import comparisons
import measurements
import torch
import torchvision
from setting import Problem, Setting, Skipped

from ickd_lib import runtime

STEPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "versions": basics.versions,
    "imports": basics.imports,
    "optimiser": basics.optimiser,
    "captured-fp32": comparisons.captured_fp32,
    "captured-bf16": comparisons.captured_bf16,
    "one-pass": comparisons.one_pass,
    "phases": comparisons.phases,
    "decomposition": comparisons.decomposition,
    "adamw": comparisons.adamw,
    "cache": comparisons.cache,
    "resume": comparisons.resume,
    "retrieval": measurements.retrieved,
    "retrieval-seconds": measurements.retrieval_seconds,
    "augmentation": measurements.augmentation,
    "step-seconds": measurements.step_seconds,
    "failed-capture": basics.failed_capture,
    "profile": measurements.profile,  # the last, because a profiler can disturb what comes after it
}


def attempt(step: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Run a step and return its verdict, its seconds and its warnings, and what it measured or the traceback's end."""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _verdict(step, setting)
    if texts := list(dict.fromkeys(str(one.message) for one in caught)):
        found["warnings"] = texts
    return found | {"seconds": round(time.perf_counter() - began, 2)}


def _verdict(step: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    try:
        found = {"verdict": "ok"} | step(setting)
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
    except Skipped as reason:
        found = {"verdict": f"skipped: {reason}"}
    except Problem as problem:
        found = {"verdict": f"FAILED: {problem}"} | problem.measured
    except Exception as error:  # the later steps are to run in any case
        message = (str(error).strip().splitlines() or [""])[0]
        found = {
            "verdict": f"FAILED: {type(error).__name__}: {message}",
            "traceback": traceback.format_exc().splitlines()[-20:],
        }
    return found


def lost(device: torch.device) -> str:
    """Return the error of a GPU that cannot be used any more, as after an illegal access to its memory; else ""."""
    if device.type != "cuda":
        return ""
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except RuntimeError as error:
        return (str(error).strip().splitlines() or ["unknown"])[0]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="the digits, small networks and few steps")
    parser.add_argument("--data-root", default="", help="folder that contains cifar-100-python")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_first.json"), help="file of the results")
    parser.add_argument("--only", nargs="*", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    given = parser.parse_args()
    device = runtime.device(given.device)
    found: dict[str, Any] = {
        "machine": runtime.environment(device)
        | {
            "device_name": measurements.machine.name(device),
            "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "small": given.small,
        },
        "steps": {},
    }
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(device, given.small, given.data_root, Path(scratch))
        for name in [name for name in STEPS if name in given.only]:
            error = lost(device)
            result = found["steps"][name] = (
                {"verdict": f"FAILED: not run, the GPU is lost: {error}", "seconds": 0.0}
                if error
                else attempt(STEPS[name], setting)
            )
            runtime.write_json(given.out, found)
            print(f"{name:18} {result['seconds']:7.1f} s  {result['verdict']}", flush=True)
            for key, value in result.items():
                if key not in ("verdict", "seconds"):
                    print(f"    {key}: {value}", flush=True)
    failed = [name for name, result in found["steps"].items() if result["verdict"].startswith("FAILED")]
    print(f"{len(found['steps']) - len(failed)} of {len(found['steps'])} steps without failure; {given.out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
