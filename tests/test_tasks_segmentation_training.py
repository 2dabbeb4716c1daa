"""Training on segmentation: what methods receive, IC-KD against a loop, every method, and the command line."""

import json
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import scenes
import torch
import torch.nn.functional as F
from torch import nn

from ickd_lib import data, methods, models, runs, tasks
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError, errors
from ickd_lib.tasks import Segmentation
from ickd_lib.training import Student
from ickd_lib.training.numerics import new_numerics
from ickd_lib.training.teacher_choice import TeacherNeeds

TASK, FCN = "segmentation", "resnet8-fcn"
PIXELWISE = {"dist", "dkd", "dml", "kd", "kdcl", "ls", "lskd", "lwf", "nkd", "tfkd", "ttm", "wttm"}
REFUSED = {
    "cskd": "method 'cskd' needs partner, which segmentation does not have",
    "simkd": "method 'simkd' needs pooled features, which segmentation does not have",
}


@pytest.fixture(scope="module")
def few():
    return scenes.small(TASK)


@pytest.fixture(scope="module")
def teacher(few):
    return scenes.expert(TASK, few)


@pytest.fixture(scope="module")
def bank(few, teacher):
    return MemoryBank.build(teacher, few.train, task=Segmentation(), precision="fp32")


# ------------------------------------------------------------------------------- what methods receive


def test_methods_that_compare_single_samples_compare_pixels():
    assert {name for name in methods.names() if methods.create(name).pixelwise} == PIXELWISE


@pytest.mark.parametrize(("name", "pixels"), [("kd(ce=0.5, kd=2)", True), ("ckd", False)])
def test_a_method_receives_pixels_or_regions(name, pixels, few, teacher):
    seen, history = scenes.watched(TASK, name, few, teacher)
    assert len(seen) == 3
    for context, terms in seen:
        student, other = context.student, context.teacher
        assert torch.equal(student.labels, other.labels) and torch.equal(student.key, other.key)
        assert not other.logits.requires_grad and student.logits.requires_grad
        batch = context.batch
        if pixels:
            region = student.key
            share = [int((region == r).sum()) for r in range(int(region.max()) + 1)]
            assert len(region) > 5 * len(share) and student.image.max() == len(batch) - 1
            rows = scenes.divergence(other.logits.double(), student.logits.double(), 4)
            assert terms["kd"] == pytest.approx(2 * sum(rows.tolist()) / len(rows), rel=1e-4)
            assert terms["ce"] == pytest.approx(0.5 * context.supervised.item())
        else:
            keys, labels = Segmentation().places(batch)
            assert torch.equal(student.key, keys) and torch.equal(student.labels, labels)
            assert student.pixels is not None and torch.equal(student.pixels.region, other.pixels.region)
    assert history.epochs[0]["terms"].keys() == terms.keys()


# --------------------------------------------------------------------------------------------- IC-KD

WEIGHTS = {"ce": 0.1, "kd": 0.9, "picd": 0.3, "nicd": 5.0}
VARIANTS = [
    {},
    {"residual": 0.5, "gate": 0.7},
    {"anchor": "aggregate", "aggregation_temperature": None},
    {"dynamic": True, "residual": -1.0},
    {"corrected": False},
]


