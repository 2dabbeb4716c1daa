import pytest
import torch
from torch import nn

from ickd_lib import losses, methods
from ickd_lib.data import Batch
from ickd_lib.memory import InContext
from ickd_lib.methods import Context, Method
from ickd_lib.models import Output
from ickd_lib.runtime import InputError

B, C, D = 6, 10, 4


def context(method, seed=0):
    """What the loop would supply: only what the method declares."""
    g = torch.Generator().manual_seed(seed)
    batch = Batch(torch.rand(B, 3, 8, 8, generator=g), torch.arange(B) % C, torch.arange(B), torch.zeros(B).long())
    student = Output(torch.randn(B, C, generator=g).requires_grad_(), torch.randn(B, D, generator=g).requires_grad_())
    teacher = Output(torch.randn(B, C, generator=g).requires_grad_(), torch.randn(B, D, generator=g).requires_grad_())

    def samples(k):
        return InContext(
            torch.zeros(B, k).long(),
            torch.rand(B, k, generator=g),
            torch.randn(B, k, C, generator=g).requires_grad_(),
            torch.randn(B, k, D, generator=g),
            torch.ones(B, k, dtype=torch.bool),
        )

    spec = method.retrieval
    return Context(
        batch,
        student,
        teacher if "teacher" in method.needs else None,
        samples(spec.positives) if spec else None,
        samples(spec.negatives) if spec else None,
    )


@pytest.mark.parametrize("name", methods.names())
def test_every_method_teaches_the_student_and_nobody_else(name):
    method = methods.create(name)
    method.setup(D, D, C, 100)
    seen = context(method)
    with torch.no_grad():
        detached = context(method)
        again = method(detached)
    terms = method(seen)
    assert terms and all(t.shape == () and t.isfinite() for t in terms.values())
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in again.items()})
    torch.stack(list(terms.values())).sum().backward()
    assert seen.student.logits.grad.abs().sum() > 0
    assert seen.teacher is None or (seen.teacher.logits.grad is None and seen.teacher.features.grad is None)
    assert method.config["name"] == name and methods.describe(method) == name


@pytest.mark.parametrize("name", methods.names())
def test_a_needless_method_asks_for_nothing(name):
    method = methods.create(name)
    assert method.needs <= methods.NEEDS
    assert (method.retrieval is None) == ("retrieval" not in method.needs)


def test_ickd_is_the_weighted_sum_of_its_parts():
    method = methods.create("ickd(ce=2, kd=3, picd=5, nicd=7, temperature=2, kappa=0.3, aggregation_temperature=None)")
    seen = context(method)
    terms, logits = method(seen), seen.student.logits
    near, far = seen.positives, seen.negatives
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=None)
    expected = {
        "ce": 2 * losses.cross_entropy(logits, seen.batch.labels),
        "kd": 3 * losses.kd(logits, seen.teacher.logits, temperature=2),
        "picd": 5 * losses.picd(logits, near.logits, weights, temperature=2),
        "nicd": 7 * losses.nicd(logits, seen.teacher.logits, far.logits, far.mask, kappa=0.3),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_what_no_term_needs_is_not_asked_for():
    assert methods.create("ickd(picd=0, nicd=0)").needs == {"teacher"}
    assert methods.create("picd").needs == {"retrieval"}
    assert methods.create("picd").retrieval.negatives == 0
    assert methods.create("nicd").retrieval.positives == 0
    assert methods.create("nicd(anchor='aggregate')").needs == {"retrieval"}
    assert methods.create("nicd(anchor='aggregate')").retrieval.positives == 8
    assert methods.create("picd(query='view')").needs == {"teacher", "retrieval"}


def test_the_aggregate_can_be_the_anchor():
    method = methods.create("nicd(anchor='aggregate', ce=0, form='hinge', margin=0.4)")
    seen = context(method)
    near, far = seen.positives, seen.negatives
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=0.05)
    anchor = (weights[..., None] * near.logits).sum(1)
    expected = losses.nicd(seen.student.logits, anchor, far.logits, far.mask, form="hinge", margin=0.4)
    assert method(seen)["nicd"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ikd", "unknown method 'ikd'; did you mean 'ickd'"),
        ("ickd(nidc=1)", "unknown argument of method 'ickd' 'nidc'; did you mean 'nicd'"),
        ("ickd(nicd='much')", r"ickd\(nicd='much'\): expected a number like 0.5"),
        ("ickd(nicd=", "cannot read method"),
        ("ickd(1)", "cannot read method"),
        ("kd(temperature=0)", "temperature=0 must be above 0"),
        ("ls(alpha=2)", "alpha=2 must lie between 0 and 1"),
        ("ickd(positives=0)", "positives=0 must be above 0"),
        ("ickd(form='info')", "unknown form 'info'; did you mean 'infonce'"),
        ("ickd(ce=0, kd=0, picd=0, nicd=0)", "nothing is left to learn from"),
        ("ickd(order='random', query='view')", "draws once for each row"),
    ],
)
def test_impossible_methods_are_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        methods.create(name)
    assert "\n" not in str(caught.value)


def test_describe_is_read_back():
    text = "ickd(positives=4, aggregation_temperature=None, average='probabilities')"
    assert methods.describe(methods.create(text)) == text
    assert methods.create(methods.describe(methods.create(text))).config == methods.create(text).config


def test_a_name_is_registered_once_and_reloading_replaces(monkeypatch):
    monkeypatch.setattr(methods, "_REGISTRY", dict(methods._REGISTRY))

    def make(qualname):
        return type("Mine", (Method,), {"__module__": "notebook", "__qualname__": qualname})

    methods.register("mine")(make("Mine"))
    again = methods.register("mine")(make("Mine"))
    assert type(methods.create("mine")) is again
    with pytest.raises(InputError, match=r"method 'mine' is already notebook\.Mine"):
        methods.register("mine")(make("Other"))
    with pytest.raises(InputError, match="unknown need 'teachers'; did you mean 'teacher'"):
        methods.register("odd")(type("Odd", (Method,), {"needs": frozenset({"teachers"})}))


def test_projectors_are_parameters():
    class Projected(Method):
        def setup(self, student_dim, teacher_dim, num_classes, rows):
            self.projector = nn.Linear(student_dim, teacher_dim)

    method = Projected()
    method.setup(3, 5, C, 9)
    assert [tuple(p.shape) for p in method.parameters()] == [(5, 3), (5,)]
