"""The benchmarks measure what they say, at a small scale."""

import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ickd_lib import methods, models, results, runtime
from ickd_lib.training import Recipe, Student

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import cifar100
import loops
import machine
import retrieval
import speed

RECIPE = Recipe(epochs=2, batch_size=16, schedule="cosine")


@pytest.fixture(scope="module")
def splits():
    return loops.made_up(100, 16, classes=10)


def test_the_usual_loop_starts_from_the_same_student_and_sees_what_ours_sees(splits):
    teacher, _ = loops.untrained("resnet8", splits, torch.device("cpu"))
    with loops.quiet():
        loop = loops.Usual(teacher, "resnet8", splits.train, torch.device("cpu"), RECIPE, seed=3)
        with runtime.seeded(3, "network"):
            ours = models.create("resnet8", **splits.train.spec)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), loop.student.parameters(), strict=True))
        pixels, labels = next(iter(loop.loader))
        teaching = loop.teacher(pixels).logits
        # The transforms normalise, so an image that they neither crop nor mirror is the network's own view of it.
        plain = (splits.train.pixels() - teacher.mean) / teacher.std
        pairs = (plain[:, None, :, 8:24, 8:24] == pixels[None, :, :, 8:24, 8:24]).flatten(2).all(2).nonzero()
        for mine, theirs in pairs.tolist():
            assert splits.train.labels[mine] == labels[theirs]
        loop.epoch()
    assert loop.done == len(loop.loader) == splits.train.steps(16)
    assert teaching.shape == (16, 10)
    assert not any(torch.equal(a, b) for a, b in zip(ours.parameters(), loop.student.parameters(), strict=True))


def test_a_step_takes_time_with_and_without_a_memo(splits, tmp_path):
    teacher, bank = loops.untrained("resnet8", splits, torch.device("cpu"))
    given = {"teacher": teacher, "bank": bank, "device": "cpu", "recipe": RECIPE}
    few = [Student("resnet8", "kd"), Student("resnet8", "ickd(positives=2, negatives=4)")]
    assert loops.step_seconds(few, splits, **given) > 0
    assert loops.step_seconds(few[:1], splits, memo=tmp_path, **given) > 0


def test_the_floor_counts_operations_and_bytes():
    network = models.create("resnet8", 10)
    convolution = sum(
        m.weight.numel() * side * side
        for m, side in zip((network.conv1, network.layer1[0].conv1, network.layer1[0].conv2), (32, 32, 32), strict=True)
    )
    forward, moved = machine.work(network, (32, 32), training=False, bytes_each=4)
    both, back = machine.work(network, (32, 32), training=True, bytes_each=4)
    assert forward > 2 * convolution and 2.5 * forward < both < 3 * forward  # the images need no gradient
    assert back == 3 * moved > 0
    slow = {"operations_per_second": 1e9, "bytes_per_second": 1e3}
    assert machine.floor(network, None, (32, 32), slow, "fp32") == pytest.approx(back / 1e3)
    fast = {"operations_per_second": 1e9, "bytes_per_second": 1e15}
    assert machine.floor(network, network, (32, 32), fast, "fp32") == pytest.approx((both + forward) / 1e9)


def test_retrieval_is_measured_beside_faiss_where_it_is():
    pytest.importorskip("faiss", reason="pip install faiss-cpu for the comparison with faiss")
    found = retrieval.measure(rows=3000, features=16)
    assert set(found["seconds_of"]) == {"ours", "faiss, same constraints", "faiss, no constraints"}
    assert min(found["agreement_with_faiss"]) > 0.999  # faiss orders near ties by its own rounding


@pytest.mark.parametrize("plan", cifar100.PLANS)
@pytest.mark.parametrize("stage", ["table", "tune"])
def test_every_run_of_the_table_can_be_made(plan, stage):
    for teacher, student, _ in cifar100.PLANS[plan].pairs:
        assert {teacher, student} <= set(models.names())
        for method in cifar100.of_stage(stage, cifar100.PLANS[plan], (teacher, student)):
            assert methods.create(method)


def test_what_a_gpu_cannot_replay_trains_by_itself():
    methods_of = ["kd", "ickd(query='view')", "ickd", "ckd"]
    assert cifar100.passes(methods_of, 2) == [["kd", "ickd"], ["ckd"], ["ickd(query='view')"]]


def test_teachers_and_unfinished_students_come_back_from_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "PART", 1000)
    runs, parts, back = tmp_path / "runs", tmp_path / "parts", tmp_path / "back"
    teacher, cut, student = (runs / name for name in ("teachers/a", "teachers/b", "small/table/c"))
    done = runs / "small/table/d"
    for folder in (teacher, cut, student, done):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "student.safetensors").write_bytes(torch.arange(600).numpy().tobytes())
        (folder / "checkpoint.pt").write_bytes(b"state")
    for folder in (teacher, done):
        (folder / "summary.json").write_text("{}")
    parts.mkdir()
    (parts / "runs.tar.99").write_bytes(b"of a longer archive before")
    cifar100.keep(runs, parts)
    assert max(part.stat().st_size for part in parts.iterdir()) == 1000
    here = back / "teachers/b"
    here.mkdir(parents=True)
    cifar100.restore(parts, back)
    assert not any(here.iterdir())  # what is there stays as it is
    for folder in (teacher, student):
        again = back / folder.relative_to(runs)
        assert (again / "student.safetensors").read_bytes() == (folder / "student.safetensors").read_bytes()
        assert (again / "checkpoint.pt").exists() == (folder == student)
    assert not (back / done.relative_to(runs)).exists()


