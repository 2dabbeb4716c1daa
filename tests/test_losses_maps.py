"""The losses between feature maps equal plain loops, and the methods accept maps of any shapes."""

import itertools
import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from test_losses import draw, unit

from ickd_lib import losses, methods, models
from ickd_lib.methods import Context
from ickd_lib.models import projectors
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Samples

B = 6


def test_sp():
    student, teacher = draw(B, 2, 3, 3, seed=1), draw(B, 4, 2, 2, seed=2)

    def similarities(maps):
        flat = [m.flatten().tolist() for m in maps]
        return [unit([sum(x * y for x, y in zip(a, b, strict=True)) for b in flat]) for a in flat]

    s, t = similarities(student), similarities(teacher)
    expected = sum((s[i][j] - t[i][j]) ** 2 for i in range(B) for j in range(B)) / B**2
    assert losses.sp(student, teacher).item() == pytest.approx(expected)


class TestAttentionTransfer:
    @pytest.fixture
    def student(self):
        return [draw(B, 2, 4, 4, seed=1), draw(B, 3, 4, 4, seed=2), draw(B, 5, 1, 2, seed=3)]

    @pytest.fixture
    def teacher(self):
        return [draw(B, 4, 2, 2, seed=4), draw(B, 3, 2, 4, seed=5)]

    def test_loop(self, student, teacher):
        def attention(maps, height, width):
            high, wide = len(maps[0]) // height, len(maps[0][0]) // width
            cells = [(y, x) for y in range(high) for x in range(wide)]
            pooled = [
                [sum(m[r * high + y][c * wide + x] for y, x in cells) / len(cells) for m in maps]
                for r in range(height)
                for c in range(width)
            ]
            return unit([sum(v * v for v in position) / len(maps) for position in pooled])

        expected = 0.0
        for s, t, height, width in ((student[0], teacher[0], 2, 2), (student[1], teacher[1], 2, 4)):
            for a, b in zip(s.tolist(), t.tolist(), strict=True):
                pairs = zip(attention(a, height, width), attention(b, height, width), strict=True)
                expected += sum((x - y) ** 2 for x, y in pairs) / (B * height * width)
        assert losses.attention_transfer(student, teacher).item() == pytest.approx(expected)

    def test_gradients_reach_the_paired_student_stages_alone(self, student, teacher):
        losses.attention_transfer(student, teacher).backward()
        assert [stage.grad is None for stage in (*student, *teacher)] == [False, False, True, True, True]
        assert losses.attention_transfer(teacher, [-2 * stage for stage in teacher]).item() == pytest.approx(0)

    def test_a_map_without_any_activation_is_finite(self, student, teacher):
        dead = [torch.zeros_like(stage, requires_grad=True) for stage in student]
        losses.attention_transfer(dead, teacher).backward()
        assert dead[0].grad.isfinite().all()


def test_gaussian_wasserstein():
    student, teacher = draw(B, 3, 4, 4, seed=1), draw(B, 3, 2, 3, seed=2)
    mean = deviation = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for one, other in zip(s, t, strict=True):
            flat, target = list(itertools.chain(*one)), list(itertools.chain(*other))
            mean += (statistics.mean(flat) - statistics.mean(target)) ** 2 / B
            spread = [math.sqrt(statistics.variance(values) + 1e-5) for values in (flat, target)]
            deviation += (spread[0] - spread[1]) ** 2 / B
    found = losses.gaussian_wasserstein(student, teacher)
    assert [one.item() for one in found] == pytest.approx([mean, deviation])
    sum(found).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize("shape", [(1, 1), (3, 1)])
def test_gaussians_of_one_position_or_of_equal_values_are_finite(shape):
    student = torch.ones(B, 3, *shape, dtype=torch.double, requires_grad=True)
    mean, deviation = losses.gaussian_wasserstein(student, torch.zeros(B, 3, 1, 1, dtype=torch.double))
    (mean + deviation).backward()
    assert (mean.item(), deviation.item()) == (3, 0) and student.grad.isfinite().all()


def test_hint_averages_the_larger_map_down():
    student, teacher = draw(B, 2, 4, 1, seed=1), draw(B, 2, 2, 3, seed=2)
    means = F.adaptive_avg_pool2d(student, (2, 1)), F.adaptive_avg_pool2d(teacher, (2, 1))
    expected = sum((a - b) ** 2 for a, b in zip(*(one.flatten().tolist() for one in means), strict=True)) / (B * 4)
    assert losses.hint(student, teacher).item() == pytest.approx(expected)


