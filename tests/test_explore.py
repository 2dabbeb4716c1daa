"""Neighbourhoods and loss terms equal loops in double precision; searches and sets of samples find what they should."""

from dataclasses import replace

import pytest
import torch

from ickd_lib import explore, losses, methods, models
from ickd_lib.data import Batch, Images
from ickd_lib.memory import MemoryBank
from ickd_lib.memory.search import FIELDS
from ickd_lib.methods import Context
from ickd_lib.models import Output
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Samples
from ickd_lib.widgets.search import SearchBox

SIZES = (12, 14, 3, 1)  # of the classes of the bank below: one is short of positives, one has a single image
LABELS = torch.tensor([0, 1, 1, 2, 3, 2])
INDEX = torch.tensor([10, 36, 34, 62, 68, 66])  # of the queries, rows of the bank


@pytest.fixture(scope="module")
def small():
    """A bank, and the outputs of teacher and student for six of its rows."""
    g = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    bank = MemoryBank(
        torch.randn(30, 6, generator=g),
        2 * torch.randn(30, 4, generator=g),
        labels,
        10 + 2 * torch.arange(30),
        tuple("abcd"),
    )
    rows = bank.rows(INDEX)
    assert torch.equal(labels[rows], LABELS)
    return bank, Output(bank.logits[rows], bank.features[rows]), 2 * torch.randn(6, 4, generator=g)


def around(small, k=(5, 7), temperature=0.05, student=True):
    bank, teacher, logits = small
    return explore.neighbourhood(
        bank,
        teacher,
        LABELS,
        INDEX,
        student_logits=logits if student else None,
        positives=k[0],
        negatives=k[1],
        aggregation_temperature=temperature,
    )


def same(one, other):
    """Whether two sets of in-context samples are equal where the mask is true; other entries have no meaning."""
    mask = one.mask
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return torch.equal(mask, other.mask) and all(torch.equal(ours[mask], theirs[mask]) for ours, theirs in pairs)


@pytest.mark.parametrize("student", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0, None])
def test_a_neighbourhood_holds_what_the_bank_retrieves(small, temperature, student):
    bank, teacher, logits = small
    found = around(small, temperature=temperature, student=student)
    near, far = bank.retrieve(teacher.features, LABELS, INDEX, positives=5, negatives=7, allow_missing=True)
    assert same(found.positives, near) and same(found.negatives, far)
    assert near.mask.sum(1).tolist() == [5, 5, 5, 2, 0, 2] and far.mask.all()  # of classes of 12, 14, 3 and 1
    assert not (near.index == INDEX[:, None])[near.mask].any()
    for i in range(len(LABELS)):
        there = near.mask[i]
        score = near.similarity[i, there].double() / (temperature or 1e9)
        weights = score.exp() / score.exp().sum()
        torch.testing.assert_close(found.weights[i, there].double(), weights, atol=1e-5, rtol=1e-4)
        assert not found.weights[i, ~there].any()
        by_hand = (weights[:, None] * near.logits[i, there].double()).sum(0)
        torch.testing.assert_close(found.logits["aggregate"][i].double(), by_hand, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits["aggregate"], losses.aggregate(near.logits, found.weights)[0])
    assert found.logits["teacher"] is teacher.logits and found.logits.get("student") is (logits if student else None)
    assert list(found.logits) == ["teacher", "aggregate", "student"][: 2 + student]


def test_queries_outside_the_bank_may_find_any_row(small):
    bank, teacher, _ = small
    found = explore.neighbourhood(bank, teacher, LABELS, positives=3, negatives=3)
    assert torch.equal(found.positives.index[:, 0], INDEX)  # the same features
    assert found.positives.similarity[:, 0].tolist() == pytest.approx([1.0] * 6)


