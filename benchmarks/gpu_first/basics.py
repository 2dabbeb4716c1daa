"""Versions, imports, the optimiser in a captured step, and a capture that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from setting import Setting, Skipped, check, deterministic
from torch import Tensor

from ickd_lib import methods, models, runtime
from ickd_lib.training import Recipe
from ickd_lib.training.capture import CapturedSteps, CudaGraphs
from ickd_lib.training.optimizers import Optimizer

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("IPython", "ipywidgets", "jupyter", "jupyter_client", "jupyterlab", "nbformat", "papermill", "umap")
# Imports the packages that a training needs while these modules cannot be imported.
IMPORTS = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import ickd_lib, ickd_lib.training, ickd_lib.runs, ickd_lib.__main__
print(ickd_lib.__file__)
"""


def versions(setting: Setting) -> dict[str, Any]:
    """The device and its precision: a matrix product in bf16 has the value of one in float64."""
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(setting.device)
    exact = a.double() @ b.double()
    error = float(((a.bfloat16() @ b.bfloat16()).double() - exact).norm() / exact.norm())
    measured: dict[str, Any] = {
        "precision": runtime.precision("auto", setting.device, 32),
        "bf16_error": round(error, 5),
        "tf32": {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32},
    }
    requirements = [(error < 0.01, "a product in bf16 is wrong")]
    if setting.cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        measured |= {"capability": f"{properties.major}.{properties.minor}", "memory": properties.total_memory}
        requirements.append((measured["precision"] == "bf16", "the GPU has no native bf16"))
    return check(measured, *requirements)


def imports(setting: Setting) -> dict[str, Any]:
    """The library is imported from PYTHONPATH, without Jupyter, papermill, umap and ipywidgets."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(call, env=environment, cwd=setting.scratch, capture_output=True, text=True)
    place = done.stdout.strip()
    error = (done.stderr.strip().splitlines() or [""])[-1]
    return check({"imported_from": place}, (place == str(ROOT / "ickd_lib" / "__init__.py"), error or place))


def optimiser(setting: Setting) -> dict[str, Any]:
    """Fused SGD reads its learning rates on the device, so that a replayed step has the present ones."""

    def trained(captured: bool) -> tuple[list[Tensor], CapturedSteps]:
        with runtime.seeded(0):
            network = models.create("resnet8", num_classes=10)
            images = torch.rand(16, 3, 32, 32).to(setting.device)
        network.to(setting.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = Optimizer(network, methods.create("ce"), Recipe(), (32, 32))

        def work() -> None:
            optimizer.clear()
            network(images).logits.square().mean().backward()
            optimizer.step()

        steps = CapturedSteps(CudaGraphs() if captured else None)
        for number in range(12):
            optimizer.set_rates(0.1 / (1 + number), 0.05 / (1 + number))
            steps.run("step", work, ["ce"], whole=True)
        return [parameter.detach().cpu() for parameter in network.parameters()], steps

    def largest(first: list[Tensor], second: list[Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))

    with deterministic():
        eager, again = trained(captured=False)[0], trained(captured=False)[0]
        replayed, steps = trained(captured=setting.cuda)
    measured = {"eager_twice": largest(eager, again), "largest_difference": largest(eager, replayed)}
    return check(
        measured | {"replays": steps.replays},
        (
            measured["largest_difference"] <= max(1e-5, 2 * measured["eager_twice"]),
            "replayed steps end at other weights",
        ),
        (steps.replays == (9 if setting.cuda else 0), "steps were not replayed"),
    )


def failed_capture(setting: Setting) -> dict[str, Any]:
    """A capture that fails names its cause, and training goes on: eagerly, with random numbers, and captured again."""
    if not setting.cuda:
        raise Skipped("needs CUDA")
    total = torch.zeros((), device=setting.device)

    def work() -> None:
        total.add_(torch.rand((), device=setting.device))
        if torch.cuda.is_current_stream_capturing():
            total.item()  # waits for the GPU, which a capture does not allow

    steps = CapturedSteps(CudaGraphs())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            steps.run("step", work, ["a method"], whole=True)
    messages = [str(warning.message) for warning in caught]
    (again,) = setting.train("kd", epochs=1)
    return check(
        {"message": messages, "replays_afterwards": again.replays},
        (0 < float(total) < 6, "random numbers are wrong after the capture"),
        (any("its capture failed" in text for text in messages), "there was no warning"),
        (again.replays > 0, "a training after it was not captured"),
    )
