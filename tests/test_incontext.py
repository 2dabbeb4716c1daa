"""Variants of in-context distillation in training: exact resume, dynamic banks, controls, banks of more images."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_training import Interrupted, distill, know_small_architectures, same, stop_at

from ickd_lib import data, methods, models, runtime
from ickd_lib.memory import MemoryBank, require_fit
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, Student
from ickd_lib.training.records import described

pytestmark = pytest.mark.usefixtures("untouched_generator")
RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=50)  # steps of 50, 50 and 20 images
VARIANTS = [
    "nicd(form='relational')",
    "nicd(form='relational', positives=0)",
    "ickd(residual=0.5)",
    "ickd(gate=0.7)",
    "ickd(dynamic=True)",
    "ickd(dynamic=True, query='view', residual=0.3)",
    "ickd(dynamic=True, order='class')",
    "ickd(dynamic=True, order='random', redraw=True)",
    "ickd(dynamic=True, warmup=0.5)+crd",
    "picd+nicd(order='random')",
    "ickd+ickd_self(positives=3, negatives=5)",
]


@pytest.fixture(scope="module", autouse=True)
def small_architectures():
    with pytest.MonkeyPatch.context() as patch:
        know_small_architectures(patch)
        yield


def students(names, seed=3):
    return [Student("dropping", name, seed, f"s{i}") for i, name in enumerate(names)]


def train(those, splits, teacher, **options):
    return distill(those, splits, teacher, **{"recipe": RECIPE} | options)


def watched(splits, teacher, choices, **options):
    """The contexts of all steps of a student."""
    seen = []

    class Watching(methods.ICKD):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    made = [Student("dropping", Watching(**choices), options.pop("seed", 0))]
    train(made, splits, teacher, **options)
    return seen


# --------------------------------------------------------------------------------- exactness


@pytest.fixture(scope="module")
def whole(digits, teacher):
    """All variants, trained in one call without a stop."""
    return train(students(VARIANTS), digits, teacher)


@pytest.mark.parametrize("position", range(len(VARIANTS)))
def test_a_student_among_others_is_a_student_alone(position, whole, digits, teacher):
    (alone,) = train(students(VARIANTS)[position : position + 1], digits, teacher).values()
    among = whole[f"s{position}"]
    assert same(among.network, alone.network)
    assert [r["loss"] for r in among.epochs] == [r["loss"] for r in alone.epochs]


def test_no_two_variants_train_alike(whole, digits, teacher):
    found = [*whole.values(), *train(students(["ickd", "nicd"]), digits, teacher).values()]
    assert not any(same(one.network, other.network) for i, one in enumerate(found) for other in found[:i])
    assert all(r["loss"] == r["loss"] for history in found for r in history.epochs)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_stopped_at_any_step_and_resumed_the_weights_are_the_same(count, whole, digits, teacher, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, count * len(VARIANTS) + 5)
        with pytest.raises(Interrupted):
            train(students(VARIANTS), digits, teacher, runs=tmp_path, checkpoint_seconds=0)
    resumed = train(students(VARIANTS), digits, teacher, runs=tmp_path)
    for name, history in whole.items():
        assert same(history.network, resumed[name].network), history.summary["method"]


def test_a_dynamic_bank_with_a_teacher_cache(digits, teacher, tmp_path, monkeypatch):
    names = ["ickd(dynamic=True)", "ickd(dynamic=True, query='view')"]
    cached = train(students(names), digits, teacher, teacher_cache=tmp_path / "cache")
    plain = train(students(names), digits, teacher)
    for name, history in cached.items():
        for ours, theirs in zip(history.epochs, plain[name].epochs, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(Interrupted):
            options = {"runs": tmp_path / "runs", "checkpoint_seconds": 0}
            train(students(names), digits, teacher, teacher_cache=tmp_path / "cache", **options)
    resumed = train(students(names), digits, teacher, teacher_cache=tmp_path / "cache", runs=tmp_path / "runs")
    assert all(same(history.network, resumed[name].network) for name, history in cached.items())


# --------------------------------------------------------------------------------- dynamic banks


@pytest.mark.parametrize("query", ["row", "view"])
def test_a_row_holds_the_teachers_output_for_the_view_of_the_last_visit(query, digits, teacher):
    clean = MemoryBank.build(teacher, digits.train, precision="fp32")
    table, unchanged = clean.table(positives=4, negatives=9), clean.logits.clone()
    hand = MemoryBank.build(teacher, digits.train, precision="fp32")
    choices = {"dynamic": True, "query": query, "positives": 4, "negatives": 9, "residual": 0.5}
    seen = watched(digits, teacher, choices, bank=clean)
    assert len(seen) == 6
    for context in seen:
        rows, near, far = hand.rows(context.student.key), context.positives, context.negatives
        if query == "row":
            expected = [hand.gather(one[rows]) for one in table]
        else:
            given = context.teacher.features, context.student.labels, context.student.key
            expected = hand.retrieve(*given, positives=4, negatives=9)
        for found, samples in zip((near, far), expected, strict=True):
            assert torch.equal(found.index, samples.index)
            torch.testing.assert_close(found.similarity, samples.similarity)
        assert torch.equal(near.logits, expected[0].logits) and torch.equal(near.own, hand.logits[rows])
        held = F.normalize(expected[1].logits, dim=-1) if query == "row" else expected[1].logits
        assert far.unit == (query == "row")
        torch.testing.assert_close(far.logits, held)
        hand.update(context.student.key, context.teacher.features, context.teacher.logits)
    assert not torch.equal(hand.logits, unchanged) and torch.equal(clean.logits, unchanged)


def test_class_means_follow_what_is_written(digits, teacher):
    hand = MemoryBank.build(teacher, digits.train, precision="fp32")
    for context in watched(digits, teacher, {"dynamic": True, "order": "class"}):
        near, far = hand.class_samples(context.student.key, context.student.labels)
        torch.testing.assert_close(context.positives.logits, near.logits)
        torch.testing.assert_close(context.negatives.logits, far.logits)
        # Without a search by view, features stay those of the images without augmentation.
        own = hand.features[hand.rows(context.student.key)] * hand.norms[hand.rows(context.student.key), None]
        hand.update(context.student.key, own, context.teacher.logits)


# --------------------------------------------------------------------------------- controls


def test_nearest_samples_are_searched_once_while_random_ones_are_drawn_anew(digits, teacher, bank, monkeypatch):
    """A bank with more rows than training samples does not keep the results of a search."""
    few = digits._replace(train=digits.train.few(60, 0))
    searches, table = [], MemoryBank.table
    monkeypatch.setattr(MemoryBank, "table", lambda *a, **given: searches.append(given) or table(*a, **given))
    choices = {"order": "random", "negatives_order": "nearest", "redraw": True, "positives": 2, "negatives": 9}
    seen = watched(few, teacher, choices, bank=bank, seed=0)
    assert len(searches) == 1 and searches[0]["positives"] == 0 and searches[0]["negatives"] == 9
    assert len({tuple(sorted(c.positives.index.flatten().tolist())) for c in seen}) == len(seen) > 2


@pytest.mark.parametrize(("order", "negatives_order"), [("random", "nearest"), ("nearest", "random")])
@pytest.mark.parametrize("redraw", [False, True])
def test_positives_and_negatives_are_controlled_apart(order, negatives_order, redraw, digits, teacher, bank):
    choices = {"order": order, "negatives_order": negatives_order, "redraw": redraw, "positives": 4, "negatives": 9}

    def drawn(seed):
        """The in-context samples of each key in each epoch: {(key, epoch): [positives, negatives]}."""
        found = {}
        for step, context in enumerate(watched(digits, teacher, choices, bank=bank, seed=seed)):
            both = zip(context.positives.index.tolist(), context.negatives.index.tolist(), strict=True)
            for key, pair in zip(context.student.key.tolist(), both, strict=True):
                found[key, step // 3] = pair
        return found

    label = dict(zip(bank.index.tolist(), bank.labels.tolist(), strict=True))
    first, again, other = drawn(0), drawn(0), drawn(1)
    nearest = {key: bank.table(positives=4, negatives=9)[i].rows for i, key in enumerate(("near", "far"))}
    assert first == again
    for (key, epoch), pair in first.items():
        row = int(bank.rows(torch.tensor([key]))[0])
        for i, (kind, chosen) in enumerate((("near", order), ("far", negatives_order))):
            usual = bank.index[nearest[kind][row]].tolist()
            assert all((label[one] == label[key]) == (i == 0) for one in pair[i])
            assert key not in pair[i] and len(set(pair[i])) == len(pair[i])
            if chosen == "nearest":
                assert pair[i] == usual == other[key, epoch][i]
    random = 0 if order == "random" else 1

    def share(equal):
        return sum(equal) / len(digits.train)

    assert share(first[key, 0][random] == other[key, 0][random] for key in label) < 0.1, "another seed, other samples"
    assert share(first[key, 0][random] == first[key, 1][random] for key in label) < 0.1 or not redraw
    assert redraw or all(first[key, 0] == first[key, 1] for key in label)


# --------------------------------------------------------------------------------- banks of more images


@pytest.fixture(scope="module")
def everything():
    """All training images of the digits: those of the fixture `digits` and 880 others."""
    return data.load("digits")


@pytest.fixture(scope="module")
def large(teacher, digits, everything):
    """A bank of all images; only the labels of the student's are known."""
    return MemoryBank.build(teacher, everything.train, labels=digits.train.index, precision="fp32")