@pytest.mark.parametrize("k", [(1, 1), (2, 7), (5, 3), (9, 40)])
@pytest.mark.parametrize("temperature", [0.02, None])
def test_the_first_of_many_equal_a_direct_retrieval(small, k, temperature):
    first = around(small, (13, 40)).first(*k, aggregation_temperature=temperature)
    direct = around(small, k, temperature)
    assert same(first.positives, direct.positives) and same(first.negatives, direct.negatives)
    assert torch.equal(first.weights, direct.weights)
    assert first.logits.keys() == direct.logits.keys()
    assert all(torch.equal(first.logits[name], direct.logits[name]) for name in first.logits)
    assert "student" not in around(small, student=False).first(1, 1, aggregation_temperature=None).logits


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_probabilities_are_those_of_the_logits_at_the_temperature(small, temperature):
    found = around(small)
    probabilities = found.probabilities(temperature)
    assert list(probabilities) == ["teacher", "aggregate", "student"]
    for name, p in probabilities.items():
        torch.testing.assert_close(p.sum(1), torch.ones(6))
        torch.testing.assert_close(
            p[:, 0] / p[:, 1], ((found.logits[name] @ torch.tensor([1.0, -1, 0, 0])) / temperature).exp()
        )


# ------------------------------------------------------------------------------------------------ loss terms


def naive(method, found):
    """The method's terms, one query after another in double precision."""
    total = dict.fromkeys(("ce", "kd", "picd", "nicd"), 0.0)
    tau = method.temperature
    for i, label in enumerate(LABELS.tolist()):
        s, t = found.logits["student"][i].double(), found.logits["teacher"][i].double()

        def kl(target, s=s):
            return tau**2 * (target * (target.log() - (s / tau).log_softmax(0))).sum()

        near, far = (
            [z.double() for z, there in zip(of.logits[i], of.mask[i], strict=True) if there]
            for of in (found.positives, found.negatives)
        )
        cosines = found.positives.similarity[i].double()[: len(near)] / (method.aggregation_temperature or 1e9)
        weights = cosines.softmax(0)
        if method.average == "logits":
            z = sum(w * z for w, z in zip(weights, near, strict=True))
            target = (z / tau).softmax(0) if near else None
        else:
            target = sum(w * (z / tau).softmax(0) for w, z in zip(weights, near, strict=True))
            mean = sum(w * z for w, z in zip(weights, near, strict=True))
            z = tau * target.log() + (mean - tau * target.log()).mean() if near else None
        total["ce"] -= s.log_softmax(0)[label]
        total["kd"] += kl((t / tau).softmax(0))
        total["picd"] += kl(target) if near else 0
        anchor = t if method.anchor == "teacher" else z
        if method.anchor == "teacher" or near:
            good = torch.cosine_similarity(s, anchor, 0)
            bad = torch.stack([torch.cosine_similarity(s, z, 0) for z in far])
            if method.form == "hinge":
                total["nicd"] += (bad - good + method.margin).clamp(min=0).mean()
            else:
                total["nicd"] -= torch.cat([good[None], bad]).div(method.kappa).log_softmax(0)[0]
    return {name: getattr(method, name) * float(x) / len(LABELS) for name, x in total.items() if getattr(method, name)}


