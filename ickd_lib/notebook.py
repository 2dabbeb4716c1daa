"""The parameters of the notebooks, and the check of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ickd_lib.runtime import InputError, choose

# For every parameter that a notebook may have, its type and the condition that its value must fulfil.
_POSITIVE, _NOT_NEGATIVE = (lambda v: v > 0, "above 0"), (lambda v: v >= 0, "0 or more")
PARAMETERS: dict[str, tuple[type, tuple[Callable[[Any], bool], str] | None]] = {
    "dataset": (
        str,
        (lambda v: bool(v), "the name of a data set, such as digits, cifar100, folder:PATH or imagenet:PATH"),
    ),
    "data_root": (str, None),
    "annotations": (str, (lambda v: v in ("", "masks", "boxes"), "masks, boxes or an empty text")),
    "ignore": (int, (lambda v: -1 <= v <= 255, "a value of ignored pixels, or -1 for none")),
    "download": (bool, None),
    "image_size": (int, _NOT_NEGATIVE),
    "stream": (bool, None),
    "teacher": (str, (lambda v: bool(v), "a model's name")),
    "teacher_weights": (str, None),
    "teacher_epochs": (int, _POSITIVE),
    "teacher_images": (int, _NOT_NEGATIVE),
    "student": (str, (lambda v: bool(v), "a model's name")),
    "methods": (list, (lambda v: len(v) > 0, "at least one method")),
    "baselines": (list, (lambda v: len(v) > 0, "at least one method")),
    "offline": (list, (lambda v: len(v) > 0, "at least one method")),
    "peers": (list, (lambda v: len(v) > 0, "at least one model's name")),
    "labels": (int, _NOT_NEGATIVE),
    "test_images": (int, _NOT_NEGATIVE),
    "augment": (str, (lambda v: bool(v), "crop, randaugment, mixup or cutmix")),
    "shots": (list, (lambda v: all(isinstance(n, int) and n > 0 for n in v) and len(v) > 0, "numbers above 0")),
    "exemplars": (list, (lambda v: all(isinstance(n, int) and n >= 0 for n in v) and len(v) > 0, "numbers from 0 on")),
    "steps": (int, _POSITIVE),
    "epochs": (int, _POSITIVE),
    "batch_size": (int, _POSITIVE),
    "lr": (float, _POSITIVE),
    "schedule": (str, None),
    "seeds": (int, _POSITIVE),
    "seed": (int, _NOT_NEGATIVE),
    "positives": (int, _POSITIVE),
    "negatives": (int, _POSITIVE),
    "queries": (int, _POSITIVE),
    "points": (int, _POSITIVE),
    "samples": (int, _POSITIVE),
    "alpha": (float, (lambda v: 0 < v <= 1, "above 0 and at most 1")),
    "temperature": (float, _POSITIVE),
    "evaluate_every": (int, _POSITIVE),
    "device": (str, None),
    "precision": (str, (lambda v: v in ("auto", "fp32", "bf16"), "auto, fp32 or bf16")),
    "runs": (str, (lambda v: bool(v), "a folder")),
    "output": (str, (lambda v: bool(v), "a folder")),
}


def check_parameters(namespace: dict[str, Any], names: str) -> dict[str, Any]:
    """Check the parameters of a notebook. The cell after the parameters calls it with `globals()`.

    papermill only logs a warning when it is given a parameter that a notebook does not have; here that is an error.

    Args:
        namespace: the notebook's `globals()`.
        names: the notebook's parameters, separated by spaces.
    Returns:
        The parameters and their values.
    Raises:
        InputError: a parameter is unknown, missing, of another type or out of its range.
    """
    declared = names.split()
    shell = {"In", "Out", "exit", "quit", "open", "get_ipython"}
    literal = (str, int, float, list, dict, tuple, type(None))
    for name, value in namespace.items():
        if not name.startswith("_") and name not in shell and isinstance(value, literal):
            if name not in declared:
                choose(name, declared, "parameter")
                raise InputError(f"parameter {name!r} is spelt {choose(name, declared, 'parameter')!r}")
    checked = {}
    for name in declared:
        kind, bound = PARAMETERS[name]
        if name not in namespace:
            raise InputError(f"parameter {name!r} is missing from the parameters cell; give it a {kind.__name__}")
        value = namespace[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise InputError(f"parameter {name}={value!r} is a {type(value).__name__}; expected {kind.__name__}")
        if bound and not bound[0](value):
            raise InputError(f"parameter {name}={value!r} is out of range; expected {bound[1]}")
        checked[name] = value
    return checked
