"""The environment on which a result depends beside its settings: versions, commit, source and device."""

from __future__ import annotations

import ast
import inspect
import platform
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ickd_lib.runtime.distributed import world
from ickd_lib.runtime.files import fingerprint

LIBRARY = Path(__file__).resolve().parents[1]
PACKAGES = ("ickd_lib", "torch", "torchvision", "timm")  # with the standard library, what is not the user's own code
SOURCES = ("runtime", "data", "models", "tasks", "memory", "losses", "methods", "training")


@cache
def code() -> str:
    """Return a fingerprint of the source that determines the result of a run.

    Comments, docstrings and formatting do not count: the syntax tree without docstrings is hashed.
    """
    files = sorted(path for part in SOURCES for path in (LIBRARY / part).rglob("*.py"))
    return fingerprint(*(_structure(path.read_text("utf-8")) for path in files))


def _structure(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def own_source(module: nn.Module) -> str | None:
    """Return a fingerprint of the source of those classes of a module and of its parts that are the user's own.

    Comments, docstrings and formatting do not count, as in `code`. Functions that the classes call, and what they read
    from outside, are not part of it.

    Returns:
        The fingerprint; "" if no class is the user's own; None if the source of one is not available, because it was
        typed at a prompt, for example.
    """
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    names = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    libraries = {*PACKAGES, *sys.stdlib_module_names}
    own = [kind for name, kind in sorted(names.items()) if name.partition(".")[0] not in libraries]
    found = [(kind.__qualname__, _of_class(kind)) for kind in own]
    if any(text is None for _, text in found):
        return None
    return fingerprint(found) if found else ""


@cache
def _of_class(kind: type) -> str | None:
    """Return the structure of the source of a class; None if it is not available."""
    try:
        return _structure(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions, the commit, the device and the number of processes, which config.json records."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "commit": _revision(),
        "code": code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": name,
        "world_size": world(),
    }


@cache
def _revision() -> str:
    """Return the commit of the library, with "-modified" if files differ from it."""
    try:
        git = ["git", "-C", str(LIBRARY)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
        return commit.stdout.strip() + ("-modified" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each entry in which the environment of a run differs from the present one.

    A different commit counts only if the source itself differs. The source is compared only under the same version of
    Python, because its syntax tree changes with the version. Entries that one of the two lacks are skipped.

    Args:
        recorded: the environment in the config.json of a run.
        now: the present one, as `environment` returns it.
    """
    skipped = {"commit"} if recorded.get("python") == now.get("python") else {"commit", "code"}
    differing = [k for k in now if k in recorded and recorded[k] != now[k] and k not in skipped]
    found = []
    for key in differing:
        if key == "code":
            commits = f"{str(recorded.get('commit'))[:10]} then, {str(now.get('commit'))[:10]} now"
            found.append(f"the source of ickd_lib differs (commit {commits})")
        else:
            found.append(f"{key.replace('_', ' ')}: {recorded[key]} then, {now[key]} now")
    return found
