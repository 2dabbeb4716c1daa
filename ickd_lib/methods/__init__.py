"""Distillation methods: what each requires of a training step, and its loss terms. All are registered here."""

from ickd_lib.methods import (
    contrastive,
    features,
    incontext,
    incremental,
    labels,
    logits,
    maps,
    multilevel,
    online,
    paradigms,
    refilled,
    reuse,
    review,
    segmentation,
    temperature,
    transport,
)
from ickd_lib.methods.base import NEEDS, Method, WithLabels, defaults, require_initialised
from ickd_lib.methods.combined import Combined, describe
from ickd_lib.methods.context import Context, InContextPair, Retrieval, StrongView, TargetSource
from ickd_lib.methods.incontext import ICKD
from ickd_lib.methods.registry import create, names, parse, recorded, register

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
    "maps",
    "multilevel",
    "names",
    "online",
    "paradigms",
    "parse",
    "recorded",
    "refilled",
    "register",
    "require_initialised",
    "reuse",
    "review",
    "segmentation",
    "temperature",
    "transport",
]