def loop(context, bank, rows, variant):
    """The terms of IC-KD by a loop over the regions; `rows` [N, C] is the present content of the bank."""
    sums, count = dict.fromkeys(("kd", "picd", "nicd"), 0.0), 0
    mine, theirs, rows = context.student, context.teacher, rows.double()
    corrected = variant.get("corrected", True)
    for s, key in enumerate(mine.key.tolist()):
        row, label = bank.rows(torch.tensor([key])).item(), mine.labels[s].item()
        near, far, similarity = scenes.in_context(bank, row, 2, 3)
        far = [j for j in far if not corrected or rows[j].argmax() != label]
        weights = torch.tensor([similarity[j] for j in near]).double() / 0.05
        weights = torch.softmax(weights * (variant.get("aggregation_temperature", 1) is not None), 0)
        given = {j: scenes.exchanged(rows[j], label) if corrected else rows[j] for j in (*near, row)}
        aggregate = sum(w * given[j] for w, j in zip(weights, near, strict=True))
        gate = 1.0
        if "gate" in variant:
            p = theirs.logits[s].double().softmax(0)
            gate = 0.3 - 0.7 * (p * p.log()).sum() / math.log(len(p))
        own, other = (
            one.pixels.logits[mine.image[s]].double()[:, one.pixels.region[mine.image[s]] == s].T
            for one in (mine, theirs)
        )
        whole = theirs.logits[s].double()
        if corrected:
            whole, other = scenes.exchanged(whole, label), torch.stack([scenes.exchanged(z, label) for z in other])
        residual = variant.get("residual", 0) * (aggregate - given[row])
        sums["kd"] += scenes.divergence(other + residual, own).sum().item()
        sums["picd"] += (gate * scenes.divergence(aggregate, own)).sum().item()
        anchor = aggregate if "anchor" in variant else whole
        cosines = [F.cosine_similarity(mine.logits[s].double(), one, dim=0) for one in (anchor, *rows[far])]
        sums["nicd"] -= F.log_softmax(torch.stack(cosines) / 0.1, 0)[0].item()
        count += len(own)
    means = {"kd": sums["kd"] / count, "picd": sums["picd"] / count, "nicd": sums["nicd"] / len(mine.key)}
    return {"ce": 0.1 * context.supervised.item()} | {name: WEIGHTS[name] * value for name, value in means.items()}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_in_context_distillation_is_that_of_a_loop_over_regions(variant, few, teacher, bank):
    given = ", ".join(f"{name}={value!r}" for name, value in ({"positives": 2, "negatives": 3} | variant).items())
    recipe = replace(scenes.RECIPE, epochs=1 + ("dynamic" in variant), batch_size=12)
    seen, _ = scenes.watched(TASK, f"ickd({given})", few, teacher, recipe=recipe)
    rows = bank.logits.clone()
    for context, terms in seen:
        assert terms == pytest.approx(loop(context, bank, rows, variant), rel=2e-4)
        assert not (context.positives.index == context.student.key[:, None]).any()
        if "dynamic" in variant:
            rows[bank.rows(context.student.key)] = context.teacher.logits
    assert "dynamic" not in variant or (rows != bank.logits).any(1).float().mean() > 0.7


def test_random_in_context_samples_are_of_the_right_classes(few, teacher, bank):
    seen, _ = scenes.watched(TASK, "ickd(positives=2, negatives=3, order='random')", few, teacher)
    drawn, nearest = [], []
    for context, _ in seen:
        key, label = context.student.key, context.student.labels
        assert ((context.positives.index % 11) == label[:, None]).all()
        assert ((context.negatives.index % 11) != label[:, None]).all()
        assert (context.positives.index != key[:, None]).all()
        assert (context.positives.index[:, 0] != context.positives.index[:, 1]).all()
        drawn.append(context.positives.index)
        near, _ = bank.retrieve(bank.features[bank.rows(key)], label, key, positives=2, negatives=3)
        nearest.append(near.index)
    assert (torch.cat(drawn) != torch.cat(nearest)).any(1).float().mean() > 0.5


# -------------------------------------------------------------------------------------- all methods


@pytest.fixture(scope="module")
def trained(teacher):
    """Students of every method that is not refused; the last batch has no pixel that counts."""
    splits = scenes.small(TASK, 18, empty=2)
    return splits, scenes.all_methods(TASK, REFUSED, splits, teacher)


@pytest.mark.filterwarnings("ignore:std")  # of no samples
@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_or_is_refused(name, few, teacher, trained):
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]) as error:
            scenes.distill(TASK, scenes.group(TASK, name), few, teacher)
        assert "\n" not in str(error.value)
        return
    splits, histories = trained
    students = scenes.group(TASK, name)
    if students[0].name not in histories:
        histories = scenes.distill(TASK, students, splits, teacher)
    for student in students:
        history = histories[student.name]
        assert all(torch.isfinite(value).all() for value in history.network.state_dict().values())
        assert all(torch.isfinite(value).all() for value in history.method.parameters())
        (record,) = history.epochs
        assert all(math.isfinite(term) for term in record["terms"].values())
        assert history.summary["task"] == TASK and 0 <= history.summary["miou"] == history.summary["best_miou"] <= 1
        assert 0 <= history.summary["agreement"] <= 1 and "accuracy" not in history.summary


TOGETHER = ["cirkd", "ickd", "ickd_self"]


def test_students_in_one_pass_are_trained_as_if_alone(trained, teacher):
    splits, histories = trained
    for name in TOGETHER:
        (alone,) = scenes.distill(TASK, scenes.group(TASK, name), splits, teacher).values()
        assert scenes.same_weights(alone, histories[f"{name}-0"]), name


