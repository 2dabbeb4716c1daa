import copy
import dataclasses

import pytest
import registered
import torch
from torch import nn

from ickd_lib import losses, methods, models
from ickd_lib.data import Batch
from ickd_lib.memory import InContext, MemoryBank
from ickd_lib.methods import Context, Method, StrongView, TargetSource, registry
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Pixels, Samples

B, C, D = 6, 10, 4
VARIANTS = ["ickd(form='relational')", "ickd(residual=0.5)", "ickd(gate=1.0)", "ickd(dynamic=True)"]


class Tiny(models.Network):
    """Two stages of maps, [B, 3, 8, 8] and [B, D, 4, 4]."""

    stages = ("first", "second")

    def __init__(self):
        super().__init__(C, D)
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, D, 3, stride=2, padding=1)
        self.classifier = nn.Linear(D, C)

    def forward_normalised(self, x):
        features = self.second(self.first(x).relu()).mean((2, 3))
        return models.Output(self.classifier(features), features)


def prepared(method, seed=0):
    """Student and teacher, once the method has made what it needs of them."""
    torch.manual_seed(seed)
    student, teacher = Tiny(), Tiny().eval().requires_grad_(False)
    student = method.adapt(student, teacher, (8, 8))
    method.setup(student.features_dim, D, C, 100)
    return student, teacher


def context(method, seed=0, phase=0, networks=None):
    """What the loop would supply: only what the method declares."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    def output(network=None):
        every = torch.arange(B)
        given = (Tiny() if network is None else network)(normal(B, 3, 8, 8), maps="maps" in method.needs)
        maps = given.maps
        if network is None:  # leaves, so that a gradient that reaches them is seen
            given = models.Output(normal(B, C).requires_grad_(), normal(B, D).requires_grad_())
            maps = tuple(normal(*one.shape).requires_grad_() for one in maps)
        else:
            for one in (given.logits, given.features, *maps):
                one.retain_grad()
        pixels = None
        if "pixels" in method.needs:  # each image is one region, with a border of pixels that do not count
            inside = nn.functional.pad(torch.ones(2, 3), (1, 1, 1, 1)).bool()
            region = torch.where(inside, every[:, None, None], -1)
            maps_of = (normal(B, size, *inside.shape).requires_grad_() for size in (C, D))
            pixels = Pixels(*maps_of, torch.where(inside, labels[:, None, None], -1), region)
        return Samples(given.logits, given.features, labels, every, every, maps, pixels=pixels)

    def samples(k, own=False):
        return InContext(
            torch.zeros(B, k).long(),
            torch.rand(B, k, generator=g),
            normal(B, k, C).requires_grad_(),
            normal(B, k, D).requires_grad_(),
            torch.ones(B, k, dtype=torch.bool),
            own=normal(B, C).requires_grad_() if own else None,
        )

    def retrieved(name):
        requests = [spec for spec in method.retrievals if spec.source == name]
        return {spec: (samples(spec.positives, spec.own), samples(spec.negatives)) for spec in requests}

    def target_source(name):
        return TargetSource(output(), retrieved=retrieved(name))

    labels = torch.arange(B) % 3
    batch = Batch(torch.rand(B, 3, 8, 8, generator=g), labels, torch.arange(B), torch.zeros(B).long())
    network, teacher = networks or (Tiny(), Tiny().eval().requires_grad_(False))
    student, shown, partner = output(network), output(), output()
    strong = output(network)
    if "features" not in method.needs:
        shown = dataclasses.replace(shown, features=torch.empty(B, 0))
    bank = MemoryBank(normal(B, D), normal(B, C), labels, torch.arange(B), tuple("abcdefghij"))
    given = Context(
        batch,
        student,
        losses.cross_entropy(student.logits, labels),
        shown if "teacher" in method.needs else None,
        retrieved=retrieved("teacher"),
        bank=bank if "bank" in method.needs else None,
        partner=partner if "partner" in method.needs else None,
        peers=(target_source("peers"), target_source("peers")) if "peers" in method.needs else (),
        earlier=target_source("self") if "earlier" in method.needs else None,
        strong=StrongView(batch, strong, losses.cross_entropy(strong.logits, labels), output())
        if "strong" in method.needs
        else None,
        classifiers=(models.classifier(network)[1], models.classifier(teacher)[1])
        if "classifiers" in method.needs
        else None,
        phase=phase,
        progress=0.5,
        epoch=2,
        epochs=4,
    )
    return given.seen_by(method)


def gradients(output):
    """Of samples, or of in-context samples."""
    own = [output.own] if getattr(output, "own", None) is not None else []
    if getattr(output, "pixels", None) is not None:
        own += [output.pixels.logits, output.pixels.features]
    return [tensor.grad for tensor in (output.logits, output.features, *own, *getattr(output, "maps", ()))]


def others(context):
    """All targets beside the student's own samples, and their in-context samples."""
    teacher = TargetSource(context.teacher, retrieved=context.retrieved)
    sources = [source for source in (teacher, *context.peers, context.earlier) if source]
    near = [part for source in sources for pair in source.retrieved.values() for part in pair]
    strong = [context.strong.teacher] if context.strong else []
    return [part for part in (*(source.output for source in sources), *near, context.partner, *strong) if part]


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("name", [*methods.names(), *VARIANTS, "ickd+dist", "refilled+kd"])
def test_every_method_teaches_the_student_and_nobody_else(name, phase):
    method = methods.create(name)
    networks = prepared(method)
    seen = context(method, phase=phase, networks=networks)
    torch.manual_seed(1)
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        again = method(seen)
    method.load_state_dict(before)  # a method may keep a memory that each step writes
    torch.manual_seed(1)
    terms = method(seen)
    assert terms and all(t.shape == () and t.isfinite() for t in terms.values())
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in again.items()})
    torch.stack(list(terms.values())).sum().backward()
    assert sum(float(g.abs().sum()) for g in gradients(seen.student) if g is not None) > 0
    assert all(g is None for other in others(seen) for g in gradients(other))
    assert methods.describe(method) == name


