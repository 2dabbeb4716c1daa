"""The form of the committed notebooks, their execution with small parameters, and the script that runs them."""

import ast
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.cli import _resolve_type
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from ickd_lib import notebook as library
from ickd_lib.runtime import InputError

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
SMALL = {  # each notebook gets those that it has
    "teacher": "resnet8",
    "teacher_epochs": 3,
    "labels": 100,
    "epochs": 3,
    "seeds": 2,
    "evaluate_every": 1,
    "queries": 8,
    "samples": 60,
    "episodes": 20,
    "points": 300,
    "positives": 4,
    "negatives": 8,
    "steps": 1,
    "shots": [1, 3],
}
OF_NOTEBOOK = {  # in place of those above
    name: {
        "teacher": f"resnet8-{head}",
        "teacher_images": 48,
        "teacher_epochs": 1,
        "labels": 32,
        "test_images": 16,
        "epochs": 1,
        "baselines": ["ce"],
        "methods": ["ickd(positives=2, negatives=4)", "ickd(positives=2, negatives=4, order='random')"],
    }
    for name, head in (("10_segmentation", "fcn"), ("11_detection", "fpn"))
}
sys.path.insert(0, str(FOLDER))
import run  # noqa: E402


def cells(path):
    return json.loads(path.read_text())["cells"]


def code(path):
    return ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]


def test_there_are_notebooks():
    assert [p.name[:2] for p in NOTEBOOKS][:13] == [f"{n:02d}" for n in range(13)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_thin_stripped_and_parametrised(path):
    content = [c for c in cells(path) if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in content), (
        "remove the outputs before committing"
    )
    assert "parameters" in content[0]["metadata"].get("tags", [])
    parameters = ast.parse("".join(content[0]["source"])).body
    assert all(isinstance(n, ast.Assign) and ast.literal_eval(n.value) is not ... for n in parameters)
    assert "notebook.check_parameters(" in "".join(content[1]["source"])
    for source in code(path):
        assert len(source.splitlines()) <= 25, f"this cell has more than 25 lines:\n{source[:80]}"
        assert not any(line.startswith(("!", "%")) for line in source.splitlines())
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda), (
                f"this cell contains a definition:\n{source}"
            )
    assert cells(path)[0]["cell_type"] == "markdown" and run.title(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_picture_is_near_the_top_and_the_imports_are_folded(path):
    first, *_ = cells(path)
    before, picture, _ = "".join(first["source"]).partition('<img src="../figures/')
    assert picture and len(before.splitlines()) <= 10
    (name,) = re.findall(r'<img src="(.+?)"', "".join(first["source"]))
    assert (FOLDER / name).is_file()
    content = [c for c in cells(path) if c["cell_type"] == "code"]
    assert all(c["metadata"].get("jupyter", {}).get("source_hidden") for c in content[:2])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_is_checked(path):
    (call,) = [
        node
        for node in ast.walk(ast.parse(code(path)[1]))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "check_parameters"
    ]
    checked = ast.literal_eval(call.args[1]).split()
    assert sorted(checked) == sorted(run.declared(path))
    library.check_parameters(run.declared(path), " ".join(checked))


def test_the_documented_calls_of_papermill_have_valid_parameters():
    page = (FOLDER.parent / "docs" / "notebooks.md").read_text().replace("\\\n", " ")
    calls = [shlex.split(line.partition("papermill ")[2]) for line in page.splitlines() if "papermill 0" in line]
    assert len(calls) == 2
    with pytest.raises(InputError, match=r"given a list with -y 'methods: \[\"kd\"\]', not -p"):
        library.check_parameters({"methods": '["kd"]'}, "methods")
    for name, _, *options in calls:
        given = {}
        while options:
            kind, *options = options
            if kind == "-y":
                given |= yaml.safe_load(options.pop(0))
            else:
                assert kind == "-p"
                given[options[0]] = _resolve_type(options[1])
                options = options[2:]
        known = run.declared(FOLDER / name)
        assert given.keys() <= known.keys()
        library.check_parameters(known | given, " ".join(known))


def test_cells_can_be_run_again_in_the_same_kernel():
    """Later cells leave names in the namespace that look like parameters."""
    namespace = {"epochs": 3}
    library.check_parameters(namespace, "epochs")
    namespace |= {"settings": {"epochs": 3}, "epochs": 5, "rows": [1]}
    assert library.check_parameters(namespace, "epochs") == {"epochs": 5}


def execute(path, folder, /, **parameters):
    return papermill.execute_notebook(
        path,
        folder / path.name,
        {"output": str(folder)} | parameters,
        kernel_name="python3",
        cwd=FOLDER,
        progress_bar=False,
        execution_timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of runs that all notebooks share, so that their teacher is trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "passive")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, runs):
    small = {name: value for name, value in SMALL.items() if name in run.declared(path)}
    small |= OF_NOTEBOOK.get(path.stem, {})
    if "runs" in run.declared(path):
        small["runs"] = str(runs)
    notebook = execute(path, tmp_path, **small)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["headline"]
    assert all(math.isfinite(number) for number in numbers(summary))
    pictures = sorted(tmp_path.glob("*.png"))
    assert pictures and all(p.read_bytes().startswith(b"\x89PNG") and p.stat().st_size > 5000 for p in pictures)
    shown = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(shown) >= len(pictures), "each figure that is saved is also displayed"
    saved = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    values = [value for one in saved.values() for key, value in one["state"].items() if key not in ("_esm", "_css")]
    assert len(json.dumps(values)) < 100_000, "the data of a widget must not be saved"  # scripts and styles are no data
    if "accuracy" in summary:
        assert all(0 <= a <= 1 for a in numbers(summary["accuracy"]))
    if "retrieval" in summary:
        retrieved = summary["retrieval"]
        assert any(v > 2 * retrieved["chance"] for k, v in retrieved.items() if k.startswith("precision@"))


