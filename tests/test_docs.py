"""The README and the pages in docs/: length, links, code that runs, commands that parse, numbers that are committed."""

import ast
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import registered
import torchvision

from ickd_lib import __main__ as command_line
from ickd_lib import methods, models, runs, runtime, tasks
from ickd_lib.runs import folders

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks/results"
QUANTILE = {2: 12.706205, 3: 4.302653, 5: 2.776445}  # 97.5% of the t distribution, by number of seeds


def page_id(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    """The code blocks of a page as (line number, code), without those below a "not run" comment."""
    found, lines, inside = [], path.read_text().splitlines(), None
    for number, line in enumerate(lines):
        if inside is None and line.startswith("```"):
            skipped = number and lines[number - 1].startswith("<!-- not run: ")
            inside = (number + 2, [], line == f"```{language}" and not skipped)
        elif inside is not None and line == "```":
            if inside[2]:
                found.append((inside[0], "\n".join(inside[1])))
            inside = None
        elif inside is not None:
            inside[1].append(line)
    assert inside is None, f"{path}: a code block is not closed"
    return found


def prose(path):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)


# ------------------------------------------------------------------------------------------------ length, links, code


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert not [(number, len(line)) for number, line in enumerate(lines, 1) if len(line) > 120]


def anchors(path):
    """The names under which GitHub links the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", prose(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_and_images_exist(path):
    for link, image in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(path)):
        target, _, anchor = (link or image).partition("#")
        if target.startswith("https://"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"
        assert not image or there.suffix == ".png"


def test_the_readme_links_every_page_and_notebook():
    linked = {(README.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", prose(README))}
    assert {*PAGES, *(ROOT / "notebooks").glob("*.ipynb")} - {README} <= linked


def test_a_block_that_does_not_run_says_why():
    for path in PAGES:
        for reason in re.findall(r"<!-- not run:(.*?)-->", path.read_text()):
            assert len(reason.split()) > 2, f"{path}: {reason}"


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=page_id)
def test_python_blocks_run(path, tmp_path):
    """The blocks of a page run in their order, in one namespace, in an empty folder and in a process of their own."""
    program = ["space = {'__name__': '__main__'}"]
    for number, code in blocks(path, "python"):
        padded = "\n" * (number - 1) + code  # so that a traceback names the line of the page
        program.append(f"exec(compile({padded!r}, {page_id(path)!r}, 'exec'), space)")
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(program))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# ------------------------------------------------------------------------------------------------ commands


def commands(path):
    """The arguments of every call of the library's command on a page."""
    found = []
    for _, block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"\w+=\S*", words[0]):  # environment variables
                    del words[0]
                if words[:1] == ["ickd"]:
                    found.append(words[1:])
                elif words[1:3] == ["-m", "ickd_lib"]:
                    found.append(words[3:])
    return found


def test_the_page_of_commands_lists_each(capsys):
    with pytest.raises(SystemExit):
        command_line.parser([]).parse_args(["--help"])
    known = re.findall(r"^    (\w+) +[A-Z]", capsys.readouterr().out, re.M)
    listed = re.findall(r"^\| `ickd (\w+)`", (ROOT / "docs" / "commands.md").read_text(), re.M)
    assert listed == known and len(known) == 10


@pytest.mark.parametrize("path", [path for path in PAGES if commands(path)], ids=page_id)
def test_commands_parse(path, capsys):
    for arguments in commands(path):
        try:
            given, unknown = command_line.parser(arguments).parse_known_args(arguments)
        except SystemExit:
            pytest.fail(f"ickd {shlex.join(arguments)}: {capsys.readouterr().err}")
        assert not unknown, f"ickd {shlex.join(arguments)}: {unknown}"
        for name in filter(None, [getattr(given, "student", ""), getattr(given, "teacher", "")]):
            plain = runtime.parse_call(name, "model", "")[0]
            library, _, external = plain.partition("/")
            own = models.is_file(plain) or plain == "predictions.csv"
            own = own or (library == "torchvision" and external in torchvision.models.list_models())
            assert own or plain in ("RUN", "runs/teacher", *models.names(tasks.create(given.task).network)), name
        named = [*getattr(given, "methods", []), *filter(None, [getattr(given, "method", "")])]
        if any(methods.create(name).needs_teacher for name in named):
            assert given.teacher, f"ickd {shlex.join(arguments)}: a method needs a teacher"