def test_the_methods_that_classification_cannot_train_are_named():
    assert registered.LEFT_OUT == {name: needs for name in methods.names() if (needs := registered.lacking(name))}


@pytest.mark.parametrize("name", methods.names())
def test_a_needless_method_asks_for_nothing(name):
    method = methods.create(name)
    assert method.needs <= methods.NEEDS
    if "ce" in method.config and name != "ce":
        alone = methods.create(name, ce=0)
        assert "ce" not in alone(context(alone, phase=1, networks=prepared(alone)))


def test_cskd_and_dkd_are_their_losses():
    method = methods.create("cskd(ce=0, kd=2, temperature=3)")
    seen = context(method)
    expected = 2 * losses.kd(seen.student.logits, seen.partner.logits, temperature=3)
    assert method(seen) == {"kd": expected}
    method = methods.create("dkd(ce=0, tckd=2, nckd=3, warmup=6)")
    seen = context(method)
    target, others = losses.dkd(seen.student.logits, seen.teacher.logits, seen.student.labels)
    assert method(seen) == {"tckd": 0.5 * 2 * target, "nckd": 0.5 * 3 * others}
    for epoch, rise in ((0, 1 / 6), (4, 5 / 6), (5, 1), (60, 1)):  # progress plays no part
        later = method(dataclasses.replace(seen, epoch=torch.tensor(epoch)))
        assert later["nckd"].item() == pytest.approx(rise * 3 * others.item())
    constant = methods.create("dkd(ce=0, warmup=0)")
    assert constant(dataclasses.replace(seen, epoch=0))["tckd"] == target


def test_lwf_learns_new_classes_among_themselves():
    method = methods.create("lwf(ce=2, kd=3)")
    seen = context(method)
    ours, theirs = torch.tensor([1, 4, 2]), torch.tensor([0, 9, 3])
    terms = method(dataclasses.replace(seen, common=(ours, theirs)))
    logits, expected = seen.student.logits, 0.0
    for row, label in zip(logits, seen.student.labels.tolist(), strict=True):
        group = ours.tolist() if label in ours else [c for c in range(C) if c not in ours]
        expected += 2 * (row[group].logsumexp(0) - row[label]) / B
    assert terms["ce"].item() == pytest.approx(expected.item())
    soft = losses.lwf(logits[:, ours], seen.teacher.logits[:, theirs])
    assert terms["kd"].item() == pytest.approx(3 * soft.item())
    among_all = 2 * losses.cross_entropy(logits, seen.student.labels).item()
    assert method(seen)["ce"].item() == pytest.approx(among_all)
    together = methods.create("lwf(ce=2, kd=3, separate=False)")(dataclasses.replace(seen, common=(ours, theirs)))
    assert together["ce"].item() == pytest.approx(among_all) and together["kd"] == terms["kd"]