def test_fused_maps_are_weighted_sums_in_the_shape_of_the_teachers():
    torch.manual_seed(0)
    deep, shallow = (
        projectors.Fusion(i, 4, o, fuse=fuse).double().eval() for i, o, fuse in ((5, 7, False), (3, 6, True))
    )
    x, y = draw(2, 5, 2, 2, seed=1), draw(2, 3, 4, 4, seed=2)
    result, between = deep(x, None, (3, 3))
    assert result.shape == (2, 7, 3, 3)
    assert torch.allclose(between, F.interpolate(deep.enter(x), (3, 3)))
    result, fused = shallow(y, between, (4, 4))
    own, other = shallow.enter(y), F.interpolate(between, (4, 4))
    weights = torch.sigmoid(shallow.attention[0](torch.cat([own, other], 1)))
    assert torch.allclose(fused, weights[:, :1] * own + weights[:, 1:] * other)
    assert torch.allclose(result, shallow.leave(fused)) and result.shape == (2, 6, 4, 4)


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((3, 8, 8), (5, 4, 4)),
        ((3, 4, 4), (5, 8, 8)),
        ((3, 7, 6), (5, 4, 5)),
        ((3, 4, 4), (5, 4, 4)),
    ],
)
def test_regressors_give_the_shape_of_the_teachers_map(have, want):
    assert projectors.regressor(have, want)(torch.rand(2, *have)).shape[1:] == want
    assert projectors.regressor((3, 2, 4), (5, 6, 3))(torch.rand(2, 3, 2, 4)).shape[1:] == (5, 2, 4)


def test_batch_norm_takes_a_single_value_per_channel():
    norm = projectors.BatchNorm(3)
    assert norm(torch.rand(1, 3, 1, 1)).isfinite().all() and norm.num_batches_tracked == 0
    norm(torch.rand(2, 3, 1, 1))
    assert norm.num_batches_tracked == 1


PAIRS = [("resnet8", "vgg8"), ("vgg8", "wrn_16_1"), ("MobileNetV2", "resnet8"), ("ShuffleV2", "MobileNetV2")]
COMPARING = ["at", "sp", "fitnet", "vid", "reviewkd", "simkd", "catkd", "wkd_f", "simkd+reviewkd", "reviewkd+simkd"]


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("pair", PAIRS)
def test_networks_of_any_shapes_are_compared(name, pair):
    torch.manual_seed(0)
    student, teacher = (models.create(one, 4) for one in pair)
    teacher.eval().requires_grad_(False)
    method = methods.create(name)
    network = method.adapt(student, teacher, (16, 16))
    method.setup(network.features_dim, teacher.features_dim, 4, 10)
    images, labels = torch.rand(3, 3, 16, 16), torch.arange(3)
    seen = [
        Samples(out.logits, out.features, labels, labels, labels, out.maps, None, out.preactivations, out.unpooled)
        for out in (one(images, maps=True) for one in (network, teacher))
    ]
    layers = models.classifier(network)[1], models.classifier(teacher)[1]
    terms = method(Context(None, seen[0], torch.tensor(0.0), seen[1], classifiers=layers, epoch=1, epochs=4))
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    first = next(network.parameters())
    assert first.grad.abs().sum() > 0 and all(p.grad is not None for p in method.parameters())


def test_the_warmup_of_reviewkd_counts_epochs_from_1():
    method = methods.create("reviewkd(ce=0, reviewkd=1, warmup=4)")
    networks = [models.create("resnet8", 4), models.create("resnet8", 4)]
    method.adapt(*networks, (8, 8))
    method.setup(64, 64, 4, 10)
    method.eval()
    images, labels = torch.rand(3, 3, 8, 8), torch.arange(3)
    seen = [
        Samples(o.logits, o.features, labels, labels, labels, o.maps) for o in (n(images, maps=True) for n in networks)
    ]
    values = [method(Context(None, seen[0], None, seen[1], epoch=epoch))["reviewkd"].item() for epoch in (0, 1, 3, 9)]
    assert [value / values[-1] for value in values] == pytest.approx([0.25, 0.5, 1, 1])


def test_class_activation_maps_average_to_the_logits():
    network = models.create("wrn_16_1", 4).eval()
    out = network(torch.rand(2, 3, 16, 16), maps=True)
    places = torch.arange(2)
    seen = Samples(out.logits, out.features, places, places, places, out.maps, unpooled=out.unpooled)
    found = methods.maps.activations(seen, network.fc)
    assert found.shape == (2, 4, 4, 4) and torch.allclose(found.mean((2, 3)), out.logits, atol=1e-6)


def test_what_cannot_be_compared_is_an_error_in_one_line():
    short, teacher = models.create("resnet8", 4), models.create("resnet8", 4)
    with pytest.raises(InputError, match=r"fitnet\(stage=4\) needs 4 stages; resnet8 has 3"):
        methods.create("fitnet(stage=4)").adapt(short, teacher, (8, 8))
    convolutional = models.wrap(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        maps=["0"],
    )
    for name in ("simkd", "catkd"):
        with pytest.raises(InputError, match=f"{name} needs a linear classifier of the features") as error:
            methods.create(name).adapt(short, convolutional, (8, 8))
        assert "\n" not in str(error.value)