def test_labels_that_are_not_known_are_the_teachers_predictions(teacher, digits, everything, large):
    predicted = MemoryBank.build(teacher, everything.train, labels="teacher", precision="fp32")
    given = MemoryBank.build(teacher, everything.train, precision="fp32")
    assert torch.equal(predicted.labels, predicted.logits.argmax(1))
    assert torch.equal(given.labels, everything.train.labels[everything.train.index.argsort()])
    known = torch.isin(large.index, digits.train.index)
    assert torch.equal(large.labels, torch.where(known, given.labels, predicted.labels))
    assert "labels" not in given.source and large.source["labels"].startswith("120 given")
    assert len({bank.source.get("labels") for bank in (given, predicted, large)}) == 3
    with pytest.raises(InputError, match="unknown labels 'teachr'; did you mean 'teacher'"):
        MemoryBank.build(teacher, everything.train, labels="teachr")
    with pytest.raises(InputError, match="predicts other classes"):
        MemoryBank.build(teacher, everything.train.restricted(["1", "2"]), labels="teacher")


@pytest.mark.parametrize("choices", [{}, {"query": "view"}, {"order": "random", "redraw": True}, {"order": "class"}])
def test_in_context_samples_are_from_the_whole_bank(choices, teacher, digits, large):
    seen = watched(digits, teacher, {"positives": 8, "negatives": 400} | choices, bank=large)
    others = 0
    for context in seen:
        keys, labels, near, far = context.student.key, context.student.labels, context.positives, context.negatives
        if choices.get("order") == "class":
            samples = large.class_samples(keys, labels)
            assert torch.equal(near.logits, samples[0].logits) and torch.equal(far.logits, samples[1].logits)
            continue
        assert far.index.shape[1] == 333, "a third of the bank's rows"
        assert (large.labels[large.rows(near.index)] == labels[:, None]).all()
        assert (large.labels[large.rows(far.index)] != labels[:, None]).all()
        assert not (near.index == keys[:, None]).any()
        others += (~torch.isin(near.index, digits.train.index)).sum().item()
        if "order" not in choices:
            features = context.teacher.features if choices else large.features[large.rows(keys)]
            expected = large.retrieve(features, labels, keys, positives=8, negatives=333)
            assert torch.equal(near.index, expected[0].index) and torch.equal(far.index, expected[1].index)
    assert others > 500 or choices.get("order") == "class"


