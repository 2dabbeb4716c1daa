"""CIRKD's queues, its terms and its training; channel-wise distillation; map methods on dense networks."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ickd_lib import losses, methods, models
from ickd_lib.methods import Context
from ickd_lib.methods.queues import ClassQueues, some_of_each
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Pixels, Samples

pytestmark = pytest.mark.usefixtures("seeded")
B, C, D = 3, 5, 6
SMALL = "pixel_memory=20, region_memory=4, pixel_contrast=30, region_contrast=15, pixels_per_image=3"


def masks():
    """Labels of B images: each has two classes of its own and a column that does not count."""
    labels = torch.arange(B)[:, None, None].repeat(1, 4, 5)
    labels[:, 2:] += 2
    labels[:, :, -1] = -1
    return labels


def samples(logits, features, labels, maps=()):
    """Samples of class regions from the outputs at every pixel and their labels."""
    valid = labels >= 0
    keys = torch.arange(len(labels))[:, None, None] * 100 + labels
    found, region = keys[valid].unique(return_inverse=True)
    places = torch.full_like(labels, -1)
    places[valid] = region
    means = [
        torch.stack([one.movedim(1, -1)[places == r].mean(0) for r in range(len(found))]) for one in (logits, features)
    ]
    pixels = Pixels(logits, features, labels, places)
    return Samples(*means, found % 100, found, found // 100, maps, pixels=pixels)


def drawn_samples(dim=D):
    return samples(torch.randn(B, C, 4, 5, requires_grad=True), torch.randn(B, dim, 4, 5, requires_grad=True), masks())


def prepared(name, student_dim=D, teacher_dim=D, rows=1000):
    method = methods.create(name)
    method.setup(student_dim, teacher_dim, C, rows)
    return method


# ----------------------------------------------------------------------------------------- queues


def test_a_queue_holds_the_newest_rows_of_each_class_at_unit_length():
    queues, expected = ClassQueues(3, 4, 2), {c: [] for c in range(3)}
    for step in range(5):
        labels = torch.randint(2, (7,))  # class 2 is never written
        rows = torch.randn(7, 2)
        queues.push(rows, labels)
        for row, label in zip(rows, labels.tolist(), strict=True):
            expected[label].append(row / row.norm())
        for c, all_rows in expected.items():
            assert queues.written[c] == len(all_rows), step
            kept = sorted(row.tolist() for row in queues.rows[c][: len(all_rows)])
            newest = sorted(row.tolist() for row in all_rows[-4:])
            assert torch.allclose(torch.tensor(kept), torch.tensor(newest))
    queues.push(torch.randn(0, 2), torch.zeros(0).long())
    assert queues.written.sum() == 35


def test_draws_are_balanced_random_and_never_empty_rows():
    queues = ClassQueues(3, 10, 2)
    queues.push(torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 1, 1]))
    for _ in range(20):
        rows, mask = queues.draw(3)
        assert rows.shape == (9, 2) and mask.view(3, 3).sum(1).tolist() == [3, 2, 0]
        assert (rows[mask].norm(dim=1) > 0.99).all() and len(rows[mask].unique(dim=0)) == 5
    sets = {tuple(queues.draw(3)[0][:3].sort(0).values.flatten().tolist()) for _ in range(40)}
    assert len(sets) == 4  # all choices of 3 of 4 rows
    assert queues.draw(50)[0].shape == (30, 2)


def test_some_of_each_group_are_chosen_at_random():
    groups = torch.tensor([5, 2, 5, 5, 2, 9, 5])
    seen = set()
    for _ in range(60):
        chosen = some_of_each(groups, 2)
        assert groups[chosen].bincount().tolist() == [0, 0, 2, 0, 0, 2, 0, 0, 0, 1]
        seen.update(chosen.tolist())
    assert seen == set(range(7))


def test_each_class_gets_its_own_pixels_and_region_means():
    method = prepared(f"cirkd({SMALL})")
    student, teacher = drawn_samples(), drawn_samples()
    method(Context(None, student, torch.tensor(0.0), teacher))
    unit = F.normalize(teacher.pixels.features, dim=1).movedim(1, -1)
    for c in range(C):
        own = unit[masks() == c]
        images = [i for i in range(B) if (masks()[i] == c).any()]
        filled = method.pixel_queues.rows[c][: method.pixel_queues.written[c]]
        assert len(filled) == 3 * len(images)
        assert all((own - row).abs().sum(1).min() < 1e-5 for row in filled)
        regions = method.region_queues.rows[c][: method.region_queues.written[c]]
        means = F.normalize(torch.stack([unit[i][masks()[i] == c].mean(0) for i in images]), dim=1)
        assert torch.allclose(regions, means, atol=1e-6)
    assert not method.pixel_queues.rows.requires_grad


def test_the_queues_are_as_long_as_the_data_need():
    method = prepared("cirkd", rows=40)
    assert method.pixel_queues.rows.shape == (C, 640, D) and method.region_queues.rows.shape == (C, 40, D)
    assert method.drawn == (4096 // C + 1, 1024 // C + 1)
    method = prepared("cirkd", rows=10**6)
    assert method.pixel_queues.rows.shape == (C, 20000, D) and method.region_queues.rows.shape == (C, 2000, D)


# ----------------------------------------------------------------------------------------- terms


def test_cirkd_is_the_weighted_sum_of_its_losses():
    everything = "pixel_contrast=1000, region_contrast=1000"  # so that no draw matters
    method = prepared(
        f"cirkd(ce=2, kd=3, batch=5, pixel=7, region=11, temperature=0.2, kd_temperature=2, {everything})"
    )
    student, teacher = drawn_samples(), drawn_samples()
    terms = method(Context(None, student, torch.tensor(0.5), teacher))
    mine, theirs = student.pixels, teacher.pixels
    valid = masks() >= 0
    rows = [one.logits.movedim(1, -1)[valid] for one in (mine, theirs)]
    embedding = method.projector(mine.features).movedim(1, -1)[valid]
    target = theirs.features.movedim(1, -1)[valid]
    far = []
    for queues in (method.pixel_queues, method.region_queues):
        filled = torch.arange(queues.rows.shape[1]) < queues.written[:, None]
        queue = queues.rows[filled]
        mask = torch.ones(len(queue)).bool()
        far.append(losses.queue_similarity(embedding, target, queue, mask, temperature=0.2))
    expected = {
        "ce": 1.0,
        "kd": 3 * losses.kd(*rows, temperature=2).item(),
        "batch": 5 * losses.pixel_similarity(mine.features, theirs.features, temperature=0.2).item(),
        "pixel": 7 * far[0].item(),
        "region": 11 * far[1].item(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_pooling_averages_the_features_that_are_compared_in_the_batch():
    student, teacher = drawn_samples(), drawn_samples()
    found = prepared(f"cirkd({SMALL}, pooling=2)")(Context(None, student, torch.tensor(0.5), teacher))["batch"]
    pooled = [F.avg_pool2d(one.pixels.features, 2) for one in (student, teacher)]
    assert found.item() == pytest.approx(losses.pixel_similarity(*pooled, temperature=0.1).item(), rel=1e-5)


def test_anchors_are_the_pixels_that_are_compared_with_the_memories(monkeypatch):
    sizes, plain = [], losses.queue_similarity
    monkeypatch.setattr(
        losses,
        "queue_similarity",
        lambda own, target, *rest, **options: (
            sizes.append((len(own), len(target))) or plain(own, target, *rest, **options)
        ),
    )
    valid = int((masks() >= 0).sum())
    for anchors, expected in ((0, valid), (7, 7), (10**6, valid)):
        sizes.clear()
        prepared(f"cirkd({SMALL}, anchors={anchors})")(
            Context(None, drawn_samples(), torch.tensor(0.5), drawn_samples())
        )
        assert sizes == [(expected, expected)] * 2


def test_a_batch_without_pixels_that_count_adds_nothing_but_the_term_of_the_batch():
    method = prepared(f"cirkd({SMALL})")
    none = torch.full((B, 4, 5), -1)
    maps = [torch.randn(B, size, 4, 5, requires_grad=True) for size in (C, D, C, D)]
    empty = torch.zeros(0).long()
    student, teacher = (
        Samples(torch.zeros(0, C), torch.zeros(0, D), empty, empty, empty, pixels=Pixels(*pair, none, none))
        for pair in (maps[:2], maps[2:])
    )
    terms = method(Context(None, student, torch.tensor(0.0), teacher))
    torch.stack(list(terms.values())).sum().backward()
    assert terms["batch"] > 0 and all(terms[name] == 0 for name in ("kd", "pixel", "region"))
    assert maps[1].grad.isfinite().all() and not method.pixel_queues.written.any()


def test_cirkd_resumes_exactly():
    """The queues and their positions are part of the state."""
    method = prepared(f"cirkd({SMALL})", 4)
    steps = [(drawn_samples(4), drawn_samples()) for _ in range(6)]

    def run(one, some, seed):
        torch.manual_seed(seed)
        return [
            {name: term.item() for name, term in one(Context(None, s, torch.tensor(0.0), t)).items()} for s, t in some
        ]

    run(method, steps[:3], 0)
    stored = copy.deepcopy(method.state_dict())
    expected = run(method, steps[3:], 1)
    other = prepared(f"cirkd({SMALL})", 4)
    other.load_state_dict(stored)
    assert run(other, steps[3:], 1) == expected
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("name", ["cirkd", "cwd", "cwd(cwd=50, on='features')"])
def test_the_terms_fall_when_a_small_network_is_trained(name):
    images, labels = torch.rand(4, 3, 8, 8), torch.randint(C, (4, 8, 8))
    networks = [nn.Sequential(nn.Conv2d(3, dim, 3, padding=1), nn.ReLU()) for dim in (8, D)]
    heads = [nn.Conv2d(dim, C, 1) for dim in (8, D)]

    def output(one):
        features = networks[one](images)
        return samples(heads[one](features), features, labels)

    method = prepared(name, 8, D, rows=20)
    with torch.no_grad():
        teacher = output(1)
    parameters = [*networks[0].parameters(), *heads[0].parameters(), *method.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    history = []
    for _ in range(60):
        terms = method(Context(None, output(0), torch.tensor(0.0), teacher))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        history.append({term: value.item() for term, value in terms.items() if term != "ce"})
    assert all(history[-1][term] < 0.7 * first for term, first in history[0].items()), (history[0], history[-1])


def test_channel_wise_distillation_of_features_projects_where_the_numbers_differ():
    assert isinstance(prepared("cwd(on='features')").projector, nn.Identity)
    method = prepared("cwd(on='features')", 4)
    student, teacher = drawn_samples(4), drawn_samples()
    expected = 3 * losses.channel_wise(method.projector(student.pixels.features), teacher.pixels.features)
    assert method(Context(None, student, torch.tensor(0.0), teacher))["cwd"].item() == pytest.approx(expected.item())
    assert methods.create("cwd(on='features')").label_space == "any"
    logits = prepared("cwd", 4)
    expected = 3 * losses.channel_wise(student.pixels.logits, teacher.pixels.logits)
    assert logits(Context(None, student, torch.tensor(0.0), teacher))["cwd"].item() == pytest.approx(expected.item())


# ----------------------------------------------------------------------------------------- dense networks

COMPARING = ["at", "catkd", "ckd(ckd=0.1)+hcl", "fitnet", "hcl", "pkt", "reviewkd", "rkd", "sp", "uskd", "vid", "wkd_f"]


def loss_of(name, networks, size, output, columns):
    """Adapt and set up a method for a pair of networks, and compute its loss."""
    method = methods.create(name)
    student, teacher = networks
    assert method.adapt(student, teacher, size) is student
    method.setup(student.features_dim, teacher.features_dim, columns, 50)
    layers = tuple(models.classifier(one)[1] for one in networks)
    terms = method(
        Context(None, output[0], output[0].logits.sum() * 0, output[1], classifiers=layers, epoch=30, epochs=60)
    )
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("name", [*COMPARING, "wkd_l", "cirkd", "cwd"])
def test_methods_take_the_regions_of_a_segmentation(name):
    student, teacher = models.create("resnet8-fcn", C), models.create("vgg8-fcn", C).eval().requires_grad_(False)
    images, labels = torch.rand(B, 3, 16, 16), masks().repeat_interleave(4, 1)[:, :16, :1].expand(B, 16, 16).clone()
    outputs = []
    for one in (student, teacher):
        found = one(images, maps=True)
        sized = [F.interpolate(maps, (8, 8)) for maps in (found.logits, found.features)]
        outputs.append(samples(*sized, labels[:, ::2, ::2], found.maps))
    assert len(outputs[0].labels) == 2 * B
    loss = loss_of(name, (student, teacher), (16, 16), outputs, C)
    loss.backward()
    assert loss.isfinite() and student.backbone.body.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [*[name for name in COMPARING if name != "catkd"], "wkd_l"])
def test_methods_take_the_proposals_and_the_pyramid_of_a_detector(name):
    student, teacher = models.create("resnet8-fpn", C), models.create("resnet20-fpn", C).eval().requires_grad_(False)
    assert len(models.map_shapes(student, (40, 40))) == 3
    objects = [SimpleNamespace(boxes=torch.tensor([[4.0, 4, 20, 24]]), labels=torch.tensor([i])) for i in range(2)]
    images = torch.rand(2, 3, 40, 40)
    mine = student(images, objects, maps=True)
    theirs = teacher.at_boxes(images, mine.regions.boxes, maps=True)
    outputs = [
        Samples(one.logits, one.features, mine.labels, mine.matched, one.image, one.maps, boxes=one.boxes)
        for one in (mine.regions, theirs)
    ]
    loss = loss_of(name, (student, teacher), (40, 40), outputs, C + 1)
    loss.backward()
    assert loss.isfinite()
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


def test_knowledge_review_leaves_the_features_out_where_they_are_of_regions():
    fcn, fpn, plain = (models.create(name, C) for name in ("resnet8-fcn", "resnet8-fpn", "resnet8"))
    for network, maps in ((fcn, 3), (fpn, 3), (plain, 4)):
        method = methods.create("reviewkd")
        method.adapt(network, network, (40, 40))
        method.setup(network.features_dim, network.features_dim, C, 10)
        assert len(method.fusions) == maps


@pytest.mark.parametrize(("name", "network"), [("catkd", "resnet8-fpn"), ("simkd", "resnet8-fcn")])
def test_methods_that_need_a_classifier_of_pooled_features_refuse_dense_networks(name, network):
    made = models.create(network, C)
    with pytest.raises(InputError, match=f"{name} needs a linear classifier"):
        methods.create(name).adapt(made, made, (40, 40))


def test_hcl_is_the_loss_of_maps_of_the_same_level():
    student, teacher = models.create("resnet8-fcn", C), models.create("vgg8-fcn", C)
    method = methods.create("hcl(ce=0, hcl=2)")
    method.adapt(student, teacher, (32, 32))
    images = torch.rand(2, 3, 32, 32)
    mine, theirs = (one(images, maps=True).maps for one in (student, teacher))
    labels = torch.full((2, 8, 8), 0)
    given = [samples(torch.rand(2, C, 8, 8), torch.rand(2, D, 8, 8), labels, maps) for maps in (mine, theirs)]
    pairs = [losses.same_size(project(a), b) for project, a, b in zip(method.projectors, mine, theirs, strict=False)]
    assert len(pairs) == 3
    expected = 2 * losses.hierarchical_context(*zip(*pairs, strict=True))
    assert method(Context(None, given[0], torch.tensor(0.0), given[1]))["hcl"].item() == pytest.approx(expected.item())
