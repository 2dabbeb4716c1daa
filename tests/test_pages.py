"""Pages about runs: one file that loads and runs nothing, whatever the names in it, and with the library's numbers."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ickd_lib import __main__ as cli
from ickd_lib import data, metrics, models, pages, runs, runtime, training
from ickd_lib.data.resizing import resized
from ickd_lib.export.commands import data_of
from ickd_lib.pages import classification, html, networks
from ickd_lib.pages.networks import Outputs
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Segmentation
from ickd_lib.training import Recipe, Student

HOSTILE = "<img src=x onerror=alert(1)> & \"$\\frac$' </td>"
VOID = ("meta", "img", "source", "br")
RECIPE = Recipe(epochs=3, lr=0.05, schedule="cosine", batch_size=30)


class Reader(HTMLParser):
    """Reads a page: the elements that are open, all attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.names, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return "\n".join(self.words)


def read(page):
    """A page that was parsed, after a check that it loads nothing, runs nothing, and is well formed."""
    reader = Reader()
    reader.feed(page)
    assert not reader.open, "every element is closed"
    assert not {"script", "link", "iframe", "object", "form"} & set(reader.names)
    for _tag, name, value in reader.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "href") or value.startswith("data:image/")
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    return reader


def html_text(part):
    """The texts of a part of a page."""
    reader = Reader()
    reader.feed(part)
    return [word for word in reader.words if word.strip()]


@pytest.fixture(scope="module")
def hostile(digits):
    """The digits with a class whose name is HTML and mathematics."""
    names = (HOSTILE, *digits.train.classes[1:])
    return digits._replace(train=replace(digits.train, classes=names), test=replace(digits.test, classes=names))


