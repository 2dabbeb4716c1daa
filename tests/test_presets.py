"""Published settings and accuracies: exact expectations, and one sentence where nothing is published."""

from __future__ import annotations

import dataclasses

import pytest

from ickd_lib import methods, models, training
from ickd_lib.runtime import InputError
from ickd_lib.training import Recipe, presets
from ickd_lib.training.presets import accuracy, cifar100, coco, imagenet
from ickd_lib.training.presets.protocols import IMAGENET, IMAGENET_512

R34_R18 = ("torchvision/resnet34", "torchvision/resnet18")
R50_MN1 = ("torchvision/resnet50(pretrained='IMAGENET1K_V1')", "MobileNetV1")
FIFTHS = {"epochs": 200, "batch_size": 128, "lr": 0.1, "schedule": "fifths", "milestones": (0.3, 0.6, 0.8)}
TABLES = {"cifar100": cifar100, "imagenet": imagenet, "coco": coco}


def pairs(data):
    """All pairs of networks in the tables of a data set, students without a teacher with any."""
    keys = {key for settings in TABLES[data].SETTINGS.values() for key in settings.pairs or ()}
    return sorted(("resnet56", key) if isinstance(key, str) else key for key in keys)


@pytest.mark.parametrize("data", TABLES)
@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_settings_or_a_sentence(name, data):
    found, refused = [], set()
    for pair in pairs(data):
        try:
            found.append(training.published(name, *pair, data))
        except InputError as error:
            refused.add(str(error))
    for settings in found:
        assert methods.describe(methods.create(settings.method)) == settings.method
        assert all(1 <= recipe.epochs <= settings.recipe.epochs for _, _, recipe in settings.recipe.phases([0.5]))
        assert settings.source and not settings.source.endswith(".") and "\n" not in settings.source
    assert all(len(message) < 600 and "\n" not in message and name in message for message in refused)
    title = {"cifar100": "CIFAR-100", "imagenet": "ImageNet", "coco": "COCO"}[data]
    assert (title in presets.available(name)) == any(settings.official for settings in found)


@pytest.mark.parametrize("data", TABLES)
def test_tables_are_for_methods_that_exist(data):
    named = {*TABLES[data].SETTINGS, *TABLES[data].REFUSED}
    parts = {methods.parse(part)[0] for name in named for part in name.split("+")}
    assert parts <= {*methods.names()}
    assert not {*TABLES[data].SETTINGS} & {*TABLES[data].REFUSED}


@pytest.mark.parametrize(
    ("method", "pair", "expected"),
    [
        ("kd", ("resnet20", "resnet8"), "kd"),
        ("dkd", ("resnet56", "resnet20"), "dkd(nckd=2.0)"),
        ("dkd", ("vgg13", "vgg8"), "dkd(nckd=6.0)"),
        ("dkd", ("ResNet50", "MobileNetV2"), "dkd"),
        ("dkd(ce=2.0)", ("resnet110", "resnet32"), "dkd(ce=2.0, nckd=2.0)"),
        ("ckd", ("vgg13", "MobileNetV2"), "ckd(ckd=50.0, temperature=2.0)"),
        ("CKD", ("resnet56", "resnet20"), "ckd(ckd=10.0)"),
        ("ckd(ckd=3)", ("resnet56", "resnet20"), "ckd(ckd=3)"),
        ("lskd", ("resnet32x4", "resnet8x4"), "lskd"),
        ("lskd", ("ResNet50", "MobileNetV2"), "lskd(kd=1.0, temperature=3.0)"),
        ("kd(standardised=True)", ("vgg13", "vgg8"), "kd(kd=9.0, temperature=3.0, standardised=True)"),
        (
            "dkd(standardised=True)",
            ("resnet32x4", "resnet8x4"),
            "dkd(tckd=9.0, nckd=72.0, temperature=2.0, standardised=True)",
        ),
        (
            "dkd(standardised=True)",
            ("resnet56", "resnet20"),
            "dkd(tckd=18.0, nckd=36.0, temperature=3.0, standardised=True)",
        ),
        ("mlkd", ("resnet56", "resnet20"), "mlkd"),
        (
            "mlkd(standardised=True)",
            ("vgg13", "vgg8"),
            "mlkd(instance=6.0, batch=6.0, classes=6.0, temperature=2.0, standardised=True)",
        ),
        ("reviewkd", ("resnet32x4", "ShuffleV2"), "reviewkd(reviewkd=8.0)"),
        ("reviewkd", ("resnet56", "resnet20"), "reviewkd(reviewkd=0.6)"),
        ("catkd", ("resnet32x4", "resnet8x4"), "catkd"),
        ("catkd", ("wrn_40_2", "ShuffleV1"), "catkd(catkd=80.0, resolution=4, normalised=True)"),
        ("wkd_l", ("resnet32x4", "resnet8x4"), "wkd_l"),
        ("wkd_l", ("wrn_40_2", "ShuffleV1"), "wkd_l(gamma=200.0, temperature=6.0)"),
        ("skd", ("resnet32x4", "resnet8x4"), "skd(ce=0.5, kd=0.5, gram=0.5)"),
        ("ttm", ("vgg13", "vgg8"), "ttm"),
        ("wttm+crd", ("vgg13", "vgg8"), "wttm+crd"),
        ("crd + kd", ("resnet56", "resnet20"), "crd+kd(kd=1.0)"),
        ("tfkd", ("", "ShuffleV2"), "tfkd(alpha=0.95, temperature=10.0, multiplier=1.0)"),
        ("uskd", ("", "ResNet18"), "uskd"),
        ("ickd(nicd=0)+dist", ("vgg13", "MobileNetV2"), "ickd(nicd=0)+dist"),
    ],
)
def test_weights_on_cifar100(method, pair, expected):
    assert training.published(method, *pair).method == expected


