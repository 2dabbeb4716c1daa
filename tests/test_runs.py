"""Run folders as rows, CSV, Markdown and LaTeX: every number is the folder's, and a bad folder hides no other."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ickd_lib import __main__ as cli
from ickd_lib import methods, plots, runs, runtime, tasks, training
from ickd_lib.runtime import InputError
from ickd_lib.training import records

RECIPE = {"epochs": 4, "batch_size": 64, "lr": 0.1, "schedule": "onecycle"}


def make_run(
    folder, method="ce", seed=0, done=4, *, teacher="resnet20", circle="", peers=(), network="resnet8", data_seed=None
):
    """A run folder as training writes it; the accuracy after an epoch is 0.5 + epoch / 10 + seed / 100."""
    run = runtime.Run(folder)
    data_seed = seed if data_seed is None else data_seed
    made = methods.create(method)
    settings = {
        "student": {"network": network, "num_classes": 10},
        "method": made.config,
        "seed": seed,
        "data": {"name": "my_digits/train", "images": 1000, "augment": "crop"},
        "data_seed": data_seed,
        "recipe": RECIPE,
        "teacher": teacher and {"name": teacher, "fingerprint": "0"},
        "teacher_saw": teacher and {"data": "my_digits/train", "labels": 1000},
    }
    if circle:
        settings |= {"circle": circle, "peers": [{"student": {"network": peer}} for peer in peers]}
    runtime.write_json(run.folder / "config.json", {"settings": settings, "path": {}, "group": "0", "environment": {}})
    for epoch in range(1, done + 1):
        terms = {"ce": 1 / epoch, "kd": 100.0**-epoch} if "kd" in method else {"ce": 1 / epoch}
        record = {"epoch": epoch, "lr": 0.1, "loss": sum(terms.values()), "terms": terms, "train_accuracy": 0.5}
        if epoch % 2 == 0:
            record["test_accuracy"] = 0.5 + epoch / 10 + seed / 100
        run.log(record | {"seconds": epoch + 0.5})
    if done == RECIPE["epochs"]:
        summary = {"name": run.folder.name, "network": network, "method": methods.describe(made), "seed": seed}
        summary |= {"data_seed": data_seed, "dataset": "my_digits", "train_images": 1000, "augment": "crop", **RECIPE}
        summary |= {"teacher": teacher, "teacher_saw": settings["teacher_saw"], "best_accuracy": 0.95, "best_epoch": 2}
        summary |= {"accuracy": 0.9 + seed / 100, "nll": 0.25, "ece": 0.05, "images_per_second": 10.0}
        if circle:
            summary |= {"circle": circle, "peers": list(peers)}
        runtime.write_json(run.folder / "summary.json", summary)
    return run


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "a-ce-0")
    make_run(tmp_path / "a-ce-1", seed=1)
    make_run(tmp_path / "b-kd-0", "kd")
    make_run(tmp_path / "c-ickd-0", "ickd(nicd=0)", done=3)
    make_run(tmp_path / "teachers" / "t", network="resnet20", teacher=None)
    return tmp_path


def test_overview_says_what_every_run_is_and_how_far(folder):
    rows = {row["run"]: row for row in runs.overview(folder)}
    assert list(rows) == ["a-ce-0", "a-ce-1", "b-kd-0", "c-ickd-0", "teachers/t"]
    done = rows["a-ce-1"]
    assert (done["state"], done["epoch"], done["accuracy"], done["nll"]) == ("finished", 4, 0.91, 0.25)
    half = rows["c-ickd-0"]
    assert (half["state"], half["epoch"], half["epochs"]) == ("unfinished", 3, 4)
    assert half["accuracy"] == half["best_accuracy"] == pytest.approx(0.7) and half["best_epoch"] == 2
    assert "nll" not in half and half["method"] == "ickd(nicd=0)" and half["train_images"] == 1000
    assert [row["role"] for row in rows.values()] == ["student"] * 4 + ["teacher"]
    assert rows["teachers/t"]["teacher"] is None


def test_a_teacher_is_one_from_wherever_it_is_seen(folder, monkeypatch):
    (folder / "link").symlink_to(folder / "teachers")
    make_run(folder / "shared" / "t", teacher=None)
    (folder / "out").mkdir()
    (folder / "out" / "teachers").symlink_to(folder / "shared")
    assert [runs.overview(folder / name)[0]["role"] for name in ("link", "out/teachers")] == ["teacher"] * 2
    for place in ("teachers", "teachers/t"):
        monkeypatch.chdir(folder / place)
        assert [row["role"] for row in runs.overview(".")] == ["teacher"]
        assert [row["role"] for row in runs.progress(".")[0]] == ["teacher"]
        assert runs.collected(["."])[0]["role"] == "teacher"
        with pytest.raises(InputError, match=r"^\. contains only teachers; name the folder of their students' runs$"):
            runs.finished(["."])
    make_run(folder / "new" / "teachers" / "t", teacher=None)
    make_run(folder / "new" / "kd", "kd", done=1)
    with pytest.raises(InputError, match=r"no finished run below .*; resume the runs that were stopped"):
        runs.finished([folder / "new"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "{", "b-kd-0/config.json is not JSON"),
        ("config.json", "[]", "b-kd-0/config.json is not the configuration of a run"),
        ("config.json", '{"settings": {}}', "b-kd-0 is not a complete run"),
        ("summary.json", "[1]", "b-kd-0 is not a complete run"),
        ("summary.json", "", "b-kd-0/summary.json is not JSON"),
    ],
)
def test_a_damaged_run_is_one_row_and_hides_no_other(folder, name, text, said):
    (folder / "b-kd-0" / name).write_text(text)
    rows = runs.overview(folder)
    assert [row["state"] for row in rows] == ["finished", "finished", "damaged", "unfinished", "finished"]
    assert said in rows[2]["problem"] and "\n" not in rows[2]["problem"]


def test_a_run_before_its_first_epoch_and_a_line_cut_short(folder):
    make_run(folder / "d-new", done=0)
    with open(folder / "c-ickd-0" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    rows = {row["run"]: row for row in runs.overview(folder)}
    assert rows["d-new"]["epoch"] == 0 and "accuracy" not in rows["d-new"]
    assert rows["c-ickd-0"]["epoch"] == 3


def test_a_method_of_another_version_keeps_its_name(folder):
    config = json.loads((folder / "c-ickd-0" / "config.json").read_text())
    config["settings"]["method"]["forgotten"] = 1
    runtime.write_json(folder / "c-ickd-0" / "config.json", config)
    assert runs.overview(folder)[3]["method"] == "ickd"


def test_no_folder_and_no_run_are_one_line(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError) as caught:
            runs.overview(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_to_runs_is_followed_and_each_run_is_found_once(folder, tmp_path_factory):
    chosen = tmp_path_factory.mktemp("chosen")
    for name, target in (("runs", folder), ("again", folder), ("round", chosen)):
        (chosen / name).symlink_to(target)
    names = [run.folder.name for run in runtime.runs(folder)]
    assert [run.folder.name for run in runtime.runs(chosen)] == names and len(names) == 5
    assert len(runs.progress(chosen)[0]) == 5


def test_csv_comes_back_as_it_went(folder):
    rows = runs.overview(folder)
    back = list(csv.DictReader(io.StringIO(runs.csv_of(rows))))
    assert [row["run"] for row in back] == [row["run"] for row in rows]
    assert float(back[1]["accuracy"]) == rows[1]["accuracy"] and back[3]["nll"] == ""
    assert json.loads(back[0]["teacher_saw"]) == rows[0]["teacher_saw"] and back[3]["method"] == "ickd(nicd=0)"
    odd = [{"run": 'a,"b"\nc', "x": 0.1}, {"run": "d", "y": [1, 2]}]
    assert list(csv.DictReader(io.StringIO(runs.csv_of(odd)))) == [
        {"run": 'a,"b"\nc', "x": "0.1", "y": ""},
        {"run": "d", "x": "", "y": "[1, 2]"},
    ]


def test_long_form_holds_each_number_of_each_epoch_once(folder):
    rows = runs.overview(folder)
    found = {(one["run"], one["epoch"], one["name"]): one["value"] for one in runs.long(rows)}
    assert len(found) == len(runs.long(rows))
    expected = {}
    for row in rows:
        for line in (folder / row["run"] / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            for term, value in record.pop("terms").items():
                expected[row["run"], record["epoch"], f"loss_{term}"] = value
            expected |= {(row["run"], record["epoch"], k): v for k, v in record.items() if k != "epoch"}
    assert found == expected and found["b-kd-0", 2, "loss_kd"] == 1e-4


def test_averaged_keeps_what_all_have():
    one = [{"epoch": 1, "a": 1.0}, {"epoch": 2, "a": 3.0, "b": 1.0}]
    other = [{"epoch": 2, "a": 5.0}, {"epoch": 3, "a": 7.0}]
    assert runs.averaged([one, other]) == [{"epoch": 2, "a": 4.0}]


def test_latex_has_the_numbers_of_markdown_and_equally_many_columns(folder):
    finished = [row for row in runs.overview(folder) if row["state"] == "finished"]
    text, markdown = runs.latex(finished), runs.table(finished)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == markdown.count("| method |") == 2
    for part in text.split(r"\begin{table}")[1:]:
        order = [
            part.index(mark) for mark in (r"\caption{", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")
        ]
        assert order == sorted(order)
        columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", part)[1]
        lines = [line for line in part.splitlines() if line.endswith(r"\\")]
        assert len(lines) >= 2 and all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)
        assert not re.search(r"(?<!\\)[%_#]", part) and part.count("{") == part.count("}")
    assert (
        r"ce & 2 & 90.50 $\pm$ 0.71 & 95.00 $\pm$ 0.00 &" in text
        and "| ce | 2 | 90.50 ± 0.71 | 95.00 ± 0.00 |" in markdown
    )
    assert r"my\_digits, 1,000 training images: resnet20 $\rightarrow$ resnet8" in text and r"last, \%" in text


def test_latex_escapes_every_special_letter():
    assert runs.escaped(r"a_b & 5% #1 {x} $y ~z^2 \n <1>") == (
        r"a\_b \& 5\% \#1 \{x\} \$y \textasciitilde{}z\textasciicircum{}2 \textbackslash{}n $<$1$>$"
    )


def test_peers_of_one_network_count_once(tmp_path):
    for seed, data_seed in ((0, 0), (1000, 0), (1, 1), (1001, 1)):
        circle = f"dml seed {data_seed}"
        make_run(tmp_path / f"{seed}", "dml", seed, circle=circle, peers=["resnet8"], data_seed=data_seed)
    rows = runs.overview(tmp_path)
    (seeds,) = runs.named(rows).values()
    assert [sorted(row["seed"] for row in alike) for alike in seeds] == [[0, 1000], [1, 1001]]
    assert list(runs.named(rows, by_run=True)) == ["dml, seed 0", "dml, seed 1000", "dml, seed 1", "dml, seed 1001"]
    assert "| dml | 2 |" in runs.table(rows)


def test_names_tell_apart_what_differs_and_nothing_else(folder):
    make_run(folder / "other-ce", network="resnet20")
    rows = runs.overview(folder)
    assert list(runs.named(rows)) == ["ce, resnet8", "kd", "ickd(nicd=0)", "ce, resnet20", "teacher"]
    make_run(folder / "again-ce-0")
    twice = [row for row in runs.overview(folder) if row["run"] in ("a-ce-0", "again-ce-0")]
    names = runs.named(twice, by_run=True)
    assert list(names) == ["ce, seed 0 (a-ce-0)", "ce, seed 0 (again-ce-0)"]
    assert [row["run"] for ((row,),) in names.values()] == ["a-ce-0", "again-ce-0"]
    marked = [row | {"run": f"resnet8-ce-seed0-00ab1{i}"} for i, row in enumerate(twice)]
    assert list(runs.named(marked, by_run=True)) == [f"ce, seed 0 (resnet8-ce-seed0-00ab1{i})" for i in range(2)]
    same = [row | {"run": f"{i}/run-00ab10"} for i, row in enumerate(twice)]
    assert list(runs.named(same, by_run=True)) == ["ce, seed 0 (0/run-00ab10)", "ce, seed 0 (1/run-00ab10)"]


def test_loss_terms_have_a_panel_each_and_the_records_numbers(folder):
    figure = plots.losses({row["run"]: [runs.records(row)] for row in runs.overview(folder)[1:3]})
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["loss", "ce", "kd (log scale)"] and panels["kd (log scale)"].get_yscale() == "log"
    (line,) = panels["kd (log scale)"].lines
    np.testing.assert_allclose(line.get_ydata(), [100.0**-epoch for epoch in (1, 2, 3, 4)])
    assert len(panels["ce"].lines) == 2
    with pytest.raises(InputError, match="loss"):
        plots.losses({"ce": [[{"epoch": 1, "lr": 0.1}]]})
    plt.close("all")


def test_runs_of_one_method_look_different():
    names = [f"kd, seed {seed}" for seed in range(6)] + ["ickd, seed 0", "teacher, resnet8"]
    found = plots.training.looks(names)
    assert len({(str(look["color"]), str(look["linestyle"]), look["marker"]) for look in found}) == len(names)
    assert found[0] == plots.method_style("kd") and found[7] == plots.method_style("teacher")


def test_final_numbers_have_a_panel_each(folder):
    figure = plots.finals({"ce": {"accuracy, %": [0.5, 0.7], "NLL": [0.25]}, "kd": {"accuracy, %": [0.9]}})
    accuracy, nll = figure.axes
    assert [text.get_text() for text in accuracy.texts] == ["60.0 ± 14.1", "90.0"]
    assert [text.get_text() for text in nll.texts] == ["0.250"] and nll.get_title() == "NLL"
    plt.close("all")


def summary_of(method, seed, accuracy, **other):
    fixed = {"dataset": "cifar100", "train_images": 50_000, "teacher": "resnet32x4", "network": "resnet8x4"}
    fixed |= {"teacher_saw": {"data": "cifar100/train"}} | RECIPE | {"epochs": 240}
    return fixed | {"method": method, "data_seed": seed, "accuracy": accuracy} | other


@pytest.mark.parametrize(
    "losses, told", [((0.05,), True), ((0.005,), False), ((0.05, 0.06), True), ((0.2, -0.1), False), ((-0.1,), False)]
)
def test_a_method_that_is_worse_than_labels_alone_is_named(tmp_path, losses, told):
    for seed, loss in enumerate(losses):
        make_run(tmp_path / f"ce{seed}", seed=seed)
        run = make_run(tmp_path / f"kd{seed}", "kd", seed)
        runtime.write_json(run.folder / "summary.json", run.summary | {"accuracy": 0.9 + seed / 100 - loss})
    sentences = runs.behind_labels(runs.finished([tmp_path]))
    points = 100 * sum(losses) / len(losses)
    expected = f"kd is {points:.1f} points below ce, labels alone; check the teacher and the weights"
    assert sentences == [expected] * told
    assert runs.behind_labels([one for one in runs.finished([tmp_path]) if one["method"] == "kd"]) == []


def test_differences_are_paired_by_seed_not_by_order():
    found = [summary_of("kd", seed, 0.70 + seed / 100) for seed in (0, 1, 2)]
    found += [summary_of("ickd", seed, 0.71 + seed / 100) for seed in (2, 0, 1)]  # one point more in each seed
    found += [summary_of("ckd", seed, 0.70) for seed in (1, 5)]  # one seed in common
    (setting,) = runs.grouped(found).values()
    apart = runs.differences(setting, "kd")
    assert apart == {"ickd": pytest.approx({"mean": 0.01, "low": 0.01, "high": 0.01})}
    table = runs.table(found, baseline="kd")
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert rows["ickd"].endswith("| +1.00 (+1.00 to +1.00) |")
    assert rows["ckd"].endswith("|  |") and rows["kd"].endswith("|  |")
    with pytest.raises(InputError, match="baseline 'kdd'"):
        runs.table(found, baseline="kdd")


def test_runs_with_one_seed_of_the_data_are_paired_by_their_own_seeds():
    one = {"accuracy": 0.0, "data_seed": 0}

    def of(values):
        return [[one | {"seed": seed, "accuracy": value}] for seed, value in enumerate(values)]

    by_method = {"kd": of([0.5, 0.6, 0.7]), "ce": of([0.4, 0.55, 0.5])[::-1]}
    found = runs.differences(by_method, "ce")["kd"]
    assert found["mean"] == pytest.approx((0.1 + 0.05 + 0.2) / 3) and found["low"] < found["mean"] < found["high"]


def test_runs_of_another_recipe_are_no_seeds_of_the_first(tmp_path):
    """Any setting of the recipe separates tables, names and captions, also where a summary lacks the recipe."""
    for seed in (0, 1):
        make_run(tmp_path / f"usual{seed}", seed=seed)
        changed = make_run(tmp_path / f"changed{seed}", seed=seed)
        config = runtime.read_json(changed.folder / "config.json")
        config["settings"]["recipe"] |= {"weight_decay": 0.0, "nesterov": True, "betas": [0.9, 0.99]}
        runtime.write_json(changed.folder / "config.json", config)
    changes = "nesterov, betas 0.9 0.99, weight decay 0"
    tables = runs.table(runs.finished([tmp_path])).split("\n\n")
    captions = [part for part in tables if part.startswith("**")]
    assert len(captions) == 2 and captions[0].endswith(changes) and changes not in captions[1]
    rows = runs.overview(tmp_path)
    assert {row["recipe"] for row in rows} == {"", changes}
    assert set(runs.seeds.named(rows)) == {f"ce, {changes}", "ce, other settings as by default"}
    segmentation = training.Recipe(**{"epochs": 2} | dict(tasks.create("segmentation").recipe))
    assert records.recipe_changes(dataclasses.asdict(segmentation), "segmentation") == ""
    assert records.recipe_changes(dataclasses.asdict(training.Recipe(nesterov=False)), "segmentation") != ""


@pytest.mark.parametrize("what", ["teacher", "data", "images"])
def test_runs_with_equal_seeds_are_no_repetition(tmp_path, what):
    """Another teacher of the same name, another size of the images, or another choice of them: tables of their own."""
    for name, mark in (("a", "0"), ("b", "1")):
        for seed in (0, 1):
            for method in ("ce", "kd"):
                run = make_run(tmp_path / f"{name}-{method}-{seed}", method, seed)
                config = runtime.read_json(run.folder / "config.json")
                settings = config["settings"]
                settings["teacher"]["fingerprint"] = mark if what == "teacher" else "0"
                settings["data"]["fingerprint"] = f"{mark}{seed}" if what == "images" else f"{seed}"
                settings["student"]["mean"] = [float(mark)] * 3 if what == "data" else [0.0] * 3
                runtime.write_json(run.folder / "config.json", config)
    found = runs.finished([tmp_path])
    (first, by_method), *others = runs.grouped(found).items()
    alone = runs.finished([tmp_path / f"a-{method}-{seed}" for method in ("ce", "kd") for seed in (0, 1)])
    if what == "images":  # those of each seed differ, so the two choices of one seed cannot be told from two seeds
        assert len(others) == 3
    else:
        assert len(others) == 1 and {name: len(seeds) for name, seeds in by_method.items()} == {"ce": 2, "kd": 2}
        assert f", {what} " in runs.tables.caption(first)[1]
    ((setting, _),) = runs.grouped(alone).items()
    assert setting.origin == "", "without another run, nothing has to be told apart"


def test_a_table_has_a_baseline_where_it_was_trained(tmp_path):
    common = {"task": "classification", "train_images": 10, "dataset": "digits", "teacher": None, "network": "resnet8"}
    common |= {"epochs": 1, "batch_size": 8, "schedule": "step", "data_seed": 0, "seed": 0, "accuracy": 0.5}
    some = [common | {"lr": lr, "method": name} for lr, name in ((0.1, "kd"), (0.1, "ce"), (0.2, "ce"))]
    text = runs.table(some, baseline="kd")
    assert text.count("to kd, points") == 2
    with pytest.raises(InputError, match="unknown baseline 'dkd'"):
        runs.table(some, baseline="dkd")


def test_a_baseline_that_was_trained_without_a_teacher_is_named(tmp_path, capsys):
    for seed in range(2):
        make_run(tmp_path / f"ce-{seed}", "ce", seed, teacher=None)
        make_run(tmp_path / f"kd-{seed}", "kd", seed)
        make_run(tmp_path / f"other-{seed}", "kd", seed, network="resnet14")  # has no baseline for another reason
    assert cli.main(["report", str(tmp_path), "--baseline", "ce"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be compared" in line]
    assert line.startswith("note: kd cannot be compared with ce: their runs have the teacher resnet20, and")
    assert line.endswith("train ce with the same teacher given, which it does not use")
    for seed in range(2):
        make_run(tmp_path / f"ce-with-{seed}", "ce", seed)
    summaries = runs.finished([tmp_path])
    assert runs.without_teacher(summaries, "ce") == runs.without_teacher(summaries, "") == []


def test_published_numbers_stand_beside_their_pair_and_budget_only():
    found = [summary_of("kd", 0, 0.74), summary_of("ickd", 0, 0.77)]
    ((_, (ours, theirs)),) = runs.beside_published(found).items()
    assert ours == {"kd": [0.74], "ickd": [0.77]}
    assert theirs["kd"] == pytest.approx(0.7333) and theirs["mlkd, 480 epochs"] == pytest.approx(0.7708)
    for other in ({"train_images": 10_000}, {"network": "resnet8"}, {"dataset": "digits"}):
        ((_, (_, theirs)),) = runs.beside_published([summary_of("kd", 0, 0.7, **other)]).items()
        assert theirs == {}


def test_a_table_has_published_numbers_beside_the_measured_ones():
    """Methods that are published with different epochs and batch sizes stand in one table."""
    pair = {"dataset": "imagenet", "train_images": 1_281_167, "network": "torchvision/resnet18"}
    pair |= {"teacher": "torchvision/resnet34(pretrained='IMAGENET1K_V1')", "epochs": 100}
    kd, ckd = (training.published(name, pair["teacher"], pair["network"], "imagenet").method for name in ("kd", "ckd"))
    found = [summary_of(kd, seed, 0.71 + seed / 100, batch_size=512, top5=0.9 + seed / 100, **pair) for seed in (0, 1)]
    found += [
        summary_of("ce", 0, 0.699, **pair | {"batch_size": 256}),
        summary_of(ckd, 0, 0.7, **pair | {"epochs": 200}),
    ]
    title, _, head, _, *lines = runs.published_table(found).splitlines()
    assert title == f"**imagenet**, 1,281,167 training images: {pair['teacher']} → torchvision/resnet18"
    assert head == "| method | epochs | batch | seeds | measured, % | published, % | top-5, % |"
    assert lines[0] == f"| `{kd}` | 100 | 512 | 2 | 71.50 ± 0.71 | 71.03 | 90.50 ± 0.71 |"
    assert lines[1] == "| `ce` | 100 | 256 | 1 | 69.90 | 69.90 |  |"
    assert lines[2].startswith(f"| `{ckd}` | 200 |") and lines[2].endswith(" | 1 | 70.00 |  |  |")
    assert "| `teacher` | 90 |  |  |  | 73.31 |  |" in lines and "| `RLD` | 100 |  |  |  | 71.91 |  |" in lines
    part = runs.published_table([summary_of(kd, 0, 0.7, **pair | {"train_images": 1000})]).splitlines()
    assert len(part) == 5 and part[4].endswith(" | 1 | 70.00 |  |  |")


def test_what_is_chosen_by_held_out_images_tells_nothing_of_the_test_images():
    found = [summary_of("kd", seed, 0.9, val_accuracy=0.5, best_accuracy=0.9, nll=1.5) for seed in (0, 1)]
    found += [summary_of("ickd", seed, 0.8, val_accuracy=0.6 + seed / 100, best_accuracy=0.8) for seed in (0, 1)]
    rows = runs.table(found, baseline="kd").splitlines()
    assert rows[0].endswith(", on images held out of train")
    assert rows[2] == "| method | seeds | held out, % | to kd, points (95%) |"
    assert rows[4] == "| kd | 2 | 50.00 ± 0.00 |  |" and rows[5].startswith("| ickd | 2 | 60.50 ± 0.71 | +10.50 (")
    ranked = runs.table(found, best_first=True).splitlines()
    assert ranked[4].startswith("| ickd | 2 | 60.50") and ranked[5].startswith("| kd | 2 | 50.00")
    apart = runs.table([*found, summary_of("kd", 0, 0.9)])  # another table
    assert apart.count("| method |") == 2 and "| last, % |" in apart


def evaluated(run, images="4", **marks):
    """The run, with fingerprints of its training images and of those that it was evaluated on."""
    config = run.config
    config["settings"]["data"]["fingerprint"] = images
    runtime.write_json(run.folder / "config.json", config | ({"evaluated_on": marks} if marks else {}))
    return run


def test_runs_that_were_evaluated_on_other_images_are_apart(tmp_path):
    one, other = {"val": None, "test": "1" * 16}, {"val": None, "test": "2" * 16}
    for seed, marks in enumerate([one, one, {}]):
        evaluated(make_run(tmp_path / f"{seed}", "kd", seed), **marks)
    (setting,) = runs.grouped(runs.finished([tmp_path]))
    assert setting.origin == "", "a run of an earlier version, without an entry, is a seed as before"
    evaluated(make_run(tmp_path / "3", "ce", 3), **other)  # methods are not compared on different images either
    origins = {setting.origin: list(found) for setting, found in runs.grouped(runs.finished([tmp_path])).items()}
    assert origins == {
        "test images 111111": ["kd"],
        "test images not recorded": ["kd"],
        "test images 222222": ["ce"],
    }
    evaluated(make_run(tmp_path / "again", "kd", 0), **other)  # not the same run, although all settings are equal
    assert len(runs.finished([tmp_path])) == 5
    evaluated(make_run(tmp_path / "equal", "kd", 0), **one)
    assert len(runs.finished([tmp_path])) == 5
    assert "evaluated_on: test is 1111111111111111 in" in "\n".join(runs.diff(tmp_path / "0", tmp_path / "3"))


def test_own_networks_of_one_class_are_apart_by_their_shapes(tmp_path):
    def own(place, seed, **architecture):
        run = make_run(tmp_path / place, "kd", seed, network="Small")
        config = run.config
        config["settings"]["student"] = {"network": "Small", "initial": place, **architecture}
        runtime.write_json(run.folder / "config.json", config)

    for seed in range(2):
        own(f"narrow{seed}", seed, shapes="1" * 16, parameters=10)
    own("earlier", 2)
    (setting,) = runs.grouped(runs.finished([tmp_path]))
    assert setting.origin == "", "a run of an earlier version is a seed as before"
    for seed in range(3, 5):  # with other seeds
        own(f"wide{seed}", seed, shapes="2" * 16, parameters=1000)
    origins = {setting.origin for setting in runs.grouped(runs.finished([tmp_path]))}
    assert origins == {"architecture 111111", "architecture 222222", "architecture not recorded"}


def test_own_networks_of_one_class_are_apart_by_what_they_were_wrapped_with(tmp_path, capsys):
    def own(place, seed, initial="", method="kd", **recorded):
        run = make_run(tmp_path / place, method, seed, network="Small")
        config = run.config | recorded
        config["settings"]["student"] = {"network": "Small", "initial": initial or place, "shapes": "1" * 16}
        runtime.write_json(run.folder / "config.json", config)

    def tables():
        groups = runs.grouped(runs.finished([tmp_path]))
        return sorted((setting.origin.split()[:1], len(found["kd"])) for setting, found in groups.items())

    plain = {"mean": [0.5] * 3, "std": [0.25] * 3, "maps": [], "size": None, "features": "input of fc"}
    for seed in range(2):
        own(f"plain{seed}", seed, wrapped=plain)
    own("earlier", 2)
    assert tables() == [([], 3)], "a run of an earlier version is a seed as before"
    for seed in range(3, 5):
        own(f"large{seed}", seed, wrapped=plain | {"size": [24, 24]})
    own("layer", 5, wrapped=plain | {"features": "body"})
    assert [count for _, count in tables()] == [1, 1, 2, 2] and {"".join(mark) for mark, _ in tables()} == {"wrapping"}
    assert "wrapped: size is None in" in "\n".join(runs.diff(tmp_path / "plain0", tmp_path / "large3"))
    assert "untrained network" not in capsys.readouterr().err
    own("other", 1, wrapped=plain)
    own("renamed", 1, initial="other", method="ce", wrapped=plain)
    assert [count for _, count in tables() if count > 2] == [3]
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "differ in the fingerprint of their untrained network" in line
    ]
    assert (
        f"{tmp_path / 'other'}, {tmp_path / 'plain1'} have the same settings and seeds" in line and "as 2 seeds" in line
    )


def test_validation_images_differ_between_seeds_only_if_train_does(tmp_path):
    for seed in range(2):
        evaluated(make_run(tmp_path / f"drawn/{seed}", "kd", seed), images=f"{seed}", val=f"{seed}", test="5")
        evaluated(make_run(tmp_path / f"changed/{seed}", "kd", seed), val=f"{seed}", test="5")
    (setting,) = runs.grouped(runs.finished([tmp_path / "drawn"]))
    assert setting.origin == ""
    changed = runs.grouped(runs.finished([tmp_path / "changed"]))
    assert {setting.origin for setting in changed} == {"validation images 0", "validation images 1"}


def test_a_run_with_held_out_images_is_one_before_it_is_evaluated(tmp_path):
    for seed, done in ((0, 2), (1, 1)):
        run = make_run(tmp_path / f"ce-{seed}", seed=seed, done=done)
        runtime.write_json(run.folder / "config.json", run.config | {"held_out": 100})
    with open(tmp_path / "ce-0" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "val_accuracy": 0.5}\n')
    first, second = rows = runs.overview(tmp_path)
    assert first["val_accuracy"] == 0.5 and second["held_out"] == 100
    assert list(map(len, runs.named(rows).values())) == [2], "two seeds of one method"


def test_a_run_is_named_by_what_it_was_when_a_default_changes(tmp_path):
    for name, told in (("ickd(nicd=0.25)", "ickd"), ("ckd+ickd(nicd=0.25)", "ckd+ickd"), ("unknown", "unknown(a=1)")):
        config = {"name": name} if name == "unknown" else methods.create(name).config
        run = {"config": {"settings": {"method": config}}, "epochs": [], "summary": summary_of(told, 0, 0.9)}
        runtime.write_json(tmp_path / f"{name}.json", run)
    found = sorted(one["method"] for one in runs.finished([tmp_path]))
    assert found == ["ckd+ickd(nicd=0.25)", "ickd(nicd=0.25)", "unknown(a=1)"]


def test_what_differs_between_two_runs(folder):
    one, other = folder / "a-ce-0", folder / "a-ce-1"
    lines = runs.diff(one, other)
    assert f"settings: seed is 0 in {one}, 1 in {other}" in lines
    assert lines[-2] == "weights: not recorded" and lines[-1].startswith("records: differ from epoch 2 on (")
    path = other / "metrics.jsonl"
    records = [json.loads(line) | {"weights": "aa"} for line in path.read_text().splitlines()]
    (one / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    records[0]["waited_seconds"] = 1.5  # of streamed images
    records[2] |= {"weights": "bb", "loss": 7.0, "seconds": 100.0}
    path.write_text("".join(json.dumps(r) + "\n" for r in records[:3]))
    lines = runs.diff(one, other)
    assert "weights: differ from epoch 3 on" in lines and "records: differ from epoch 3 on (loss)" in lines
    assert lines[-1] == f"epochs: 4 in {one}, 3 in {other}"
    assert runs.diff(other, other) == ["weights: equal in all 3 epochs", "records: equal in all 3 epochs"]
    with pytest.raises(InputError, match="is this a run folder"):
        runs.diff(one, folder)


def test_a_table_names_methods_that_diverged(folder):
    text = runs.table(runs.finished([folder]), diverged={"ickd(nicd=1000)": 2})
    assert text.endswith("| method | diverged, seeds |\n|---|---|\n| ickd(nicd=1000) | 2 |\n")


def test_a_damaged_run_that_diverged_is_named_and_hides_no_other(folder, capsys):
    for name in ("whole", "damaged"):
        run = make_run(folder / name, "kd", done=1)
        runtime.write_json(run.folder / "diverged.json", {"reason": "NaN"})
    (folder / "damaged" / "config.json").write_text("{")
    assert runs.diverged([folder]) == {"kd": 1}
    (folder / "link").symlink_to(folder)
    assert runs.diverged([folder, folder / "link"]) == {"kd": 1}, "found by two paths, it counts once"
    assert f"left out: {folder}/damaged/config.json" in capsys.readouterr().err
    assert len(runs.finished([folder])) == 3


def test_a_combination_whose_limit_counted_one_method_alone_is_named_as_such(tmp_path):
    for name, method in (("old", "ckd+ickd"), ("new", "ckd+ickd"), ("free", "ckd+ickd(limit=None)")):
        make_run(tmp_path / name, method)
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    assert config["settings"]["method"].pop("version") == 2
    runtime.write_json(path, config)
    names = {row["run"]: row["method"] for row in runs.overview(tmp_path)}
    assert names == {"old": "ckd+ickd (version 1)", "new": "ckd+ickd", "free": "ckd+ickd(limit=None)"}


def test_a_run_of_an_earlier_definition_of_a_method_is_named_as_such(tmp_path, monkeypatch):
    make_run(tmp_path / "old", "tfkd(alpha=0.2)")
    kind = type(methods.create("tfkd"))
    monkeypatch.setattr(kind, "version", kind.version + 1)
    make_run(tmp_path / "new", "tfkd(alpha=0.2)")
    make_run(tmp_path / "labels", "ce")
    names = {row["run"]: row["method"] for row in runs.overview(tmp_path)}
    assert names == {"old": f"tfkd(alpha=0.2) (version {kind.version - 1})", "new": "tfkd(alpha=0.2)", "labels": "ce"}
    assert {one["method"] for one in runs.finished([tmp_path])} == set(names.values())


def changed(run, **settings):
    """Set entries of the settings of a run, two levels deep."""
    config = runtime.read_json(run.folder / "config.json")
    for key, value in settings.items():
        old = config["settings"].get(key)
        config["settings"][key] = old | value if isinstance(old, dict) else value
    runtime.write_json(run.folder / "config.json", config)


def test_runs_of_other_cached_targets_are_in_another_table(tmp_path, capsys):
    for name, top in (("a", 0), ("b", 3)):
        run = make_run(tmp_path / name)
        config = runtime.read_json(run.folder / "config.json")
        runtime.write_json(run.folder / "config.json", config | {"path": {"teacher_cache_top": top}})
    text = runs.table(runs.finished([tmp_path]))
    assert text.count("| ce | 1 |") == 2 and text.count("settings ") == 2
    assert "has all settings of" not in capsys.readouterr().err


def test_runs_of_equal_settings_count_once_under_any_name(tmp_path, capsys):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    assert "| ce | 1 |" in runs.table(runs.finished([tmp_path]))
    assert f"{tmp_path}/b has all settings of {tmp_path}/a, so it is left out" in capsys.readouterr().err
    other = make_run(tmp_path / "there" / "a")
    runtime.write_json(other.folder / "summary.json", other.summary | {"accuracy": 0.1})
    (one,) = runs.finished([tmp_path / "a", tmp_path / "there"])
    assert one["accuracy"] == 0.9 and f"{other.folder} has all settings of {tmp_path}/a" in capsys.readouterr().err
    runtime.write_json(tmp_path / "all.json", runs.collected([tmp_path / "a"]))
    assert len(runs.finished([tmp_path / "all.json", tmp_path / "a"])) == 1 and not capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"unlabelled": 50, "unlabelled_share": 0.5}},
        {"bank": {"rows": 90, "labels": "60 given (aa), the others predicted by the teacher"}},
        {"bank": {"rows": 90, "threshold": "0.5"}},
    ],
    ids=["share", "labels", "threshold"],
)
def test_runs_of_other_settings_are_no_repetition(tmp_path, settings):
    usual = {"data": {"unlabelled": 50, "unlabelled_share": 0.0}} if "data" in settings else {"bank": {"rows": 90}}
    for seed in (0, 1):
        changed(make_run(tmp_path / f"usual{seed}", "kd", seed), **usual)
        changed(make_run(tmp_path / f"other{seed}", "kd", seed), **settings)
    found = runs.grouped(runs.finished([tmp_path]))
    assert sorted(len(seeds) for by_method in found.values() for seeds in by_method.values()) == [2, 2]
    assert all(", settings " in runs.tables.caption(setting)[1] for setting in found)


def test_other_data_or_a_teacher_of_other_images_are_apart_whatever_the_seeds(tmp_path):
    for seed in (0, 1, 2, 3):
        make_run(tmp_path / f"{seed}", "kd", seed)
    changed(runtime.Run(tmp_path / "1"), student={"mean": [0.1, 0.2, 0.3]})
    changed(runtime.Run(tmp_path / "2"), teacher={"fingerprint": "1"}, teacher_saw={"labels": 10})
    changed(runtime.Run(tmp_path / "3"), teacher={"fingerprint": "2"})
    for number in ("2",):
        summary = runtime.Run(tmp_path / number).summary
        saw = {"data": "my_digits/train", "labels": 10}
        runtime.write_json(tmp_path / number / "summary.json", summary | {"teacher_saw": saw})
    assert len(runs.grouped(runs.finished([tmp_path]))) == 4
    few = runs.grouped(runs.finished([tmp_path / "0", tmp_path / "3"]))
    ((setting, by_method),) = few.items()
    assert len(by_method["kd"]) == 2 and "2 teachers of this name" in runs.tables.caption(setting)[1]
    means = [[0.5070751, 0.1, 0.1], [0.50707511, 0.1, 0.1]]  # machines round the last digits differently
    for number, mean in zip("03", means, strict=True):
        changed(runtime.Run(tmp_path / number), student={"mean": mean})
    assert len(runs.grouped(runs.finished([tmp_path / "0", tmp_path / "3"]))) == 1


def test_a_student_and_its_peers_are_paired_by_its_seed():
    one = {"data_seed": 0, "network": "resnet8"}
    peers = [[one | {"seed": seed, "accuracy": 0.5} for seed in (1000 + first, first)] for first in (0, 1)]
    alone = [[one | {"seed": seed, "accuracy": 0.4 + seed / 10}] for seed in (0, 1)]
    assert runs.differences({"dml": peers, "ce": alone}, "ce")["dml"]["mean"] == pytest.approx(0.05)


def test_a_baseline_is_found_in_upper_case(tmp_path):
    found = [summary_of(method, seed, 0.7) for seed in (0, 1) for method in ("kd", "ickd")]
    assert runs.table(found, baseline="KD") == runs.table(found, baseline="kd")


def test_runs_that_all_diverged_are_named(tmp_path):
    run = make_run(tmp_path / "a", "kd", done=1)
    runtime.write_json(run.folder / "diverged.json", {"reason": "NaN"})
    with pytest.raises(InputError, match=r"students that diverged: kd 1; diverged.json"):
        runs.finished([tmp_path])


def test_names_in_tables_are_escaped():
    text = runs.table([summary_of("kd", 0, 0.7, dataset="<b>", network="a|b")], diverged={"x|y": 1})
    assert "**&lt;b>**" in text and r"a\|b" in text and r"| x\|y | 1 |" in text


def test_published_rows_of_several_settings_say_what_differs():
    found = [summary_of("kd", seed, 0.7, lr=lr) for seed in (0, 1) for lr in (0.1, 0.2)]
    rows = [line for line in runs.published_table(found).splitlines() if line.startswith("| `kd`")]
    assert [row.split(" | ")[0] for row in rows[:2]] == ["| `kd`, learning rate 0.1", "| `kd`, learning rate 0.2"]
    assert all("| 73.33 |" in row for row in rows[:2]), "each stands beside the published number"


def test_ctkd_of_an_earlier_version_of_a_method_is_named_as_such(tmp_path):
    for name in ("old", "new"):
        make_run(tmp_path / name, "ctkd(of='dkd')")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    assert config["settings"]["method"]["wrapped"].pop("version") == 2
    runtime.write_json(path, config)
    names = {row["run"]: row["method"] for row in runs.overview(tmp_path)}
    assert names == {"old": "ctkd(of='dkd') (version 1)", "new": "ctkd(of='dkd')"}
