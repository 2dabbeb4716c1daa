"""Methods for the students of a peer group, each of which is a source of targets for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import losses, runtime
from ickd_lib.methods.base import Context, WithLabels, positive
from ickd_lib.methods.registry import register


@register("dml")
class DML(WithLabels):
    """Deep mutual learning, Zhang et al. 2018 (arXiv 1706.00384): peers are matched to each other.

    The loss is CE plus the mean over the peers of τ² KL(p_peer ‖ p), with τ = 1 by default. All students take a step at
    the same time, from outputs that were computed before it; in the paper they take turns.

    ce, kd: weights of the two terms.
    temperature: τ.
    """

    needs = frozenset({"peers"})

    def __init__(self, *, ce: float = 1.0, kd: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature = kd, positive("temperature", temperature)

    def teach(self, context: Context) -> dict[str, Tensor]:
        logits = context.student.logits
        each = [losses.kd(logits, p.output.logits, temperature=self.temperature) for p in context.peers]
        return {"kd": self.kd * torch.stack(each).mean()}


@register("kdcl")
class KDCL(WithLabels):
    """Collaborative learning, Guo et al. 2020: each student is matched to the ensemble of all students.

    ce, kd: weights of the two terms.
    temperature: τ of the KL term.
    ensemble: "minimum" (KDCL-MinLogit) or "mean" of the logits; see `losses.ensemble`.
    """

    needs = frozenset({"peers"})

    def __init__(
        self, *, ce: float = 1.0, kd: float = 1.0, temperature: float = 2.0, ensemble: str = "minimum"
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature = kd, positive("temperature", temperature)
        self.ensemble = runtime.choose(ensemble, ("minimum", "mean"), "ensemble")

    def teach(self, context: Context) -> dict[str, Tensor]:
        logits = context.student.logits
        every = [logits, *(peer.output.logits for peer in context.peers)]
        together = losses.ensemble(every, context.student.labels, how=self.ensemble)
        return {"kd": self.kd * losses.kd(logits, together, temperature=self.temperature)}
