"""What holds the project together: requirements, imports, the direction of dependencies, what the README says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ickd_lib import methods, results

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CONDA = {"torch": "pytorch", "playwright": "playwright-python"}  # where conda-forge has another name


def test_environment_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {}
    for requirement in [*project["dependencies"], *extras["notebooks"], *extras["test"]]:
        name, bound = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        wanted[CONDA.get(name, name)] = bound
    wanted["python"] = project["requires-python"]
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    found = dict(re.fullmatch(r"([\w-]+)(.*)", d).groups() for d in listed if isinstance(d, str) and d != "pip")
    assert found == wanted
    assert listed[-1] == {"pip": ["--editable ."]}


def test_training_needs_no_notebook_package():
    banned = [
        "IPython",
        "matplotlib",
        "seaborn",
        "umap",
        "ipywidgets",
        "papermill",
        "sklearn",
        "scipy",
        "pandas",
        "timm",
    ]
    program = f"import sys, ickd_lib.training, ickd_lib.__main__\nprint([m for m in {banned} if m in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_nothing():
    program = "import sys, ickd_lib; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def imports(path):
    """The modules of the library that a file imports at run time."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ickd_lib"):
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("runtime.py", set()),
        ("losses", {"losses"}),
        ("theory.py", {"runtime", "losses"}),
        ("data", {"runtime", "data"}),
        ("models", {"runtime", "models"}),
        ("memory", {"runtime", "models", "memory"}),
        ("methods", {"runtime", "losses", "data", "memory", "models", "methods"}),
        ("plots", {"runtime", "data", "memory", "plots"}),
    ],
)
def test_dependencies_point_one_way(module, allowed):
    path = ROOT / "ickd_lib" / module
    for file in [path] if path.is_file() else sorted(path.glob("*.py")):
        assert imports(file) <= allowed, file


def test_modules_are_one_reading_long():
    for path in (ROOT / "ickd_lib").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_readme_names_every_method_and_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for name in methods.names():
        assert f"`{name}`" in text, name
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
        link = "".join(target)
        assert link.startswith("https://") or (ROOT / link).exists(), link


def tables_of(markdown):
    """Of each table of methods its rows, by the first cell: heading -> cell."""
    found = []
    for line in markdown.replace("−", "-").splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if cells and cells[0] == "method":
            head = cells
            found.append({})
        elif found and len(cells) == len(head) and "---" not in cells:
            found[-1][cells[0]] = dict(zip(head, cells, strict=True))
    return found


@pytest.mark.parametrize(
    ("page", "shown"),
    [("README.md", {"table": "kd"}), ("benchmarks/README.md", {"tune": "ickd", "scale": "ickd"})],
)
def test_the_pages_give_the_numbers_of_the_committed_runs(page, shown):
    section = re.search(r"^## [^\n]*CIFAR-100.*?(?=^## )", (ROOT / page).read_text(), flags=re.M | re.S)
    for (folder, baseline), rows in zip(shown.items(), tables_of(section.group()), strict=True):
        runs = results.finished([ROOT / "benchmarks/results/cifar100-small" / folder])
        (reported,) = tables_of(results.table(runs, baseline=baseline, best_first=True))
        assert list(rows) == list(reported)
        for method, row in rows.items():
            assert row.items() <= reported[method].items(), method


def test_nothing_built_is_committed():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert not [
        n for n in names if n.endswith((".pyc", ".pt", ".pth", ".safetensors")) or n.startswith(("runs/", "data/"))
    ]