def test_the_memory_bank_of_streamed_images(tmp_path):
    """Notebook 02 on files in the layout of ImageNet, of several sizes, which are decoded when they are needed."""
    generator = np.random.default_rng(0)
    for c in range(2):
        for split, count in (("train", 24), ("val", 6)):
            folder = tmp_path / "set" / split / f"n{c:08}"
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (int(generator.integers(48, 64)), int(generator.integers(48, 64)), 3)
                pixels = generator.integers(100 * c, 100 * c + 100, shape, dtype=np.uint8)  # one class is brighter
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    small = {name: value for name, value in SMALL.items() if name in run.declared(FOLDER / "02_memory_bank.ipynb")}
    small |= {
        "dataset": f"imagenet:{tmp_path / 'set'}",
        "image_size": 40,
        "stream": True,
        "labels": 10,
        "device": "cpu",
    }
    execute(FOLDER / "02_memory_bank.ipynb", tmp_path, runs=str(tmp_path / "runs"), **small)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bank"]["rows"] == 48 and summary["bank"]["reloaded_equal"]
    assert all(math.isfinite(number) for number in numbers(summary))
    assert summary["precision"]["raw pixels, held-out"][0] == 1.0, "brightness alone tells the classes apart"


def test_your_data_without_unlabelled_images_and_with_random_resized_crops(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for c in range(2):
            (folder := tmp_path / "set" / split / f"class {c}").mkdir(parents=True)
            for i in range(count):
                shape = (*generator.integers(28, 40, 2).tolist(), 3)
                pixels = generator.integers(100 * c, 100 * c + 150, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    small = {"epochs": 1, "teacher_epochs": 1, "teacher": "resnet8", "seeds": 1, "methods": ["kd"], "device": "cpu"}
    small |= {"folder": str(tmp_path / "set"), "crop": "resized", "image_size": 16, "runs": str(tmp_path / "runs")}
    execute(FOLDER / "12_your_data.ipynb", tmp_path, **small)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["accuracy"]) == ["ce, 24 images", "kd, 24 images"]


def numbers(value):
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_a_misspelt_parameter_stops_the_notebook_at_its_start(tmp_path):
    with pytest.raises(PapermillExecutionError) as caught:
        execute(FOLDER / "03_training.ipynb", tmp_path, epohcs=3)
    assert caught.value.ename == "InputError" and caught.value.exec_count <= 3
    assert "unknown parameter 'epohcs'; did you mean 'epochs'?" in caught.value.evalue


def test_a_wrong_value_stops_the_notebook_at_its_start(tmp_path):
    with pytest.raises(PapermillExecutionError, match=r"epochs='many': expected a whole number of 1"):
        execute(FOLDER / "03_training.ipynb", tmp_path, epochs="many")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "epohcs", "3"], "unknown parameter 'epohcs'; did you mean 'epochs'?"),
        (["06", "-p", "label", "50"], "unknown parameter 'label'; did you mean 'labels'?"),
        (["06", "-p", "shots", "[1]"], "unknown parameter 'shots'"),
        (["99"], "unknown notebook '99'"),
    ],
)
def test_the_script_refuses_what_no_notebook_has(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    assert run.main() == 2
    assert message in capsys.readouterr().err


def test_paths_are_those_from_where_the_script_is_called(monkeypatch, tmp_path):
    for name in ("photos", "run", "resnet20", "cifar100"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "t.pth").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "data_root"):
        assert run.located(name, "photos") == str(tmp_path / "photos")
        assert run.located(name, "none") == "none" and run.located(name, "") == ""
    assert run.located("teacher_weights", "t.pth") == str(tmp_path / "t.pth")
    assert run.located("teacher_weights", "photos") == "photos"  # as "pretrained" would be
    assert run.located("teacher", "run") == str(tmp_path / "run")
    assert run.located("teacher", "resnet20") == "resnet20"  # a model's name
    assert run.located("dataset", "masks:photos") == f"masks:{tmp_path / 'photos'}"
    assert [run.located("dataset", name) for name in ("cifar100", "masks:none")] == ["cifar100", "masks:none"]
    assert run.located("seeds", 5) == 5 and run.located("output", "photos") == "photos"

    seen = []
    monkeypatch.setattr(run, "RUNS", tmp_path)
    monkeypatch.setattr(run, "execute", lambda _path, _folder, parameters: seen.append(parameters) or sys.exit())
    monkeypatch.setattr(sys, "argv", ["run.py", "12", "-p", "folder", "photos", "-p", "teacher", "./run"])
    with pytest.raises(SystemExit):
        run.main()
    assert (seen[0]["folder"], seen[0]["teacher"]) == (str(tmp_path / "photos"), str(tmp_path / "run"))


