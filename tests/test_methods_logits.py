"""Methods between logits that use more of a step than the logits of one view."""

import copy
import dataclasses
import math

import pytest
import torch
from test_methods import C, D, Tiny, context, prepared
from torch import nn

from ickd_lib import losses, methods, models
from ickd_lib.runtime import InputError


def test_mlkd_uses_both_views():
    method = methods.create("mlkd(ce=2, instance=3, batch=5, classes=7, temperature=4.5)")
    networks = prepared(method)
    seen = context(method, networks=networks)
    ours, strong = torch.tensor([1, 4, 2]), seen.strong
    weak = [seen.student.logits, seen.teacher.logits]
    views = [*weak, strong.student.logits, strong.teacher.logits]
    instance, batch, classes = losses.mlkd(*views, temperature=4.5)
    terms = method(seen)
    assert terms == {
        "ce": 2 * (seen.supervised + strong.supervised),
        "instance": 3 * instance,
        "batch": 5 * batch,
        "classes": 7 * classes,
    }
    assert list(methods.create("mlkd(ce=0)")(seen)) == ["instance", "batch", "classes"]
    for name, both in (("ce", True), ("instance", True), ("batch", False), ("classes", False)):
        found = torch.autograd.grad(terms[name], [weak[0], strong.student.logits], retain_graph=True, allow_unused=True)
        assert [one is not None and bool(one.any()) for one in found] == [True, both]
    part = method(dataclasses.replace(seen, common=(ours, ours)))
    assert part["batch"] == 5 * losses.mlkd(*(view[:, ours] for view in views), temperature=4.5)[1]


def test_ctkd_learns_the_temperature_of_any_method():
    method = methods.create("ctkd(of='dkd(nckd=2, warmup=0)', epochs=4)")
    seen = context(method)
    expected = methods.create("dkd(nckd=2, warmup=0)")
    expected.temperature = temperature = 1 + 20 / (1 + math.exp(-1))
    terms = method(seen)
    assert method.learnt_temperature.item() == pytest.approx(temperature)
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in expected(seen).items()})
    assert method.of.temperature == 4.0 and copy.deepcopy(method).of.temperature == 4.0
    slope = torch.autograd.grad(sum(expected_by(method, expected, seen).values()), method.theta)[0]
    for epoch, factor in ((0, (math.cos(math.pi / 4) - 1) / 2), (1, -0.5), (3, -1), (9, -1)):
        loss = sum(method(dataclasses.replace(seen, epoch=torch.tensor(epoch))).values())
        assert torch.autograd.grad(loss, method.theta)[0].item() == pytest.approx(factor * slope.item(), rel=1e-2)
    assert methods.describe(method) == "ctkd(of='dkd(nckd=2, warmup=0)', epochs=4)"


def expected_by(method, same, seen):
    """The terms of a method at the learnt temperature, whose gradient is not reversed."""
    same.temperature = method.learnt_temperature
    return same(seen)


def test_ctkd_is_as_the_method_beside_its_temperature():
    method = methods.create("ctkd(of='ickd', ce=3)")
    method.setup(D, D, C, 90)
    assert method.of.ce == 3 and method.retrievals == method.of.retrievals and method.retrievals[0].negatives == 30
    assert method.needs == {"teacher"} and methods.create("ctkd").label_space == "shared"
    both = methods.create("rkd+ctkd")
    assert both.parts[1].of.ce == 0 and list(both(context(both, networks=prepared(both)))) == [
        "ce",
        "distance",
        "angle",
        "kd",
    ]


def test_ctkd_has_the_limit_and_the_requirements_of_the_method():
    both = methods.create("ctkd(of='ickd')+kd(kd=3.0)")
    assert both.version == 2 and both.parts[0].limits == {"nicd": 1.0}
    seen = context(both)
    terms = both(seen)
    nicd = terms.pop("nicd")
    own, others = (
        torch.autograd.grad(loss, seen.student.logits, retain_graph=True)[0] for loss in (nicd, sum(terms.values()))
    )
    torch.testing.assert_close(own.norm(), others.norm())
    for name in ("kd", "lwf", "dkd"):
        inner, outer = methods.create(name), methods.create(f"ctkd(of='{name}')")
        assert (outer.unlabelled, outer.one_class) == (inner.unlabelled, inner.one_class)


