"""What a result depends on beside its settings: versions, commit, source, device."""

from __future__ import annotations

import ast
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ickd_lib.runtime.files import fingerprint

LIBRARY = Path(__file__).resolve().parents[1]
SOURCES = ("runtime", "data", "models", "tasks", "memory", "losses", "methods", "training")


@cache
def code() -> str:
    """A fingerprint of the source that determines the result of a run.

    Comments, docstrings and formatting do not count: the syntax tree without docstrings is hashed.
    """
    files = sorted(path for part in SOURCES for path in (LIBRARY / part).rglob("*.py"))
    return fingerprint(*(_structure(path.read_text()) for path in files))


def _structure(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def environment(device: torch.device) -> dict[str, Any]:
    """The versions, the commit, the device and the number of processes, as config.json records them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "commit": _revision(),
        "code": code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": name,
        "world_size": 1,
    }


@cache
def _revision() -> str:
    """The commit of the library, with "-modified" where files differ from it."""
    try:
        git = ["git", "-C", str(LIBRARY)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
        return commit.stdout.strip() + ("-modified" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for each entry in which the environment of a run differs from the present one.

    Another commit counts only where the source itself differs, and the source is compared only under the same Python,
    because the syntax tree changes with its version. Entries that one of the two lacks are skipped.
    """
    skipped = {"commit"} if recorded.get("python") == now.get("python") else {"commit", "code"}
    differing = [k for k in now if k in recorded and recorded[k] != now[k] and k not in skipped]
    found = []
    for key in differing:
        if key == "code":
            commits = f"{str(recorded.get('commit'))[:10]} there, {str(now.get('commit'))[:10]} here"
            found.append(f"the source of ickd_lib differs (commit {commits})")
        else:
            found.append(f"{key.replace('_', ' ')}: {recorded[key]} there, {now[key]} here")
    return found
