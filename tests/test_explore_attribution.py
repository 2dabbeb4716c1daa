"""Contributions of training samples equal a plain autograd loop, and those of in-context samples divide their terms."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import data, explore, losses, methods, models, runtime, training
from ickd_lib.explore.gradients import Retrieved, Shares, limit_scale, term_gradients
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Output
from ickd_lib.runtime import InputError
from ickd_lib.training import KeepWeights, Recipe, Student

RECIPE = Recipe(epochs=4, lr=0.05, schedule="cosine", batch_size=30)
METHOD = "ickd(nicd=2.0, positives=4, negatives=16, limit=None, corrected=False)"
TERMS = ("ce", "kd", "picd", "nicd")


@pytest.fixture(scope="module")
def trained(digits, teacher, bank, tmp_path_factory):
    """A run of in-context distillation that keeps the weights of epochs 2 and 4."""
    options = {"recipe": RECIPE, "device": "cpu", "precision": "fp32", "progress": False}
    folder = tmp_path_factory.mktemp("runs")
    (history,) = training.distill(
        [Student("resnet8", METHOD)],
        digits,
        teacher=teacher,
        bank=bank,
        runs=folder,
        callbacks=[KeepWeights(2)],
        **options,
    ).values()
    return history


@pytest.fixture(scope="module")
def attributor(trained, digits, bank):
    return explore.Attributor(trained.folder, trained.network, digits.train, bank=bank)


def test_weights_are_kept_in_the_run_folder(trained, attributor):
    names = sorted(path.name for path in (trained.folder / "weights").iterdir())
    assert names == ["epoch-0002.safetensors", "epoch-0004.safetensors"]
    last = models.load_weights(attributor.network, trained.folder / "weights" / names[1]).state_dict()
    assert all(torch.equal(value, trained.network.state_dict()[name]) for name, value in last.items())
    lr = [record["lr"] / 30 for record in trained.epochs]
    assert [step.rate for step in attributor.steps] == pytest.approx([lr[0] + lr[1], lr[2] + lr[3]])


def test_a_relative_folder_is_found_after_a_change_of_folder(trained, digits, bank, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.folder.parent)
    made = explore.Attributor(trained.folder.name, trained.network, digits.train, bank=bank)
    monkeypatch.chdir(tmp_path)
    assert len(made.outputs(digits.test.subset(torch.arange(4)))) == 2


def plain_loss(term, z, i, bank, images):
    """One term of METHOD for one sample, written down from its formula."""
    label, row = images.labels[i], bank.rows(images.index[i : i + 1])
    if term == "ce":
        return 0.1 * F.cross_entropy(z[None], label[None])
    own = bank.logits[row[0]].double()
    if term == "kd":
        return 0.9 * 9 * F.kl_div(F.log_softmax(z / 3, 0), F.softmax(own / 3, 0), reduction="sum")
    cosine = bank.features.double() @ bank.features[row[0]].double()
    cosine[row] = -2
    same = bank.labels == label
    if term == "picd":
        near = cosine.masked_fill(~same, -2).topk(4)
        target = (near.values / 0.05).softmax(0) @ bank.logits[near.indices].double()
        return 0.3 * 9 * F.kl_div(F.log_softmax(z / 3, 0), F.softmax(target / 3, 0), reduction="sum")
    far = cosine.masked_fill(same, -2).topk(16).indices
    scores = torch.stack([F.cosine_similarity(z, other.double(), dim=0) for other in [own, *bank.logits[far]]])
    return -2 * (scores / 0.1).log_softmax(0)[0]


def whole(gradients):
    """The gradients of weight and bias as one matrix, [C, D + 1]."""
    return torch.cat([gradients[0], gradients[1][:, None]], 1)


def in_float64(attributor, outputs, damping):
    """The attributor with the outputs of its weights in float64, and these outputs for the training samples."""
    found, images, bank = [], attributor.images, attributor.bank
    spec = attributor.method.retrieval
    retrieved = Retrieved.of(bank, spec, images.index, 0)
    for step, output in zip(attributor.steps, outputs, strict=True):
        z = output.logits.double()
        teacher = bank.logits[bank.rows(images.index)].double()
        gradients = term_gradients(attributor.method, z, images.labels, teacher, {spec: retrieved.samples(bank, z)})
        shares = (Shares(attributor.method, bank, retrieved, z, images.labels),)
        features = explore.contributions.compared(output.features.double(), damping)
        found.append(replace(step, features=features, gradients=gradients, shares=shares))
    return found


@pytest.mark.parametrize("damping", [None, 0.2])
def test_contributions_equal_an_autograd_loop_over_samples_and_weights(attributor, digits, bank, monkeypatch, damping):
    """All parameters of the last layer, in float64."""
    images = digits.train
    at, queries = 5, digits.test.subset(torch.arange(8))
    of_train = attributor.outputs(images)
    of_queries = [Output(one.logits.double(), one.features.double()) for one in attributor.outputs(queries)]
    monkeypatch.setattr(attributor, "steps", in_float64(attributor, of_train, damping))
    found = attributor.attribute(of_queries, at)
    assert found.label == int(of_queries[-1].logits[at].argmax())
    expected = {term: torch.zeros(12, dtype=torch.double) for term in TERMS}
    for path, step, train, query in zip(attributor.paths, attributor.steps, of_train, of_queries, strict=True):
        models.load_weights(attributor.network, path)
        _, layer = models.classifier(attributor.network)
        x = torch.cat([train.features.double(), torch.ones(len(images), 1)], 1)
        moments = sum(torch.outer(one, one) for one in x) / len(x)
        inverse = torch.eye(x.shape[1], dtype=torch.double)
        if damping:
            inverse = torch.linalg.inv(moments / moments.diagonal().mean() + damping * inverse)
        weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
        # The outputs of float32 differ from the layer's in float64 by rounding, which the offset takes out.
        offset = query.logits[at] - (weight.detach() @ query.features[at] + bias.detach())
        z = weight @ query.features[at] + bias + offset
        others = torch.cat([z[: found.label], z[found.label + 1 :]])
        margin = whole(torch.autograd.grad(z[found.label] - others.logsumexp(0), (weight, bias))) @ inverse
        for i in range(12):
            feature, logits = train.features[i].double(), train.logits[i].double()
            offset = logits - (weight.detach() @ feature + bias.detach())
            for term in TERMS:
                loss = plain_loss(term, weight @ feature + bias + offset, i, bank, images)
                expected[term][i] -= step.rate * (margin * whole(torch.autograd.grad(loss, (weight, bias)))).sum()
    for term in TERMS:
        torch.testing.assert_close(found.terms[term][:12], expected[term], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.total, sum(found.terms.values()))


VARIANTS = [
    {},
    {"average": "probabilities", "gate": 0.5},
    {"form": "hinge", "margin": 0.5},
    {"form": "relational"},
    {"form": "relational", "picd": 0},
    {"anchor": "aggregate", "order": "random"},
    {"anchor": "aggregate", "form": "hinge", "picd": 0.0},
    {"per_class": True, "aggregation_temperature": None},
    {"nicd": 0},
    {"picd": 0},
    {"limit": None},
    {"limit": 0.1, "form": "hinge"},
    {"corrected": False},
]


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_shares_of_in_context_samples_sum_to_the_gradient_of_their_terms(variant, bank, digits, unlabelled):
    given = {"nicd": 2.0, "positives": 4, "negatives": 9, "kappa": 0.3} | variant
    method, images = methods.create("ickd", **given), digits.train
    spec = method.retrieval
    retrieved = Retrieved.of(bank, spec, images.index, 3)
    logits = 3 * torch.randn(len(images), 10, dtype=torch.double, generator=runtime.generator("logits"))
    teacher = bank.logits[bank.rows(images.index)].double()
    labels = images.labels.masked_fill(torch.arange(len(images)) % 3 == 0, -1) if unlabelled else images.labels
    samples = logits, labels, teacher, {spec: retrieved.samples(bank, logits)}
    found = term_gradients(method, *samples)
    scale = limit_scale(method, *samples)
    assert 0 < scale < 1 if method.limits == {"nicd": 0.1} else 0 < scale <= 1
    shares = Shares(method, bank, retrieved, logits, labels, scale)
    direction = torch.randn(10, dtype=torch.double, generator=runtime.generator("direction"))
    parts = shares.along(direction)
    expected = sum(found[term] for term in ("picd", "nicd") if term in found) @ direction
    torch.testing.assert_close(sum(one.sum(1) for one in parts.values()), expected, rtol=1e-9, atol=1e-9)
    assert {role for role, one in parts.items() if one.abs().sum() > 0} == {
        *(["positive"] if method.picd or method.anchor == "aggregate" or method.form == "relational" else []),
        *(["negative", "own"] if method.nicd else []),
    } - ({"own"} if method.anchor == "aggregate" else set())
    near, far = retrieved.samples(bank, logits)
    assert (near.index != images.index[:, None]).all() and (far.index != images.index[:, None]).all()


def test_the_share_of_a_negative_is_that_of_the_denominator(bank, digits):
    """InfoNCE: the derivative by a cosine is the softmax over the pool, divided by κ."""
    method, images = methods.create("nicd", ce=0.0, nicd=1.0, negatives=5, kappa=0.2, corrected=False), digits.train
    retrieved = Retrieved.of(bank, method.retrieval, images.index, 0)
    logits = torch.randn(len(images), 10, dtype=torch.double, generator=runtime.generator("logits"))
    _, _, cosines, slopes = Shares(method, bank, retrieved, logits, images.labels).pool
    share = (cosines / 0.2).softmax(1) / 0.2
    torch.testing.assert_close(slopes[:, 1:], share[:, 1:])
    torch.testing.assert_close(slopes[:, 0], -share[:, 1:].sum(1))
    cosine = F.cosine_similarity(logits[:, None], bank.logits.double()[retrieved.far.rows], dim=2)
    torch.testing.assert_close(cosines[:, 1:], cosine)


def test_roles_are_sums_over_the_samples_that_retrieved_a_row(attributor, digits, bank):
    outputs = attributor.outputs(digits.test.subset(torch.arange(3)))
    found = attributor.attribute(outputs, 1)
    context = found.terms["picd"].sum() + found.terms["nicd"].sum()
    torch.testing.assert_close(sum(one.sum() for one in found.roles.values()), context, rtol=1e-4, atol=1e-4)
    at = bank.rows(found.keys)
    expected = found.total + found.roles["positive"][at] + found.roles["negative"][at]
    torch.testing.assert_close(found.with_roles(), expected)
    shares = attributor.steps[0].shares[0]
    counts = torch.bincount(shares.retrieved.far.rows[shares.far.mask], minlength=len(bank))
    assert torch.equal(counts > 0, found.roles["negative"] != 0)
    assert len(repr(found)) < 200 and "2 weights" in repr(attributor)


def test_one_call_is_the_same_as_an_attributor(trained, attributor, digits, bank):
    query = digits.test.subset(torch.tensor([6]))
    found = explore.attribution(trained.folder, trained.network, digits.train, query, bank=bank, label=2)
    again = attributor.attribute(attributor.outputs(digits.test.subset(torch.arange(8))), 6, label=2)
    assert found.label == 2 and found.margin == pytest.approx(again.margin, rel=1e-4)
    torch.testing.assert_close(found.total, again.total, rtol=1e-3, atol=1e-5)
    z = attributor.outputs(query)[-1].logits[0].double()
    p = z.softmax(0)[2]
    assert found.margin == pytest.approx(float(p.log() - (1 - p).log()), rel=1e-4)


def test_in_context_terms_contribute_only_after_their_warmup(digits, teacher, bank, tmp_path):
    """PICD and NICD start after half of four epochs, so that the weights of epoch 2 were trained without them."""
    method = "ickd(positives=4, negatives=16, warmup=0.5)"
    options = {"device": "cpu", "precision": "fp32", "progress": False, "callbacks": [KeepWeights(1)]}
    (history,) = training.distill(
        [Student("resnet8", method)], digits, teacher=teacher, bank=bank, recipe=RECIPE, runs=tmp_path, **options
    ).values()
    attributor = explore.Attributor(history.folder, history.network, digits.train, bank=bank)
    assert [len(step.shares) for step in attributor.steps] == [0, 0, 1, 1]
    for term in TERMS:
        given = [bool(step.gradients[term].any()) for step in attributor.steps]
        assert given == ([True] * 4 if term in ("ce", "kd") else [False, False, True, True])


@pytest.mark.parametrize("method", ["ce", "kd", "kd+dkd", "ls"])
def test_methods_without_in_context_terms(method, digits, teacher, bank, tmp_path):
    needs = methods.create(method).needs_teacher
    (history,) = training.distill(
        [Student("resnet8", method)],
        digits,
        teacher=teacher if needs else None,
        recipe=replace(RECIPE, epochs=2),
        device="cpu",
        precision="fp32",
        progress=False,
        runs=tmp_path,
    ).values()
    with pytest.raises(InputError, match="keeps no weights of earlier epochs"):
        explore.Attributor(history.folder, history.network, digits.train, bank=bank)
    found = explore.Attributor(
        history.folder, history.network, digits.train, bank=bank if needs else None, checkpoints="last"
    )
    one = found.attribute(found.outputs(digits.test.subset(torch.arange(2))))
    assert one.roles == {} and len(one.rows) == 0 and torch.equal(one.with_roles(), one.total)
    assert one.total.isfinite().all() and one.total.abs().max() > 0
    if needs:
        with pytest.raises(InputError, match="needs a teacher; give bank="):
            explore.Attributor(history.folder, history.network, digits.train, checkpoints="last")


def test_images_without_labels_contribute_through_the_other_terms(teacher, tmp_path):
    mixed = data.load("digits", labels=40, unlabelled=60)
    options = {"recipe": replace(RECIPE, epochs=2), "device": "cpu", "precision": "fp32", "progress": False}
    student = Student("resnet8", "ickd(positives=2, negatives=8)")
    (history,) = training.distill(
        [student], mixed, teacher=teacher, runs=tmp_path, callbacks=[KeepWeights(1)], **options
    ).values()
    bank = MemoryBank.build(teacher, mixed.train, precision="fp32")
    attributor = explore.Attributor(history.folder, history.network, mixed.train, bank=bank)
    found = attributor.attribute(attributor.outputs(mixed.test.subset(torch.arange(2))))
    known = mixed.train.labels >= 0
    assert bool((found.terms["ce"][~known] == 0).all()) and bool((found.terms["ce"][known] != 0).all())
    assert all(bool((found.terms[term][~known] != 0).all()) for term in ("kd", "picd", "nicd"))
    assert bool((found.roles["positive"][bank.rows(found.keys[~known])] != 0).any())
    assert explore.attributable("kd+ickd") and not explore.attributable("rkd")


def test_what_does_not_fit_is_an_error_in_one_line(trained, digits, bank, tmp_path):
    run, network = trained.folder, trained.network

    def fails(text, *given, **more):
        with pytest.raises(InputError, match=text) as error:
            explore.Attributor(*given, **more)
        assert "\n" not in str(error.value)

    other = data.load("digits", labels=100).train
    fails("was trained with other images than digits/train with 100 images", run, network, other, bank=bank)
    foreign = MemoryBank(bank.features, bank.logits, bank.labels, bank.index, bank.classes, source={"teacher": "x"})
    fails("the bank is not of resnet8", run, network, digits.train, bank=foreign)
    fails(re.escape(str(tmp_path)), tmp_path, network, digits.train)
    for name in ("rkd", "dist", "crd", "ickd_online", "ickd(dynamic=True)", "ickd(order='class')"):
        with pytest.raises(InputError, match="contributions are defined for methods such as ce, kd, dkd and ickd"):
            explore.gradients.require_attributable(methods.create(name))
    with pytest.raises(InputError, match="query has 2 images; give one"):
        explore.attribution(run, network, digits.train, digits.test.subset(torch.arange(2)), bank=bank)
    found = explore.Attributor(run, network, digits.train, bank=bank)
    with pytest.raises(InputError, match="label=10 is not one of the 10 classes"):
        found.attribute(found.outputs(digits.test.subset(torch.arange(1))), label=10)
    with pytest.raises(InputError, match="KeepWeights writes into run folders"):
        training.distill([Student("resnet8", "ce")], digits, recipe=RECIPE, callbacks=[KeepWeights()], progress=False)
    with pytest.raises(InputError, match="every"):
        KeepWeights(0)


def test_picd_gradient_is_that_of_the_loss(bank, digits):
    """The gradient that the shares sum to is that of `losses.picd` itself."""
    method, images = methods.create("picd", ce=0.0, picd=1.0, positives=3, corrected=False), digits.train
    retrieved = Retrieved.of(bank, method.retrieval, images.index, 0)
    logits = torch.randn(len(images), 10, dtype=torch.double, generator=runtime.generator("z")).requires_grad_()
    near, _ = retrieved.samples(bank, logits)
    weights = losses.aggregation_weights(near.similarity, near.mask, temperature=0.05)
    (losses.picd(logits, near.logits, weights, temperature=3.0) * len(images)).backward()
    parts = Shares(method, bank, retrieved, logits.detach(), images.labels).along(torch.eye(10, dtype=torch.double)[4])
    torch.testing.assert_close(parts["positive"].sum(1), logits.grad[:, 4], rtol=1e-9, atol=1e-9)


def test_a_method_with_learnt_parameters_has_no_contributions():
    assert explore.attributable("kd") and not explore.attributable("ctkd")