def test_the_script_selects_notebooks_in_reading_order():
    assert [path.name[:2] for path in run.selected(["08", "03", "08"])] == ["03", "08"]
    assert run.selected([]) == NOTEBOOKS


def writes(text, error=None):
    """A substitute for `papermill.execute_notebook` that writes a file and, where it is given, raises an error."""

    def execute_notebook(_path, result, parameters, **_options):
        result.write_text(text)
        Path(parameters["output"], "summary.json").write_text(json.dumps({"headline": text}))
        if error:
            raise error

    return execute_notebook


@pytest.mark.parametrize(
    "error", [PapermillExecutionError(0, 1, "x", "ValueError", "no", []), DeadKernelError("Kernel died")]
)
def test_a_failed_notebook_does_not_replace_an_earlier_result(monkeypatch, capsys, tmp_path, error):
    monkeypatch.setattr(run, "RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "06"])
    monkeypatch.setattr(run.papermill, "execute_notebook", writes("good"))
    assert run.main() == 0 and "good" in capsys.readouterr().out
    folder = tmp_path / "06_methods"
    monkeypatch.setattr(run.papermill, "execute_notebook", writes("bad", error))
    assert run.main() == 1
    message = capsys.readouterr().err
    assert "06_methods.failed.ipynb" in message and "result of an earlier run" in message
    assert (folder / "06_methods.ipynb").read_text() == "good"
    assert (folder / "06_methods.failed.ipynb").read_text() == "bad"
    monkeypatch.setattr(run.papermill, "execute_notebook", writes("better"))
    assert run.main() == 0
    assert (folder / "06_methods.ipynb").read_text() == "better"
    assert sorted(path.name for path in folder.glob("*.ipynb")) == ["06_methods.ipynb"]


def test_an_interrupted_notebook_does_not_replace_an_earlier_result(monkeypatch, tmp_path):
    monkeypatch.setattr(run.papermill, "execute_notebook", writes("half", KeyboardInterrupt()))
    (tmp_path / "06_methods.ipynb").write_text("good")
    with pytest.raises(KeyboardInterrupt):
        run.execute(FOLDER / "06_methods.ipynb", tmp_path, {"output": str(tmp_path)})
    assert (tmp_path / "06_methods.ipynb").read_text() == "good"
    assert (tmp_path / "06_methods.failed.ipynb").read_text() == "half"


def test_the_committed_pictures_are_found_from_the_folder_of_an_executed_notebook(monkeypatch, tmp_path):
    (path,) = FOLDER.glob("00_*.ipynb")
    monkeypatch.setattr(run.papermill, "execute_notebook", writes(path.read_text()))
    run.execute(path, tmp_path, {"output": str(tmp_path)})
    (name,) = re.findall(r'<img src="(.+?)"', "".join(cells(tmp_path / path.name)[0]["source"]))
    assert (tmp_path / name).resolve().samefile(FOLDER.parent / "figures" / "neighbours.png")


def test_of_a_notebook_s_output_progress_bars_alone_are_passed_on(capsys):
    bars = run.Bars()
    bars.write("a table\n")
    bars.write("\repoch 1/2")
    assert capsys.readouterr().err == "\repoch 1/2"