def test_what_is_not_retrieved_stays_that_of_the_students_images(teacher, digits, large):
    """CRD's memory and REFILLED's class means."""
    names = ["crd", "refilled(share=0)"]
    own, more = (train(students(names), digits, teacher, bank=bank) for bank in (None, large))
    assert all(same(own[name].network, more[name].network) for name in own)


def test_rows_that_are_not_written_are_not_requested(digits, teacher, large):
    """A class of the bank has four written rows, and all have 100."""
    written = torch.full_like(large.labels, -1)
    for label in range(10):
        written[(large.labels == label).nonzero().squeeze(1)[: 4 if label == 3 else 11]] = 0
    bank = MemoryBank(**{**large.tensors, "written": written}, classes=large.classes, source=large.source)
    history = train(students(["ickd"]), digits, teacher, bank=bank)["s0"]
    asked = history.method.retrieval
    assert (asked.positives, asked.negatives) == (3, (4 + 9 * 11) // 3)


def test_the_students_rows_of_a_larger_bank_are_copied_only_if_a_method_needs_them(digits, teacher, large, monkeypatch):
    subset, copied = MemoryBank.subset, []
    monkeypatch.setattr(MemoryBank, "subset", lambda self, rows: copied.append(len(rows)) or subset(self, rows))
    train(students(["ickd"]), digits, teacher, bank=large)
    assert copied == []
    train(students(["ickd", "refilled(share=0)"]), digits, teacher, bank=large)
    assert copied == [len(digits.train)]


def test_a_training_with_a_larger_bank_resumes_and_is_recorded(teacher, digits, large, tmp_path, monkeypatch):
    names = ["ickd", "ickd(dynamic=True)", "ickd(order='random')"]
    whole = train(students(names), digits, teacher, bank=large)
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(Interrupted):
            train(students(names), digits, teacher, bank=large, runs=tmp_path, checkpoint_seconds=0)
    again = MemoryBank(**large.tensors, classes=large.classes, source=large.source)
    resumed = train(students(names), digits, teacher, bank=again, runs=tmp_path)
    own = train(students(names), digits, teacher)
    for name, history in whole.items():
        assert same(history.network, resumed[name].network) and not same(history.network, own[name].network)
    settings = runtime.Run(tmp_path / "s0").settings
    assert settings["bank"] == {"rows": 1000, "index": runtime.fingerprint(large.index), **large.source}
    assert described(settings)["bank_rows"] == 1000 == whole["s0"].summary["bank_rows"]
    assert settings["in_context"]["negatives"] == 128 and "bank_rows" not in own["s0"].summary
    with pytest.raises(InputError, match="contains a run with"):
        train(students(names), digits, teacher, runs=tmp_path)


def test_a_larger_bank_of_other_images_labels_or_teacher_is_refused(teacher, digits, everything, large):
    require_fit(large, digits.train, teacher)
    inverted = replace(everything.train, images=255 - everything.train.images)
    other = MemoryBank.build(teacher, inverted, labels=digits.train.index, precision="fp32")
    with pytest.raises(InputError, match="of another data set"):
        train(students(["ickd"]), digits, teacher, bank=other)
    unmarked = MemoryBank(**other.tensors, classes=other.classes)
    with pytest.raises(InputError, match="of another data set"):
        train(students(["ickd"]), digits, teacher, bank=unmarked)
    rest = everything.train.subset((~torch.isin(everything.train.index, digits.train.index)).nonzero().squeeze(1))
    with pytest.raises(InputError, match="of another data set"):
        train(students(["ickd"]), digits, teacher, bank=MemoryBank.build(teacher, rest))
    predicted = MemoryBank.build(teacher, everything.train, labels="teacher")
    with pytest.raises(InputError, match="have another label in the bank"):
        train(students(["ickd"]), digits, teacher, bank=predicted)
    with runtime.seeded(0):
        stranger = models.create("resnet8", **digits.train.spec)
    with pytest.raises(InputError, match="by another teacher"):
        train(students(["ickd"]), digits, stranger, bank=large)


def test_images_are_extended_at_random(digits, everything):
    found = data.selection.extended(digits.train, everything.train, 300)
    assert len(found) == 300 and torch.isin(digits.train.index, found.index).all()
    assert (found.index.diff() > 0).all()
    assert torch.equal(found.index, data.selection.extended(digits.train, everything.train, 300).index)
    assert not torch.equal(found.index, data.selection.extended(digits.train, everything.train, 300, 1).index)
    whole = data.selection.extended(digits.train, everything.train, len(everything.train))
    assert torch.equal(whole.index, everything.train.index)
    for count in (119, 1001):
        with pytest.raises(InputError, match=f"cannot extend 120 images to {count}"):
            data.selection.extended(digits.train, everything.train, count)


@pytest.mark.parametrize("choices, reported", [("kappa=0.5", True), ("order='random', kappa=0.2", False)])
def test_a_term_that_ends_at_chance_is_reported(choices, reported, digits, teacher, capsys):
    """The nearest negatives of a weak teacher are hard to tell apart, random ones are not."""
    made = [Student("resnet8", f"kd+nicd(nicd=2.0, negatives=16, {choices})", 0, f"student{reported}")]
    distill(made, digits, teacher, recipe=Recipe(epochs=1 if reported else 8, lr=0.05, batch_size=30))
    noted = [line for line in capsys.readouterr().err.splitlines() if "are as similar to all" in line]
    assert bool(noted) is reported, noted
    if reported:
        assert "nicd ended at" in noted[0] and f"{2 * math.log(17):.3g}" in noted[0]
