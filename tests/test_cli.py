"""The command line, in process: what it writes, and that every mistake is one line and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from streams import write_folder

from ickd_lib import __main__ as cli
from ickd_lib import training
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe

QUICK = "--labels 60 --epochs 1 --batch-size 30 --device cpu"
SHORT = "--teacher resnet8 --teacher-epochs 1"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(line):
        status = cli.main(line.split())
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_train_evaluate_and_report(run):
    status, out, _ = run(f"train --method kd {QUICK} {SHORT}")
    assert status == 0 and "run folder: runs/resnet8-kd-seed0-" in out
    folder = out.rsplit("run folder: ")[1].strip()
    summary = json.loads(out[: out.index("run folder")])
    assert summary["train_images"] == 60 and summary["teacher_saw"] == {"data": "digits/train", "labels": 1000}
    status, out, _ = run(f"evaluate {folder} --device cpu")
    assert status == 0 and json.loads(out)["accuracy"] == pytest.approx(summary["accuracy"])
    status, out, _ = run("report runs")
    assert status == 0 and "| kd | 1 |" in out and "| ce |" not in out, "teachers are no results"
    assert run("report runs --out table.md --json runs.json")[0] == 0
    student, teacher = json.loads(Path("runs.json").read_text())
    assert (teacher["summary"]["method"], student["summary"]) == ("ce", summary)
    assert student["config"]["settings"]["seed"] == 0 and len(student["epochs"]) == 1
    assert run("report runs.json")[1] == run("report runs")[1] == run("report .")[1], (
        "what is kept reads as the runs do"
    )


def test_compare_prints_a_row_a_method(run):
    status, out, _ = run(f"compare --methods ce ickd(positives=3,negatives=5) --seeds 2 {QUICK} {SHORT}")
    assert status == 0
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:2] for row in rows[1:]] == [
        ["| ce", "2"],
        ["| ickd(positives=3, negatives=5)", "2"],
    ]
    assert all("±" in row for row in rows[1:])
    summary = next(json.loads(path.read_text()) for path in Path("runs").glob("*ickd*/summary.json"))
    assert f"{summary['teacher']} (accuracy {summary['teacher_accuracy']:.1%}) → " in out
    status, out, _ = run("report runs --baseline ce --figure apart.svg")
    assert status == 0 and "to ce, points" in out and "difference to ce" in Path("apart.svg").read_text()
    assert run("report runs --figure beside.png")[0] == 0 and Path("beside.png").read_bytes()[1:4] == b"PNG"
    assert run("report runs --figure beside.xyz")[0] == 2 and not Path("beside.xyz").exists()
    assert run("report runs --baseline kd")[2].count("\n") == 1


def test_peers_train_beside_a_student_and_count_once(run):
    status, out, _ = run(f"train --method ickd_online(positives=2,negatives=4) --name mine {QUICK}")
    assert status == 0 and out.count("run folder: ") == 2 and "run folder: runs/mine" in out
    accuracies = [json.loads(path.read_text())["accuracy"] for path in Path("runs").glob("*/summary.json")]
    (row,) = [line for line in run("report runs")[1].splitlines() if line.startswith("| ickd_online")]
    assert row.split(" | ")[1:3] == ["1", f"{100 * sum(accuracies) / 2:.2f}"]
    status, out, _ = run(f"compare --methods dml --peers resnet14 --seeds 2 {QUICK}")
    assert status == 0 and "| dml with resnet14 | 2 |" in out and "±" in out
    assert "| dml with resnet8 | 2 |" in run("report runs")[1]
    status, out, _ = run(f"compare --methods dml --runs same --seeds 1 {QUICK}")
    (row,) = [line for line in out.splitlines() if line.startswith("| dml")]
    assert row in run("report same")[1], "compare and report print the same numbers"
    assert "did you mean 'resnet14'" in run(f"train --method dml --peers resnt14 {QUICK}")[2]


def test_a_teacher_of_other_classes(run):
    line = f"train --method refilled --classes 5 6 7 8 9 --teacher-classes 0 1 2 3 4 --augment mixup {QUICK} {SHORT}"
    status, out, _ = run(line)
    summary = json.loads(out[: out.index("run folder")])
    assert status == 0 and summary["dataset"] == "digits(5,6,7,8,9)"
    assert summary["teacher_saw"]["data"] == "digits(0,1,2,3,4)/train"
    status, _, err = run(line.replace("refilled", "kd"))
    assert status == 2 and "share 0 with the student's 5" in err and len(err.splitlines()) == 1
    status, _, err = run(f"train --method ce --classes 5 66 {QUICK}")
    assert status == 2 and "'66'" in err


def test_published_settings_are_taken(run, monkeypatch):
    seen = {}

    def distill(students, splits, **options):
        seen.update(options, student=students[0], augment=splits.train.augment)
        raise InputError("enough")

    monkeypatch.setattr(training, "distill", distill)
    monkeypatch.setattr(training, "pretrain", lambda *_, **__: None)
    line = "train --published --method ckd --teacher wrn_40_2 --student ShuffleV1"
    note = "note: these settings are for cifar100, and the data set is digits\n"
    assert run(line)[2] == f"{note}published settings: configurations of ZhouXinzzzzz/CKD\nerror: enough\n"
    assert seen["recipe"] == Recipe(epochs=480, batch_size=32, lr=0.01, schedule="cosine")
    assert seen["augment"] == "crop" and seen["student"].method == "ckd"
    assert "--published sets epochs itself" in run(f"{line} --epochs 3")[2]
    line = "train --method dkd --teacher torchvision/resnet34 --student torchvision/resnet18 --published"
    assert "error: dkd is published on CIFAR-100 for resnet56 -> resnet20, " in run(line)[2]
    assert run(f"{line} imagenet")[2].endswith("error: enough\n") and seen["recipe"].epochs == 100
    assert run("train --published --method ickd --teacher resnet20")[2].startswith("not published settings: ")


def test_a_bank_of_more_images_than_the_students(run):
    def trained(more):
        line = f"train --method ickd(positives=3,negatives=5) {QUICK} {SHORT} {more}"
        status, out, _ = run(line)
        summary = json.loads(out[: out.index("run folder")])
        assert status == 0 and summary["train_images"] == 60
        return summary.get("bank_rows"), json.loads(Path("runs", summary["name"], "config.json").read_text())

    (rows, config), (fewer, _), (none, _) = (
        trained(more) for more in ("--bank-images all", "--bank-images 200 --bank-labels given", "")
    )
    assert (rows, fewer, none) == (1000, 200, None)
    assert config["settings"]["bank"]["labels"].startswith("60 given")
    (table,) = [line for line in run("report runs")[1].splitlines() if "bank of 1,000 rows" in line]
    assert table.startswith("| ickd(positives=3, negatives=5) with a bank of 1,000 rows | 1 |")
    status, out, _ = run(f"compare --methods ce picd(positives=3) --seeds 1 --bank-images all {QUICK} {SHORT}")
    assert status == 0 and "| picd(positives=3) with a bank of 1,000 rows |" in out and "| ce | 1 |" in out


def test_bank_is_saved_and_measured(run, tmp_path):
    status, out, _ = run(f"bank {QUICK} {SHORT} --k 3")
    numbers = json.loads(out)
    assert status == 0 and numbers["rows"] == 60 and numbers["features"] == 64
    assert 0 <= numbers["precision@3"] <= 1 and numbers["chance"] == pytest.approx(0.1, abs=0.01)
    assert len(MemoryBank.load(tmp_path / numbers["bank"])) == 60


def test_a_bank_of_another_teacher_or_other_images_is_kept(run, tmp_path):
    line = f"bank {QUICK} {SHORT} --k 3"
    path = tmp_path / json.loads(run(line)[1])["bank"]
    assert run(line)[0] == 0  # the same bank
    before = path.read_bytes()
    for other in ("--labels 50", "--teacher-epochs 2"):
        status, out, err = run(f"{line} {other}")
        assert status == 2 and out == "" and path.read_bytes() == before
        assert f"{path.name} is a bank of another teacher or other images; give --out" in err
    assert run(f"{line} --labels 50 --out other")[0] == run(f"{line} --out other")[0] == 0
    path.write_bytes(before[:-9])  # damaged
    assert run(line)[0] == 0 and path.read_bytes() == before


def test_a_run_serves_as_teacher(run):
    assert run(f"train --method ce {QUICK} --name t")[0] == 0
    status, _, err = run(f"train --method kd {QUICK} --teacher runs/t --teacher-weights none.pth")
    assert status == 2 and "--teacher-weights: runs/t is a run, which has its own; leave this out" in err
    status, _, err = run("bank --teacher runs/t --device cpu --lr 7 --optimizer adamw --no-resume")
    assert status == 2 and "--lr, --optimizer, --no-resume: runs/t is a run, which is not trained again" in err
    assert run("bank --teacher runs/t --device cpu --labels 60 --k 3")[0] == 0
    status, out, _ = run(f"train --method kd {QUICK} --teacher runs/t")
    assert status == 0 and json.loads(out[: out.index("run folder")])["teacher_saw"]["labels"] == 60


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"train --method kd --student resnet9 {SHORT}", "unknown model 'resnet9'; did you mean 'resnet8'?"),
        (f"compare --methods kd --student resnet9 {SHORT}", "unknown model 'resnet9'; did you mean 'resnet8'?"),
        ("train --method kd --peers resnet8", "no peers are needed for kd; name a method such as dml"),
        ("compare --methods ce kd --peers resnet8", "no peers are needed for ce, kd; name a method such as dml"),
        (f"train --method kd --teacher-cache-top 5 {SHORT}", "teacher_cache_top is about a teacher cache"),
        ("train --method ce --teacher-epochs 3", "--teacher-epochs: no --teacher is named"),
        ("train --method kd --teacher .", "--teacher .: this is not the folder of a run"),
        ("train --method kd --teacher runs/none", "--teacher runs/none: this does not exist"),
        ("train --method kd+", "'kd+' has no method on one side of a +"),
        ("train --dataset /tmp --method ce", "/tmp is a folder; write folder:/tmp"),
        ("train --epohcs 3", "unknown option '--epohcs'; did you mean '--epochs'?"),
        ("train --method ikd", "unknown method 'ikd'; did you mean 'ickd'?"),
        ("train --method ce --student resnet9 --epochs 1", "unknown model 'resnet9'; did you mean 'resnet8'?"),
        ("train --dataset digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("train --method kd", "this method needs a teacher"),
        ("train --dataset cifar100 --method ce", "data/cifar-100-python/meta does not exist; allow the download"),
        ("train --dataset cifar100 --method ce", "give as root (--data-root) the folder"),
        ("train --dataset npz --method ce", "unknown data set 'npz' (known: cifar100"),
        ("train --dataset folder:nowhere --method ce", "nowhere is not a folder"),
        ("train --method ce --epochs 0", "argument --epochs: expected a whole number of 1 or more, not '0'"),
        ("train --method ce --device cuda:9", "torch finds"),
        ("train --method ce --labels 3", "cannot draw 3 of 1000 images"),
        ("compare --methods ce --seeds 0", "argument --seeds: expected a whole number of 1 or more"),
        ("evaluate nowhere", "nowhere/config.json does not exist; is this a run folder?"),
        ("report nowhere", "nowhere is not a folder"),
        ("bank --teacher resnet8 --teacher-weights none.pth", "none.pth"),
        ("train --method ce --name ..", "name='..' cannot be the name of a run folder"),
        ("train --method ce --name . --runs new", "name='.' cannot be the name of a run folder"),
        ("train --method ce --name a/b", "name='a/b' cannot be the name of a run folder"),
        ("train --method ce --runs teachers", "--runs: teachers cannot be the folder of all runs"),
        ("compare --methods ce --runs a/jobs/", "--runs: a/jobs/ cannot be the folder of all runs"),
        ("train --method ce --task clasification", "unknown task 'clasification'; did you mean 'classification'?"),
        ("train --method ce --bank-images all", "--bank-images needs a method with a memory bank"),
        ("train --method ce --optimizer adamw --nesterov", "nesterov=True is not a setting of the optimizer AdamW"),
        ("train --method ce --optimizer adm", "unknown optimizer 'adm'; did you mean 'Adam'?"),
        ("diff nowhere elsewhere", "nowhere/config.json does not exist"),
        ("report no\x1b[31mwhere", r"no\x1b[31mwhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(run, line, message):
    status, out, err = run(line)
    assert status == 2 and out == ""
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --method kd --name bad/name", "name='bad/name' cannot be the name of a run folder"),
        ("train --method kd --name there --no-resume", "runs/there already contains a run"),
        ("train --method lwf --teacher-classes 0-4 --augment mixup", "'lwf' needs images of one class each"),
        ("train --method kd --schedule tenth+fifths", "is for 2 phases, but the method has 1"),
        ("train --method kd --search faiss", "nearest negatives from the teacher's bank"),
        ("compare --methods kd kd", "kd and kd are the same method"),
        ("compare --methods kd kd(temperature=4)", "kd and kd(temperature=4) are the same method"),
        ("compare --methods dml --peers nosuch", "unknown model 'nosuch'"),
        ("train --method ickd --threshold 0.5", "--threshold is for --unlabelled images"),
        ("train --method ickd --bank-images abc", "--bank-images abc is neither a number nor all"),
        ("train --method ickd --bank-images 59", "to 59; give a number from 60"),
        ("train --method kd --bank-images all", "--bank-images needs a method with a memory bank"),
        ("train --method ickd --bank-labels given", "--bank-labels is about the images of --bank-images"),
        ("bank --labels 5000", "cannot draw 5000 of 1000 images"),
        ("bank --out .", ". is a folder; name a file"),
        ("bank --k 1000", "--k 1000, but each row of the bank has 59 other rows"),
    ],
)
def test_wrong_options_do_not_cost_the_training_of_a_teacher(run, monkeypatch, line, message):
    Path("runs/there").mkdir(parents=True)
    Path("runs/there/config.json").write_text('{"settings": {}}')
    monkeypatch.setattr(training, "pretrain", lambda *_, **__: pytest.fail("a teacher was trained"))
    if "faiss" in line:
        pytest.importorskip("faiss", reason="faiss is not installed (extra faiss)")
    words = line.split()
    status, _, err = run(" ".join([words[0], *QUICK.split(), *SHORT.split(), *words[1:]]))
    assert status == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("teach resnet8 --linear-probe --lr 0.1", "--lr: --linear-probe trains only the classifier"),
        ("teach resnet8 --linear-probe --head-epochs 2", "--head-epochs: --linear-probe trains only"),
        ("teach resnet8 --task segmentation", "teach fine-tunes classifiers"),
        ("export runs/a --out a.pt2 --format pt2 --teacher-weights t.pth", "no --teacher is named"),
        ("export runs/a --out a.pt2 --format pt2 --teacher resnet8", "a model's name needs --teacher-weights"),
        ("report --without-epochs", "--without-epochs is about the file of --json"),
        ("report --dataset digits", "--dataset: this is about the page of --html"),
        ("report --teacher runs/t", "--teacher: this is about the page of --html"),
        ("report --val 0.3 --classes foo --stream", "--classes, --val, --stream: this is about the page of --html"),
        ("report --workers 0 --ignore 0 --corrupt zzz", "--ignore, --workers, --corrupt: this is about the page"),
        ("report --out .", ". is a folder; name a file"),
        ("report --out z.txt --json z.txt", "--out and --json name the same file, z.txt; give each its own"),
        ("export RUN --out z.onnx --json z.onnx", "--out and --json name the same file, z.onnx; give each its own"),
        (
            "bank --teacher resnet8 --teacher-weights t.pth --lr 1",
            "--lr: resnet8 has weights, which are not trained again",
        ),
        ("report --html a/../z.txt --figure z.txt", "--html and --figure name the same file"),
        ("report none.json", "none.json does not exist; name a folder"),
        ("report runs1 --html r.html extra", "unexpected argument 'extra'; name folders before the options"),
        ("evaluate runs/a --task segmentation", "unknown option '--task'"),
        ("evaluate runs/a --labels 5", "unknown option '--labels'"),
    ],
)
def test_options_without_an_effect_are_refused(run, line, message):
    status, _, err = run(line)
    assert status == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_wrong_number_of_processes_is_one_line(tmp_path):
    """As in WORLD_SIZE=x ickd status."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "WORLD_SIZE": "x"}
    command = [sys.executable, "-m", "ickd_lib", "status"]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.startswith("error: the environment variable WORLD_SIZE=x")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("images", "message"), [("many", "neither a number nor all"), ("59", "to 59; give a number from 60")]
)
def test_a_bank_of_no_such_number_is_refused(run, images, message):
    status, _, err = run(f"train --method picd --bank-images {images} {QUICK} {SHORT}")
    assert status == 2 and message in err and err.splitlines()[-1].startswith("error: ")