def test_the_terms_of_all_peers_are_added_up_in_dml():
    method, mean = methods.create("dml"), methods.create("dml(average=True)")
    seen = context(method)
    assert method(seen)["kd"].item() == pytest.approx(2 * mean(seen)["kd"].item())


@pytest.mark.parametrize(("epoch", "alpha"), [(0, 0.0), (1, 0.4), (2, 0.6), (3, 0.8)])
def test_the_weight_of_pskd_rises_by_the_epoch_from_the_second_one_on(epoch, alpha):
    method = methods.create("pskd")
    seen = dataclasses.replace(context(method), epoch=torch.tensor(epoch), epochs=4)
    terms = method(seen)
    soft = losses.cross_entropy(seen.student.logits, seen.earlier.output.logits.softmax(1))
    assert terms["ce"].item() == pytest.approx((1 - alpha) * seen.supervised.item())
    assert terms["earlier"].item() == pytest.approx(alpha * soft.item())


def test_the_weak_logits_of_uskd_are_of_the_stage_before_the_last_for_each_sample():
    method = methods.create("uskd(ce=0, alpha=0, beta=0, mu=1)")
    networks = prepared(method)
    seen = context(method, networks=networks)
    assert method.weak.weight.shape == (C, 3)  # the first of the two stages has three channels
    image = torch.tensor([5, 5, 0, 1, 2, 2])
    twice = dataclasses.replace(seen, student=dataclasses.replace(seen.student, image=image))
    logits = method.weak(seen.student.maps[0].mean((2, 3)))[image]
    expected = losses.label_smoothing(logits, seen.student.labels, alpha=0.1)
    assert sum(method(twice).values()).item() == pytest.approx(expected.item())


def test_the_two_phases_of_refilled():
    method = methods.create("refilled(share=0.25)")
    assert method.restarts == (0.25,)
    first, second = context(method), context(method, phase=1)
    assert list(method(first)) == ["embedding"] and list(method(second)) == ["ce", "local"]
    centres = nn.functional.normalize(
        torch.stack(
            [(second.bank.features * second.bank.norms[:, None])[second.bank.labels == c].sum(0) for c in range(C)]
        ),
        dim=1,
    )
    expected = losses.refilled_local(
        second.student.logits, second.teacher.features, centres, second.student.labels, temperature=2.0
    )
    assert method(second)["local"].item() == pytest.approx(25 * expected.item())


def test_crd_bank_keeps_the_normaliser_of_its_first_step():
    method = methods.create("crd_bank")
    method.setup(D, D, C, 100)
    assert method.log_normaliser.isnan()
    method(context(method))
    first = method.log_normaliser.clone()
    method(context(method, seed=1))
    assert first.isfinite() and torch.equal(first, method.log_normaliser)


def test_crd_bank_needs_two_classes():
    method = methods.create("crd_bank")
    method.describe_bank(torch.zeros(9).long(), larger=False, few_allowed=False)
    with pytest.raises(InputError, match="all rows of the bank have the same class"):
        method.setup(D, D, C, 9)


def test_two_methods_at_once_share_one_cross_entropy():
    both, first, second = (methods.create(name) for name in ("ickd+dist(inter=3)", "ickd", "dist(inter=3, ce=0)"))
    assert both.needs == {"teacher"} and both.retrievals == (first.retrieval,)
    seen = context(both)
    terms = {name: value.item() for name, value in (first(seen.seen_by(first)) | second(seen)).items()}
    assert {name: value.item() for name, value in both(seen).items()} == pytest.approx(terms)
    assert both.config["parts"] == [first.config, second.config]
    assert methods.describe(both) == "ickd+dist(inter=3)"
    thrice = methods.create("kd+kd(kd=1e+1)+kd(temperature=1)")
    assert list(thrice(context(thrice))) == ["ce", "kd", "kd kd", "kd kd kd"]
    assert methods.create("refilled+kd").label_space == "shared" and methods.create("rkd+pkt").label_space == "any"


