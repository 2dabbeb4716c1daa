"""Figures contain the data that they were given: as many marks, labels and values as there are."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from ickd_lib import data, methods, plots
from ickd_lib.memory import InContext
from ickd_lib.plots.style import PALETTE, REST, class_colours
from ickd_lib.runtime import InputError


@pytest.fixture(autouse=True)
def closed():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def context(rows: list[int], similarity: list[float], mask: list[bool] | None = None) -> InContext:
    k = len(rows)
    valid = torch.tensor([mask or [True] * k])
    return InContext(
        torch.tensor([rows]), torch.tensor([similarity]), torch.zeros(1, k, 10), torch.zeros(1, k, 4), valid
    )


def test_importing_the_library_imports_no_heavy_package():
    code = "import ickd_lib, sys; print(sorted({'matplotlib', 'torch', 'seaborn', 'ipywidgets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["plots", "explore", "widgets"])
def test_no_name_of_a_package_hides_one_of_its_modules(name):
    package = importlib.import_module(f"ickd_lib.{name}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"ickd_lib.{name}.{module.name}")
        assert isinstance(getattr(package, module.name), ModuleType), f"{name}.{module.name}"


def test_every_method_has_a_different_look():
    names = [*methods.names(), "teacher"]
    looks = {name: plots.method_style(name) for name in names}
    seen = [(mcolors.to_hex(look["color"]), look["linestyle"], look["marker"]) for look in looks.values()]
    assert len(set(seen)) == len(names)
    assert plots.method_style("ickd") == plots.method_style("ICKD")
    variant = plots.method_style("ickd(nicd=0)")
    assert variant == plots.method_style("ickd(nicd = 0)")
    assert variant["color"] == looks["ickd"]["color"]
    assert variant["linestyle"] != looks["ickd"]["linestyle"] and variant["marker"] != looks["ickd"]["marker"]
    online = [f"{name}{order}" for name in ("ickd", "ickd_online", "ickd_self") for order in ("", "(order='random')")]
    assert len({str(plots.method_style(name)) for name in online}) == len(online)


def test_curves_draw_the_mean_and_the_spread_of_the_epochs_all_seeds_have():
    seeds = [
        [{"epoch": e, "test_accuracy": a} for e, a in [(1, 0.2), (2, 0.5), (3, 0.6), (4, 0.8)]],
        [{"epoch": e, "test_accuracy": a} for e, a in [(1, 0.4), (3, 0.7), (4, 0.9)]] + [{"epoch": 2, "loss": 1.0}],
    ]
    figure = plots.curves({"kd": seeds, "ce": [seeds[0]]})
    whole, enlarged = figure.axes
    line = next(line for line in whole.lines if line.get_label() == "kd")
    assert line.get_xdata().tolist() == [1, 3, 4]
    assert np.allclose(line.get_ydata(), [30, 65, 85])
    assert enlarged.lines[0].get_xdata().tolist() == [3, 4]
    band = whole.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.max(), 85 + 100 * np.std([0.8, 0.9], ddof=1))
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["kd  85.0 ± 7.1", "ce  80.0"]  # the best first
    figure = plots.curves({"kd": [seeds[0], seeds[1][:1]], "ce": [seeds[0]]})
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["ce  80.0", "kd  30.0 ± 14.1 (epoch 1)"]  # a seed is not finished
    with pytest.raises(InputError, match="'val_accuracy'"):
        plots.curves({"kd": seeds}, key="val_accuracy")


def test_scores_show_every_seed_in_the_given_order():
    given = {"kd": [0.9, 0.92, 0.94], "ce": [0.8, 0.82]}
    (axis,) = plots.scores(given).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["kd", "ce"]
    assert axis.yaxis_inverted()
    dots = [c.get_offsets()[:, 0] for c in axis.collections if len(c.get_offsets()) in (2, 3) and c.get_sizes().size]
    assert np.allclose(dots[0], [90, 92, 94]) and np.allclose(dots[1], [80, 82])
    assert texts(axis) == ["92.0 ± 2.0", "81.0 ± 1.4"]
    (axis,) = plots.scores({"kd": [1.5]}, xlabel="seconds").axes
    assert texts(axis) == ["1.500"] and axis.get_title() == "One seed each"


def test_names_of_classes_that_are_not_latin_have_a_font_if_one_is_installed(monkeypatch):
    for known, family in (
        (["WenQuanYi Zen Hei", "Arial"], ["DejaVu Sans", "WenQuanYi Zen Hei"]),
        ([], ["DejaVu Sans"]),
    ):
        monkeypatch.setattr(plots.style.font_manager, "get_font_names", lambda known=known: known)
        with plt.rc_context():
            plots.use()
            assert plt.rcParams["font.family"] == family


def test_samples_show_the_first_images_of_each_class():
    images = data.load("digits", labels=30).train  # three of each digit
    (axis,) = plots.samples(images, classes=4, each=2).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "1", "2", "3"]
    assert axis.get_xlabel() == "the first 4 of 10 classes" and not plots.samples(images).axes[0].get_xlabel()
    canvas = axis.images[0].get_array()
    side = round(canvas.shape[1] / 2.2)
    first = images.images[(images.labels == 1).nonzero()[1, 0]].permute(1, 2, 0).numpy()
    tile = canvas[round(1.1 * side) :, round(1.1 * side) :][:side, :side]
    assert np.array_equal(tile[:: side // 8, :: side // 8], first)
    assert (
        len(plots.samples(images.only([7])).axes[0].get_yticklabels()) == 10
    )  # a class without images is an empty line


def test_neighbours_paste_the_right_pixels_and_leave_out_what_is_masked():
    images = data.load("digits").train.subset(torch.arange(3, 40))  # position and data-set row differ
    near = context([10, 11, 12], [0.9, 0.8, 0.7], [True, True, False])
    far = context([20], [0.5])
    weights = torch.tensor([[0.75, 0.25, 0.0]])
    (axis,) = plots.neighbours(images, 5, images, near, far, weights=weights, title="t").axes
    names = {row: images.classes[int(images.labels[row - 3])] for row in (5, 10, 11, 20)}
    shown = texts(axis)
    assert f"query, row 5\nclass {names[5]}" in shown
    assert f"{names[10]}\n0.900\nw 75%" in shown and f"{names[11]}\n0.800\nw 25%" in shown
    assert f"{names[20]}\n0.500" in shown
    assert len(axis.patches) == 4
    picture, frame = axis.images[0], axis.patches[1]
    canvas, width = picture.get_array(), picture.get_extent()[1]
    pixels = canvas.shape[1] / width
    left, top = round(frame.get_x() * pixels), round(frame.get_y() * pixels)
    zoom = round(pixels / 8)
    expected = images.images[10 - 3].permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)
    assert (canvas[top : top + len(expected), left : left + len(expected)] == expected).all()


def test_distributions_show_the_same_classes_in_all_panels_and_always_the_true_one():
    classes = [f"class {c}" for c in range(100)]
    teacher, student = torch.full((100,), 0.001), torch.full((100,), 0.002)
    teacher[40], student[7] = 0.9, 0.8
    figure = plots.distributions({"teacher": teacher, "student": student}, classes, label=99, most=4)
    ticks = [[t.get_text() for t in axis.get_xticklabels()] for axis in figure.axes]
    assert ticks[0] == ticks[1] and len(ticks[0]) == 4
    assert {"class 40", "class 7", "class 99 ✓"} <= set(ticks[0])
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert np.isclose(heights[ticks[0].index("class 40")], 0.9)
    assert [axis.get_title() for axis in figure.axes] == ["teacher\npredicts class 40", "student\npredicts class 7"]


def test_similarities_count_every_query_and_state_the_share_nearer_to_another_class():
    same, other = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0.5, 0.6, 0.8, 0.1])
    figure = plots.similarities(same, other)
    right = figure.axes[1]
    assert sum(bar.get_height() for bar in right.patches) == 4
    assert [t.get_text() for t in right.get_legend().texts] == [
        "own class nearer: 75.0%",
        "another class nearer: 25.0%",
    ]


def test_precision_by_class_handles_ten_a_hundred_and_missing_classes():
    ten = plots.by_class(torch.arange(10) / 10, list("abcdefghij"), chance=0.1).axes[0]
    assert [t.get_text() for t in ten.get_yticklabels()] == list("jihgfedcba")
    names, upper = [f"c{c}" for c in range(100)], [c // 5 for c in range(100)]
    values = torch.arange(100) / 100
    values[99] = torch.nan
    groups = plots.by_class(values, names, [f"s{s}" for s in range(20)], upper).axes[0]
    assert len(groups.get_yticklabels()) == 20 and texts(groups)[0] == "lowest: c95 95.0"
    assert len(plots.by_class(values, names).axes[0].get_yticklabels()) == 20
    figure = plots.precision([1, 2], {"teacher": [0.5, 0.25]}, {"same class": 0.1})
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), [50, 25])
    assert [t.get_text() for t in figure.legends[0].texts] == ["teacher", "chance, same class: 10.0%"]


def test_aggregation_and_time_keep_their_numbers():
    figure = plots.aggregation([0.01, 0.1], [[1.0, 2.0, 3.0], [3.0, 3.5, 4.0]], {0.01: [0.7, 0.3]}, mark=0.1)
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), [2, 3.5])
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), [70, 30])
    (axis,) = plots.retrieval_time([100, 1000], {"search": [0.001, 0.002]}).axes
    assert np.allclose(axis.lines[0].get_ydata(), [1, 2]) and axis.get_xscale() == axis.get_yscale() == "log"


@pytest.mark.parametrize("superclasses", [0, 20])
@pytest.mark.parametrize("count", [10, 100])
def test_logit_space_figures_are_complete_for_ten_and_a_hundred_classes(count, superclasses):
    classes = [f"class {c}" for c in range(count)]
    upper = {}
    if superclasses and count == 100:
        upper = {"superclasses": [f"super {s}" for s in range(20)], "superclass_of": [c % 20 for c in range(100)]}
    generator = np.random.default_rng(0)
    labels = np.arange(300) % count
    points = {name: generator.normal(size=(300, 2)) for name in ("teacher", "ce", "kd")}
    figure = plots.embeddings(points, torch.tensor(labels), classes, **upper)
    for axis in figure.axes[:3]:
        assert sum(len(cloud.get_offsets()) for cloud in axis.collections) == 300
    assert len(figure.legends[0].texts) == (10 if count == 10 else 20 if upper else 11)
    assert len(figure.axes[0].texts) == (10 if count == 10 else 0)

    matrix = np.arange(count**2).reshape(count, count) / count**2
    figure = plots.class_correlation({"teacher": matrix, "ce": matrix.T}, classes, **upper)
    panel = figure.axes[0]
    order = sorted(range(count), key=lambda c: (c % 20, c)) if upper else range(count)
    assert np.array_equal(panel.images[0].get_array(), matrix[np.ix_(order, order)])
    if upper or count == 10:
        assert len(panel.get_yticklabels()) == (20 if upper else 10)


def test_a_class_named_others_has_a_colour_of_its_own():
    names, _, looks = class_colours(["left", "right", "others"])
    assert names[2] == "others" and looks[2]["color"] == PALETTE[2] and REST not in looks
    figure = plots.embeddings({"ce": np.eye(3, 2)}, [0, 1, 2], names)
    assert [cloud.get_label() for cloud in figure.axes[0].collections] == names, "none is drawn below the others"
    names, group, looks = class_colours([*"abcdefghijk", "others"])
    assert names[-1] == "others" and looks[group[-1]] == looks[-1] == REST


def test_separation_shows_seeds_their_mean_and_percent():
    table = {"ce": {"ratio": [2.0, 4.0], "negative_margin": [0.1, 0.2]}, "kd": {"ratio": 5.0, "negative_margin": 0.05}}
    figure = plots.separation(table)
    assert len(figure.axes) == 2
    assert texts(figure.axes[0]) == ["3.00 ± 1.41", "5.00"]
    assert texts(figure.axes[1]) == ["15.0 ± 7.1", "5.0"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["ce", "kd"]


def test_differences_mark_intervals_that_include_zero():
    intervals = {"kd": {"mean": 0.02, "low": 0.01, "high": 0.03}, "ickd": {"mean": 0.01, "low": -0.01, "high": 0.03}}
    (axis,) = plots.differences(intervals, baseline="ce").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["kd", "ickd"]
    assert texts(axis) == ["+2.0  (+1.0 to +3.0)", "+1.0  (-1.0 to +3.0)  includes 0"]
    marks = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert [mcolors.to_hex(m.get_markerfacecolor()) == "#ffffff" for m in marks] == [False, True]
    assert "difference to ce" in axis.get_xlabel()


def test_published_accuracies_stand_beside_measured_ones_best_on_top():
    measured = {"kd": [0.74, 0.75], "ickd": [0.77]}
    figure = plots.published({"a pair": (measured, {"kd": 0.7333, "ReviewKD": 0.76}), "another": ({"ce": [0.5]}, {})})
    axis, other = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ickd", "ReviewKD", "kd"]
    texts = [text.get_text() for text in axis.texts]
    assert {"77.00", "74.50 ± 0.71", "76.00", "73.33"} <= set(texts)
    hollow = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D"]
    assert hollow == pytest.approx([76.0, 73.33])
    assert [text.get_text() for text in other.texts] == ["50.00"]
    assert other.get_xlabel().startswith("accuracy of the last epoch, %")
    assert plots.published({"": (measured, {})}, of="mIoU").axes[0].get_xlabel().startswith("mIoU of the last epoch, %")


def test_cost_draws_each_method_at_its_time_and_accuracy():
    (axis,) = plots.cost({"ce": [0.9, 0.92], "kd": [0.95, 0.97]}, {"ce": 0.01, "kd": 0.025}).axes
    drawn = [(bar.get_label(), *(float(value[0]) for value in bar.lines[0].get_data())) for bar in axis.containers]
    assert drawn == [("ce", 10, pytest.approx(91)), ("kd", 25, pytest.approx(96))]
    assert [text.get_text() for text in axis.get_legend().texts] == ["ce", "kd"]


def test_bars_and_few_shot_hold_every_number():
    found = {"ce": {"old": [0.1, 0.3], "new": [0.9, 0.9]}, "kd": {"old": [0.5, 0.7], "new": [0.8, 0.8]}}
    (axis,) = plots.bars(found, ylabel="%", title="t").axes
    assert texts(axis) == ["20.0", "90.0", "60.0", "80.0"]
    assert [round(bar.get_height()) for bar in axis.patches] == [20, 90, 60, 80]
    episodes = {"ncm": 0.5, "ncm_interval": 0.01, "linear": 0.6, "linear_interval": 0.02}
    left, right = plots.few_shot({"ce": {1: episodes, 5: episodes}, "kd": {1: episodes, 5: episodes}}).axes
    for axis, value in ((left, 50), (right, 60)):
        lines = [container.lines[0] for container in axis.containers]
        assert len(lines) == 2 and all(list(line.get_ydata()) == [value, value] for line in lines)
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "5"]


def bank_records(fills: list[float], evaluated: list[int]) -> list[dict[str, float]]:
    numbers = {"bank_drift": 0.25, "bank_overlap": 0.5, "bank_agreement": 0.75}
    return [
        {"epoch": e, "bank_fill": fill, "bank_age": 2.0, "bank_age_max": 4.0} | (numbers if e in evaluated else {})
        for e, fill in enumerate(fills, 1)
    ]


def test_banks_show_evaluated_epochs_and_state_how_full_they_are():
    records = bank_records([1.0] * 4, [2, 4])
    names = ["ickd_self, resnet8 seed 0", "ickd_self, resnet8 seed 1", "pskd, resnet8 seed 0"]
    figure = plots.banks(dict.fromkeys(names, records))
    age, drift, overlap, agreement = figure.axes
    assert [line.get_ydata()[0] for line in age.lines] == [2, 4] * 3
    for axis, value in ((drift, 0.25), (overlap, 50), (agreement, 75)):
        assert [line.get_xdata().tolist() for line in axis.lines] == [[2, 4]] * 3
        assert {*axis.lines[0].get_ydata()} == {value} and axis.get_ylim()[0] == 0
    assert texts(age) == ["all banks full from epoch 1 on"] and age.get_title().startswith("Age of rows, steps")
    assert [text.get_text() for text in figure.legends[0].texts] == names
    first, second, other = drift.lines
    assert first.get_color() == plots.method_style("ickd_self")["color"] and first.get_marker() == "s"
    assert second.get_color() != first.get_color() and second.get_marker() != first.get_marker()
    assert other.get_color() == plots.method_style("pskd")["color"]
    assert len(plt.get_fignums()) == 1
    mixed = plots.banks({"pskd": records, "pskd(alpha=0.5)": bank_records([0.6, 0.9, 1.0], [3])}).axes[0]
    assert texts(mixed) == ["emptiest bank: 60% after epoch 1,\nfull from epoch 3 on"]
    never = plots.banks({"pskd": bank_records([0.6, 0.9], [2])}).axes[0]
    assert texts(never) == ["emptiest bank: 60% after epoch 1,\n90% after epoch 2"]
    before = plt.get_fignums()
    for broken in ([{"epoch": 1, "loss": 1.0}], bank_records([1.0], [])):
        with pytest.raises(InputError, match="'ce, seed 0'"):
            plots.banks({"pskd": records, "ce, seed 0": broken})
    assert plt.get_fignums() == before


def test_agreement_is_shown_over_the_epochs_and_beside_the_accuracy():
    seeds = [
        [{"epoch": e, "peer_agreement": a, "train_accuracy": a / 2} for e, a in [(1, 0.2), (2, 0.6)]],
        [{"epoch": e, "peer_agreement": a, "train_accuracy": a / 2} for e, a in [(1, 0.4), (2, 0.8), (3, 0.9)]],
    ]
    figure = plots.agreement({"dml": seeds[:1], "kdcl": seeds})
    left, right = figure.axes
    assert left.lines[1].get_xdata().tolist() == [1, 2] and np.allclose(left.lines[1].get_ydata(), [30, 70])
    band = left.collections[1].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.max(), 70 + 100 * np.std([0.6, 0.8], ddof=1))
    path, dot = right.lines[-2:]
    assert np.allclose(path.get_xdata(), [15, 35]) and np.allclose(dot.get_xydata(), [[35, 70]])
    assert dot.get_marker() == plots.method_style("kdcl")["marker"]
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["kdcl\n70.0 ± 14.1", "dml\n60.0"]  # the best first
    assert "2 seeds" in left.get_ylabel() and right.get_xlabel().startswith("training accuracy, %\n(shaded: ")
    before = plt.get_fignums()
    for alone in ([[{"epoch": 1, "train_accuracy": 0.5}]], []):
        with pytest.raises(InputError, match="'ce'"):
            plots.agreement({"dml": seeds, "ce": alone})
    assert plt.get_fignums() == before


def test_paradigms_are_groups_of_rows_with_a_heading():
    given = {"labels only": {"ce": [0.8, 0.82]}, "online": {"dml": [0.9, 0.92, 0.94], "kdcl": [0.7]}}
    (axis,) = plots.paradigms(given, baseline="ce").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ce", "dml", "kdcl"]
    assert axis.get_yticks().tolist() == [1, 3, 4] and axis.yaxis_inverted()
    assert texts(axis) == ["labels only", "81.0 ± 1.4", "online", "92.0 ± 2.0", "70.0"]
    dots = [c.get_offsets() for c in axis.collections if isinstance(c, PathCollection)]
    assert np.allclose(dots[0][:, 0], [80, 82]) and np.allclose(dots[1][:, 0], [90, 92, 94])
    assert any(np.allclose(line.get_xdata(), [81, 81]) for line in axis.lines)
    assert axis.get_xlabel() == "test accuracy, %  (line: ce, 81.0)"
    (axis,) = plots.paradigms({"online": {"dml": [0.9]}}).axes
    assert axis.get_title() == "One seed each" and axis.get_xlabel() == "test accuracy, %"
    before = plt.get_fignums()
    with pytest.raises(InputError, match="no group contains the baseline 'kd'"):
        plots.paradigms(given, baseline="kd")
    assert plt.get_fignums() == before


def test_a_confusion_matrix_has_a_name_for_each_class():
    assert len(plots.confusion(torch.eye(2), ["a", "b"]).axes[0].texts) == 2
    with pytest.raises(InputError, match=r"shape \[3, 3\], but there are 2 names") as error:
        plots.confusion(torch.eye(3), ["a", "b"])
    assert "\n" not in str(error.value)
