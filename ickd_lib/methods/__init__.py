"""Methods: what each takes from a training step, and which losses it adds. Registered here, nowhere else."""

from ickd_lib.methods import features, incontext, labels, logits, online
from ickd_lib.methods.base import (
    NEEDS,
    Combined,
    Context,
    Guide,
    Method,
    Retrieval,
    WithLabels,
    create,
    defaults,
    describe,
    names,
    parse,
    register,
)
from ickd_lib.methods.incontext import ICKD

__all__ = [
    "ICKD",
    "NEEDS",
    "Combined",
    "Context",
    "Guide",
    "Method",
    "Retrieval",
    "WithLabels",
    "create",
    "defaults",
    "describe",
    "features",
    "incontext",
    "labels",
    "logits",
    "names",
    "online",
    "parse",
    "register",
]
