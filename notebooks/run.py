"""Run the notebooks in reading order on the embedded digits; `make run` calls this.

    python notebooks/run.py [-p NAME VALUE ...] [NUMBER ...]

Executed notebooks, their figures and summaries are written below runs/. A number picks notebooks (03), and -p
sets a parameter in those that have it (-p seeds 5).
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
LIMIT = 24 * 3600  # seconds a cell may take; papermill's own default is for ever


def declared(path: Path) -> dict[str, Any]:
    """The parameters of a notebook and their defaults."""
    cells = json.loads(path.read_text())["cells"]
    cell = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse("".join(cell["source"])).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def title(path: Path) -> str:
    """A notebook's first heading."""
    return "".join(json.loads(path.read_text())["cells"][0]["source"]).splitlines()[0].lstrip("# ")


def value(text: str) -> Any:
    """A parameter's value as typed: a literal where it reads as one, else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="notebooks to run; by default all")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    given = parser.parse_args()
    paths = [p for p in sorted(HERE.glob("[0-9]*.ipynb")) if not given.numbers or p.name.split("_")[0] in given.numbers]
    asked = {name: value(text) for name, text in given.p}
    unknown = set(asked) - {name for path in paths for name in declared(path)}
    if not paths or unknown:
        print(
            f"error: no notebook {' '.join(given.numbers)} has {', '.join(unknown) or 'such a number'}", file=sys.stderr
        )
        return 2
    logging.getLogger("papermill.translators").setLevel(logging.ERROR)  # it cannot read "at(at=60)" in a list
    began, lines = time.time(), []
    for number, path in enumerate(paths, 1):
        print(f"\n[{number}/{len(paths)}] {title(path)} ({path.name})", flush=True)
        start, folder = time.time(), RUNS / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        parameters = {name: v for name, v in asked.items() if name in declared(path)}
        try:
            papermill.execute_notebook(
                path,
                folder / path.name,
                {"output": str(folder)} | parameters,
                kernel_name="python3",
                cwd=HERE,
                progress_bar=False,
                stderr_file=sys.stderr,  # the training bars
                execution_timeout=LIMIT,
                config=Config(KernelManager={"transport": "ipc"}),  # TCP would be open to other users of the machine
            )
        except PapermillExecutionError as error:
            print(f"error: {path.name} failed: {error.ename}: {error.evalue}", file=sys.stderr)
            print(f"the notebook as far as it came: {folder / path.name}", file=sys.stderr)
            return 1
        seconds = time.time() - start
        print(f"\n    done in {seconds:.0f} s", flush=True)
        lines.append((path.stem, seconds, json.loads((folder / "summary.json").read_text()).get("headline", "")))
    width = max(len(name) for name, _, _ in lines)
    print(f"\n{'notebook':<{width}}  seconds  result")
    for name, seconds, headline in lines:
        print(f"{name:<{width}}  {seconds:>7.0f}  {headline}")
    print(f"\n{time.time() - began:.0f} s in all. Executed notebooks, figures and summaries: {RUNS}")
    print("To open and step through the notebooks: make lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
