"""The run explorer draws and saves the chosen runs, and its state and memory do not grow."""

from __future__ import annotations

import base64
import csv
import gc
import html
import io
import json
import re
import shutil
import threading
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pytest
from ipywidgets import Widget
from matplotlib.figure import Figure
from PIL import Image
from test_runs import make_run

from ickd_lib import plots, runs, runtime
from ickd_lib.runtime import InputError
from ickd_lib.widgets.runs import RunExplorer
from ickd_lib.widgets.view import View


@pytest.fixture
def folder(tmp_path):
    plt.switch_backend("Agg")
    for seed in (0, 1):
        make_run(tmp_path / f"a-ce-{seed}", seed=seed)
    make_run(tmp_path / "b-kd-0", "kd")
    make_run(tmp_path / "c-ickd-0", "ickd", done=3)
    make_run(tmp_path / "teachers" / "t", network="resnet20", teacher=None)
    return tmp_path


@pytest.fixture
def explorer(folder):
    made = RunExplorer(folder)
    ready(made)
    return made


def ready(explorer, fresh=True):
    for view in (explorer.table, explorer.view):
        view._receive(None, {"event": "ready", "dark": False, "fresh": fresh}, [])


def choose(explorer, *runs, filter="", sort=(0, False)):
    key = json.dumps({"chosen": runs, "filter": filter, "sort": sort})
    explorer.table._receive(None, {"event": "choices", "key": key}, [])


def lines(explorer):
    """The lines of the left panel that would be drawn now, by name."""
    (figure,) = explorer.figures()
    names = [text.get_text().split("  ")[0] for text in figure.legends[0].texts]
    handles = figure.legends[0].legend_handles
    by_look = {(line.get_color(), line.get_marker()): line for line in figure.axes[0].lines}
    plt.close(figure)
    return {name: by_look[handle.get_color(), handle.get_marker()] for name, handle in zip(names, handles, strict=True)}


def saved(explorer, monkeypatch, name):
    """What a button offers as a download: name and bytes."""
    got = []
    monkeypatch.setattr(explorer.view, "save", lambda name, data, type="": got.append((name, data)))
    explorer.saves[name].click()
    return got[0] if got else None


def test_the_table_contains_every_run(explorer):
    table, alike = explorer.table._last[0]
    assert table["kind"] == "choices" and table["chosen"] == []
    assert alike["text"] == "All runs have: data set my_digits, images 1,000."  # so these are no columns
    names = [column["name"] for column in table["columns"]]
    rows = {row["key"]: dict(zip(names, row["cells"], strict=True)) for row in table["rows"]}
    assert list(rows) == ["a-ce-0", "a-ce-1", "b-kd-0", "c-ickd-0", "teachers/t"]
    assert table["sort"] == [names.index("last, %"), True]  # the most accurate run is the first one
    one = rows["a-ce-1"]
    assert [one[key] for key in ("teacher", "network", "method", "seed", "epochs", "state")] == [
        *("resnet20", "resnet8", "ce", "1", "4/4", "finished")
    ]
    assert [one[key] for key in ("last, %", "best, %", "NLL", "ECE, %")] == ["91.0", "95.0", "0.250", "5.0"]
    half = rows["c-ickd-0"]
    assert (half["epochs"], half["state"], half["last, %"], half["NLL"]) == ("3/4", "unfinished", "70.0", "")
    assert rows["teachers/t"]["method"] == "ce (a teacher)" and rows["teachers/t"]["teacher"] == ""
    assert all(isinstance(cell, str) for row in table["rows"] for cell in row["cells"])


def test_similar_runs_are_told_apart_by_what_differs_and_not_by_a_fingerprint(tmp_path):
    for name, weight in (("kd-seed0-0a1b2c", 0.1), ("kd-seed0-3d4e5f", 0.5)):
        run = make_run(tmp_path / name, "kd")
        config = json.loads((run.folder / "config.json").read_text())
        config["settings"]["recipe"] = {**config["settings"]["recipe"], "weight_decay": weight}
        (run.folder / "config.json").write_text(json.dumps(config))
    make_run(tmp_path / "ce-seed0-aaaaaa")
    explorer = RunExplorer(tmp_path)
    ready(explorer)
    rows = {row["key"]: row["cells"][0] for row in explorer.table._last[0][0]["rows"]}
    assert rows == {
        "ce-seed0-aaaaaa": "ce-seed0",
        "kd-seed0-0a1b2c": "kd-seed0 (weight_decay 0.1)",
        "kd-seed0-3d4e5f": "kd-seed0 (weight_decay 0.5)",
    }
    explorer.mean.value = False
    assert list(explorer.drawn()) == ["ce, seed 0", "kd, weight decay 0.1, seed 0", "kd, weight decay 0.5, seed 0"]


