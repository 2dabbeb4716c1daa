"""ickd: in-context knowledge distillation in PyTorch.

    runtime   devices, seeds, files, run folders          losses    the mathematics, as pure functions
    data      data sets, views, sampling                  models    networks: images in, logits and features out
    metrics   accuracy, fidelity, retrieval, separation   tasks     how images become samples
    memory    the memory bank and retrieval               methods   what each method requires and adds
    training  the loop, teachers, comparisons             runs      tables of run folders, differences of two runs
    theory    the computations behind the idea            plots     figures
    explore   the data behind the explorers               widgets   the interactive explorers
    export    networks as files, and their predictions    pages     HTML pages about runs
    notebook  the parameters of the notebooks

Modules are imported when they are first used, so that importing the package costs nothing.
"""

import os
import sys
from importlib import import_module
from types import ModuleType

if "torch" not in sys.modules:
    # Read when torch loads OpenMP: waiting threads sleep instead of spinning, which is faster on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
__all__ = [
    "data",
    "explore",
    "export",
    "losses",
    "memory",
    "methods",
    "metrics",
    "models",
    "notebook",
    "pages",
    "plots",
    "runs",
    "runtime",
    "tasks",
    "theory",
    "training",
    "widgets",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"ickd_lib.{name}")
    raise AttributeError(f"module 'ickd_lib' has no attribute {name!r}")