def test_each_of_two_methods_gets_the_in_context_samples_that_it_requested():
    both = methods.create("picd+nicd(order='random', negatives=3)")
    picd, nicd = both.parts
    assert both.retrievals == (picd.retrieval, nicd.retrieval)
    seen = context(both)
    assert seen.positives is None and seen.negatives is None
    own = [seen.seen_by(part) for part in (picd, nicd)]
    assert own[0].positives.logits.shape[1] == 8 and own[1].negatives.logits.shape[1] == 3
    expected = picd(own[0]) | nicd(own[1])
    assert {k: v.item() for k, v in both(seen).items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_logits_of_the_classes_that_both_know():
    method = methods.create("kd(ce=0, kd=1)")
    seen = context(method)
    ours, theirs = torch.tensor([1, 4, 2]), torch.tensor([0, 9, 3])
    part = dataclasses.replace(seen, common=(ours, theirs))
    expected = losses.kd(seen.student.logits[:, ours], seen.teacher.logits[:, theirs])
    assert method(part)["kd"].item() == pytest.approx(expected.item())


def given_samples(seen, corrected):
    """The teacher's logits, those of the positives and of the own row, and the mask of the negatives."""
    labels, near, far = seen.student.labels, seen.positives, seen.negatives
    if not corrected:
        return seen.teacher.logits, near.logits, near.own, far.mask
    other = far.logits.argmax(2) != labels[:, None]
    assert 0 < other.sum() < other.numel()
    own = near.own if near.own is None else losses.corrected(near.own, labels)
    of_positives = losses.corrected(near.logits, labels[:, None].expand(near.mask.shape))
    return losses.corrected(seen.teacher.logits, labels), of_positives, own, far.mask & other


def test_no_negative_of_a_sample_without_a_label_is_left_out():
    plain, method = (methods.create(f"nicd(ce=0, nicd=1, corrected={corrected})") for corrected in (False, True))
    seen = context(method)
    hidden = dataclasses.replace(seen.student, labels=torch.full_like(seen.student.labels, -1))
    teacher = dataclasses.replace(seen.teacher, labels=hidden.labels)
    seen = dataclasses.replace(seen, student=hidden, teacher=teacher)
    assert method(seen)["nicd"].item() == plain(seen)["nicd"].item()


@pytest.mark.parametrize("corrected", [False, True])
def test_ickd_is_the_weighted_sum_of_its_parts(corrected):
    method = methods.create(
        "ickd(ce=2, kd=3, picd=5, nicd=7, temperature=2, kappa=0.3, aggregation_temperature=None, "
        f"corrected={corrected})"
    )
    seen = context(method)
    terms, logits = method(seen), seen.student.logits
    near, far = seen.positives, seen.negatives
    teacher, positives, _, mask = given_samples(seen, corrected)
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=None)
    expected = {
        "ce": 2 * losses.cross_entropy(logits, seen.student.labels),
        "kd": 3 * losses.kd(logits, teacher, temperature=2),
        "picd": 5 * losses.picd(logits, positives, weights, temperature=2),
        "nicd": 7 * losses.nicd(logits, teacher, far.logits, mask, kappa=0.3),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


@pytest.mark.parametrize("corrected", [False, True])
def test_the_variants_of_ickd_are_their_losses(corrected):
    arguments = "temperature=2, form='relational', kappa=0.2, kappa_teacher=0.05, residual=0.5, gate=0.6"
    arguments += f", corrected={corrected}"
    method = methods.create(f"ickd(ce=2, kd=3, picd=5, nicd=7, {arguments})")
    seen = context(method)
    terms, logits, near, far = method(seen), seen.student.logits, seen.positives, seen.negatives
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=0.05)
    teacher, positives, own, mask = given_samples(seen, corrected)
    target = teacher + 0.5 * ((weights[..., None] * positives).sum(1) - own)
    gate = losses.entropy_gate(seen.teacher.logits, strength=0.6)
    pool = {"positive_logits": positives, "positive_mask": near.mask}
    relations = losses.relational_nicd(logits, teacher, far.logits, mask, **pool, kappa=0.2, kappa_teacher=0.05)
    expected = {
        "ce": 2 * losses.cross_entropy(logits, seen.student.labels),
        "kd": 3 * losses.kd(logits, target, temperature=2),
        "picd": 5 * losses.picd(logits, positives, weights, temperature=2, gate=gate),
        "nicd": 7 * relations,
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_outputs_for_mixed_images_and_samples_without_a_label_are_not_corrected():
    method, plain = methods.create("ickd(nicd=0, picd=0)"), methods.create("ickd(nicd=0, picd=0, corrected=False)")
    seen = context(method)
    assert method(seen)["kd"] != plain(seen)["kd"]
    mixed = dataclasses.replace(seen.teacher, soft=torch.full((B, C), 1 / C))
    unknown = dataclasses.replace(seen.teacher, labels=torch.full((B,), -1))
    for teacher in (mixed, unknown):
        changed = dataclasses.replace(seen, teacher=teacher)
        assert torch.equal(method(changed)["kd"], plain(changed)["kd"])


def test_without_a_residual_the_target_is_that_of_kd_bit_for_bit():
    method = methods.create("ickd(residual=0.0, picd=0, nicd=0, temperature=4.0, corrected=False)")
    assert method.retrieval is None
    seen = context(method)
    assert torch.equal(method(seen)["kd"], methods.create("kd")(seen)["kd"])
    other = methods.create("ickd(residual=0.5, corrected=False)")
    assert torch.equal(
        other._kd(seen.student, seen.sources("teacher")[0]),
        losses.kd(seen.student.logits, seen.teacher.logits, temperature=3),
    ), "before retrieval has started"


def test_which_samples_are_in_the_pool_does_not_depend_on_the_weight_of_picd():
    with_picd, without = methods.create("ickd(form='relational')"), methods.create("ickd(form='relational', picd=0)")
    assert with_picd.retrieval == without.retrieval and with_picd.retrieval.positives == 8
    seen = context(with_picd)
    assert torch.equal(with_picd(seen)["nicd"], without(seen)["nicd"])
    alone = methods.create("nicd(form='relational', positives=0, nicd=5)")
    assert alone.retrieval.positives == 0 and not torch.equal(alone(seen)["nicd"], without(seen)["nicd"])
    cold = methods.create("nicd(form='relational', positives=0, kappa_teacher=1e-6)")
    assert cold(seen)["nicd"].item() == pytest.approx(methods.create("nicd")(seen)["nicd"].item(), rel=1e-5)


def test_what_no_term_needs_is_not_asked_for():
    assert methods.create("ickd(picd=0, nicd=0)").needs == {"teacher"}
    assert methods.create("picd").needs == set()
    assert methods.create("picd").retrieval.negatives == 0
    assert methods.create("nicd").retrieval.positives == 0
    assert methods.create("nicd(anchor='aggregate')").needs == set()
    assert methods.create("nicd(anchor='aggregate')").retrieval.positives == 8
    for name in ("picd(query='view')", "picd(dynamic=True)", "picd(gate=1)", "nicd(form='relational')"):
        assert methods.create(name).needs == {"teacher"}
    assert methods.create("ickd(residual=1)").retrieval.own and not methods.create("ickd").retrieval.own


def test_a_sample_without_a_positive_is_not_separated_from_its_negatives():
    method = methods.create("ickd_self(ce=0, picd=0, nicd=1)")
    seen = context(method).earlier
    student = context(method).student
    lacking = torch.ones(B, 1, dtype=torch.bool)
    lacking[0] = False

    def nicd(**masks):
        samples = {name: dataclasses.replace(getattr(seen, name), mask=mask) for name, mask in masks.items()}
        guided = dataclasses.replace(context(method), student=student, earlier=dataclasses.replace(seen, **samples))
        return method(guided)["nicd"]

    near, far = seen.positives.mask, seen.negatives.mask
    without = nicd(positives=near & lacking, negatives=far)
    assert without.item() == pytest.approx(nicd(positives=near, negatives=far & lacking).item())
    assert torch.autograd.grad(without, student.logits)[0].abs().sum(1).gt(0).tolist() == [False] + (B - 1) * [True]
    assert nicd(positives=near & False, negatives=far) == 0


@pytest.mark.parametrize("name", ["dml(average=True)", "ickd_online", "ickd(source='peers', anchor='aggregate')"])
def test_peers_teach_in_equal_parts(name):
    method = methods.create(name)
    seen = context(method)
    each = [method(dataclasses.replace(seen, peers=(peer,))) for peer in seen.peers]
    expected = {term: sum(terms[term].item() for terms in each) / 2 for term in each[0]}
    assert {term: value.item() for term, value in method(seen).items()} == pytest.approx(expected)
    assert each[0]["kd"] != each[1]["kd"]


def test_the_aggregate_can_be_the_anchor():
    method = methods.create("nicd(anchor='aggregate', ce=0, form='hinge', margin=0.4, corrected=False)")
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
        ("ickd(nidc=1)", "unknown argument 'nidc' of method 'ickd'; did you mean 'nicd'"),
        ("ickd(nicd='much')", r"ickd\(nicd='much'\): expected a finite number of 0 or more"),
        ("ickd(nicd=", "cannot read method"),
        ("ickd(1)", "cannot read method"),
        ("kd(temperature=0)", r"kd\(temperature=0\): expected a finite number above 0"),
        ("ls(alpha=2)", r"ls\(alpha=2\): expected a finite number from 0 to 1"),
        ("ickd(positives=0)", "positives=0 must be 1 or more"),
        ("ickd(form='info')", "unknown form 'info'; did you mean 'infonce'"),
        ("ickd(ce=0, kd=0, picd=0, nicd=0)", "give at least one of them a weight"),
        ("ickd(form='relational', positives=0)", "positives=0 must be 1 or more"),
        ("ickd(form='relational', anchor='aggregate')", "give anchor='teacher'"),
        ("ickd_self(form='relational')", "give anchor='teacher'"),
        ("ickd(kappa_teacher=0)", "expected a finite number above 0"),
        ("picd(residual=0.5)", "changes the target of KD"),
        ("ickd_online(residual=0.5)", "changes the target of KD from a teacher"),
        ("nicd(gate=1)", "is a factor of PICD"),
        ("ickd(gate=2)", "expected a finite number from 0 to 1"),
        ("ickd_self(dynamic=True)", "for in-context samples from a teacher's bank"),
        ("ickd(dynamic=True, picd=0, nicd=0)", "give picd, nicd or residual a weight"),
        ("ickd(order='random', query='view')", "searches for the nearest samples"),
        ("refilled(share=2)", "expected a finite number from 0 to 1"),
        ("kd(standardised='False')", "expected True or False"),
        ("crd(negatives=0.5)", r"crd\(negatives=0.5\): expected a whole number of 1 or more"),
        ("ctkd(of='ce')", "'ce' has no temperature that ctkd could learn"),
        ("ctkd(of='kdd')", "unknown method 'kdd'; did you mean 'kd'"),
        ("ctkd(epochs=0)", "expected a whole number of 1 or more"),
        ("dkd(warmup=0.1)", "expected a whole number of 0 or more"),
        ("ickd+dits", "unknown method 'dits'; did you mean 'dist'"),
        ("ickd+ce", "'ce' has no weight of cross-entropy that could be 0; write it before the \\+, or leave it out"),
        ("refilled+refilled", "has several methods with phases"),
    ],
)
def test_impossible_methods_are_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        methods.create(name)
    assert "\n" not in str(caught.value)