def test_the_picture_has_the_theme_of_the_page(explorer):
    def brightness():
        return np.asarray(Image.open(io.BytesIO(explorer.view._last[1])).convert("L")).mean()

    light = brightness()
    explorer.view._receive(None, {"event": "theme", "dark": True}, [])
    dark = brightness()
    explorer.view._receive(None, {"event": "theme", "dark": False}, [])
    assert explorer.error == "" and dark < 60 < 200 < light == brightness()


def test_final_metrics_are_in_descending_order_of_accuracy(explorer, monkeypatch):
    seen = []
    draw = plots.finals
    monkeypatch.setattr(plots, "finals", lambda found: seen.append(found) or draw(found))
    explorer.mean.value = False
    choose(explorer, "a-ce-0", "a-ce-1", "b-kd-0")
    explorer.kind.value = "final metrics"
    assert [numbers["accuracy, %"] for numbers in seen[-1].values()] == [[0.91], [0.9], [0.9]]


def test_chosen_runs_are_drawn_from_their_records(explorer, folder):
    note, _ = explorer.view._last[0]
    assert "No run is chosen" in note["text"] and explorer.view._last[1].startswith(b"\x89PNG")
    before = explorer.view._last[1]
    choose(explorer, "b-kd-0", "a-ce-1", "gone")
    assert explorer.chosen == ["a-ce-1", "b-kd-0"] and explorer.error == ""
    assert explorer.view._last[0][0]["text"] == "" and explorer.view._last[1] != before
    assert "curves of test_accuracy: ce, kd" in explorer.view._last[0][1]["alt"]
    drawn = lines(explorer)
    assert set(drawn) == {"ce", "kd"}
    records = [json.loads(line) for line in (folder / "a-ce-1" / "metrics.jsonl").read_text().splitlines()]
    expected = [(r["epoch"], 100 * r["test_accuracy"]) for r in records if "test_accuracy" in r]
    np.testing.assert_allclose(np.array(drawn["ce"].get_xydata()), expected)
    explorer.number.value = "loss_ce"
    np.testing.assert_allclose(lines(explorer)["ce"].get_ydata(), [r["terms"]["ce"] for r in records])


def test_seeds_are_one_line_or_one_line_each(explorer):
    choose(explorer, "a-ce-0", "a-ce-1")
    np.testing.assert_allclose(lines(explorer)["ce"].get_ydata(), [70.5, 90.5])
    explorer.mean.value = False
    drawn = lines(explorer)
    np.testing.assert_allclose(drawn["ce, seed 0"].get_ydata(), [70, 90])
    np.testing.assert_allclose(drawn["ce, seed 1"].get_ydata(), [71, 91])


def test_offered_numbers_are_those_that_all_chosen_runs_have(explorer):
    choose(explorer, "b-kd-0")
    assert "loss_kd" in explorer.number.options
    explorer.number.value = "loss_kd"
    choose(explorer, "b-kd-0", "a-ce-0")
    assert "loss_kd" not in explorer.number.options and explorer.number.value == "test_accuracy"
    assert explorer.error == "" and "test_accuracy" in explorer.view._last[0][1]["alt"]
    explorer.kind.value = "loss terms"
    assert explorer.number.disabled and explorer.error == ""


def test_final_metrics_equal_the_summaries(explorer, monkeypatch):
    seen = []
    draw = plots.finals
    monkeypatch.setattr(plots, "finals", lambda found: seen.append(found) or draw(found))
    choose(explorer, "a-ce-0", "a-ce-1", "c-ickd-0")
    explorer.kind.value = "final metrics"
    assert seen[-1] == {
        "ce": {"accuracy, %": [0.9, 0.91], "NLL": [0.25, 0.25], "ECE, %": [0.05, 0.05]},
    }  # the third is not finished
    assert "nothing can be drawn yet: c-ickd-0" in explorer.view._last[0][0]["text"]
    assert explorer.error == ""


