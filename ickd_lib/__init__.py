"""ickd: in-context knowledge distillation in PyTorch.

    data        data sets as resident tensors                models    networks: images in, logits and features out
    memory      the teacher's memory bank and retrieval      losses    the mathematics, as pure functions
    methods     what each method takes and adds              training  the one loop, teachers, comparisons
    metrics     accuracy, fidelity, retrieval, separation    theory    the exact computations behind the idea
    results     tables from run folders                      runtime   seeds, devices, files, run folders
    plots       data in, Figure out                          explore   what the explorers show, as data
    widgets     explorers: thin interactive shells over both

Modules are imported when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = [
    "data",
    "explore",
    "losses",
    "memory",
    "methods",
    "metrics",
    "models",
    "plots",
    "results",
    "runtime",
    "theory",
    "training",
    "widgets",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"ickd_lib.{name}")
    raise AttributeError(f"module 'ickd_lib' has no attribute {name!r}")