@pytest.mark.parametrize(
    ("method", "pair", "expected"),
    [
        ("kd", R34_R18, "kd(ce=0.5, kd=0.5, temperature=1.0)"),
        ("dkd", R34_R18, "dkd(nckd=0.5, temperature=1.0, warmup=1)"),
        ("dkd", R50_MN1, "dkd(nckd=2.0, temperature=1.0, warmup=1)"),
        ("dist", R50_MN1, "dist(temperature=1.0)"),
        ("ckd", R34_R18, "ckd(ckd=10.0)"),
        ("reviewkd", R34_R18, "reviewkd(reviewkd=1.0, warmup=1)"),
        ("reviewkd", R50_MN1, "reviewkd(reviewkd=8.0, warmup=1)"),
        ("nkd", R34_R18, "nkd(gamma=1.5, temperature=1.0)"),
        ("uskd", R34_R18, "uskd(alpha=1.0, mu=0.005)"),
        ("ctkd", R34_R18, "ctkd(of='kd(ce=1.0, kd=1.0)', epochs=5)"),
        ("wkd_l", R34_R18, "wkd_l(gamma=30.0, temperature=2.0, decay=0.0)"),
        ("wkd_l", R50_MN1, "wkd_l(gamma=25.0, temperature=2.0, sharpness=2.0, decay=0.0)"),
        ("wkd_f", R34_R18, "wkd_f(wkd_f=0.02, mean=2.0, decay=0.0)"),
        ("wkd_f", R50_MN1, "wkd_f(wkd_f=0.005, mean=2.0, decay=0.3)"),
        ("kd", R50_MN1, "kd(ce=0.5, kd=0.5, temperature=1.0)"),
        ("dist", R34_R18, "dist(temperature=1.0)"),
        ("ckd", R50_MN1, "ckd(ckd=10.0)"),
        ("lskd", R34_R18, "lskd(ce=1.0)"),
        ("lskd", R50_MN1, "lskd(ce=1.0)"),
        ("ickd", R34_R18, "ickd"),
        ("ickd(nicd=1.0)", R50_MN1, "ickd(nicd=1.0)"),
        ("simkd", ("resnet50", "resnet18"), "simkd"),
        ("catkd", R34_R18, "catkd(catkd=0.5, resolution=4)"),
    ],
)
def test_weights_on_imagenet(method, pair, expected):
    assert training.published(method, *pair, "imagenet").method == expected


