"""Distillation methods: what each requires of a training step, and its loss terms. All are registered here."""

from ickd_lib.methods import (
    contrastive,
    features,
    incontext,
    incremental,
    labels,
    logits,
    multilevel,
    online,
    refilled,
    temperature,
    transport,
)
from ickd_lib.methods.base import (
    NEEDS,
    Context,
    InContextPair,
    Method,
    Retrieval,
    StrongView,
    TargetSource,
    WithLabels,
    defaults,
)
from ickd_lib.methods.combined import Combined, describe
from ickd_lib.methods.incontext import ICKD
from ickd_lib.methods.registry import create, names, parse, register

__all__ = [
    "ICKD",
    "NEEDS",
    "Combined",
    "Context",
    "InContextPair",
    "Method",
    "Retrieval",
    "StrongView",
    "TargetSource",
    "WithLabels",
    "contrastive",
    "create",
    "defaults",
    "describe",
    "features",
    "incontext",
    "incremental",
    "labels",
    "logits",
    "multilevel",
    "names",
    "online",
    "parse",
    "refilled",
    "register",
    "temperature",
    "transport",
]