def test_ctkd_records_the_method():
    method = methods.create("ctkd(of='ickd(nicd=2)', ce=0.5)")
    assert method.config["wrapped"] == methods.create("ickd(nicd=2, ce=0.5)").config
    assert methods.recorded(method.config).config == method.config
    assert methods.create("ctkd(of='dkd')").config["wrapped"]["version"] == 2
    recorded = {**method.config, "wrapped": {**method.config["wrapped"], "temperature": 9.0}}
    again = methods.recorded(recorded)
    assert again.of.temperature == 9.0
    assert methods.describe(again) == "ctkd(of='ickd(nicd=2, temperature=9.0)', ce=0.5)"
    older = methods.recorded({"name": "ctkd", "of": "ickd", "ce": None, "epochs": 10})
    assert not older.of.corrected and not older.limits


def test_the_weight_of_transport_falls_over_the_last_epochs():
    method = methods.create("wkd_l(ce=0, gamma=2, decay=0.5)")
    networks = prepared(method)
    seen = context(method, networks=networks)
    cost = losses.prototype_cost(networks[1].classifier.weight)
    target, distance = losses.wkd_l(seen.student.logits, seen.teacher.logits, seen.student.labels, cost)
    for epoch, factor in ((0, 1), (1, 1), (2, 0.5), (3, 0)):
        terms = method(dataclasses.replace(seen, epoch=torch.tensor(epoch)))
        assert terms["target"] == target
        assert terms["transport"].item() == pytest.approx(2 * factor * distance.item(), abs=1e-7)
    constant = methods.create("wkd_l(gamma=2, decay=1)")(dataclasses.replace(seen, epoch=3))
    assert constant["transport"] == 2 * distance


def test_wkd_l_needs_a_linear_classifier_of_the_features():
    class Other(Tiny):
        """A classifier of twice the features."""

        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(2 * D, C)

        def forward_normalised(self, x):
            features = self.second(self.first(x).relu()).mean((2, 3))
            return models.Output(self.classifier(torch.cat([features, features], 1)), features)

    with pytest.raises(InputError, match=r"wkd_l needs the weights of the teacher's linear classifier.*in_features=8"):
        methods.create("wkd_l").adapt(Tiny(), Other(), (8, 8))


@pytest.mark.parametrize(
    ("method", "start"),
    [
        (
            "lskd",
            "lskd standardises the logits of each sample, and two standardised logits are always -0.71 and 0.71; so",
        ),
        ("kd(standardised=True)", "kd standardises"),
        ("dkd(standardised=True)", "dkd standardises"),
        ("mlkd(standardised=True)", "mlkd standardises"),
        (
            "ce+dkd",
            "the term nckd of dkd compares the classes other than the label; with two classes, this is a single one",
        ),
        ("nkd", "the term others of nkd"),
        ("uskd", "the term others of uskd"),
    ],
)
def test_terms_that_teach_nothing_with_two_classes_are_noted(method, start, notes):
    made, other = methods.create(method), methods.create(method)
    for one in (made, other):
        one.adapt(Tiny(), None, (8, 8))
    other.setup(D, D, 3, 20)
    assert notes() == []
    made.setup(D, D, 2, 20)
    (note,) = notes()
    assert note.startswith(f"note: {start}")


@pytest.mark.parametrize(
    "method", ["kd", "lskd(standardised=False)", "dkd(nckd=0)", "nkd(gamma=0)", "uskd(beta=0)", "mlkd"]
)
def test_other_terms_are_not(method, notes):
    made = methods.create(method)
    made.adapt(Tiny(), None, (8, 8))
    made.setup(D, D, 2, 20)
    assert notes() == []


@pytest.mark.usefixtures("seeded")
def test_what_the_notes_on_two_classes_say():
    student, teacher = torch.randn(6, 2, requires_grad=True), torch.randn(6, 2)
    labels = torch.randint(2, (6,))
    assert losses.standardise(student).abs().allclose(torch.tensor(0.7071), atol=1e-3)
    standardised = (
        losses.kd(student, teacher, standardised=True),
        *losses.dkd(student, teacher, labels, standardised=True),
    )
    for term in standardised:
        (found,) = torch.autograd.grad(term, student, retain_graph=True)
        assert found.abs().max() < 1e-4
    assert losses.dkd(student, teacher, labels)[1] == losses.nkd(student, teacher, labels)[1] == 0
    assert losses.uskd(student, teacher, labels)[1].abs() < 1e-6