def test_a_stopped_run_is_resumed_exactly(trained, teacher, tmp_path, monkeypatch):
    splits, histories = trained
    students = [student for name in TOGETHER for student in scenes.group(TASK, name)]
    options = {"runs": tmp_path, "checkpoint_seconds": 0}
    scenes.interrupted(monkeypatch, 4, lambda: scenes.distill(TASK, students, splits, teacher, **options))
    assert {(row["state"], row["task"]) for row in runs.overview(tmp_path)} == {("unfinished", TASK)}
    again = scenes.distill(TASK, students, splits, teacher, **options)
    for name, history in again.items():
        assert scenes.same_weights(history, histories[name]), name
    text = runs.table(runs.finished([tmp_path]))
    assert "| method | seeds | mIoU, % | best, % | pixels, % | agrees with teacher, % |" in text


def test_a_student_of_another_stride_is_compared_with_its_teacher(few, teacher):
    """ResNet8 at stride 4 is the teacher of a network whose maps have stride 8."""

    layers = [nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 11, 1)]
    student = models.wrap_segmentation(nn.Sequential(*layers), num_classes=11)
    student.classes = few.train.classes
    history = scenes.distill(TASK, [Student(student, scenes.quick("ickd"), name="a")], few, teacher)["a"]
    assert student.stride == 8 and math.isfinite(history.epochs[0]["loss"])


def test_steps_are_not_captured(few, teacher):
    state = Mock(recipe=Mock(epochs=1), steps=1)
    given = {"needs": TeacherNeeds.of([methods.create("kd")]), "device": torch.device("cuda"), "precision": "fp32"}
    given |= {"bank_precision": "", "cached": None, "capture": True}
    for task, splits, captured in (
        (tasks.create("classification"), data.load("digits", labels=60), True),
        (Segmentation(), few, False),
    ):
        assert task.capturable is captured
        assert new_numerics([state], splits.train, teacher, task, **given)["captured"] is captured


@pytest.mark.parametrize("method", ["ickd", "ickd(order='random')", "ickd(query='view')"])
def test_classes_with_few_regions_have_fewer_positives(method, few, teacher, monkeypatch, capsys):
    monkeypatch.setattr(errors, "_noticed", set())
    (history,) = scenes.distill(TASK, [Student(FCN, method)], few, teacher).values()
    assert all(math.isfinite(value) for value in history.epochs[0]["terms"].values())
    assert "the bank has fewer than 8 other rows of class " in capsys.readouterr().err


# ---------------------------------------------------------------------------------- the command line

QUICK = "--task segmentation --dataset scenes --labels 24 --epochs 1 --batch-size 8 --device cpu"
SHORT = "--teacher resnet8-fcn --teacher-epochs 1"


def test_the_command_line_trains_compares_and_reports(tmp_path, monkeypatch, capsys):
    run = scenes.command_line(tmp_path, monkeypatch, capsys)
    out = run(f"compare --methods ce kd --student resnet8-fcn --seeds 2 {QUICK} {SHORT}")
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert "| method | seeds | mIoU, % | best, % | pixels, % | agrees with teacher, % |" in rows[0]
    assert [row.split(" | ")[:2] for row in rows[1:]] == [["| ce", "2"], ["| kd", "2"]]
    assert all(row.count("±") >= 3 for row in rows[1:])
    out = run(f"train --method ickd(positives=1,negatives=3) --student resnet8-fcn --name a {QUICK} {SHORT}")
    summary = json.loads(out[: out.index("run folder")])
    assert summary["task"] == TASK and summary["train_images"] == 24
    found = json.loads(run("evaluate runs/a --device cpu"))  # on the data of the run
    assert found["miou"] == pytest.approx(summary["miou"]) and found["pixel_accuracy"] > 0
    shown = run("report runs --baseline ce --figure apart.svg")
    assert "points of test mIoU" in (tmp_path / "apart.svg").read_text()
    assert "| ickd(positives=1, negatives=3) | 1 |" in shown and "| ce | 2 |" in shown and "mIoU, %" in shown
    numbers = json.loads(run(f"bank {QUICK} {SHORT} --k 2"))
    assert numbers["rows"] > 60 and 0 <= numbers["precision@2"] <= 1 and numbers["features"] == 64
    assert len(MemoryBank.load(numbers["bank"])) == numbers["rows"]
