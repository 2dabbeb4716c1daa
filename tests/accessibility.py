"""The findings of axe-core, which checks pages for accessibility: names, roles, contrast."""

from importlib.resources import files
from importlib.util import find_spec

import pytest


def serious_findings(page, inside: str = "body") -> list[str]:
    """The serious and critical findings of axe-core for a part of a page, each with its first element."""
    if not find_spec("axe_playwright_python"):
        pytest.skip("pip install axe-playwright-python, which contains axe-core, to check accessibility")
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = page.evaluate("async (inside) => (await axe.run(inside)).violations", inside)
    return [
        f"{one['id']} ({len(one['nodes'])}): {one['help']}: {one['nodes'][0]['html'][:300]} "
        f"{one['nodes'][0].get('failureSummary', '')[:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