@pytest.mark.parametrize(
    "name",
    [
        "ickd",
        "picd",
        "nicd",
        "ickd(ce=0.7, kd=0, picd=2, nicd=3, temperature=2.0, kappa=0.5)",
        "ickd(form='hinge')",
        "ickd(form='hinge', margin=0.9, anchor='aggregate')",
        "ickd(average='probabilities')",
        "ickd(anchor='aggregate')",
        "ickd(anchor='aggregate', average='probabilities', aggregation_temperature=None)",
        "ickd(query='view', warmup=0.5)",
    ],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_terms_equal_a_loop_and_the_method(small, name, corrected):
    method = methods.create(f"{name.removesuffix(')')}{', ' if '(' in name else '('}corrected={corrected})")
    found = around(small, temperature=method.aggregation_temperature)
    terms, by_hand = explore.terms(method, found, LABELS), naive(method, found)
    assert (terms == pytest.approx(by_hand, rel=1e-4, abs=1e-6)) != corrected and min(terms.values()) > 0
    none = torch.zeros(6, 0)
    batch = Batch(none, LABELS, INDEX, torch.zeros(6).long())
    student, teacher = (Samples(found.logits[name], none, LABELS, INDEX, INDEX) for name in ("student", "teacher"))
    supervised = losses.cross_entropy(student.logits, LABELS)
    near, far = found.positives, found.negatives
    step = method(Context(batch, student, supervised, teacher=teacher, positives=near, negatives=far))
    assert terms == {term: value.item() for term, value in step.items()}
    assert list(terms) == list(step)  # in order


def test_terms_of_the_variants_of_ickd(small):
    """The own row of a query is the teacher's output for it, as is its output for the view."""
    method = methods.create(
        "ickd(residual=0.5, gate=0.8, form='relational', dynamic=True, temperature=4, corrected=False)"
    )
    found = around(small, temperature=method.aggregation_temperature)
    near, far, logits = found.positives, found.negatives, found.logits
    lacking = ~near.mask.any(1, keepdim=True)
    target = logits["teacher"] + 0.5 * (logits["aggregate"] - logits["teacher"]).masked_fill(lacking, 0)
    student, teacher, gate = logits["student"], logits["teacher"], losses.entropy_gate(logits["teacher"], strength=0.8)
    pool = {"positive_logits": near.logits, "positive_mask": near.mask}
    expected = {
        "ce": 0.1 * losses.cross_entropy(student, LABELS),
        "kd": 0.9 * losses.kd(student, target),
        "picd": 0.3 * losses.picd(student, near.logits, found.weights, gate=gate),
        "nicd": 5 * losses.relational_nicd(student, teacher, far.logits, far.mask, **pool),
    }
    assert lacking.any() and not lacking.all()
    terms = explore.terms(method, found, LABELS)
    assert terms == pytest.approx({name: term.item() for name, term in expected.items()}, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["ce", "kd", "crd_bank", "ickd_online", "ickd_self", "ickd(kd=0, picd=0, nicd=0)", "ickd+rkd"]
)
def test_terms_of_methods_without_a_bank_of_the_teacher_are_refused(small, name):
    with pytest.raises(
        InputError, match=r"is not in-context distillation from a teacher's bank alone; choose ickd, picd or nicd$"
    ):
        explore.terms(methods.create(name), around(small), LABELS)


def test_terms_that_compare_features_are_refused(small):
    """A neighbourhood holds logits only; without features these terms would be 0."""
    with pytest.raises(InputError):
        explore.terms(methods.create("ickd+rkd"), around(small), LABELS)


def test_terms_without_a_student_are_refused(small):
    with pytest.raises(InputError, match=r"^loss terms need a student; pass student=…$"):
        explore.terms(methods.create("ickd"), around(small, student=False), LABELS)


# ---------------------------------------------------------------------------------------------------- search

ZOO = Images(
    torch.zeros(7, 3, 2, 2, dtype=torch.uint8),
    torch.tensor([0, 1, 2, 3, 4, 3, 5]),
    torch.tensor([3, 12, 20, 21, 22, 30, 31]),
    ("1", "10", "Tiger", "Tiger_Cat", "Maple Tree", "21"),
    (0.0,) * 3,
    (1.0,) * 3,
    0,
    False,
    "zoo/train",
    ("digit", "animal", "tree"),
    (0, 0, 1, 1, 2, 0),
    files=tuple({21: "b/two.png", 22: "b/three.png", 30: "c/three.png"}.get(row, "none") for row in range(32)),
)
TEACHER = torch.eye(6)[[0, 1, 3, 3, 2, 2, 5]]  # the teacher errs at 2, 4 and 5
STUDENT = torch.eye(6)[[1, 1, 2, 3, 4, 4, 0]]  # the student at 0, 5 and 6
STUDENT[3] *= 9  # its confidence is 0.999 here, and 0.352 elsewhere
LOGITS = {"teacher": TEACHER, "student": lambda: STUDENT}


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("", [0, 1, 2, 3, 4, 5, 6]),
        ("  ", [0, 1, 2, 3, 4, 5, 6]),
        ("1", [0]),  # neither 10 nor 21: a whole name counts alone
        ("0", [1]),
        ("2", [6]),
        ("tiger", [2]),
        ("tig", [2, 3, 5]),
        ("CAT", [3, 5]),
        ("r_c", [3, 5]),
        ("animal", [2, 3, 5]),
        ("anim", [2, 3, 5]),
        ("tree", [4]),
        ("maple tree", [4]),
        ("Maple", [4]),
        ("DIGIT", [0, 1, 6]),
        ("digit 1", [0]),
        ("teacher:tiger", [4, 5]),
        ("teacher:cat", [2, 3]),
        ("Teacher:Animal", [2, 3, 4, 5]),
        ("student:1", [6]),
        ("student:10", [0, 1]),
        ("student:tree", [4, 5]),
        ("student:maple", [4, 5]),
        ("wrong", [0, 5, 6]),
        ("WRONG", [0, 5, 6]),
        ("wrong digit", [0, 6]),
        ("cat wrong teacher:tiger student:tree", [5]),
        ("student:animal teacher:animal", [2, 3]),
        ("row:21", [3]),
        ("Row:3", [0]),
        ("row:30 cat", [5]),
        ("row:12-21", [1, 2, 3]),
        ("student!=teacher", [0, 2, 4, 5, 6]),
        ("student=teacher", [1, 3]),
        ("teacher!=student digit", [0, 6]),
        ("teacher:wrong", [2, 4, 5]),
        ("teacher:wrong student:right", [2, 4]),  # the student is right where the teacher is wrong
        ("right", [1, 2, 3, 4]),
        ("conf<0.5", [0, 1, 2, 4, 5, 6]),
        ("conf>=50%", [3]),
        ("conf>0.9 cat", [3]),
        ("teacher:conf<.5 tree", [4]),
        ("student:'maple tree'".replace("'", '"'), [4, 5]),
        ("file:b/t", [3, 4]),
        ("FILE:three wrong", [5]),
    ],
)
def test_search_finds(text, positions):
    assert explore.search(text, ZOO, LOGITS) == positions