@pytest.mark.parametrize(
    ("method", "pair", "expected"),
    [
        ("at", ("resnet56", "resnet20"), Recipe()),
        ("crd", ("resnet32x4", "ShuffleV1"), Recipe(lr=0.01)),
        ("ckd", ("resnet32x4", "ShuffleV1"), Recipe(epochs=480, batch_size=32, lr=0.01, schedule="cosine")),
        ("reviewkd", ("resnet56", "resnet20"), Recipe(batch_size=128, lr=0.1, nesterov=True)),
        ("reviewkd", ("wrn_40_2", "ShuffleV1"), Recipe(batch_size=128, lr=0.02, nesterov=True)),
        ("nkd", ("ResNet34", "ResNet18"), Recipe(**FIFTHS)),
        ("tfkd", ("", "MobileNetV2"), Recipe(**FIFTHS, warmup=1.0)),
        (
            "cskd",
            ("", "resnet20"),
            Recipe(epochs=200, batch_size=128, lr=0.1, weight_decay=1e-4, milestones=(0.5, 0.75)),
        ),
        (
            "pskd",
            ("", "MobileNetV2"),
            Recipe(epochs=300, batch_size=128, lr=0.1, nesterov=True, milestones=(0.5, 0.75)),
        ),
        ("dml", ("", "resnet32"), Recipe(epochs=200, lr=0.1, nesterov=True, milestones=(0.3, 0.6, 0.9))),
    ],
)
def test_recipes_on_cifar100(method, pair, expected):
    found = training.published(method, *pair)
    assert found.recipe == expected and found.official and found.augment == "crop"


def test_settings_on_coco():
    pair = ("resnet101-fpn", "resnet18-fpn")
    both = training.published("ckd+reviewkd", *pair, "coco")
    assert both.method == "ckd(ckd=0.1)+reviewkd(reviewkd=1.2, warmup=0)" and both.official
    larger = training.published("ckd+reviewkd", "resnet101-fpn", "resnet50-fpn", "coco")
    for same in (larger.method, "ReviewKD + ckd"):
        assert training.published(same, "resnet101-fpn", "resnet50-fpn", "coco") == larger
    other = training.published("reviewkd+ckd(ckd=0.2)", "resnet101-fpn", "resnet50-fpn", "coco")
    assert other == larger._replace(method="ckd(ckd=0.2)+reviewkd(reviewkd=1.0, warmup=0)")
    assert larger.method == "ckd(ckd=0.1)+reviewkd(reviewkd=1.0, warmup=0)"
    assert (both.recipe.epochs, both.recipe.batch_size) == (12, 4), "360,000 iterations of 4 images"
    assert (larger.recipe.epochs, larger.recipe.batch_size) == (24, 8), "360,000 iterations of 8 images"
    alone = training.published("ckd", *pair, "coco")
    assert alone.method == "ckd(ckd=0.1)" and not alone.official and "reviewkd" in alone.source
    teacher = training.published("ce", "", "resnet101-fpn(pretrained='backbone')", "coco")
    assert teacher.recipe == alone.recipe and not teacher.official
    dkd = training.published("dkd", *pair, "coco")
    assert dkd.method == "dkd(nckd=0.25, temperature=1.0, warmup=0)"
    for recipe in (alone.recipe, dkd.recipe):
        iterations = recipe.epochs * 118_287 / recipe.batch_size
        assert iterations == pytest.approx(180_000, rel=0.02)
        assert [share * iterations for share in recipe.milestones] == pytest.approx([120_000, 160_000], rel=0.02)
        assert recipe.warmup * 118_287 / recipe.batch_size == pytest.approx(1000)


STEPS = {"schedule": "step", "milestones": (0.3, 0.6, 0.9), "epochs": 100}
LARGE = {**STEPS, "batch_size": 512, "lr": 0.2}
USUAL = {**STEPS, "batch_size": 256, "lr": 0.1}


@pytest.mark.parametrize("pair", [R34_R18, R50_MN1])
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ce", USUAL),
        ("kd", LARGE),
        ("dkd", LARGE),
        ("lskd", LARGE),
        ("ckd", {"schedule": "cosine", "milestones": (), "epochs": 200, "batch_size": 512, "lr": 0.2}),
        ("dist", {**USUAL, "nesterov": True, "decay_norms_and_biases": False}),
        ("wkd_l", USUAL),
        ("ickd", LARGE),
    ],
)
def test_recipes_of_the_pairs_of_imagenet(method, expected, pair):
    found = training.published(method, *pair, "imagenet")
    common = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "warmup": 0.0, "decay_norms_and_biases": True}
    given = dataclasses.asdict(found.recipe)
    assert {name: given[name] for name in {**common, **expected}} == {**common, **expected}
    assert found.augment == "crop"


