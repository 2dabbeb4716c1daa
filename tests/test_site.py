"""The documentation site: what its pages are made of, which links it keeps, and that broken ones are found."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import ickd_lib

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("sphinx", reason="needs the extra docs; make docs installs it and builds the site")
spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "site" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "source"
    build.assemble(folder)
    return folder


def test_every_guide_notebook_and_package_has_a_page_in_the_contents(source):
    contents = (source / "README.md").read_text()
    pages = [path.relative_to(source) for path in source.rglob("*") if path.suffix in (".md", ".ipynb")]
    assert len(pages) > 40
    for page in pages:
        assert page == Path("README.md") or f"\n{page.with_suffix('')}\n" in contents, page
    guides = {f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")}
    assert guides <= set(re.findall(r"^docs/\w+$", contents, re.M))
    assert {path.stem for path in (source / "api").iterdir()} == set(ickd_lib.__all__)


def test_links_lead_to_pages(source):
    text = (source / "docs" / "architecture.md").read_text()
    assert "](../api/losses.md)" in text and "ickd_lib/losses" not in text
    for page in source.rglob("*.md"):
        for _, target in build.LINK.findall(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)):
            if not target.startswith(("https://", "#")):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


def test_an_executed_notebook_is_used_if_its_code_is_the_present_one(tmp_path, monkeypatch):
    (path,) = (ROOT / "notebooks").glob("00_*.ipynb")
    content = json.loads(path.read_text())
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "linked", lambda text, folder: text)
    assert "was not executed" in "".join(build.notebook(path)["cells"][0]["source"])
    made = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": "seed = 0", "outputs": []}
    content["cells"].insert(2, made)
    executed = tmp_path / "runs" / path.stem / path.name
    executed.parent.mkdir(parents=True)
    executed.write_text(json.dumps(content))
    used = build.notebook(path)
    assert "was not executed" not in "".join(used["cells"][0]["source"]) and made not in used["cells"]
    content["cells"][-1]["source"] = "other = 1"
    executed.write_text(json.dumps(content))
    assert "was not executed" in "".join(build.notebook(path)["cells"][0]["source"])


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">a</h1><a href="b.html#there">b</a><a href="b.html#gone">b</a><a href="c.html">c</a>'
        '<a href="#top">up</a><img src="d.png"><a href="https://example.org/x">out</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p>')
    assert [line.split(": ")[1] for line in build.broken(tmp_path)] == ["b.html#gone", "c.html", "d.png"]
