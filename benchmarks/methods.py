"""Write the tables of all methods into docs/methods.md, from the registry and from the values of the official codes.

python benchmarks/methods.py            writes the tables
python benchmarks/methods.py --check    ends with status 1 if the tables in the page are not the present ones
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import official  # noqa: E402  # tests/official.py

from ickd_lib import methods, tasks  # noqa: E402
from ickd_lib.methods.overview import by_teacher  # noqa: E402
from ickd_lib.training import capture, presets  # noqa: E402

PAGE = ROOT / "docs/methods.md"
MARKS = {name: (f"<!-- {name}: written by benchmarks/methods.py -->", "<!-- end -->") for name in ("uses", "sources")}


def agreement() -> dict[str, float]:
    """Return, for each official function that a test checks, the largest relative error over its cases."""
    found: dict[str, float] = {}
    for path in sorted((ROOT / "tests").glob("test_official_*.py")):
        checks = importlib.import_module(path.stem).CHECKS
        for case in official.CASES:
            if check := checks.get(case["method"]):
                found[case["method"]] = max(found.get(case["method"], 0.0), official.error(case, check))
    return found


def uses() -> str:
    """Return the table of what each method does and what it needs."""
    lines = [
        "| method | what it does | needs | teacher's classes | segmentation | detection |",
        "|---|---|---|---|---|---|",
    ]
    for kind, name in _ordered():
        method = methods.create(name)
        summary = (type(method).__doc__ or "").strip().partition("\n")[0].rstrip(".:")
        needs = method.needs | ({"retrieval"} if method.retrievals else set())
        space = method.label_space if method.needs_teacher else ""
        dense = " | ".join(_compared(method, tasks.create(task)) for task in ("segmentation", "detection"))
        lines.append(f"| `{name}` | {summary} | {', '.join(sorted(needs))} | {space or kind} | {dense} |")
    return "\n".join(lines)


def _compared(method: methods.Method, task: tasks.Task) -> str:
    """Return what a method compares in a task, or "no" if it cannot be used."""
    name, detection = method.config["name"], task.name == "detection"
    if method.needs & task.unsupported or (name == "catkd" and detection):
        return "no"
    if name == "ctkd":
        return _compared(method.of, task)
    if isinstance(method, methods.ICKD):
        fine = ["proposals" if detection else "pixels"] * bool(method.kd or (method.picd and not detection))
        coarse = ["matched" if detection else "regions"] * bool(method.nicd or (method.picd and detection))
        return ", ".join(fine + coarse)
    if "maps" in method.needs and name != "uskd":
        return "pyramid" if detection else "maps"
    if detection:
        return "matched" if method.needs_bank else "proposals"
    return "pixels" if method.pixelwise or "pixels" in method.needs or name == "ce" else "regions"


def sources() -> str:
    """Return the table of where each method is from, and of how far it agrees with its official code."""
    errors = agreement()
    lines = [
        "| method | paper | code compared with | values agree to | official settings | captured step |",
        "|---|---|---|---|---|---|",
    ]
    for _, name in _ordered():
        method = methods.create(name)
        found = [errors[one] for one in official.METHODS.get(name, ()) if one in errors]
        code = f"[{method.code}](https://github.com/{method.code})" if method.code else ""
        agrees = f"10<sup>{math.ceil(math.log10(max(*found, 1e-15)))}</sup>" if found else "from the paper"
        captured = "no" if capture.works_on_host([method], "crop") else "yes"
        lines.append(
            f"| `{name}` | {_linked(method.paper)} | {code} | {agrees if method.paper else ''} "
            f"| {presets.available(name)} | {captured} |"
        )
    return "\n".join(lines)


def _ordered() -> list[tuple[str, str]]:
    """Return (where the targets come from, name) of all methods, in groups."""
    groups = by_teacher({name: methods.create(name) for name in methods.names()})
    return [(kind, name) for kind, names in groups.items() for name in names]


def _linked(paper: str) -> str:
    """Return a paper with a link in the place of its arXiv number."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def written(page: str) -> str:
    """Return the page with the present tables between their marks."""
    for name, table in (("uses", uses()), ("sources", sources())):
        begin, end = map(re.escape, MARKS[name])
        page, count = re.subn(
            f"({begin}\n).*?({end})", lambda found, table=table: f"{found[1]}{table}\n{found[2]}", page, flags=re.S
        )
        assert count == 1, f"docs/methods.md has no place for the table of {name}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    before = PAGE.read_text()
    after = written(before)
    if given.check:
        sys.exit(before != after)
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
