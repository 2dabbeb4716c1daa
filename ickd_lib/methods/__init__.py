"""Distillation methods: what each requires of a training step, and its loss terms. All are registered here."""

from ickd_lib.methods import features, incontext, labels, logits, maps, online, reuse, review
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
    "create",
    "defaults",
    "describe",
    "features",
    "incontext",
    "labels",
    "logits",
    "maps",
    "names",
    "online",
    "parse",
    "register",
    "reuse",
    "review",
]