def test_filter_and_order_are_kept_for_the_next_page(explorer):
    sent = []
    explorer.table.send = lambda content, buffers=None: sent.append(content)
    drawn = explorer.view._last[1]
    choose(explorer, filter="kd seed", sort=(9, True))
    assert explorer.view._last[1] is drawn, "a filter does not redraw the figure"
    explorer.table._receive(None, {"event": "ready", "dark": True, "fresh": True}, [])
    table = sent[-1]["blocks"][0]
    assert table["filter"] == "kd seed" and list(table["sort"]) == [9, True]
    choose(explorer, "b-kd-0", filter="kd")
    explorer.again.click()
    table = sent[-1]["blocks"][0]
    assert table["chosen"] == ["b-kd-0"] and table["filter"] == "kd"


def test_the_order_is_kept_by_name_where_columns_vanish(folder):
    explorer = RunExplorer(folder)
    ready(explorer)
    names = [column["name"] for column in explorer.table._last[0][0]["columns"]]
    assert "state" in names and "NLL" in names
    choose(explorer, sort=(names.index("NLL"), False))
    shutil.rmtree(folder / "c-ickd-0")  # the one that is unfinished, so that "state" is the same for all
    explorer.again.click()
    table = explorer.table._last[0][0]
    after = [column["name"] for column in table["columns"]]
    assert "state" not in after and table["sort"] == [after.index("NLL"), False]
    choose(explorer, sort=(after.index("agreement, %") if "agreement, %" in after else len(after) - 1, True))


def test_several_teachers_have_looks_of_their_own(folder):
    make_run(folder / "teachers" / "u", network="resnet56", teacher=None)
    explorer = RunExplorer(folder)
    ready(explorer)
    explorer.mean.value = False
    assert explorer.error == "" and len(plots.style.looks(["teacher", "teacher, seed 1", "pixels", "pixels 2"])) == 4


@pytest.mark.parametrize(("task", "primary"), [("segmentation", "miou"), ("detection", "ap")])
def test_runs_of_other_tasks_have_their_numbers(tmp_path, task, primary):
    for seed in (0, 1):
        run = make_run(tmp_path / f"ce-{seed}", seed=seed)
        config, summary = (runtime.read_json(run.folder / f"{name}.json") for name in ("config", "summary"))
        config["settings"]["task"] = task
        kept = {key: value for key, value in summary.items() if "accuracy" not in key and key not in ("nll", "ece")}
        runtime.write_json(run.folder / "config.json", config)
        numbers = {"task": task, primary: 0.5 + seed / 10, f"best_{primary}": 0.7}
        runtime.write_json(run.folder / "summary.json", kept | numbers)
        lines = (run.folder / "metrics.jsonl").read_text().replace("test_accuracy", f"test_{primary}")
        (run.folder / "metrics.jsonl").write_text(lines)
    explorer = RunExplorer(tmp_path)
    assert explorer.png()[:4] == b"\x89PNG", "before a page is open"
    explorer.save(tmp_path / "page.html")
    ready(explorer)
    table = explorer.table._last[0][0]
    names = [column["name"] for column in table["columns"]]
    assert [row["cells"][names.index("last, %")] for row in table["rows"]] == ["50.0", "60.0"]
    explorer.kind.value = "final metrics"
    assert explorer.error == ""


def test_reload_reads_what_training_wrote(explorer, folder):
    choose(explorer, "c-ickd-0")
    assert list(lines(explorer)["ickd"].get_xdata()) == [2]
    make_run(folder / "d-new", "picd")
    (folder / "c-ickd-0" / "metrics.jsonl").unlink()
    make_run(folder / "c-ickd-0", "ickd")
    explorer.again.click()
    assert [row["key"] for row in explorer.table._last[0][0]["rows"]][4] == "d-new"
    assert list(lines(explorer)["ickd"].get_xdata()) == [2, 4] and explorer.rows["c-ickd-0"]["state"] == "finished"


