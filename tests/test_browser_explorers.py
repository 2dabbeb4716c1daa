"""All explorers on narrow and enlarged pages, their order of Tab, and the explanations of their terms."""

from __future__ import annotations

import re

import pytest
from test_browser import CONTRIBUTIONS, Lab, Notebook, browser, expect, lab, pytestmark, until  # noqa: F401

from ickd_lib.widgets.terms import TERMS

CELLS = (
    CONTRIBUTIONS[0],
    "networks = {'teacher': teacher, 'student': run.network}\n"
    "neighbours = widgets.NeighbourExplorer(bank, splits.train, queries=splits.test, **networks)\nneighbours",
    "logits = widgets.LogitSpaceExplorer(networks, splits.test, how='pca')\nlogits",
    "runs = widgets.RunExplorer('contributions')\nruns",
    "attribution = widgets.AttributionExplorer(attributor, splits.test)\nattribution",
    "suspects = widgets.SuspectExplorer(bank, splits.train)\nsuspects",
)
NAMES = ("neighbours", "logits", "runs", "attribution", "suspects")
# The order of docs/notebooks.md; elements between these are left out.
ORDER = {
    "neighbours": (
        *("search", "test row", "class", "next", "random", "next mistake", "positives k⁺", "negatives k⁻"),
        *("aggregation τₐ", "1", "3", "your own image", "or its path", "positive 1", "negative 1"),
    ),
    "logits": (
        *("search", "map", "colour", "names", "select class", "select rows", "teacher right, student wrong"),
        *("student right, teacher wrong", "clear selection", "fit maps", "left map", "right map", "predictions of"),
        *("order", "show", "save selection", "0", "1"),
    ),
    "runs": (
        *("filter", "choose all shown", "run", "show", "number", "mean over seeds", "reload", "PNG", "SVG"),
        *("CSV, runs", "CSV, curves", "Markdown", "LaTeX"),
    ),
    "attribution": (
        *("search", "row", "class", "next", "random", "next mistake", "explain"),
        "rank with what samples did as in-context samples of others",
    ),
    "suspects": ("save as CSV", "next ▸"),
}
# What extends beyond the explorer or is cut off inside; what scrolls by itself may.
CUT = """(explorer) => {
    const right = explorer.getBoundingClientRect().right + 1, found = [];
    const scrolls = (one) => one.closest('.ickd-wide, .ickd-scroll, .ickd-ranking ul, .ickd-strip, [aria-hidden]');
    for (const one of explorer.querySelectorAll('*')) {
        const box = one.getBoundingClientRect();
        if (!box.width || scrolls(one) || one.closest('svg, datalist, select')) continue;
        const cut = /BUTTON|LABEL|TH|TD|SPAN|B|LI/.test(one.tagName) && one.scrollWidth > one.clientWidth + 1
            && getComputedStyle(one).display !== 'inline';
        if (box.right > right || cut) found.push(`${one.tagName}.${one.className} ${one.textContent.slice(0, 60)}`);
    }
    return found;
}"""
PAGE = """() => [document.documentElement, document.querySelector('.jp-WindowedPanel-outer')]
    .map((one) => one.scrollWidth - one.clientWidth)"""
UNEXPLAINED = """(explorer) => {
    const terms = '.ickd-title, caption, .ickd-table thead th, .ickd-bars thead th, .ickd-scroll thead th button, '
        + '.ickd-who, .ickd-legend button, .ickd-choices label, .widget-label, .jupyter-button, .widget-toggle-button, '
        + '.widget-checkbox label';
    const seen = [...explorer.querySelectorAll(terms)].filter((one) => one.offsetParent && one.innerText.trim());
    return seen.map((one) => {
        const tips = [one, one.closest('[title]'), ...one.querySelectorAll('[title]')].map((x) => x?.title);
        return [one.innerText.trim(), tips.find((tip) => tip && tip !== one.innerText.trim()) ?? ''];
    });
}"""


