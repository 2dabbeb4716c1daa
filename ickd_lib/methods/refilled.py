"""REFILLED, in which the teacher may have any classes because its features alone are used."""

from __future__ import annotations

from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.runtime.arguments import NotNegative, Positive, Share


@register("refilled")
class REFILLED(WithLabels):
    """REFILLED: relationship matching, then local classifiers, Ye, Lu, Zhan 2022 (arXiv 2205.01915).

    Phase 1 trains the embedding alone: for the semi-hard tuples of the batch, the student's comparison of distances
    is matched to the teacher's. Phase 2 trains all layers with cross-entropy and with a classifier that the teacher's
    class means induce among the classes of the batch. The paper trains 200 + 200 epochs.

    Three things differ in the authors' code. Its default in phase 1 is triplets in place of the paper's tuples:
    `refilled(merged=False, embedding=31.25)`, where 31.25 is half of 62.5, because its mean is over twice the number of
    triplets. Phase 2 continues from the checkpoint of phase 1 with the best accuracy of class means on held-out images,
    and here from the last step. And in phase 2 the embedding's learning rate is the classifier's (`rate=1`).

    embedding, local: weights of the two terms (published: 1000 and 100 without τ², which are 62.5 and 25 with it).
    rate: learning rate of the embedding in phase 2, relative to the classifier's.
    share: share of the training that phase 1 takes; with 0 or 1 there is only one phase.
    margin: largest difference of distances at which a negative counts as semi-hard.
    embedding_temperature, local_temperature: τ of the two terms.
    merged: whether the negatives of an anchor and a positive form one tuple, or each a triplet of its own.
    """

    needs = frozenset({"teacher", "features", "bank"})
    label_space = "any"
    paper = "Ye, Lu, Zhan 2022, arXiv 2205.01915"
    code = "njulus/REFILLED"

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        embedding: NotNegative = 62.5,
        local: NotNegative = 25.0,
        rate: Share = 0.1,
        share: Share = 0.5,
        margin: Positive = 0.2,
        embedding_temperature: Positive = 4.0,
        local_temperature: Positive = 2.0,
        merged: bool = True,
    ) -> None:
        super().__init__(ce=ce)
        self.embedding, self.local, self.margin = embedding, local, margin
        self.merged = merged
        self.embedding_temperature = embedding_temperature
        self.local_temperature = local_temperature
        self.restarts, self.embedding_rates = (share,), (1.0, rate)

    def forward(self, context: Context) -> dict[str, Tensor]:
        if context.phase > 0:
            return super().forward(context)
        assert context.teacher is not None
        matched = losses.refilled_embedding(
            context.student.features,
            context.teacher.features,
            context.student.labels,
            temperature=self.embedding_temperature,
            margin=self.margin,
            merged=self.merged,
        )
        return {"embedding": self.embedding * matched}

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None and context.bank is not None
        local = losses.refilled_local(
            context.student.logits,
            context.teacher.features,
            context.bank.class_means(),
            context.student.labels,
            temperature=self.local_temperature,
        )
        return {"local": self.local * local}
