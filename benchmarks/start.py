"""Measures how long the import of the library and the first picture of the first notebook take.

python benchmarks/start.py
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CLOCK = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def imported(names: str, before: str = "import torch; ") -> float:
    """Return the seconds of an import in a new Python process, the median of five.

    Args:
        names: the module to import.
        before: statements that are executed first and not timed.
    """
    taken = [
        float(
            subprocess.run([sys.executable, "-c", before + CLOCK.format(names)], capture_output=True, check=True).stdout
        )
        for _ in range(5)
    ]
    return statistics.median(taken)


def first_picture(number: str = "00") -> float:
    """Return the seconds from the start of a notebook's kernel to its first picture.

    Args:
        number: the first two digits of the notebook's name. The notebook is executed with its default parameters, in a
            new folder without earlier runs.
    Raises:
        RuntimeError: the notebook displays no picture.
    """
    from nbclient import NotebookClient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    with tempfile.TemporaryDirectory() as folder:
        given = {"output": f"{folder}/output", "runs": f"{folder}/runs"}
        notebook = parameterize_notebook(load_notebook_node(str(path)), given)
        client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}})
        start = time.perf_counter()
        with client.setup_kernel():
            for i, cell in enumerate(notebook.cells):
                client.execute_cell(cell, i)
                if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                    return time.perf_counter() - start
    raise RuntimeError(f"{path.name} displays no picture")


def measure() -> dict[str, float]:
    """Return the seconds of the imports and, where papermill is installed, of the first picture."""
    found = {
        "import_torch_seconds": round(imported("torch", ""), 3),
        "import_ickd_lib_seconds": round(imported("ickd_lib"), 4),
        "import_everything_that_trains_seconds": round(imported("ickd_lib.training"), 3),
    }
    if importlib.util.find_spec("papermill"):  # a machine that only trains may lack it
        found["first_picture_seconds"] = round(first_picture(), 1)
    return found


if __name__ == "__main__":
    for key, value in measure().items():
        print(f"{key}: {value}")
