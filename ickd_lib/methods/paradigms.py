"""In-context distillation with one term alone, between peers, and without a teacher."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from ickd_lib.methods.context import Source
from ickd_lib.methods.incontext import ICKD, Anchor
from ickd_lib.methods.registry import register
from ickd_lib.runtime.arguments import Count, NotNegative, Positive, Share


@register("picd")
class PICD(ICKD):
    """In-context distillation with the positives alone (PICD), beside cross-entropy; arguments as for `ickd`."""

    before = MappingProxyType({"corrected": False})  # without NICD, the limit has no effect

    def __init__(
        self,
        *,
        ce: NotNegative = 0.1,
        kd: NotNegative = 0.0,
        picd: NotNegative = 0.9,
        nicd: NotNegative = 0.0,
        **choices: Any,
    ):
        super().__init__(ce=ce, kd=kd, picd=picd, nicd=nicd, **choices)


@register("nicd")
class NICD(ICKD):
    """In-context distillation with the negatives alone (NICD), beside cross-entropy; arguments as for `ickd`."""

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        kd: NotNegative = 0.0,
        picd: NotNegative = 0.0,
        nicd: NotNegative = 1.0,
        **choices: Any,
    ):
        super().__init__(ce=ce, kd=kd, picd=picd, nicd=nicd, **choices)


@register("ickd_online")
class OnlineICKD(ICKD):
    """In-context distillation between students of a peer group that train from scratch; see `ickd`."""

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        kd: NotNegative = 1.0,
        picd: NotNegative = 1.0,
        nicd: NotNegative = 0.1,
        temperature: Positive = 4.0,
        negatives: Count = 32,
        source: Source = "peers",
        warmup: Share = 0.1,
        momentum: Share = 0.5,
        limit: NotNegative | None = None,
        corrected: bool = False,
        **choices: Any,
    ) -> None:
        super().__init__(
            ce=ce,
            kd=kd,
            picd=picd,
            nicd=nicd,
            temperature=temperature,
            negatives=negatives,
            source=source,
            warmup=warmup,
            momentum=momentum,
            limit=limit,
            corrected=corrected,
            **choices,
        )


@register("ickd_self")
class SelfICKD(OnlineICKD):
    """In-context distillation without a teacher, from the student's own earlier features and logits; see `ickd`."""

    def __init__(
        self, *, kd: NotNegative = 0.0, anchor: Anchor = "aggregate", source: Source = "self", **choices: Any
    ) -> None:
        super().__init__(kd=kd, anchor=anchor, source=source, **choices)
