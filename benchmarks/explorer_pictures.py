"""Draws the pictures of the explorers of neighbours and of the logit space, as they are in JupyterLab.

    python benchmarks/explorer_pictures.py --data-root DIR --teacher resnet56.pth --student resnet20.pth [--out figures]

The explorers are those of benchmarks/gallery.py. The script needs playwright and Chromium, and uses the JupyterLab of
the browser tests.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from PIL import Image
from playwright.sync_api import sync_playwright
from test_browser import Lab, Notebook, chromium

MADE = """
import sys
sys.path.insert(0, {here!r})
import gallery
neighbours, spaces, _ = gallery.explorers({data_root!r}, gallery.Path({teacher!r}), gallery.Path({student!r}))
"""
FILES = {"neighbours": "neighbour_explorer.png", "spaces": "logit_space_explorer.png"}
HOLDING = {"neighbours": ".ickd-query", "spaces": ".ickd-legend"}  # an element of each explorer
CLUSTER = "trees"  # the superclass that is selected in the logit space
HEIGHT = 1385  # of a picture, in pixels; what is below is left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder that contains cifar-100-python")
    parser.add_argument("--teacher", required=True, help="checkpoint such as resnet56.pth")
    parser.add_argument("--student", required=True, help="checkpoint such as resnet20.pth")
    parser.add_argument("--out", default="figures", type=Path, help="folder to write to")
    given = parser.parse_args()
    paths = {name: str(Path(getattr(given, name)).resolve()) for name in ("data_root", "teacher", "student")}
    made = MADE.format(here=str(Path(__file__).resolve().parent), **paths)
    flags = ["--headless", "--no-sandbox", "--disable-background-networking"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser, lab = playwright.chromium.launch(executable_path=chromium(), args=flags), Lab(Path(folder))
        try:
            lab.wait()
            notebook = Notebook(lab, browser, "pictures", (made, "neighbours", "spaces"))
            notebook.page.set_viewport_size({"width": 1360, "height": 2500})  # for the whole of an explorer
            for name, file in FILES.items():
                explorer = notebook.explorer(HOLDING[name])
                if name == "spaces":
                    explorer.get_by_role("button", name=CLUSTER, exact=True).click()
                notebook.page.mouse.move(0, 0)
                notebook.page.wait_for_timeout(5000)  # until the pictures are drawn
                picture = Image.open(io.BytesIO(explorer.screenshot()))
                picture.crop((0, 0, picture.width, min(picture.height, HEIGHT))).save(given.out / file, optimize=True)
        finally:
            lab.stop()


if __name__ == "__main__":
    main()
