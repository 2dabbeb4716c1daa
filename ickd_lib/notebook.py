"""The parameters of the notebooks, and the check of their values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ickd_lib.runtime import InputError, choose
from ickd_lib.runtime.arguments import Bound, Count, Name, Natural, Positive, Precision, Share, check, fits

At = Annotated[int, Bound(lambda value: -1 <= value <= 255, "from -1, for none, to 255")]
Some = Annotated[list[Name], Bound(bool, "(at least one)")]

# For every parameter that a notebook may have, its type and range.
PARAMETERS: dict[str, Any] = {
    "dataset": Name,
    "folder": str,
    "crop": Literal["", "pad", "resized"],
    "mirror": bool,
    "format": Literal["onnx", "pt2"],
    "data_root": str,
    "annotations": Literal["", "masks", "boxes"],
    "ignore": At,
    "download": bool,
    "image_size": Natural,
    "stream": bool,
    "teacher": Name,
    "teacher_weights": str,
    "teacher_epochs": Count,
    "teacher_images": Natural,
    "student": Name,
    "methods": Some,
    "baselines": Some,
    "offline": Some,
    "peers": Some,
    "labels": Natural,
    "test_images": Natural,
    "augment": Name,
    "shots": Annotated[list[Count], Bound(bool, "(at least one)")],
    "exemplars": Annotated[list[Natural], Bound(bool, "(at least one)")],
    "steps": Count,
    "epochs": Count,
    "batch_size": Count,
    "lr": Positive,
    "schedule": str,
    "seeds": Count,
    "seed": Natural,
    "positives": Count,
    "negatives": Count,
    "queries": Count,
    "points": Count,
    "samples": Count,
    "episodes": Count,
    "alpha": Annotated[Share, Bound(bool, "and above 0")],
    "temperature": Positive,
    "evaluate_every": Count,
    "device": str,
    "precision": Precision,
    "runs": Name,
    "output": Name,
}


CHECKED = "_parameters_were_checked"  # name in a notebook's namespace


def check_parameters(namespace: dict[str, Any], names: str) -> dict[str, Any]:
    """Check the parameters of a notebook. The cell after the parameters calls it with `globals()`.

    papermill only logs a warning when it is given a parameter that a notebook does not have; here that is an error. It
    is checked only once in a kernel, because later the names of the namespace are also those of the notebook's results.

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
    for name, value in [] if CHECKED in namespace else list(namespace.items()):
        if not name.startswith("_") and name not in shell and isinstance(value, literal):
            if name not in declared:
                choose(name, declared, "parameter")
                raise InputError(f"parameter {name!r} is spelt {choose(name, declared, 'parameter')!r}")
    namespace[CHECKED] = True
    checked = {}
    for name in declared:
        if name not in namespace:
            raise InputError(f"parameter {name!r} is missing from the parameters cell; give it a value")
        value = namespace[name]
        if isinstance(value, str) and value.startswith("[") and not fits(value, PARAMETERS[name]):
            raise InputError(f"parameter {name} is a text; papermill is given a list with -y '{name}: {value}', not -p")
        check(f"parameter {name}", value, PARAMETERS[name])
        checked[name] = float(value) if fits(0.5, PARAMETERS[name]) else value
    return checked