def test_a_package_that_is_not_installed_is_named(run, monkeypatch):
    assert run(f"train --method ce {QUICK}")[0] == 0
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("ickd_lib.pages.commands", "ickd_lib.pages"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "ickd_lib.plots", None)
    monkeypatch.setattr(cli, "report", lambda given: exec("import matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("report runs --html page.html")
    assert (status, err) == (2, "error: matplotlib is not installed; run pip install 'ickd[notebooks]'\n")


def test_a_run_of_other_settings_is_refused(run):
    assert run(f"train --method ce {QUICK} --name mine")[0] == 0
    status, _, err = run(f"train --method ce {QUICK} --name mine --lr 0.2")
    assert status == 2 and "contains a run with recipe.lr=0.05, not 0.2 (differing: recipe.lr)" in err


def test_every_option_shows_its_default(capsys):
    for command in ("train", "compare", "bank", "evaluate", "export", "predict", "report"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        options = [a for a in cli.parser()._subparsers._group_actions[0].choices[command]._actions if a.option_strings]
        given = [a for a in options[1:] if a.default is not None and a.default not in ("", [], ())]  # without --help
        assert shown.count("(default:") >= len(given) and "(default: )" not in shown


def test_a_stopped_run_says_how_to_go_on(run, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt("stopped; the same call or command continues from here")

    monkeypatch.setattr(training, "distill", stopped)
    status, _, err = run(f"train --method ce {QUICK}")
    assert status == 130 and "continues from here" in err


def test_weights_of_a_zoo_checkpoint_make_a_teacher(run, tmp_path):
    from ickd_lib import models

    with torch.random.fork_rng():
        network = models.create("resnet8", 10)
    torch.save({"model": network.state_dict()}, tmp_path / "t.pth")
    status, out, _ = run(f"train --method kd {QUICK} --teacher resnet8 --teacher-weights t.pth")
    assert status == 0 and json.loads(out[: out.index("run folder")])["teacher_saw"] == {"weights": "t.pth"}


def test_a_name_writes_nothing_outside_the_runs_folder(run, tmp_path):
    """`--name ..` with a runs folder that does not exist yet once replaced these files."""
    (tmp_path / "config.json").write_text("mine")
    (tmp_path / "summary.json").write_text("mine")
    for name in ("..", ".", "-", "///", "../x"):
        assert run(f"train --method ce {QUICK} --runs new --name={name}")[0] == 2
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"config.json": "mine", "summary.json": "mine"}


def test_a_diverging_method_has_its_row_and_the_others_finish(run):
    line = f"compare --methods ce kd(kd=1e30) ickd(positives=3,negatives=5) --seeds 2 {QUICK} {SHORT}"
    status, out, err = run(line)
    assert status == 1 and "| ce | 2 |" in out and "| ickd(positives=3, negatives=5) | 2 |" in out
    assert "| kd(kd=1e30) | 2 |" in out.partition("| method | diverged, seeds |")[2]
    (problem,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert problem.count("became nan at epoch 1, step 2") == 2


def test_two_runs_are_compared(run):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(f"train --method ce {QUICK} --name {name} --seed {seed}")[0] == 0
    status, out, _ = run("diff runs/a runs/b")
    assert status == 0 and out == "weights: equal in the only epoch\nrecords: equal in the only epoch\n"
    status, out, _ = run("diff runs/a runs/c")
    assert (
        status == 0 and "settings: seed is 0 in runs/a, 1 in runs/c" in out and "weights: differ from epoch 1 on" in out
    )


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("ickd ")


def test_the_task_chooses_the_kind_of_annotations():
    def split(line):
        return cli._splits(cli.parser().parse_args(["train", *line.split()])).train

    masks, boxes = split("--dataset scenes --task segmentation"), split("--dataset scenes --task detection")
    assert masks.masks is not None and masks.objects is None
    assert boxes.masks is None and boxes.objects.masks is None
    assert split("--dataset scenes --task detection --annotations instances").objects.masks is not None
    assert len(split("--task segmentation")) == 1000, "that digits have no masks is for the task to say"


def test_options_of_annotations_are_checked(run, tmp_path):
    for line, message in (
        ("--dataset scenes --annotations box", "unknown kind of annotations of scenes 'box'; did you mean 'boxes'"),
        ("--dataset scenes --ignore 3", "ignore=3 is not an option of scenes, only of masks:PATH; leave it out"),
        (f"--dataset masks:{tmp_path} --ignore 3", f"{tmp_path} lacks train/, or both test/ and val/"),
        ("--dataset digits --annotations masks", "annotations=masks is not an option of digits, only of coco:PATH"),
    ):
        status, _, error = run(f"train {line}")
        assert status == 2 and message in error and error.count("\n") == 1


def test_a_reader_that_ends_first_is_no_error(tmp_path):
    """As in `ickd report FOLDER | head`."""
    file = Path(__file__).parents[1] / "benchmarks/results/segmentation_scenes.json"
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as output:
        command = [sys.executable, "-m", "ickd_lib", "report", str(file)]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_texts_are_written_where_the_locale_is_not_utf_8(tmp_path):
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    call = [sys.executable, "-m", "ickd_lib"]
    options = {"capture_output": True, "text": True, "env": env, "cwd": tmp_path}
    line = f"compare --methods ce --seeds 2 {QUICK}"
    for words in (line.split(), ["report", "runs", "--out", "table.md"]):
        done = subprocess.run([*call, *words], **options)
        assert done.returncode == 0, done.stderr
    assert "±" in (tmp_path / "table.md").read_text("utf-8")
    run = next((tmp_path / "runs").glob("*ce*"))
    words = ["export", str(run), "--format", "safetensors", "--out", "w.safetensors", "--test-images", "9"]
    done = subprocess.run([*call, *words], **options)
    assert done.returncode == 0, done.stderr
    assert "×" in (tmp_path / "w.md").read_text("utf-8")


def test_ctrl_c_during_the_imports_is_one_line():
    program = """
import runpy, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
runpy.run_module("ickd_lib", run_name="__main__")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "stopped\n")


def test_a_run_without_flips_is_another_run_and_is_evaluated_as_it_was_trained(run, tmp_path):
    folder = write_folder(tmp_path / "signs", train=6)
    folders = set()
    for choice in ("", " --flip", " --no-flip"):
        status, out, err = run(f"train --method ce --dataset folder:{folder} --student resnet8 --epochs 1{choice}")
        assert status == 0 and ("are mirrored" in err) == (not choice)
        folders.add(last := out.rsplit("run folder: ")[1].strip())
    assert len(folders) == 2
    status, _, err = run(f"evaluate {last} --dataset folder:{folder}")
    assert status == 0 and "mirrored" not in err and "are not those of" not in err
