"""Values and gradients that official codes compute, and how far a function of this library is from them.

`official_losses.json` says in its `recipe` how the inputs are made and what the numbers mean. A check is a function of
`inputs` and `hyper` that computes the value of the official function with this library's losses. The modules
`test_official_*.py` hold the checks in dictionaries, CHECKS, by the names of the methods in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

CASES = json.loads((Path(__file__).parent / "official_losses.json").read_text())["cases"]
# The inputs are float64, but a few official functions pass through float32; `error` of these is about 1e-7.
TOLERANCE = 1e-6

Check = Callable[[SimpleNamespace, dict[str, Any]], Tensor]


def cases(checks: dict[str, Check]) -> list[Any]:
    """Return the cases that some checks cover, as parameters (case, check) for pytest, with readable ids."""
    import pytest

    found = [case for case in CASES if case["method"] in checks]
    missing = checks.keys() - {case["method"] for case in CASES}
    assert not missing, f"official_losses.json has no case of {sorted(missing)}"
    return [
        pytest.param(case, checks[case["method"]], id=f"{case['method']}-{number}") for number, case in enumerate(found)
    ]


def inputs(case: dict[str, Any]) -> SimpleNamespace:
    """Return the inputs of a case, float64 with gradient (labels: int64), as attributes by name; a list for a list."""
    made = {
        name: [_tensor(one) for one in recipe] if isinstance(recipe, list) else _tensor(recipe)
        for name, recipe in case["inputs"].items()
    }
    return SimpleNamespace(**made)


def _tensor(recipe: dict[str, Any]) -> Tensor:
    generator = np.random.RandomState(recipe["seed"])
    if "randint" in recipe:
        return torch.from_numpy(generator.randint(0, recipe["randint"], recipe["shape"]))
    values = torch.from_numpy(recipe["scale"] * generator.standard_normal(recipe["normal"]))
    if recipe.get("relu"):
        values = values.clamp(min=0)
    if "unit" in recipe:
        values = values / values.norm(dim=recipe["unit"], keepdim=True)
    return values.requires_grad_()


def error(case: dict[str, Any], check: Check) -> float:
    """Return the largest relative difference between the official numbers and a check's: value, norms and entries."""
    given = inputs(case)
    value = check(given, case["hyper"])
    named = [name for name, gradient in case["gradients"].items() if gradient is not None]
    flat = [one for name in named for one in _listed(getattr(given, name))]
    expected = [one for name in named for one in _listed(case["gradients"][name])]
    found = torch.autograd.grad(value, flat, allow_unused=True)
    # Values near 0 are the difference of nearly equal numbers, so that they are compared on the scale of 1e-6.
    errors = [abs(value.item() - case["value"]) / max(abs(case["value"]), 1e-6)]
    for gradient, numbers in zip(found, expected, strict=True):
        if numbers is None:
            continue
        values = torch.zeros(1) if gradient is None else gradient.flatten()
        scale = max(numbers["norm"], 1e-9)
        errors.append(abs(values.norm().item() - numbers["norm"]) / scale)
        first = torch.tensor(numbers["first"], dtype=torch.float64)
        errors.append(((values[: len(first)] - first).abs().max() / scale).item())
    return max(errors)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# The official functions with which each method is compared.
METHODS = {
    "at": ("at",),
    "catkd": ("catkd",),
    "cirkd": ("cirkd_minibatch", "cirkd_memory_pixel", "cirkd_memory_region"),
    "ckd": ("ckd",),
    "crd": ("crd",),
    "cskd": ("cskd",),
    "ctkd": ("ctkd",),
    "dist": ("dist",),
    "dkd": ("dkd", "lskd_dkd"),
    "dml": ("dml",),
    "fitnet": ("fitnet",),
    "hcl": ("reviewkd",),
    "kd": ("kd",),
    "kdcl": ("kdcl_mean",),
    "lskd": ("lskd",),
    "lwf": ("lwf", "lwf_kd"),
    "mlkd": tuple(f"mlkd_{part}" for part in ("bc", "cc", "kd", "two_views", "whole", "ls_two_views", "ls_whole")),
    "nkd": ("nkd",),
    "pkt": ("pkt",),
    "pskd": ("pskd",),
    "refilled": ("refilled_stage1", "refilled_stage2"),
    "reviewkd": ("reviewkd",),
    "rkd": ("rkd",),
    "skd": ("skd", "skd_gram"),
    "sp": ("sp",),
    "tfkd": ("tfkd",),
    "ttm": ("ttm",),
    "uskd": ("uskd",),
    "vid": ("vid",),
    "wkd_l": ("wkd_l",),
    "wttm": ("wttm",),
}