def test_what_is_not_official_on_imagenet_has_a_reason():
    official = {
        (method, pair): training.published(method, *pair, "imagenet").official
        for method in ("ce", "kd", "dkd", "ckd", "dist", "lskd", "wkd_l", "wkd_f", "ickd")
        for pair in (R34_R18, R50_MN1)
    }
    others = {("lskd", R50_MN1), *((name, pair) for name in ("wkd_l", "wkd_f", "ickd") for pair in (R34_R18, R50_MN1))}
    assert {key for key, value in official.items() if not value} == others
    assert "the paper states its settings nowhere" in training.published("ickd", *R34_R18, "imagenet").source
    assert "no configuration for this pair" in training.published("lskd", *R50_MN1, "imagenet").source
    assert "README" in training.published("lskd", *R34_R18, "imagenet").source
    assert "CKA" in training.published("wkd_l", *R34_R18, "imagenet").source


def test_names_of_the_same_networks_on_imagenet():
    other = ("timm/resnet50.a1_in1k", "timm/mobilenetv1_100.ra4_e3600_r224_in1k")
    assert training.published("dkd", *other, "imagenet") == training.published("dkd", *R50_MN1, "imagenet")
    assert training.published_accuracy(*other, "imagenet") == training.published_accuracy(*R50_MN1, "imagenet")


@pytest.mark.parametrize(("teacher", "student"), [("VGG13", "mobilenetv2"), ("RESNET32X4", "shufflev1")])
def test_names_in_any_case_are_the_same_networks(teacher, student):
    for method in ("kd", "dkd"):
        expected = [name for name in models.names() if name.lower() in (teacher.lower(), student.lower())]
        pair = sorted(expected, key=lambda name: name.lower() != teacher.lower())
        assert training.published(method, teacher, student) == training.published(method, *pair)
    assert training.published("kd", teacher, student).recipe.lr == 0.01


def test_a_published_combination_has_its_settings_in_any_order():
    one, other = (training.published(name, "resnet56", "resnet20") for name in ("crd+kd", "kd+crd"))
    assert one == other and one.official


def test_recipes_on_imagenet():
    assert training.published("crd", *R34_R18, "imagenet").recipe == IMAGENET
    assert training.published("kd", *R50_MN1, "imagenet").recipe == IMAGENET_512
    assert [IMAGENET.lr_at(epoch) for epoch in (29, 30, 60, 90)] == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert training.published("ckd", *R34_R18, "imagenet").recipe.epochs == 200
    ctkd = training.published("ctkd", *R34_R18, "imagenet").recipe
    assert [ctkd.lr_at(epoch) for epoch in (29, 30, 119)] == pytest.approx([0.1, 0.01, 0.0001])


def test_drops_of_mlkd_stay_where_they_are():
    short = training.published("mlkd", "resnet56", "resnet20").recipe
    long = training.published("mlkd(standardised=True)", "resnet32x4", "ShuffleV2").recipe
    small = training.published("mlkd", "ResNet50", "MobileNetV2").recipe
    assert (short.epochs, long.epochs, short.lr, long.lr, small.lr) == (480, 960, 0.025, 0.01, 0.0025)
    for recipe in (short, long):
        factors = [recipe.lr_at(epoch) / recipe.lr for epoch in (149, 150, 179, 180, 209, 210, 479)]
        assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_phases_of_refilled():
    refilled = training.published("refilled", "wrn_40_2", "wrn_16_2").recipe
    (_, _, embedding), (start, _, classifier) = refilled.phases([0.5])
    assert start == 200 and [embedding.lr_at(e) for e in (0, 200)] == pytest.approx([0.1, 0.01])
    rates = [classifier.lr_at(e) for e in (99, 100, 140, 180)]
    assert rates == pytest.approx([0.1, 0.02, 0.004, 0.0008])