REPORTS = {
    shlex.join(words): words
    for path in PAGES
    for words in commands(path)
    if words[0] == "report" and words[1].startswith("benchmarks/")
}


@pytest.mark.parametrize("command", REPORTS)
def test_the_reports_of_committed_runs_are_printed(command, capsys, tmp_path, monkeypatch):
    first, place, *options = REPORTS[command]
    monkeypatch.chdir(tmp_path)  # a figure is written there
    assert not command_line.main([first, str(ROOT / place), *options])
    assert "| method |" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ methods


def tables(path):
    """Of each table of methods on a page its rows, by the method that is named first in them: heading -> cell."""
    found, head = [], None
    for line in [*path.read_text().replace("−", "-").splitlines(), ""]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells:
            head = None
        elif head is None:
            head = [cell.replace("`", "") for cell in cells]
            if head[0] in ("method", "name"):
                found.append({})
        elif head[0] in ("method", "name") and not cells[0].startswith("---"):
            name = re.match(r"`([^`]+)`|(.+)", cells[0])
            key = name[1] or name[2]
            key = (key, cells[1]) if key in found[-1] else key  # a method with two teachers
            found[-1][key] = dict(zip(head, cells, strict=True))
    return found


def test_the_tables_of_methods_are_those_of_the_library():
    found = subprocess.run(
        [sys.executable, "benchmarks/methods.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, f"run python benchmarks/methods.py; {found.stderr}"
    assert f"All {len(methods.names())} methods" in README.read_text()


def test_the_defaults_of_ickd_are_those_of_the_library():
    section = (ROOT / "docs/methods.md").read_text().split("### What is this project's reading")[1]
    config, seen = methods.create("ickd").config, set()
    for line in section.split("\n#")[0].splitlines():
        cells = line.split(" | ")
        if len(cells) == 4 and "`" in cells[1]:
            names = re.findall(r"`(\w+)`", cells[1])
            shown = [ast.literal_eval(value.strip().split(":")[0].strip("`")) for value in cells[2].split(", ")]
            if len(names) == len(shown):
                assert {name: config[name] for name in names} == dict(zip(names, shown, strict=True))
            seen |= {*names}
    assert seen >= set(config) - {"name", "margin"}


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("position", "folder", "baseline"),
    [
        (0, "table", "kd"),
        (1, "tune", "ickd(temperature=4.0, limit=None, corrected=False)"),
        (2, "scale", "ickd(temperature=4.0, limit=None, corrected=False)"),
    ],
)
def test_the_cifar_tables_are_those_of_the_committed_runs(position, folder, baseline, tmp_path):
    finished = runs.finished([RESULTS / "cifar100-small" / folder])
    page = tmp_path / "report.md"
    page.write_text(runs.table(finished, baseline=baseline, best_first=True))
    (reported,) = tables(page)
    rows = tables(ROOT / "docs/results.md")[position]
    assert list(rows) == list(reported)
    for method, row in rows.items():
        assert {**row, "method": method}.items() <= reported[method].items(), method


def test_the_readme_gives_the_numbers_of_the_committed_runs():
    reported = reported_study().splitlines()
    lines = README.read_text().splitlines()
    first = lines.index(next(line for line in reported if line.startswith("| arm | cells |")))
    rows = lines[first : lines.index("", first)]
    assert [row.split("|")[1].strip() for row in rows] == ["arm", "---", "ce", "kd", "ckd+kd", "nearest", "random"]
    assert set(rows) <= set(reported)


def test_the_table_of_unlabelled_images_is_that_of_the_committed_runs():
    script = [sys.executable, ROOT / "benchmarks/unlabelled.py", "--report", RESULTS / "unlabelled"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(script, capture_output=True, text=True, check=True, env=env).stdout
    page = (ROOT / "docs/data.md").read_text()
    assert page.split("<!-- unlabelled -->\n")[1].split("<!-- end")[0] == printed


def reported_study() -> str:
    """Return what `study.py --report` prints for the committed runs."""
    script = [sys.executable, ROOT / "benchmarks/study.py", "--report"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(script, capture_output=True, text=True, check=True, env=env).stdout


def test_the_numbers_of_the_published_teachers_are_those_of_the_committed_file():
    script = [sys.executable, ROOT / "benchmarks/teachers.py", "--print", RESULTS / "teachers.json"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(script, capture_output=True, text=True, check=True, env=env).stdout.splitlines()
    page = (ROOT / "docs/data.md").read_text()
    assert all(line in page for line in printed if " B |" in line)
    accuracies = dict(line.split(" | ") for line in printed if line.startswith(("| resnet", "| wrn")))
    shown = re.search(
        r"ResNet56 \((.+)% test accuracy\), WRN-16-2 \((.+)%\) and ResNet20 \((.+)%\)",
        (ROOT / "docs/study.md").read_text(),
    )
    assert shown and [f"{one} |" for one in shown.groups()] == list(accuracies.values())


def test_the_table_of_own_images_is_that_of_the_committed_runs(tmp_path):
    page = tmp_path / "report.md"
    page.write_text(runs.table(runs.finished([RESULTS / "own_images.json"]), best_first=True))
    (reported,) = tables(page)
    first = "ickd(nicd=0, temperature=4.0, limit=None, corrected=False)"
    (rows,) = [table for table in tables(ROOT / "docs/data.md") if first in table]
    assert list(rows) == list(reported)
    for method, row in rows.items():
        assert {**row, "method": method}.items() <= reported[method].items(), method


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Segmentation of scenes", "segmentation_scenes"),
        ("Detection of scenes", "detection_scenes"),
        ("Segmentation of road scenes", "segmentation_camvid"),
        ("Detection of blood cells", "detection_bccd"),
    ],
)
def test_the_tables_of_dense_tasks_are_those_of_the_committed_runs(heading, name, tmp_path):
    page = tmp_path / "report.md"
    page.write_text(runs.table(runs.finished([RESULTS / f"{name}.json"]), baseline="ce", best_first=True))
    reported, *_ = tables(page)  # others are those of the teachers
    text = (ROOT / "docs/results.md").read_text()
    (section,) = re.findall(rf"^## {heading}[^\n]*\n.*?(?=^## |\Z)", text, re.M | re.S)
    page.write_text(section)
    (rows,) = [table for table in tables(page) if "ce" in table and "seeds" in table["ce"]]
    assert list(rows) == list(reported)
    for method, row in rows.items():
        assert {**row, "method": method}.items() <= reported[method].items(), method


def test_the_learning_rates_of_detection_are_those_of_the_committed_runs():
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    summaries = [record["summary"] for record in committed(RESULTS / "detection_rates.json")]
    slow, fast = (100 * one["val_ap"] for one in summaries if one["method"] == "ce" and one["network"] == "resnet8-fpn")
    assert f"with 0.006 it reaches {fast:.2f} on these scenes, with 0.002 {slow:.2f}" in page
    (teacher,) = (100 * one["ap"] for one in summaries if one["network"] == "resnet20-fpn")
    assert f"40 epochs (AP {teacher:.2f} on the 200 test scenes)" in page


def test_the_table_of_the_defaults_is_that_of_the_committed_results():
    script = [sys.executable, ROOT / "benchmarks/safe_default.py", "--report"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(script, capture_output=True, text=True, check=True, env=env).stdout
    page = (ROOT / "docs/methods.md").read_text()
    shown = [page.split(f"<!-- {name} -->\n")[1].split("<!-- end")[0] for name in ("safe default", "tried defaults")]
    assert "\n".join(shown) + "\n" == printed


def test_the_tables_of_the_study_are_those_of_the_committed_runs():
    page = (ROOT / "docs/study.md").read_text()
    assert page.split("<!-- study -->\n")[1].split("<!-- end")[0] == reported_study()


def test_the_table_of_noisy_teachers_is_that_of_the_committed_runs():
    script = [sys.executable, ROOT / "benchmarks/noisy_teachers.py", "--report"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(script, capture_output=True, text=True, check=True, env=env).stdout
    page = (ROOT / "docs/study.md").read_text()
    assert page.split("<!-- noisy teachers -->\n")[1].split("<!-- end")[0] == printed.strip() + "\n"
    students = [path for path in (RESULTS / "noisy_teachers").rglob("*.json") if path.parts[-2] != "labels"]
    assert f"{len(students)} of the 144 students so far" in page or len(students) == 144


def test_the_speed_of_dense_tasks_is_the_measured_one():
    found = json.loads((RESULTS / "dense_speed.json").read_text())
    page = (ROOT / "docs/speed.md").read_text()
    for kind in ("segmentation", "detection"):
        added = found[kind]["added beyond the teacher's pass"]
        shown = [f"{100 * added[name]:+.1f}".replace("-", "−") for name in ("kd", "ckd", "dkd", "ickd")]
        times = [str(found[kind]["step, ms"]["ce"]), str(found[kind]["teacher's pass, ms"])]
        assert f"| {kind} | {' | '.join([*times, *shown])} |" in page
    before = json.loads((RESULTS / "dense_speed-earlier.json").read_text())
    old, new = (one["segmentation"]["step, ms"] for one in (before, found))
    words = " ".join(page.split())
    assert f"has {old['ce']} ms for a step of `ce` in segmentation and {old['ickd']} ms for one of `ickd`" in words
    assert f"now {new['ce']} and {new['ickd']} ms" in words


def test_the_times_of_the_explorer_are_the_measured_ones():
    found = json.loads((RESULTS / "explorers-cpu-2.json").read_text())
    page = " ".join((ROOT / "docs/notebooks.md").read_text().split())
    took = [one["milliseconds"] for one in found["slider"]]
    (redraws,) = {one["redraws"] for one in found["slider"]}
    assert f"caused {redraws} redraws" in page and f"displayed {min(took):.0f} to {max(took):.0f} ms after" in page
    query = found["query_milliseconds"]
    assert f"A new query took {query['median']:.0f} ms (median of {query['queries']})" in page


def committed(path):
    """The records of the runs in a JSON file, or in the JSON files of a folder."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    read = [json.loads(file.read_text()) for file in files]
    found = [record for content in read for record in (content if isinstance(content, list) else [content])]
    for record in found:  # the present name of the method, without its version
        named = folders._named(record["summary"], record["config"])["method"]
        record["summary"]["method"] = re.sub(r" \(version \d+\)", "", named)
    return found


def interval(ours, baseline, factor=100):
    """The mean difference and its 95% interval, as the pages show it."""
    differences = [factor * (a - b) for a, b in zip(ours, baseline, strict=True)]
    mean = statistics.mean(differences)
    half = QUANTILE[len(differences)] * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def shown(cell):
    return tuple(float(number) for number in re.findall(r"[+-]?\d+\.\d+", cell.replace("−", "-")))


def test_the_contrasts_are_those_of_the_committed_runs():
    by_method = defaultdict(dict)
    for record in committed(RESULTS / "cifar100-small/table"):
        summary = record["summary"]
        by_method[summary["method"]][summary["seed"]] = summary

    def values(method, name):
        return [by_method[method][seed][name] for seed in range(3)]

    text = (ROOT / "docs/results.md").read_text()
    steps = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", text, flags=re.M)
    assert len(steps) == 5
    for before, after, cell in steps:
        assert shown(cell) == pytest.approx(interval(values(after, "accuracy"), values(before, "accuracy")), abs=0.006)
    contrasts = re.findall(r"^\| `([^`]+)` − `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, flags=re.M)
    assert len(contrasts) == 5
    for ours, baseline, accuracy, second, third in contrasts:
        found = interval(values(ours, "accuracy"), values(baseline, "accuracy"))
        assert shown(accuracy) == pytest.approx(found, abs=0.006)
        if baseline in ("ckd+kd", "ickd(temperature=4.0, order='random', limit=None, corrected=False)"):
            found = interval(values(ours, "nll"), values(baseline, "nll"), factor=1)
            assert shown(second) == pytest.approx(found, abs=0.006)
            assert shown(third) == pytest.approx(interval(values(ours, "top5"), values(baseline, "top5")), abs=0.006)


def test_the_readme_names_how_many_configurations_were_tried():
    tried = defaultdict(set)
    for folder in ("table", "tune", "scale", "sweep"):
        for record in committed(RESULTS / "cifar100-small" / folder):
            config = record["config"]["settings"]["method"]
            if "parts" not in config:
                tried[config["name"]].add(json.dumps(config, sort_keys=True))
    counts = {name: len(tried[name]) for name in ("ickd", "kd", "ckd", "dkd")}
    assert counts == {"ickd": 49, "kd": 3, "ckd": 4, "dkd": 4}
    assert "49 configurations, the others over four at most" in " ".join(README.read_text().split())
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    assert "49 configurations of IC-KD, three of KD, and four each of CKD and DKD" in page


def by_seed(records, wanted):
    """Of each method (with its teacher's name where two teachers had it) the accuracy by seed, the mean over peers."""
    found = defaultdict(lambda: defaultdict(list))
    for record in records:
        summary = record["summary"]
        teacher = record["config"]["settings"]["teacher"]
        if wanted(record):
            key = (summary["method"], teacher["name"] if teacher and summary["method"] == "kd" else "")
            found[key][summary["seed"] % 1000].append(summary["accuracy"])
    return {key: [statistics.mean(seeds[seed]) for seed in sorted(seeds)] for key, seeds in found.items()}


def check_rows(rows, accuracies, names):
    baseline = accuracies["ce", ""]
    for key, row in rows.items():
        values = accuracies[names.get(key, (key, ""))]
        mean, *spread = shown(row["accuracy, %"])
        assert mean == pytest.approx(100 * statistics.mean(values), abs=0.0051), key
        if spread:
            assert spread[0] == pytest.approx(100 * statistics.stdev(values), abs=0.006), key
        difference = shown(row["difference to ce, points"])
        if len(difference) == 3:
            assert difference == pytest.approx(interval(values, baseline), abs=0.006), key
        elif difference:  # one seed, paired with the baseline's first
            assert difference[0] == pytest.approx(100 * (values[0] - baseline[0]), abs=0.006), key


def test_the_other_cifar_tables_are_those_of_the_committed_runs():
    disjoint, paradigms = tables(ROOT / "docs/results.md")[3:5]
    records = committed(RESULTS / "cifar100_disjoint.json")
    accuracies = by_seed(records, lambda record: record["config"]["settings"]["student"]["network"] == "resnet8")
    assert {key for key, _ in accuracies} == set(disjoint)
    check_rows(disjoint, accuracies, {})

    def student(record):
        """Not the networks that `kd` from itself had as its teachers."""
        return not (record["summary"]["method"] == "ce" and record["summary"]["seed"] >= 1000)

    accuracies = by_seed(committed(RESULTS / "cifar100_paradigms.json"), student)
    names = {
        "kd": ("kd", "resnet8"),
        ("kd", "pretrained"): ("kd", "resnet20"),
    }
    assert len(accuracies) == len(paradigms)
    check_rows(paradigms, accuracies, names)


def test_the_digits_tables_are_those_of_the_committed_runs():
    online, offline = tables(ROOT / "docs/results.md")[5:8:2]
    records = committed(RESULTS / "digits.json")

    def of(batch_size):
        """The accuracies of the students, without teachers, their peers, and pairs of different networks."""

        def counts(record):
            summary = record["summary"]
            alike = set(summary.get("peers", ())) <= {"resnet8"}
            right = (summary["batch_size"], summary["network"], summary["seed"]) == (
                batch_size,
                "resnet8",
                summary["data_seed"],
            )
            return record.get("role") != "teacher" and right and alike

        return by_seed(records, counts)

    accuracies = of(64)
    accuracies["kd", ""] = accuracies.pop(("kd", "resnet20"))
    assert {key for key, _ in accuracies} == set(offline)
    check_rows(offline, accuracies, {})
    for method, row in offline.items():
        if method != "kd":
            expected = interval(accuracies[method, ""], accuracies["kd", ""])
            assert shown(row["difference to kd, points"]) == pytest.approx(expected, abs=0.006), method
    accuracies = of(50)
    names = {"kd": ("kd", "resnet8"), ("kd", "pretrained, 1,000 labels"): ("kd", "resnet20")}
    check_rows(online, accuracies, names)


def test_the_table_of_every_method_is_that_of_the_committed_runs(tmp_path):
    found = runs.finished([RESULTS / "digits_methods.json"])
    page = tmp_path / "report.md"
    page.write_text(runs.table(found, baseline="kd", best_first=True))
    (reported,) = tables(page)
    rows = tables(ROOT / "docs/results.md")[6]
    assert list(rows) == list(reported) and set(registered.trained()) - {"finetune"} <= {
        row.split("(")[0] for row in rows
    }
    for method, row in rows.items():
        assert {**row, "method": method}.items() <= reported[method].items(), method


def test_the_numbers_of_the_present_versions_are_those_of_the_committed_runs():
    page = (ROOT / "docs/results.md").read_text()
    found = defaultdict(list)
    for record in json.loads((RESULTS / "cifar100_versions.json").read_text()):
        found[record["summary"]["method"]].append(100 * record["summary"]["accuracy"])
    for method, numbers in found.items():
        shown = f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}%"
        assert len(numbers) == 2 and f"`{method}` {'reaches ' * (method == 'ce')}{shown}" in page


def test_the_table_of_contention_is_that_of_the_committed_file():
    file = json.loads((RESULTS / "contention-cpu-2.json").read_text())
    rates = {(c["threads"], c["wait_policy"], c["busy_cores"]): c["images_per_second"] for c in file["cases"]}
    page = (ROOT / "docs/speed.md").read_text()
    rows = re.findall(r"^\| (\d) \| (active|passive)[^|]* \| (\d+) \| (\d+) \|$", page, flags=re.M)
    assert len(rows) == 4 == len(rates) / 2
    for threads, policy, free, busy in rows:
        assert (int(free), int(busy)) == tuple(round(rates[int(threads), policy, n]) for n in (0, 1))


def test_the_speed_table_is_that_of_the_committed_file():
    file = json.loads((RESULTS / "speed-cpu-2.json").read_text())
    text = (ROOT / "docs/speed.md").read_text()
    cells = {}
    for line in text.splitlines():
        parts = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(parts) == 3:
            cells[parts[0]] = parts[1:]
    for column, pair in enumerate(("resnet56→resnet20", "resnet32x4→resnet8x4")):
        measured = file[pair]
        times, floor = measured["times_the_usual"], measured["floor_times_the_usual"]
        share = {name: measured["profile"][name]["convolution"] for name in ("kd", "kd, full memo")}
        assert {name: row[column] for name, row in cells.items() if name and not name.startswith("---")} == {
            "usual loop, images/s": f"{measured['images_per_second']['usual']:.1f}",
            "KD, times the usual loop": f"{times['kd']:.2f}",
            "KD with a full teacher cache, times the usual loop": f"{times['kd, full memo']:.2f}",
            "an IC-KD step against a KD step": f"{100 * measured['ickd_over_kd'] - 100:+.1f}%".replace("-", "−"),
            "speed of three methods in one pass, relative to three trainings": (
                f"{measured['three_in_one_pass_times_three_runs']:.2f}"
            ),
            "upper bound: KD, with a full teacher cache, times the usual loop": (
                f"{floor['kd']:.2f}, {floor['kd, full memo']:.2f}"
            ),
            "share of convolutions in KD, with a full teacher cache": (
                f"{share['kd']:.0%}, {share['kd, full memo']:.0%}"
            ),
        }
