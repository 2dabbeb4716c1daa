"""Run folders with damaged files, JSON files beside run folders, and commands that name nothing."""

import json
import math
import os
import shutil

import pytest
import torch
from PIL import Image

from ickd_lib import __main__ as cli
from ickd_lib import data, runs, runtime, training
from ickd_lib.data import Splits
from ickd_lib.data.sets import base
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student

RECIPE = Recipe(epochs=1, lr=0.05, schedule="cosine", batch_size=30)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    few = digits._replace(train=digits.train.few(60), test=digits.test.few(40))
    for seed in (0, 1):
        students = [Student("resnet8", "ce", seed, f"seed{seed}")]
        options = {"recipe": RECIPE, "runs": folder, "device": "cpu", "progress": False}
        training.distill(students, few, data_seed=seed, **options)
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "runs")


def run(*arguments, status=0):
    assert cli.main(list(arguments)) == status


def change(path, **changes):
    """Set keys of a JSON file; None removes the key."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        place = content["settings"] if path.name == "config.json" and key in content["settings"] else content
        place.pop(key) if value is None else place.update({key: value})
    path.write_text(json.dumps(content))


CONTENT = [
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"{}",
    b"",
    b"{",
    b"\xff\xfe{\0}\0",
    b"[" * 100_000,
    '{"ö": 1}'.encode("latin1"),
]


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("content", CONTENT, ids=range(len(CONTENT)))
def test_a_damaged_run_is_named_and_the_others_reported(name, content, folder, capsys):
    (folder / "seed1" / name).write_bytes(content)
    run("report", "runs", "--json", "all.json")
    out, err = capsys.readouterr()
    assert "| ce | 1 |" in out
    if (name, content) != ("summary.json", b"null"):
        assert err.count("left out") == 1 and "seed1" in err and len(err.splitlines()) == 1
    assert [one["run"] for one in json.loads((folder.parent / "all.json").read_text())] == ["seed0"]
    run("status", "runs")
    out, err = capsys.readouterr()
    assert "seed0" in out and len(err.splitlines()) <= 1


WRONG = [
    {"accuracy": None},
    {"accuracy": "high"},
    {"accuracy": float("nan")},
    {"epochs": "many"},
    {"data_seed": None},
    {"data_seed": []},
    {"peer_group": []},
    {"lr": "0.1"},
    {"nll": {}},
    {"dataset": 3},
    {"images_per_second": []},
    {"teacher_saw": 3},
    {"bank_rows": "all"},
    {"task": "unknown"},
    {"method": None},
]


@pytest.mark.parametrize("changes", WRONG, ids=map(str, WRONG))
def test_a_summary_with_a_wrong_value_is_left_out(changes, folder, capsys):
    change(folder / "seed1" / "summary.json", **changes)
    run("report", "runs")
    out, err = capsys.readouterr()
    assert "| ce | 1 |" in out and err.startswith("note: left out: ") and "seed1" in err and len(err.splitlines()) == 1
    run("status", "runs")


@pytest.mark.parametrize("key", ["method", "student", "data", "recipe", "teacher", "teacher_saw", "seed"])
@pytest.mark.parametrize("value", [None, [], 3])
def test_settings_with_a_wrong_value_lead_to_one_line(key, value, folder, capsys):
    change(folder / "seed1" / "config.json", **{key: value})
    for command in (
        ["report", "runs"],
        ["status", "runs"],
        ["evaluate", "runs/seed1"],
        ["diff", "runs/seed0", "runs/seed1"],
    ):
        assert cli.main([*command, *(["--device", "cpu"] if command[0] == "evaluate" else [])]) in (0, 2)
        assert len(capsys.readouterr().err.splitlines()) <= 1
    run("report", "runs/seed1", status=cli.main(["report", "runs/seed1"]))


@pytest.mark.parametrize("key", ["numerics", "environment"])
@pytest.mark.parametrize("value", [None, [], 3, {"threads": "many"}])
def test_an_unfinished_run_with_damaged_settings_is_named(key, value, folder, digits):
    (folder / "seed1" / "summary.json").unlink()
    change(folder / "seed1" / "config.json", **{key: value})
    few = digits._replace(train=digits.train.few(60), test=digits.test.few(40))
    options = {"recipe": RECIPE, "runs": folder, "device": "cpu", "progress": False, "data_seed": 1}
    if key == "environment" and value in (None, {"threads": "many"}):
        training.distill([Student("resnet8", "ce", 1, "seed1")], few, **options)
        return
    with pytest.raises(InputError, match="seed1 is not a complete run") as caught:
        training.distill([Student("resnet8", "ce", 1, "seed1")], few, **options)
    assert "\n" not in str(caught.value)


DAMAGED = [  # in config.json or summary.json
    ("student", {"network": 3}),
    ("student", {"mean": "grey"}),
    ("data", {"classes": [3] * 10}),
    ("data", None),
    ("teacher", {"name": "resnet8", "fingerprint": 3}),
    ("summary", 3),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED, ids=str)
def test_a_damaged_run_is_one_line_in_every_command(key, value, folder, capsys):
    if key == "summary":
        (folder / "seed1" / "summary.json").write_text("3")
    else:
        config = json.loads((folder / "seed1" / "config.json").read_text())
        old = config["settings"][key]
        config["settings"][key] = old | value if isinstance(old, dict) and value else value
        (folder / "seed1" / "config.json").write_text(json.dumps(config))
    Image.new("RGB", (8, 8)).save("a.png")
    for line in (
        "evaluate runs/seed1 --device cpu",
        "predict runs/seed1 a.png",
        "export runs/seed1 --format safetensors --out w.safetensors --test-images 9",
        "report runs",
        "diff runs/seed0 runs/seed1",
    ):
        status = cli.main(line.split())
        err = capsys.readouterr().err
        assert status == 0 or (status == 2 and err.splitlines()[-1].startswith("error: ")), err


def test_numbers_that_are_not_finite_have_no_spread(folder, capsys):
    change(folder / "seed1" / "summary.json", nll=float("inf"))
    run("report", "runs")
    assert "| ce | 2 |" in capsys.readouterr().out
    assert all(map(math.isnan, runs.mean_std([1.0, math.nan])))


def test_a_damaged_fingerprint_of_weights_is_named(folder, capsys):
    records = (folder / "seed1" / "metrics.jsonl").read_text()
    (folder / "seed1" / "metrics.jsonl").write_text(json.dumps(json.loads(records) | {"weights": {}}) + "\n")
    run("diff", "runs/seed1", "runs/seed0", status=2)
    assert "seed1 is not a complete run" in capsys.readouterr().err


def test_runs_that_are_all_damaged_are_an_error(folder, capsys):
    for path in folder.glob("*/summary.json"):
        path.write_text("[]")
    run("report", "runs", status=2)
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no finished run below runs")


# -------------------------------------------------------------------------------------------------------- each once


def test_a_json_file_does_not_hide_the_runs_beside_it(folder, capsys):
    shutil.move(folder / "seed1", folder.parent / "later")
    run("report", "runs", "--json", "runs/all.json")
    shutil.move(folder.parent / "later", folder / "seed1")
    (folder / "other.json").write_text('{"theme": "dark"}')
    (folder / "broken.json").write_text("{")
    capsys.readouterr()
    run("report", "runs")
    out, err = capsys.readouterr()
    assert "| ce | 2 |" in out and "broken.json is not JSON" in err and len(err.splitlines()) == 1


def test_each_run_counts_once(folder, capsys):
    run("report", "runs", "--json", "all.json")
    shutil.copytree(folder / "seed0", folder / "copy of seed0")
    for folders in (["runs", "runs"], ["runs/seed0", "runs", os.path.abspath("runs")], ["all.json", "runs"]):
        capsys.readouterr()
        run("report", *folders, "--json", "again.json")
        assert "| ce | 2 |" in capsys.readouterr().out
        assert len(json.loads((folder.parent / "again.json").read_text())) == 2
    assert len(runs.finished(["all.json"])) == 2


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("command", ["evaluate runs/seed0", "export runs/seed0 --out a.onnx"])
def test_a_run_that_is_not_finished_is_named_with_its_epochs(command, folder, capsys):
    for name in ("summary.json", "student.safetensors", "metrics.jsonl"):
        (folder / "seed0" / name).unlink()
    run(*command.split(), status=2)
    message = "runs/seed0 is not finished (0 of 1 epochs are done); resume it with the command that started it"
    assert message in capsys.readouterr().err


def test_commands_that_cannot_work_are_one_line(folder, capsys):
    for arguments, message in (
        (
            ["report", "runs", "--baseline", "ce", "--figure", "a.png"],
            "no other method has two seeds in common with ce",
        ),
        (["bank", "--teacher", "runs/seed0", "--k", "0"], "argument --k: expected a whole number of 1 or more"),
        (["bank", "--teacher", "runs/seed2"], "--teacher runs/seed2: this does not exist; name the folder of a run"),
        (["bank", "--teacher", "./seed2"], "--teacher ./seed2: this does not exist"),
        (["bank", "--teacher", "runs/"], "--teacher runs/: this is not the folder of a run"),
        (
            ["bank", "--teacher", "torchvison/resnet18"],
            "unknown model library 'torchvison'; did you mean 'torchvision'",
        ),
    ):
        run(*arguments, status=2)
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1, err
    assert not (folder.parent / "a.png").exists()


def test_classes_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @base.register("twice")
    class Twice(base.DataSet):
        """Two classes of one name."""

        def read(self) -> Splits:
            pixels = {name: torch.zeros(4, 3, 8, 8, dtype=torch.uint8) for name in ("train", "test")}
            labels = {name: torch.tensor([0, 1, 0, 1]) for name in ("train", "test")}
            return self.splits(pixels, labels, classes=("cat", "cat"), pad=1, flip=False)

    with pytest.raises(InputError, match="twice has several classes of the name 'cat'"):
        data.load("twice")