def test_search_among_images_without_superclasses():
    plain = replace(ZOO, superclasses=(), superclass_of=())
    assert explore.search("tree", plain) == [4] and explore.search("", plain) == list(range(7))
    with pytest.raises(InputError, match="no image matches 'digit'"):
        explore.search("digit", plain)


def test_a_class_that_is_named_right_is_found_in_quotes():
    hands = replace(ZOO, classes=("left", "Right", "2", "3", "4", "5"), superclasses=("wrong", "b", "c"))
    for text, positions in {
        "right": [1, 2, 3, 4],
        '"right"': [1],
        '"RIGHT" right': [1],
        "student:right": [1, 2, 3, 4],
        'student:"right"': [0, 1],
        "wrong": [0, 5, 6],
        '"wrong"': [0, 1, 6],
        'student:"wrong"': [0, 1, 6],
    }.items():
        assert explore.search(text, hands, LOGITS) == positions, text
    assert explore.search('"right"', ZOO, LOGITS) == [1, 2, 3, 4]  # no class has this name
    assert {'"Right"', '"wrong"', "right", "left"} <= set(SearchBox(explore.SampleSet(hands), []).words)


def test_an_image_without_a_label_is_neither_wrong_nor_right():
    some = replace(ZOO, labels=ZOO.labels.where(ZOO.index != 31, -1))
    assert explore.search("wrong", some, LOGITS) == [0, 5] and explore.search("right", some, LOGITS) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "with_logits", "reason"),
    [
        ("zebra", True, "no image matches 'zebra'"),
        ("tiger tree", True, "no image matches 'tiger tree'"),
        ("teacher:zebra", True, "no image matches"),
        ("student:21", True, "no image matches"),
        ("row:4", True, "no image matches 'row:4'"),
        ("row:", True, "'row:' is not a data-set row"),
        ("row:x", True, "'row:x' is not a data-set row"),
        ("row:-3", True, "'row:-3' is not a data-set row"),
        ("row:3.0", True, "'row:3.0' is not a data-set row"),
        ("row:²", True, "'row:²' is not a data-set row"),  # a digit to str.isdigit, not to int
        ("row:9" + 30 * "0", True, "no image matches"),
        ("wrong", False, "'wrong' needs a student; pass student=…"),
        ("tiger student:1", False, "'student:1' needs a student"),
        ("teacher:1", False, "'teacher:1' needs a teacher"),
        ("student!=teacher", False, "'student!=teacher' needs a student"),
        ("studentt:wrong", True, "unknown network 'studentt'; did you mean 'student'? (known: teacher, student)"),
        ("teacher!=studentt", True, "unknown network 'studentt'"),
        ("studentt:conf<=0.5", False, "unknown network 'studentt'"),
        ("conf<=x", True, "no image matches 'conf<=x'"),
        ("conf<0.1", True, "no image matches 'conf<0.1'"),
        ("conf<x", True, "no image matches 'conf<x'"),
        ("file:zebra", True, "no image matches"),
    ],
)
def test_search_explains_in_one_line_why_it_finds_nothing(text, with_logits, reason):
    with pytest.raises(InputError) as error:
        explore.search(text, ZOO, LOGITS if with_logits else {})
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)