@pytest.mark.parametrize(
    ("method", "pair", "data", "message"),
    [
        ("ttm", ("resnet56", "resnet20"), "cifar100", "ttm is published on CIFAR-100 for vgg13 -> vgg8 only, not for "),
        ("dkd", ("resnet20", "resnet8"), "cifar100", "not for resnet20 -> resnet8"),
        ("dkd(standardised=True)", R34_R18, "imagenet", r"no settings of dkd\(standardised=True\) are published"),
        ("uskd", ("", "resnet20"), "cifar100", "uskd is published on CIFAR-100 for ResNet18 only, not for resnet20"),
        ("seed", ("resnet56", "resnet20"), "cifar100", "no settings of seed are published for CIFAR-100"),
        ("lwf", ("resnet56", "resnet20"), "cifar100", "class-incremental"),
        ("simkd", R34_R18, "imagenet", "simkd is published on ImageNet for resnet50 -> resnet18 only"),
        ("kd", ("resnet56", "resnet20"), "cifar10", "did you mean 'cifar100'"),
    ],
)
def test_what_is_missing_is_said(method, pair, data, message):
    with pytest.raises(InputError, match=message):
        training.published(method, *pair, data)


@pytest.mark.parametrize("method", ["ickd", "picd", "ickd_online", "skd", "ickd+dist", "crd_bank"])
def test_what_is_not_official_is_marked(method):
    found = training.published(method, "resnet32x4", "resnet8x4")
    assert not found.official and found.recipe == Recipe() and presets.available(method) == ""


def test_data_sets_with_official_settings():
    assert presets.available("dkd") == "CIFAR-100, ImageNet, COCO" and presets.available("fitnet") == "CIFAR-100"
    assert presets.available("seed") == presets.available("kdcl") == ""


def test_published_accuracies_are_named_as_they_would_be_trained():
    found = training.published_accuracy("resnet56", "resnet20")
    assert found["kd", 240] == 70.66 and found["dkd(nckd=2.0)", 240] == 71.97 and found["mlkd", 480] == 72.19
    assert found["reviewkd(reviewkd=0.6)", 240] == 71.89 and found["ttm", 240] == 71.83
    assert found["teacher", 240] == 72.34 and ("PACKD", 240) not in found
    assert training.published_accuracy("resnet20", "resnet8") == {}
    found = training.published_accuracy("resnet32x4", "resnet8x4")
    assert found["dkd(tckd=9.0, nckd=72.0, temperature=2.0, standardised=True)", 240] == 77.01
    assert found["skd(ce=0.5, kd=0.5, gram=0.5)", 250] == 78.33 and found["simkd", 240] == 78.08
    assert found["wkd_l", 240] == 76.53 and found["wkd_l+wkd_f", 240] == 77.28
    assert found[training.published("wkd_f", "resnet32x4", "resnet8x4").method, 240] == 76.77
    assert training.published_accuracy("resnet32x4", "ShuffleV2")["mlkd", 960] == 78.44
    found = training.published_accuracy(*R34_R18, "imagenet")
    assert found["dkd(nckd=0.5, temperature=1.0, warmup=1)", 100] == 71.70
    assert found["ctkd(of='kd(ce=1.0, kd=1.0)', epochs=5)", 120] == 71.32
    assert found["kd(ce=0.5, kd=0.5, temperature=1.0)", 100] == 71.03 and found["KD+DOT", 100] == 71.72
    found = training.published_accuracy(*R50_MN1, "imagenet")
    assert found["teacher", 90] == 76.16 and found["ce", 100] == 69.21 and found["dist(temperature=1.0)", 100] == 73.24
    assert found["wkd_l(gamma=25.0, temperature=2.0, sharpness=2.0, decay=0.0)", 100] == 73.17


@pytest.mark.parametrize(
    ("rows", "pairs"), [(accuracy.CIFAR100, accuracy.CIFAR100_PAIRS), (accuracy.IMAGENET, accuracy.IMAGENET_PAIRS)]
)
def test_accuracies_are_complete_rows_of_percentages(rows, pairs):
    assert all(len(row) == len(pairs) for _, row in rows.values())
    assert all(58 < value < 80 for _, row in rows.values() for value in row if value is not None)