def test_arguments_of_an_own_method_that_cannot_be_given_are_named(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @methods.register("positional")
    class Positional(methods.Method):
        def __init__(self, weight=1.0):
            pass

    with pytest.raises(InputError, match=r"'weight' of method 'positional' is not keyword-only; write it after a \*"):
        methods.create("positional(weight=2)")
    with pytest.raises(InputError, match=r"unknown argument 'wait' of method 'positional' \(known: none\)"):
        methods.create("positional(wait=2)")
    with pytest.raises(InputError, match=r"does not call super\(\)"):
        methods.create("positional")


def test_describe_is_read_back():
    text = "ickd(positives=4, aggregation_temperature=None, average='probabilities')"
    assert methods.describe(methods.create(text)) == text
    assert methods.create(methods.describe(methods.create(text))).config == methods.create(text).config


def test_a_name_is_registered_once_and_reloading_replaces(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def make(qualname):
        return type("Mine", (Method,), {"__module__": "notebook", "__qualname__": qualname})

    methods.register("mine")(make("Mine"))
    again = methods.register("mine")(make("Mine"))
    assert type(methods.create("mine")) is again
    with pytest.raises(InputError, match=r"method 'mine' is already registered: notebook\.Mine"):
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


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("ickd", 1000, 128),
        ("ickd", 90, 30),
        ("ickd(negatives=8)", 90, 8),
        ("nicd(negatives=500)", 900, 300),
        ("dkd+ickd", 90, 30),
        ("ickd(per_class=True)", 1000, 9),
        ("ickd(nicd=0)", 90, 0),
    ],
)
def test_negatives_are_at_most_a_third_of_the_images(name, rows, expected):
    method = methods.create(name)
    method.setup(8, 8, 10, rows)
    assert [spec.negatives for spec in method.retrievals] == [expected]


