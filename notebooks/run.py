"""Run the notebooks in reading order on the embedded digits; `make run` calls this script.

    python notebooks/run.py [-p NAME VALUE ...] [NUMBER ...]

The executed notebooks, their figures and their summaries are written to folders below runs/. NUMBER selects notebooks,
such as 03. With -p a parameter gets another value in every selected notebook that has it, as in -p seeds 5. A relative
path in folder, data_root, teacher_weights, teacher or dataset is that from here if it exists; otherwise, and in runs
and output, it is relative to notebooks/.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from ickd_lib import runtime

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
PATHS = ("folder", "data_root", "teacher_weights", "teacher", "dataset")  # parameters that name what is read
LIMIT = 24 * 3600  # longest time of a cell in seconds; papermill itself has no limit


def declared(path: Path) -> dict[str, Any]:
    """Return the parameters of a notebook with their default values."""
    cells = json.loads(path.read_text())["cells"]
    cell = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse("".join(cell["source"])).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def title(path: Path) -> str:
    """Return the first heading of a notebook."""
    return "".join(json.loads(path.read_text())["cells"][0]["source"]).splitlines()[0].lstrip("# ")


def value(text: str) -> Any:
    """Return the value of a Python literal; text that is not a literal is returned unchanged."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def located(name: str, given: Any) -> Any:
    """Return the value of a parameter, as an absolute path if it is a path that exists in the working directory.

    That of `teacher` must be a run folder and that of `teacher_weights` a file, as they may also be names; that of
    `dataset` follows KIND:. The notebooks run in another directory.
    """
    if name not in PATHS or not isinstance(given, str):
        return given
    kind, colon, path = given.partition(":") if name == "dataset" else ("", "", given)
    there = Path(path)
    names = {"teacher": (there / "config.json").is_file(), "teacher_weights": there.is_file()}
    return f"{kind}{colon}{there.absolute()}" if path and names.get(name, there.exists()) else given


def selected(numbers: list[str]) -> list[Path]:
    """Return the notebooks with these numbers in reading order, or all notebooks if there are no numbers.

    Raises:
        InputError: a number belongs to no notebook.
    """
    by_number = {path.name.split("_")[0]: path for path in sorted(HERE.glob("[0-9]*.ipynb"))}
    chosen = {runtime.choose(number, by_number, "notebook") for number in numbers} or by_number.keys()
    return [path for number, path in by_number.items() if number in chosen]


class Bars:
    """Writes the progress bars in a notebook's output to stderr, and nothing else of it."""

    def write(self, text: str) -> None:
        if "\r" in text:
            sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def execute(path: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook into a folder.

    The result has the notebook's name and is written only when the execution succeeds. An execution that fails or is
    interrupted leaves `NAME.failed.ipynb` beside the result of an earlier execution, which stays as it is.

    Args:
        path: the notebook.
        folder: where the executed notebook is written.
        parameters: values that replace the defaults.
    """
    part, failed = (folder / f"{path.stem}.{state}.ipynb" for state in ("part", "failed"))
    try:
        papermill.execute_notebook(
            path,
            part,
            parameters,
            kernel_name="python3",
            cwd=HERE,
            progress_bar=False,
            stdout_file=Bars(),
            stderr_file=sys.stderr,
            execution_timeout=LIMIT,
            config=Config(KernelManager={"transport": "ipc"}),  # other users of the machine could connect to TCP ports
        )
    except BaseException:  # an interruption by Ctrl-C too
        if part.exists():
            part.replace(failed)
        raise
    figures = os.path.relpath(HERE.parent / "figures", folder)  # the committed pictures, seen from the other folder
    text = part.read_text().replace(r"src=\"../figures/", rf"src=\"{figures}/")
    part.write_text(text)
    part.replace(folder / path.name)
    failed.unlink(missing_ok=True)


def main() -> int:
    """Run the notebooks that the command line selects.

    Returns:
        The exit status: 0 after success, 1 if a notebook failed, 2 if the command line is wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="a notebook to run, such as 03; by default all")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter to a value"
    )
    given = parser.parse_args()
    try:
        paths = selected(given.numbers)
        known = dict.fromkeys(name for path in paths for name in declared(path))
        chosen = [(runtime.choose(name, known, "parameter"), text) for name, text in given.p]
    except runtime.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    changed = {name: located(name, value(text)) for name, text in chosen}
    # The parameters are checked above. papermill cannot read all of them, and would warn about those that it cannot.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    began, lines = time.time(), []
    for number, path in enumerate(paths, 1):
        print(f"\n[{number}/{len(paths)}] {title(path)} ({path.name})", flush=True)
        start, folder = time.time(), RUNS / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        parameters = {"output": str(folder)} | {name: v for name, v in changed.items() if name in declared(path)}
        try:
            execute(path, folder, parameters)
        except (PapermillExecutionError, DeadKernelError, CellTimeoutError) as error:
            reason = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
            print(f"error: {path.name} failed: {reason}", file=sys.stderr)
            print(f"The cells up to the error are in {folder / path.stem}.failed.ipynb.", file=sys.stderr)
            if (folder / path.name).exists():
                print(f"{folder / path.name} is the result of an earlier run; it was kept.", file=sys.stderr)
            return 1
        seconds = time.time() - start
        print(f"\n    done in {seconds:.0f} s", flush=True)
        summary = json.loads((HERE / parameters["output"] / "summary.json").read_text())
        lines.append((path.stem, seconds, summary.get("headline", "")))
    width = max(len(name) for name, _, _ in lines)
    print(f"\n{'notebook':<{width}}  seconds  result")
    for name, seconds, headline in lines:
        print(f"{name:<{width}}  {seconds:>7.0f}  {headline}")
    print(f"\nAll notebooks took {time.time() - began:.0f} s. Executed notebooks, figures and summaries: {RUNS}")
    print("To open the notebooks and step through them: make lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