@pytest.fixture
def tiny(monkeypatch, cifar_root, tmp_path):
    """Runs the script on a plan of an epoch, on a few of the real images: call(further arguments) -> exit status."""
    brief = Recipe(epochs=1, batch_size=50, lr=0.01, schedule="cosine")
    plan = cifar100.Plan(
        pairs=(("resnet8", "resnet8", 2),),
        **dict.fromkeys(("teacher", "student", "tuner", "short"), brief),
        labels=100,
        others=("ce", "kd"),
    )
    whole = cifar100.data.load

    def few(*given, **options):
        return whole(*given, **options | {"labels": 100, "classes": ["fish"]})

    def call(*further):
        argv = ["cifar100.py", "--data-root", str(cifar_root), "--plan", "tiny", "--device", "cpu", "--together", "2"]
        monkeypatch.setattr(sys, "argv", [*argv, "--runs", str(tmp_path / "runs"), *further])
        return cifar100.main()

    monkeypatch.setitem(cifar100.PLANS, "tiny", plan)
    monkeypatch.setattr(cifar100.data, "load", few)
    return call


def test_the_table_trains_its_teacher_and_students_once(tiny, monkeypatch, tmp_path, capsys):
    """From nothing to the report; a second call trains nothing, nor does one that has lost all but OUT."""
    assert tiny() == 0
    out = tmp_path / "runs/tiny/json"
    assert (
        len(list((out / "table").iterdir())) == 2 * 6
    )  # ce, kd, ickd with retrieved and random samples, dkd+kd, dkd+ickd
    (teacher,) = (out / "teachers").iterdir()
    assert runtime.read_json(teacher)["summary"]["accuracy"] > 0
    assert capsys.readouterr().out.count(" seed 1: ") == 6
    (tmp_path / "runs/teachers").rename(tmp_path / "lost")
    monkeypatch.setattr(cifar100.training.loop, "Steps", None)  # whoever trains now fails
    assert tiny() == 0
    assert capsys.readouterr().out == ""
    table = results.table(results.finished([out / "table"]), baseline="kd")
    assert table.count("| 2 |") == 6 and table.count(" to +") + table.count(" to -") == 5


def test_tuning_shows_the_accuracy_on_held_out_images(tiny, tmp_path):
    assert tiny("--stage", "tune", "--methods", "kd", "--seeds", "0", "--out", str(tmp_path / "out")) == 0
    assert "on images held out of train" in results.table(results.finished([tmp_path / "out/tune"]))


def test_a_student_that_diverges_is_named_and_keeps_no_other_from_its_end(tiny, tmp_path, capsys):
    assert tiny("--methods", "kd(kd=1e38)", "ce", "--seeds", "0") == 1
    said = capsys.readouterr()
    assert said.out.startswith("ce seed 0: ") and said.err.count("resnet8-kd-kd=1e+38") >= 1
    assert [one["method"] for one in results.finished([tmp_path / "runs/tiny/json/table"])] == ["ce"]


def test_what_is_finished_when_a_stop_comes_is_recorded(tiny, monkeypatch, tmp_path):
    assert tiny("--methods", "ce", "--seeds", "0") == 0  # and the teacher
    finish = cifar100.training.loop.Learner.finish

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        finish(*given)

    monkeypatch.setattr(cifar100.training.loop.Learner, "finish", interrupted)
    assert tiny("--methods", "kd", "--seeds", "0") == cifar100.UNFINISHED
    assert {one["method"] for one in results.finished([tmp_path / "runs/tiny/json/table"])} == {"ce", "kd"}


def test_speed_measures_each_part_once_and_goes_on_where_it_was_cut(monkeypatch, tmp_path):
    asked = []
    rates = {"operations_per_second": 1e9, "bytes_per_second": 1e9}

    def cut():
        asked.append("start")
        if len(asked) == 1:
            raise KeyboardInterrupt
        return {"seconds": 1}

    monkeypatch.setattr(speed, "made_up", partial(loops.made_up, classes=10))
    monkeypatch.setattr(speed, "PAIRS", (("resnet8", "resnet8"),))
    monkeypatch.setattr(speed.machine, "rates", lambda *_: rates)
    monkeypatch.setattr(speed.retrieval, "measure", lambda **_: {})
    monkeypatch.setattr(speed.start, "measure", cut)
    out = tmp_path / "speed.json"
    call = ["speed.py", "--rounds", "1", "--steps", "3", "--together", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(KeyboardInterrupt):
        speed.main()
    first = runtime.read_json(out)["resnet8→resnet8"]
    assert all(seconds[0] > 0 for seconds in first["seconds_per_step"].values())
    assert {"kd", "ickd", "three in one pass", "kd, full memo", "many, full memo"} < set(first["seconds_per_step"])
    assert first["2_students_times_one"] > 0 and 0.99 < sum(first["profile"]["kd"].values()) < 1.01
    monkeypatch.setattr(speed, "steps_of", None)
    speed.main()
    again = runtime.read_json(out)
    assert again["resnet8→resnet8"] == first and len(asked) == 2
    speed.main()
    assert len(asked) == 2
