"""The progress of runs: its states and numbers, and folders that are damaged or half written."""

import json
import math
import os
import stat

import pytest

from ickd_lib import __main__ as cli
from ickd_lib import runs, runtime, training
from ickd_lib.runtime import Diverged, InputError, locks
from ickd_lib.training import Callback, Recipe, Student

RECIPE = Recipe(epochs=4, batch_size=60, lr=0.05, schedule="cosine")


class Stops(Callback):
    def epoch(self, training):
        if training.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def few(digits):
    return digits._replace(test=digits.test.few(60))


@pytest.fixture
def folder(few, tmp_path):
    """A run that is done, one that was stopped after two epochs, and one that diverged."""
    options = {"recipe": RECIPE, "runs": tmp_path / "runs", "device": "cpu", "progress": False}
    training.distill([Student("resnet8", name="a")], few, **options)
    with pytest.raises(KeyboardInterrupt):
        training.distill([Student("resnet8", name="b")], few, callbacks=[Stops()], **options)
    wild = options | {"recipe": Recipe(epochs=4, lr=1e20)}
    with pytest.raises(Diverged):
        training.distill([Student("resnet8", name="c")], few, **wild)
    return tmp_path / "runs"


def files(folder):
    """The content and time of every file below a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_each_state_has_its_numbers_and_nothing_is_written(folder):
    before = files(folder)
    rows, left_out = runs.progress(folder)
    assert files(folder) == before and not left_out
    done, stopped, diverged = rows
    assert [row["state"] for row in rows] == ["done", "stopped", "diverged"]
    assert (done["epoch"], done["epochs"], done["done"], done["seconds_left"]) == (4, 4, 1.0, 0.0)
    summary = json.loads((folder / "a" / "summary.json").read_text())
    assert (done["metric"], done["last"]) == ("accuracy", summary["accuracy"])
    assert (stopped["epoch"], stopped["done"]) == (2, 0.5)
    first, second = runtime.Run(folder / "b").metrics
    assert stopped["images_per_second"] == pytest.approx(120 / (second["seconds"] / 2), abs=0.1)
    assert stopped["seconds_left"] == pytest.approx(second["seconds"], abs=0.1)
    assert stopped["last"] == second["test_accuracy"] and first["epoch"] == 1
    assert diverged["seconds_left"] is None and "loss term 'ce'" in (folder / "c" / "diverged.json").read_text()
    with locks.locked(folder / "b"):
        running = runs.progress(folder)[0][1]
        assert running["state"] == "running" and running["process"] == os.getpid()
        assert running["seconds_left"] <= stopped["seconds_left"]
    with locks.locked(folder / "c"):
        assert runs.progress(folder)[0][2]["state"] == "running", "a run that diverged is trained again"


def test_a_run_that_diverged_and_then_finishes_is_done(few, folder):
    options = {"runs": folder, "device": "cpu", "progress": False}
    training.distill([Student("resnet8", name="d")], few, recipe=RECIPE, **options)
    (folder / "d" / "summary.json").unlink()
    runtime.write_json(folder / "d" / "diverged.json", {"reason": "a loss"})
    assert runs.progress(folder)[0][3]["state"] == "diverged"
    training.distill([Student("resnet8", name="d")], few, recipe=RECIPE, **options)
    assert runs.progress(folder)[0][3]["state"] == "done" and not (folder / "d" / "diverged.json").exists()


def test_damaged_and_half_written_folders_are_named_and_left_out(folder):
    config = (folder / "b" / "config.json").read_text()
    broken = {
        "half": {"config.json": config[: len(config) // 2]},
        "list": {"config.json": "[1, 2]"},
        "words": {"config.json": config, "summary.json": '{"method": "ce", "images_per_second": "many"}'},
        "none": {"metrics.jsonl": "{}\n"},
        "empty": {"config.json": ""},
        "records": {"config.json": config, "metrics.jsonl": '{"epoch": 1}\n'},
        "numbers": {"config.json": config, "metrics.jsonl": "3\n"},
        "bytes": {"config.json": config, "metrics.jsonl": b"\xff\xfe\x00"},
        "summary": {"config.json": config, "summary.json": "[]"},
        "epochs": {"config.json": config.replace('"epochs": 4', '"epochs": 0')},
        "task": {"config.json": config.replace('"settings": {', '"settings": {"task": "unknown",')},
    }
    for name, content in broken.items():
        (folder / name).mkdir()
        for file, text in content.items():
            (folder / name / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "directory" / "config.json").mkdir(parents=True)
    (folder / "cut").mkdir()
    (folder / "cut" / "config.json").write_text(config)
    (folder / "cut" / "metrics.jsonl").write_text((folder / "b" / "metrics.jsonl").read_text()[:-9])
    (folder / "new").mkdir()
    rows, left_out = runs.progress(folder)
    assert [(row["run"], row["epoch"]) for row in rows] == [("a", 4), ("b", 2), ("c", 0), ("cut", 1)]
    assert len(left_out) == len(broken) and all("\n" not in line for line in left_out)
    for name in broken:
        assert sum(f"{folder / name}" in line for line in left_out) == 1, name
    with locks.locked(folder / "new"):
        starting = runs.progress(folder)[0][-1]
        assert (starting["run"], starting["state"], starting["epoch"]) == ("new", "running", None)
        assert "new" in runs.progress_table([starting])


def test_the_command_line_prints_a_table_or_json(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text("{")
    assert cli.main(["status"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["run", "state", "epoch", "done", "images/s", "left", "last,", "%"]
    assert lines[1].split()[:4] == ["a", "done", "4/4", "100%"] and lines[2].split()[:4] == [
        "b",
        "stopped",
        "2/4",
        "50%",
    ]
    assert lines[-1] == "3 runs: 1 stopped, 1 done, 1 diverged"
    assert err.startswith("left out: runs/half/config.json is not JSON") and err.count("\n") == 1
    assert cli.main(["status", "runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in found["runs"]] == ["done", "stopped", "diverged"] and len(found["left_out"]) == 1
    assert all(not isinstance(v, float) or math.isfinite(v) for row in found["runs"] for v in row.values())
    for line, message in (("status nowhere", "nowhere is not a folder"), ("status .git", "is not a folder")):
        assert cli.main(line.split()) == 2 and message in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_is_read(folder):
    for path in (folder / "b", folder):
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert len(runs.progress(folder)[0]) == 3
    finally:
        for path in (folder, folder / "b"):
            path.chmod(stat.S_IRWXU)


def test_an_empty_folder_has_no_runs(tmp_path):
    with pytest.raises(InputError, match="no runs"):
        runs.progress(tmp_path)