@pytest.fixture(scope="module")
def folder(hostile, tmp_path_factory):
    """Two methods with two seeds, and their teacher in "teachers"."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"recipe": RECIPE, "device": "cpu", "progress": False}
    (made,) = training.distill(
        [Student("resnet8", "ce", 7, "t")], hostile, runs=folder / "teachers", **options
    ).values()
    training.compare(["ce", "kd"], hostile, student="resnet8", teacher=made.network, seeds=2, runs=folder, **options)
    return folder


def test_a_page_of_a_comparison(folder, hostile):
    teacher = training.load(folder / "teachers" / "t", device="cpu")
    page = pages.report([folder], splits=hostile, teacher=teacher, baseline="ce")
    assert len(page) < 2_000_000
    found = read(page)
    for title in ("Results", "Training", "Accuracy of each class", "Confusion matrix", "Most confident mistakes"):
        assert title in found.text
    assert "What kd and ce disagree on" in found.text or "What ce and kd disagree on" in found.text
    assert "HOSTILE" not in page and "<img src=x" not in page and HOSTILE in found.text
    rows = runs.finished([folder])
    for cell in runs.table(rows, baseline="ce").splitlines()[4].strip("| ").split(" | "):
        assert cell in found.text, "the table over seeds has the numbers of the Markdown table"
    assert "prefers-color-scheme: dark" in page and found.text.count("label: ") > 10
    assert ": 1.000" not in found.text and "cosine" in found.text, "mistakes are beside in-context samples"


def test_a_teacher_among_the_runs_is_described_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = data.load("digits", labels=40)
    options = {"runs": "runs", "device": "cpu", "progress": False}
    made = training.teach("resnet8x4", few, epochs=1, head_epochs=0, batch_size=20, name="big", **options)
    training.compare(["ce", "kd"], few, teacher=made.network, student="resnet8", seeds=1, recipe=RECIPE, **options)
    method = made.summary["method"]
    assert cli.main("report runs --html page.html".split()) == 0
    results, rest = read(Path("page.html").read_text()).text.split("Training", 1)
    assert method in results and method not in rest and "teacher" in rest
    assert {row["method"] for row in networks.without_teachers(runs.finished_rows(["runs"]), method)} > {method}


def test_the_page_of_one_run_says_what_it_lacks(folder, hostile):
    (run, *_) = sorted(path.parent for path in folder.glob("*/summary.json"))
    assert "no data set was given" in read(pages.report([run])).text
    found = read(pages.report([run], splits=hostile)).text
    assert "In-context samples are not shown: no teacher was given" in found and "disagree" not in found
    network = training.load(run, device="cpu")
    with torch.no_grad():
        wrong = network(hostile.test.images / 255).logits.argmax(1) != hostile.test.labels
    assert f"is wrong for {int(wrong.sum())} of {len(wrong)} images" in found


def test_the_differences_of_two_students_are_counted_and_shown(digits):
    """Of eight images both are right in three, one alone in two and one, and both are wrong in two."""
    images = digits.test.subset(torch.arange(8))
    labels = images.labels
    shift = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 3, 4, 0, 1, 5]])
    size = torch.arange(1, 9)[:, None]  # the confidence grows with the row
    one, other = (
        Outputs(name, torch.eye(10)[(labels + by) % 10] * size, torch.zeros(8, 2))
        for name, by in zip(("one", "other"), shift, strict=True)
    )
    lines = [" ".join(line.split()) for line in html_text(classification._differences(one, other, images))]
    assert lines[0] == "What one and other disagree on"
    table = [tuple(lines[i : i + 3]) for i in range(1, 19, 3)]
    assert table == [
        ("images for which", "number", "%"),
        ("both are right", "3", "37.5"),
        ("only one is right", "2", "25.0"),
        ("only other is right", "1", "12.5"),
        ("both are wrong, with the same class", "1", "12.5"),
        ("both are wrong, with different classes", "1", "12.5"),
    ]
    heads = [i for i, line in enumerate(lines) if line.startswith("Only")]
    assert [lines[i] for i in heads] == [
        "Only one is right: the most confident mistakes of other",
        "Only other is right: the most confident mistakes of one",
    ]
    rows = [
        [line for line in lines[a:b] if line.startswith("row ")] for a, b in zip(heads, (*heads[1:], None), strict=True)
    ]
    assert rows == [[f"row {int(images.index[at])}" for at in some] for some in ((4, 3), (5,))]
    name = images.classes
    wrong = f"prediction: {name[(labels[4] + 4) % 10]} ({torch.tensor([5.0] + 9 * [0.0]).softmax(0)[0]:.0%})"
    assert wrong in lines[heads[0] : heads[1]]


def test_runs_on_two_data_sets_have_curves_of_their_own(folder, tmp_path):
    records = runs.collected([folder])
    ours = [one for one in records if one["config"]["settings"]["seed"] == 0]
    others = json.loads(json.dumps(records))
    for one in others:
        one["config"]["settings"]["data"]["name"] = "other/train"
        one["summary"] |= {"dataset": "other", "name": f"other {one['summary']['name']}"}
    runtime.write_json(tmp_path / "runs.json", ours + others)
    found = read(pages.report([tmp_path / "runs.json"])).text
    assert "6 runs, other, digits" in found
    assert "The rest of this page is about the runs on other alone; 2 other runs are left out." in found
    for dataset in ("other", "digits"):
        assert f"Accuracy on the test images, {dataset}, 3 epochs" in found


def test_a_page_says_which_runs_it_leaves_out(folder, tmp_path):
    records = runs.collected([folder])
    for one in records[:3]:
        one["summary"]["val_accuracy"] = 0.5
    runtime.write_json(tmp_path / "runs.json", records)
    found = read(pages.report([tmp_path / "runs.json"])).text
    assert "about the runs on digits with held-out images alone; 1 other run is left out." in found


def test_data_sets_of_one_name_with_other_classes_are_apart(folder, digits, hostile, tmp_path):
    options = {"recipe": RECIPE, "device": "cpu", "progress": False}
    training.distill([Student("resnet8", "ls")], digits, runs=tmp_path, **options)
    found = read(pages.report([folder, tmp_path], splits=hostile)).text
    assert f"on digits with the classes {HOSTILE}, 1, 2, … alone; 1 other run is left out." in found
    assert "Confusion matrix" in found


def test_runs_are_not_evaluated_on_images_they_were_trained_on(tmp_path):
    options = {"recipe": replace(RECIPE, epochs=1), "runs": tmp_path, "device": "cpu", "progress": False}
    splits = {"ce": data.load("digits", labels=60, val=0.1), "ls": data.load("digits", labels=50, val=0.2)}
    for method, of_method in splits.items():
        training.distill([Student("resnet8", method)], of_method, **options)
    for method, other in (("ce", "ls"), ("ls", "ce")):
        page = read(pages.report([tmp_path], splits=splits[method])).text
        assert f"because other images were held out of their training: {other}" in page
        assert f"on the {len(splits[method].val)} images of digits/val" in page
    with pytest.raises(InputError, match="by --val as in the training"):
        pages.report([tmp_path], splits=data.load("digits", labels=40, val=0.1))


def test_a_page_of_dense_runs_with_held_out_images_shows_none_of_the_test_images(tmp_path):
    scenes = data.load("scenes", annotations="masks", labels=8)
    some = scenes.test.subset(torch.arange(6))
    scenes = scenes._replace(val=replace(some, name="scenes/val"), test=some)
    options = {"recipe": Recipe(epochs=1, batch_size=4), "device": "cpu", "progress": False}
    training.distill([Student("resnet8-fcn", "ce")], scenes, task=Segmentation(), runs=tmp_path, **options)
    page = read(pages.report([tmp_path], splits=scenes)).text
    assert "Of 6 images of scenes/val, those on which ce has" in page and "scenes/test" not in page
    assert "IoU of each class" not in page


def test_images_of_other_runs_are_refused_or_named(folder, digits, hostile):
    with pytest.raises(InputError, match="has other classes than"):
        pages.report([folder], splits=digits)
    (run, *_) = sorted(path.parent for path in folder.glob("*/summary.json"))
    with torch.no_grad():
        predicted = training.load(run, device="cpu")(hostile.test.images / 255).logits.argmax(1)
    wrong = (predicted != hostile.test.labels).nonzero()[:, 0]
    fewer = hostile._replace(test=hostile.test.subset(wrong))
    assert "other images than those of the run" in read(pages.report([run], splits=fewer)).text


def test_a_page_that_is_too_large_is_not_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ickd_lib.pages.writing.LIMIT", 1000)
    with pytest.raises(InputError, match="name fewer runs"):
        pages.write(tmp_path / "page.html", [folder])
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = "compare --methods ce kd --seeds 1 --labels 60 --epochs 1 --device cpu --teacher resnet8 --teacher-epochs 1"
    assert cli.main(made.split()) == 0
    capsys.readouterr()
    assert cli.main("report runs --html page.html".split()) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "page.html: " in printed.err
    assert "digits/test" in read(Path("page.html").read_text()).text
    shutil.rmtree("runs/teachers")
    assert cli.main("report runs --html page.html".split()) == 0
    assert "the teacher of the run, resnet8, was not found beside it" in Path("page.html").read_text()
    for config in Path("runs").glob("*/config.json"):  # a run on a folder does not record its path
        settings = json.loads(config.read_text())
        settings["settings"]["data"]["name"] = "folder:photos/train"
        config.write_text(json.dumps(settings))
    assert cli.main("report runs --html page.html".split()) == 0
    assert "does not record the path of its data" in Path("page.html").read_text()
    assert cli.main("report runs --html page.html --baseline kdd".split()) == 2
    assert "did you mean 'kd'" in capsys.readouterr().err


def test_the_page_of_runs_without_weights_lacks_what_needs_them(folder, hostile, tmp_path):
    place = shutil.copytree(folder, tmp_path / "runs")
    for weights in place.rglob("student.safetensors"):
        weights.unlink()
    found = read(pages.report([place], splits=hostile, baseline="ce")).text
    assert "the folders of the runs lack student.safetensors" in found and "Loss and its terms" in found


def test_the_page_of_runs_of_own_networks_lacks_their_predictions(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"recipe": RECIPE, "runs": "runs", "device": "cpu", "progress": False}
    with runtime.seeded():
        mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    training.distill([Student(models.wrap(mine, name="Mine"), "ce")], digits, **options)
    assert cli.main("report runs --html page.html".split()) == 0
    text = read(Path("page.html").read_text()).text
    assert "left out: the network of these runs is one of your own, which cannot be built from their folders" in text
    assert "Loss and its terms" in text and "Confusion matrix" not in text
    training.distill([Student("resnet8", "ce")], digits, **options)
    text = read(pages.report(["runs"], splits=digits)).text
    assert re.search("Not evaluated are ce, Mine.*: the network of these runs is one of your own", text)
    assert "Confusion matrix" in text


def test_the_page_of_a_json_file_lacks_what_needs_networks(folder, hostile, tmp_path):
    file, short = tmp_path / "runs.json", tmp_path / "short.json"
    assert cli.main(["report", str(folder), "--json", str(file), "--out", str(tmp_path / "table.md")]) == 0
    assert str(folder) not in file.read_text()
    found = read(pages.report([file], splits=hostile, baseline="ce")).text
    table = runs.table(runs.finished([folder]), baseline="ce")
    assert all(cell in found for cell in table.splitlines()[4].strip("| ").split(" | "))
    assert "the runs are in JSON files, which contain no networks" in found and "Loss and its terms" in found
    assert "in a JSON file, and its environment" in found and "Confusion matrix" not in found
    assert pages.report([folder, file]).count("<tr>") == pages.report([folder]).count("<tr>"), "each run counts once"
    both = ["--json", str(short), "--without-epochs", "--html", str(tmp_path / "page.html")]
    assert cli.main(["report", str(file), *both]) == 0
    assert "The runs recorded no epochs." in read(pages.report([short])).text
    assert "the runs are in JSON files" in (tmp_path / "page.html").read_text()


def test_a_page_of_runs_with_validation_and_unlabelled_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = "compare --methods kd ckd --seeds 1 --labels 60 --val 0.2 --unlabelled 50 --epochs 1 --device cpu"
    assert cli.main([*made.split(), *"--teacher resnet8 --teacher-epochs 1".split()]) == 0
    capsys.readouterr()
    baseline = ["--baseline", "KD with 50 unlabelled images"]
    assert cli.main(["report", "runs", "--html", "page.html", "--val", "0.2", *baseline]) == 0
    text = read(Path("page.html").read_text()).text
    assert "digits/val" in text and "not those of" not in capsys.readouterr().err
    assert "to kd with 50 unlabelled images, points" in text
    assert cli.main(["report", "runs", "--html", "page.html"]) == 0
    assert "by --val as in the training" in read(Path("page.html").read_text()).text
    assert "the training images are not those of" in capsys.readouterr().err


def test_the_page_names_students_that_diverged(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "runs")
    config = next(place.glob("*/config.json"))
    shutil.copytree(config.parent, place / "wild")
    (place / "wild" / "summary.json").unlink()
    runtime.write_json(place / "wild" / "diverged.json", {"reason": "NaN"})
    assert "Students that diverged are in no table above" in read(pages.report([place])).text
    assert "diverged" not in read(pages.report([folder])).text


def test_committed_results_have_pages():
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    for path in (results / "own_images.json", results / "segmentation_scenes.json", results / "cifar100-small/table"):
        assert "are left out: the runs are in JSON files" in read(pages.report([path])).text


@pytest.mark.parametrize(
    ("task", "student", "needed", "title"),
    [
        ("segmentation", "resnet8-fcn", "masks", "IoU of each class"),
        ("detection", "resnet8-fpn", "boxes", "AP of each class"),
    ],
)
def test_other_tasks_have_a_number_of_each_class(task, student, needed, title, tmp_path, capsys):
    if task == "detection":
        pytest.importorskip("pycocotools", reason="needs the extra dense")
    from ickd_lib import tasks

    scenes = data.load("scenes", annotations=needed, labels=8)
    scenes = scenes._replace(test=scenes.test.subset(torch.arange(6)))
    options = {"recipe": Recipe(epochs=1, batch_size=4), "device": "cpu", "progress": False}
    training.distill([Student(student, "ce")], scenes, task=tasks.create(task), runs=tmp_path, **options)
    found = read(pages.report([tmp_path]))
    assert title in found.text and "small" not in found.words
    assert "Sections about images, such as the mistakes, are left out: no data set was given" in found.text
    names = tuple(f"{HOSTILE}{number}" for number in range(len(scenes.test.classes)))
    page = pages.report([tmp_path], splits=scenes)
    assert "Of 6 images of scenes/test, those on which ce has" in read(page).text and len(page) < 2_000_000
    with pytest.raises(InputError, match="has other classes than"):
        pages.report([tmp_path], splits=scenes._replace(test=replace(scenes.test, classes=names)))
    assert cli.main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert "Of 200 images of scenes/test" in read((tmp_path / "page.html").read_text()).text
    assert "of another size" not in capsys.readouterr().err
    smaller = scenes._replace(train=resized(scenes.train, 48))
    (run,) = tmp_path.glob("*/config.json")
    data_of(runtime.Run(run.parent), SimpleNamespace(task=task, dataset="scenes", classes=[]), lambda: smaller)
    assert "give --image-size as in its training" in capsys.readouterr().err


def test_all_text_is_escaped():
    assert html.escaped(HOSTILE).count("<") == 0
    assert "<b>" not in html.section("<b>", "<b>", html.note("<b>"), html.table(["<b>"], [["<b>"]])).replace("</b>", "")
    assert 'alt="&lt;b&gt;&quot;"' in html.tile(torch.zeros(3, 4, 4, dtype=torch.uint8), '<b>"')


def test_reliability_of_known_predictions():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.1]])
    bins = metrics.reliability(logits, torch.tensor([0, 1, 1]), bins=10)
    assert bins["count"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 0]
    assert bins["accuracy"][8] == 0.5 and bins["accuracy"][5] == 1
    assert bins["confidence"][8] == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())
