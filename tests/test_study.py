"""The study of nearness: its stages train what the plan says, and its tables have the differences and the verdict."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import study


@pytest.fixture
def tiny(monkeypatch, cifar_root, tmp_path, own_methods):
    """A function that runs the script with further arguments: one teacher, two subsets of images of five classes."""
    whole = study.data.load
    monkeypatch.setattr(
        study.data, "load", lambda *given, **more: whole(*given, **more | {"labels": 100, "classes": ["fish"]})
    )
    for name, value in {
        "TEACHERS": ("resnet8",),
        "IMAGES": 50,
        "EPOCHS": 1,
        "TUNING": ("resnet8", 100, 1),
        "ALL": ("resnet8", 1),
        "MORE": (0, 1),
        "scaled_nll": lambda *given: 1.0,
        "ARMS": {arm: study.ARMS[arm] for arm in ("kd", *study.PRIMARY)},
        "OFTEN": study.PRIMARY,
        "CONTRAST": "kd",
    }.items():
        monkeypatch.setattr(study, name, value)
    recipe = study.Recipe
    monkeypatch.setattr(study, "Recipe", lambda **given: recipe(**given | {"epochs": 1, "batch_size": 25}))

    def call(*further):
        argv = ["study.py", "--data-root", str(cifar_root), "--device", "cpu", "--runs", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / "out"), *further])
        return study.main()

    return call


def test_each_stage_trains_its_arms_once_and_the_report_has_the_verdict(tiny, tmp_path, capsys):
    with pytest.raises(study.runtime.InputError, match="not tuned yet: kd, nearest, random; run --stage tune first"):
        tiny("--stage", "main")
    assert tiny("--stage", "tune", "--arms", "nearest", "random") == 0
    assert len(list((tmp_path / "out/tune").iterdir())) == 2 * 5
    assert tiny("--stage", "tune") == 0 and len(list((tmp_path / "out/tune").iterdir())) == 3 * 5
    assert tiny("--stage", "main") == 0 and len(list((tmp_path / "out/main").iterdir())) == 2 * 2 + 1
    assert tiny("--stage", "candidates") == 0 and len(list((tmp_path / "out/candidates").iterdir())) == 5 * 2
    assert tiny("--stage", "matched") == 0 and len(list((tmp_path / "out/matched").iterdir())) == 2 * 2
    assert tiny("--stage", "fixed") == 0 and len(list((tmp_path / "out/fixed").iterdir())) == 2
    assert tiny("--stage", "added") == 0 and len(list((tmp_path / "out/added").iterdir())) == 4 * 2
    used = [{arm: one for arm, one, _ in study.results(tmp_path / "out" / stage)} for stage in ("main", "matched")]
    assert all(used[1][arm] == used[0][other] for arm, other in (study.PRIMARY, study.PRIMARY[::-1]))
    assert tiny("--stage", "all") == 0 and len(list((tmp_path / "out/all").iterdir())) == 2 * 2
    assert {one["train_images"] for one in study.runs.finished([tmp_path / "out/all"])} == {100}
    assert {one["train_images"] for one in study.runs.finished([tmp_path / "out/main"])} == {50}
    capsys.readouterr()
    assert tiny("--stage", "main") == 0 and capsys.readouterr().out == "", "nothing is trained twice"
    assert tiny("--report") == 0
    printed = capsys.readouterr().out
    assert "| nearest | 2 |" in printed and "By the rule of the plan: **" in printed
    assert all(f"\n| {arm} | " in printed for arm in (*study.CANDIDATES, *study.ADDED))
    assert (
        "\n| random, drawn once minus random | 2 |" in printed
        and "\n| nearest minus random, drawn once | 2 |" in printed
    )
    assert "| nearest minus random, both with the setting of | cells |" in printed
    assert printed.count("\n| nearest | 2 |") == 3, "the tables of the stages main, matched and all"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.9, 1.0, 1.1, 1.0), "nearness helps"),
        ((-0.9, -1.0, -1.1, -1.0), "nearness harms"),
        ((0.2, 0.2, 0.25, 0.2), "nearness does not matter"),
        ((-0.2, 0.3, 0.1, -0.1), "nearness does not matter"),
        ((-1.0, 2.0, 0.5, 1.0), "undecided"),
    ],
)
def test_the_verdict_is_that_of_the_rule(differences, verdict, monkeypatch):
    monkeypatch.setattr(study, "TEACHERS", ("resnet56", "resnet20"))
    monkeypatch.setattr(study, "MORE", (0, 1))
    cells = {arm: {} for arm in study.PRIMARY}
    for seed, difference in enumerate(differences):
        for arm, more in zip(study.PRIMARY, (difference, 0.0), strict=True):
            one = dict.fromkeys(study.SECONDARY, 0.5) | {"accuracy": 0.3 + more / 100}
            cells[arm][study.TEACHERS[seed % 2], seed] = one
    assert study.primary(cells)[-1] == f"By the rule of the plan: **{verdict}**."
    by_seed = {arm: study.averaged(rows, 1) for arm, rows in cells.items()}
    assert len(by_seed["nearest"]) == 4 and len(study.averaged(cells["nearest"], 0)) == 2
    means = [one["accuracy"] for one in study.averaged(cells["nearest"], 0).values()]
    assert means == pytest.approx([0.3 + (differences[i] + differences[i + 2]) / 200 for i in (0, 1)])
    del cells["random"]["resnet56", 0]
    assert study.primary(cells)[-1] == "Trained cells: 3 of 4. There is no verdict before all are trained."
    one = {arm: {("resnet20", 1): rows["resnet20", 1]} for arm, rows in cells.items()}
    assert study.primary(one)[-1] == "Trained cells: 1 of 4. There is no verdict before all are trained."


def test_intervals_are_wider_for_several_comparisons():
    cells = {arm: {("t", seed): {"ece": value * seed} for seed in range(3)} for arm, value in (("a", 0.2), ("b", 0.1))}
    mean, low, high = study.contrast(cells, "a", "b", "ece", 100)
    assert (mean, low, high) == pytest.approx((10, 10 - 4.30265 * 10 / 3**0.5, 10 + 4.30265 * 10 / 3**0.5), rel=1e-4)
    assert study.contrast(cells, "a", "b", "ece", 100, 4)[2] == pytest.approx(10 + 8.8602 * 10 / 3**0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("gains", "worse", "adopted"),
    [
        ((0.9, 1.0, 1.1), 0.019, "yes"),
        ((0.9, 1.0, 1.1), 0.021, "no"),
        ((0.8, 1.0, 1.2), 0.0, "no"),  # the interval is above 0 (1 ± 0.50) without the correction (1 ± 1.15) alone
        ((-1.0, 1.0, 3.0), 0.0, "no"),
    ],
)
def test_a_candidate_is_adopted_by_the_rule(gains, worse, adopted, monkeypatch):
    """The corrected interval of its gain is above 0, and its scaled NLL at most 0.02 higher, in all planned cells."""
    monkeypatch.setattr(study, "TEACHERS", ("t",))
    cells = {arm: {} for arm in ("nearest", "gate")}
    for seed, gain in enumerate(gains):
        cells["nearest"]["t", seed] = {"accuracy": 0.3, "scaled_nll": 2.0}
        cells["gate"]["t", seed] = {"accuracy": 0.3 + gain / 100, "scaled_nll": 2.0 + worse}
    assert study.candidates_table(cells)[-1].endswith(f" | {adopted} |")
    del cells["gate"]["t", 2]
    assert study.candidates_table(cells)[-1].endswith(" | – |"), "one cell is missing"


def test_each_half_of_the_images_has_the_temperature_of_the_other_half(monkeypatch):
    """Of each half, three of four images are classified correctly, whose logits differ by 1 or by 2."""
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    logits = torch.tensor([1.0, 2.0]).repeat(4)[:, None] * torch.tensor([0.5, -0.5])
    monkeypatch.setattr(study.models, "predict", lambda *given: SimpleNamespace(logits=logits))
    # The best temperatures are 1 / ln 3 and 2 / ln 3. With that of the other half, the odds are √3 and 9 instead of 3.
    first, second = (0.75 * math.log1p(1 / odds) + 0.25 * math.log1p(odds) for odds in (3**0.5, 9))
    assert study.scaled_nll(None, SimpleNamespace(labels=labels)) == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("stage", ["main", "tune"])
def test_a_student_that_diverges_is_written_with_an_accuracy_of_one_percent(
    stage, monkeypatch, digits, tmp_path, own_methods
):
    study.methods.register("other_negatives")(study.OtherNegatives)
    monkeypatch.setattr(study, "ARMS", {"ce": lambda scale: "ce", "kd": lambda scale: f"kd(kd={scale * 3e29:.3g})"})
    students = [study.Student("resnet8", method, 0) for method in ("ce", "kd(kd=3e29)")]
    teacher, recipe = study.models.create("resnet8", 10), study.Recipe(epochs=1, batch_size=60)
    with pytest.raises(study.runtime.Diverged):
        study.training.distill(
            students, digits, teacher=teacher, recipe=recipe, runs=tmp_path / stage, device="cpu", progress=False
        )
    for _ in range(2):  # a second call changes nothing
        study.Study.write(SimpleNamespace(whole=digits), tmp_path / stage, tmp_path / "out" / stage)
    found = {arm: (setting, one) for arm, setting, one in study.results(tmp_path / "out" / stage)}
    setting, one = found["kd"]
    assert found.keys() == {"ce", "kd"} and setting == (1.0, recipe.lr)
    assert one["accuracy"] == 0.01 and one.get("val_accuracy") == (0.01 if stage == "tune" else None)
    assert "loss" in one["diverged"] and "diverged" not in found["ce"][1]
    if stage == "main":
        cells = study.read(tmp_path / "out", stage, {arm: setting for arm in found})
        assert {arm: list(rows) for arm, rows in cells.items()} == {arm: [(one["teacher"], 0)] for arm in found}


def test_a_student_that_diverged_counts_in_accuracies_alone_and_is_named(monkeypatch):
    plain = dict.fromkeys(study.SECONDARY, 0.5) | {"accuracy": 0.3, "nll": 2.0}
    cells = {arm: {("t", seed): plain for seed in range(3)} for arm in ("nearest", "random", "gate")}
    for arm in ("nearest", "gate"):
        cells[arm] = cells[arm] | {("t", 2): {"accuracy": 0.01, "diverged": "a loss is NaN"}}
    _, _, nearest, control = study.arms_table(cells)
    others = "50.00 | 2.000 | 0.500 | 50.00 | 50.00"
    assert nearest.startswith(f"| nearest | 3, 1 diverged | 20.33 | {others} | −9.67 (−51.26 ")
    assert control == f"| random | 3 | 30.00 | {others} |  |"
    assert study.contrast(cells, "nearest", "random", "accuracy", 100)[0] == pytest.approx(-29 / 3)
    assert study.contrast(cells, "nearest", "random", "nll", 1) == (0, 0, 0), "over the two other cells"
    assert study.candidates_table(cells)[-1].startswith("| gate | 3, 1 diverged | +0.00 ")
    every = {"random": {("t", 0): cells["gate"]["t", 2]}}
    assert study.arms_table(every)[-1] == "| random | 1, 1 diverged | 1.00 | – | – | – | – | – |  |"
    one, two = {("a", 0): {"accuracy": 0.25}}, {("a", 0): {"accuracy": 0.5}, ("b", 0): {"accuracy": 0.5}}
    assert study.difference({"x": one, "y": two}, "x", "y", "accuracy", 100) == "−25.00 (one cell)"
    assert study.difference({"x": one, "y": two}, "x", "y", "ece", 100) == "–"


@pytest.mark.parametrize("separated", ["batch", "mean"])
def test_nicd_with_other_negatives(separated):
    method = study.OtherNegatives(nicd=2.0, kd=0, picd=0.3, separated=separated)
    generator = torch.Generator().manual_seed(0)
    logits, own, rows = (torch.randn(n, 3, generator=generator) for n in (4, 4, 9))
    labels = torch.tensor([0, 1, 0, 2])
    far = own.expand(4, 4, 3) if separated == "batch" else rows.mean(0).expand(4, 1, 3)
    mask = labels[:, None] != labels if separated == "batch" else torch.ones(4, 1, dtype=torch.bool)
    own[torch.arange(4), labels] += 9  # so that a correction by the label changes nothing
    context = SimpleNamespace(
        student=SimpleNamespace(logits=logits, labels=labels),
        teacher=SimpleNamespace(logits=own),
        bank=SimpleNamespace(logits=rows),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.methods.ICKD, "unlimited", lambda *_: {"ce": torch.zeros(())})
        terms = method.unlimited(context)
    expected = study.losses.nicd(logits, own, far, mask, kappa=0.1)
    torch.testing.assert_close(terms["nicd"], 2 * expected)
    assert list(terms) == ["ce", "nicd"] and method.limits == {"nicd": 1.0}
