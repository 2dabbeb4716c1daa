"""Measures how long the neighbour explorer takes in JupyterLab, with a bank of 50,000 rows of 256 features.

    python benchmarks/explorers.py [--out FILE]

Images, features and logits are random, because the time does not depend on them. It needs playwright and Chromium, and
uses the JupyterLab of the browser tests. Run it while nothing else runs: the load before the start is recorded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import machine
import torch
from playwright.sync_api import sync_playwright
from test_browser import QUERIES, SLIDER, Lab, Notebook, chromium

from ickd_lib import runtime

CELLS = (
    """
import torch
from ickd_lib import models, runtime, widgets
from ickd_lib.data import Images
from ickd_lib.memory import MemoryBank
g, names = runtime.generator("explorers"), tuple(f"class{c}" for c in range(100))
labels, index = torch.randint(100, (50_000,), generator=g), torch.arange(50_000)
pixels = torch.randint(256, (50_000, 3, 32, 32), generator=g, dtype=torch.uint8)
images = Images(pixels, labels, index, names, (0.5,) * 3, (0.25,) * 3, 1, True, "random/train")
features = torch.randn(100, 256, generator=g)[labels] + 3 * torch.randn(50_000, 256, generator=g)
bank = MemoryBank(features, torch.randn(50_000, 100, generator=g), labels, index, names)
student = models.create("resnet8", **images.spec).eval()
""",
    "explorer = widgets.NeighbourExplorer(bank, images, student=student)\nexplorer",
)


def measure(rounds: int) -> dict[str, Any]:
    """Return milliseconds of a new query, and redraws and milliseconds after twenty key presses on a slider."""
    flags = ["--headless", "--no-sandbox", "--disable-background-networking"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser, lab = playwright.chromium.launch(executable_path=chromium(), args=flags), Lab(Path(folder))
        try:
            lab.wait()
            notebook = Notebook(lab, browser, "explorers", CELLS)
            explorer = notebook.explorer(".ickd-query")
            notebook.page.wait_for_timeout(2000)
            took = [one for _ in range(rounds) for one in notebook.page.evaluate(QUERIES)["took"]]
            slider, settled = explorer.get_by_role("slider", name="positives k⁺"), []
            for _ in range(rounds):
                slider.focus()
                notebook.page.keyboard.press("Home")
                notebook.page.wait_for_timeout(2000)
                settled.append(dict(zip(("redraws", "milliseconds"), slider.evaluate(SLIDER), strict=True)))
        finally:
            lab.stop()
    return {
        "query_milliseconds": {"median": statistics.median(took), "largest": max(took), "queries": len(took)},
        "slider": settled,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "explorers-cpu-2.json")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    load, cpu = os.getloadavg()[0], torch.device("cpu")
    found = measure(given.rounds) | {"load": load, "cores": os.cpu_count(), "machine": machine.name(cpu)}
    runtime.write_json(given.out, found | {"environment": runtime.environment(cpu)})
    print(given.out.read_text())