@pytest.mark.parametrize(
    ("labels", "few_allowed", "expected"),
    [
        ([0] * 80 + [1] * 20, False, 20),  # only 20 rows have another class than 0
        ([0] * 50 + [1] * 50, False, 33),
        ([0] * 80 + [1] * 20, True, 33),  # in segmentation and detection, a sample may have fewer
        ([0] * 80 + [-1] * 20, False, 33),  # and if images have no label, it is not known how many there are
    ],
)
def test_negatives_are_at_most_the_rows_outside_the_most_frequent_class(labels, few_allowed, expected, capfd):
    method = methods.create("kd+ickd")
    method.describe_bank(torch.tensor(labels), larger=False, few_allowed=few_allowed)
    method.setup(8, 8, 2, 100)
    assert [spec.negatives for spec in method.retrievals] == [expected]
    assert ("only 20 samples are not of the most frequent class" in capfd.readouterr().err) == (expected == 20)


@pytest.mark.parametrize(
    ("labels", "trained", "few_allowed", "expected"),
    [
        ([0] * 5 + [1] * 9, None, False, 4),
        ([0] * 5 + [1] * 9, [1] * 3, False, 8),  # no training sample is of the smaller class
        ([0] * 5 + [1] * 9, None, True, 8),
        ([0] * 5 + [-1] * 9, None, False, 8),
    ],
)
def test_positives_are_at_most_the_other_rows_of_the_smallest_class(labels, trained, few_allowed, expected, capfd):
    method = methods.create("kd+ickd")
    trained = trained and torch.tensor(trained)
    method.describe_bank(torch.tensor(labels), larger=False, few_allowed=few_allowed, trained=trained)
    method.setup(8, 8, 2, len(labels))
    assert [spec.positives for spec in method.retrievals] == [expected]
    assert ("ickd uses 4 positives instead of 8" in capfd.readouterr().err) == (expected == 4)


