"""Galleries: what their files contain, and that explorers are left as they were."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from test_widgets_logits import made

from ickd_lib.memory import MemoryBank
from ickd_lib.plots import class_colours
from ickd_lib.plots.style import PALETTE
from ickd_lib.runtime import InputError
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer, SuspectExplorer, View
from ickd_lib.widgets.gallery import Sheets
from ickd_lib.widgets.view import strip


def content_of(path):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def tiles_of(block):
    """The tiles of a block and of the blocks inside it."""
    return sum(map(tiles_of, block.get("blocks", [])), block.get("tiles", []))


def unpacked(sheet):
    """The images of a sheet, as gallery.js unpacks them."""
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(sheet["source"].partition(",")[2]))).convert("RGB"))
    (n, height, width), (high, wide) = sheet["shape"], sheet["cell"]
    columns = picture.shape[1] // wide
    corners = [(at // columns * high, at % columns * wide) for at in range(n)]
    return np.stack([picture[top : top + height, left : left + width] for top, left in corners])


@pytest.mark.parametrize("size", [(8, 8), (5, 21)])
def test_each_image_is_stored_once_and_without_loss_where_it_is_small(size):
    images = torch.randint(256, (70, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[9] = images[3]
    data, shape = strip(images)
    sheets = Sheets()
    tiles = [{"at": at} for at in range(70)]
    block = sheets.add({"kind": "row", "blocks": [{"kind": "tiles", "shape": shape, "tiles": tiles}]}, data)
    (sheet,) = sheets.encoded()
    stored = unpacked(sheet)
    assert len(stored) == 69 and sheet["source"].startswith("data:image/png")
    for at, tile in enumerate(block["blocks"][0]["tiles"]):
        assert np.array_equal(stored[tile["at"]], images[at].permute(1, 2, 0).numpy())


def test_a_file_contains_what_the_explorer_displays_and_the_explorer_stays_as_it_was(
    digits, bank, teacher, tmp_path, monkeypatch
):
    explorer = NeighbourExplorer(bank, digits.train, queries=digits.test, teacher=teacher)
    explorer.random.click()
    path, found, shown = explorer.path, explorer.found, explorer.view._last
    monkeypatch.setattr(View, "send", lambda *_: pytest.fail("nothing may be sent to the page"))
    explorer.save(tmp_path / "a.html", queries=3, shown=4)
    content = content_of(tmp_path / "a.html")
    keys = [tile["key"] for tile in content["listing"]["tiles"]]
    assert keys[0] == f"queries:{int(explorer.query_samples.keys[path[0][1]])}" and list(content["pages"]) == keys
    assert 3 < len(keys) <= 9
    row, near, far = content["pages"][keys[0]]
    assert row["blocks"][1] == shown[0][1]["blocks"][1]  # the probabilities
    for tiles, all_tiles in ((near, shown[0][2]), (far, shown[0][3])):
        assert [tile["lines"] for tile in tiles["tiles"]] == [tile["lines"] for tile in all_tiles["tiles"][:4]]
        assert [tile["key"] in keys for tile in tiles["tiles"]] == ["plain" not in tile for tile in tiles["tiles"]]
    assert explorer.path == path and torch.equal(explorer.found.positives.index, found.positives.index)
    assert explorer.view._last is shown


def test_only_the_script_with_the_given_hash_runs(digits, bank, tmp_path):
    SuspectExplorer(bank, digits.train).save(tmp_path / "a.html", suspects=5)
    text = (tmp_path / "a.html").read_text()
    script = re.search(r'<script type="module">(.*)</script>', text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; script-src 'sha256-{digest}'" in text
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text.replace("http-equiv", ""))


def test_the_selection_is_among_the_points_of_a_gallery(digits, tmp_path):
    labels = digits.test.labels
    logits = torch.nn.functional.one_hot(labels, 10) + 0.1
    explorer = LogitSpaceExplorer({"a": logits, "b": logits.flip(1)}, digits.test, how="pca")
    explorer.select([5, 700])
    explorer.save(tmp_path / "a.html", points=30)
    content = content_of(tmp_path / "a.html")
    rows = [tile["lines"][0] for tile in content["images"]["tiles"]]
    chosen = [rows[i] for i in content["selected"]]
    assert len(rows) == 30 and chosen == [f"row {int(explorer.rows[at])}" for at in (5, 700)]
    at = torch.tensor([int(row.split()[1]) for row in rows]) - int(explorer.rows[0])
    assert content["labels"] == labels[at].tolist()
    assert content["networks"]["b"]["predicted"] == (9 - labels[at]).tolist() and content["shown"] == ["a", "b"]


def test_colours_follow_the_theme_of_the_page_and_not_that_of_the_notebook(tmp_path):
    images, logits = made(360, 36, upper=12)
    bank = MemoryBank(
        torch.nn.functional.normalize(logits["a"]), logits["a"], images.labels, images.index, images.classes
    )
    upper = (images.superclasses, images.superclass_of)
    _, group, light = class_colours(images.classes, *upper)
    *_, dark = class_colours(images.classes, *upper, dark=True)
    light, dark = ([to_hex(look["color"]) for look in looks] for looks in (light, dark))
    expected = [to_hex(PALETTE[i]) for i in range(10)] + [f"light-dark({light[i]}, {dark[i]})" for i in (10, 11)]
    assert light[:10] == dark[:10] and light[10] != dark[10]

    for explorer in (SuspectExplorer(bank, images), NeighbourExplorer(bank, images)):
        for theme in (True, False):
            explorer.view._receive(None, {"event": "theme", "dark": theme}, [])
            *_, tiles = explorer.view._last[0]
            for tile in tiles["tiles"]:
                assert tile["colour"] == (dark if theme else light)[group[images.classes.index(tile["lines"][0])]]
            explorer.save(tmp_path / f"{theme}.html")
        assert (tmp_path / "True.html").read_text() == (tmp_path / "False.html").read_text()
        pages = content_of(tmp_path / "True.html")["pages"].values()
        found = {(tile["lines"][0], tile["colour"]) for page in pages for block in page for tile in tiles_of(block)}
        assert found and all(colour == expected[group[images.classes.index(name)]] for name, colour in found)

    explorer = LogitSpaceExplorer(logits, images, how="pca")
    explorer.save(tmp_path / "a.html")
    colours = content_of(tmp_path / "a.html")["colours"]
    assert colours["superclass"]["entries"] == [list(pair) for pair in zip(images.superclasses, expected, strict=True)]
    assert colours["disagreement"]["entries"][0] == ["both right", "light-dark(#d9d9d9, #4d4d4d)"]


@pytest.mark.parametrize("name", ["a.txt", "none/a.html"])
def test_a_wrong_path_is_refused(digits, bank, tmp_path, name):
    with pytest.raises(InputError, match=r"HTML file|does not exist"):
        SuspectExplorer(bank, digits.train).save(tmp_path / name)
