"""The limit on the gradient of negative in-context distillation."""

import re

import pytest
import torch
from test_methods import context

from ickd_lib import methods


def slopes(method, seen):
    """The gradients of NICD and of the other terms at the student's logits, and NICD's value."""
    terms = method(seen)
    nicd = terms.pop("nicd")
    own, others = (
        torch.autograd.grad(loss, seen.student.logits, retain_graph=True)[0] for loss in (nicd, sum(terms.values()))
    )
    return own, others, nicd.item()


@pytest.mark.parametrize("form", ["infonce", "hinge", "relational"])
def test_the_gradient_of_nicd_is_limited_by_that_of_the_other_terms(form):
    seen = context(methods.create("ickd", form=form))

    def measured(limit, **weights):
        return slopes(methods.create("ickd", form=form, limit=limit, **weights), seen)

    free, others, value = measured(None)
    assert free.norm() > 2 * others.norm()  # so that the limit matters
    for limit in (2.0, 0.5, 0):
        limited, rest, same = measured(limit)
        torch.testing.assert_close(limited, free * limit * others.norm() / free.norm())
        torch.testing.assert_close(rest, others)
        assert same == pytest.approx(value)
    small = measured(None, nicd=1e-3)[0]
    assert 0 < small.norm() < others.norm()
    torch.testing.assert_close(measured(1.0, nicd=1e-3)[0], small)


@pytest.mark.parametrize(
    "name", ["kd+nicd(nicd=50)", "ickd(nicd=0)+nicd(nicd=50)", "ckd+ickd(nicd=5000)", "nicd(nicd=50)+kd"]
)
def test_in_a_combination_the_terms_of_all_methods_count(name):
    method = methods.create(name)
    seen = context(method)
    own, others, _ = slopes(method, seen)
    torch.testing.assert_close(own.norm(), others.norm())
    free = methods.create(re.sub(r"nicd=(5\d+)", r"nicd=\1, limit=None", name))
    assert slopes(free, seen)[0].norm() > 2 * others.norm()
    assert (method.config.get("version"), free.config.get("version")) == (2, None)


def test_nicd_is_not_limited_where_there_is_no_other_term():
    alone = methods.create("ickd", ce=0, kd=0, picd=0)
    free = methods.create("ickd", ce=0, kd=0, picd=0, limit=None)
    seen = context(alone)
    assert torch.equal(alone(seen)["nicd"], free(seen)["nicd"])


def test_a_loss_that_is_computed_without_gradient_is_the_same():
    method = methods.create("ickd")
    seen = context(method)
    expected = method(seen)
    with torch.no_grad():
        terms = method(seen)
    assert {name: term.item() for name, term in terms.items()} == {name: term.item() for name, term in expected.items()}
