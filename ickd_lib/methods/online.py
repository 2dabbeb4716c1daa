"""Methods for the students of a peer group, each of which is a source of targets for the others."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.runtime.arguments import NotNegative, Positive


@register("dml")
class DML(WithLabels):
    """Deep mutual learning: each student matches the predictions of its peers, Zhang et al. 2018 (arXiv 1706.00384).

    The loss is CE plus τ² KL(p_peer ‖ p) of each peer, with τ = 1 by default. With more than one peer, the authors'
    code (YingZhangDUT/Deep-Mutual-Learning) adds up the KL terms; the paper's equation takes their mean. All students
    take a step at the same time, from outputs that were computed before it; in the paper they take turns.

    ce, kd: weights of the two terms.
    temperature: τ.
    average: whether the KL term is the mean over the peers instead of the sum.
    """

    needs = frozenset({"peers"})
    pixelwise = True
    paper = "Zhang et al. 2018, arXiv 1706.00384"
    code = "AberHu/Knowledge-Distillation-Zoo"  # not the authors', which is in TensorFlow
    version = 2

    def __init__(
        self, *, ce: NotNegative = 1.0, kd: NotNegative = 1.0, temperature: Positive = 1.0, average: bool = False
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature, self.average = kd, temperature, average

    def teach(self, context: Context) -> dict[str, Tensor]:
        logits = context.student.logits
        each = [losses.kd(logits, p.output.logits, temperature=self.temperature) for p in context.peers]
        together = torch.stack(each)
        return {"kd": self.kd * (together.mean() if self.average else together.sum())}


@register("kdcl")
class KDCL(WithLabels):
    """Collaborative learning, Guo et al. 2020: each student is matched to the ensemble of all students.

    The loss is CE plus τ² KL to the ensemble. The authors published no code, so "minimum" was built from the paper. The
    code of others, with which the values of "mean" agree, has the settings
    `kdcl(ce=0.5, kd=0.5, temperature=4, ensemble='mean')`. In the paper each student has an augmentation of its own;
    here all have the same.

    ce, kd: weights of the two terms.
    temperature: τ of the KL term.
    ensemble: "minimum" (KDCL-MinLogit) or "mean" of the logits; see `losses.ensemble`.
    """

    needs = frozenset({"peers"})
    pixelwise = True
    paper = "Guo et al. 2020, CVPR"
    code = "shaoeric/Online-Knowledge-Distillation-via-Collaborative-Learning"

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        kd: NotNegative = 1.0,
        temperature: Positive = 2.0,
        ensemble: Literal["minimum", "mean"] = "minimum",
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature = kd, temperature
        self.ensemble = ensemble

    def teach(self, context: Context) -> dict[str, Tensor]:
        logits = context.student.logits
        every = [logits, *(peer.output.logits for peer in context.peers)]
        together = losses.ensemble(every, context.student.labels, how=self.ensemble)
        return {"kd": self.kd * losses.kd(logits, together, temperature=self.temperature)}