def test_a_search_names_the_networks_that_there_are():
    with pytest.raises(InputError, match=r"needs a student; use one of the networks given \(teacher, after\)"):
        explore.search("student!=teacher", ZOO, {"teacher": TEACHER, "After": STUDENT})


def test_rows_are_read_in_the_form_in_which_users_write_them():
    rows = torch.tensor([2, 3, 7, 11, 20, 30])
    assert explore.positions("3 7, 10-20", rows, "digits").tolist() == [1, 2, 3, 4]
    assert explore.positions("7 7 7-7", rows, "digits").tolist() == [2]
    assert explore.positions(" ", rows, "digits").tolist() == []
    for text, reason in (
        ("3 x", "'x' is not a row number"),
        ("4", "no row 4"),
        ("20-10", "no row"),
        ("-3", "not a row number"),
    ):
        with pytest.raises(InputError, match=reason):
            explore.positions(text, rows, "digits")


# ---------------------------------------------------------------------------------------------------- samples


def test_a_sample_set_gives_outputs_keys_and_pictures_by_position(digits, bank, teacher):
    images = digits.train.subset(torch.arange(119, 20, -1))
    samples, at = explore.SampleSet(images), torch.tensor([40, 3])
    assert len(samples) == 99 and samples.name == images.name and samples.classes == images.classes
    assert torch.equal(samples.positions(samples.keys[at]), at)
    expected = models.predict(teacher, images, precision="fp32")
    assert torch.equal(samples.outputs(teacher, precision="fp32").logits, expected.logits)
    for found in (samples.outputs(teacher, at, precision="fp32"), samples.stored_outputs(bank, at)):
        torch.testing.assert_close(found.logits, expected.logits[at], atol=1e-4, rtol=1e-4)
    assert torch.equal(samples.stored_outputs(bank).logits, bank.logits[bank.rows(images.index)])
    assert torch.equal(samples.thumbnails(at), images.images[at])
    pictured = samples.pictured(at)
    assert torch.equal(pictured.images, images.images[at]) and pictured.index.tolist() == samples.keys[at].tolist()
    assert pictured.labels.tolist() == images.labels[at].tolist() and explore.search("", samples) == list(range(99))


def test_what_a_notebook_cell_ends_in_is_one_or_two_short_lines(digits, bank, teacher):
    output = models.predict(teacher, digits.train)
    found = explore.neighbourhood(bank, output, digits.train.labels, digits.train.index)
    region = explore.region(output.logits, digits.train.labels, torch.arange(30))
    for one in (digits, digits.train, bank, teacher, found, region, explore.suspect_labels(bank)):
        assert len(repr(one)) < 200 and repr(one).count("\n") < 2
