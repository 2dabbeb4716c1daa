"""The soak: its last figures, and that it notices what is wrong."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "benchmarks" / "results" / "soak-cpu-2.json"
ROWS = {
    "kills of trainings": "kills",
    "ends of trainings in the middle of a write": "exits_in_writes",
    "ends of trainings between two files": "exits_between_files",
    "writes that failed": "failed_writes",
    "stops by Ctrl-C or SIGTERM": "stops",
    "trainings on a full disk": "full_disks",
    "trainings that were started twice": "started_twice",
    "bad inputs": "bad_inputs",
    "interactions with explorers": "interactions",
}


@pytest.fixture(scope="module", autouse=True)
def path():
    sys.path.insert(0, str(ROOT / "benchmarks" / "soak"))
    yield
    sys.path.remove(str(ROOT / "benchmarks" / "soak"))


def test_the_page_has_the_figures_of_the_file_and_nothing_went_wrong():
    found = json.loads(FIGURES.read_text())
    text = (ROOT / "docs" / "reliability.md").read_text()
    table = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|$", text, re.M))
    assert {row: int(table[row].replace(",", "")) for row in ROWS} == {
        row: found["counts"].get(name, 0) for row, name in ROWS.items()
    }
    assert found["wrong"] == []


def make(folder, weight, seconds=1.0):
    run = folder / "a"
    run.mkdir(parents=True)
    save_file({"w": torch.full((2,), weight)}, run / "student.safetensors")
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "loss": 1.0, "seconds": seconds}) + "\n")
    (run / "summary.json").write_text(json.dumps({"name": "a", "seconds": seconds}))
    return run


def test_it_notices_other_weights_records_and_files_that_were_left(tmp_path):
    kills = pytest.importorskip("kills")
    make(tmp_path / "one", 1.0)
    run = make(tmp_path / "two", 1.0, seconds=2.0)
    expected = kills.results(tmp_path / "one")
    assert kills.differences(expected, tmp_path / "two") == []
    save_file({"w": torch.full((2,), 1.0 + 1e-7)}, run / "student.safetensors")
    (run / "metrics.jsonl").write_text("{}\n" * 2)
    (run / ".checkpoint.pt.host-1.part").touch()
    wrong = kills.differences(expected, tmp_path / "two")
    assert len(wrong) == 3 and "other weights" in wrong[0] and "2 instead of 1" in wrong[1] and ".part" in wrong[2]
    assert kills.differences(expected, tmp_path / "none") == ["run a is missing"]


def test_its_inputs_are_command_lines(tmp_path):
    inputs = pytest.importorskip("inputs")
    lines = [inputs.line(random.Random(seed), tmp_path / "data", tmp_path / "runs" / "a") for seed in range(200)]
    assert {line[0] for line in lines} >= {"train", "compare", "report"} and len(set(map(tuple, lines))) > 150
    assert not {f"--{name}" for name in inputs.NEVER} & {word for line in lines for word in line}