def test_a_relative_folder_is_found_after_a_change_of_folder(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(folder.parent)
    explorer = RunExplorer(folder.name)
    ready(explorer)
    assert explorer.table._last[0][0]["title"] == f"runs below {folder.name}"
    monkeypatch.chdir(tmp_path_factory.mktemp("other"))
    explorer.again.click()
    assert explorer.error == "" and lines(explorer)


def test_files_contain_the_chosen_runs(explorer, monkeypatch):
    choose(explorer, "a-ce-0", "a-ce-1", "c-ickd-0")
    name, data = saved(explorer, monkeypatch, "CSV, runs")
    back = list(csv.DictReader(io.StringIO(data.decode())))
    assert name == "runs.csv" and [row["run"] for row in back] == explorer.chosen
    assert float(back[1]["accuracy"]) == 0.91
    name, data = saved(explorer, monkeypatch, "CSV, curves")
    back = list(csv.DictReader(io.StringIO(data.decode())))
    assert name == "curves.csv" and {row["run"] for row in back} == set(explorer.chosen)
    finished = [explorer.rows[run] for run in ("a-ce-0", "a-ce-1")]
    assert saved(explorer, monkeypatch, "Markdown") == ("table.md", runs.table(finished).encode())
    assert "1 unfinished left out" in explorer.message.value
    assert saved(explorer, monkeypatch, "LaTeX") == ("table.tex", runs.latex(finished).encode())
    name, data = saved(explorer, monkeypatch, "PNG")
    assert name == "curves-test_accuracy.png" and int.from_bytes(data[16:20], "big") >= 1500
    name, data = saved(explorer, monkeypatch, "SVG")
    assert name == "curves-test_accuracy.svg" and b"The last third, enlarged</text>" in data
    choose(explorer, "c-ickd-0")
    assert saved(explorer, monkeypatch, "LaTeX") is None and "no chosen run is finished" in explorer.error
    choose(explorer)
    _, data = saved(explorer, monkeypatch, "CSV, runs")
    assert len(data.decode().splitlines()) == 6 and "none is chosen" in explorer.message.value


def test_damaged_runs_are_named_and_the_others_displayed(folder):
    (folder / "b-kd-0" / "config.json").write_text("{")
    explorer = RunExplorer(folder)
    ready(explorer)
    table, _, text = explorer.table._last[0]
    assert len(table["rows"]) == 4 and "b-kd-0/config.json is not JSON" in text["text"] and text["tone"] == "error"
    choose(explorer, "a-ce-0")
    assert explorer.error == "" and explorer.view._last[1].startswith(b"\x89PNG")


def test_an_error_is_displayed_until_the_next_interaction(explorer, folder):
    make_run(folder / "d-new", done=0)
    explorer.again.click()
    before = plt.get_fignums()
    choose(explorer, "d-new")
    assert "nothing can be drawn for these runs yet" in explorer.error
    choose(explorer, "d-new", "a-ce-0")
    assert explorer.error == "" and "nothing can be drawn yet: d-new" in explorer.view._last[0][0]["text"]
    choose(explorer, "d-new")
    assert 'role="alert"' in explorer.message.value and html.escape(explorer.error) in explorer.message.value
    (folder / "b-kd-0" / "metrics.jsonl").write_bytes(b"\xff\xfe")
    explorer.again.click()
    choose(explorer, "b-kd-0")
    assert "b-kd-0/metrics.jsonl cannot be read" in explorer.error and plt.get_fignums() == before
    choose(explorer, "a-ce-0")
    assert explorer.error == "" and explorer.message.value == ""


def test_an_unknown_folder_or_run_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder") as caught:
        RunExplorer(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'a-ce-0'"):
        RunExplorer(folder, chosen=["a-ce0"])
    for run in folder.rglob("config.json"):
        run.write_text("{")
    with pytest.raises(InputError, match=r"all 5 runs below .* are damaged"):
        RunExplorer(folder)


def test_a_note_says_that_lines_are_left_out(tmp_path):
    for seed in range(22):
        make_run(tmp_path / f"ce-{seed:02}", seed=seed)
    explorer = RunExplorer(tmp_path, chosen=[f"ce-{seed:02}" for seed in range(22)])
    ready(explorer)
    explorer.mean.value = False
    assert "Only 20 of 22 lines" in explorer.view._last[0][0]["text"] and len(explorer.drawn()) == 20


def test_without_a_page_there_is_a_picture(folder):
    assert RunExplorer(folder, chosen=["b-kd-0"]).png().startswith(b"\x89PNG")


def test_state_stays_small_and_contains_no_run(folder):
    explorer = RunExplorer(folder)

    def inside(widget):
        yield from (widget, widget.layout, *filter(None, [getattr(widget, "style", None)]))
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    def state():  # as a notebook saves it
        widgets = [one for one in inside(explorer) if isinstance(one, Widget)]
        code = [one.get_state(["_esm", "_css"]) for one in widgets if isinstance(one, View)]
        return json.dumps([Widget.get_manager_state(drop_defaults=True, widgets=widgets), code])

    before = state()
    ready(explorer)
    choose(explorer, "a-ce-0", "b-kd-0", filter="ce")
    after = state()
    assert len(before) < 80_000 and len(after) < len(before) + 500 and "a-ce-0" not in after


def test_a_hundred_interactions_leave_figures_and_memory_unchanged(explorer):
    runs = list(explorer.rows)

    def touch(count):
        for i in range(count):
            if i % 5 == 0:
                explorer.mean.value = not explorer.mean.value
            elif i % 5 == 1:
                explorer.kind.value = ("curves", "final metrics", "loss terms")[i // 5 % 3]
            elif i % 5 == 2:
                explorer.saves["CSV, curves"].click()
            else:
                choose(explorer, runs[i % 3], filter="x" * (i % 3))
            assert explorer.error == ""

    drawn = []
    explorer.png = lambda: drawn.append(0) or b"\x89PNG"  # drawing is slow, and checked below with fewer figures
    touch(20)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    touch(100)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(drawn) > 60 and grown < 200_000
    del explorer.png
    gc.collect()
    figures, alive = plt.get_fignums(), sum(type(one) is Figure for one in gc.get_objects())
    for kind in ("final metrics", "loss terms", "curves"):
        explorer.kind.value = kind
        explorer.saves["PNG"].click()
    gc.collect()
    assert plt.get_fignums() == figures and explorer.view._last[1].startswith(b"\x89PNG")
    assert sum(type(one) is Figure for one in gc.get_objects()) <= alive


def test_a_null_hides_no_run_and_a_failed_reload_keeps_the_rows(folder):
    path = folder / "a-ce-0" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"nll": None}))
    explorer = RunExplorer(folder)
    ready(explorer)
    assert explorer.error == "" and len(explorer.table._last[0][0]["rows"]) == len(explorer.rows)
    kept = explorer.rows
    for path in folder.rglob("config.json"):
        path.write_text("{")
    explorer.again.click()
    assert "are damaged" in explorer.error and explorer.rows is kept
    choose(explorer, "a-ce-1")
    assert explorer.error == ""


