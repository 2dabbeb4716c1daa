"""What holds the project together: requirements, imports, the direction of dependencies, what the README says."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import yaml

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
    for requirement in [*project["dependencies"], *extras["notebooks"], *extras["dense"], *extras["test"]]:
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
        "pycocotools",
        "submitit",
        "onnx",
        "onnxruntime",
    ]
    program = f"import sys, ickd_lib.training, ickd_lib.__main__\nprint([m for m in {banned} if m in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_nothing():
    program = "import sys, ickd_lib; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Of each package the others that it may import at run time; what lies above it knows it.
ALLOWED = {
    "runtime": set(),
    "losses": set(),
    "theory": {"runtime", "losses"},
    "notebook": {"runtime"},
    "data": {"runtime"},
    "models": {"runtime", "data"},
    "metrics": {"runtime", "data"},
    "tasks": {"runtime", "losses", "data", "models", "metrics"},
    "memory": {"runtime", "data", "models", "tasks"},
    "methods": {"runtime", "losses", "data", "models", "memory", "tasks"},
    "training": {"runtime", "data", "models", "metrics", "tasks", "memory", "methods"},
    "runs": {"runtime", "methods", "tasks", "training"},
    "export": {"runtime", "data", "models", "metrics", "tasks", "memory", "training", "runs"},
    "plots": {"runtime", "data", "memory"},
    "pages": {
        "",
        "runtime",
        "data",
        "models",
        "metrics",
        "tasks",
        "memory",
        "training",
        "runs",
        "export",
        "plots",
        "explore",
    },
    "explore": {"runtime", "losses", "data", "models", "metrics", "tasks", "memory", "methods"},
    "widgets": {"runtime", "data", "models", "metrics", "tasks", "memory", "methods", "runs", "plots", "explore"},
    "options": {"", "runtime", "data", "models", "tasks", "methods", "training"},
    "__main__": {
        "",
        "options",
        "runtime",
        "data",
        "models",
        "metrics",
        "tasks",
        "memory",
        "methods",
        "training",
        "runs",
        "export",
        "plots",
        "pages",
    },
}


def imports(path):
    """The packages of the library that a file imports at run time, absolutely or relatively; "" is the top one."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        named = []
        if isinstance(node, ast.Import):
            named = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(inside[: len(inside) - node.level]) if node.level else []
            module = start + (node.module.split(".") if node.module else [])
            named = [[*module, alias.name] for alias in node.names] if module == ["ickd_lib"] else [module]
        for name in named:
            if name[0] == "ickd_lib" and len(name) > 1:
                found.add(name[1] if (ROOT / "ickd_lib" / name[1]).exists() else name[1].removesuffix(".py"))
    packages = {p.stem for p in (ROOT / "ickd_lib").iterdir()}
    return {name if name in packages else "" for name in found}


def package_files():
    for path in sorted((ROOT / "ickd_lib").iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield path.name, sorted(path.rglob("*.py"))
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield path.stem, [path]


def test_dependencies_point_one_way():
    seen = set()
    for package, files in package_files():
        seen.add(package)
        for file in files:
            assert imports(file) <= ALLOWED[package] | {package}, file
    assert seen == set(ALLOWED), "every package is listed"


def test_no_package_attribute_shadows_a_submodule():
    for init in (ROOT / "ickd_lib").rglob("__init__.py"):
        name = ".".join(init.parent.relative_to(ROOT).parts)
        package = importlib.import_module(name)
        for path in init.parent.glob("*"):
            if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists()):
                submodule = importlib.import_module(f"{name}.{path.stem}") if path.stem != "__main__" else None
                assert submodule is None or getattr(package, path.stem) is submodule, f"{name}.{path.stem}"


def test_modules_are_one_reading_long():
    for path in (ROOT / "ickd_lib").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_nothing_built_is_committed():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert not [
        n for n in names if n.endswith((".pyc", ".pt", ".pth", ".safetensors")) or n.startswith(("runs/", "data/"))
    ]
