"""Galleries opened from disk: by mouse and keyboard, in both themes, without a request to the network."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accessibility import serious_findings
from test_browser import ROOT, browser, expect, pytestmark  # noqa: F401  the fixture and the mark
from test_browser_explorers import CUT, UNEXPLAINED
from test_runs import make_run

from ickd_lib import models, runtime
from ickd_lib.explore import suspect_labels
from ickd_lib.memory import MemoryBank
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer, RunExplorer, SuspectExplorer

NAMES = tuple(f"<b>{c}</b></script><script>alert({c})</script>" if c % 2 else f'"{c}" & {c}' for c in range(10))


@pytest.fixture(scope="module")
def explorers(digits, teacher, bank, tmp_path_factory):
    """The explorers that can be saved, with class names that must be escaped."""
    train, test = (replace(images, classes=NAMES) for images in (digits.train, digits.test))
    renamed = MemoryBank(bank.features, bank.logits, bank.labels, bank.index, NAMES)
    with runtime.seeded(0):
        student = models.create("resnet8", **digits.train.spec).eval()
    runs = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        make_run(runs / f"ce-{seed}", seed=seed)
    make_run(runs / "kd-0", "kd")
    return {
        "neighbours": NeighbourExplorer(renamed, train, queries=test, teacher=teacher, student=student),
        "maps": LogitSpaceExplorer({"teacher": teacher, "student": student}, test, how="pca"),
        "suspects": SuspectExplorer(renamed, train),
        "runs": RunExplorer(runs),
    }


@pytest.fixture(scope="module")
def folder(explorers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    for name, explorer in explorers.items():
        explorer.save(folder / f"{name}.html")
    return folder


@pytest.fixture
def opened(browser, folder):  # noqa: F811
    """Open a gallery by name or path; afterwards, there must have been no request to a network and no error."""
    pages, problems = [], []

    def open_(name, **options):
        page = browser.new_page(viewport={"width": 1440, "height": 900}, **options)
        pages.append(page)
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto((name if isinstance(name, Path) else folder / f"{name}.html").as_uri())
        expect(page.locator("#gallery button").first).to_be_visible()
        return page

    yield open_
    for page in pages:
        page.close()
    assert problems == []


def test_neighbours_by_mouse_and_keyboard(opened, explorers):
    page, explorer = opened("neighbours"), explorers["neighbours"]
    queries, head = page.locator(".ickd-strip button.ickd-tile"), page.locator("h2")
    count = queries.count()
    assert 12 < count <= 36
    expect(head).to_contain_text(f"(1 of {count})")
    expect(page.locator(".ickd-query")).to_contain_text(f"row {int(explorer.query_samples.rows[0])}")
    chips = page.locator(".ickd-verdicts li")
    expect(chips).to_have_count(3)
    (row,) = [p.argmax() for name, p in explorer._probabilities().items() if name == "teacher"]
    expect(chips.first).to_contain_text(NAMES[int(row)])
    queries.nth(2).click()
    expect(head).to_contain_text(f"(3 of {count})")
    page.keyboard.press("ArrowRight")
    expect(head).to_contain_text(f"(4 of {count})")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(head).to_contain_text(f"(2 of {count})")
    inside = page.locator(".ickd-same button.ickd-tile").first  # a neighbour that is a query of the gallery
    row = re.search(r"row \d+", inside.get_attribute("aria-label"))[0]
    inside.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ickd-query")).to_contain_text(row)
    expect(head).to_be_focused()
    page.go_back()
    expect(head).to_contain_text(f"(2 of {count})")
    page.get_by_role("button", name="previous query").click()
    page.keyboard.press("Shift+ArrowLeft")
    expect(head).to_contain_text(f"({count} of {count})")
    page.get_by_label("filter").fill("3")
    assert 0 < page.locator(".ickd-strip button.ickd-tile:visible").count() < count


def test_suspects_have_their_neighbours(opened, explorers):
    page, explorer = opened("suspects"), explorers["suspects"]
    found = suspect_labels(explorer.bank, neighbours=16)
    tiles = page.locator(".ickd-strip button.ickd-tile")
    expect(tiles).to_have_count(24)
    for at in (0, 5):
        tiles.nth(at).click()
        expect(page.locator("h2")).to_contain_text(f"({at + 1} of 24)")
        near = page.locator(".ickd-other .ickd-tile")
        expect(near).to_have_count(16)
        row = explorer.bank.rows(found.key[at : at + 1])
        cosine = explorer.bank.features @ explorer.bank.features[row[0]]
        cosine[row] = -torch.inf
        nearest = int(explorer.bank.index[cosine.argmax()])
        expect(near.first).to_contain_text(f"row {nearest}")


def test_maps_by_mouse_and_keyboard(opened, explorers):
    page, explorer = opened("maps"), explorers["maps"]
    left, right = page.locator("svg.ickd-map").all()
    points = left.locator("circle")
    expect(points).to_have_count(400)
    sample = sorted(torch.randperm(len(explorer.labels), generator=runtime.generator("gallery"))[:400].tolist())
    labels = explorer.labels[sample]
    page.locator(".ickd-legend button").nth(3).click()
    of_class = int((labels == 3).sum())
    expect(page.locator(".ickd-tiles").last).to_contain_text(f"{of_class} selected: {NAMES[3]}")
    for one in (left, right):
        assert one.locator("circle.ickd-faded").count() == 400 - of_class
    ok = {name: z[sample].argmax(1) == labels for name, z in explorer.logits.items()}
    page.get_by_role("button", name="teacher right, student wrong").click()
    both = int((ok["teacher"] & ~ok["student"]).sum())
    expect(page.get_by_text(f"{both} selected: teacher right, student wrong")).to_be_visible()
    page.get_by_role("button", name="clear selection").click()
    expect(page.locator("circle.ickd-faded")).to_have_count(0)
    points.nth(7).hover(force=True)
    expect(page.locator(".ickd-beside")).to_contain_text(f"row {int(explorer.rows[sample[7]])}")

    right.focus()
    before = right.get_attribute("aria-activedescendant")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    here = right.get_attribute("aria-activedescendant")
    assert here != before
    at = int(here.partition("-")[2])
    expect(page.locator(".ickd-beside")).to_contain_text(f"row {int(explorer.rows[sample[at]])}")
    page.keyboard.press("Enter")
    count = int((labels == labels[at]).sum())
    expect(page.get_by_text(f"{count} selected: class {NAMES[int(labels[at])]}")).to_be_visible()
    page.get_by_label("colour").select_option("confidence")
    expect(page.locator(".ickd-legend")).to_contain_text("90–100 %")
    errors = page.locator(".ickd-ranking").first.get_by_role("button").first
    number = int(errors.locator(".ickd-number").inner_text())
    errors.click()
    expect(page.get_by_text(re.compile(rf"^{number} selected: class .*, predicted as "))).to_be_visible()
    page.get_by_label("colour").select_option("disagreement")
    for theme, grey in (("light", "rgb(217, 217, 217)"), ("dark", "rgb(77, 77, 77)")):
        page.emulate_media(color_scheme=theme)
        fills = points.evaluate_all("(all) => all.map((one) => getComputedStyle(one).fill)")
        assert grey in fills and "rgb(0, 0, 0)" not in fills  # black is the colour of an unknown one
        expect(page.locator(".ickd-legend .ickd-swatch").first).to_have_css("background-color", grey)


def test_runs_are_sorted_filtered_and_drawn_in_the_theme_of_the_page(opened):
    page = opened("runs", color_scheme="dark")
    rows, picture = page.locator("tbody tr:visible"), page.locator("img.ickd-picture")
    expect(rows).to_have_count(3)
    expect(page.locator("input[type=checkbox]")).to_have_count(0)  # nothing is chosen without a kernel
    page.get_by_role("button", name="last, %").click()
    expect(rows.first).to_contain_text("90.0")
    page.get_by_label("filter").fill("kd")
    expect(rows).to_have_count(1)
    dark = picture.get_attribute("src")
    page.emulate_media(color_scheme="light")
    expect(picture).not_to_have_attribute("src", dark)
    page.get_by_label("show").select_option("final metrics")
    expect(picture).to_have_attribute("alt", re.compile("^final metrics: ce, kd"))
    assert picture.evaluate("(one) => one.naturalWidth") > 300


ORDER = {  # of docs/notebooks.md
    "neighbours": ["previous query", "next query", "filter", "query", "positive 1", "negative 1"],
    "suspects": ["previous suspect", "next suspect", "filter"],
    "maps": [
        *("colour", "names", "predictions of", "teacher right, student wrong", "student right, teacher wrong"),
        *("clear selection", "map of teacher", "map of student"),
    ],
    "runs": ["filter", "runs below", "run", "last, %", "show"],
}


@pytest.mark.parametrize("name", ORDER)
def test_tab_follows_the_documented_order_and_every_term_is_explained(opened, name):
    page, reached = opened(name), []
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                    const one = document.activeElement;
                    const label = one.labels?.[0]?.querySelector('span')?.textContent;
                    const text = one.getAttribute('aria-label') ?? label ?? one.innerText;
                    return text.trim().split(':')[0].replace(/^runs below.*/, 'runs below').split('\\n')[0].trim();
                }"""
            )
        )
    found = [one for one in dict.fromkeys(reached) if one in ORDER[name]]
    plain = [one for one in ORDER[name] if one in found]
    assert found == plain and len(plain) >= len(ORDER[name]) - (name == "neighbours")
    assert [text for text, tip in page.locator("#gallery").evaluate(UNEXPLAINED) if not tip] == []


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize(("width", "scale"), [(1024, 1), (960, 1.5)])
def test_nothing_is_cut_on_narrow_and_enlarged_pages(opened, name, width, scale):
    page = opened(name, device_scale_factor=scale)
    page.set_viewport_size({"width": width, "height": 600})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#gallery").evaluate(CUT) == []


@pytest.mark.parametrize("name", ["neighbours", "maps", "suspects", "runs"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_gallery_is_accessible(opened, name, theme):
    page = opened(name, color_scheme=theme)
    if name == "maps":
        page.locator(".ickd-legend button").first.click()
    assert serious_findings(page) == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "gallery").glob("*.html")), ids=lambda path: path.stem)
def test_the_committed_galleries_are_small_and_work(opened, path):
    page = opened(path)
    assert path.stat().st_size < 1_000_000
    head, before = page.locator("#gallery"), page.locator("#gallery").inner_text()
    (page.locator("h2").or_(page.locator("svg.ickd-map")).first).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(head).not_to_have_text(before)
    assert serious_findings(page) == []
