"""Training on detection: what methods receive, IC-KD and CKD against loops, every method, and the command line."""

import copy
import json
import math

import pytest
import scenes
import test_models_dense_one_stage as one_stage
import torch
import torch.nn.functional as F

from ickd_lib import losses, methods, models, runs, tasks
from ickd_lib.memory import MemoryBank
from ickd_lib.models import fpn
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Detection, Samples
from ickd_lib.training import Student

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")
TASK = "detection"
LINEAR = "needs a linear classifier of the features"
NEEDED = {"cirkd": "pixels", "cwd": "pixels", "cskd": "partner", "mlkd": "strong", "simkd": "pooled features"}
NEEDED |= dict.fromkeys(("dml", "ickd_online", "kdcl"), "peers") | dict.fromkeys(("ickd_self", "pskd"), "earlier")
REFUSED = {name: f"method '{name}' needs {need}, which detection does not have" for name, need in NEEDED.items()}
REFUSED |= {"catkd": LINEAR}


@pytest.fixture(scope="module", autouse=True)
def few_proposals():
    """Detectors with 16 proposals an image, so that a step is fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fpn.LIGHT, "box_batch_size_per_image", 16)
        yield


@pytest.fixture(scope="module")
def few():
    return scenes.small(TASK)


@pytest.fixture(scope="module")
def teacher(few):
    return scenes.expert(TASK, few)


@pytest.fixture(scope="module")
def bank(few, teacher):
    return MemoryBank.build(teacher, few.train, task=Detection(), precision="fp32")


# ------------------------------------------------------------------------------- what methods receive


@pytest.mark.parametrize("name", ["ckd(ckd=3)", "kd(ce=0.5, kd=2)", "picd(positives=2)+ckd(ckd=3)"])
def test_methods_without_a_bank_compare_all_proposals(name, few, teacher):
    """CKD against a loop over pairs, KD against one over proposals; also beside a method that uses a bank."""
    seen, _ = scenes.watched(TASK, name, few, teacher) if "+" not in name else combined(name, few, teacher)
    assert len(seen) == 3
    for context, terms in seen:
        mine, theirs = context.student, context.teacher
        assert len(mine.logits) == len(theirs.logits) > 100 and (mine.key == -1).any() and (mine.key >= 0).any()
        assert torch.equal(mine.key, theirs.key) and not theirs.logits.requires_grad
        student, target = mine.logits.detach().double(), theirs.logits.double()
        if "kd" in terms:
            rows = scenes.divergence(target, student, 4)
            assert terms["kd"] == pytest.approx(2 * sum(rows.tolist()) / len(rows), rel=1e-4)
            assert terms["ce"] == pytest.approx(0.5 * context.supervised.item())
        else:
            total, unit = 0.0, [one / one.norm() for one in student]
            for i, one in enumerate(target):
                scores = torch.stack([(one / one.norm() * other).sum() for other in unit])
                total += (scores.exp().sum().log() - scores[i]).item()
            assert terms["ckd"] == pytest.approx(3 * total / len(unit), rel=1e-4)


def combined(name, few, teacher):
    """Train a combination, and return what its last part received."""
    method, seen = methods.create(name), []

    class Watching(type(method.parts[-1])):
        def forward(self, context):
            terms = super().forward(context)
            seen.append((context, {key: term.item() for key, term in terms.items()}))
            return terms

    method.parts[-1].__class__ = Watching
    return seen, scenes.distill(TASK, [Student("resnet8-fpn", method, name="a")], few, teacher)


# --------------------------------------------------------------------------------------------- IC-KD


def loop(context, bank, rows, residual, corrected):
    """The terms of IC-KD by a loop over the matched proposals; `rows` [N, C + 1] is the present content of the bank."""
    mine, theirs, rows = context.student, context.teacher, rows.double()
    kd, picd, nicd = [], [], []
    exchanged = scenes.exchanged if corrected else lambda logits, label: logits
    for s, (key, label) in enumerate(zip(mine.key.tolist(), mine.labels.tolist(), strict=True)):
        row = bank.rows(torch.tensor([key])).item()
        near, far, similarity = scenes.in_context(bank, row, 2, 3)
        far = [j for j in far if not corrected or rows[j].argmax() != label]
        weights = torch.softmax(torch.tensor([similarity[j] for j in near]).double() / 0.05, 0)
        aggregate = sum(w * exchanged(rows[j], label) for w, j in zip(weights, near, strict=True))
        own, other = mine.logits[s].detach().double(), exchanged(theirs.logits[s].double(), label)
        kd.append(scenes.divergence(other + residual * (aggregate - exchanged(rows[row], label)), own))
        picd.append(scenes.divergence(aggregate, own))
        cosines = [F.cosine_similarity(own, one, dim=0) for one in (other, *rows[far])]
        nicd.append(-F.log_softmax(torch.stack(cosines) / 0.1, 0)[0])
    if not residual:  # all proposals, those on the background too
        labels = theirs.whole.labels.tolist()
        every = [exchanged(z, label) for z, label in zip(theirs.whole.logits.double(), labels, strict=True)]
        kd = scenes.divergence(torch.stack(every), mine.whole.logits.detach().double())
    means = [torch.stack(list(one)).mean().item() for one in (kd, picd, nicd)]
    terms = {
        name: weight * mean for name, weight, mean in zip(("kd", "picd", "nicd"), (0.9, 0.3, 5), means, strict=True)
    }
    return {"ce": 0.1 * context.supervised.item(), **terms}


@pytest.mark.parametrize("variant", ["residual=0.0", "residual=0.5, dynamic=True", "residual=0.0, corrected=False"])
def test_in_context_distillation_is_that_of_a_loop_over_matched_proposals(variant, few, teacher, bank):
    residual, dynamic = float(variant[9:12]), "dynamic" in variant
    recipe = scenes.Recipe(epochs=1 + dynamic, lr=0.02, schedule="cosine", batch_size=12)
    seen, _ = scenes.watched(TASK, f"ickd(positives=2, negatives=3, {variant})", few, teacher, recipe=recipe)
    rows, several = bank.logits.clone(), 0
    for context, terms in seen:
        assert terms == pytest.approx(loop(context, bank, rows, residual, "corrected" not in variant), rel=2e-4)
        key = context.student.key
        assert (key >= 0).all() and len(key) < len(context.student.whole.key)
        assert (context.positives.index != key[:, None]).all()
        for one in key.unique() if dynamic else ():
            visited = context.teacher.logits[key == one]
            rows[bank.rows(one[None])] = visited.mean(0)
            several += len(visited) > 1
    assert not dynamic or (several > 0 and (rows != bank.logits).any(1).float().mean() > 0.7)


# -------------------------------------------------------------------------------------- all methods


@pytest.fixture(scope="module")
def trained(teacher):
    """Students of every method that is not refused; the images of the last batch have no object."""
    splits = scenes.small(TASK, 18, empty=2)
    return splits, scenes.all_methods(TASK, REFUSED, splits, teacher)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_or_is_refused(name, few, teacher, trained):
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]) as error:
            scenes.distill(TASK, scenes.group(TASK, name), few, teacher)
        assert "\n" not in str(error.value)
        return
    (student,) = scenes.group(TASK, name)
    history = trained[1][student.name]
    assert all(torch.isfinite(value).all() for value in history.network.state_dict().values())
    assert all(torch.isfinite(value).all() for value in history.method.parameters())
    (record,) = history.epochs
    assert all(math.isfinite(term) for term in record["terms"].values()) and record["terms"]["boxes"] > 0
    assert history.summary["task"] == TASK and 0 <= history.summary["ap"] == history.summary["best_ap"] <= 1
    assert 0 <= history.summary["agreement"] <= 1 and "accuracy" not in history.summary


TOGETHER = ["ckd", "crd", "ickd"]


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
    for name, history in scenes.distill(TASK, students, splits, teacher, **options).items():
        assert scenes.same_weights(history, histories[name]), name
    text = runs.table(runs.finished([tmp_path]))
    assert "| method | seeds | AP | best AP | AP50 | AP75 | agrees with teacher, % |" in text


@pytest.mark.parametrize("kind", one_stage.KINDS)
def test_one_stage_detectors_are_trained(kind, few):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = (one_stage.small(kind, 10, score_thresh=0.3) for _ in range(2))
    for network in (student, teacher):
        network.classes, network.samples = few.train.classes, 24
    names = ["ce", "kd", "ckd", "ickd(positives=2, negatives=3)"]
    students = [Student(copy.deepcopy(student), name, name=f"s{i}") for i, name in enumerate(names)]
    histories = scenes.distill(TASK, students, few, teacher.eval())
    expected = [{"ce"}, {"ce", "kd"}, {"ce", "ckd"}, {"ce", "kd", "picd", "nicd"}]
    for history, terms in zip(histories.values(), expected, strict=True):
        (record,) = history.epochs
        assert set(record["terms"]) == terms | {"boxes"}
        assert all(math.isfinite(value) and value > 0 for value in record["terms"].values())
        assert 0 <= history.summary["ap"] <= 1 and 0 <= history.summary["agreement"] <= 1
        before = student.state_dict()
        assert any((value != before[name]).any() for name, value in history.network.state_dict().items())


def test_negatives_of_each_class_leave_out_the_background(few, teacher, bank):
    """No row of the bank has the background, so a sample has nine other classes and not ten."""
    student = Student("resnet8-fpn", "ickd(positives=2, per_class=True)", name="a")
    history = scenes.distill(TASK, [student], few, teacher, bank=bank)["a"]
    assert history.method.retrieval.negatives == 9 and math.isfinite(history.epochs[0]["loss"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_images_without_any_object_are_refused_before_training(split, few):
    none = scenes.emptied(few.test, torch.arange(len(few.test)))
    with pytest.raises(InputError, match="none of the 6 images of scenes/test has an object that counts") as error:
        scenes.distill(TASK, [Student("resnet8-fpn")], few._replace(**{split: none}))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has an object that counts"):
        MemoryBank.build(models.create("resnet8-fpn", **few.train.spec), none, task=Detection())


def test_the_memories_of_crd_get_the_mean_of_the_proposals_on_a_box():
    keys, values = torch.tensor([7, 3, 7, 5]), torch.tensor([[1.0, 0], [2, 2], [3, 4], [5, 5]])
    found, mean = tasks.mean_of_each(keys, values)
    assert found.tolist() == [3, 5, 7] and mean.tolist() == [[2, 2], [5, 5], [2, 2]]


def test_angles_are_those_of_some_samples():
    student, teacher = (Samples(torch.randn(9, 3), torch.randn(9, 4), *torch.zeros(3, 9).long()) for _ in range(2))
    context = methods.Context(None, student, torch.tensor(0.0), teacher)
    every, some = (methods.create(f"rkd(most={most})") for most in (9, 4))
    terms, fewer = every(context), some(context)
    assert terms["distance"] == fewer["distance"] and terms["angle"] != fewer["angle"]
    assert terms["angle"] == 50 * losses.rkd_angle(student.features, teacher.features)


# ---------------------------------------------------------------------------------- the command line

QUICK = "--task detection --dataset scenes --labels 24 --epochs 1 --batch-size 8 --device cpu"
SHORT = "--teacher resnet8-fpn --teacher-epochs 1"


def test_the_command_line_trains_compares_and_reports(tmp_path, monkeypatch, capsys):
    run = scenes.command_line(tmp_path, monkeypatch, capsys)
    out = run(f"compare --methods ce kd --student resnet8-fpn --seeds 2 {QUICK} {SHORT}")
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert "| method | seeds | AP | best AP | AP50 | AP75 | agrees with teacher, % |" in rows[0]
    assert [row.split(" | ")[:2] for row in rows[1:]] == [["| ce", "2"], ["| kd", "2"]]
    assert all(row.count("±") >= 4 for row in rows[1:])
    out = run(f"train --method ickd(positives=1,negatives=3) --student resnet8-fpn --name a {QUICK} {SHORT}")
    summary = json.loads(out[: out.index("run folder")])
    assert summary["task"] == TASK and summary["train_images"] == 24
    found = json.loads(run("evaluate runs/a --dataset scenes --device cpu"))
    assert found["ap"] == pytest.approx(summary["ap"]) and "agreement" not in found
    shown = run("report runs --baseline ce")
    assert "| ickd(positives=1, negatives=3) | 1 |" in shown and "| ce | 2 |" in shown and " AP50 " in shown
    numbers = json.loads(run(f"bank {QUICK} {SHORT} --k 2"))
    assert numbers["rows"] > 60 and 0 <= numbers["precision@2"] <= 1 and numbers["features"] == 128
    assert len(MemoryBank.load(numbers["bank"])) == numbers["rows"]