def test_a_class_of_one_image_has_no_positives():
    labels = torch.tensor([0] * 5 + [1])
    for given, advised in (
        ({}, {"picd": 0}),
        ({"form": "relational"}, {"picd": 0, "positives": 0}),
        ({"form": "relational", "picd": 0}, {"positives": 0}),
        ({"picd": 0, "residual": 0.5}, {"residual": 0}),
        ({"anchor": "aggregate", "gate": 0.5}, {"anchor": "teacher", "picd": 0, "gate": 0}),
    ):
        method = methods.create("ickd", **given)
        method.describe_bank(labels, larger=False, few_allowed=False)
        text = ", ".join(f"{key}={value!r}" for key, value in advised.items())
        with pytest.raises(InputError, match=f"a class has a single image.* or ickd with {text}, which needs no pos"):
            method.setup(8, 8, 2, 6)
        method = methods.create("ickd", **{**given, **advised})
        method.describe_bank(labels, larger=False, few_allowed=False)
        method.setup(8, 8, 2, 6)
    method = methods.create("ickd(picd=0)")
    method.describe_bank(labels, larger=False, few_allowed=False)
    method.setup(8, 8, 2, 6)


@pytest.mark.parametrize("few_allowed", [False, True])
@pytest.mark.parametrize("name", ["nicd", "ickd", "ickd(negatives_order='class')", "ickd_self", "kd+ickd"])
def test_one_class_has_no_negatives(name, few_allowed):
    for given in (name, "ickd(nicd=0)", "ickd(form='relational')"):
        method = methods.create(given)
        method.describe_bank(torch.zeros(30).long(), larger=False, few_allowed=few_allowed)
        if given == name:
            with pytest.raises(InputError, match=r"needs negatives of other classes.* have one class; give nicd=0"):
                method.setup(8, 8, 1, 30)
        else:
            method.setup(8, 8, 1, 30)


def test_a_third_is_that_of_a_larger_bank():
    method = methods.create("ickd")
    method.bank_rows = 300
    method.setup(8, 8, 10, 90)
    assert method.retrieval.negatives == 100
    method = methods.create("ickd_self")
    method.bank_rows = 300
    method.setup(8, 8, 10, 60)
    assert method.retrieval.negatives == 20
