"""Build the documentation site; `make docs` calls this script.

    python docs/site/build.py [--out FOLDER]

The pages are the README, the guides in docs/, the notebooks as `make run` executed them, and the API from the
docstrings. A notebook that was not executed is shown without results. A warning of Sphinx, or a link to a page or a
heading that does not exist, is an error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.cmd.build import main as sphinx

import ickd_lib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
NOTE = "> This notebook was not executed before this page was built; `make run` executes all of them.\n"
GUIDES = (
    "data methods commands dense notebooks attribution export extending "
    "results study speed scale reliability architecture"
).split()


def assemble(source: Path) -> None:
    """Write all pages below a folder, in the layout of the repository, so that links between them stay as they are."""
    shutil.rmtree(source, ignore_errors=True)
    for folder in ("docs", "notebooks", "benchmarks", "api"):
        (source / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "figures", source / "figures", ignore=shutil.ignore_patterns("*.md"))
    shutil.copytree(ROOT / "docs" / "gallery", source / "docs" / "gallery")
    for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md", ROOT / "SECURITY.md"):
        place = path.relative_to(ROOT)
        (source / place).write_text(linked(path.read_text(), path.parent))
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for path in notebooks:
        (source / "notebooks" / path.name).write_text(json.dumps(notebook(path)))
    for name in ickd_lib.__all__:
        (source / "api" / f"{name}.md").write_text(api(name))
    parts = {
        "Guides": [f"docs/{name}" for name in GUIDES] + ["benchmarks/README", "SECURITY"],
        "Notebooks": [f"notebooks/{path.stem}" for path in notebooks],
        "Python": [f"api/{name}" for name in ickd_lib.__all__],
    }
    contents = [
        f"```{{toctree}}\n:hidden:\n:caption: {name}\n\n" + "\n".join(pages) + "\n```" for name, pages in parts.items()
    ]
    (source / "README.md").write_text("\n\n".join([linked((ROOT / "README.md").read_text(), ROOT), *contents]))


def linked(text: str, folder: Path) -> str:
    """Return a page with those links changed whose targets are neither pages nor galleries.

    The link to a package leads to its API; of all others only the text stays.

    Args:
        text: the page in Markdown.
        folder: the folder of the page.
    """

    def changed(match: re.Match[str]) -> str:
        words, target = match.groups()
        if target.startswith(("https://", "#")):
            return match[0]
        path = (folder / target.partition("#")[0]).resolve().relative_to(ROOT)
        if path.suffix in (".md", ".ipynb", ".html") and path != Path("figures/README.md"):
            return match[0]
        if (
            path.parts[0] == "ickd_lib"
            and len(path.parts) > 1
            and path.parts[1].removesuffix(".py") in ickd_lib.__all__
        ):
            up = "../" * len(folder.relative_to(ROOT).parts)
            return f"[{words}]({up}api/{path.parts[1].removesuffix('.py')}.md)"
        return words

    return LINK.sub(changed, text)


def notebook(path: Path) -> dict:
    """Return a notebook: that of the folder of runs if its code is the present one, otherwise the committed one."""
    committed = json.loads(path.read_text())
    executed = ROOT / "runs" / path.stem / path.name
    found = committed
    if executed.exists() and _code(result := json.loads(executed.read_text())) == _code(committed):
        found = result
    else:
        title, *rest = "".join(committed["cells"][0]["source"]).split("\n", 1)
        committed["cells"][0]["source"] = "\n".join([title, "", NOTE, *rest])
    found["cells"] = [cell for cell in found["cells"] if "injected-parameters" not in _tags(cell)]
    for cell in found["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked("".join(cell["source"]), path.parent)
    found["metadata"].pop("widgets", None)
    return found


def _tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def _code(content: dict) -> list[str]:
    """Return the code of a notebook, without the parameters that papermill added."""
    cells = (cell for cell in content["cells"] if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in cells if "injected-parameters" not in _tags(cell)]


def api(name: str) -> str:
    """Return the page of a package, which documents all its public names."""
    module = importlib.import_module(f"ickd_lib.{name}")
    everything = "" if hasattr(module, "__all__") else "   :undoc-members:\n"
    return f"# ickd_lib.{name}\n\n```{{eval-rst}}\n.. automodule:: ickd_lib.{name}\n   :members:\n{everything}```\n"


class Links(HTMLParser):
    """Collects the names in a page to which links lead, and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" and value:
                self.names.add(value)
            if (tag, key) in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")) and value:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """Return a line for each link from a page to a file or heading of the site that does not exist."""
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            name = unquote(parts.fragment)
            if not target.exists() or (name and target in pages and name not in pages[target].names):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "build" / "docs"), help="folder of the site")
    out = Path(parser.parse_args().out).resolve()
    assemble(out / "source")
    site = out / "html"
    shutil.rmtree(site, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-E", "-d", str(out / "doctrees"), "-c", str(HERE)]
    if status := sphinx(["-b", "html", *options, str(out / "source"), str(site)]):
        return status
    (site / "index.html").write_text('<!DOCTYPE html><meta http-equiv="refresh" content="0; url=README.html">\n')
    if lines := broken(site):
        print("error: links that lead nowhere:", *lines, sep="\n", file=sys.stderr)
        return 1
    print(f"The site is in {site}; open {site / 'index.html'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