@pytest.fixture(scope="module")
def explorers(lab, browser):  # noqa: F811
    notebook = Notebook(lab, browser, "explorers", CELLS)
    notebook.evaluate("logits.select(list(range(30)))")
    return notebook


def shown(notebook, name):
    found = notebook.page.locator(".ickd-explorer").nth(NAMES.index(name))
    found.scroll_into_view_if_needed()
    expect(found.locator(".ickd button").first).to_be_visible(timeout=60_000)
    return found


@pytest.mark.parametrize(("width", "height", "scale"), [(1024, 768, 1), (960, 600, 1.5)])
def test_nothing_is_cut_on_narrow_and_enlarged_pages(explorers, width, height, scale):
    """960 x 600 at a scale of 1.5 is what a page of 1440 x 900 is at a zoom of 150 %."""
    session = explorers.page.context.new_cdp_session(explorers.page)
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    session.send("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert explorers.page.evaluate("[innerWidth, devicePixelRatio]") == [width, scale]
        explorers.page.wait_for_timeout(2000)
        assert explorers.page.evaluate(PAGE) == [0, 0]
        for name in NAMES:
            assert (name, shown(explorers, name).evaluate(CUT)) == (name, [])
    finally:
        session.send("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("name", NAMES)
def test_tab_follows_the_documented_order(explorers, name):
    explorer, order = shown(explorers, name), list(ORDER[name])
    first = explorer.locator("input, select, button").first
    first.focus()
    reached = explorers.tab_order(70 if name != "runs" else 40)
    assert [one for one in reached if one in order][: len(order)] == order
    explorers.page.keyboard.press("Shift+Tab")  # no trap: the focus moves on in the other direction, too
    assert explorers.page.evaluate("document.activeElement !== document.body")


@pytest.mark.parametrize("name", NAMES)
def test_every_term_is_explained(explorers, name):
    found = shown(explorers, name).evaluate(UNEXPLAINED)
    assert len(found) >= 2 and [text for text, tip in found if not tip] == []


def test_each_explanation_is_one_sentence():
    for term, sentence in TERMS.items():
        assert re.fullmatch(r"[A-Z-].*[^.]\.", sentence), term
        assert len(sentence) < 120 and ". " not in sentence, term


def test_names_stand_on_the_maps_in_both_themes(explorers):
    """The names are drawn undistorted after a change of the theme, and a switch removes them."""
    explorer = shown(explorers, "logits")
    widths = """(one) => [...one.querySelectorAll('canvas:not([aria-hidden])')]
        .filter((canvas) => canvas.clientHeight > 200).map((canvas) => Math.abs(canvas.width - canvas.clientWidth))"""
    for dark in (True, False):
        explorers.theme(dark)
        assert until(lambda: max(explorer.evaluate(widths)) < 2)
    labels = "[list(one.widget.labels['label']) for one in logits.scatters]"
    assert sorted(explorers.evaluate(labels)[0]) == [str(c) for c in range(10)]
    box = explorer.get_by_label("names", exact=True)
    box.uncheck()
    assert until(lambda: explorers.evaluate(labels) == [[], []])
    box.check()
    assert until(lambda: len(explorers.evaluate(labels)[1]) == 10)
    assert explorers.evaluate("logits.error") == ""


def test_runs_that_a_filter_hides_are_not_chosen(explorers):
    explorer = shown(explorers, "runs")
    chosen = "sorted(runs.chosen)"
    explorer.get_by_label("choose all shown").check()
    assert until(lambda: len(explorers.evaluate(chosen)) == 2)
    explorer.get_by_role("searchbox", name="filter").fill("ickd")
    assert until(lambda: [name for name in explorers.evaluate(chosen) if "ickd" not in name] == [])
    expect(explorer.locator(".ickd-choices").get_by_role("status")).to_contain_text("1 chosen (1 more are hidden")
    explorer.get_by_role("searchbox", name="filter").fill("")
    assert until(lambda: len(explorers.evaluate(chosen)) == 2)
    explorer.get_by_label("choose all shown").uncheck()
    assert until(lambda: explorers.evaluate(chosen) == [])
