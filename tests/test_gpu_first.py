"""The first checks of a GPU, on the CPU at a small scale; and what is kept for another machine."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ickd_lib import runtime, training
from ickd_lib.training import Callback, Recipe, Student
from ickd_lib.training.loop import stop_training

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "gpu_first"
# What `benchmarks/gpu_first` does in the presence of Jupyter, it must do in its absence.
BLOCKED = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("IPython", "ipywidgets", "jupyter", "nbformat", "papermill", "umap"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["gpu_first", *sys.argv[1:]]
runpy.run_path("benchmarks/gpu_first", run_name="__main__")
"""


@pytest.fixture
def main(monkeypatch):
    """A function that calls the script in this process and returns its exit status."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), str(ROOT / "benchmarks"), *sys.path])
    script = runpy.run_path(str(FOLDER / "__main__.py"), run_name="gpu_first")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_first", "--device", "cpu", "--small", *map(str, arguments)])
        return script["main"]()

    call.steps = script["STEPS"]
    return call


def test_trainings_that_compute_the_same_end_alike(main, tmp_path, capsys):
    out, steps = tmp_path / "found.json", ("captured-fp32", "cache", "resume", "retrieval")
    assert main("--out", out, "--only", *steps, "failed-capture") == 0
    found = json.loads(out.read_text())
    assert found["machine"]["device"] == "cpu" and found["machine"]["small"] is True
    verdicts = {name: step["verdict"] for name, step in found["steps"].items()}
    assert verdicts.pop("failed-capture") == "skipped: needs CUDA"
    assert set(verdicts.values()) == {"ok"}
    assert found["steps"]["captured-fp32"]["captured_against_eager"] == 0
    assert found["steps"]["resume"]["resumed_against_whole"] == 0
    assert 0 < found["steps"]["cache"]["cache_against_teacher"] < 1e-2
    assert all(step["seconds"] >= 0 for step in found["steps"].values())
    assert "skipped: needs CUDA" in capsys.readouterr().out


def test_a_step_that_fails_is_named_and_the_next_ones_run(main, tmp_path, monkeypatch, capsys):
    from setting import Problem

    def raises(setting):
        raise RuntimeError("the device has gone\nand more")

    def differs(setting):
        raise Problem("the weights differ", largest=0.5)

    monkeypatch.setitem(main.steps, "imports", raises)
    monkeypatch.setitem(main.steps, "optimiser", differs)
    out = tmp_path / "found.json"
    assert main("--out", out, "--only", "imports", "optimiser", "failed-capture") == 1
    steps = json.loads(out.read_text())["steps"]
    assert steps["imports"]["verdict"] == "FAILED: RuntimeError: the device has gone"
    assert any("the device has gone" in line for line in steps["imports"]["traceback"])
    assert steps["optimiser"]["verdict"] == "FAILED: the weights differ" and steps["optimiser"]["largest"] == 0.5
    assert steps["failed-capture"]["verdict"].startswith("skipped")
    assert "FAILED: the weights differ" in capsys.readouterr().out


def test_it_runs_without_installation_and_without_notebook_packages(tmp_path):
    call = [sys.executable, "-c", BLOCKED, "--device", "cpu", "--small", "--out", str(tmp_path / "found.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call += ["--only", "versions", "imports", "optimiser"]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "found.json").read_text())["steps"]
    assert steps["imports"]["imported_from"] == str(ROOT / "ickd_lib" / "__init__.py")


class Stop(Callback):
    def step(self, training):
        if (training.epoch, training.step) == (1, 2):
            stop_training()


def test_what_is_kept_is_enough_to_go_on_on_another_machine(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import kept

    recipe = Recipe(epochs=2, batch_size=30, lr=0.05)
    given = {"recipe": recipe, "device": "cpu", "progress": False}

    def students(runs, teacher, **options):
        made = [Student("resnet8", "kd", name="a"), Student("resnet8", "ickd(negatives=32)", name="b")]
        options |= {"teacher": teacher, "runs": runs / "table"}
        return training.distill(made, digits, **given, **options)

    first, second = tmp_path / "first", tmp_path / "second"
    teacher = training.pretrain("resnet8", digits, runs=first, **given)
    whole = students(tmp_path / "whole", teacher)
    with pytest.raises(KeyboardInterrupt):
        students(first, teacher, callbacks=[Stop()])
    training.distill([Student("resnet8", "ce", name="finished")], digits, runs=first / "table", **given)
    runtime.write_json(first / "json" / "table" / "finished.json", {})
    (first / "cache").mkdir()
    (first / "cache" / "records.f16").write_bytes(b"1")
    parts = kept.pack(first, tmp_path / "out", megabytes=0.5)
    assert len(parts) > 2 and max(part.stat().st_size for part in parts) == 500_000
    kept.unpack(tmp_path / "out", second)
    names = {str(path.relative_to(second)) for path in second.rglob("*") if path.is_file()}
    assert "json/table/finished.json" in names and not [name for name in names if "cache" in name]
    assert not [name for name in names if name.startswith("table/finished")]
    assert {name for name in names if name.endswith("checkpoint.pt")} == {
        "table/a/checkpoint.pt",
        "table/b/checkpoint.pt",
    }
    with monkeypatch.context() as patched:
        patched.setattr(training.distillation, "Stepper", None)  # any training fails
        again = training.pretrain("resnet8", digits, runs=second, **given)
    assert again.identity == teacher.identity
    for name, history in students(second, again).items():
        for key, value in history.network.state_dict().items():
            assert torch.equal(value, whole[name].network.state_dict()[key])