def test_a_gallery_contains_the_table_and_each_figure(explorer, tmp_path, monkeypatch):
    choose(explorer, "a-ce-0", "b-kd-0", filter="0")
    monkeypatch.setattr(View, "send", lambda *_: pytest.fail("nothing may be sent to the page"))
    explorer.save(tmp_path / "runs.html")
    text = (tmp_path / "runs.html").read_text()
    content = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert [row["key"] for row in content["table"]["rows"]] == list(explorer.rows)
    assert content["table"]["fixed"] and content["table"]["filter"] == ""
    assert list(content["figures"]) == ["curves", "loss terms", "final metrics"]
    for kind, figure in content["figures"].items():
        assert figure["alt"] == f"{kind}: ce, kd"
        light, dark = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(figure[theme].partition(",")[2]))).convert("L")).mean()
            for theme in ("light", "dark")
        )
        assert dark < 60 < 200 < light
    assert explorer.kind.value == "curves" and explorer.error == ""


def test_a_change_during_drawing_is_drawn_as_well(explorer, monkeypatch):
    """JupyterLab sends the first messages to the main thread and later ones to another, which must not be ignored."""
    explorer.kind.value = "curves"
    begun, go_on, draw = threading.Event(), threading.Event(), explorer.png
    drawn = []

    def slowly():
        begun.set()
        assert go_on.wait(10)
        drawn.append(explorer.kind.value)
        return draw()

    monkeypatch.setattr(explorer, "png", slowly)
    first = threading.Thread(target=choose, args=(explorer, "b-kd-0"))
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=lambda: setattr(explorer.kind, "value", "final metrics"))
    second.start()
    second.join(0.2)
    go_on.set()
    first.join(10)
    second.join(10)
    assert explorer.view._last[0][1]["alt"].startswith("final metrics")
    assert len(drawn) == 2 and not explorer.error
